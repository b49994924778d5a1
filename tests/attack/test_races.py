"""The native operators under ThreadSanitizer: one session of ONNX Runtime, run by several threads at once.

The library is built by its CMake file with the sanitizer added, in the short form of one operator alone, and runs in a
child into which the sanitizer is preloaded.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import environment
from trt_compress.plugins.headers import onnxruntime_headers
from trt_compress.plugins.library import sources_folder

FLAGS = "-O1 -g1 -fno-omit-frame-pointer -Wno-maybe-uninitialized -fsanitize=thread"
REPORT = re.compile(r"^WARNING: ThreadSanitizer: .*?(?=^={18})", re.MULTILINE | re.DOTALL)
SHORT = ("token_mix",)  # it keeps what follows from a constant matrix for all runs of a node
PLANTED = """
static volatile long sCount = 0;
extern "C" void planted(long times)
{
    for (long i = 0; i < times; ++i)
    {
        sCount = sCount + 1;
    }
}
"""
CALLED = """
import ctypes, sys, threading
planted, barrier = ctypes.CDLL(sys.argv[1]).planted, threading.Barrier(2)
def work():
    barrier.wait()
    planted(3_000_000)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None or shutil.which("cmake") is None:
        pytest.skip("ThreadSanitizer needs CMake and a C++ compiler")
    return found


def reports(compiler: str, *command: str) -> tuple[list[str], str]:
    """What the sanitizer found in a child, and what that printed."""
    named = subprocess.run([compiler, "-print-file-name=libtsan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(named).is_absolute():
        pytest.skip(f"{compiler} has no libtsan.so; install the sanitizers of GCC")
    variables = environment(LD_PRELOAD=named, TSAN_OPTIONS="exitcode=0")
    done = subprocess.run([sys.executable, *command], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return REPORT.findall(done.stderr), done.stdout


def test_a_planted_race_is_found(compiler: str, tmp_path: Path) -> None:
    source, built = tmp_path / "planted.cpp", tmp_path / "planted.so"
    source.write_text(PLANTED)
    subprocess.run([compiler, "-shared", "-fPIC", *FLAGS.split(), str(source), "-o", str(built)], check=True)
    found, _ = reports(compiler, "-c", CALLED, str(built))
    assert any("data race" in report and "planted.cpp" in report for report in found)


def test_threads_share_a_session(attack: Any, compiler: str, tmp_path: Path) -> None:
    sources = tmp_path / "plugins"
    folders = {path.parent.name for path in sources_folder().glob("*/ort_op.cpp")} if attack.long else set(SHORT)
    for folder in {"common", *folders}:
        shutil.copytree(sources_folder() / folder, sources / folder)
    shutil.copy(sources_folder() / "CMakeLists.txt", sources)
    flags = {"CXXFLAGS": FLAGS, "LDFLAGS": "-fsanitize=thread", "CMAKE_BUILD_TYPE": "None"}
    configure = ["cmake", "-S", str(sources), "-B", str(tmp_path / "b"), f"-DTRTC_ONNXRUNTIME={onnxruntime_headers()}"]
    for command in (configure, ["cmake", "--build", str(tmp_path / "b"), "-j", "2"]):
        done = subprocess.run(command, env={**os.environ, **flags}, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    library, seed = tmp_path / "b" / "lib" / "libtrtc_onnxruntime.so", 7
    count = attack.count(10, 1_300)
    found, said = reports(compiler, "-m", "tests.attack.threads_worker", str(library), str(seed), str(count))
    ours = [report for report in found if library.name in report]
    seen = json.loads(said.splitlines()[-1])
    attack.saw(seed=seed, races=len(ours), wrong=seen["wrong"])
    assert ours[:3] == [] and seen == {"calls": count, "wrong": 0}
