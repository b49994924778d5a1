"""The native libraries: where they live, what each one is, and whether this machine may load it.

A library lies in the user's cache in a folder named after the hash of the sources it was made from, beside a JSON file
that says what it is. Everything is checked on these two before anything is loaded: first whose they are, then what they
are. Needs the standard library only.
"""

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from trt_compress.cache import SET, CacheError, ForeignError, cache_folder, named_path, own_path, passed_over
from trt_compress.digest import Sha256, sha256_of_file
from trt_compress.errors import PluginError
from trt_compress.files import open_regular, read_regular
from trt_compress.foreign import strict_json
from trt_compress.version import __version__

Kind = Literal["onnxruntime", "cuda", "tensorrt"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_WHAT: Mapping[Kind, str] = {
    "onnxruntime": "custom operators for ONNX Runtime on the CPU",
    "cuda": "CUDA kernels",
    "tensorrt": "TensorRT plugins",
}
_BUILD: Mapping[Kind, str] = {
    "onnxruntime": "trt-compress plugins build",
    "cuda": "trt-compress plugins build --cuda all",
    "tensorrt": "trt-compress plugins build --cuda all --tensorrt DIR",
}
_HASH_DIGITS = 16
_MOST_DESCRIPTION = 16 << 20
_FILES = "libtrtc_*.so"


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A library and the description that lies beside it.

    Attributes:
        kind: What loads it.
        path: The file, without a link in its path: no loader has to look for it.
        info: The description: `version` of trt-compress, `source_hash`, `sha256`, `operators` (name, version, inputs,
            outputs, attributes), `compilers`, and by kind `cpu_features` and `onnxruntime_api`, or `sms`, `ptx` and
            `resources` (registers and spilled bytes by kernel and SM), or `tensorrt` (the version of the headers).
    """

    kind: Kind
    path: Path
    info: Mapping[str, Any]

    @property
    def operators(self) -> tuple[str, ...]:
        """Op types of the operators it holds."""
        return tuple(operator["op_type"] for operator in self.info["operators"])

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {"kind": self.kind, "path": str(self.path), **self.info}


@dataclass(frozen=True, slots=True)
class Absent:
    """That there is no library to load.

    Attributes:
        reason: Why, and what to do about it, in one sentence.
        foreign: It is there, and is not taken, as others could have put it there.
    """

    reason: str
    foreign: bool = False


def sources_folder() -> Path:
    """The folder with CMakeLists.txt and the operators' folders."""
    return Path(__file__).resolve().parent


def native_sources(kind: Kind) -> tuple[Path, ...]:
    """The files that a library of this kind is made from, relative to `sources_folder()`."""
    root = sources_folder()
    of_ort = [path for path in root.rglob("ort_*") if path.suffix in (".h", ".cpp")]
    of_cpu = list(root.rglob("kernel_cpu*.h"))
    of_gpu = [*root.rglob("*.cu"), *root.rglob("*.cuh"), *root.rglob("cuda_*.cpp"), *root.rglob("cuda_*.h")]
    of_tensorrt = [path for path in root.rglob("tensorrt_*") if path.suffix in (".h", ".cpp")]
    all_cpp = [root / "CMakeLists.txt", *root.rglob("*.h"), *root.rglob("*.cpp")]
    special = {*of_ort, *of_cpu, *of_gpu, *of_tensorrt}
    added = {"onnxruntime": [*of_ort, *of_cpu], "cuda": of_gpu, "tensorrt": [*of_gpu, *of_tensorrt]}[kind]
    found = {path.relative_to(root) for path in {*(set(all_cpp) - special), *added}}
    return tuple(sorted(path for path in found if path.parts[0] != "testing"))


def source_hash(kind: Kind) -> str:
    """What a library of this kind must have been made from to fit this package."""
    digest = Sha256()
    for name in native_sources(kind):
        text = (sources_folder() / name).read_bytes()
        digest.add(f"{name.as_posix()}\0{len(text)}\0".encode())
        digest.add(text)
    return digest.hex()[:_HASH_DIGITS]


def library_path(kind: Kind, *, hash_: str | None = None, tensorrt_major: int | None = None) -> Path:
    """Where a library of this kind is, or would be.

    Args:
        kind: What loads it.
        hash_: Of the sources; None: those of this package.
        tensorrt_major: For the kind "tensorrt": libraries for two major versions lie side by side.
    """
    name = f"{kind}{tensorrt_major or ''}-{hash_ or source_hash(kind)}"
    return cache_folder() / "plugins" / name / f"libtrtc_{kind}.so"


def describe(path: Path, *, named: bool = False) -> Library:
    """Read what lies beside a library, and compare the two.

    Args:
        path: The library.
        named: The user named it, so it may belong to somebody else, but not everybody may write to it; what is found in
            the cache has to be the user's own.

    Raises:
        PluginError: The file is missing, is not the user's, or is not what the description beside it says.
    """
    trusted = named_path if named else own_path
    try:
        place = trusted(path)
    except OSError as error:
        raise _not_there(path, error) from None
    foreign = "build one with 'trt-compress plugins build'"
    beside = place.with_suffix(".json")
    try:
        info = strict_json(read_regular(trusted(beside), limit=_MOST_DESCRIPTION))
    except FileNotFoundError:
        raise PluginError(
            f"'{path}' was not built by trt-compress: '{beside.name}' is not beside it; {foreign}."
        ) from None
    except (OSError, ValueError) as error:
        raise PluginError(f"'{beside}' does not describe a library ({error!r}); {foreign}.") from None
    if lacking := _lacking(info):
        raise PluginError(
            f"'{beside}' does not describe a library that this version knows ({lacking} is not what it should be); "
            f"{foreign}."
        )
    try:
        found = library_sha256(place)
    except OSError as error:
        raise _not_there(path, error) from None
    if found != info["sha256"]:
        raise PluginError(
            f"'{path}' is not the file that '{beside.name}' describes: it was changed or cut off; {foreign}."
        )
    return Library(kind=info["kind"], path=place, info=info)


def _not_there(path: Path, error: OSError) -> PluginError:
    if isinstance(error, FileNotFoundError):
        return PluginError(f"'{path}' is not there; build the libraries with 'trt-compress plugins build'.")
    return CacheError(f"'{path}' cannot be read ({error.strerror}); {SET}, and run 'trt-compress plugins build'.")


def _lacking(info: Any) -> str:
    """The first entry of a description that is not there or of another type; nothing if all are right."""
    if not isinstance(info, dict):
        return "it"
    words = ("version", "source_hash", "sha256", *(["tensorrt"] if "tensorrt" in info else []))
    operators = info.get("operators")
    right = {
        "kind": info.get("kind") in KINDS,
        **{word: isinstance(info.get(word), str) for word in words},
        "operators": isinstance(operators, list)
        and all(isinstance(one, dict) and isinstance(one.get("op_type"), str) for one in operators),
        "cpu_features": _all_are(str, info.get("cpu_features", [])),
        "sms": _all_are(int, info.get("sms", [])),
        "ptx": isinstance(info.get("ptx") or 0, int),
    }
    return next((f"'{name}'" for name, is_right in right.items() if not is_right), "")


def _all_are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def check(
    path: Path,
    kind: Kind,
    *,
    tensorrt: str | None = None,
    sms: Sequence[int] = (),
    features: Iterable[str] | None = None,
    named: bool = False,
) -> Library:
    """Make sure that a library may be loaded here, before it is.

    Args:
        path: The library.
        kind: What is going to load it.
        tensorrt: The version of the TensorRT that is going to load it.
        sms: The GPUs that are going to run it: 87, 90, …
        features: What this processor has, as `cpu_features()` reads it.
        named: As `describe` takes it.

    Raises:
        PluginError: It is missing, somebody else's, not ours, of another kind, made from other sources, for another
            TensorRT, or needs an SM or processor that is not here.
    """
    library = describe(path, named=named)
    info, rebuild = library.info, f"build it again with '{_BUILD[kind]}'"
    if library.kind != kind:
        raise PluginError(f"'{path}' holds {_WHAT[library.kind]}; {_WHAT[kind]} are wanted: '{_BUILD[kind]}'.")
    if info["source_hash"] != source_hash(kind):
        raise PluginError(
            f"'{path}' was built from other sources (trt-compress {info['version']}, {info['source_hash']}) than this "
            f"package has (trt-compress {__version__}, {source_hash(kind)}); {rebuild}."
        )
    lacking = sorted({*info.get("cpu_features", ())} - set(cpu_features() if features is None else features))
    if lacking:
        raise PluginError(f"'{path}' needs {', '.join(lacking)}, which this processor does not have; {rebuild} here.")
    if tensorrt is not None and _major(tensorrt) != _major(info.get("tensorrt", "")):
        raise PluginError(
            f"'{path}' was built for TensorRT {info.get('tensorrt')} and this is TensorRT {tensorrt}; build it with "
            "the headers of the latter: 'trt-compress plugins build --tensorrt DIR'."
        )
    for sm in sms:
        _check_sm(library, sm)
    return library


def look(kind: Kind, *, tensorrt: str | None = None, sms: Sequence[int] = ()) -> Library | Absent:
    """The library of this kind that was built from this package's sources and may be loaded here, or why there is none.

    What may not be looked at is not built; what somebody else could have put there is not taken.

    Raises:
        PluginError: It was built, and does not fit or was damaged; see `check`.
    """
    run = f"run '{_BUILD[kind]}'"
    try:
        path = library_path(kind, tensorrt_major=_major(tensorrt) if tensorrt else None)
        own_path(path)
        return check(path, kind, tensorrt=tensorrt, sms=sms)
    except ForeignError as error:
        return Absent(f"The {_WHAT[kind]} are not taken: {error.message}", foreign=True)
    except CacheError as error:
        return Absent(f"The {_WHAT[kind]} are not built: {error.message}")
    except FileNotFoundError:
        also = f" {passed_over()}" if passed_over() else ""
        return Absent(f"The {_WHAT[kind]} are not built for this version of the sources; {run}.{also}")
    except OSError as error:
        place = str(error.filename or "the cache")
        advice = f"{SET}, and {run}"
        if place.startswith(str(sources_folder())):
            advice = "let this user read the package"
        return Absent(
            f"The {_WHAT[kind]} are not built, as '{place}' may not be looked at ({error.strerror}); {advice}."
        )


def library_or_none(found: Library | Absent) -> Library | None:
    """For a caller that does not ask why there is none."""
    return found if isinstance(found, Library) else None


def find(kind: Kind, *, tensorrt: str | None = None, sms: Sequence[int] = ()) -> Library | None:
    """As `look`, for a caller that does not ask why there is none.

    Raises:
        PluginError: It was built, and may not be loaded here; see `check`.
    """
    return library_or_none(look(kind, tensorrt=tensorrt, sms=sms))


def require(kind: Kind, *, tensorrt: str | None = None, sms: Sequence[int] = ()) -> Library:
    """As `look`, for a caller that cannot do without.

    Raises:
        PluginError: It is not built, or may not be loaded here.
    """
    found = look(kind, tensorrt=tensorrt, sms=sms)
    if isinstance(found, Absent):
        raise PluginError(found.reason)
    return found


def choose(
    kind: Kind, asked: bool | str | Path | None, *, tensorrt: str | None = None, sms: Sequence[int] = ()
) -> Library | Absent:
    """The library a caller asked for: True needs the built one, None takes it if it is there, False takes none.

    A path is one that the user named: it may belong to somebody else, but not everybody may write there.

    Raises:
        PluginError: It is needed and not there, or it may not be loaded here; see `check`.
    """
    if asked is False:
        return Absent(f"The {_WHAT[kind]} were not asked for.")
    if asked is None:
        return look(kind, tensorrt=tensorrt, sms=sms)
    if asked is True:
        return require(kind, tensorrt=tensorrt, sms=sms)
    return check(Path(asked), kind, tensorrt=tensorrt, sms=sms, named=True)


def refuse_on(backend: str) -> None:
    """Say no to a backend that must never get a plugin library.

    Raises:
        PluginError: The backend is TensorRT-RTX: a plugin that matches a node makes its parser end the process.
    """
    if backend in ("rtx", "tensorrt-rtx", "tensorrt_rtx"):
        raise PluginError(
            "TensorRT-RTX takes no plugins, and a plugin that matches a node ends the process; build for the target "
            "'rtx' without a plugin library: there the operators are standard ONNX."
        )


def installed() -> tuple[Library | PluginError, ...]:
    """Every library in the cache, of this version's sources or not; what cannot be described is the error it gives.

    Where there is no cache, or it may not be looked at, there is none.
    """
    found: list[Library | PluginError] = []
    try:
        folders = sorted((cache_folder() / "plugins").iterdir())
    except (OSError, CacheError):
        return ()
    for path in (path for folder in folders for path in sorted(folder.glob(_FILES))):
        try:
            found.append(describe(path))
        except PluginError as error:
            found.append(error)
    return tuple(found)


def installed_operators() -> dict[Kind, frozenset[str]]:
    """Op types of the operators that the libraries of this version's sources hold, by kind of library."""
    found: dict[Kind, set[str]] = {}
    hashes = {kind: source_hash(kind) for kind in KINDS}
    for library in installed():
        if isinstance(library, Library) and library.info["source_hash"] == hashes[library.kind]:
            found.setdefault(library.kind, set()).update(library.operators)
    return {kind: frozenset(op_types) for kind, op_types in found.items()}


@cache
def cpu_features() -> frozenset[str]:
    """What the processor can do, in the words of the system: avx2, fma, … ; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    of_one = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return frozenset(of_one.partition(":")[2].split())


def cpu_level() -> tuple[str, ...]:
    """The features that a library built here may use: the widest vectors this processor has."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ()
    wide = ("avx2", "bmi2", "f16c", "fma")
    widest = (*wide, "avx512bw", "avx512dq", "avx512f", "avx512vl")
    return next((level for level in (widest, wide) if cpu_features().issuperset(level)), ())


def _check_sm(library: Library, sm: int) -> None:
    sms, ptx = library.info.get("sms", ()), library.info.get("ptx")
    same_major = any(have // 10 == sm // 10 and have <= sm for have in sms)
    if not same_major and not (ptx and ptx <= sm):
        raise PluginError(
            f"'{library.path}' was built for the SMs {', '.join(map(str, sms))} and this GPU is SM {sm}; build it with "
            f"'trt-compress plugins build --cuda {sm}'."
        )


def _major(version: str) -> int | None:
    text = version.partition(".")[0]
    return int(text) if text.isdigit() else None


def library_sha256(path: Path) -> str:
    """The hash of a file's bytes.

    Raises:
        OSError: It cannot be read, or is no file.
    """
    with open_regular(path) as file:
        return sha256_of_file(file)
