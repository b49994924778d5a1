"""A batch of unequal lengths: the tokens of every item come out as they do when the item is alone, without padding."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError
from trt_compress.export.lower import add_bodies
from trt_compress.export.trace import onnx_from_graph
from trt_compress.methods import METHODS, parse_spec
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.place import place_one
from trt_compress.models.compressors.registry import compressor_class
from trt_compress.models.compressors.sites import (
    ENCODER_OUTPUT,
    Asked,
    HostInfo,
    Site,
    layer_sites,
    leading_spans,
)
from trt_compress.models.hosts.base import CompressedModule, GraphSpec, TensorSpec
from trt_compress.models.layers.attention import ATTENTION_TAPS, attention, merge_heads, split_heads
from trt_compress.plugins.operator import cast

DEPTH, WIDTH, HEADS, LONGEST = 3, 16, 2, 24
LENGTHS = (24, 17, 13)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.feed = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def attend(self, tokens: Tokens, wanted: frozenset[Asked]) -> tuple[Tensor, Mapping[Asked, Tensor]]:
        q, k, v = (split_heads(part, HEADS) for part in self.qkv(tokens.x).chunk(3, dim=2))
        mixed, taps = attention(q, k, v, size=tokens.key_size, valid=tokens.valid, wanted=wanted)
        return merge_heads(mixed), taps


class Encoder(CompressedModule):
    """Text-like: ids and, if padded, their number go in; tokens come out, and which of them are padding."""

    def __init__(self, spec: str, length: int, *, padded: bool, prefix: int) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.embed = nn.Embedding(50, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(DEPTH))
        self.padded, self.prefix = padded, prefix
        taps = ATTENTION_TAPS if prefix else ATTENTION_TAPS - {"class_attention"}
        self.info = HostInfo(
            name="text",
            sites=(*layer_sites("after_attention", DEPTH, taps=taps), Site(kind=ENCODER_OUTPUT)),
            depth=DEPTH,
            num_tokens=length,
            protected=leading_spans([("class", prefix)]),
            width=WIDTH,
            padded=padded,
        )
        self.placed = place_one(parse_spec(spec), self.info)
        self.plan = self.placed.sites

    def passed(self, ids: Tensor, lengths: Tensor | None) -> Tokens:
        place = torch.arange(ids.shape[1])
        valid = None if lengths is None else place < lengths[:, None]
        tokens, taps = Tokens(x=self.embed(ids), valid=valid, position=place.expand_as(ids)), Taps()
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            tokens = self.placed.layer(number, tokens, taps, partial(layer.attend), layer.feed)
        return self.placed(ENCODER_OUTPUT, tokens, taps)

    def forward(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.passed(ids, lengths)
        assert tokens.valid is not None and tokens.position is not None
        return tokens.x, cast(tokens.valid, torch.int64), tokens.position


SPECS = (
    "none",
    "tome:num_merged=[3,2]",
    "tome:num_merged=[0,4],proportional_attention=false",
    "fastast:num_merged=2",
    "avg_pool:layer=0,stride=3",
    "avg_pool:layer=1,stride=5",
    "tome:num_merged=[3]+avg_pool:layer=1,stride=2",
    "frame_pool:stride=3",
    "frame_pool:layer=1,stride=4,mode=max,remainder=keep",
    "frame_pool:layer=1,stride=3,mode=last,remainder=keep",
    "frame_pool:layer=0,stride=5,mode=last",
    "frame_stack:stride=3",
)
WITH_CLASS = (
    "evit:keep_ratio=0.6",
    "evit:layers=[0,1],keep_ratio=[0.7,0.5],fuse=false",
    "evit:layers=[1],keep_ratio=1.0",
    "vtc_cls:keep_ratio=0.5,first_layer=0,last_layer=1",
    "vtc_cls:num_kept=9,first_layer=0,last_layer=0",
    "tome:num_merged=[3]+evit:layers=[1],keep_ratio=0.5",
)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 50, (len(LENGTHS), LONGEST), generator=generator), torch.tensor(LENGTHS)


@pytest.mark.parametrize(
    ("spec", "prefix"),
    [*((spec, prefix) for spec in SPECS for prefix in (0, 1)), *((spec, 1) for spec in WITH_CLASS)],
)
def test_each_item_of_a_batch_comes_out_as_it_does_alone(spec: str, prefix: int) -> None:
    ids, lengths = batch()
    with torch.no_grad():
        found = Encoder(spec, LONGEST, padded=True, prefix=prefix).passed(ids, lengths)
        assert found.valid is not None and found.position is not None
        for item, length in enumerate(LENGTHS):
            alone = Encoder(spec, length, padded=False, prefix=prefix).passed(ids[item : item + 1, :length], None)
            count = alone.x.shape[1]
            assert found.valid[item].tolist() == [True] * count + [False] * (found.x.shape[1] - count)
            torch.testing.assert_close(found.x[item, :count], alone.x[0], rtol=1e-4, atol=1e-5)
            assert alone.position is not None
            assert torch.equal(found.position[item, :count], alone.position[0])
            if alone.size is not None:
                torch.testing.assert_close(found.sizes[item, :count], alone.size[0])
        assert found.x.isfinite().all()


@pytest.mark.parametrize("spec", [SPECS[6], SPECS[8], *WITH_CLASS[:1]])
def test_onnx_runtime_leaves_padding_out_too(spec: str) -> None:
    module = Encoder(spec, LONGEST, padded=True, prefix=1).eval()
    graph = GraphSpec(
        module=module,
        inputs=(
            TensorSpec(name="ids", shape=("batch", LONGEST), dtype="int64"),
            TensorSpec(name="lengths", shape=("batch",), dtype="int64"),
        ),
        outputs=tuple(
            TensorSpec(name=name, shape=("batch", module.placed.tokens_out, *more), dtype=dtype)
            for name, more, dtype in (("x", (WIDTH,), "float32"), ("valid", (), "int64"), ("position", (), "int64"))
        ),
    )
    model = add_bodies(onnx_from_graph(graph, module, max_batch=4, opset=20))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids, lengths = batch()
    for rows in (slice(0, 3), slice(1, 3), slice(2, 3)):
        with torch.no_grad():
            x, valid, position = module(ids[rows], lengths[rows])
        given = {"ids": ids[rows].numpy(), "lengths": lengths[rows].numpy()}
        theirs = [np.asarray(output) for output in session.run(None, given)]
        assert np.array_equal(theirs[1], valid.numpy())
        there = valid.numpy() > 0
        np.testing.assert_allclose(theirs[0][there], x.numpy()[there], rtol=1e-4, atol=1e-5)
        assert np.array_equal(theirs[2][there], position.numpy()[there])


def test_padding_enters_nothing() -> None:
    """What stands in it, not even NaN, changes no token."""
    ids, lengths = batch()
    for spec in ("tome:num_merged=[3,2]", "avg_pool:layer=0,stride=3", "evit:keep_ratio=0.6"):
        module = Encoder(spec, LONGEST, padded=True, prefix=1)
        other = torch.where(torch.arange(LONGEST) < lengths[:, None], ids, 49 - ids)
        with torch.no_grad():
            (x, valid, _), (y, _, _) = module(ids, lengths), module(other, lengths)
        assert torch.equal(x[valid > 0], y[valid > 0])


def test_the_others_are_refused_with_the_reason() -> None:
    info = Encoder("none", LONGEST, padded=True, prefix=1).info
    for spec, reason in (
        ("random:keep_ratio=0.5", "draws its choice for one number of tokens, and another for another"),
        ("atome:merge_ratio=0.3", "counts the links that merge for one number of tokens"),
    ):
        with pytest.raises(
            ConfigError, match=f"text pads its inputs, and {spec.partition(':')[0]} {reason}; export for"
        ):
            place_one(parse_spec(spec), info)
    behind = replace(info, protected=(*info.protected, *leading_spans([("image", 0), ("text", 0)])))
    assert place_one(parse_spec("tome:num_merged=1"), behind)
    takes = {name for name in METHODS if compressor_class(METHODS[name]).takes_padding}
    assert takes == {"tome", "fastast", "evit", "vtc_cls", "avg_pool", "frame_pool", "frame_stack"}
