"""Where headers of C++ come from: a folder that is given, the system, or a Debian package.

No wheel of ONNX Runtime holds its own. The Debian package libonnxruntime-dev does; it is downloaded and unpacked into
the user's cache by a private apt configuration, made from the machine's own sources: nothing is installed. So it is
with the JSON library of the C++ runtime. `python -m trt_compress.tools.cmake_options` finds both for CMake.
"""

import os
import platform
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trt_compress.cache import cache_folder, make_own_folder, own_path
from trt_compress.children import TimeoutExpired, find_program, run
from trt_compress.errors import PluginError
from trt_compress.strays import temporary_folder

HEADER = "onnxruntime_c_api.h"
OLDEST_API = 20  # what ort/adapter.h asks ONNX Runtime for; older headers do not know it

_SUITE = "trixie"
_SYSTEM = (Path("/usr/include"), Path("/usr/local/include"))
_GIVE_ONE = "give the unpacked release archive of ONNX Runtime with --onnxruntime DIR"
_APT_SECONDS = 300


@dataclass(frozen=True, slots=True)
class _Headers:
    """Headers that a Debian package has.

    Attributes:
        what: Whose they are.
        package: The package.
        name: The header that is looked for, from the folder that a compiler is told.
        below: Where this folder may be below one that is given; the last is where the package has it.
        advice: What to do where they cannot be had.
    """

    what: str
    package: str
    name: str
    below: tuple[str, ...]
    advice: str

    def find(self, given: Path) -> Path | None:
        """The folder in `given`."""
        return next((given / below for below in self.below if (given / below / self.name).is_file()), None)


_ORT = _Headers(
    "ONNX Runtime",
    "libonnxruntime-dev",
    HEADER,
    (
        "",
        "onnxruntime",
        "include",
        "include/onnxruntime",
        "include/onnxruntime/core/session",
        "usr/include/onnxruntime",
    ),
    _GIVE_ONE,
)
_JSON = _Headers(
    "the JSON library of the C++ runtime",
    "nlohmann-json3-dev",
    "nlohmann/json.hpp",
    ("", "include", "usr/include"),
    "install nlohmann-json3-dev, or give CMake its folder as TRTC_JSON",
)


def onnxruntime_headers(given: Path | None = None, step: Callable[[str], None] = lambda _: None) -> Path:
    """The folder of `onnxruntime_c_api.h`.

    Args:
        given: A folder that has it, directly or as a release archive has it; None looks on the system and in the
            cache, and then downloads the Debian package.
        step: Takes what is being done, for a progress display.

    Raises:
        PluginError: They are not in `given`, too old, or cannot be downloaded.
    """
    if given is not None:
        folder = _ORT.find(given)
        if folder is None:
            raise PluginError(f"'{given}' has no {HEADER}; {_GIVE_ONE}.")
        return _check(folder)
    return _check(_anywhere(_ORT, step))


def json_headers(step: Callable[[str], None] = lambda _: None) -> Path:
    """The folder that has `nlohmann/json.hpp`: of the system, of the cache, or downloaded.

    Raises:
        PluginError: They cannot be downloaded.
    """
    return _anywhere(_JSON, step)


def _anywhere(wanted: _Headers, step: Callable[[str], None]) -> Path:
    kept = cache_folder() / "headers" / wanted.package
    for folder in _SYSTEM:
        if (found := wanted.find(folder)) is not None:
            return found
    place = kept / wanted.below[-1]
    if os.path.isfile(place / wanted.name):
        own_path(place / wanted.name)  # what is compiled with them is loaded
        return place
    step(f"fetching {wanted.package}")
    return _fetch(kept, wanted)


def header_api_version(folder: Path) -> int:
    """The newest API that the headers in `folder` know: 21 for ONNX Runtime 1.21.

    Raises:
        PluginError: The header does not say.
    """
    text = (folder / HEADER).read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^#define ORT_API_VERSION (\d+)", text, re.MULTILINE)
    if not found:
        raise PluginError(f"'{folder / HEADER}' does not define ORT_API_VERSION; {_GIVE_ONE}.")
    return int(found.group(1))


def _check(folder: Path) -> Path:
    version = header_api_version(folder)
    if version < OLDEST_API:
        raise PluginError(
            f"The headers in '{folder}' are of ONNX Runtime 1.{version}; 1.{OLDEST_API} or newer are needed: "
            f"{_GIVE_ONE}."
        )
    return folder


def _fetch(kept: Path, wanted: _Headers) -> Path:
    missing = [tool for tool in ("apt-get", "dpkg-deb") if find_program(tool) is None]
    if missing:
        raise PluginError(
            f"The headers of {wanted.what} are not here, and without {' and '.join(missing)} they cannot be fetched; "
            f"{wanted.advice}."
        )
    make_own_folder(kept.parent)
    with temporary_folder("fetch", within=kept.parent) as folder:
        configuration = _private_apt(folder, wanted)
        _run(folder, configuration, wanted, "apt-get", "update", "-qq")
        _run(folder, configuration, wanted, "apt-get", "download", "-qq", wanted.package)
        package = next(folder.glob(f"{wanted.package}_*.deb"), None)
        if package is None:
            raise PluginError(f"apt-get downloaded no {wanted.package}; {wanted.advice}.")
        unpacked = folder / "unpacked"
        _run(folder, configuration, wanted, "dpkg-deb", "-x", package.name, unpacked.name)
        if wanted.find(unpacked) is None:
            raise PluginError(f"{package.name} has no {wanted.name}; {wanted.advice}.")
        shutil.rmtree(kept, ignore_errors=True)
        try:
            unpacked.rename(kept)
        except OSError:  # another process was faster
            if wanted.find(kept) is None:
                raise
    found = wanted.find(kept)
    if found is None:
        raise PluginError(f"{wanted.package} was unpacked in '{kept}' and has no {wanted.name}; {wanted.advice}.")
    return found


def _private_apt(folder: Path, wanted: _Headers) -> Path:
    """Write an apt configuration whose lists, cache and sources are all below `folder`."""
    sources = sorted(set(_debian_sources()))
    if not sources:
        raise PluginError(
            f"The headers of {wanted.what} are not here, and apt on this machine has no Debian source to fetch "
            f"{wanted.package} from; {wanted.advice}."
        )
    for name in ("state/lists/partial", "cache/archives/partial", "parts"):
        (folder / name).mkdir(parents=True)
    (folder / "sources.list").write_text("\n".join(sources) + "\n", encoding="utf-8")
    configuration = folder / "apt.conf"
    configuration.write_text(
        f'Dir::State "{folder}/state";\nDir::State::status "/var/lib/dpkg/status";\nDir::Cache "{folder}/cache";\n'
        f'Dir::Etc::sourcelist "{folder}/sources.list";\nDir::Etc::sourceparts "{folder}/parts";\n'
        'APT::Sandbox::User "";\nAcquire::Languages "none";\n',
        encoding="utf-8",
    )
    return configuration


def _debian_sources() -> Iterator[str]:
    """The machine's own sources of Debian's main archive, with the suite replaced."""
    root = Path("/etc/apt")
    codename = _codename()
    files = [root / "sources.list", *sorted((root / "sources.list.d").glob("*"))]
    for file in files:
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        for uri, suites, signed_by in _stanzas(text) if file.suffix == ".sources" else _lines(text):
            if uri.rstrip("/").endswith("/debian") and codename in suites:
                option = f" [signed-by={signed_by}]" if signed_by else ""
                yield f"deb{option} {uri} {_SUITE} main"


def _stanzas(text: str) -> Iterator[tuple[str, list[str], str]]:
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([\w-]+):[ \t]*(.*)$", stanza, re.MULTILINE))
        if "deb" in fields.get("Types", "").split() and fields.get("Enabled", "yes") != "no":
            for uri in fields.get("URIs", "").split():
                yield uri, fields.get("Suites", "").split(), fields.get("Signed-By", "")


def _lines(text: str) -> Iterator[tuple[str, list[str], str]]:
    for options, uri, suite in re.findall(r"^deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)", text, re.MULTILINE):
        signed_by = re.search(r"signed-by=(\S+)", options)
        yield uri, [suite], signed_by.group(1) if signed_by else ""


def _codename() -> str:
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        return ""


def _run(folder: Path, configuration: Path, wanted: _Headers, *command: str) -> None:
    variables = {"APT_CONFIG": str(configuration), "LC_ALL": "C"}
    try:
        done = run(command, folder=folder, variables=variables, timeout=_APT_SECONDS)
    except TimeoutExpired:
        raise PluginError(f"'{shlex.join(command)}' took longer than {_APT_SECONDS} s; {wanted.advice}.") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or b"it said nothing").decode(errors="replace").splitlines()
        raise PluginError(f"'{shlex.join(command)}' failed ({said[-1]}); {wanted.advice}.")
