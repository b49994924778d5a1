"""Every file of the product is written by `trt_compress.files`: whole, or grown by whole lines."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for folder in ("export", "models", "plugins", "runtime", "tools", "src/trt_compress")
    for path in (ROOT / folder).rglob("*.py")
)

_OWN_FOLDER = "in a temporary folder of one call, which is gone with it"
ELSEWHERE = {
    "src/trt_compress/files.py": "this is where it is done",
    "export/bundle.py": "files of a bundle that is written aside and becomes one by a rename",
    "export/build.py": _OWN_FOLDER,
    "export/engine_worker.py": _OWN_FOLDER,
    "export/trial.py": _OWN_FOLDER,
    "export/weights.py": _OWN_FOLDER,
    "export/trial_worker.py": _OWN_FOLDER,
    "plugins/build.py": "the lock of a build, which holds nothing; a library in a folder that is renamed",
    "plugins/headers.py": _OWN_FOLDER,
    "plugins/ptxas.py": "runs inside CMake without this package, and renames what it wrote aside",
    "src/trt_compress/format/bundle.py": _OWN_FOLDER,
    "runtime/stream/overlay.py": "a video that PyAV writes as it goes, where a GrowingFile was opened",
    "tools/bench/deit_int8.py": _OWN_FOLDER,
    "tools/bench/deit_small.py": _OWN_FOLDER,
    "tools/gpu/end_to_end.py": _OWN_FOLDER,
    "tools/bench/language_peers.py": _OWN_FOLDER,
    "tools/bench/int8_accuracy.py": _OWN_FOLDER,
    "tools/demo.py": _OWN_FOLDER,
    "tools/device/package.py": "files of a package that is written aside and becomes one by a rename",
    "tools/gpu/guarded.py": _OWN_FOLDER,
    "tools/gpu/runs.py": _OWN_FOLDER,
    "tools/gpu/worker.py": _OWN_FOLDER,
    "tools/tune/measure_block.py": "runs on a device that has numpy and ONNX Runtime alone",
}
"""Files that may write in other ways, and why."""

_METHODS = {"write_text", "write_bytes", "tofile", "save_file", "copyfile", "copy2", "copytree", "memmap"}
_SAVES = {"save", "savez", "savez_compressed", "savetxt"}
_OWN = {"self.states", "self.sequences"}  # whose `save` is the product's, and looked at where it stands


def ways_of_writing(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Calls that open a file for writing, or have a library write one by its name."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0] if node.args else None
        if name in _METHODS:
            yield node.lineno, name
        elif name in ("open", "fdopen", "FileIO") and _writes(node):
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            nowhere = first is not None and ast.unparse(first) == "os.devnull"
            if not nowhere and not (owner in ("wave", "av") and _in_memory(first)):
                yield node.lineno, name
        elif name in _SAVES and first is not None and not _in_memory(first) and not _is_tensors(first):
            if not (isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in _OWN):
                yield node.lineno, name


def _writes(call: ast.Call) -> bool:
    modes = [*call.args[:2], *(word.value for word in call.keywords if word.arg == "mode")]
    texts = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
    return any(set(text) <= set("rwxabt+") and set(text) & set("wxa+") for text in texts)


def _in_memory(node: ast.expr | None) -> bool:
    """A buffer, or an own file that `GrowingFile` opened."""
    if isinstance(node, ast.NamedExpr):
        node = node.target
    text = ast.unparse(node) if node is not None else ""
    return text in ("packed", "file", "self._file")


def _is_tensors(node: ast.expr) -> bool:
    return ast.unparse(node) in ("tensors", "dict(tensors)")  # safetensors gives bytes


def test_files_are_written_in_one_place() -> None:
    wrong: dict[str, list[tuple[int, str]]] = {}
    unneeded = set(ELSEWHERE) - {"src/trt_compress/files.py"}
    for path in SOURCES:
        file, found = str(path.relative_to(ROOT)), list(ways_of_writing(ast.parse(path.read_text(encoding="utf-8"))))
        if found and file not in ELSEWHERE:
            wrong[file] = found
        elif found:
            unneeded.discard(file)
    assert wrong == {}, "use write_whole, append_line or GrowingFile of trt_compress.files"
    assert unneeded == set(), "these need no exception any more; take them off the list"


def test_the_search_finds_what_it_is_for() -> None:
    program = """
path.write_text("a")
open(path, "w")
path.open("ab")
open(path, mode="x")
os.fdopen(descriptor, "wb")
np.savez(path, a=a)
picture.save(path)
wave.open(str(path), "wb")
av.open(name, "w")
save_file(tensors, path)
open(path)
path.open("rb")
np.savez(packed, a=a)
Session.open(path)
"""
    assert [line for line, _ in sorted(ways_of_writing(ast.parse(program)))] == list(range(2, 12))
