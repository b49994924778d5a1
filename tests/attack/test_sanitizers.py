"""The native operators under AddressSanitizer and UndefinedBehaviorSanitizer: hostile calls, and `tests/native`.

The library is built by the same CMake file with the sanitizers added by CXXFLAGS and LDFLAGS, into a cache folder of
its own, and runs in a child into which their runtimes are preloaded. The TensorRT plugins and their harness are built
as `tests/native/test_plugin_harness.py` builds them, which runs them under the sanitizers on all samples.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.attack.calls import ATTRIBUTES, NAMES, Call, broken_attributes, broken_call, lawful_call, types_of
from tests.native.emulation import building
from tests.processes import environment
from trt_compress.plugins.library import cache_folder
from trt_compress.plugins.registry import specs
from trt_compress.plugins.testing.plugin_harness import PLUGIN_DTYPES, ask

HERE = Path(__file__).parent
TESTS = HERE.parent
OF_ONE_PROCESS = 130
SANITIZE = "-fsanitize=address,undefined,float-cast-overflow"
FLAGS = f"-O1 -g1 -fno-omit-frame-pointer -Wno-maybe-uninitialized {SANITIZE}"
REPORT = re.compile(r"^.*(?:runtime error: |ERROR: AddressSanitizer: ).*$", re.MULTILINE)
PLANTED = """
#include <cstdlib>
extern "C" int planted(int count)
{
    int* const values = static_cast<int*>(malloc(4 * sizeof(int)));
    values[count] = 2147483647;
    int const sum = values[count] + count;
    free(values);
    return sum;
}
"""
# Python and ONNX Runtime keep what they have until they end, and free by new what others made by malloc. An output that
# is too large is ONNX Runtime's to refuse: it asks for the memory, and must be answered that there is none.
ASAN = "detect_leaks=0:new_delete_type_mismatch=0:alloc_dealloc_mismatch=0:allocator_may_return_null=1"
BUILD = "from trt_compress.plugins.build import build; print(build(only=('onnxruntime',))[0].library.path)"


@pytest.fixture(scope="module")
def sanitized() -> dict[str, str]:
    """The environment of a child whose native operators are built with the sanitizers."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None or shutil.which("cmake") is None:
        pytest.skip("the sanitizers need CMake and a C++ compiler")
    runtimes = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so.6"):
        found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if not Path(found).is_absolute():
            pytest.skip(f"{compiler} has no {name}; install the sanitizers of GCC")
        runtimes.append(found)
    folder = cache_folder() / "sanitized"
    (folder / "trt-compress").mkdir(parents=True, exist_ok=True)
    headers = folder / "trt-compress" / "headers"
    if not headers.exists() and (cache_folder() / "headers").is_dir():
        headers.symlink_to(cache_folder() / "headers")
    return {
        **{name: value for name, value in environment().items() if not name.startswith("PYTEST_")},
        **{"XDG_CACHE_HOME": str(folder), "CMAKE_BUILD_TYPE": "None", "CXXFLAGS": FLAGS, "LDFLAGS": SANITIZE},
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": ASAN,
        "UBSAN_OPTIONS": "print_stacktrace=0",
    }


def child(variables: dict[str, str], *command: str, cwd: Path = HERE) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], env=variables, cwd=cwd, capture_output=True, text=True)


def reports(done: subprocess.CompletedProcess[str]) -> list[str]:
    return REPORT.findall(done.stdout) + REPORT.findall(done.stderr)


@pytest.fixture(scope="module")
def library(sanitized: dict[str, str]) -> Path:
    done = child(sanitized, "-c", BUILD)
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(done.stdout.split()[-1])


def test_what_is_planted_is_found(sanitized: dict[str, str], tmp_path: Path) -> None:
    source, built = tmp_path / "planted.cpp", tmp_path / "planted.so"
    source.write_text(PLANTED)
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    assert compiler
    subprocess.run([compiler, "-shared", "-fPIC", *FLAGS.split(), str(source), "-o", str(built)], check=True)
    program = f"import ctypes; ctypes.CDLL({str(built)!r}).planted(%d)"
    sound, overflow, overrun = (reports(child(sanitized, "-c", program % count)) for count in (0, 3, 4))
    assert sound == []
    assert len(overflow) == 1 and "signed integer overflow" in overflow[0]
    assert any("heap-buffer-overflow" in line for line in overrun)


def test_operator_calls(attack: Any, sanitized: dict[str, str], library: Path) -> None:
    count, seed = attack.count(200, 16_000), 3
    done = child(sanitized, "-m", "tests.attack.hostile_worker", str(library), str(seed), str(count))
    found = reports(done)
    attack.saw(seed=seed, sanitizer_reports=len(found), exit_code=done.returncode)
    assert found[:10] == []
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    attack.saw(calls=seen["calls"], ran=seen["ran"], refused=seen["refused"] + seen.get("otherwise", 0))
    assert seen["calls"] == count and seen["ran"] > count / 4 and seen["refused"] > count / 8


def test_native_tests(attack: Any, sanitized: dict[str, str], library: Path) -> None:
    """Everything in tests/native that runs this library; the emulation has sanitized builds of its own there."""
    files = ["test_native_conformance.py", "test_native_adversarial.py", "test_native_kv.py", "test_native_mixing.py"]
    files += ["test_native_codebooks.py", "test_native_packed_caches.py", "test_native_scores_and_mixes.py"]
    files += ["test_native_data_sizes.py", "test_agreement.py"]
    chosen = files if attack.long else ["test_native_data_sizes.py"]
    attack.saw(files=len(chosen))
    options = ("-q", "-n", "0", "-p", "no:cacheprovider", "-W", "ignore")
    variables = {**sanitized, "ASAN_OPTIONS": f"{ASAN}:handle_segv=0"}  # some expect the signal, on guarded pages
    done = child(
        variables, "-m", "pytest", *options, *(str(TESTS / "native" / name) for name in chosen), cwd=TESTS.parent
    )
    found = reports(done)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    attack.saw(sanitizer_reports=len(found), said=last)
    assert found[:10] == []
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in last and "skipped" not in last


# ---- the TensorRT plugins, through the life that the harness gives them ----------------------------------------------


def case_lines(label: str, call: Call, folder: Path) -> list[str]:
    """One call as the harness reads it."""
    spec = specs()[call.op_type]
    lines = [f"case {label}", f"plugin {spec.op_type} {spec.version} {spec.domain}"]
    for attribute in spec.attributes:
        value = call.attributes[attribute.name]
        values = " ".join(map(repr, value if isinstance(value, list) else [value]))
        lines.append(f"field {attribute.name} {'float32' if attribute.kind == 'float' else 'int64'} {values}")
    for described, array, dtype in zip(spec.inputs, call.inputs, call.dtypes, strict=True):
        path = folder / f"{label}.{described.name}"
        values = (array.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else array
        path.write_bytes(values.tobytes())
        sizes = [f"{described.name}.{axis}={size}" for axis, size in enumerate(array.shape)]
        lines += [f"input {described.name} {PLUGIN_DTYPES.get(dtype, dtype)} {' '.join(sizes)}"]
        lines += [f"data {described.name} {path}"]
    return [*lines, "run"]


@pytest.mark.parametrize("share", [0, *(pytest.param(part, marks=pytest.mark.long) for part in range(1, 4))])
def test_plugin_calls(share: int, attack: Any, tmp_path: Path) -> None:
    """Lawful calls with hostile values break no rule; whatever else is given is refused in a sentence or runs."""
    headers = next(iter(building.interfaces().values()))
    library = building.tensorrt_library(tmp_path, headers, building.SANITIZE)
    program = building.harness(tmp_path, headers, building.SANITIZE)
    count, seed = attack.count(65, 325), 5 + share
    random = np.random.default_rng(seed)
    seen = {"ran": 0, "refused": 0}
    for part in range(0, count, OF_ONE_PROCESS):
        lawful, broken = [], []
        for number in range(part, min(part + OF_ONE_PROCESS, count)):
            name = NAMES[number % len(NAMES)]
            attributes = ATTRIBUTES[name](random)
            call = lawful_call(random, name, attributes, types_of(random, name))
            lawful += case_lines(f"lawful-{number}", call, tmp_path)
            hostile = broken_attributes(random, attributes) if random.random() < 0.25 else attributes
            call = replace(broken_call(random, call), attributes=hostile)
            broken += case_lines(f"broken-{number}", call, tmp_path)
        cases = ask(program, library, lawful + broken, tmp_path, enqueue=True).cases  # raises what a sanitizer found
        for label, answer in cases.items():
            wrong = [*answer["problems"], *answer["errors"]]
            assert not (wrong and label.startswith("lawful")), (label, wrong)
            seen["refused" if wrong else "ran"] += 1
            silent = not answer["errors"] and any(p.endswith("failed") or "gave no plugin" in p for p in wrong)
            assert not silent, (label, wrong)
        for path in tmp_path.glob("*-*.*"):
            path.unlink()
    attack.saw(seed=seed, **seen)
    if attack.long and share == 0:  # what `make test` runs of them, and the kernels on larger samples
        options = ("-q", "-n", "0", "-p", "no:cacheprovider", str(TESTS / "native" / "test_plugin_harness.py"))
        done = child(environment(TRTC_TEST_VALUES="20000"), "-m", "pytest", *options, cwd=TESTS.parent)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert seen["ran"] > count and seen["refused"] > count / 8
