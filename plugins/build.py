"""Build the native libraries: find compilers and headers, drive CMake, describe the result, put it into the cache.

What was built from the same sources, for the same processor, SMs and TensorRT, is not built again.
"""

import errno
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trt_compress.cache import SET, cache_folder, check_own_so_far, make_own_folder
from trt_compress.children import find_program, python_command, run, started
from trt_compress.digest import sha256
from trt_compress.errors import ConfigError, NativeError, PluginError
from trt_compress.files import write_whole
from trt_compress.locks import locked
from trt_compress.paths import try_new_folder
from trt_compress.plugins import ptxas
from trt_compress.plugins.headers import OLDEST_API, onnxruntime_headers
from trt_compress.plugins.library import (
    KINDS,
    Kind,
    Library,
    cpu_level,
    describe,
    find,
    library_path,
    library_sha256,
    source_hash,
    sources_folder,
)
from trt_compress.strays import put_in_place, staged_folder, temporary_folder
from trt_compress.suggest import not_known
from trt_compress.version import __version__

SMS = (75, 80, 86, 87, 89, 90, 100, 110, 120)
"""The GPUs that are supported, from Turing to Blackwell; 87 is Orin, 110 is Thor."""

_NOTHING: Callable[[str], None] = lambda _: None  # noqa: E731
_TENSORRT_FOLDERS = ("/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu", "/usr/local/tensorrt/include")
_LOG_LINES = 25
_NEWEST_SM = 199  # a number above it is a slip; which of the others there are, nvcc knows
_LONGEST_BUILD_S = 4 * 3600
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_KEPT = 4  # libraries of one kind, the newest ones: those of other sources are of use while one goes to and fro


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one library.

    Attributes:
        kind: Which one.
        library: What is there now; None if it was skipped.
        was_built: False if it was there already, or was skipped.
        seconds: How long it took.
        note: Why it was skipped, or what it lacks.
    """

    kind: Kind
    library: Library | None
    was_built: bool = False
    seconds: float = 0.0
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {
            "kind": self.kind,
            "path": str(self.library.path) if self.library else None,
            "was_built": self.was_built,
            "seconds": round(self.seconds, 1),
            "note": self.note,
        }


def build(
    *,
    cuda: Literal["auto", "all", "none"] | Sequence[int] = "auto",
    tensorrt: Path | None = None,
    onnxruntime: Path | None = None,
    only: Sequence[Kind] = KINDS,
    force: bool = False,
    step: Callable[[str], None] = _NOTHING,
) -> tuple[Outcome, ...]:
    """Build what can be built here.

    Args:
        cuda: SMs to compile for; "auto": those of the GPUs here, "all": every supported one that nvcc knows.
        tensorrt: Folder of NvInfer.h, or the one above it; None looks where packages put it.
        onnxruntime: Folder of onnxruntime_c_api.h, or of an unpacked release; None fetches it.
        only: Kinds to build.
        force: Build although it is there.
        step: Takes what is being done, for a progress display.

    Everything that is given, the compilers and the cache are looked at before anything is compiled.

    Raises:
        ConfigError: An SM is not known or stands twice, or a folder does not hold the headers.
        PluginError: What was asked for explicitly cannot be built here, or the cache cannot be written.
        NativeError: A compiler failed; the hint has its last lines.
    """
    if isinstance(cuda, str) and cuda not in ("auto", "all", "none"):
        raise ConfigError(f"cuda='{cuda}'; give SMs such as [87, 90], or 'auto', 'all' or 'none'.")
    if foreign := [kind for kind in only if kind not in KINDS]:
        raise ConfigError(not_known("only: library", foreign[0], KINDS))
    if tensorrt is not None:
        tensorrt = _as_config(tensorrt, _given_tensorrt)
    if onnxruntime is not None:
        _as_config(onnxruntime, onnxruntime_headers)
    cmake = find_program("cmake")
    if cmake is None:
        raise PluginError("CMake is not on the path; install it, for example with 'pip install cmake ninja'.")
    if find_program("c++") is None and find_program("g++") is None and find_program("clang++") is None:
        raise PluginError("There is no C++ compiler on the path; install g++ or clang++ (on Debian: apt install g++).")
    gpu: tuple[Kind, ...] = tuple(kind for kind in ("cuda", "tensorrt") if kind in only)
    wanted = _sms_or_reason(cuda, tensorrt) if gpu else ""
    with _cache_errors():
        for part in ("build", "plugins"):
            check_own_so_far(cache_folder() / part)  # what is compiled there is loaded
            try_new_folder(cache_folder() / part)
        outcomes: list[Outcome] = []
        if "onnxruntime" in only:
            outcomes.append(_build_onnxruntime(cmake, onnxruntime, force, step))
        if gpu:
            outcomes += _build_gpu(cmake, gpu, wanted, tensorrt, force, step)
    return tuple(outcomes)


def _given_tensorrt(folder: Path) -> Path:
    found = _headers_in(folder)
    tensorrt_version(found)
    return found


def _as_config(folder: Path, look: Callable[[Path], Path]) -> Path:
    """What `look` finds in a folder that was given; a folder without it is a bad value."""
    try:
        return look(folder)
    except PluginError as error:
        raise ConfigError(error.message) from None
    except OSError as error:
        raise ConfigError(f"'{folder}' cannot be read ({error.strerror}); give a folder that can be.") from None


@contextmanager
def _cache_errors() -> Iterator[None]:
    """Say which setting moves the cache when it cannot be written, or its disk fills up on the way."""
    advice = SET
    try:
        yield
    except OSError as error:
        advice = f"free some space, or {advice}" if error.errno in _FULL else advice
        raise PluginError(
            f"The native libraries cannot be written to '{cache_folder()}' ({error.strerror or error}); {advice}."
        ) from error
    except NativeError as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise PluginError(
            f"The native libraries cannot be built in '{cache_folder()}' (no space left on its disk, or on that of "
            f"{tempfile.gettempdir()}); free some space, or {advice}."
        ) from error


def _build_onnxruntime(cmake: str, given: Path | None, force: bool, step: Callable[[str], None]) -> Outcome:
    features = cpu_level()
    there = None if force else _fresh("onnxruntime")
    if there is not None and set(there.info["cpu_features"]) == set(features):
        return Outcome(kind="onnxruntime", library=there)
    start = time.monotonic()
    try:
        headers = onnxruntime_headers(given, step)
    except PluginError as error:
        if given is not None:
            raise
        return Outcome(kind="onnxruntime", library=None, note=error.message)
    options = {
        "TRTC_ONNXRUNTIME": str(headers),
        "TRTC_CPU_FLAGS": " ".join(f"-m{feature}" for feature in features),
    }
    facts = {"cpu_features": list(features), "onnxruntime_api": OLDEST_API}
    (library,) = _run_cmake(cmake, "onnxruntime", options, {library_path("onnxruntime"): facts}, step)
    return Outcome(kind="onnxruntime", library=library, was_built=True, seconds=time.monotonic() - start)


def _build_gpu(
    cmake: str,
    kinds: Sequence[Kind],
    chosen: tuple[list[int], list[int]] | str,
    given: Path | None,
    force: bool,
    step: Callable[[str], None],
) -> Iterator[Outcome]:
    if isinstance(chosen, str):
        yield from (Outcome(kind=kind, library=None, note=chosen) for kind in kinds)
        return
    sms, unknown = chosen
    headers = (given or tensorrt_headers()) if "tensorrt" in kinds else None
    note = f"this nvcc does not know SM {', '.join(map(str, unknown))}" if unknown else ""
    wanted: dict[Kind, Path] = {}
    facts: dict[Path, dict[str, Any]] = {}
    of_kernels = {"sms": sms, "ptx": sms[-1]}
    if "cuda" in kinds:
        wanted["cuda"] = library_path("cuda")
        facts[wanted["cuda"]] = of_kernels
    if headers is not None:
        version = tensorrt_version(headers)
        wanted["tensorrt"] = library_path("tensorrt", tensorrt_major=int(version.partition(".")[0]))
        facts[wanted["tensorrt"]] = {**of_kernels, "tensorrt": version}
    there: dict[Kind, Library | None] = {}
    if not force:
        there = {kind: _fresh(kind, path) for kind, path in wanted.items()}
    stale: list[Kind] = [kind for kind, path in wanted.items() if not _covers(there.get(kind), facts[path])]
    start = time.monotonic()
    if stale:
        options = {
            "TRTC_CUDA": "ON" if "cuda" in stale else "OFF",
            "TRTC_TENSORRT": str(headers) if "tensorrt" in stale else "",
            "TRTC_CUDA_ARCHS": ";".join(map(str, sms)),
            "TRTC_CUDA_LAUNCHER": f"{sys.executable};-I;{ptxas.__file__}",
        }
        made = _run_cmake(cmake, "gpu", options, {wanted[kind]: facts[wanted[kind]] for kind in stale}, step)
        there |= {library.kind: library for library in made}
    for kind in kinds:
        if kind not in wanted:
            reason = "the headers of TensorRT are not here; give their folder with --tensorrt DIR"
            yield Outcome(kind=kind, library=None, note=reason)
            continue
        seconds = time.monotonic() - start if kind in stale else 0.0
        yield Outcome(kind=kind, library=there[kind], was_built=kind in stale, seconds=seconds, note=note)


class _Skip(Exception):
    """Nobody asked for it explicitly, and it cannot be built here."""


def _sms_or_reason(
    cuda: Literal["auto", "all", "none"] | Sequence[int], tensorrt: Path | None
) -> tuple[list[int], list[int]] | str:
    """What `_sms_wanted` gives, or why nothing is built for a GPU.

    Raises:
        PluginError: Nothing is, and the folder of TensorRT was given.
    """
    try:
        return _sms_wanted(cuda)
    except _Skip as skip:
        if tensorrt is None:
            return str(skip)
        if cuda == "none":
            raise ConfigError(
                "--tensorrt and --cuda none: the plugins are made of the kernels; leave one out."
            ) from None
        raise PluginError(f"The TensorRT plugins cannot be built: {skip}.") from None


def _sms_wanted(cuda: Literal["auto", "all", "none"] | Sequence[int]) -> tuple[list[int], list[int]]:
    """The SMs to compile for, and those that were wanted and that nvcc does not know."""
    if cuda == "none":
        raise _Skip("not asked for")
    if not isinstance(cuda, str):
        _check_sms(cuda)
    nvcc = find_program("nvcc")
    if nvcc is None:
        reason = "nvcc is not on the path; it comes with the CUDA toolkit, or with 'pip install nvidia-cuda-nvcc'"
        if cuda == "auto":
            raise _Skip(reason)
        raise PluginError(f"The CUDA kernels cannot be built: {reason}.")
    if cuda == "auto":
        here = sorted(set(_gpus_here()))
        if not here:
            raise _Skip("there is no GPU here; name the SMs to compile for, such as --cuda 87,90 or --cuda all")
        cuda = here
    sms = list(SMS) if cuda == "all" else sorted(set(cuda))
    if cuda != "all":
        _check_sms(sms)
    known = {int(sm) for sm in re.findall(r"sm_(\d+)\b", _output(nvcc, "--list-gpu-code"))}
    unknown = [sm for sm in sms if sm not in known]
    if unknown and (cuda != "all" or len(unknown) == len(sms)):
        raise ConfigError(
            f"--cuda {','.join(map(str, unknown))}: this nvcc does not know it; it knows "
            f"{', '.join(map(str, sorted(known)))}."
        )
    return [sm for sm in sms if sm in known], unknown


def _check_sms(sms: Sequence[int]) -> None:
    shown = ",".join(map(str, sms))
    if not sms:
        raise ConfigError("--cuda names no SM; give some such as 87,90, or 'all', or 'none'.")
    if foreign := [sm for sm in sms if not SMS[0] <= sm <= _NEWEST_SM]:
        raise ConfigError(f"--cuda {foreign[0]}: SMs from {SMS[0]} on are supported: {', '.join(map(str, SMS))}.")
    if len(set(sms)) != len(sms):
        raise ConfigError(f"--cuda {shown} names an SM twice; name each once.")


def _gpus_here() -> list[int]:
    if find_program("nvidia-smi") is None:
        return []
    try:
        text = _output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    except PluginError:  # no driver
        return []
    return [int(line.replace(".", "")) for line in text.split() if line.replace(".", "").isdigit()]


def tensorrt_headers(given: Path | None = None) -> Path | None:
    """The folder of NvInfer.h: the given one, or where packages put it; None: nowhere.

    Raises:
        PluginError: `given` does not have it.
    """
    if given is None:
        return next((Path(name) for name in _TENSORRT_FOLDERS if (Path(name) / "NvInfer.h").is_file()), None)
    return _headers_in(given)


def _headers_in(given: Path) -> Path:
    for folder in (given, given / "include"):
        if (folder / "NvInfer.h").is_file():
            return folder.resolve()
    raise PluginError(f"'{given}' has no NvInfer.h; give the folder of TensorRT that has it, or its include folder.")


def tensorrt_version(headers: Path) -> str:
    """Major and minor version of the TensorRT that the headers are of, such as "10.3".

    Raises:
        PluginError: The headers do not say, or are older than 10.3.
    """
    try:
        text = (headers / "NvInferVersion.h").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise PluginError(f"'{headers}' does not say its version of TensorRT ({error}).") from None
    defined = dict(re.findall(r"^#define (\w+) +(\w+)", text, re.MULTILINE))
    numbers = [defined.get(f"NV_TENSORRT_{part}", "") for part in ("MAJOR", "MINOR")]
    numbers = [defined.get(number, number) for number in numbers]
    if not all(number.isdigit() for number in numbers):
        raise PluginError(f"'{headers / 'NvInferVersion.h'}' does not say its version of TensorRT.")
    if tuple(map(int, numbers)) < (10, 3):
        raise PluginError(f"'{headers}' is of TensorRT {'.'.join(numbers)}; 10.3 (JetPack 6) or newer is needed.")
    return ".".join(numbers)


def _fresh(kind: Kind, path: Path | None = None) -> Library | None:
    """The library in its place, if it can be described and fits this processor."""
    try:
        return find(kind) if path is None else describe(path)
    except PluginError:
        return None


def _covers(library: Library | None, facts: dict[str, Any]) -> bool:
    return (
        library is not None
        and set(library.info["sms"]) >= set(facts["sms"])
        and library.info.get("tensorrt") == facts.get("tensorrt")
    )


def _run_cmake(
    cmake: str,
    name: str,
    options: dict[str, str],
    libraries: dict[Path, dict[str, Any]],
    step: Callable[[str], None],
) -> tuple[Library, ...]:
    """Configure and build; then describe each library and put it into its place."""
    sources = sources_folder()
    # Two checkouts keep two build folders; ptxas and CMake then rebuild only what changed.
    checkout = sha256(str(sources))[:8]
    folder = make_own_folder(cache_folder() / "build" / checkout / name)
    with _alone_in(folder, step) as locks:
        hashes = {path: source_hash(_kind_of(path)) for path in libraries}
        generator = ["-G", "Ninja"] if find_program("ninja") else []
        if (folder / "CMakeCache.txt").exists():
            generator = []
        definitions = [f"-D{key}={value}" for key, value in options.items()]
        step("configuring")
        _run([cmake, "-S", str(sources), "-B", str(folder), *generator, *definitions], step, locks)
        _run([cmake, "--build", str(folder), "--parallel", str(_jobs())], step, locks)
        made = []
        for path, facts in libraries.items():
            kind = _kind_of(path)
            if source_hash(kind) != hashes[path]:
                raise PluginError("The sources changed while they were compiled; build again.")
            made.append(_install(folder, kind, path, facts))
        return tuple(made)


def _install(folder: Path, kind: Kind, path: Path, facts: dict[str, Any]) -> Library:
    built = folder / "lib" / path.name
    info: dict[str, Any] = {
        "kind": kind,
        "version": __version__,
        "source_hash": source_hash(kind),
        "sha256": "",
        "operators": _contracts(built),
        "compilers": json.loads((folder / "compilers.json").read_text(encoding="utf-8")),
        **facts,
    }
    if "sms" in facts:
        info["resources"] = _resources(folder, facts["sms"])
    make_own_folder(path.parent.parent)
    with staged_folder(path.parent) as new:
        library, beside = new / path.name, new / path.with_suffix(".json").name
        shutil.copy2(built, library)
        info["sha256"] = library_sha256(library)
        write_whole(beside, json.dumps(info, indent=1) + "\n")
        new.chmod(0o700)  # whatever the umask is: what others may write is not loaded
        library.chmod(0o755)
        beside.chmod(0o644)
        put_in_place(new, path.parent)  # whoever has the old one loaded keeps the file
    _forget_old(path)
    return describe(path)


def _forget_old(path: Path) -> None:
    family = path.parent.name.rpartition("-")[0]
    folders = sorted(path.parent.parent.glob(f"{family}-*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in folders[_KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)


def _contracts(library: Path) -> list[dict[str, Any]]:
    """Ask the new library what it holds, in a process of its own."""
    command = python_command("trt_compress.plugins.describe_worker", library)
    with temporary_folder("describe") as folder:
        found: list[dict[str, Any]] = json.loads(_output(*command, folder=folder))["operators"]
    return found


def _resources(folder: Path, sms: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob(f"*{ptxas.SUFFIX}")):
        if file.with_name(file.name.removesuffix(ptxas.SUFFIX)).exists():
            found |= json.loads(file.read_text(encoding="utf-8"))
    wanted = {str(sm) for sm in sms}
    return {name: {sm: use for sm, use in by_sm.items() if sm in wanted} for name, by_sm in sorted(found.items())}


def _kind_of(path: Path) -> Kind:
    return next(kind for kind in KINDS if path.name == f"libtrtc_{kind}.so")


def _jobs() -> int:
    return len(os.sched_getaffinity(0))


@contextmanager
def _alone_in(folder: Path, step: Callable[[str], None]) -> Iterator[tuple[int, ...]]:
    """One build at a time in one folder, over all processes; gives the locks, which what is started shall keep.

    Raises:
        PluginError: Another build does not end.
    """
    beside = folder.with_suffix(".lock")
    beside.touch()
    try:
        with locked(
            folder, [beside], patience=_LONGEST_BUILD_S, waiting=lambda: step("waiting for another build")
        ) as own:
            yield own
    except TimeoutError:
        raise PluginError(
            f"Another build has been at work in '{folder}' for {_LONGEST_BUILD_S // 3600} h; end it, and build again."
        ) from None


def _run(command: list[str], step: Callable[[str], None], locks: tuple[int, ...]) -> None:
    """Run a command, pass its lines to `step`, and keep the last ones for the error."""
    variables = {"LC_ALL": "C", "NINJA_STATUS": "[%f/%t] "}
    lines: deque[str] = deque(maxlen=400)
    with started(command, variables=variables, pass_fds=locks) as process:
        for raw in process.stdout or ():
            line = raw.decode(errors="replace")
            lines.append(line.rstrip())
            if line.startswith("["):
                step(line.strip().replace("CMakeFiles/", "")[:100])
    if process.returncode:
        first = next((at for at, line in enumerate(lines) if re.search(r"\berror\b|FAILED|Error at", line)), 0)
        tail = list(lines)[max(0, min(first, len(lines) - _LOG_LINES)) :][:_LOG_LINES]
        raise NativeError(
            f"Building the native libraries failed: {Path(command[0]).name} ended with {process.returncode}.",
            hint="The compiler said:\n" + "\n".join(tail),
        )


def _output(*command: str, folder: Path | None = None) -> str:
    done = run(command, folder=folder)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise NativeError(f"'{' '.join(command[:2])}' ended with {done.returncode}: {said[-500:]}")
    return done.stdout.decode(errors="replace")
