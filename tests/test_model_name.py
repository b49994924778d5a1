"""Names of models: what is taken apart, what is refused in a sentence, and that none of it needs torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trt_compress.errors import ConfigError
from trt_compress.model_file import check_model_file
from trt_compress.model_name import parse_model, timm_refusal, with_absolute_path

GOOD: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "timm:vit_tiny_patch16_224": ("timm", "vit_tiny_patch16_224", "", {}),
    "timm:vit_tiny_patch16_224.augreg_in21k?": ("timm", "vit_tiny_patch16_224.augreg_in21k", "", {}),
    "timm:v?num_classes=10&img_size=384&in_chans=1": (
        "timm",
        "v",
        "",
        {"num_classes": 10, "img_size": (384, 384), "in_chans": 1},
    ),
    "timm:v?img_size=224x384&resample_pos=true": ("timm", "v", "", {"img_size": (224, 384), "resample_pos": True}),
    "timm:v?class_token=false&reg_tokens=4&global_pool=avg&patch_size=8": (
        "timm",
        "v",
        "",
        {"class_token": False, "reg_tokens": 4, "global_pool": "avg", "patch_size": (8, 8)},
    ),
    "timm:v?mean=0.5&std=0.1,0.2,3e-1": ("timm", "v", "", {"mean": (0.5,), "std": (0.1, 0.2, 0.3)}),
    "timm:v?weights_key=state_dict_ema": ("timm", "v", "", {"weights_key": "state_dict_ema"}),
    "zoo:digits_vit": ("zoo", "digits_vit", "", {}),
    "gguf:a.gguf?lora=b/c": ("gguf", "a.gguf", "", {"lora": Path("b/c")}),
    "hf:some/folder?seconds=5": ("hf", "some/folder", "", {"seconds": 5.0}),
    "hf:some/folder?img_size=24x16&feature_layer=-2": (
        "hf",
        "some/folder",
        "",
        {"img_size": (24, 16), "feature_layer": -2},
    ),
    "wavtokenizer:a.ckpt": ("wavtokenizer", "a.ckpt", "", {}),
    "nets/mine.py:make": ("file", "nets/mine.py", "make", {}),
    "./mine.py:make?mean=0.5": ("file", "./mine.py", "make", {"mean": (0.5,)}),
    r"C:\nets\mine.py:Zoo.make": ("file", r"C:\nets\mine.py", "Zoo.make", {}),
    "mine.py": ("file", "mine.py", "", {}),
}
BAD: dict[str, str] = {
    "vit_tiny_patch16_224": r"model 'vit_tiny_patch16_224' is not known; write timm:NAME .* FILE\.py:FACTORY",
    "file:x": "is not known; write timm:NAME",
    "": "model '' is not known",
    "mine.py:make:more": "is not known",
    "timm:v?classes=10": r"option 'classes' is not known; there are num_classes, img_size.* Did you mean 'num_classes'",
    "timm:v?num_classes": r"'num_classes' is not key=whole number from 0 on; write timm:NAME\?num_classes=10",
    "timm:v?num_classes=-1": "'num_classes=-1' is not key=whole number",
    "timm:v?num_classes=1e3": "'num_classes=1e3' is not key=whole number",
    "timm:v?num_classes=²": "is not key=whole number",
    "timm:v?in_chans=0": "'in_chans=0' is not key=whole number from 1 on",
    "timm:v?img_size=224x": r"'img_size=224x' is not key=pixels, HEIGHTxWIDTH or one number for both",
    "timm:v?img_size=3x224x224": "is not key=pixels",
    "timm:v?img_size=0": "is not key=pixels",
    "timm:v?global_pool=map": "'global_pool=map' is not key=one of token, avg, avgmax",
    "timm:v?class_token=no": "'class_token=no' is not key=true or false",
    "timm:v?std=0.5,0": "'std=0.5,0' is not key=a number above 0 for each channel",
    "timm:v?mean=nan": "'mean=nan' is not key=a number",
    "timm:v?num_classes=2&num_classes=2": "option 'num_classes' is given twice",
    "timm:v?seconds=2": "option 'seconds' is not known",
    "timm:v?&": "option '' is not known",
    "zoo:digits_vit?num_classes=3": "zoo:NAME takes no options",
    "hf:x?secs=5": "option 'secs' is not known; there are seconds, tokens, img_size, .*, lora. Did you mean 'seconds'",
    "gguf:x?lora=": r"'lora=' is not key=directory of a LoRA adapter; write gguf:FILE\?lora=ADAPTER",
    "hf:x?seconds=five": r"'seconds=five' is not key=number; write hf:PATH\?seconds=5",
    "hf:x?feature_layer=1,": "'feature_layer=1,' is not key=whole number, .*, or several with commas between",
    "hf:x?feature_layer=1.5": "'feature_layer=1.5' is not key=whole number, where a negative one counts from the end",
    "mine.py:make?num_classes=3": "option 'num_classes' is not known; there are mean, std, weights_key",
}


@pytest.mark.parametrize("text", GOOD)
def test_a_name_is_taken_apart(text: str) -> None:
    found = parse_model(text)
    assert (found.source, found.name, found.factory, dict(found.options)) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_another_name_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match=BAD[text]) as error:
        parse_model(text)
    assert "\n" not in error.value.message


@pytest.mark.parametrize(
    ("text", "absolute"),
    [
        ("timm:v?num_classes=3", "timm:v?num_classes=3"),
        ("zoo:digits_vit", "zoo:digits_vit"),
        ("hf:some/folder?seconds=5", "hf:{base}/some/folder?seconds=5"),
        ("hf:/some/folder", "hf:/some/folder"),
        ("gguf:a.gguf?lora=../b", "gguf:{base}/a.gguf?lora={base}/../b"),
        ("hf:a?seconds=5&lora=/b", "hf:{base}/a?seconds=5&lora=/b"),
        ("./a.py/a.py:make?mean=0.5", "{base}/a.py/a.py:make?mean=0.5"),
        ("xytokenizer:../codec.pt", "xytokenizer:{base}/../codec.pt"),
    ],
)
def test_a_path_in_a_name_is_made_absolute(text: str, absolute: str, tmp_path: Path) -> None:
    assert with_absolute_path(text, tmp_path) == absolute.format(base=tmp_path)


def test_a_tag_does_not_hide_a_refused_name() -> None:
    assert timm_refusal("vit_so400m_patch14_siglip_384.webli") == "global_pool='map'"
    assert timm_refusal("vit_so400m_patch14_siglip_gap_384.webli") is None


SOURCE = """
import os as system
from pathlib import Path
try:
    Net = Path
except Exception as problem:
    raise
if True:
    def make(): ...
limit: int = 3
class Model:
    inner = 1
"""


@pytest.mark.parametrize("factory", ["make", "Model", "Model.inner", "Net", "system", "Path", "limit"])
def test_a_file_that_defines_the_name_passes(factory: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SOURCE)
    assert len(check_model_file(parse_model(f"{tmp_path}/net.py:{factory}"))) == 64


@pytest.mark.parametrize("more", ["from os.path import *", "def __getattr__(name): ...", "globals()['make'] = 1"])
def test_a_file_that_may_define_anything_passes(more: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(more)
    check_model_file(parse_model(f"{tmp_path}/net.py:made"))


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (SOURCE, "net.py:mak", r"the file has no 'mak'; it defines Model\. Did you mean 'make'\?"),
        (SOURCE, "net.py:inner", "the file has no 'inner'"),
        (
            SOURCE,
            "net.py",
            r"which function or class in it makes the model\? Write .*net\.py:FACTORY; it defines Model",
        ),
        (SOURCE, "net.py:", "which function or class in it makes the model"),
        (SOURCE, "nets.py:make", r"nets\.py: the file cannot be read \(No such file or directory\); write FILE\.py"),
        ("", "net.py:make", "the file has no 'make'; it defines nothing"),
        ("def make(:", "net.py:make", r"the file is not Python \(invalid syntax, line 1\); correct it"),
        ("x = 'a\0b'", "net.py:make", "the file is not Python"),
        (b"\xff\xfe\x00", "net.py:make", "the file is not Python"),
    ],
)
def test_a_file_that_cannot_make_a_model_is_refused(
    content: str | bytes, name: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match=message) as error:
        check_model_file(parse_model(f"{tmp_path}/{name}"))
    assert "\n" not in str(error.value)


def test_names_are_read_without_anything_heavy() -> None:
    program = "import trt_compress.model_name, trt_compress.model_file, sys, json; print(json.dumps(list(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    assert not {"torch", "timm", "onnx", "numpy", "typer"} & {*loaded}
