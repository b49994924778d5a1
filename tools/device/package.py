"""Write what is copied to a device: a bundle, the sources of all that runs it there, and the scripts that build it.

Sources, not binaries: what is built on the device fits its processor, its CUDA and its TensorRT. A package is written
whole or not at all, and lists the hash of every file.
"""

import gzip
import io
import json
import os
import re
import tarfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import trt_compress
from trt_compress import strays
from trt_compress.digest import sha256
from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.export.bundle import write_bundle
from trt_compress.export.prune import runnable_part
from trt_compress.export.targets import Target
from trt_compress.files import read_regular, sync_folder
from trt_compress.foreign import shown
from trt_compress.format.bundle import Bundle
from trt_compress.format.kinds import SoundInput, TextInput, input_kind
from trt_compress.format.manifest import MANIFEST_NAME, Manifest
from trt_compress.locks import locked
from trt_compress.paths import check_apart, check_kept, check_new_folder
from trt_compress.plugins.headers import HEADER, json_headers, onnxruntime_headers
from trt_compress.tools.device.devices import PackageTarget, get_device
from trt_compress.version import __version__

RECORD, SUMS, ARCHIVE = "package.json", "SHA256SUMS", "source.tar.gz"
_TEMPLATES = Path(__file__).parent
_SUFFIXES = frozenset(
    {
        *(".py", ".typed", ".json", ".txt", ".md", ".css", ".js", ".npz", ".sh", ".in"),
        *(".c", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".inc", ".map"),
    }
)
_NAMES = frozenset({"LICENSE", "trt-compress"})
_LEFT_OUT = ("__pycache__", "_lib", "results")
_LEFT_OUT_BELOW = Path("models/zoo/data")  # recordings for tests of the zoo
_LARGEST_SOURCE = 64 << 20
_PROGRAMS = ("build.sh", "run.sh", "trt-compress")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageResult:
    """What was written.

    Attributes:
        path: The folder.
        device: What it is for.
        target: Name of the device's target.
        digest: Of the bundle in it.
        files: How many there are.
        bytes: Of all of them.
    """

    path: Path
    device: str
    target: str
    digest: str
    files: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "package": str(self.path),
            "for": self.device,
            "target": self.target,
            "digest": self.digest,
            "files": self.files,
            "bytes": self.bytes,
        }


@dataclass(frozen=True, slots=True)
class _RunAs:
    """How a bundle is run on the device.

    Attributes:
        what: In words, for `run.sh`.
        command: Lines of shell.
        extras: What Python needs for it, beside what every bundle does.
        lasts: Whether it goes on until it is ended, as a service does.
    """

    what: str
    command: str
    extras: tuple[str, ...]
    lasts: bool = True


def write_package(
    bundle: str | Path,
    *,
    device: str,
    output: str | Path,
    onnxruntime: Path | None = None,
    force: bool = False,
    require_digest: str | Collection[str] | None = None,
) -> PackageResult:
    """Write the folder that is copied to a device.

    Args:
        bundle: The bundle's directory.
        device: A name of `DEVICES`.
        output: The folder to make.
        onnxruntime: Folder of onnxruntime_c_api.h, or of an unpacked release; None looks for it and fetches it.
        force: Replace the package that is at `output`.
        require_digest: The digest that the bundle must have, as `Bundle.open` takes it; the packed one has another.

    Raises:
        ConfigError: The device is not known, the bundle was not exported for it, or `output` cannot be written or holds
            something else than a package.
        BundleError: The bundle cannot be read.
        PluginError: Headers that the C++ is compiled with are not here and cannot be fetched.
    """
    chosen, output = get_device(device), Path(output)
    _check_output(output, force)
    opened = Bundle.open(bundle, require_digest=require_digest)
    check_apart({"-o": output}, {}, [opened.path])
    if force:
        check_kept(output, "-o", {"BUNDLE": opened.path})
    manifest = opened.manifest
    if chosen.target not in manifest.targets:
        raise ConfigError(
            f"'{opened.path}' was exported for {', '.join(manifest.targets) or 'no target'}, and {device} runs what is "
            f"exported for '{chosen.target}'; export it again with --target {chosen.target}."
        )
    part, names = runnable_part(opened, chosen.facts)
    way = _way_of(manifest, on_engines=chosen.is_jetson)
    needed = _requirements(("cpu", *way.extras))
    if chosen.is_jetson:
        needed = sorted([*needed, _cuda_of(chosen.facts)])
    headers = dict(_headers(onnxruntime))
    try:
        with strays.staged_folder(Path(os.path.realpath(output))) as staged:
            packed = write_bundle(staged / "bundle", part, {name: opened.chunks(name) for name in names})
            sums = {f"bundle/{name}": info.sha256 for name, info in packed.manifest.files.items()}
            sums[f"bundle/{MANIFEST_NAME}"] = sha256(read_regular(staged / "bundle" / MANIFEST_NAME))
            texts = _texts(chosen, packed.manifest, way, needed)
            archive = {ARCHIVE: _archive({**_sources(), **headers})}
            sums |= {name: _put(staged / name, content) for name, content in (texts | archive).items()}
            listed = "".join(f"{sum_}  {name}\n" for name, sum_ in sorted(sums.items()))
            _put(staged / SUMS, listed.encode())
            for folder, _, _ in os.walk(staged, topdown=False):
                sync_folder(Path(folder))
            size = sum((staged / name).stat().st_size for name in (*sums, SUMS))
            _put_in_place(staged, output, force)
    except TimeoutError:
        raise ConfigError(f"The package '{output}' is in use by another process; run this again later.") from None
    except OSError as error:
        raise ConfigError(
            f"The package '{output}' cannot be written ({error.strerror or error}); give -o a folder with room, which "
            "you may write to. Nothing was changed."
        ) from error
    return PackageResult(
        path=output,
        device=device,
        target=chosen.target,
        digest=packed.manifest.digest,
        files=len(sums) + 1,
        bytes=size,
    )


# ---- the place -------------------------------------------------------------------------------------------------------


def _check_output(output: Path, force: bool) -> None:
    """Refuse a place where nothing can be written, and one that holds something else."""
    if not os.path.lexists(output):
        check_new_folder(output, "-o")
        return
    if not output.is_dir():
        raise ConfigError(f"'{output}' exists and is not a directory; give another output directory.")
    if not force:
        raise ConfigError(f"The output directory '{output}' exists; use --force to replace it, or give another one.")
    _check_replaced(output)


def _check_replaced(output: Path) -> None:
    if any(output.iterdir()) and not _is_package(output):
        raise ConfigError(
            f"'{output}' holds files and is not a package, so --force does not replace it; give another output "
            "directory, or remove this one yourself."
        )


def _is_package(path: Path) -> bool:
    try:
        record = json.loads(read_regular(path / RECORD))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and {"package", "for", "digest"} <= record.keys()


def _put_in_place(staged: Path, output: Path, force: bool) -> None:
    target = Path(os.path.realpath(output))
    if force and target.exists():
        with locked(target):
            _check_replaced(target)
            strays.put_in_place(staged, target)
    else:
        os.rename(staged, target)
    sync_folder(target.parent)


def _put(target: Path, content: bytes) -> str:
    """Write a file, and return its hash."""
    with target.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    target.chmod(0o755 if target.name in _PROGRAMS else 0o644)
    return sha256(content)


# ---- what is in it ---------------------------------------------------------------------------------------------------


def _archive(files: Mapping[str, Path]) -> bytes:
    """A compressed archive of files, the same for the same files."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, path in sorted(files.items()):
            data = read_regular(path, limit=_LARGEST_SOURCE)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def _sources() -> dict[str, Path]:
    """This package's own files: Python, operators, C++ runtime; no weights, no builds."""
    root = Path(trt_compress.__file__).parent
    found: dict[str, Path] = {}
    for folder, folders, files in os.walk(root, followlinks=True):  # in a checkout the parts are links
        below = Path(folder).relative_to(root)
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT and not name.startswith("."))
        for name in sorted(files):
            if below == _LEFT_OUT_BELOW and not name.endswith(".py"):
                continue
            if Path(name).suffix in _SUFFIXES or name in _NAMES:
                found[f"source/trt_compress/{(below / name).as_posix()}"] = Path(folder) / name
    return found


def _headers(onnxruntime: Path | None) -> Iterator[tuple[str, Path]]:
    """The headers that the C++ on the device is compiled with."""
    of_runtime, of_json = onnxruntime_headers(onnxruntime), json_headers()
    beside = (of_runtime / HEADER).read_text(encoding="utf-8", errors="replace")
    for name in (HEADER, *re.findall(r'^#include "(\w+\.h)"', beside, re.MULTILINE)):
        if (of_runtime / name).is_file():
            yield f"headers/onnxruntime/{name}", of_runtime / name
    for file in sorted((of_json / "nlohmann").rglob("*.hpp")):
        yield f"headers/json/{file.relative_to(of_json).as_posix()}", file


def _requirements(extras: Collection[str]) -> list[str]:
    """What pip installs on the device: what this package asks for, with the versions that it takes."""
    try:
        asked = requires("trt-compress") or []
    except PackageNotFoundError:
        raise UnsupportedError(
            "What trt-compress needs on the device is not known, as it is not installed here; install it with "
            "'pip install .'."
        ) from None
    found = []
    for line in asked:
        name, _, condition = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", condition)
        if extra is None or extra.group(1) in extras:
            found.append(name.strip())
    return sorted(set(found))


def _cuda_of(facts: Target) -> str:
    """What reaches the device's CUDA from Python, of the version that the device has."""
    major = int(str(facts.cuda).partition(".")[0])
    return f"cuda-bindings>={facts.cuda},<{major + 1}"


def _way_of(manifest: Manifest, *, on_engines: bool) -> _RunAs:
    """How this bundle is run: on the engines that are built on the device, or in ONNX Runtime."""
    backend = " --backend tensorrt" if on_engines else ""
    if manifest.text is not None and manifest.procedure is not None:
        return _RunAs(
            "its language model behind an HTTP interface, on port 8000 of this machine",
            f'exec "$here/trt-compress" serve "$here/bundle"{backend} "$@"',
            ("text", "serve"),
        )
    taken = input_kind(manifest.preprocess)
    if isinstance(taken, TextInput) or taken.obstacle is not None or taken.kind == "cameras":
        if on_engines:
            return _RunAs(
                "a few hundred times on made-up inputs, and print how long a run takes",
                f'exec "$here/trt-compress" bench "$here/bundle"{backend} "$@"',
                (),
                lasts=False,
            )
        return _RunAs(
            "once, on zeros, and print what it takes and gives",
            'exec "$here/build/runtime/run_bundle" "$here/bundle" "$here/install/lib/libonnxruntime.so.1"',
            (),
            lasts=False,
        )
    sound = isinstance(taken, SoundInput)
    source = "mic" if sound else "camera:0"
    what = "the microphone" if sound else "the first camera"
    return _RunAs(
        f"on {what}, or with the options of `trt-compress run` that are given",
        f'[ $# -gt 0 ] || set -- --source {source}\nexec "$here/trt-compress" run "$here/bundle"{backend} "$@"',
        ("audio", "mic") if sound else ("video",),
    )


def _texts(device: PackageTarget, manifest: Manifest, way: _RunAs, needed: list[str]) -> dict[str, bytes]:
    """Scripts, unit, README and record."""
    facts = device.facts
    name = re.sub(r"[^\w.-]+", "-", manifest.name)
    unit = f"trt-compress-{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}"
    values = {
        "NAME": shown(name),
        "DEVICE": device.name,
        "DESCRIPTION": facts.description,
        "MACHINE": device.machine,
        "VERSION": __version__,
        "DIGEST": manifest.digest,
        "TARGET": facts.name,
        "ENGINE": facts.name if device.is_jetson else "",
        "SMS": ",".join(map(str, facts.sms)),
        "CUDA": ",".join(map(str, facts.sms)) or "none",
        "VENV_OPTIONS": "--system-site-packages" if device.is_jetson else "",
        "STEPS": "4" if device.is_jetson else "3",
        "TRIED": _TRIED[device.is_jetson],
        "OPERATORS": "native operators, plugins and the engine are built" if device.is_jetson else "the operators too",
        "NEEDED": _NEEDED[device.is_jetson],
        "RUN": f"The bundle is run: {way.what}",
        "WHAT": way.what,
        "COMMAND": way.command,
        "UNIT": unit,
        "TYPE": "simple" if way.lasts else "oneshot",
        "RESTART": "on-failure" if way.lasts else "no",
        "JETSON": _jetson(facts) if device.is_jetson else "",
    }
    made = {target: _filled(_TEMPLATES / source, values) for target, source in _FILLED.items()}
    made["requirements.txt"] = "\n".join(needed) + "\n"
    made[RECORD] = json.dumps(_record(device, manifest), indent=2) + "\n"
    return {target: text.encode() for target, text in made.items()}


_FILLED = {
    "README.md": "readme.md.in",
    "build.sh": "build.sh",
    "run.sh": "run.sh",
    "trt-compress": "trt-compress",
    "trt-compress.service.in": "trt-compress.service.in",
}
_TRIED = {
    True: "Nobody has tried this package on such a device yet; reports are welcome.",
    False: "The tests of trt-compress unpack, build and run such a package.",
}
_NEEDED = {
    True: "JetPack with its CUDA toolkit and TensorRT, `cmake`, `g++`, and `python3` with `python3-venv`",
    False: "`cmake`, `g++`, and `python3` with `python3-venv`",
}


def _filled(template: Path, values: Mapping[str, str]) -> str:
    """A template with its words replaced; `HERE` and `USER` are left to the device."""
    text = template.read_text(encoding="utf-8")
    return re.sub(r"@([A-Z_]+)@", lambda found: values.get(found.group(1), found.group(0)), text)


def _record(device: PackageTarget, manifest: Manifest) -> dict[str, Any]:
    facts = device.facts
    return {
        "package": 1,
        "trt_compress": __version__,
        "for": device.name,
        "machine": device.machine,
        "target": {
            "name": facts.name,
            "tensorrt": list(facts.tensorrt_version or ()),
            "cuda": facts.cuda,
            "sms": list(facts.sms),
            "sources": dict(facts.sources),
        },
        "name": manifest.name,
        "digest": manifest.digest,
    }


def _jetson(facts: Target) -> str:
    oldest, newest = facts.tensorrt_version or ("", "")
    sms = ", ".join(map(str, facts.sms))
    return f"""
## On this device

`build.sh` builds the engine here, by the TensorRT of JetPack and with the plugins that it compiled, and puts it into
`bundle/engines/{facts.name}`. `run.sh` and the service run it on the GPU (`--backend tensorrt`); from Python that is:

```python
from trt_compress.runtime import Session

session = Session.open("bundle", backend="tensorrt")
```

An engine runs only with the TensorRT, the GPU and the plugins that it was built with; after an update of JetPack
`./trt-compress build bundle --target {facts.name} --force` builds it again. It is held against ONNX Runtime, which
`run_bundle` above uses, by `./trt-compress verify bundle --backend tensorrt`, after `env/bin/pip install polygraphy`.
The engine is made for TensorRT from {oldest} to below {newest}, CUDA {facts.cuda}, SM {sms}.
{facts.notes}

Numbers are believable with fixed clocks only:

```sh
sudo nvpmodel -m 0
sudo jetson_clocks
```
"""
