"""`FILE.py:FACTORY`: what is built of timm's blocks is driven, the rest is refused by name, failures are a sentence."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.models.vits import run
from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.models.hosts.registry import load_host

SOURCE = """
import functools, random
import numpy, timm, torch
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import nn
import beside
print("a line of the file")
SMALL = dict(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=5, in_chans=1)

class Mine(VisionTransformer):
    \"\"\"A subclass that adds methods only.\"\"\"
    def note(self):
        return beside.NOTE

class Sized(Mine):
    def __init__(self):
        super().__init__(**SMALL)

class Shifted(Mine):
    def _pos_embed(self, x):
        return super()._pos_embed(x) + 1

def make():
    print("made")
    return Mine(**SMALL)

def noisy(scale=random.random() + numpy.random.rand()):
    net = make()
    nn.init.constant_(net.head.bias, scale)
    return net

def named():
    return timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=3)

class Holder:
    make = staticmethod(make)

ready = Mine(**SMALL)
partial = functools.partial(Mine, **SMALL)

class Soft(Mine):
    def forward(self, x):
        return super().forward(x).softmax(-1)

class Pooled(Mine):
    def pool(self, x, pool_type=None):
        return x.amax(1)

class Gated(Block):
    def forward(self, x, **more):
        return super().forward(x) * 2

class Sparse(Attention):
    def forward(self, x, **more):
        return super().forward(x) * 2

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = make()
    def forward(self, x):
        return self.backbone(x).tanh()

def soft(): return Soft(**SMALL)
def pooled(): return Pooled(**SMALL)
def gated(): return Mine(**SMALL, block_fn=Gated)
def sparse(): return Mine(**SMALL, attn_layer=Sparse)
def patched():
    net = make()
    net.forward = lambda x: x
    return net
def hooked():
    net = make()
    net.blocks[1].register_forward_hook(lambda module, given, out: out * 2)
    return net
def more_tokens():
    net = make()
    net.norm.register_forward_hook(lambda module, given, out: out * 2)
    net.norm_pre.forward = lambda x: x * 1
    return net
def compiled(): return torch.jit.trace(make().eval(), torch.zeros(1, 1, 16, 16))
def linear(): return nn.Linear(2, 2)
def convolutional(): return timm.create_model("resnet18")
def boom():
    raise ValueError("no weights at \\x1b[31mhome\\nand more")
def leave(): raise SystemExit(3)
def needs(width, depth, *, heads=2): return make()
def nothing(): return {"a": 1}
def broken():
    net = make()
    nn.init.constant_(net.head.weight, float("nan"))
    return net
def nowhere():
    with torch.device("meta"):
        return make()
class Noted(nn.Identity):
    def get_extra_state(self): return {"note": 1}
    def set_extra_state(self, state): pass
def noted():
    net = make()
    net.norm_pre = Noted()
    return net
def patched_inside():
    net = make()
    net.blocks[0].attn.forward = lambda x, attn_mask=None: x
    return net
number = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "net.py").write_text(SOURCE)
    (folder / "beside.py").write_text("NOTE = 'here'")
    return folder / "net.py"


@pytest.mark.parametrize(
    "factory", ["make", "Sized", "Shifted.__new__", "Holder.make", "ready", "partial", "named", "noisy", "more_tokens"]
)
@pytest.mark.filterwarnings("error")
def test_what_is_built_of_timm_s_blocks_is_driven(factory: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if factory == "Shifted.__new__":
        file.with_name("shifted.py").write_text(SOURCE + "\ndef shifted(): return Shifted(**SMALL)\n")
        file, factory = file.with_name("shifted.py"), "shifted"
    host = load_host(f"{file}:{factory}?mean=0.5&std=0.25")
    (graph,) = host.attach(())
    shape = graph.inputs[0].shape
    x = torch.randn(2, *(int(dim) for dim in shape[1:]), generator=torch.Generator().manual_seed(1))
    assert (run(graph.module, x) - run(host.module, x)).abs().max() < 1e-5
    assert shape[1:] == ((3, 32, 32) if factory == "named" else (1, 16, 16))
    assert host.preprocess["kind"] == "image" and set(host.preprocess["mean"]) == {0.5}
    assert host.postprocess == {"kind": "classification", "classes": 3 if factory == "named" else 5}
    assert host.family == "timm_vit"
    assert host.weights.source == f"made by {file.name}:{factory} (seed 0)"
    out, err = capsys.readouterr()
    assert out == "" and "a line of the file" in err


def test_weights_that_the_factory_makes_are_the_same_each_time(file: Path) -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()  # type: ignore[index]
    first, second = (load_host(f"{file}:noisy") for _ in range(2))
    assert first.weights.sha256 == second.weights.sha256
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert torch.equal(torch.random.get_rng_state(), states[2])


def test_nothing_of_the_file_stays_behind(file: Path, tmp_path: Path) -> None:
    load_host(f"{file}:make")
    assert "beside" not in sys.modules and str(file.parent) not in sys.path
    (tmp_path / "beside.py").write_text("NOTE = 'elsewhere'")
    (tmp_path / "net.py").write_text(SOURCE)
    assert load_host(f"{tmp_path / 'net.py'}:make").module.note() == "elsewhere"  # type: ignore[operator]
    (tmp_path / "net.py").write_text(SOURCE.replace("num_classes=5", "num_classes=6"))  # as long, in the same second
    assert load_host(f"{tmp_path / 'net.py'}:make").postprocess["classes"] == 6


def test_a_file_of_weights_goes_into_it(file: Path, tmp_path: Path) -> None:
    tensors = {name: tensor + 1 for name, tensor in load_host(f"{file}:make").module.state_dict().items()}
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "w.safetensors")
    host = load_host(f"{file}:make", weights=str(tmp_path / "w.safetensors"))
    assert host.weights.source == "w.safetensors"
    assert all(torch.equal(host.module.state_dict()[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(ConfigError, match=r"w\.safetensors does not fit the model: it has more than the model"):
        load_host(f"{file}:named", weights=str(tmp_path / "w.safetensors"))


def test_without_mean_and_std_pictures_are_not_guessed_at(file: Path) -> None:
    host = load_host(f"{file}:make")
    assert host.preprocess["kind"] == "tensors"
    assert "?mean=…&std=… behind the model's name" in host.preprocess["reason"]
    assert load_host(f"{file}:named").preprocess["kind"] == "image"  # timm says them


REFUSED = {
    "soft": r"net\.py:soft: the method forward that Soft overrides is not supported; this host drives timm's Vision",
    "pooled": "the method pool that Pooled overrides is not supported",
    "gated": "the method forward that Gated overrides is not supported",
    "sparse": "the method forward that Sparse overrides is not supported",
    "patched": "a method forward that is set on one Mine is not supported",
    "patched_inside": "a method forward that is set on one Attention is not supported",
    "noted": r"net\.py:noted gives a module that keeps a dict as norm_pre\._extra_state, which cannot be exported",
    "hooked": r"a forward hook on blocks\.1 is not supported",
    "Wrapped": r"model class Wrapped is not supported; .*\nHint: it holds a VisionTransformer as 'backbone': give that",
    "linear": r"net\.py:linear: model class Linear is not supported",
    "convolutional": "model class ResNet is not supported",
}


@pytest.mark.parametrize("factory", REFUSED)
def test_what_no_host_drives_is_refused_by_name(factory: str, file: Path) -> None:
    with pytest.raises(UnsupportedError, match=REFUSED[factory]):
        load_host(f"{file}:{factory}")


FAILS = {
    "boom": r"net\.py:boom: boom failed in line \d+ with ValueError: no weights at \\x1b\[31mhome; correct it\.$",
    "leave": r"net\.py:leave: leave failed in line \d+ with SystemExit: 3",
    "needs": "needs the arguments width, depth; give a function without required arguments",
    "nothing": r"net\.py:nothing gives a dict; it must return an nn\.Module",
    "number": r"net\.py:number is an int; give a function without required arguments",
    "broken": r"gives a module with NaN or infinity in head\.weight",
    "nowhere": "gives a module on the meta device, without weights",
    "mak": r"the file has no 'mak'.* Did you mean 'make'\?",
    "Holder.mak": r"the file has no 'Holder\.mak'",
}


@pytest.mark.parametrize("factory", FAILS)
def test_what_fails_is_one_sentence(factory: str, file: Path) -> None:
    with pytest.raises(ConfigError, match=FAILS[factory]) as error:
        load_host(f"{file}:{factory}")
    assert "\n" not in error.value.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "import no_such_library\ndef make(): ...",
            r"the file failed in line 1 with ModuleNotFoundError: No module named",
        ),
        ("raise SystemExit\ndef make(): ...", "the file failed in line 1 with SystemExit"),
    ],
)
def test_a_file_that_fails_is_one_sentence(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_host(f"{tmp_path / 'net.py'}:make")


def test_a_module_that_computes_something_else_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        SOURCE.replace("import beside\n", "").replace("beside.NOTE", "0")
        + "\nclass Late(Mine):\n    def __call__(self, x):\n        return super().__call__(x) + 1\n"
        "def late(): return Late(**SMALL)\n"
    )
    with pytest.raises(UnsupportedError, match="computes something else than timm's VisionTransformer"):
        load_host(f"{tmp_path / 'net.py'}:late")


def test_what_was_hashed_is_what_is_run(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("raise SystemExit('this was never hashed')\ndef make(): pass\n")
    with pytest.raises(ConfigError, match=r"^mine\.py:make: the file was changed since it was hashed; give it when"):
        load_host(f"{file}:make", model_sha256="0f" * 32)
