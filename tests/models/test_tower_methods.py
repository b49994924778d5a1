"""Methods behind towers of images: through ONNX Runtime, against the maths in numpy, and what they refuse."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.test_golden_towers import behind
from tests.models.tiny_towers import tiny_tower
from trt_compress.errors import TrtCompressError
from trt_compress.export.api import export_model
from trt_compress.export.build import BatchRange, build_engine
from trt_compress.export.calibration import calibrate
from trt_compress.export.lower import add_bodies, operator_nodes
from trt_compress.export.preflight import preflight
from trt_compress.export.targets import TARGETS
from trt_compress.export.trace import onnx_from_graph
from trt_compress.methods import METHODS, parse_spec
from trt_compress.models.compressors.passing import Taps
from trt_compress.models.compressors.sites import Probe, Tap
from trt_compress.models.compressors.vision.behind import text_cosines
from trt_compress.models.compressors.vision.cdpruner import relevance, spread_by
from trt_compress.models.compressors.vision.divprune import spread
from trt_compress.models.compressors.vision.fourier import low_pass
from trt_compress.models.hosts.registry import load_host
from trt_compress.plugins.testing.forms import session
from trt_compress.runtime.session import Session

SPECS = {
    "visionzip": "visionzip:num_dominant=9,num_contextual=4",
    "vtc_cls, behind": "vtc_cls:num_kept=9,first_layer=0,behind=true",
    "prumerge": "prumerge:num_kept=6,neighbours=5",
    "prumerge, adaptive": "prumerge:num_kept=12,neighbours=5,adaptive=true",
    "prumerge_plus": "prumerge_plus:num_kept=3,neighbours=5",
    "token_corr": "token_corr:num_kept=9,alpha=0.4,early_layer=0",
    "hiprune": "hiprune:num_kept=11,alpha=0.6,object_layer=0",
    "divprune": "divprune:num_kept=7",
    "cdpruner": "cdpruner:num_kept=7,segments=2",
    "recoverable": "recoverable:num_kept=9,neighbours=5,segments=2,centre_ratio=0.2",
    "dart": "dart:num_kept=8,order=position",
    "fourier": "fourier:side=4",
    "pixel_shuffle": "pixel_shuffle:scale=3",
    "tome, then fourier's rival": "tome:num_merged=2+divprune:num_kept=7",
}


ASKED = frozenset({"cdpruner", "recoverable"})
"""Of these, the methods that read a question."""


def test_every_method_is_here() -> None:
    named = {spec.partition(":")[0] for specs in SPECS.values() for spec in specs.split("+")}
    behind_towers = {
        name
        for name, method in METHODS.items()
        if ".compressors.vision." in method.implementation and not method.artifacts
    }
    assert behind_towers <= named | {"globalcom2"}  # which is in test_crops.py; with weights in test_connectors.py


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, cls in (
        ("clip", "CLIPVisionModel"),
        ("siglip", "SiglipVisionModel"),
        ("texts", "CLIPVisionModelWithProjection"),
        ("dinov2", "Dinov2WithRegistersModel"),
    ):
        found[name] = tmp_path_factory.mktemp(name)
        tiny_tower(found[name], cls)
    return found


def texts(batch: int) -> Tensor:
    return torch.randn(batch, 2, 6, generator=torch.Generator().manual_seed(4))


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 24, 24, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", SPECS)
def test_through_onnx_runtime(towers: dict[str, Path], name: str) -> None:
    """The same tokens of the same patches in two batch sizes; each item as it is alone; TensorRT takes the graph."""
    tower = towers["texts" if name in ASKED else "clip"]
    (graph,) = load_host(f"hf:{tower}?feature_layer=-2").attach(parse_spec(SPECS[name]))
    assert [given.name for given in graph.inputs] == ["image", *(["text"] if name in ASKED else [])]
    model = onnx_from_graph(graph, graph.module, max_batch=4, opset=20)
    assert operator_nodes(model)["TrtcTokenSelect"] >= (name not in ("fourier", "pixel_shuffle"))
    for target in ("rtx", "jetson-orin-jp6"):
        assert [one.message for one in preflight(model, TARGETS[target]) if one.severity == "error"] == []
    runner = session(add_bodies(model).SerializeToString())
    for batch in (1, 3):
        fed = {"image": images(batch), **({"text": texts(batch)} if name in ASKED else {})}
        with torch.no_grad():
            wanted, alone = graph.module(*fed.values()), graph.module(*(each[-1:] for each in fed.values()))
            with torch.device("meta"):  # nothing is made where the inputs are not
                again = graph.module(*fed.values())
        assert all(torch.equal(a, b) for a, b in zip(again, wanted, strict=True))
        found = runner.run(None, {key: each.numpy() for key, each in fed.items()})
        for ours, theirs, single in zip(found, wanted, alone, strict=True):
            assert ours.shape[1:] == theirs.shape[1:]
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-4)
            torch.testing.assert_close(theirs[-1:], single, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tower", ["siglip", "dinov2"])
@pytest.mark.parametrize("name", ["visionzip", "hiprune", "divprune", "dart", "fourier", "pixel_shuffle"])
def test_without_a_class_token_and_with_registers(towers: dict[str, Path], tower: str, name: str) -> None:
    (graph,) = load_host(f"hf:{towers[tower]}").attach(parse_spec(SPECS[name]))
    with torch.no_grad():
        features, size, _ = graph.module(images(2))
    assert list(features.shape[1:]) == list(graph.outputs[0].shape[1:])
    one_more = name == "visionzip" and tower == "dinov2"  # the class token is among what is handed on
    if name in ("visionzip", "fourier", "pixel_shuffle"):
        assert torch.allclose(size.sum(dim=1), torch.full((2,), 36.0 + one_more), atol=1e-4)


@pytest.fixture(scope="module")
def bundle(towers: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    name, folder = f"hf:{towers['clip']}?feature_layer=-2", tmp_path_factory.mktemp("bundle") / "b"
    result = export_model(name, compress=SPECS["visionzip"], output=folder, targets=["cpu", "rtx"], batch="1:2:3")
    assert result.manifest.verification is not None and result.manifest.verification.passed
    yield name, folder


def test_a_bundle_runs_without_torch(bundle: tuple[str, Path]) -> None:
    name, folder = bundle
    with torch.no_grad():
        wanted = load_host(name).attach(parse_spec(SPECS["visionzip"]))[0].module(images(2))
    with Session.open(folder) as opened:
        found = opened.run({"image": images(2).numpy()})
    np.testing.assert_allclose(found["features"], wanted[0].numpy(), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found["feature_size"], wanted[1].numpy())
    assert found["feature_size"].sum(axis=1).tolist() == [37.0, 37.0]


def test_a_connector_with_weights(towers: dict[str, Path], tmp_path: Path) -> None:
    """Its artifact is made of trained tensors for this tower, travels with the graph and is refused for another."""
    from safetensors.torch import save_file

    chance = torch.Generator().manual_seed(0)
    shapes = {
        "reducer_before.0.weight": (32, 16, 1, 2),
        "reducer_before.0.bias": (32,),
        "reducer.weight": (16, 16, 1, 2),
        "reducer.bias": (16,),
        "visual_fc.weight": (10, 16),
        "visual_fc.bias": (10,),
        "vit_eos": (1, 1, 10),
    }
    tensors = {f"model.vision2text.{name}": torch.randn(shape, generator=chance) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "trained.safetensors")
    file = tmp_path / "h.safetensors"
    calibrate(f"hf:{towers['clip']}", compress="h_reducer", tensors=tmp_path / "trained.safetensors", output=file)
    (graph,) = load_host(f"hf:{towers['clip']}").attach(parse_spec(f"h_reducer:weights={file}"))
    assert [output.shape for output in graph.outputs[:2]] == [("batch", 19, 10), ("batch", 19)]
    model = onnx_from_graph(graph, graph.module, max_batch=4, opset=20)
    with torch.no_grad():
        wanted = graph.module(images(2))
    found = session(add_bodies(model).SerializeToString()).run(None, {"image": images(2).numpy()})
    np.testing.assert_allclose(found[0], wanted[0].numpy(), rtol=0, atol=1e-4 * float(wanted[0].abs().max()))
    with pytest.raises(TrtCompressError, match="h_reducer: weights .* was made for"):
        load_host(f"hf:{towers['dinov2']}").attach(parse_spec(f"h_reducer:weights={file}"))


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize(
    ("tower", "name", "operator"),
    [
        ("clip", "prumerge_plus", "TrtcTokenMix"),
        ("clip", "token_corr", "TrtcTokenMix"),
        ("texts", "cdpruner", "TrtcTokenSelect"),
        ("texts", "recoverable", "TrtcTokenMix"),
    ],
)
def test_an_engine_is_built(towers: dict[str, Path], tower: str, name: str, operator: str) -> None:
    (graph,) = load_host(f"hf:{towers[tower]}?feature_layer=-2").attach(parse_spec(SPECS[name]))
    model = add_bodies(onnx_from_graph(graph, graph.module, max_batch=3, opset=20))
    built = build_engine(model, TARGETS["rtx"], batch=BatchRange(min=1, opt=2, max=3), precision="fp32")
    assert built.data and built.record.paths[operator]["function"] >= 1


# ---- against the maths -----------------------------------------------------------------------------------------------


def given(patches: int = 36, batch: int = 2, heads: int = 2) -> tuple[Taps, Tensor, dict[str, np.ndarray[Any, Any]]]:
    """Tokens of a tower and what its layers would give of them, at random."""
    chance = np.random.default_rng(5)
    count = patches + 1
    hidden = chance.normal(size=(batch, count, 12))
    query, key = (chance.normal(size=(batch, heads, count, 6)) for _ in range(2))
    logits = np.einsum("bhqd,bhkd->bhqk", query, key) / 6**0.5
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    other = np.exp(chance.normal(size=weights.shape))
    arrays = {"hidden": hidden, "query": query, "key": key, "weights": weights}
    arrays["early"] = other / other.sum(axis=-1, keepdims=True)
    tensors = {name: torch.from_numpy(array).float() for name, array in arrays.items()}
    taps = Taps()
    probe = Tap(kind="probe_scores", layer=0, probe=Probe()).asked
    taps.put(
        1,
        {
            "class_attention": tensors["weights"][:, :, 0].mean(dim=1),
            "keys": tensors["key"].mean(dim=1),
            Tap(kind="keys", layer=0, heads="each").asked: tensors["key"],
            Tap(kind="queries", layer=0, heads="each").asked: tensors["query"],
            probe: tensors["weights"].mean(dim=(1, 2)),
        },
    )
    taps.put(
        0,
        {
            "class_attention": tensors["early"][:, :, 0].mean(dim=1),
            Tap(kind="keys", layer=0, heads="each").asked: tensors["key"],
            probe: tensors["early"].mean(dim=(1, 2)),
        },
    )
    return taps, tensors["hidden"], arrays


def cosines(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    x, y = (each / np.linalg.norm(each, axis=-1, keepdims=True) for each in (x, y))
    return np.asarray(x @ np.swapaxes(y, -1, -2))


def near(found: Tensor, wanted: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_visionzip_by_hand() -> None:
    taps, hidden, a = given()
    _, found = behind("visionzip", taps, hidden, depth=2, num_dominant=9, num_contextual=5)
    for row in range(2):
        x, score = a["hidden"][row], a["weights"][row, :, 0].sum(axis=0)[1:]
        dominant = np.sort(np.argsort(-score, kind="stable")[:8])
        rest = np.setdiff1d(np.arange(36), dominant)
        metric = a["key"][row].mean(axis=0)[1:][rest]
        targets = list(range(0, len(rest), len(rest) // 5))[:5]
        groups: list[list[int]] = [[] for _ in targets]
        for place in range(len(rest)):
            if place not in targets:
                groups[int(cosines(metric[place], metric[targets]).argmax())].append(place)
        contextual = [
            x[1 + rest[target]] + (x[1 + rest[group]].mean(axis=0) if group else 0)
            for target, group in zip(targets, groups, strict=True)
        ]
        near(found.x[row], np.concatenate([x[:1], x[1 + dominant], contextual]))
        assert found.sizes[row, 9:, 0].tolist() == [1.0 + len(group) for group in groups]


@pytest.mark.parametrize("plus", [False, True])
def test_prumerge_by_hand(plus: bool) -> None:
    taps, hidden, a = given()
    method = "prumerge_plus" if plus else "prumerge"
    _, found = behind(method, taps, hidden, depth=2, num_kept=4, neighbours=7)
    for row in range(2):
        q, k = (np.concatenate(list(a[name][row]), axis=-1) for name in ("query", "key"))
        logits = k @ q[0] / 12**0.5
        attention = (np.exp(logits) / np.exp(logits).sum())[1:]
        kept = list(np.argsort(-attention, kind="stable")[:4])
        if plus:
            kept += [place for place in range(0, 35, int(int(1 / (4 / 36)) / 3)) if place not in kept]
        x, likeness = a["hidden"][row, 1:], cosines(k[1:], k[1:])
        wanted = []
        for place in kept:
            others = [other for other in np.argsort(-likeness[place], kind="stable") if other != place][:7]
            wanted.append(x[place] + attention[others] @ x[others])
        gone = [place for place in range(36) if place not in kept]
        wanted.append(attention[gone] @ x[gone])
        near(found.x[row, 1 : 1 + len(wanted)], np.stack(wanted))
        valid = np.ones(found.x.shape[1], bool) if found.valid is None else found.valid[row].numpy()
        assert valid.sum() == 1 + len(wanted) and bool(valid[: 1 + len(wanted)].all())


def test_prumerge_takes_as_many_as_there_are_outliers() -> None:
    taps, hidden, a = given(patches=100)
    _, found = behind("prumerge", taps, hidden, depth=2, num_kept=30, neighbours=3, adaptive=True)
    assert found.valid is not None
    for row in range(2):
        q, k = (np.concatenate(list(a[name][row]), axis=-1) for name in ("query", "key"))
        attention = np.exp(k @ q[0] / 12**0.5)[1:] / np.exp(k @ q[0] / 12**0.5).sum()
        low, high = np.percentile(attention, [25, 75])
        count = int((attention > high + 1.5 * (high - low)).sum())
        assert int(found.valid[row].sum()) == 2 + count and 0 < count < 30


@pytest.mark.parametrize(("alpha", "beta", "limit"), [(0.2, 0.1, 30), (0.2, 0.1, 8), (0.0, 0.0, 12), (1.0, 0.0, 36)])
def test_token_corr_by_hand(alpha: float, beta: float, limit: int) -> None:
    """The early attention as many as do not repeat, outliers of the late one, and the rest in what is nearest."""
    taps, hidden, a = given()
    options = {"num_kept": limit, "alpha": alpha, "beta": beta, "early_layer": 0}
    _, found = behind("token_corr", taps, hidden, depth=2, **options)
    assert found.valid is not None
    for row in range(2):
        x, key = a["hidden"][row, 1:], np.concatenate(list(a["key"][row]), axis=-1)[1:]
        likeness = cosines(key, key)
        early, late = (a[name][row, :, 0].mean(axis=0)[1:] for name in ("early", "weights"))
        distinct = int(((likeness > alpha).sum(axis=1) - 1 <= beta * 36).sum())
        low, high = np.percentile(late, [25, 75])
        wanted = [place for place in np.argsort(-late, kind="stable") if late[place] > high + 1.5 * (high - low)]
        wanted += [place for place in np.argsort(-early, kind="stable")[:distinct] if place not in wanted]
        kept = np.sort((wanted or [int(late.argmax())])[:limit])
        out, size = x[kept].copy(), np.ones(len(kept))
        for place in np.setdiff1d(np.arange(36), kept):
            to = int(likeness[place, kept].argmax())
            out[to] += late[place] * x[place]
            size[to] += 1
        assert found.valid[row].tolist() == [True] * (1 + len(kept)) + [False] * (limit - len(kept))
        near(found.x[row, : 1 + len(kept)], np.concatenate([a["hidden"][row, :1], out]))
        assert found.sizes[row, 1 : 1 + len(kept), 0].tolist() == size.tolist()


def test_token_corr_keeps_one_of_an_image_that_is_the_same_everywhere() -> None:
    """Nothing is distinct and nothing stands out: the first patch stands for all of them."""
    taps, hidden, _ = given()
    for layer in range(2):
        taps.put(layer, {"class_attention": torch.full((2, 37), 1 / 37)})
    taps.put(0, {Tap(kind="keys", layer=0, heads="each").asked: torch.ones(2, 2, 37, 6)})
    _, found = behind("token_corr", taps, hidden, depth=2, num_kept=5, early_layer=0)
    assert found.valid is not None and found.valid.sum(dim=1).tolist() == [2, 2]
    assert found.sizes[:, 1, 0].tolist() == [36.0, 36.0]


def test_hiprune_by_hand() -> None:
    taps, hidden, a = given()
    _, found = behind("hiprune", taps, hidden, depth=2, num_kept=14, alpha=0.7, object_layer=0)
    for row in range(2):
        early = a["early"][row].mean(axis=(0, 1))[1:]
        late = a["weights"][row].mean(axis=(0, 1))[1:].copy()
        anchors = np.argsort(-early, kind="stable")[: round(14 * 0.7 / 5)]
        chosen = np.unique(np.clip(np.concatenate([anchors + step for step in (0, -1, 1, -6, 6)]), 0, 35))
        late[chosen] = -1
        more = np.argsort(-late, kind="stable")[: 14 - len(chosen)]
        kept = np.sort(np.concatenate([chosen, more]))
        assert len(kept) == 14
        near(found.x[row, 1:], a["hidden"][row, 1 + kept])


def test_divprune_by_hand() -> None:
    _, hidden, a = given()
    for row in range(2):
        far = 1 - cosines(a["hidden"][row], a["hidden"][row])
        np.fill_diagonal(far, 9)
        chosen = [int(far.min(axis=1).argmax())]
        for _ in range(10):
            chosen.append(int(np.where(np.isin(np.arange(37), chosen), -1, far[chosen].min(axis=0)).argmax()))
        assert spread(hidden, 11)[row].nonzero()[:, 0].tolist() == sorted(chosen)
    same = torch.ones(1, 5, 3)
    assert spread(same, 3).tolist() == [[1, 1, 1, 0, 0]]  # of equally far ones the first, and none twice
    assert spread(same, 5).sum() == 5


def test_cdpruner_by_hand() -> None:
    """Each time the patch with which the determinant of the kernel is largest, by numpy's determinants."""
    _, hidden, _ = given()
    chance = np.random.default_rng(7)
    space, words = chance.normal(size=(2, 36, 6)), chance.normal(size=(2, 2, 6))
    taps = Taps()
    tensors = [torch.from_numpy(array).float() for array in (space, words)]
    prefixed = torch.nn.functional.pad(tensors[0], (0, 0, 1, 0))
    taps.put(2, {"text_space": prefixed, Tap(kind="texts", layer=2, rows=2).asked: tensors[1]})
    _, found = behind("cdpruner", taps, hidden, depth=2, num_kept=9, segments=2)
    for row in range(2):
        x = hidden[row, 1:].double().numpy()
        about = -cosines(space[row], words[row]).mean(axis=1)
        relevant = (about - about.min() + 1e-6) / (about.max() - about.min())
        kernel = relevant[:, None] * cosines(x, x) * relevant
        chosen: list[int] = []
        for _ in range(9):
            gains = {
                place: np.linalg.det(kernel[np.ix_([*chosen, place], [*chosen, place])])
                for place in range(36)
                if place not in chosen
            }
            chosen.append(max(gains, key=lambda place: gains[place]))
        near(found.x[row, 1:], x[np.sort(chosen)])


@pytest.mark.parametrize(("limit", "channels"), [(40, 12), (3, 12), (40, 60)])
def test_recoverable_by_hand(limit: int, channels: int) -> None:
    """Outliers of attention, then of the likeness to the text, then clusters; with a limit and without."""
    taps, hidden, a = given(patches=100)
    chance = np.random.default_rng(8)
    hidden = hidden.repeat(1, 1, channels // 12)
    space, words = chance.normal(size=(2, 101, 6)) ** 3, chance.normal(size=(2, 1, 6))
    space[1, 7] = 9 * words[1, 0]
    taps.put(2, {"text_space": torch.from_numpy(space).float(), "texts": torch.from_numpy(words).float()})
    _, found = behind("recoverable", taps, hidden, depth=2, num_kept=limit, neighbours=6, centre_ratio=0.5)
    assert found.valid is not None
    for row in range(2):
        x = hidden[row, 1:].double().numpy()
        q, k = (np.concatenate(list(a[name][row]), axis=-1) for name in ("query", "key"))
        attention = (np.exp(k @ q[0] / 12**0.5) / np.exp(k @ q[0] / 12**0.5).sum())[1:]
        text = cosines(space[row, 1:], words[row])[:, 0] / 6**0.5
        seen = list(np.argsort(-attention, kind="stable")[: min(stand_out(attention, 20), limit)])
        unseen = text.copy()
        unseen[seen] = text.min()
        about = min((100 - len(seen)) * stand_out(unseen, 20) // 100, limit - len(seen))
        kept = sorted([*seen, *np.argsort(-unseen, kind="stable")[:about]])
        rest = np.setdiff1d(np.arange(100), kept)
        number = channels * stand_out(attention[rest], 10) // len(rest)
        centres = rest[np.argsort(-attention[rest], kind="stable")][:number]
        wanted = [x[kept]]
        for centre in centres:
            likeness = cosines(k[1:][rest], k[1 + centre][None])[:, 0] + 50 * text[rest]
            others = [other for other in rest[np.argsort(-likeness, kind="stable")] if other != centre][:6]
            wanted.append((x[centre] + attention[others] @ x[others])[None])
        alone = np.setdiff1d(rest, centres)
        whole = np.concatenate([*wanted, (attention[alone] @ x[alone])[None]])
        assert int(found.valid[row].sum()) == 1 + len(whole)
        near(found.x[row, 1 : 1 + len(whole)], whole)
        assert float(found.sizes[row, len(whole)]) == len(alone)
        assert (about > 0 or row == 0 or limit == 3) and (number > 0 or channels == 12)


def stand_out(values: np.ndarray[Any, Any], neighbours: int) -> int:
    """How many of these are local outliers: at least half as far again from their neighbours as these from theirs."""
    far = np.abs(values[:, None] - values)
    np.fill_diagonal(far, np.inf)
    nearest = np.argsort(far, axis=1, kind="stable")[:, :neighbours]
    reach = np.sort(far, axis=1)[:, neighbours - 1]
    density = [1 / (np.maximum(reach[at], far[place, at]).mean() + 1e-10) for place, at in enumerate(nearest)]
    return int(
        sum(np.mean([density[other] for other in at]) > 1.5 * own for own, at in zip(density, nearest, strict=True))
    )


def test_cdpruner_where_patches_repeat() -> None:
    """What is alike is kept last, by relevance; without a question all patches count alike."""
    x = torch.eye(3).repeat(1, 2, 1)
    relevant = torch.tensor([[0.1, 0.9, 0.8, 0.7, 0.2, 0.3]])
    assert spread_by(x, relevant, 3).tolist() == [[0, 1, 1, 1, 0, 0]]
    assert spread_by(x, relevant, 4).tolist() == [[0, 1, 1, 1, 0, 1]]
    assert spread_by(x, relevant, 6).sum() == 6
    nothing = text_cosines(torch.randn(1, 6, 4), torch.zeros(1, 2, 4))
    assert relevance(nothing).tolist() == [[1.0] * 6]


@pytest.mark.parametrize("order", ["norm", "position"])
def test_dart_by_hand(order: str) -> None:
    taps, hidden, a = given()
    _, found = behind("dart", taps, hidden, depth=2, num_kept=10, pivots=3, order=order)
    for row in range(2):
        norm = np.abs(a["key"][row]).sum(axis=(0, 2))[1:]
        pivots = list(np.argsort(-norm, kind="stable")[:3])
        kept = list(pivots)
        likeness = cosines(a["hidden"][row, 1:], a["hidden"][row, 1:])
        for pivot in pivots if order == "norm" else sorted(pivots):
            left = [place for place in np.argsort(likeness[pivot], kind="stable") if place not in kept]
            kept += left[:3]
        near(found.x[row, 1:], a["hidden"][row, 1 + np.sort(kept)])


def test_low_frequencies() -> None:
    """Against scipy's transforms, and what becomes of a constant map."""
    from scipy.fft import dctn, idctn

    x = np.random.default_rng(0).normal(size=(2, 5, 9, 3))
    kept: Any = dctn(x, axes=(1, 2), norm="ortho")
    back: Any = idctn(kept[:, :3, :4], axes=(1, 2), norm="ortho")
    wanted = back.reshape(2, 12, 3)
    rows = torch.from_numpy(x).float().reshape(2, 45, 3)
    near(low_pass((5, 9), (3, 4)) @ rows, wanted)
    near(low_pass((5, 9), (3, 4), "constant") @ torch.ones(45, 1), np.ones((12, 1)))
    near(low_pass((5, 9), (3, 4), "none") @ torch.ones(45, 1), np.full((12, 1), 45 / 12))
    near(low_pass((5, 9), (5, 9)), np.eye(45))


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tower", "spec", "said"),
    [
        ("siglip", "prumerge", "prumerge: hf:.* has no class token, whose attention ranks the patches"),
        ("siglip", "prumerge_plus", "prumerge_plus: hf:.* has no class token"),
        (
            "clip",
            "prumerge:num_kept=37",
            "num_kept=37 is too large for the 36 patches that hf:.* gives; give at most 36",
        ),
        ("clip", "prumerge:layer=4", r"layer=4 is out of range; hf:.* has layers 0\.\.2"),
        ("clip", "visionzip", "num_dominant=54 and num_contextual=10 are too many for the 36 patches"),
        ("clip", "visionzip:layer=3,num_dominant=4", r"visionzip: layer=3 is out of range; hf:.* has layers 0\.\.2"),
        ("clip", "visionzip:num_contextual=0", "num_contextual=0 is out of range; give 1 or more"),
        ("clip", "hiprune:alpha=1.5", "alpha=1.5 is out of range; it is a share, 0 to 1"),
        ("clip", "hiprune:object_layer=3", r"object_layer=3 is out of range; hf:.* has layers 0\.\.2"),
        ("clip", "hiprune:num_kept=3,alpha=1.0", "asks for 1 anchors with their neighbours, more than the 3 patches"),
        (
            "clip",
            "tome:num_merged=3+fourier",
            r"it needs the whole grid of 6 x 6 patches, and 27 come to it; leave out",
        ),
        ("clip", "fourier:side=7", "side=7 is larger than the grid of 6 x 6 patches; give at most 6"),
        ("clip", "fourier:ratio=0", "ratio=0.0 is out of range"),
        ("clip", "pixel_shuffle:scale=4", "scale=4 does not divide the grid of 6 x 6 patches"),
        ("clip", "pixel_shuffle+divprune:num_kept=3+hiprune", "divprune has already changed|needs the whole grid"),
        ("clip", "divprune:num_kept=3+visionzip:num_dominant=2,num_contextual=1", "divprune has already changed"),
        ("clip", "dart:num_kept=40", "num_kept=40 beside 4 pivots is too large for the 36 patches"),
        ("clip", "h_reducer", "h_reducer: weights=FILE is missing; make it with `trt-compress calibrate"),
        ("siglip", "token_corr", "token_corr: hf:.* has no class token, whose attention ranks the patches"),
        ("clip", "token_corr:early_layer=3", r"token_corr: early_layer=3 is out of range; hf:.* has layers 0\.\.2"),
        ("clip", "token_corr:num_kept=40", "num_kept=40 is too large for the 36 patches that hf:.* gives"),
        ("clip", "token_corr:alpha=2", "alpha=2.0 is out of range; it is a cosine, -1 to 1"),
        ("clip", "token_corr:beta=1.5", "beta=1.5 is out of range; it is a share of the patches, 0 to 1"),
        ("clip", "cdpruner", "cdpruner: hf:.* has no projection to a space of texts, .* take a CLIP that has one"),
        ("siglip", "cdpruner", "cdpruner: hf:.* has no projection to a space of texts"),
        ("texts", "cdpruner:num_kept=37", "num_kept=37 is too large for the 36 patches that hf:.* gives"),
        ("texts", "cdpruner:segments=0", "segments=0 is out of range; give 1 or more"),
        ("clip", "recoverable", "recoverable: hf:.* has no projection to a space of texts"),
        ("siglip", "recoverable", "recoverable: hf:.* has no class token"),
        ("texts", "recoverable:num_kept=35", "35 of the 36 patches that hf:.* gives may be kept, .* keep 34 at most"),
        ("texts", "recoverable:centre_ratio=0", "centre_ratio=0.* is out of range; it is a share of the patches"),
        ("texts", "recoverable:neighbours=0", "recoverable: neighbours=0 is out of range; give 1 or more"),
        ("texts", "divprune:num_kept=9+recoverable", "recoverable: .* divprune has already changed the tokens"),
        ("texts", "divprune:num_kept=9+cdpruner:num_kept=3", "cdpruner: .* divprune has already changed the tokens"),
        ("clip", "dart:pivots=0", "pivots=0 is out of range"),
        ("clip", "divprune:keep_ratio=1.5", "divprune: keep_ratio=1.5 is out of range; it is the share of patches"),
    ],
)
def test_what_is_refused(towers: dict[str, Path], tower: str, spec: str, said: str) -> None:
    with pytest.raises(TrtCompressError, match=said):
        load_host(f"hf:{towers[tower]}").attach(parse_spec(spec))


def test_an_image_classifier_has_no_place_for_them() -> None:
    with pytest.raises(TrtCompressError, match="divprune: acts at encoder_output, but .* offers only after_attention"):
        load_host("zoo:digits_vit").attach(parse_spec("divprune:num_kept=3"))
