"""What a run costs beside ONNX Runtime's own, what leaves the library, and that it builds as a package."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtime.cpp.conftest import ROOT, SOURCES, Built, configured
from trt_compress.tools import gen_cpp


def test_a_run_allocates_and_locks_nothing_of_its_own(cpp: Built, exported: Callable[..., Path]) -> None:
    """Of all allocations and locks of the process those are the library's own whose nearest caller it is."""
    bundle = exported()
    said = cpp.program("steady_state", bundle, cpp.onnxruntime, bundle / "model.onnx", 20).stdout
    found = json.loads(said)
    assert found["same"] is True
    assert (found["ours"]["own_allocations"], found["ours"]["own_locks"]) == (0, 0), found
    making = found["making"]
    assert making["own_allocations"] == making["allocations"] > 0  # the counter knows the library's own
    assert found["direct"]["allocations"] > 0 and found["direct"]["locks"] > 0  # and others


def test_nothing_but_the_c_interface_leaves(cpp: Built) -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm is not on the path")
    said = subprocess.run(
        ["nm", "-D", "--defined-only", cpp.library], check=True, capture_output=True, text=True
    ).stdout
    names = {line.split()[-1] for line in said.splitlines()}
    header = (SOURCES / "include" / "trt_compress" / "runtime.h").read_text()
    declared = {part.split("(")[0].split()[-1].lstrip("*") for part in header.split("TRTC_API ")[1:]}
    assert names == {name for name in declared if name.startswith("trtc_")}
    assert len(names) > 30


def test_the_header_is_short_and_is_c(cpp: Built, tmp_path: Path) -> None:
    header = SOURCES / "include" / "trt_compress" / "runtime.h"
    assert len(header.read_text().splitlines()) < 400
    if shutil.which("gcc"):
        (tmp_path / "one.c").write_text('#include "trt_compress/runtime.h"\nint main(void) { return TRTC_OK; }\n')
        strict = ["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{SOURCES / 'include'}"]
        subprocess.run([*strict, "-fsyntax-only", str(tmp_path / "one.c")], check=True, capture_output=True)


def test_an_installed_package_is_found(cpp: Built, tmp_path: Path) -> None:
    """By CMake's find_package and by pkg-config, from a place of its own."""
    prefix = tmp_path / "installed"
    subprocess.run(["cmake", "--install", str(cpp.folder), "--prefix", str(prefix)], check=True, capture_output=True)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(user LANGUAGES C)\n"
        "find_package(trt_compress_runtime 0.1 REQUIRED)\nadd_executable(user user.c)\n"
        "target_link_libraries(user PRIVATE trt_compress::runtime)\n"
    )
    (tmp_path / "user.c").write_text(
        "#include <stdio.h>\n#include <trt_compress/runtime.h>\nint main(void) { puts(trtc_version()); return 0; }\n"
    )
    configured(tmp_path, tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    done = subprocess.run([tmp_path / "build" / "user"], check=True, capture_output=True, text=True)
    assert done.stdout == "0.1.0\n"
    assert list(prefix.rglob("trt_compress_runtime.pc")) and list(prefix.rglob("runtime.hpp"))


@pytest.mark.slow
def test_what_the_readme_types_builds_and_runs(
    header_options: list[str], exported: Callable[..., Path], tmp_path: Path
) -> None:
    """The block of shell commands, in a folder that has the sources and a bundle."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = (
        one for one in re.findall(r"^```sh\n(.*?)^```", readme, re.DOTALL | re.MULTILINE) if "runtime/cpp" in one
    )
    os.symlink(ROOT / "runtime", tmp_path / "runtime")
    os.symlink(exported(), tmp_path / "digits")
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shell = ["bash", "-euo", "pipefail", "-c", block]
    done = subprocess.run(shell, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith("logits begins with")


def test_the_fields_of_the_manifest_are_those_of_the_records() -> None:
    assert (ROOT / gen_cpp.TARGET).read_text(encoding="utf-8") == gen_cpp.text(), "python -m trt_compress.tools.gen_cpp"
