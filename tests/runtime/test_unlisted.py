"""What a bundle holds beside what its manifest lists: code and weights are refused, the rest is left alone."""

from pathlib import Path

import pytest

from trt_compress.errors import BundleError
from trt_compress.format import unlisted
from trt_compress.runtime import Bundle

REFUSED = (
    *("json.py", "JSON.PY", "torch/__init__.py", "sitecustomize.pyc", "numpy.pyd", "evil.pth", "a/b/c.py"),
    *("libonnxruntime.so", "libonnxruntime.so.1.20", "nvinfer.dll", "lib.dylib"),
    *("other.onnx", "model.onnx.data", "model.onnx_data", "weights.bin", "w.safetensors", "checkpoint.pt"),
    *("mine.engine", "engines/mine.plan", "engines/rtx/other.engine", "engines/rtx/model.engine.so"),
)
LEFT_ALONE = (
    *("README.txt", "LICENSE", "result.json", "bench.jsonl", "build.log", "page.html", "frames/0001.png", "in.npz"),
    *("overlay.mp4", "sound.wav", "data", "py", "table.csv", "labels.toml", ".git/hooks/x.py", ".json.py"),
    *(".change.0123456789abcdef.new/0.onnx", "engines/rtx/model.engine", "engines/rtx/model.0123abcd.engine"),
)


def put(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")


@pytest.mark.parametrize("check_hashes", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_code_and_weights_that_are_not_listed_are_refused(double_bundle: Bundle, name: str, check_hashes: bool) -> None:
    put(double_bundle.path, name)
    with pytest.raises(BundleError, match="which its manifest does not list") as caught:
        Bundle.open(double_bundle.path, check_hashes=check_hashes)
    assert f"holds '{name}', which" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_what_can_be_neither_is_left_alone(double_bundle: Bundle) -> None:
    for name in LEFT_ALONE:
        put(double_bundle.path, name)
    assert Bundle.open(double_bundle.path) == double_bundle


def test_a_link_is_a_file_and_not_followed(double_bundle: Bundle, tmp_path: Path) -> None:
    put(tmp_path, "outside/evil.py")
    (double_bundle.path / "notes" / "there").symlink_to(tmp_path / "outside")
    (double_bundle.path / "loop").symlink_to(double_bundle.path)
    assert Bundle.open(double_bundle.path) == double_bundle
    (double_bundle.path / "mine.py").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"holds 'mine\.py'"):
        Bundle.open(double_bundle.path)


def test_a_link_to_a_package_is_code(double_bundle: Bundle, tmp_path: Path) -> None:
    put(tmp_path, "outside/__init__.py")
    (double_bundle.path / "json").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match=r"holds 'json/__init__\.py'"):
        Bundle.open(double_bundle.path)


def test_a_few_are_named_and_no_terminal_acts_on_them(double_bundle: Bundle) -> None:
    for name in ("a\x1b[2J.py", "b.py", "c.py", "d.py", "e.so"):
        put(double_bundle.path, name)
    with pytest.raises(BundleError) as caught:
        Bundle.open(double_bundle.path)
    assert "b.py', 'c.py' and 2 more, which" in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_folder_of_everything_is_no_bundle(double_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlisted, "_MOST", 20)
    for number in range(30):
        put(double_bundle.path, f"{number}.txt")
    with pytest.raises(BundleError, match="holds more than 20 files"):
        Bundle.open(double_bundle.path)
