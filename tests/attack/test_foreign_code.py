"""Every command, in a folder where a stranger put modules, libraries and programs of every name: none of them runs.

The folder is once where the user stands, with a bundle in it, and once the bundle itself. Each planted file writes into
a witness when it runs.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

MODULE = """\
import os
os.write(os.open({witness!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND), __file__.encode() + b" ")
"""
PROGRAM = "#!/bin/sh\necho $0 >>'{witness}'\n"
LIBRARY = """\
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
__attribute__((constructor)) static void ran(void) {{
  Dl_info info;
  dladdr((void*)ran, &info);
  int fd = open("{witness}", O_WRONLY | O_CREAT | O_APPEND, 0644);
  if (write(fd, info.dli_fname, strlen(info.dli_fname)) < 0) _exit(1);
}}
"""
PROGRAMS = (
    *(
        "cmake",
        "ninja",
        "nvcc",
        "c++",
        "g++",
        "clang++",
        "cc",
        "gcc",
        "ld",
        "c++filt",
        "git",
        "uname",
        "file",
        "ldconfig",
    ),
    *("nvidia-smi", "tegrastats", "nvpmodel", "ffmpeg", "espeak-ng", "apt-get", "dpkg-deb", "sh", "python", "python3"),
)
LIBRARIES = (
    *("libonnxruntime.so", "libonnxruntime.so.1", "libonnxruntime_providers_shared.so", "libnvinfer.so.10"),
    *(
        "libtensorrt_rtx.so",
        "libtensorrt_onnxparser_rtx.so",
        "libcudart.so.12",
        "libcuda.so.1",
        "libtrtc_onnxruntime.so",
    ),
    *("libgomp.so.1", "libstdc++.so.6", "libpython3.so", "_ctypes.so", "onnxruntime_pybind11_state.so"),
)
IN_THE_FOLDER = {  # command → exit code
    "build bundle --target rtx": 0,
    "doctor": None,
    "inspect bundle": 0,
    "preflight bundle --target rtx": 0,
    "verify bundle": 0,
    "bench bundle --pairs 5 --json bench.json": None,
    "export zoo:digits_vit --compress tome:num_merged=4 -o made": 0,
    "export bundle/recipe.toml -o again": 0,
    "evaluate bundle --data held-out --limit 8": 0,
    "sweep zoo:digits_vit --data held-out --compress tome:num_merged=4 --no-random --limit 8 --rounds 2": 0,
    "sample images -o samples": 0,
    "report bundle/verify.json": None,
    "run bundle --source images/*.png --out result": None,
    "list models": 0,
    "plugins list": None,
    "plugins build --cuda none --onnxruntime headers": 1,
    "prune bundle --target cpu --dry-run": None,
}
ON_THE_FOLDER = (
    "build . --target rtx",
    "verify .",
    "inspect .",
    "preflight . --target rtx",
    "bench .",
    "evaluate . --data held-out",
    "run . --source none.png",
    "prune . --target cpu",
)
PARTS = 4
Planted = Callable[[Path, bool], None]


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    return tmp_path / "witness"


@pytest.fixture
def plant(witness: Path, tmp_path: Path) -> Planted:
    """Put modules, libraries and programs into a folder."""
    lib = tmp_path / "lib"
    lib.mkdir()
    (lib / "trtc_loaded.py").write_text("import sys\nprint(*sys.modules)\n")
    loaded = subprocess.run(
        [sys.executable, "-m", "trtc_loaded"],
        env={**os.environ, "PYTHONPATH": str(lib)},
        capture_output=True,
        text=True,
    ).stdout.split()
    source = tmp_path / "planted.c"
    source.write_text(LIBRARY.format(witness=witness))
    library = tmp_path / "planted.so"
    compiler = shutil.which("cc") or shutil.which("c++")
    if compiler is None or subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(library)]).returncode:
        library.write_bytes(b"no library")

    def put(folder: Path, with_own: bool) -> None:
        installed = {name for name in importlib.metadata.packages_distributions() if name.isidentifier()}
        names = {*sys.stdlib_module_names, *installed, "sitecustomize", "usercustomize", "tests"} - {"trt_compress"}
        for name in names - ({*loaded} if with_own else set()):
            package = folder / name
            if name in ("torch", "numpy", "onnx") and not package.exists():
                package.mkdir()
                (package / "__init__.py").write_text(MODULE.format(witness=str(witness)))
            else:
                (folder / f"{name}.py").write_text(MODULE.format(witness=str(witness)))
        for name in LIBRARIES:
            shutil.copy(library, folder / name)
        for name in PROGRAMS:
            (folder / name).write_text(PROGRAM.format(witness=witness))
            (folder / name).chmod(0o755)
        (folder / "evil.pth").write_text(f"import os; open({str(witness)!r}, 'a').write('pth ')\n")

    return put


Typed = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=["trt-compress", "python -m trt_compress"])
def typed_in(request: pytest.FixtureRequest, plant: Planted, tmp_path: Path) -> Callable[[Path], Typed]:
    """Plant a folder, and type commands there."""
    script = tmp_path / "bin" / "trt-compress"
    script.parent.mkdir()
    script.write_text("from trt_compress.__main__ import main\nmain()\n")  # as pip writes it
    is_script = request.param == "trt-compress"
    start = [sys.executable, *([str(script)] if is_script else ["-m", "trt_compress"])]
    more = {"PATH": f":.:bin:{os.environ['PATH']}:", "XDG_CACHE_HOME": str(tmp_path / "cache"), "CI": "1"}

    def there(folder: Path) -> Typed:
        plant(folder, not is_script)  # Python itself looks for a few in the current folder after `-m`
        return lambda command: subprocess.run(
            [*start, *command.split()], cwd=folder, env={**os.environ, **more}, capture_output=True, text=True
        )

    return there


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.long) for part in range(1, PARTS))])
def test_nothing_that_a_stranger_put_there_runs(
    part: int,
    request: pytest.FixtureRequest,
    attack: Any,
    typed_in: Callable[[Path], Typed],
    witness: Path,
    tmp_path: Path,
    exported: Callable[..., Path],
) -> None:
    commands = [command for command in IN_THE_FOLDER if "rtx" not in command or find_spec("tensorrt_rtx")]
    is_script = request.node.callspec.params["typed_in"] == "trt-compress"
    commands = commands[part::PARTS] if attack.long else [commands[not is_script]]
    here = tmp_path / "here"
    shutil.copytree(exported(), here / "bundle")
    (here / "headers").mkdir()
    (here / "headers" / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 21\n")
    (here / "images").mkdir()
    Image.new("L", (8, 8)).save(here / "images" / "1.png")
    typed = typed_in(here)
    for command in commands:
        done, code = typed(command), IN_THE_FOLDER[command]
        assert code is None or done.returncode == code, f"{command}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, f"{command}: {done.stderr}"
        assert not witness.exists(), f"{command}: {witness.read_text()}"
    attack.saw(cases=len(commands), planted_files_that_ran=0)


def test_a_bundle_with_planted_files_is_refused(
    attack: Any, typed_in: Callable[[Path], Typed], witness: Path, tmp_path: Path, exported: Callable[..., Path]
) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(exported(), theirs)
    typed = typed_in(theirs)
    commands = ON_THE_FOLDER if attack.long else ON_THE_FOLDER[:1]
    for command in commands:
        done = typed(command)
        assert done.returncode == 2 and "which its manifest does not list" in done.stderr, f"{command}: {done.stderr}"
        assert not witness.exists(), f"{command}: {witness.read_text()}"
    attack.saw(cases=len(commands), planted_files_that_ran=0)


def test_the_planted_files_would_tell(plant: Planted, witness: Path, tmp_path: Path) -> None:
    """The witness is no dead letter: what looks in the current folder runs them."""
    here = tmp_path / "here"
    here.mkdir()
    plant(here, True)
    subprocess.run([sys.executable, "-c", "import json"], cwd=here, capture_output=True)
    assert "json.py" in witness.read_text()
    witness.unlink()
    subprocess.run(["/bin/sh", "-c", "nvidia-smi"], cwd=here, env={"PATH": ":/usr/bin:/bin"})
    assert "nvidia-smi" in witness.read_text()
