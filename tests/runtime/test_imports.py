"""The runtime works where only numpy and onnxruntime are installed."""

import subprocess
import sys
import textwrap
from pathlib import Path

from tests.runtime.generate.toy import write
from trt_compress.runtime import Bundle

HEAVY = ("torch", "onnx", "onnxscript", "timm", "transformers")

BLOCK = f"""
    import sys

    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {HEAVY}:
                raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)

    sys.meta_path.insert(0, Block())
"""


def run_blocked(program: str) -> subprocess.CompletedProcess[str]:
    source = textwrap.dedent(BLOCK) + textwrap.dedent(program)
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)


def test_the_block_blocks() -> None:
    for name in HEAVY:
        done = run_blocked(f"import {name}")
        assert f"No module named '{name}' (blocked)" in done.stderr


def test_a_bundle_runs_without_the_export_side(double_bundle: Bundle) -> None:
    done = run_blocked(f"""
        import numpy as np
        import trt_compress.runtime
        import trt_compress.runtime.measure.latency
        assert "onnxruntime" not in sys.modules  # loaded by the session that needs it
        with trt_compress.runtime.Session.open({str(double_bundle.path)!r}) as session:
            print(session.run({{"x": np.ones((1, 3), np.float32)}})["y"].tolist())
        print(sorted({set(HEAVY)!r} & set(sys.modules)))
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["[[2.0, 2.0, 2.0]]", "[]"]


def test_a_text_is_written_without_the_export_side(tmp_path: Path) -> None:
    write(tmp_path / "b")
    done = run_blocked(f"""
        from trt_compress.runtime import Generator
        with Generator.open({str(tmp_path / "b")!r}) as generator:
            prompt = generator.chat([{{"role": "user", "content": "the fox"}}])
            print(len(generator.generate(prompt, max_new=3, temperature=1.0)[0].ids))
        print(sorted({{"jinja2", *{HEAVY!r}}} & set(sys.modules)))
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["3", "[]"]


def test_a_stream_needs_its_libraries_only_when_it_uses_them(double_bundle: Bundle) -> None:
    done = run_blocked(f"""
        import numpy as np
        from trt_compress.runtime.session import Session
        from trt_compress.runtime.stream.levels import levels_from_sessions
        from trt_compress.runtime.stream.run import open_sources, run_stream
        from trt_compress.runtime.stream import sinks
        used = {{"av", "PIL", "soundfile", "sounddevice", "rich", "typer"}} & set(sys.modules)
        path = {str(double_bundle.path)!r}
        np.savez(path + ".npz", x=np.ones((5, 3), np.float32))
        levels = levels_from_sessions([Session.open(path)])
        print(run_stream(levels, open_sources([path + ".npz"], levels)).counts.delivered)
        print(sorted((used | {{"av", "PIL", "soundfile"}} & set(sys.modules)) | set({HEAVY!r}) & set(sys.modules)))
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["5", "[]"]


def test_the_public_names() -> None:
    import trt_compress.runtime

    assert trt_compress.runtime.__all__ == ["Bundle", "Generator", "Manifest", "Sampling", "Session", "States"]
