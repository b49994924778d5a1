"""Methods behind a tower of images against vectors of the authors' code."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from tests.golden.golden_data import MODEL_TOLERANCE, OPERATOR_TOLERANCE, assert_close, cases_on_disk, read
from trt_compress.errors import TrtCompressError
from trt_compress.export.lower import add_bodies
from trt_compress.export.trace import onnx_from_graph
from trt_compress.methods import METHODS, ArtifactFile, parse_spec
from trt_compress.methods.towers import PixelShuffleConfig
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.registry import compressor_class
from trt_compress.models.compressors.sites import (
    ENCODER_OUTPUT,
    Arrival,
    HostInfo,
    Probe,
    Site,
    Tap,
    TapKind,
    layer_sites,
    leading_spans,
)
from trt_compress.models.compressors.vision.behind import best_of, places, text_cosines
from trt_compress.models.compressors.vision.cdpruner import relevance, spread_by
from trt_compress.models.compressors.vision.dart import least_alike
from trt_compress.models.compressors.vision.fourier import low_pass, new_side
from trt_compress.models.compressors.vision.h_reducer import HReducer, reducer_of
from trt_compress.models.compressors.vision.pixel_shuffle import PixelShuffle
from trt_compress.models.compressors.vision.recoverable import outlier_factors
from trt_compress.models.hosts.base import CompressedModule, GraphSpec, TensorSpec
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.layers.attention import ATTENTION_TAPS
from trt_compress.plugins.testing.forms import session

TEXT_TAPS = frozenset[TapKind]({"text_space", "texts"})
VISIONZIP = ("basic", "fp16_range", "odd_rest", "step1", "ties")
PRUMERGE = ("adaptive_576", "adaptive_float_trap", "adaptive_small", "fixed_batch", "fixed_small", "fp16_range")


def behind(
    method: str, taps: Taps, hidden: Tensor, *, depth: int = 1, prefix: int = 1, **options: Any
) -> tuple[Compressor, Tokens]:
    """A method behind a tower whose last layer gave these taps, and what it makes of the tokens."""
    host = HostInfo(
        name="golden",
        sites=(*layer_sites("after_attention", depth, taps=ATTENTION_TAPS), Site(kind=ENCODER_OUTPUT, taps=TEXT_TAPS)),
        depth=depth,
        num_tokens=hidden.shape[1],
        protected=leading_spans([("class", prefix)]),
        width=hidden.shape[2],
        grid=square(hidden.shape[1] - prefix),
    )
    config = METHODS[method].config(**options)
    cls = compressor_class(METHODS[method])
    assert [placement.kind for placement in cls.placements(config, host)] == [ENCODER_OUTPUT]
    arrival = Arrival(
        host=host,
        site=host.sites[-1],
        tokens=host.num_tokens,
        prefix=prefix,
        has_class_token=prefix > 0,
        width=hidden.shape[2],
    )
    step = cls(config, arrival)
    assert isinstance(step, Compressor)
    found = step(Tokens(x=hidden), taps)
    assert found.x.shape[1] == step.tokens_out == found.sizes.shape[1]
    return step, found


def square(count: int) -> tuple[int, int]:
    side = round(count**0.5)
    return (side, side) if side * side == count else (1, count)


def test_every_case_is_compared() -> None:
    assert cases_on_disk("visionzip") == {*VISIONZIP, "clip_tiny"}
    assert cases_on_disk("prumerge") == {*PRUMERGE, "plus_adaptive_576"}


@pytest.mark.parametrize("case", VISIONZIP)
def test_visionzip(case: str) -> None:
    arrays, meta = read("visionzip", case)
    hidden, patches = arrays["hidden"], arrays["hidden"].shape[1] - 1
    taps = Taps()
    taps.put(0, {"class_attention": arrays["attn"][:, :, 0].mean(dim=1), "keys": arrays["metric"]})
    for pair in meta["pairs"]:
        dominant, contextual = pair["dominant_info"], pair["contextual"]
        name = f"d{dominant}_c{contextual}"
        _, found = behind("visionzip", taps, hidden, num_dominant=dominant + 1, num_contextual=contextual)
        wanted = arrays[f"out_{name}"]
        assert found.x.shape[1] == pair["out_tokens"]
        assert torch.equal(found.x[:, : dominant + 1], wanted[:, : dominant + 1])
        assert_close(found.x, wanted, OPERATOR_TOLERANCE)
        assert torch.equal(found.sizes.sum(dim=1), torch.full((len(hidden), 1), patches + 1.0))


def test_visionzip_behind_a_tower(tmp_path: Path) -> None:
    """From the image to the tokens that a language model would read, on a CLIP of 24 layers."""
    arrays, meta = read("visionzip", "clip_tiny")
    tensors = {name[2:]: tensor.contiguous() for name, tensor in arrays.items() if name.startswith("w.")}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model", **meta["model"]}))
    host = load_host(f"hf:{tmp_path}?feature_layer=-2")
    dominant, contextual = meta["dominant_info"], meta["contextual"]
    spec = f"visionzip:num_dominant={dominant + 1},num_contextual={contextual}"
    with torch.no_grad():
        plain, _ = host.attach(())[0].module(arrays["image"])
        features, size = host.attach(parse_spec(spec))[0].module(arrays["image"])
    assert_close(plain, arrays["penultimate_hidden"][:, 1:], MODEL_TOLERANCE)
    assert_close(features, arrays["out"], MODEL_TOLERANCE)
    kept = arrays["all_indices"].sort(dim=1).values
    hidden = arrays["penultimate_hidden"].gather(1, kept[..., None].expand(-1, -1, plain.shape[2]))
    assert_close(features[:, : dominant + 1], hidden, MODEL_TOLERANCE)
    assert torch.equal(size.sum(dim=1), torch.full((2,), 37.0))


def prumerge(method: str, case: str) -> tuple[Tokens, dict[str, Tensor], dict[str, Any]]:
    """What a method makes of a case; only outliers where the case says so, without a limit that cuts them."""
    arrays, meta = read("prumerge", case)
    adaptive = meta["mode"] == "adaptive"
    options: dict[str, Any] = {"num_kept": 2 * meta["k_from_ratio"]} if adaptive else {"keep_ratio": meta["ratio_used"]}
    taps = Taps()
    taps.put(0, {Tap(kind="queries", layer=0, heads="each").asked: arrays["q"][:, None]})
    taps.put(0, {Tap(kind="keys", layer=0, heads="each").asked: arrays["k"][:, None]})
    _, found = behind(method, taps, arrays["hidden"], adaptive=adaptive, **options)
    return found, arrays, meta


@pytest.mark.parametrize("case", PRUMERGE)
def test_prumerge(case: str) -> None:
    found, arrays, meta = prumerge("prumerge", case)
    count = meta["out_tokens"]
    assert torch.equal(found.x[:, :1], arrays["hidden"][:, :1])
    assert_close(found.x[:, 1 : 1 + count], arrays["out"], OPERATOR_TOLERANCE)
    valid = torch.ones(found.x.shape[:2], dtype=torch.bool) if found.valid is None else found.valid
    assert valid.sum(dim=1).tolist() == [1 + count] * len(arrays["hidden"])
    assert bool(valid[:, : 1 + count].all())
    sizes = torch.where(valid[..., None], found.sizes, 0.0)
    assert sizes.sum(dim=1).tolist() == [[float(arrays["hidden"].shape[1])]] * len(arrays["hidden"])


def test_prumerge_plus() -> None:
    """The fixed number of the authors' training branch, with its grid from half a step, is not what inference does."""
    found, arrays, meta = prumerge("prumerge_plus", "plus_adaptive_576")
    count = meta["out_tokens"]
    assert found.valid is not None and found.valid.sum(dim=1).tolist() == [1 + count]
    assert_close(found.x[:, 1 : 1 + count], arrays["out"], OPERATOR_TOLERANCE)


HIPRUNE = ("crops", "edges", "n192", "n64", "no_anchor")
DIVPRUNE = ("basic", "duplicates", "few", "half_to_even", "llava_1_5_sizes", "nearly_all", "one_token")
CDPRUNER = (
    "basic",
    "crops",
    "llava_1_5_sizes",
    "near_full_rank",
    "one_token",
    "similar_tokens",
    "two_segments",
)
RECOVERABLE = ("full", "full_larger", "full_no_centres")
DART = ("batch_first_item", "budget", "image_pivots_only", "llava_1_5_sizes", "llava_next", "ratio")
FOURIER = ("bf16", "constant", "fp16_range", "identity", "llava_576_144", "norm_none", "one_token", "rectangular")
SHUFFLES = ("idefics3", "internvl", "internvl_scale4", "llama4_shuffle", "smolvlm_scale3", "smolvlm_scale4")
QWEN_ROWS = ("qwen2_5_vl", "qwen2_vl", "qwen3_postshuffle", "qwen3_vl")


def test_every_case_of_the_others_is_compared() -> None:
    assert cases_on_disk("hiprune") == set(HIPRUNE)
    assert cases_on_disk("divprune") == set(DIVPRUNE)
    assert cases_on_disk("cdpruner") == set(CDPRUNER)
    assert cases_on_disk("recoverable") == {*RECOVERABLE, "lof", "lof_duplicates"}
    assert cases_on_disk("dart") == set(DART)
    assert cases_on_disk("fourier_vlm") == {
        *FOURIER,
        "llava_sides",
        "qwen_two_thirds",
        "qwen_other_ratios",
        "side_table",
    }
    assert cases_on_disk("pixel_shuffle") == {*SHUFFLES, *QWEN_ROWS}


@pytest.mark.parametrize("case", HIPRUNE)
def test_hiprune(case: str) -> None:
    arrays, meta = read("hiprune", case)
    shallow, deep = arrays["shallow"], arrays["deep"]
    tap = Tap(kind="probe_scores", layer=0, probe=Probe()).asked
    taps = Taps()
    taps.put(0, {tap: shallow})
    taps.put(1, {tap: deep})
    count = shallow.shape[1]
    numbers = torch.arange(count).expand(len(shallow), -1)[..., None].float()
    _, found = behind(
        "hiprune", taps, numbers, depth=2, num_kept=meta["per_picture"], alpha=meta["alpha"], object_layer=0
    )
    kept = (found.x[:, 1:, 0] - 1).long()
    assert torch.equal(kept, arrays["selected"].reshape(kept.shape))


@pytest.mark.parametrize("case", DIVPRUNE)
def test_divprune(case: str) -> None:
    arrays, meta = read("divprune", case)
    _, found = behind("divprune", Taps(), arrays["x"][None], prefix=0, keep_ratio=meta["ratio"])
    assert found.x.shape[1] == meta["k"]
    if case == "duplicates":  # the same vectors; theirs is the same place again and again
        ours, theirs = ({tuple(row.tolist()) for row in rows} for rows in (found.x[0], arrays["x"][arrays["kept"]]))
        assert ours == theirs
        return
    assert torch.equal(found.x[0], arrays["x"][arrays["kept"]])


@pytest.mark.parametrize("case", CDPRUNER)
def test_cdpruner(case: str) -> None:
    """There relevance is of all pictures of a batch together; a batch of one is what the method makes of a picture."""
    arrays, meta = read("cdpruner", case)
    x, space = arrays["features"], arrays["image_embeds"]
    pictures, number = x.shape[:2]
    cosine = text_cosines(space.reshape(1, pictures * number, -1), arrays["text_embeds"][None])
    relevant = relevance(cosine).reshape(pictures, number)
    assert_close(relevant, arrays["relevance"], OPERATOR_TOLERANCE)
    assert torch.equal(spread_by(x, relevant, meta["keep"]), arrays["mask"].float())
    if pictures == 1:
        taps = Taps()
        segments = len(arrays["text_embeds"]) + 1  # one is left empty
        text = torch.cat([arrays["text_embeds"], torch.zeros_like(arrays["text_embeds"][:1])])[None]
        taps.put(1, {"text_space": space, Tap(kind="texts", layer=1, rows=segments).asked: text})
        _, found = behind("cdpruner", taps, x, prefix=0, num_kept=meta["keep"], segments=segments)
        assert torch.equal(found.x[0], x[0, arrays["selected"][0]])


@pytest.mark.parametrize("case", RECOVERABLE)
def test_recoverable(case: str) -> None:
    """As the code has it: keys of other patches, and no sum without a centre."""
    arrays, meta = read("recoverable", case)
    hidden, patches, front = arrays["hidden"], meta["N"], torch.arange(meta["N"] + 1)[None, :, None]
    taps = Taps()
    taps.put(0, {Tap(kind=kind, layer=0, heads="each").asked: arrays[kind[0]][:, None] for kind in ("queries", "keys")})
    taps.put(1, {"text_space": arrays["projected"], "texts": arrays["text_feature"][:, None]})
    cosine = text_cosines(arrays["projected"][:, 1:], arrays["text_feature"][:, None])
    assert_close(cosine / meta["proj_dim"] ** 0.5, arrays["similarity"][:, 0], OPERATOR_TOLERANCE)
    _, found = behind("recoverable", taps, hidden, as_code=True, keep_ratio=0.3)
    count = meta["n_vision"] + meta["n_text"]
    assert found.valid is not None and int(found.valid.sum()) == 1 + arrays["out"].shape[1]
    assert bool(found.valid[0, : 1 + arrays["out"].shape[1]].all())
    assert torch.equal(found.x[:, 1 : 1 + count], hidden[:, 1 + arrays["kept_sorted"][0]])
    assert_close(found.x[:, 1 : 1 + arrays["out"].shape[1]], arrays["out"], OPERATOR_TOLERANCE)
    _, own = behind("recoverable", taps, front.float(), keep_ratio=0.3)
    assert (own.x[0, 1 : 1 + count, 0] - 1).tolist() == arrays["kept_sorted"][0].tolist()
    assert patches + 1 == float(torch.where(own.valid[..., None], own.sizes, 0.0).sum())  # type: ignore[index]


class Exported(CompressedModule):
    """A method that sees queries, keys and a text, as a graph of its own."""

    def __init__(self, step: Compressor) -> None:
        super().__init__()
        self.step = step

    def forward(self, hidden: Tensor, q: Tensor, k: Tensor, projected: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        taps = Taps()
        for kind, tensor in (("queries", q), ("keys", k)):
            taps.put(0, {Tap(kind=kind, layer=0, heads="each").asked: tensor[:, None]})  # type: ignore[arg-type]
        taps.put(1, {"text_space": projected, "texts": text[:, None]})
        found = self.step(Tokens(x=hidden), taps)
        assert found.valid is not None
        return found.x, torch.where(found.valid, found.sizes[..., 0], 0.0)


def test_recoverable_in_onnx_runtime() -> None:
    """The case with patches of both kinds and centres, in two batch sizes."""
    arrays, _ = read("recoverable", "full")
    given = {name: arrays[name] for name in ("hidden", "q", "k", "projected")} | {"text": arrays["text_feature"]}
    taps = Taps()
    taps.put(0, {Tap(kind=kind, layer=0, heads="each").asked: arrays[kind[0]][:, None] for kind in ("queries", "keys")})
    taps.put(1, {"text_space": arrays["projected"], "texts": arrays["text_feature"][:, None]})
    step, _ = behind("recoverable", taps, arrays["hidden"], as_code=True)
    inputs = tuple(TensorSpec(name=name, shape=("batch", *each.shape[1:])) for name, each in given.items())
    shape = ("batch", step.tokens_out)
    outputs = (TensorSpec(name="x", shape=(*shape, arrays["hidden"].shape[2])), TensorSpec(name="size", shape=shape))
    graph = GraphSpec(module=Exported(step).eval(), inputs=inputs, outputs=outputs)
    runner = session(add_bodies(onnx_from_graph(graph, graph.module, max_batch=4, opset=20)).SerializeToString())
    for batch in (1, 3):
        fed = {name: each.expand(batch, *each.shape[1:]).numpy() for name, each in given.items()}
        x, size = (torch.from_numpy(each) for each in runner.run(None, fed))
        assert (size > 0).sum(dim=1).tolist() == [1 + arrays["out"].shape[1]] * batch
        for row in range(batch):
            assert_close(x[row : row + 1, 1 : 1 + arrays["out"].shape[1]], arrays["out"], OPERATOR_TOLERANCE)


def test_outlier_factors() -> None:
    """As scikit-learn has them, and the same with scores among them that do not count."""
    arrays, meta = read("recoverable", "lof")
    for number, query in enumerate(meta["queries"]):
        scores, count = arrays[f"scores_{number}"], query["n"]
        found = outlier_factors(scores * count, query["k"], 1e-10 * count)[0].double()
        wanted = arrays[f"lof_{number}"][scores[0].argsort(stable=True)]
        torch.testing.assert_close(found, wanted, rtol=4e-6, atol=0)
        assert int((found > 1.5).sum()) == int(arrays[f"outlier_mask_{number}"].sum())
        there = torch.ones(1, count + 7, dtype=torch.bool)
        there[:, 3:10] = False  # the same with others among them
        wide = torch.cat([scores[:, :3], scores.amax().expand(1, 7), scores[:, 3:]], dim=1)
        masked = outlier_factors(wide * count, query["k"], 1e-10 * count, there)[0, :count].double()
        torch.testing.assert_close(masked, wanted, rtol=4e-6, atol=0)


def test_outlier_factors_of_equal_scores() -> None:
    """Among more equal scores than are looked at none stands out; of fewer it is open there which are neighbours."""
    arrays, meta = read("recoverable", "lof_duplicates")
    for number, query in enumerate(meta["queries"]):
        scores, count = arrays[f"scores_{number}"], query["n"]
        order = scores[0].argsort(stable=True)
        found = outlier_factors(scores * count, query["k"], 1e-10 * count)[0].double()
        many = ((scores[0, :, None] == scores[0]).sum(dim=1) > query["k"])[order]
        assert count // 2 < int(many.sum()) < count and bool(found.isfinite().all())
        torch.testing.assert_close(found[many], arrays[f"lof_{number}"][order][many], rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", DART)
def test_dart(case: str) -> None:
    """What the pivots take of the image, in their order of there, those of the text among them."""
    arrays, meta = read("dart", case)
    start, length = meta["sys_len"], meta["length"]
    keys, hidden = arrays["key_states"], arrays["hidden"][:1]
    image = slice(start, start + length)
    norm = keys[:1, :, image].abs().sum(dim=(1, 3))
    pivots = best_of(norm, meta["pi"])
    assert (pivots[0] + start).tolist() == arrays["image_pivots"].tolist()
    taken = places(pivots, length).sum(dim=1)
    found = least_alike(hidden[:, image], hidden[:, arrays["pivot_order"]], taken, meta["t"])
    assert (found[0].nonzero()[:, 0] + start).tolist() == arrays["retained"].tolist()


@pytest.mark.parametrize("case", FOURIER)
def test_fourier(case: str) -> None:
    arrays, meta = read("fourier_vlm", case)
    x, out = arrays["x"].float(), arrays["out"]
    side = meta.get("g")
    grid = (side, side) if side else (meta["gh"], meta["gw"])
    left = (meta["k"], meta["k"]) if "k" in meta else (meta.get("rh", grid[0]), meta.get("rw", grid[1]))
    if case == "one_token":
        left = (1, 1)
    found = low_pass(grid, left, "none" if case == "norm_none" else "code") @ x
    assert_close(found, out, OPERATOR_TOLERANCE)


def test_fourier_as_llava_has_it() -> None:
    arrays, meta = read("fourier_vlm", "llava_sides")
    for side in meta["ks"]:
        _, found = behind("fourier", Taps(), arrays["x"], prefix=0, side=side)
        assert_close(found.x, arrays[f"out_k{side}"], OPERATOR_TOLERANCE)
        assert torch.allclose(found.sizes.sum(dim=1), torch.tensor([[576.0]]))


@pytest.mark.parametrize("case", ["qwen_two_thirds", "qwen_other_ratios"])
def test_fourier_on_several_images(case: str) -> None:
    arrays, meta = read("fourier_vlm", case)
    ratio, start, rows = float.fromhex(meta["ratio_hex"]), 0, []
    for slices, height, width in meta["grids"]:
        grid = (height // 2, width // 2)
        left = (new_side(grid[0], ratio), new_side(grid[1], ratio))
        for _ in range(slices):
            stop = start + grid[0] * grid[1]
            rows.append(low_pass(grid, left) @ arrays["embeds"][start:stop])
            start = stop
    assert_close(torch.cat(rows), arrays["out"], OPERATOR_TOLERANCE)


def test_sides_are_cut_as_there() -> None:
    arrays, _ = read("fourier_vlm", "side_table")
    for ratio, row in zip(arrays["f64.ratios"].tolist(), arrays["new_sides"], strict=True):
        assert [new_side(side, ratio) for side in arrays["sides"].tolist()] == row.tolist()


@pytest.mark.parametrize("case", SHUFFLES)
def test_pixel_shuffle(case: str) -> None:
    arrays, meta = read("pixel_shuffle", case)
    _, found = behind("pixel_shuffle", Taps(), arrays["x"], prefix=0, scale=meta["scale"])
    assert torch.equal(found.x, arrays["shuffled"])
    _, turned = behind("pixel_shuffle", Taps(), arrays["x"], prefix=0, scale=meta["scale"], order="columns")
    side = meta["side"] // meta["scale"]
    by_rows = turned.x.reshape(len(turned.x), side, side, -1).transpose(1, 2).reshape(found.x.shape)
    assert torch.equal(by_rows, found.x)


@pytest.mark.parametrize("case", QWEN_ROWS)
def test_qwen_groups_the_same_patches_in_the_same_order(case: str) -> None:
    """Its processor writes patches block by block, so that four rows in turn are what the shuffle lays side by side."""
    arrays, meta = read("pixel_shuffle", case)
    start = 0
    for frames, height, width in arrays["grid_thw"].tolist():
        count = frames * height * width
        numbers = torch.arange(height * width).reshape(1, -1, 1).float()
        host_grid = (height, width)
        module = PixelShuffle(
            PixelShuffleConfig(scale=meta["m"]),
            Arrival(
                host=HostInfo(
                    name="golden",
                    sites=(Site(kind=ENCODER_OUTPUT),),
                    depth=1,
                    num_tokens=height * width,
                    width=1,
                    grid=host_grid,
                ),
                site=Site(kind=ENCODER_OUTPUT),
                tokens=height * width,
                prefix=0,
                has_class_token=False,
                width=1,
            ),
        )
        ours = module(Tokens(x=numbers), Taps()).x.reshape(-1).long()
        assert torch.equal(ours, arrays["window_order"][start : start + height * width])
        start += count


@pytest.mark.parametrize("case", ["1x2", "1x4", "1x4_fp16_range", "2x2"])
def test_h_reducer(case: str) -> None:
    assert cases_on_disk("docowl_hreducer") == {"1x2", "1x4", "1x4_fp16_range", "2x2"}
    arrays, meta = read("docowl_hreducer", case)
    tensors = {f"vision2text.{name[2:]}": tensor for name, tensor in arrays.items() if name.startswith("w.")}
    adopted = dict(HReducer.adopt(tensors, None))
    _, found = behind("h_reducer", Taps(), arrays["x"], weights=ArtifactFile("weights", save(adopted)))
    assert found.x.shape[1] == meta["out_tokens"]
    assert_close(found.x, arrays["out"], MODEL_TOLERANCE)
    with pytest.raises(TrtCompressError, match="h_reducer: the file misses vit_eos; give the tensors of vision2text"):
        HReducer.adopt({name: tensor for name, tensor in tensors.items() if "eos" not in name}, None)
    with pytest.raises(TrtCompressError, match="which do not fit together for patches of 3 channels"):
        reducer_of(tensors, "the file", 3)


@pytest.mark.parametrize("case", ["all_layers", "basic", "fp16_range", "one_layer"])
def test_vtc_cls_behind_the_tower(case: str) -> None:
    """Where the paper has it; test_golden_vtc_cls has it at a layer. The last of the model's layers is not run."""
    arrays, meta = read("vtc_cls", case)
    rows, used = arrays["attentions_cls_row"], meta["layers_used"]
    taps = Taps()
    for layer in range(meta["layers"]):
        taps.put(layer, {"class_attention": rows[layer].mean(dim=1)})
    for count in meta["token_nums"]:
        options = {"num_kept": count, "first_layer": used[0], "behind": True}
        _, found = behind("vtc_cls", taps, arrays["hidden"], depth=used[-1] + 1, **options)
        assert torch.equal(found.x[:, 1:], arrays[f"out_n{count}"])
