"""Verification: every way of breaking an ONNX file is noticed and named; a near tie is counted and forgiven."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from trt_compress.errors import ConfigError, GateError, ShapeError
from trt_compress.export.api import export_model, verify
from trt_compress.export.bundle import write_bundle
from trt_compress.export.compare import TOLERANCE
from trt_compress.export.lower import add_bodies
from trt_compress.export.precision import with_precision
from trt_compress.export.recipe import read_recipe
from trt_compress.export.sample_inputs import make_inputs, read_inputs
from trt_compress.export.trace import TraceOptions, onnx_from_module
from trt_compress.export.verify import verify_onnx
from trt_compress.export.verify_report import VerifyReport
from trt_compress.format.bundle import Bundle
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.base import GraphSpec, TensorSpec
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.hosts.timm_vit import CompressedViT, attach
from trt_compress.models.zoo.data.digits import digits_split
from trt_compress.models.zoo.digits_vit.model import WEIGHTS_FILE

Exported = Callable[..., Path]
Break = Callable[[onnx.ModelProto], None]
TOME, EVIT = "tome:num_merged=4", "evit:keep_ratio=0.7"


@cache
def digits(spec: str, precision: str = "fp32") -> CompressedViT:
    """digits_vit with compressors; each precision has its own, for half precision converts in place."""
    return attach(load_host("zoo:digits_vit").module, parse_spec(spec)).eval()


def digits_graph(module: CompressedViT) -> GraphSpec:
    return GraphSpec(
        module=module,
        inputs=(TensorSpec(name="image", shape=("batch", 1, 8, 8)),),
        outputs=(TensorSpec(name="logits", shape=("batch", 10)),),
    )


def random_images(count: int) -> np.ndarray[Any, Any]:
    ((step,),) = make_inputs(digits_graph(digits(TOME)), [{"batch": count}])
    return step["image"]


def compare(
    model: onnx.ModelProto,
    folder: Path,
    *,
    spec: str = TOME,
    precision: str = "fp32",
    module: CompressedViT | None = None,
    inputs: Sequence[Any] | None = None,
) -> VerifyReport:
    """Verify `model`, which may be broken, against digits_vit with `spec`."""
    module = module or digits(spec, precision)
    onnx.save_model(model, folder / "model.onnx")
    return verify_onnx(
        folder / "model.onnx",
        with_precision(module, precision),
        graph=digits_graph(module),
        inputs=[
            [{"image": array}]
            for array in ([digits_split().test_images[:count] for count in (1, 3)] if inputs is None else inputs)
        ],
        inputs_label="test",
        precision=precision,
    )


# ---- ways to break a graph ------------------------------------------------------------------------------------------


def weight(name: str, change: Callable[[Any], Any]) -> Break:
    def apply(model: onnx.ModelProto) -> None:
        wanted = matrix_before(model, name) if name.endswith(".bias matrix") else name
        tensor = next(item for item in model.graph.initializer if wanted in item.name)
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(change(value).astype(value.dtype), tensor.name))

    return apply


def matrix_before(model: onnx.ModelProto, name: str) -> str:
    """Name of the matrix whose product the bias `name` is added to; the exporter transposes and renames matrices."""
    bias = name.removesuffix(" matrix")
    add = next(node for node in model.graph.node if any(bias in value for value in node.input))
    product = next(node for node in model.graph.node if node.output[0] in add.input and node.op_type == "MatMul")
    return str(product.input[1])


def one_element(value: Any) -> Any:
    changed = value.copy()
    changed.flat[np.abs(value).argmax()] *= -1
    return changed


def attribute(node_name: str, name: str, value: int) -> Break:
    def apply(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.name == node_name)
        next(item for item in node.attribute if item.name == name).i = value

    return apply


def body(output: str, op_type: str, *inputs: str, **attributes: Any) -> Break:
    """Compute a value inside the function body in another way."""

    def apply(model: onnx.ModelProto) -> None:
        node = next(node for node in model.functions[0].node if output in node.output)
        node.CopyFrom(helper.make_node(op_type, inputs, [output], **attributes))

    return apply


def on_logits(op_type: str, *more: np.ndarray[Any, Any]) -> Break:
    """Put one more node behind the output."""

    def apply(model: onnx.ModelProto) -> None:
        last = next(node for node in model.graph.node if "logits" in node.output)
        last.output[:] = ["before"]
        names = [f"more_{index}" for index in range(len(more))]
        values = zip(more, names, strict=True)
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for value, name in values)
        model.graph.node.append(helper.make_node(op_type, ["before", *names], ["logits"]))
        del model.graph.output[0].type.tensor_type.shape.dim[:]

    return apply


def nameless_site(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for values in node.input, node.output:
            values[:] = ["gone" if value == "blocks.2/tokens" else value for value in values]


def renamed_operators(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = f"x_{node.name}"


BREAKS: dict[str, tuple[str, Break, str]] = {
    "a weight before a site": (TOME, weight("blocks.3.mlp.fc1.bias matrix", one_element), "blocks.4 (tome, batch 1)"),
    "a bias by a tenth": (TOME, weight("blocks.0.attn.proj.bias", lambda v: v * 1.1), "blocks.0 (tome, batch 1)"),
    "a weight behind all sites": (TOME, weight("head.weight", one_element), "output logits (batch 1)"),
    "a NaN weight": (TOME, weight("blocks.1.norm1.weight", lambda v: v * np.nan), "blocks.1 (tome, batch 1)"),
    "fewer merges": (TOME, attribute("blocks.2/TokenMerge", "num_merged", 3), "blocks.2 (tome, batch 1)"),
    "protection": (TOME, attribute("blocks.2/TokenMerge", "num_protected", 0), "blocks.2 (tome, batch 1)"),
    "order attribute": (TOME, attribute("blocks.2/TokenMerge", "order", 1), "blocks.2 (tome, batch 1)"),
    "mean becomes sum": (TOME, body("share_b", "Div", "size_b", "size_b"), "blocks.0 (tome, batch 1)"),
    "sizes forgotten": (TOME, body("total_size", "Identity", "size_b"), "blocks.0 (tome, batch 1)"),
    "swapped order": (TOME, body("y", "Concat", "x_head", "y_b", "x_unmerged", axis=1), "blocks.0 (tome, batch 1)"),
    "least similar": (TOME, body("is_more", "Less", "best_j", "best_i"), "blocks.0 (tome, batch 1)"),
    "worst partner": (TOME, body("best_kept", "ReduceMin", "similarity", "v2"), "blocks.0 (tome, batch 1)"),
    "operators under other names": (TOME, renamed_operators, "blocks.0 (tome, batch 1)"),
    "a site without its name": (TOME, nameless_site, "blocks.2 (tome, batch 1)"),
    "scaled output": (TOME, on_logits("Mul", np.array(1.001, np.float32)), "output logits (batch 1)"),
    "shifted output": (TOME, on_logits("Add", np.array(0.02, np.float32)), "output logits (batch 1)"),
    "output of another shape": (
        TOME,
        on_logits("Slice", np.array([0]), np.array([9]), np.array([1])),
        "output logits (batch 1)",
    ),
    "kept by another order": (EVIT, attribute("blocks.4/TokenSelect", "order", 0), "blocks.4 (evit, batch 1)"),
    "fewer kept": (EVIT, attribute("blocks.2/TokenSelect", "num_kept", 40), "blocks.2 (evit, batch 1)"),
    "remainder dropped": (EVIT, attribute("blocks.2/TokenSelect", "remainder", 0), "blocks.2 (evit, batch 1)"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_graph_fails_and_the_first_divergence_is_named(name: str, exported: Exported, tmp_path: Path) -> None:
    spec, apply, first = BREAKS[name]
    model = onnx.load(exported(spec) / "model.onnx")
    apply(model)
    report = compare(model, tmp_path, spec=spec)
    assert not report.passed
    assert report.first_divergence == first


@pytest.mark.parametrize("spec", [TOME, EVIT])
def test_an_unbroken_graph_passes_at_every_batch_size(spec: str, exported: Exported, tmp_path: Path) -> None:
    report = compare(onnx.load(exported(spec) / "model.onnx"), tmp_path, spec=spec)
    assert report.passed and report.first_divergence is None
    assert [check.batch for check in report.outputs] == [1, 3]
    assert all(check.indices_equal and check.ties == 0 and check.relative_error < 1e-4 for check in report.sites)
    assert all(site.tokens_out == site.tokens_out_onnx for site in report.sites)
    assert 0 < report.max_abs_error < 1e-4 and report.outputs[0].cosine == pytest.approx(1)


def test_a_graph_that_is_only_wrong_in_a_larger_batch_fails_there(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported(TOME) / "model.onnx")
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[:] = ["before"]  # every item after the first gets the first one's answer
    constants = {"zero": np.array([0])}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model.graph.node.extend(
        [
            helper.make_node("Gather", ["before", "zero"], ["first"]),
            helper.make_node("Shape", ["before"], ["shape"]),
            helper.make_node("Expand", ["first", "shape"], ["logits"]),
        ]
    )
    assert compare(model, tmp_path).first_divergence == "output logits (batch 3)"


def test_a_graph_that_fails_halfway_is_judged_up_to_there(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported(TOME) / "model.onnx")
    attribute("blocks.2/TokenMerge", "num_merged", 1000)(model)
    report = compare(model, tmp_path)
    assert report.first_divergence == "blocks.2 (tome, batch 1)"
    assert [site.passed for site in report.sites[:8]] == [True, True, *[False] * 6]
    assert report.failure and report.failure.startswith("ONNX Runtime cannot load ")


def test_a_graph_that_fails_while_it_runs_is_judged_too(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported(TOME) / "model.onnx")
    body("merged_place", "Add", "merged_twice", "v_end")(model)
    report = compare(model, tmp_path)
    assert report.first_divergence == "blocks.0 (tome, batch 1)"
    assert report.failure and "GatherND" in report.failure


def test_a_graph_that_cannot_be_loaded_is_a_failed_gate(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported(TOME) / "model.onnx")
    del model.functions[:]
    report = compare(model, tmp_path)
    assert report.first_divergence == "blocks.0 (tome, batch 1)"
    assert report.failure and re.match(r"ONNX Runtime cannot load \S+\.onnx: .*TrtcTokenMerge", report.failure)


# ---- ties -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twins() -> tuple[CompressedViT, onnx.ModelProto]:
    """digits_vit, merging 3 tokens once, where every token of even position has a twin at the same embedding.

    In an image of one grey twins are equal, so that one of the 3 is chosen by the tie-break alone.
    """
    module = attach(load_host("zoo:digits_vit").module, parse_spec("tome:num_merged=[3]")).eval()
    assert module.vit.pos_embed is not None
    embedding = module.vit.pos_embed.data
    embedding[:, 34:65:2] = embedding[:, 2:34:2]
    options = TraceOptions(input_name="image", output_name="logits", max_batch=8, opset=20)
    return module, add_bodies(onnx_from_module(module, (1, 8, 8), options))


def grey_between_others() -> np.ndarray[Any, Any]:
    others = random_images(2)
    return np.stack([others[0], np.full((1, 8, 8), 0.5, np.float32), others[1]])


def rounded(model: onnx.ModelProto, step: float) -> onnx.ModelProto:
    """The model with the similarity of token i raised by i * step: more than rounding, less than a tie."""
    turned = onnx.ModelProto()
    turned.CopyFrom(model)
    nodes = turned.functions[0].node
    place = next(index for index, node in enumerate(nodes) if "best_i" in node.output)
    lift = [
        helper.make_node("Constant", [], ["step"], value_float=step),
        helper.make_node("Cast", ["range_a"], ["range_a32"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["range_a32", "step"], ["lift"]),
        helper.make_node("Add", ["best", "lift"], ["lifted"]),
    ]
    for node in nodes[place:]:
        node.input[:] = ["lifted" if value == "best" else value for value in node.input]
    for offset, node in enumerate(lift):
        nodes.insert(place + offset, node)
    return turned


def test_equal_tokens_are_no_difference(twins: tuple[CompressedViT, onnx.ModelProto], tmp_path: Path) -> None:
    assert compare(twins[1], tmp_path, module=twins[0], inputs=[grey_between_others()]).passed


def test_a_turned_tie_is_counted_and_its_item_not_compared(
    twins: tuple[CompressedViT, onnx.ModelProto], tmp_path: Path
) -> None:
    module, model = twins
    reports = [
        compare(rounded(model, step), tmp_path, module=module, inputs=[grey_between_others()]) for step in (1e-6, -1e-6)
    ]
    assert all(report.passed for report in reports)
    turned = [report for report in reports if report.sites[0].ties]
    assert turned, "whichever twin torch chose, one of the two directions chooses the other"
    for report in turned:
        assert (report.sites[0].ties, report.outputs[0].ties, report.sites[0].indices_equal) == (1, 1, False)
        assert report.sites[0].relative_error < 1e-4


def test_a_larger_difference_is_no_tie(twins: tuple[CompressedViT, onnx.ModelProto], tmp_path: Path) -> None:
    report = compare(rounded(twins[1], 1e-2), tmp_path, module=twins[0], inputs=[grey_between_others()])
    assert report.first_divergence == "blocks.0 (tome, batch 3)"


def test_a_real_difference_is_not_forgiven_for_a_tie_beside_it(
    twins: tuple[CompressedViT, onnx.ModelProto], tmp_path: Path
) -> None:
    for step in (1e-6, -1e-6):
        broken = rounded(twins[1], step)
        weight("head.weight", one_element)(broken)
        report = compare(broken, tmp_path, module=twins[0], inputs=[grey_between_others()])
        assert report.first_divergence == "output logits (batch 3)"


def test_tokens_that_collide_are_no_tie(twins: tuple[CompressedViT, onnx.ModelProto], tmp_path: Path) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(twins[1])
    body("beats", "Identity", "is_more")(broken)  # equal tokens get equal ranks
    report = compare(broken, tmp_path, module=twins[0], inputs=[grey_between_others()])
    assert report.first_divergence == "blocks.0 (tome, batch 3)"


def test_a_comparison_of_nothing_is_not_passed(twins: tuple[CompressedViT, onnx.ModelProto], tmp_path: Path) -> None:
    reports = [
        compare(rounded(twins[1], step), tmp_path, module=twins[0], inputs=[grey_between_others()[1:2]])
        for step in (1e-6, -1e-6)
    ]
    never = "output logits, which was never compared, for every input met a near tie; give other inputs"
    assert never in [report.first_divergence for report in reports]


# ---- half precision -------------------------------------------------------------------------------------------------


def test_half_precision_has_its_own_tolerance_and_still_notices(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported(TOME, precision="fp16", targets=("rtx", "jetson-orin-jp6")) / "model.onnx")
    report = compare(model, tmp_path, precision="fp16")
    assert report.passed and TOLERANCE["fp32"] < report.outputs[0].relative_error < TOLERANCE["fp16"]
    weight("blocks.3.mlp.fc2.bias matrix", lambda v: v * 1.2)(model)
    first = compare(model, tmp_path, precision="fp16").first_divergence
    assert first == "blocks.4 (tome, batch 1)"


# ---- verify of a bundle ---------------------------------------------------------------------------------------------


def forge(bundle: Path, output: Path, apply: Break) -> Path:
    """A bundle whose graph is broken and whose hashes are right."""
    opened = Bundle.open(bundle)
    model = onnx.load(opened.file("model.onnx"))
    apply(model)
    files: dict[str, bytes | Path] = {name: opened.file(name) for name in opened.manifest.files}
    write_bundle(output, opened.manifest, {**files, "model.onnx": model.SerializeToString()})
    return output


def test_a_bundle_passes_again_with_its_own_examples(exported: Exported) -> None:
    bundle = exported(TOME)
    before = sorted(path.name for path in bundle.iterdir())
    report = verify(bundle)
    assert report.passed and report.inputs == "held-out examples of the model"
    assert [check.batch for check in report.outputs] == [1, 4, 8]
    assert report.to_json() == json.loads((bundle / "verify.json").read_text())
    assert sorted(path.name for path in bundle.iterdir()) == before


def test_a_forged_bundle_fails_with_its_report(exported: Exported, tmp_path: Path) -> None:
    forged = forge(exported(TOME), tmp_path / "forged", attribute("blocks.2/TokenMerge", "num_merged", 3))
    with pytest.raises(GateError) as caught:
        verify(forged)
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith(
        "verification failed: ONNX Runtime and torch differ first at blocks.2 (tome, batch 1); largest error "
    )
    assert "It failed: ONNX Runtime cannot load model.onnx: " in caught.value.message
    assert isinstance(caught.value.report, VerifyReport) and not caught.value.report.passed


def test_a_nan_in_the_graph_still_makes_a_report_of_valid_json(exported: Exported, tmp_path: Path) -> None:
    forged = forge(exported(TOME), tmp_path / "forged", weight("head.weight", lambda v: v * np.nan))
    with pytest.raises(GateError, match="output logits .batch 1.; largest error inf") as caught:
        verify(forged)
    assert isinstance(caught.value.report, VerifyReport)
    text = json.dumps(caught.value.report.to_json(), allow_nan=False)
    assert json.loads(text)["outputs"][0]["max_abs_error"] is None


def test_weights_that_moved_or_changed_are_noticed(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    own = tmp_path / "own.safetensors"
    shutil.copy(WEIGHTS_FILE, own)
    bundle = export_model("zoo:digits_vit", output=tmp_path / "bundle", weights=own).path
    assert bundle is not None
    assert verify(bundle, trust_paths=True).passed

    tensors = load_file(own)
    save_file({name: value * 1.5 for name, value in tensors.items()}, own)
    changed = r"^weights: 'own.safetensors' has sha256 [0-9a-f]{12}…, and the recipe was made with [0-9a-f]{12}…; give"
    with pytest.raises(ConfigError, match=changed):
        verify(bundle, trust_paths=True)
    with pytest.raises(ConfigError, match=changed):
        export_model(str(bundle / "recipe.toml"), output=tmp_path / "again", trust_paths=True)
    own.unlink()
    with pytest.raises(ConfigError, match=r"^weights: .*own.safetensors cannot be read .*; give .* as --weights FILE"):
        verify(bundle, trust_paths=True)

    assert verify(bundle, weights=WEIGHTS_FILE).passed
    assert export_model(str(bundle / "recipe.toml"), output=tmp_path / "again", weights=WEIGHTS_FILE).path
    with pytest.raises(ConfigError, match="none.safetensors cannot be read"):
        verify(bundle, weights=tmp_path / "none.safetensors")


def test_random_weights_are_held_to_those_of_the_export(tmp_path: Path) -> None:
    bundle = export_model("timm:vit_tiny_patch16_224", output=tmp_path / "bundle", batch="1").path
    assert bundle is not None
    recipe = (bundle / "recipe.toml").read_text(encoding="utf-8")
    assert read_recipe(bundle / "recipe.toml").weights_sha256 == Bundle.open(bundle).manifest.model.weights.sha256
    line = next(line for line in recipe.splitlines() if line.startswith("weights_sha256"))
    other = tmp_path / "other.toml"
    other.write_text(recipe.replace(line, f'weights_sha256 = "{"0" * 64}"'), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^weights: 'random \(seed 0\)' has sha256 .* was made with 000000000000…"):
        export_model(str(other), output=tmp_path / "again", dry_run=True)
    other.write_text(recipe.replace(line, ""), encoding="utf-8")
    assert export_model(str(other), output=tmp_path / "again", dry_run=True).path is None


# ---- inputs from a file ---------------------------------------------------------------------------------------------


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "inputs.npz", **arrays)
    return folder / "inputs.npz"


def images(count: int = 2, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.ones((count, 1, 8, 8), dtype)


@pytest.mark.parametrize("name", ["image", "anything"])
def test_inputs_may_be_the_named_or_the_only_array(name: str, tmp_path: Path) -> None:
    ((step,),) = read_inputs(npz(tmp_path, **{name: images()}), [digits_graph(digits(TOME))])["model"]
    assert list(step) == ["image"] and step["image"].shape == (2, 1, 8, 8)


def test_inputs_of_any_batch_size_are_compared(exported: Exported, tmp_path: Path) -> None:
    given = npz(tmp_path, image=random_images(5), labels=np.arange(5))
    report = verify(exported(TOME), inputs=given)
    assert report.passed and report.inputs == str(given)
    assert [check.batch for check in report.outputs] == [5]


def nan_images() -> np.ndarray[Any, Any]:
    array = images()
    array[1, 0, 3, 3] = np.nan
    return array


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": images(), "b": images()}, "has a, b; it must hold 'image', float32 [batch, 1, 8, 8]."),
        ({}, "has nothing; it must hold 'image', float32 [batch, 1, 8, 8]."),
        ({"image": images()[:, 0]}, "is float32 [2, 8, 8]; it must be float32 [batch, 1, 8, 8]."),
        ({"image": np.ones((2, 1, 8, 9), np.float32)}, "is float32 [2, 1, 8, 9]; it must be"),
        ({"image": images(0)}, "is float32 [0, 1, 8, 8]; it must be"),
        ({"image": images(dtype=np.float64)}, "is float64 [2, 1, 8, 8]; it must be float32"),
        ({"image": nan_images()}, "holds NaN or infinity; verification needs finite numbers."),
        ({"image": images() * np.inf}, "holds NaN or infinity; verification needs finite numbers."),
    ],
    ids=["missing", "empty", "rank", "shape", "no items", "dtype", "nan", "inf"],
)
def test_inputs_that_do_not_fit_are_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = npz(tmp_path, **arrays)
    with pytest.raises(ShapeError) as caught:
        read_inputs(given, [digits_graph(digits(TOME))])
    assert (
        str(caught.value).startswith("inputs: ")
        and str(caught.value).endswith(message)
        or (message in str(caught.value))
    )


def write_text(path: Path) -> None:
    path.write_text("no zip")


def write_cut(path: Path) -> None:
    whole = npz(path.parent, image=images()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def write_pickle(path: Path) -> None:
    np.savez(path.parent / "pickled.npz", image=np.array([{}], dtype=object))
    shutil.move(path.parent / "pickled.npz", path)


def write_damaged(path: Path) -> None:
    content = bytearray(npz(path.parent, image=images()).read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"^inputs: .*none.npz is not there; give a .npz file\.$"):
        read_inputs(tmp_path / "none.npz", [digits_graph(digits(TOME))])


@pytest.mark.parametrize(
    "write", [lambda path: path.touch(), write_text, write_cut, write_pickle, write_damaged],
    ids=["empty", "text", "cut", "pickle", "damaged"],
)  # fmt: skip
def test_a_file_that_is_no_npz_is_refused(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "given.npz"
    write(path)
    with pytest.raises(ShapeError, match=r"^inputs: .*given.npz cannot be read .*; save the arrays with"):
        read_inputs(path, [digits_graph(digits(TOME))])


def test_seeded_inputs_are_the_same_every_time() -> None:
    graph = GraphSpec(
        module=digits(TOME),
        inputs=(
            TensorSpec(name="x", shape=("batch", 3, "time")),
            TensorSpec(name="ids", shape=("batch",), dtype="int64", values=(0, 99)),
        ),
        outputs=(),
    )
    first, again = (make_inputs(graph, [{"batch": 1, "time": 4}, {"batch": 2, "time": 5}]) for _ in range(2))
    assert [steps[0]["x"].shape for steps in first] == [(1, 3, 4), (2, 3, 5)]
    assert all(np.array_equal(a[0][name], b[0][name]) for a, b in zip(first, again, strict=True) for name in a[0])
    assert (first[0][0]["x"].dtype, first[0][0]["ids"].dtype) == (np.float32, np.int64)


def test_a_report_without_a_divergence_is_passed() -> None:
    report = VerifyReport(precision="fp32", inputs="", outputs=(), sites=())
    assert report.passed and not replace(report, first_divergence="blocks.0").passed
