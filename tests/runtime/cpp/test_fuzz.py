"""The readers of files of strangers in C++ on what a fuzzer made of them: its corpus everywhere, and a minute more."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.runtime import counter_bundles
from tests.runtime.cpp.conftest import built
from tests.runtime.generate import toy

CORPUS = Path(__file__).with_name("corpus")
"""What libFuzzer kept, by the first byte: a manifest, an ONNX file, or a tokenizer and a text."""
MINUTE_S = 60


def seeds(folder: Path) -> None:
    """Files as they are written now."""
    folder.mkdir()
    for name, write in {"counter": counter_bundles.write, "viewer": counter_bundles.write_viewer}.items():
        write(folder.parent / name)
        for file in (folder.parent / name).iterdir():
            if kind := {".json": b"m", ".onnx": b"o"}.get(file.suffix):
                (folder / f"{name}-{file.name}").write_bytes(kind + file.read_bytes())
    (folder / "tokenizer").write_bytes(b"t" + toy.tokenizer_json() + b"\0the fox <s> \xc3\xa9")


def test_the_corpus_is_read_without_a_finding(sanitized: Path, tmp_path: Path) -> None:
    """AddressSanitizer and UndefinedBehaviorSanitizer end the program with a report where they find something."""
    seeds(tmp_path / "seeds")
    files = [*sorted(CORPUS.iterdir()), *sorted((tmp_path / "seeds").iterdir())]
    kinds = {file.read_bytes()[:1] for file in CORPUS.iterdir()}
    assert len(files) > 100 and kinds >= {b"m", b"o", b"t"}
    done = subprocess.run([sanitized.parent / "check_corpus", *files], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, f"read {len(files)}\n"), done.stderr[-3000:]


@pytest.mark.long
def test_a_minute_of_fuzzing(header_options: list[str], tmp_path: Path) -> None:
    """From the corpus on, by libFuzzer; it needs clang++ and its runtime libraries."""
    compiler = next(filter(None, map(shutil.which, ("clang++", "clang++-19", "clang++-16", "clang++-14"))), None)
    if compiler is None:
        pytest.skip("libFuzzer needs clang++")
    compilers = [f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_C_COMPILER={compiler.replace('clang++', 'clang')}"]
    options = ["-DTRTC_SANITIZE=address,undefined", "-DTRTC_FUZZ=ON", "-DTRTC_EXAMPLES=OFF", "-DCMAKE_BUILD_TYPE=None"]
    folder = built("fuzz", [*compilers, *options, "-DCMAKE_CXX_FLAGS=-O1", *header_options], targets=("fuzz_reader",))
    seeds(tmp_path / "seeds")
    (tmp_path / "found").mkdir()
    limits = [
        f"-max_total_time={MINUTE_S}",
        "-timeout=120",
        "-rss_limit_mb=2048",
        "-max_len=12000",
        "-print_final_stats=1",
    ]
    command = [folder / "fuzz_reader", *limits, f"-artifact_prefix={tmp_path}/", tmp_path / "found", CORPUS]
    done = subprocess.run([*command, tmp_path / "seeds"], capture_output=True, text=True, timeout=MINUTE_S * 5)
    assert done.returncode == 0, done.stderr[-4000:]
    (runs,) = (int(line.split()[-1]) for line in done.stderr.splitlines() if "number_of_executed_units" in line)
    assert runs > 1000
    assert list(tmp_path.glob("crash-*")) == []
