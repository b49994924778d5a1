"""Trained connectors behind a tower: from the command line to numpy on what transformers computes, and refusals."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file

from tests.models.tiny_towers import tiny_tower
from trt_compress.errors import ShapeError, TrtCompressError
from trt_compress.export.build import BatchRange, build_engine
from trt_compress.export.calibration import calibrate
from trt_compress.export.lower import add_bodies
from trt_compress.export.preflight import preflight
from trt_compress.export.targets import TARGETS
from trt_compress.export.trace import onnx_from_graph
from trt_compress.methods import METHODS, parse_spec
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.hosts.vision_tower import CompressedTower
from trt_compress.plugins.testing.forms import session
from trt_compress.runtime.session import Session

Array = npt.NDArray[np.float64]
Tensors = Mapping[str, Array]
WIDTH, SIDE = 16, 6


# ---- the maths in numpy ----------------------------------------------------------------------------------------------


def dense(x: Array, w: Tensors, name: str) -> Array:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def normed(x: Array, w: Tensors, name: str, eps: float) -> Array:
    spread = np.sqrt(x.var(axis=-1, keepdims=True) + eps)
    return (x - x.mean(axis=-1, keepdims=True)) / spread * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: Array) -> Array:
    from scipy.special import erf

    return np.asarray(x * 0.5 * (1 + erf(x / 2**0.5)))


def two_layers(x: Array, w: Tensors, name: str) -> Array:
    return dense(gelu(dense(x, w, f"{name}.0")), w, f"{name}.2")


def attended(query: Array, key: Array, value: Array, w: Tensors, name: str, heads: int) -> Array:
    """One query [C] over keys and values [N, C]."""
    packed, bias = w[f"{name}.in_proj_weight"], w[f"{name}.in_proj_bias"]
    q, k, v = (
        x @ packed[part * WIDTH : (part + 1) * WIDTH].T + bias[part * WIDTH : (part + 1) * WIDTH]
        for part, x in enumerate((query, key, value))
    )
    size, parts = WIDTH // heads, []
    for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        logits = k[:, at] @ q[at] / size**0.5
        weights = np.exp(logits - logits.max())
        parts.append(weights / weights.sum() @ v[:, at])
    return dense(np.concatenate(parts), w, f"{name}.out_proj")


def cells(scale: int) -> list[list[int]]:
    """The patches of each window, by rows."""
    numbers = np.arange(SIDE**2).reshape(SIDE, SIDE)
    steps = range(0, SIDE, scale)
    return [numbers[row : row + scale, column : column + scale].ravel().tolist() for row in steps for column in steps]


def tokenpacker(hidden: Sequence[Array], w: Tensors) -> Array:
    """Of one image, with windows of 2 x 2: `hidden` are the patches behind each layer, [N, C]."""
    x, several = hidden[-1], np.concatenate(hidden, axis=1)
    key = normed(two_layers(several, w, "k_proj_1"), w, "ln_k_1", 1e-6)
    value = normed(two_layers(several, w, "v_proj_1"), w, "ln_v_1", 1e-6)
    rows = []
    for cell in cells(2):
        query = normed(dense(x[cell].mean(axis=0), w, "q_proj_1"), w, "ln_q_1", 1e-6)
        rows.append(attended(query, key[cell], value[cell], w, "clip_attn", 4))
    return two_layers(np.stack(rows), w, "mlp")


def quecc(hidden: Sequence[Array], w: Tensors, question: Array) -> Array:
    """Of one image, with windows of 3 x 3, and of one question [T]."""
    several = np.concatenate(hidden, axis=1)
    text = normed(dense(question, w, "text_projection.0"), w, "text_projection.1", 1e-6)
    asked = normed(two_layers(hidden[-1] + text, w, "q_proj"), w, "q_proj.3", 1e-6)
    key, value = (normed(two_layers(several, w, part), w, f"{part}.3", 1e-6) for part in ("k_proj", "v_proj"))
    kernel, rows = w["q_downsample.weight"].reshape(WIDTH, 9), []
    for cell in cells(3):
        query = (asked[cell] * kernel.T).sum(axis=0) + w["q_downsample.bias"]
        rows.append(attended(query, key[cell], value[cell], w, "clip_attn", 4))
    return np.stack(rows)


def llava_mini(hidden: Sequence[Array], w: Tensors) -> Array:
    """Of one image, with 2 x 2 queries."""
    x, table = normed(hidden[-1], w, "compressor.ln_kv", 1e-5), w["compressor.pos_embed"]
    queries = normed(w["compressor.query"], w, "compressor.ln_q", 1e-5) + table
    up = cubic(2, SIDE)
    places = np.einsum("ir,jc,rcd->ijd", up, up, table.reshape(2, 2, WIDTH)).reshape(SIDE**2, WIDTH)
    rows = [attended(query, x + places, x, w, "compressor.attn", 4) for query in queries]
    return two_layers(np.stack(rows), w, "mm_projector")


def cubic(before: int, after: int) -> Array:
    """What a cubic resize (a = -0.75, half-pixel centres, edges repeated) takes of each place, [after, before]."""
    found = np.zeros((after, before))
    for row in range(after):
        at = (row + 0.5) * before / after - 0.5
        for place in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            far = abs(at - place)
            near = 1.25 * far**3 - 2.25 * far**2 + 1
            share = near if far <= 1 else -0.75 * (far**3 - 5 * far**2 + 8 * far - 4)
            found[row, min(max(place, 0), before - 1)] += share
    return found


# ---- the connectors, as they are tried -------------------------------------------------------------------------------


class Case(NamedTuple):
    """A connector: its options, the shapes of its tensors, what stands in front of their names, the maths, what leaves
    it, and the channels of a question.
    """

    options: str
    shapes: Mapping[str, tuple[int, ...]]
    front: str
    maths: Callable[..., Array]
    tokens: int
    width: int
    question: int = 0


def layer(name: str, inner: int, outer: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)}


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def packed(name: str) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.in_proj_weight": (3 * WIDTH, WIDTH),
        f"{name}.in_proj_bias": (3 * WIDTH,),
        **layer(f"{name}.out_proj", WIDTH, WIDTH),
    }


CASES = {
    "tokenpacker": Case(
        "layers=[0,1,2],heads=4",
        {
            "q_proj_1.weight": (WIDTH, WIDTH),
            **layer("k_proj_1.0", 3 * WIDTH, WIDTH),
            **layer("k_proj_1.2", WIDTH, WIDTH),
            **layer("v_proj_1.0", 3 * WIDTH, WIDTH),
            **layer("v_proj_1.2", WIDTH, WIDTH),
            **norm("ln_q_1"),
            **norm("ln_k_1"),
            **norm("ln_v_1"),
            **packed("clip_attn"),
            **layer("mlp.0", WIDTH, 10),
            **layer("mlp.2", 10, 10),
        },
        "model.mm_projector.",
        tokenpacker,
        9,
        10,
    ),
    "quecc": Case(
        "layers=[0,1,2],heads=4",
        {
            **layer("text_projection.0", 14, WIDTH),
            **norm("text_projection.1"),
            **layer("q_proj.0", WIDTH, WIDTH),
            **layer("k_proj.0", 3 * WIDTH, WIDTH),
            **layer("v_proj.0", 3 * WIDTH, WIDTH),
            **{name: shape for part in "qkv" for name, shape in layer(f"{part}_proj.2", WIDTH, WIDTH).items()},
            **{name: shape for part in "qkv" for name, shape in norm(f"{part}_proj.3").items()},
            "q_downsample.weight": (WIDTH, 1, 3, 3),
            "q_downsample.bias": (WIDTH,),
            **packed("clip_attn"),
        },
        "model.mm_projector.",
        quecc,
        4,
        WIDTH,
        question=14,
    ),
    "llava_mini": Case(
        "heads=4",
        {
            "compressor.query": (4, WIDTH),
            "compressor.pos_embed": (4, WIDTH),
            **packed("compressor.attn"),
            **norm("compressor.ln_q"),
            **norm("compressor.ln_kv"),
            **layer("mm_projector.0", WIDTH, 12),
            **layer("mm_projector.2", 12, 12),
        },
        "model.",
        llava_mini,
        4,
        12,
    ),
}


def test_every_connector_is_here() -> None:
    trained = {
        name for name, each in METHODS.items() if ".compressors.vision." in each.implementation and each.artifacts
    }
    assert trained == {*CASES, "h_reducer"}  # the last stands in test_tower_methods.py


class Made(NamedTuple):
    """A tower of four layers that ends behind the third, transformers' model of it, and connectors' artifacts."""

    name: str
    model: Any
    folder: Path
    specs: Mapping[str, str]
    tensors: Mapping[str, Tensors]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("connectors")
    (folder / "clip").mkdir()
    model = tiny_tower(folder / "clip", "CLIPVisionModel", num_hidden_layers=4)
    name, specs, tensors = f"hf:{folder / 'clip'}?feature_layer=-2", {}, {}
    for number, (method, case) in enumerate(CASES.items()):
        chance = torch.Generator().manual_seed(number)
        drawn = {each: 0.5 * torch.randn(shape, generator=chance) for each, shape in case.shapes.items()}
        save_file(
            {**{case.front + each: tensor for each, tensor in drawn.items()}, "lm_head.weight": torch.ones(2)},
            folder / f"{method}-trained.safetensors",
        )
        file = folder / f"{method}.safetensors"
        spec = f"{method}:{case.options}"
        found = calibrate(name, compress=spec, tensors=folder / f"{method}-trained.safetensors", output=file)
        assert found.card.settings["heads"] == 4
        specs[method] = f"{spec},weights={file}"
        tensors[method] = {each: tensor.double().numpy() for each, tensor in drawn.items()}
    return Made(name, model, folder, specs, tensors)


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 24, 24, generator=torch.Generator().manual_seed(3))


def inputs(method: str, batch: int) -> dict[str, torch.Tensor]:
    found, width = {"image": images(batch)}, CASES[method].question
    if width:
        found["question"] = torch.randn(batch, width, generator=torch.Generator().manual_seed(9))
    return found


def by_hand(made: Made, method: str, given: Mapping[str, torch.Tensor]) -> Array:
    """The tokens by numpy, of what transformers computes behind the first three layers."""
    with torch.no_grad():
        found = made.model(given["image"], output_hidden_states=True).hidden_states[1:4]
    hidden = [each[:, 1:].double().numpy() for each in found]
    asked = [(given["question"][row].double().numpy(),) if "question" in given else () for row in range(len(hidden[0]))]
    return np.stack(
        [
            CASES[method].maths([each[row] for each in hidden], made.tensors[method], *question)
            for row, question in enumerate(asked)
        ]
    )


@pytest.mark.parametrize("method", CASES)
def test_through_onnx_runtime_and_against_the_maths(made: Made, method: str) -> None:
    """The same tokens as numpy's in two batch sizes; each item as it is alone; TensorRT takes the graph."""
    case = CASES[method]
    (graph,) = load_host(made.name).attach(parse_spec(made.specs[method]))
    assert [output.shape[1:] for output in graph.outputs] == [(case.tokens, case.width), (case.tokens,)]
    model = onnx_from_graph(graph, graph.module, max_batch=4, opset=20)
    for target in ("rtx", "jetson-orin-jp6"):
        assert [one.message for one in preflight(model, TARGETS[target]) if one.severity == "error"] == []
    runner = session(add_bodies(model).SerializeToString())
    for batch in (1, 3):
        fed = inputs(method, batch)
        with torch.no_grad(), torch.device("meta"):  # nothing is made where the inputs are not
            features, size = graph.module(*fed.values())
        wanted = by_hand(made, method, fed)
        assert float(size.sum()) == pytest.approx(batch * SIDE**2)
        found = runner.run(None, {name: tensor.numpy() for name, tensor in fed.items()})
        for ours in (found[0], features.numpy()):
            np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
        np.testing.assert_allclose(found[1], size.numpy(), rtol=1e-6)
        with torch.no_grad():
            alone = graph.module(*(tensor[-1:] for tensor in fed.values()))[0]
        torch.testing.assert_close(features[-1:], alone, rtol=0, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("method", CASES)
def test_an_engine_is_built(made: Made, method: str) -> None:
    (graph,) = load_host(made.name).attach(parse_spec(made.specs[method]))
    model = add_bodies(onnx_from_graph(graph, graph.module, max_batch=3, opset=20))
    assert build_engine(model, TARGETS["rtx"], batch=BatchRange(min=1, opt=2, max=3), precision="fp32").data


@pytest.mark.parametrize("method", CASES)
def test_from_the_command_line(made: Made, method: str, tmp_path: Path, commands: Callable[..., Any]) -> None:
    """Trained tensors become an artifact, this a bundle, and that a picture of what goes where."""
    from PIL import Image

    trained, file = made.folder / f"{method}-trained.safetensors", tmp_path / "a.safetensors"
    spec = f"{method}:{CASES[method].options}"
    done = commands("calibrate", made.name, "--compress", spec, "--tensors", trained, "-o", file)
    assert done.code == 0, done.err
    full = f"{spec},weights={file}"
    bundle = tmp_path / "b"
    done = commands("export", made.name, "--compress", full, "--target", "cpu", "--batch", "1:2:3", "-o", bundle)
    assert done.code == 0, done.err
    with Session.open(bundle) as opened:
        found = opened.run({name: tensor.numpy() for name, tensor in inputs(method, 2).items()})
    wanted = by_hand(made, method, inputs(method, 2))
    np.testing.assert_allclose(found["features"], wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    picture = tmp_path / "in.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)).save(picture)
    drawn = tmp_path / "tokens.png"
    show = ("show", bundle, picture, "-o", drawn, "--model", made.name)
    beside = {name: tensor.numpy() for name, tensor in inputs(method, 1).items() if name != "image"}
    if beside:
        done = commands(*show)
        assert done.code == 2 and "show: the bundle takes question [1, 14] beside the picture" in done.err, done.err
        done = commands("run", bundle, "--source", picture)
        assert done.code == 2 and "The bundle takes image, question" in done.err, done.err
        np.savez(tmp_path / "beside.npz", **beside)  # type: ignore[arg-type]
        show = (*show, "--inputs", tmp_path / "beside.npz")
    done = commands(*show)
    assert done.code == 0 and drawn.exists(), done.err


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("tokenpacker:layers=[0,1,2]", r"tokenpacker: weights=FILE is missing; make it with `trt-compress calibrate"),
        ("tokenpacker", r"tokenpacker: hf:.* has 3 layers, too few for the usual four; give layers=\[…\]"),
        ("tokenpacker:scale=0", "scale=0 is out of range; give 1 or more"),
        ("quecc:layers=[0,1,2]", r"quecc: weights=FILE is missing; make it with `trt-compress calibrate"),
        ("quecc:layers=[2,1]", r"layers=\[2, 1\] does not ascend; write layers=\[1, 2\]"),
        ("llava_mini", r"llava_mini: weights=FILE is missing; make it with `trt-compress calibrate"),
        ("llava_mini:heads=0", "llava_mini: heads=0 is out of range; give 1 or more"),
        ("tokenpacker:heads=0", "tokenpacker: heads=0 is out of range; give 1 or more"),
        ("tokenpacker:layers=[2,1]", r"layers=\[2, 1\] does not ascend; write layers=\[1, 2\]"),
        ("tokenpacker:layers=[0,3]", r"layers=\[0, 3\] names layer 3, but hf:.* has layers 0\.\.2"),
    ],
)
def test_what_is_refused(made: Made, spec: str, said: str) -> None:
    with pytest.raises(TrtCompressError, match=said):
        load_host(made.name).attach(parse_spec(spec))


def test_another_question_is_refused(made: Made) -> None:
    """What is read beside the image has a name and a shape, which are said."""
    (graph,) = load_host(made.name).attach(parse_spec(made.specs["quecc"]))
    module = graph.module
    assert isinstance(module, CompressedTower) and module.beside == {"question": (14,)}
    for beside, said in (
        ((), r"question: none was given; hf:.* takes \[14\] \(channels\)"),
        ((torch.zeros(1, 13),), r"question: \[13\] was given; hf:.* takes \[14\] \(channels\)"),
        ((torch.zeros(1, 14),) * 2, r"image: 2 tensors were given beside it; hf:.* takes 1"),
    ):
        with pytest.raises(ShapeError, match=said):
            module(images(1), *beside)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("quecc", "layers=[1,2],heads=4", r"quecc: .* reads 48 channels of several layers, and layers=\[1, 2\] of"),
        ("llava_mini", "heads=3", "llava_mini: heads=3 does not divide 16 channels"),
        ("tokenpacker", "layers=[0,1,2],heads=3", "heads=3 does not divide 16 channels"),
        ("tokenpacker", "layers=[0,1,2],scale=4", "windows of 4 x 4 patches do not divide the grid of 6 x 6"),
        ("tokenpacker", "layers=[1,2]", r"reads 48 channels of several layers, and layers=\[1, 2\] of hf:.* give 32"),
        ("tokenpacker", "layers=[0,1,2],heads=4+divprune:num_kept=3", "divprune has already changed|needs the whole"),
    ],
)
def test_an_artifact_that_does_not_fit_is_not_made(
    made: Made, method: str, options: str, said: str, tmp_path: Path
) -> None:
    spec = f"divprune:num_kept=3+{method}:layers=[0,1,2],heads=4" if "divprune" in options else f"{method}:{options}"
    with pytest.raises(TrtCompressError, match=said):
        calibrate(
            made.name,
            compress=spec,
            tensors=made.folder / f"{method}-trained.safetensors",
            output=tmp_path / "a.safetensors",
        )
    assert not list(tmp_path.iterdir())


def test_an_artifact_for_something_else_is_refused(made: Made, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    tiny_tower(tmp_path / "clip", "CLIPVisionModel", num_hidden_layers=4, hidden_size=24)
    for method, case in CASES.items():
        with pytest.raises(TrtCompressError, match=f"{method}: weights .* was made for other weights than these"):
            load_host(f"hf:{tmp_path / 'clip'}?feature_layer=-2").attach(parse_spec(made.specs[method]))
        with pytest.raises(TrtCompressError, match=f"{method}: .* 16 channels, and 24 come of hf:"):
            calibrate(
                f"hf:{tmp_path / 'clip'}?feature_layer=-2",
                compress=f"{method}:{case.options}",
                tensors=made.folder / f"{method}-trained.safetensors",
                output=tmp_path / "a.safetensors",
            )
        with pytest.raises(TrtCompressError, match="was made for heads=4, and heads=2 is given"):
            load_host(made.name).attach(parse_spec(made.specs[method].replace("heads=4", "heads=2")))
