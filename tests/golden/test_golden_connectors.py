"""Trained connectors behind a tower of images against vectors of the authors' code."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from tests.golden.golden_data import MODEL_TOLERANCE, OPERATOR_TOLERANCE, assert_close, cases_on_disk, read
from tests.golden.test_golden_towers import square
from trt_compress.errors import TrtCompressError
from trt_compress.methods import METHODS, ArtifactFile
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.registry import compressor_class
from trt_compress.models.compressors.sites import ENCODER_OUTPUT, Arrival, HostInfo, Site, Tap, sites_of_layers
from trt_compress.models.compressors.vision.llava_mini import LlavaMini, places_of, resampler_of
from trt_compress.models.compressors.vision.quecc import QueccConnector, quecc_of
from trt_compress.models.compressors.vision.tokenpacker import Packer, packer_of
from trt_compress.models.layers.attention import ATTENTION_TAPS

TOLERANCE = 2 * OPERATOR_TOLERANCE  # two chains of an operator's length, one behind the other


def weights_of(arrays: Mapping[str, Tensor], front: str = "") -> dict[str, Tensor]:
    return {f"{front}{name[2:]}": tensor.contiguous() for name, tensor in arrays.items() if name.startswith("w.")}


def connector(method: str, tensors: Mapping[str, Tensor], x: Tensor, *, depth: int = 1, **options: Any) -> Compressor:
    """A connector behind a tower that gives patches [B, N, C] without a token in front."""
    host = HostInfo(
        name="golden",
        sites=(*sites_of_layers(depth, taps=ATTENTION_TAPS), Site(kind=ENCODER_OUTPUT)),
        depth=depth,
        num_tokens=x.shape[1],
        width=x.shape[2],
        grid=square(x.shape[1]),
    )
    cls = compressor_class(METHODS[method])
    adopted = dict(cls.adopt(tensors, None))
    given: dict[str, Any] = {"weights": ArtifactFile("weights", save(adopted)), **options}
    config = METHODS[method].config(**given)
    arrival = Arrival(
        host=host, site=host.sites[-1], tokens=x.shape[1], prefix=0, has_class_token=False, width=x.shape[2]
    )
    step = cls(config, arrival)
    assert isinstance(step, Compressor)
    return step


def side_by_side(several: Tensor, width: int) -> Taps:
    """Features of several layers [B, N, layers * C] as what came to the layers 1, 2 and so on."""
    taps = Taps()
    for number, part in enumerate(several.split(width, dim=2)):
        taps.put(number + 1, {"hidden": part})
    return taps


TOKENPACKER = ("scale2", "scale2_fp16_range", "scale3", "scale4")


@pytest.mark.parametrize("case", TOKENPACKER)
def test_tokenpacker(case: str) -> None:
    assert cases_on_disk("tokenpacker") == set(TOKENPACKER)
    arrays, meta = read("tokenpacker", case)
    tensors = packer_of(weights_of(arrays, "model.mm_projector."), "the file")
    packer = Packer(tensors, (meta["raw_grid"],) * 2, meta["scale_factor"], meta["heads"])
    with torch.no_grad():
        assert_close(packer(arrays["x"], arrays["x_multi"]), arrays["out"], TOLERANCE)


def test_tokenpacker_behind_a_tower() -> None:
    """The case whose features of several layers are as wide as the tower's."""
    arrays, meta = read("tokenpacker", "scale4")
    x, several, width = arrays["x"], arrays["x_multi"], meta["embed_dim"]
    options = {"scale": meta["scale_factor"], "heads": meta["heads"], "layers": (0, 1)}
    step = connector("tokenpacker", weights_of(arrays, "model.mm_projector."), x, depth=3, **options)
    with torch.no_grad():
        found = step(Tokens(x=x), side_by_side(several, width))
    assert_close(found.x, arrays["out"], TOLERANCE)
    assert found.x.shape[1:] == (step.tokens_out, step.width_out)
    assert found.sizes[..., 0].tolist() == [[16.0] * 4]


def test_other_tensors_of_tokenpacker_are_refused() -> None:
    arrays, _ = read("tokenpacker", "scale2")
    tensors = weights_of(arrays)
    for change, said in (
        ({"ln_q_1.bias": None}, r"the file misses ln_q_1\.bias; give the tensors of one mm_projector of TokenPacker"),
        ({"ln_z.bias": torch.ones(2)}, r"the file has ln_z\.bias beside what is read; give"),
        ({"mlp.0.bias": torch.ones(2)}, r"has mlp\.0\.bias \[2\], and \[20\] would fit the others"),
        ({"ln_k_1.bias": torch.full((16,), torch.nan)}, r"has ln_k_1\.bias that is not of finite numbers"),
        ({"ln_k_1.bias": torch.ones(16, dtype=torch.int64)}, r"has ln_k_1\.bias that is not of finite numbers"),
        ({"q_proj_1.weight": torch.tensor(1.0)}, r"has q_proj_1\.weight \[\], and 2 axes are needed"),
    ):
        changed = {name: each for name, each in {**tensors, **change}.items() if each is not None}
        with pytest.raises(TrtCompressError, match=said):
            packer_of(changed, "the file")
    with pytest.raises(TrtCompressError, match="tokenpacker: the file misses clip_attn"):
        packer_of({}, "the file")


QUECC = ("stride3", "stride4", "stride_all")


@pytest.mark.parametrize("case", QUECC)
def test_quecc(case: str) -> None:
    assert cases_on_disk("quecc") == set(QUECC)
    arrays, meta = read("quecc", case)
    module = QueccConnector(quecc_of(weights_of(arrays), "the file"), (meta["grid"],) * 2, meta["heads"])
    with torch.no_grad():
        found = module(arrays["x"], arrays["x_multi"], arrays["text"][:, 0])
    assert_close(found, arrays["out"], TOLERANCE)


def test_quecc_behind_a_tower() -> None:
    """The case whose features of several layers are as wide as the tower's."""
    arrays, meta = read("quecc", "stride3")
    x, several, width = arrays["x"], arrays["x_multi"], meta["embed_dim"]
    step = connector("quecc", weights_of(arrays), x, depth=3, layers=(0, 1), heads=meta["heads"])
    assert step.width_out is None and step.acts
    taps = side_by_side(several, width)
    taps.put(3, {Tap(kind="question", layer=3, channels=arrays["text"].shape[2]).asked: arrays["text"][:, 0]})
    with torch.no_grad():
        found = step(Tokens(x=x), taps)
    assert_close(found.x, arrays["out"], TOLERANCE)
    assert found.sizes[..., 0].tolist() == [[9.0] * 9]
    tensors = weights_of(arrays)
    for name in ("text_projection.1.bias", "q_downsample.bias"):
        with pytest.raises(
            TrtCompressError, match=rf"quecc: the file misses {name}; give the tensors of one connector"
        ):
            quecc_of({each: tensor for each, tensor in tensors.items() if each != name}, "the file")
    with pytest.raises(
        TrtCompressError, match=r"has q_downsample\.weight \[8, 1, 3, 2\], and \[8, 1, 2, 2\] would fit"
    ):
        quecc_of({**tensors, "q_downsample.weight": tensors["q_downsample.weight"][..., :2]}, "the file")


RESAMPLER = ("resampler_c1", "resampler_c2", "resampler_c4", "resampler_fp16_range")
PREFUSION = ("prefusion", "prefusion_hd")


@pytest.mark.parametrize("case", RESAMPLER)
def test_llava_mini(case: str) -> None:
    assert cases_on_disk("llava_mini") == {*RESAMPLER, *PREFUSION}
    arrays, meta = read("llava_mini", case)
    x = arrays["x"]
    assert_close(places_of(arrays["w.pos_embed"], square(x.shape[1])), arrays["key_pos_embed"], OPERATOR_TOLERANCE)
    step = connector("llava_mini", weights_of(arrays), x, heads=meta["heads"])
    with torch.no_grad():
        found = step(Tokens(x=x), Taps())
    assert_close(found.x, arrays["out"], TOLERANCE)
    assert found.x.shape[1] == step.tokens_out == meta["queries"] and step.width_out is None and step.acts
    assert torch.allclose(found.sizes.sum(dim=1), torch.tensor(float(x.shape[1])))


@pytest.mark.parametrize("case", PREFUSION)
def test_llava_mini_in_front_of_the_layers_that_fuse(case: str) -> None:
    """Ours with the projector, and by hand what is not part of it: crops side by side, and decoder layers behind."""
    arrays, meta = read("llava_mini", case)
    tensors = weights_of(arrays, "model.")
    vision, (crops, side) = arrays["vision_features"], (max(1, meta["hd_ratio"]), round(meta["N"] ** 0.5))
    batch, width = len(vision), meta["vision_dim"]
    parts = vision[:, : crops**2].reshape(batch, crops, crops, side, side, width)
    whole = parts.transpose(2, 3).reshape(batch, (crops * side) ** 2, width)
    step = connector("llava_mini", tensors, whole, heads=meta["compressor_heads"])
    assert isinstance(step, LlavaMini) and step.width_out == meta["hidden_size"]
    with torch.no_grad():
        compressed = step(Tokens(x=whole), Taps()).x
        seen = whole if meta["parts"] == 1 else torch.cat([whole, vision[:, -1]], dim=1)  # the image as a whole behind
        projected = step.project(seen)
    ids = arrays["input_ids"]
    text = arrays["w.embed_tokens.weight"][ids.clamp_min(0)]
    given = torch.cat([torch.ones(batch, projected.shape[1] + compressed.shape[1], dtype=torch.bool), ids > 0], dim=1)
    x = torch.cat([projected, compressed, text], dim=1)
    for layer in range(meta["prefusion_layers"]):
        x = decoder_layer(x, given, arrays, f"w.prefusion_layers.{layer}", meta)
    count = compressed.shape[1]
    behind = x[:, projected.shape[1] :]
    assert_close(behind[:, :count], arrays["compressed"], MODEL_TOLERANCE)
    assert_close(torch.where(ids[..., None] > 0, behind[:, count:], text), arrays["fused_text"], MODEL_TOLERANCE)


def decoder_layer(x: Tensor, given: Tensor, arrays: Mapping[str, Tensor], name: str, meta: Mapping[str, Any]) -> Tensor:
    """A layer of Llama over tokens [B, N, C]; those that are not `given` [B, N] are seen by none and have no place."""

    def scaled(y: Tensor, norm: str) -> Tensor:
        return (
            y * (y.pow(2).mean(dim=-1, keepdim=True) + meta["rms_norm_eps"]).rsqrt() * arrays[f"{name}.{norm}.weight"]
        )

    def heads(y: Tensor, part: str) -> Tensor:
        y = y @ arrays[f"{name}.self_attn.{part}_proj.weight"].T
        return y.unflatten(2, (meta["heads"], -1)).transpose(1, 2)

    length, size = x.shape[1], x.shape[2] // meta["heads"]
    place = (given.cumsum(dim=1) - 1)[:, None, :, None]
    angle = place * meta["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    cos, sin = angle.cos().repeat(1, 1, 1, 2), angle.sin().repeat(1, 1, 1, 2)

    def turned(y: Tensor) -> Tensor:
        first, second = y.chunk(2, dim=-1)
        return y * cos + torch.cat([-second, first], dim=-1) * sin

    inner = scaled(x, "input_layernorm")
    logits = turned(heads(inner, "q")) @ turned(heads(inner, "k")).transpose(2, 3) / size**0.5
    seen = torch.ones(length, length, dtype=torch.bool).tril() & given[:, None, None]
    weights = torch.where(seen, logits, -1e30).softmax(dim=-1)
    x = x + (weights @ heads(inner, "v")).transpose(1, 2).flatten(2) @ arrays[f"{name}.self_attn.o_proj.weight"].T
    inner = scaled(x, "post_attention_layernorm")
    gate, up, down = (arrays[f"{name}.mlp.{part}_proj.weight"].T for part in ("gate", "up", "down"))
    return x + functional.silu(inner @ gate) * (inner @ up) @ down


def test_other_tensors_of_llava_mini_are_refused() -> None:
    arrays, _ = read("llava_mini", "prefusion")
    tensors = weights_of(arrays, "model.")
    for change, said in (
        ({"model.compressor.query": None}, r"the file misses compressor\.query; give the compressor of one model"),
        ({"model.mm_projector.2.bias": None}, r"the file misses mm_projector\.2\.bias; give"),
        ({"model.compressor.ln_post.bias": torch.ones(2)}, r"has compressor\.ln_post\.bias beside what is read"),
        (
            {"model.compressor.query": torch.ones(4, 8)},
            r"has compressor\.pos_embed \[4, 16\], and \[4, 8\] would fit",
        ),
        ({"model.compressor.query": torch.ones(16)}, r"has compressor\.query \[16\], and 2 axes are needed"),
    ):
        changed = {name: each for name, each in {**tensors, **change}.items() if each is not None}
        with pytest.raises(TrtCompressError, match=said):
            resampler_of(changed, "the file")
    with pytest.raises(TrtCompressError, match="5 queries are no square, so their positions cannot be resized"):
        places_of(torch.ones(5, 8), (6, 6))
