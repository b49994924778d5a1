"""Towers of samples of a thumbnail and crops, and GlobalCom² behind them: against the maths, through ONNX Runtime."""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.tiny_towers import tiny_tower
from trt_compress.errors import ShapeError, TrtCompressError
from trt_compress.export.build import BatchRange, build_engine
from trt_compress.export.lower import add_bodies
from trt_compress.export.preflight import preflight
from trt_compress.export.targets import TARGETS
from trt_compress.export.trace import onnx_from_graph
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.registry import load_host
from trt_compress.plugins.testing.forms import session

Array = np.ndarray[Any, np.dtype[Any]]
SIDE, PATCHES, TOLERANCE = 6, 36, 1e-4
SIZES = ((48, 48), (20, 61), (70, 33), (24, 48), (1, 200))  # height and width, with which 2 x 3 crops are padded or not


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, cls in (
        ("clip", "CLIPVisionModel"),
        ("siglip", "SiglipVisionModel"),
        ("vit", "ViTForImageClassification"),
    ):
        found[name] = tmp_path_factory.mktemp(name)
        tiny_tower(found[name], cls)
    return found


def samples(batch: int, pictures: int) -> Tensor:
    return torch.randn(batch, pictures, 3, 24, 24, generator=torch.Generator().manual_seed(3))


def graph_of(folder: Path, spec: str, crops: str = "2x3", layer: str = "&feature_layer=-2") -> Any:
    (graph,) = load_host(f"hf:{folder}?crops={crops}{layer}").attach(parse_spec(spec))
    return graph


# ---- the towers -----------------------------------------------------------------------------------------------------


def test_without_a_method_each_picture_is_as_alone(towers: dict[str, Path]) -> None:
    image = samples(2, 7)
    (alone,) = load_host(f"hf:{towers['clip']}").attach(())
    graph = graph_of(towers["clip"], "none", layer="")
    with torch.no_grad():
        features, size, place, pooled = graph.module(image)
        wanted, _, vector = alone.module(image.flatten(0, 1))
    torch.testing.assert_close(features, wanted.reshape(2, 7 * PATCHES, -1), rtol=0, atol=1e-5)
    torch.testing.assert_close(pooled, vector.reshape(2, 7, -1), rtol=0, atol=1e-5)
    assert torch.equal(size, torch.ones(2, 7 * PATCHES))
    assert place[0].tolist() == list(range(PATCHES)) + [
        PATCHES + (down * SIDE + row) * 3 * SIDE + across * SIDE + column
        for down in range(2)
        for across in range(3)
        for row in range(SIDE)
        for column in range(SIDE)
    ]
    shapes = {output.name: output.shape for output in graph.outputs}
    assert shapes == {
        "features": ("batch", 252, 16),
        "feature_size": ("batch", 252),
        "feature_place": ("batch", 252),
        "pooled": ("batch", 7, 16),
    }


@pytest.mark.parametrize(
    "spec", ["hiprune:num_kept=11,object_layer=0", "tome:num_merged=4", "visionzip:num_dominant=5"]
)
def test_a_method_acts_on_each_picture_alone(towers: dict[str, Path], spec: str) -> None:
    image = samples(2, 3)
    (alone,) = load_host(f"hf:{towers['clip']}?feature_layer=-2").attach(parse_spec(spec))
    with torch.no_grad():
        features, size, place = graph_of(towers["clip"], spec, "1x2").module(image)
        wanted, sizes = alone.module(image.flatten(0, 1))
    torch.testing.assert_close(features, wanted.reshape(2, -1, 16), rtol=0, atol=1e-5)
    torch.testing.assert_close(size, sizes.reshape(2, -1), rtol=0, atol=1e-5)
    if spec.startswith("hiprune"):  # the places are those of the kept patches
        with torch.no_grad():
            every, _, places = graph_of(towers["clip"], "none", "1x2").module(image)
        for row in range(2):
            at = {number: token for token, number in enumerate(places[row].tolist())}
            torch.testing.assert_close(features[row], every[row][[at[one] for one in place[row].tolist()]])


def test_padding_of_a_picture_goes_to_the_end(towers: dict[str, Path]) -> None:
    """Of a method that keeps as many patches as each picture has outliers."""
    spec, image = "prumerge:num_kept=12,neighbours=5,adaptive=true", samples(3, 3)
    (alone,) = load_host(f"hf:{towers['clip']}?feature_layer=-2").attach(parse_spec(spec))
    with torch.no_grad():
        features, size, place = graph_of(towers["clip"], spec, "1x2").module(image)
        wanted, sizes = alone.module(image.flatten(0, 1))
    per_picture = sizes.reshape(3, -1)
    counts = (per_picture > 0).sum(dim=1)
    assert 0 < int(counts.min()) < per_picture.shape[1]
    for row, count in enumerate(counts.tolist()):
        real = per_picture[row] > 0
        assert torch.equal(size[row, :count], per_picture[row][real]) and not size[row, count:].any()
        torch.testing.assert_close(features[row, :count], wanted.reshape(3, -1, 16)[row][real], rtol=0, atol=1e-5)
        assert (place[row, count:] == -1).all() and (place[row, :count] >= 0).all()


# ---- GlobalCom² -----------------------------------------------------------------------------------------------------


def by_hand(tower: Any, image: Tensor, size: tuple[int, int], crops: tuple[int, int], ratio: float) -> list[int]:
    """Places of the patches that are kept of one sample, from the maths, in float64 loops."""
    with torch.no_grad():
        x = tower.embed(image)
        for layer in tower.stack:
            x = x + layer.attend(x)[0]
            x = x + layer.feed(x)
        patches = x[:, tower.num_prefix :].double().numpy()
        logits: Array
        if tower.num_prefix:
            layer = tower.all_layers[-1]
            query, key, _ = (part.double().numpy() for part in layer.queries_keys_values(x))
            heads, width = layer.heads, query.shape[2] // layer.heads
            query, key = (part.reshape(*part.shape[:2], heads, width) for part in (query, key))
            logits = np.einsum("phd,pnhd->pnh", query[:, 0], key[:, 1:]).mean(axis=2) / width**0.5
        else:
            mean = patches.mean(axis=1, keepdims=True)
            unit = patches / np.linalg.norm(patches, axis=2, keepdims=True)
            logits = -(unit * mean / np.linalg.norm(mean, axis=2, keepdims=True)).sum(axis=2)
    rows, columns = crops
    thumbnail, high, wide = logits[0].reshape(SIDE, SIDE), rows * SIDE, columns * SIDE
    best = sorted(range(PATCHES), key=lambda place: -logits[0][place])[: int(PATCHES * ratio)]
    parts = np.zeros((rows, columns))
    for row in range(SIDE):
        for column in range(SIDE):
            part = min(row // (SIDE // rows), rows - 1), min(column // (SIDE // columns), columns - 1)
            parts[part] += thumbnail[row, column]
    weight = np.exp(parts / 10) / np.exp(parts / 10).sum()
    budget = np.minimum(1, ratio * (1 + weight - weight.mean()))
    height, width_ = size
    new_height = min(high, height * wide // width_)
    new_width = min(wide, width_ * high // height)
    top, left = (high - new_height) // 2, (wide - new_width) // 2
    tall, broad = high - 2 * top, wide - 2 * left

    def drawn_out(row: int, column: int) -> float:
        found = 0.0
        y = min(max((row + 0.5) * SIDE / tall - 0.5, 0), SIDE - 1)
        x_ = min(max((column + 0.5) * SIDE / broad - 0.5, 0), SIDE - 1)
        for a in (math.floor(y), math.floor(y) + 1):
            for b in (math.floor(x_), math.floor(x_) + 1):
                share = max(0, 1 - abs(y - a)) * max(0, 1 - abs(x_ - b))
                if share:
                    found += share * thumbnail[a, b]
        return found

    kept = []
    for crop in range(rows * columns):
        own, guide = {}, {}
        for place in range(PATCHES):
            row, column = crop // columns * SIDE + place // SIDE, crop % columns * SIDE + place % SIDE
            if top <= row < top + tall and left <= column < left + broad:
                own[row * wide + column] = logits[1 + crop][place]
                guide[row * wide + column] = drawn_out(row - top, column - left)
        lengths = [math.sqrt(sum(value**2 for value in each.values())) for each in (own, guide)]
        score = {place: own[place] / lengths[0] + guide[place] / lengths[1] for place in own}
        count = int(len(own) * budget[crop // columns, crop % columns])
        kept += sorted(own, key=lambda place: (-score[place], place))[:count]
    return best + [PATCHES + place for place in sorted(kept)]


@pytest.mark.parametrize("ratio", [0.25, 0.6, 1.0])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_kept_by_hand(towers: dict[str, Path], tower: str, ratio: float) -> None:
    layer = "&feature_layer=-2"
    image = samples(len(SIZES), 7)
    graph = graph_of(towers[tower], f"globalcom2:keep_ratio={ratio}", layer=layer)
    with torch.no_grad():
        features, size, place = graph.module(image, torch.tensor(SIZES))
        every, _, places = graph_of(towers[tower], "none", layer=layer).module(image)
    for row, of in enumerate(SIZES):
        wanted = by_hand(load_host(f"hf:{towers[tower]}?feature_layer=-2").module, image[row], of, (2, 3), ratio)
        there = place[row] >= 0
        assert place[row][there].tolist() == wanted, of
        assert torch.equal(there, size[row] > 0) and torch.equal(there, torch.arange(len(there)) < len(wanted))
        at = {number: token for token, number in enumerate(places[row].tolist())}
        torch.testing.assert_close(features[row][there], every[row][[at[one] for one in wanted]], rtol=0, atol=1e-5)


def test_crops_that_show_nothing_else_take_no_size(towers: dict[str, Path]) -> None:
    image = samples(2, 7)
    whole = graph_of(towers["clip"], "globalcom2:unpad=false")
    assert [given.name for given in whole.inputs] == ["image"]
    with torch.no_grad():
        found = whole.module(image)
        wanted = graph_of(towers["clip"], "globalcom2").module(image, torch.tensor([[48, 72]] * 2))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("tower", "spec"),
    [("clip", "globalcom2:keep_ratio=0.3"), ("clip", "globalcom2:order=code"), ("siglip", "globalcom2:unpad=false")],
)
def test_through_onnx_runtime(towers: dict[str, Path], tower: str, spec: str) -> None:
    graph = graph_of(towers[tower], spec)
    model = onnx_from_graph(graph, graph.module, max_batch=4, opset=20)
    for target in ("rtx", "jetson-orin-jp6"):
        assert [one.message for one in preflight(model, TARGETS[target]) if one.severity == "error"] == []
    runner = session(add_bodies(model).SerializeToString())
    for batch in (1, 3):
        fed = {"image": samples(batch, 7), "picture_size": torch.tensor(SIZES[1 : batch + 1])}
        fed = {given.name: fed[given.name] for given in graph.inputs}
        with torch.no_grad():
            wanted, alone = graph.module(*fed.values()), graph.module(*(each[-1:] for each in fed.values()))
            with torch.device("meta"):
                again = graph.module(*fed.values())
        assert all(torch.equal(a, b) for a, b in zip(again, wanted, strict=True))
        found = runner.run(None, {key: each.numpy() for key, each in fed.items()})
        assert np.array_equal(found[2], wanted[2].numpy())  # the places
        for output, ours, theirs, single in zip(graph.outputs, found, wanted, alone, strict=True):
            assert ours.shape[1:] == theirs.shape[1:] == output.shape[1:]
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=TOLERANCE)
            torch.testing.assert_close(theirs[-1:], single, rtol=0, atol=1e-5)


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_an_engine_is_built(towers: dict[str, Path]) -> None:
    graph = graph_of(towers["clip"], "globalcom2")
    model = add_bodies(onnx_from_graph(graph, graph.module, max_batch=3, opset=20))
    built = build_engine(model, TARGETS["rtx"], batch=BatchRange(min=1, opt=2, max=3), precision="fp32")
    assert built.data and built.record.paths["TrtcTokenSelect"]["function"] >= 1


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tower", "options", "spec", "said"),
    [
        ("clip", "", "globalcom2", r"globalcom2: hf:.* reads one picture a sample, .* \(hf:DIR\?crops=2x2\)"),
        ("clip", "crops=0", "none", "crops"),
        ("clip", "crops=2x2x2", "none", "rows and columns, ROWSxCOLUMNS or one number for both"),
        ("vit", "crops=2x2", "none", "crops=2x2 is for towers that give features, and this model is a classifier"),
        ("clip", "crops=2x2", "globalcom2:keep_ratio=0", "keep_ratio=0.0 is out of range; it is the share of patches"),
        ("clip", "crops=2x2", "globalcom2:order=raster", "order"),
        ("clip", "crops=2x2", "globalcom2:layer=7", r"globalcom2: layer=7 is out of range; hf:.* has layers 0\.\.2"),
        ("clip", "crops=2x2", "tome:num_merged=2+globalcom2", "globalcom2: shares a budget .*; give it alone"),
        ("clip", "crops=2x2", "hiprune+globalcom2", "globalcom2: shares a budget .*; give it alone"),
    ],
)
def test_what_is_refused(towers: dict[str, Path], tower: str, options: str, spec: str, said: str) -> None:
    with pytest.raises(TrtCompressError, match=said):
        load_host(f"hf:{towers[tower]}{'?' if options else ''}{options}").attach(parse_spec(spec))


def test_a_sample_of_another_shape_is_refused(towers: dict[str, Path]) -> None:
    graph = graph_of(towers["clip"], "globalcom2", "1x2")
    with pytest.raises(ShapeError, match=r"takes \[3, 3, 24, 24\] \(pictures, channels, height, width\)"):
        graph.module(samples(1, 4), torch.tensor([[9, 9]]))
    with pytest.raises(ShapeError, match=r"picture_size: none was given; .* takes \[2\]"):
        graph.module(samples(1, 3))
