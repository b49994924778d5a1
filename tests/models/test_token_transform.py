"""Token Transforming: against its formulas in numpy, as a merge where it is hard, and in exported graphs."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from tests.models.arrivals import a_host, arrival_at
from tests.models.vits import compress, images, make_vit, run
from trt_compress.errors import TrtCompressError
from trt_compress.export.build import BatchRange, build_engine
from trt_compress.export.lower import add_bodies
from trt_compress.export.preflight import preflight
from trt_compress.export.targets import TARGETS
from trt_compress.export.trace import TraceOptions, onnx_from_module
from trt_compress.methods import parse_spec
from trt_compress.methods.vision import TokenTransformConfig
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.place import place_one
from trt_compress.models.compressors.token_transform import TokenTransform
from trt_compress.plugins.testing.forms import session

SPEC = "token_transform:layers=[0,2],keep_ratio=0.5"
FRONT, PATCHES = 2, 15


def given(seed: int = 0) -> tuple[Tokens, Taps]:
    """A class token, a register and patches, of sizes that are not all one."""
    chance = torch.Generator().manual_seed(seed)
    count = FRONT + PATCHES
    position = (torch.arange(count) * 10).expand(2, -1)
    tokens = Tokens(
        x=torch.randn(2, count, 6, generator=chance),
        size=torch.randint(1, 5, (2, count, 1), generator=chance).float(),
        position=position,
    )
    return tokens, Taps(
        keys=torch.randn(2, count, 5, generator=chance), class_attention=torch.rand(2, count, generator=chance)
    )


def transformed(tokens: Tokens, taps: Taps, **options: Any) -> Tokens:
    host = a_host(1, FRONT + PATCHES, FRONT)
    step = TokenTransform(TokenTransformConfig(layers=(0,), **options), arrival_at(host))
    found: Tokens = step(tokens, taps)
    return found


def by_the_formulas(
    tokens: Tokens, taps: Taps, kept: int, temperature: float, spread: int
) -> list[np.ndarray[Any, Any]]:
    """x, size and position of one image after another: S = cos(k_i, k_j), G = softmax_i(S / temperature) with all but
    the `spread` largest of a column left out, x' = (G s x) / (G s), s' = G s."""
    xs, sizes, positions = [], [], []
    assert tokens.size is not None and tokens.position is not None
    for item in range(len(tokens.x)):
        x, s, k, place = (
            part[item, FRONT:].double().numpy() for part in (tokens.x, tokens.size, taps["keys"], tokens.position)
        )
        score = taps["class_attention"][item, FRONT:].numpy()
        chosen = sorted(sorted(range(PATCHES), key=lambda j, a=score: -a[j])[:kept])
        g = np.zeros((kept, PATCHES))
        for j in range(PATCHES):
            cosines = [k[i] @ k[j] / np.sqrt((k[i] @ k[i]) * (k[j] @ k[j])) for i in chosen]
            largest = sorted(range(kept), key=lambda i, c=cosines: -c[i])[: spread or kept]
            for i in largest:
                g[i, j] = np.exp(cosines[i] / temperature)
            g[:, j] /= g[:, j].sum()
        mass = g @ s
        xs.append(np.concatenate([tokens.x[item, :FRONT].numpy(), (g @ (s * x)) / mass]))
        sizes.append(np.concatenate([tokens.size[item, :FRONT].numpy(), mass]))
        middle = np.floor((g @ (s[:, 0] * place)) / mass[:, 0] + 1e-5)
        positions.append(np.concatenate([tokens.position[item, :FRONT].numpy(), middle]))
    return [np.stack(each) for each in (xs, sizes, positions)]


@pytest.mark.parametrize(("temperature", "spread"), [(0.1, 0), (0.1, 3), (0.3, 2), (0.2, 1), (0.1, 16)])
def test_against_the_formulas(temperature: float, spread: int) -> None:
    tokens, taps = given()
    found = transformed(tokens, taps, keep_ratio=0.4, temperature=temperature, spread=spread)
    wanted = by_the_formulas(tokens, taps, 6, temperature, spread)
    for ours, theirs in zip((found.x, found.sizes, found.position), wanted, strict=True):
        assert isinstance(ours, Tensor)
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-5)


def test_near_no_temperature_it_is_a_merge() -> None:
    """Every patch goes to the kept one of the most similar key alone, which holds the mean by size."""
    tokens, taps = given(1)
    found = transformed(tokens, taps, keep_ratio=0.4, temperature=1e-4, spread=0)
    unit = torch.nn.functional.normalize(taps["keys"][:, FRONT:].double(), dim=2)
    kept = taps["class_attention"][:, FRONT:].topk(6).indices.sort(dim=1).values
    for item in range(2):
        cosine = unit[item, kept[item]] @ unit[item].T
        best = cosine.topk(2, dim=0).values
        assert (best[0] - best[1]).min() > 2e-3, "nearly equal cosines: another seed"
        to, size = cosine.argmax(dim=0), tokens.sizes[item, FRONT:, 0]
        for row in range(6):
            inside = to == row
            mean = (tokens.x[item, FRONT:][inside] * size[inside, None]).sum(dim=0) / size[inside].sum()
            torch.testing.assert_close(found.x[item, FRONT + row], mean, rtol=0, atol=1e-5)
            torch.testing.assert_close(found.sizes[item, FRONT + row, 0], size[inside].sum(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("spread", [0, 1, 3])
def test_sizes_add_up_and_what_is_in_front_stays(spread: int) -> None:
    tokens, taps = given(2)
    found = transformed(tokens, taps, keep_ratio=0.3, spread=spread)
    torch.testing.assert_close(found.sizes.sum(dim=1), tokens.sizes.sum(dim=1), rtol=1e-6, atol=0)
    assert torch.equal(found.x[:, :FRONT], tokens.x[:, :FRONT])
    assert found.position is not None and tokens.position is not None
    assert torch.equal(found.position[:, :FRONT], tokens.position[:, :FRONT])


def test_patches_that_are_all_alike() -> None:
    tokens, _ = given(3)
    taps = Taps(keys=torch.ones(2, FRONT + PATCHES, 5), class_attention=torch.rand(2, FRONT + PATCHES))
    found = transformed(tokens, taps, keep_ratio=0.4, spread=2)
    assert bool(found.x.isfinite().all())
    torch.testing.assert_close(found.sizes.sum(dim=1), tokens.sizes.sum(dim=1), rtol=1e-6, atol=0)


def test_counts() -> None:
    placed = place_one(parse_spec("token_transform"), a_host(12, 197, 1))
    assert [(site.layer, site.tokens_out) for site in placed.sites] == [(3, 139), (6, 98), (9, 69)]
    assert not place_one(parse_spec("token_transform:keep_ratio=1.0"), a_host(12, 197, 1)).sites


@pytest.fixture(scope="module")
def exported() -> tuple[torch.nn.Module, onnx.ModelProto]:
    module = compress(make_vit("registers"), SPEC)
    options = TraceOptions(input_name="image", output_name="logits", max_batch=4, opset=20)
    return module, add_bodies(onnx_from_module(module, (3, 16, 16), options))


@pytest.mark.parametrize("batch", [1, 3])
def test_through_onnx_runtime(exported: tuple[torch.nn.Module, onnx.ModelProto], batch: int) -> None:
    module, model = exported
    image = images(batch)
    (found,) = session(model.SerializeToString()).run(None, {"image": image.numpy()})
    wanted = run(module, image).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_takes_it(exported: tuple[torch.nn.Module, onnx.ModelProto], target: str) -> None:
    assert not [finding for finding in preflight(exported[1], TARGETS[target]) if finding.severity == "error"]


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_an_engine_is_built(exported: tuple[torch.nn.Module, onnx.ModelProto]) -> None:
    built = build_engine(exported[1], TARGETS["rtx"], batch=BatchRange(min=1, opt=2, max=3), precision="fp32")
    assert built.data and built.record.paths["TrtcTokenMix"]["function"] >= 1


@pytest.mark.parametrize(
    ("spec", "prefix", "said"),
    [
        ("token_transform", 0, "tiny has no class token, whose attention ranks the patches; use tome"),
        ("token_transform:temperature=0", 1, "temperature=0.0 is out of range; give 0.0001 to 10000"),
        ("token_transform:spread=17", 1, "spread=17 is out of range; give 1 to 16 kept patches, or 0 for all"),
        ("token_transform:keep_ratio=1.5", 1, "keep_ratio=1.5 is out of range"),
        ("token_transform:layers=[12]", 1, r"layers=\[12\] names layer 12, but tiny has layers 0\.\.11"),
        ("token_transform:layers=[6,3]", 1, r"layers=\[6, 3\] does not ascend"),
    ],
)
def test_what_is_refused(spec: str, prefix: int, said: str) -> None:
    with pytest.raises(TrtCompressError, match=f"token_transform: .*{said}|token_transform: {said}"):
        place_one(parse_spec(spec), a_host(12, 196 + prefix, prefix))
