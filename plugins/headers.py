"""Where the C headers of ONNX Runtime come from: a folder that is given, the system, or a Debian package.

No wheel of ONNX Runtime holds them. The Debian package libonnxruntime-dev does; it is downloaded and unpacked into the
user's cache by a private apt configuration, made from the machine's own sources: nothing is installed.
"""

import os
import platform
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from trt_compress.cache import cache_folder, make_own_folder, own_path
from trt_compress.children import TimeoutExpired, find_program, run
from trt_compress.errors import PluginError
from trt_compress.strays import temporary_folder

HEADER = "onnxruntime_c_api.h"
OLDEST_API = 20  # what ort/adapter.h asks ONNX Runtime for; older headers do not know it

_PACKAGE, _SUITE = "libonnxruntime-dev", "trixie"
_SYSTEM = (Path("/usr/include/onnxruntime"), Path("/usr/local/include/onnxruntime"))
_BELOW = ("", "include", "include/onnxruntime", "include/onnxruntime/core/session", "usr/include/onnxruntime")
_GIVE_ONE = "give the unpacked release archive of ONNX Runtime with --onnxruntime DIR"
_APT_SECONDS = 300


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
        folder = _find(given)
        if folder is None:
            raise PluginError(f"'{given}' has no {HEADER}; {_GIVE_ONE}.")
        return _check(folder)
    kept = cache_folder() / "headers" / _PACKAGE
    for folder in _SYSTEM:
        if (folder / HEADER).is_file():
            return _check(folder)
    if os.path.isfile(kept / _BELOW[-1] / HEADER):
        return _check(own_path(kept / _BELOW[-1] / HEADER).parent)  # what is compiled with them is loaded
    step(f"fetching {_PACKAGE}")
    return _check(_fetch(kept))


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


def _find(given: Path) -> Path | None:
    return next((given / below for below in _BELOW if (given / below / HEADER).is_file()), None)


def _fetch(kept: Path) -> Path:
    missing = [tool for tool in ("apt-get", "dpkg-deb") if find_program(tool) is None]
    if missing:
        raise PluginError(
            f"The headers of ONNX Runtime are not here, and without {' and '.join(missing)} they cannot be fetched; "
            f"{_GIVE_ONE}."
        )
    make_own_folder(kept.parent)
    with temporary_folder("fetch", within=kept.parent) as folder:
        configuration = _private_apt(folder)
        _run(folder, configuration, "apt-get", "update", "-qq")
        _run(folder, configuration, "apt-get", "download", "-qq", _PACKAGE)
        package = next(folder.glob(f"{_PACKAGE}_*.deb"), None)
        if package is None:
            raise PluginError(f"apt-get downloaded no {_PACKAGE}; {_GIVE_ONE}.")
        unpacked = folder / "unpacked"
        _run(folder, configuration, "dpkg-deb", "-x", package.name, unpacked.name)
        if _find(unpacked) is None:
            raise PluginError(f"{package.name} has no {HEADER}; {_GIVE_ONE}.")
        shutil.rmtree(kept, ignore_errors=True)
        try:
            unpacked.rename(kept)
        except OSError:  # another process was faster
            if _find(kept) is None:
                raise
    found = _find(kept)
    if found is None:
        raise PluginError(f"{_PACKAGE} was unpacked in '{kept}' and has no {HEADER}; {_GIVE_ONE}.")
    return found


def _private_apt(folder: Path) -> Path:
    """Write an apt configuration whose lists, cache and sources are all below `folder`."""
    sources = sorted(set(_debian_sources()))
    if not sources:
        raise PluginError(
            "The headers of ONNX Runtime are not here, and apt on this machine has no Debian source to fetch "
            f"{_PACKAGE} from; {_GIVE_ONE}."
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


def _run(folder: Path, configuration: Path, *command: str) -> None:
    variables = {"APT_CONFIG": str(configuration), "LC_ALL": "C"}
    try:
        done = run(command, folder=folder, variables=variables, timeout=_APT_SECONDS)
    except TimeoutExpired:
        raise PluginError(f"'{shlex.join(command)}' took longer than {_APT_SECONDS} s; {_GIVE_ONE}.") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or b"it said nothing").decode(errors="replace").splitlines()
        raise PluginError(f"'{shlex.join(command)}' failed ({said[-1]}); {_GIVE_ONE}.")
