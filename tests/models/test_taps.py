"""What methods tap, of any layer, against attention written out here: each head, and rows that probe."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from tests.models.vits import make_vit
from trt_compress.errors import InternalError
from trt_compress.export.lower import add_bodies
from trt_compress.export.trace import onnx_from_graph
from trt_compress.methods import METHODS, CompressorConfig, CompressorSpec, Method, spec
from trt_compress.models.compressors import place as placer
from trt_compress.models.compressors.base import Acting, Compressor
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.registry import compressor_class
from trt_compress.models.compressors.sites import Arrival, Asked, HostInfo, Placement, Probe, Site, Tap
from trt_compress.models.hosts.base import CompressedModule, GraphSpec, TensorSpec
from trt_compress.models.hosts.timm_vit import classifier_graph
from trt_compress.models.layers.attention import HIDDEN, attention, attention_taps, last_rows
from trt_compress.plugins.token_select.op import token_select

PROBES = {
    "class row": Probe(start=0, stop=1),
    "window, each head": Probe(start=-4, rows="sum", heads="none"),
    "every third row, largest": Probe(step=3, rows="max", heads="max"),
    "logits of the last row": Probe(rows="last", softmax="none", heads="sum"),
    "all rows": Probe(rows="sum"),
    "SnapKV": Probe(start=-4, stop_key=-4, rows="sum", heads="none", kernel=3),
}


def written_out(probe: Probe, q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """Scores of keys, from the whole matrix of attention."""
    logits = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(2, 3) * q.shape[3] ** -0.5 + bias
    weights = logits if probe.softmax == "none" else logits.softmax(dim=3)
    rows = weights[:, :, slice(probe.start, probe.stop, probe.step), probe.first_key : probe.stop_key or None]
    over = {"mean": rows.mean(2), "sum": rows.sum(2), "max": rows.amax(2), "last": rows[:, :, -1]}[probe.rows]
    if probe.kernel > 1:
        over = torch.nn.functional.avg_pool1d(over, probe.kernel, stride=1, padding=probe.kernel // 2)
    return {"none": over, "mean": over.mean(1), "sum": over.sum(1), "max": over.amax(1)}[probe.heads]


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("causal", [False, True])
def test_probes_are_rows_of_attention(name: str, causal: bool) -> None:
    generator = torch.Generator().manual_seed(len(name))
    q, k = (torch.randn(2, heads, 11, 8, generator=generator) for heads in (4, 2))
    size = torch.randint(1, 4, (2, 11, 1), generator=generator).float()
    tap = Tap(kind="probe_scores", layer=5, probe=PROBES[name])
    unseen = torch.full((11, 11), float("-inf")).triu(1) if causal else torch.zeros(11, 11)
    bias = size.log().reshape(2, 1, 1, 11) + unseen
    if causal and PROBES[name].softmax == "none":
        return  # an unseen key has no logit
    found = attention_taps([tap.asked], q, k, k, size=size, causal=causal)
    torch.testing.assert_close(found[tap.asked], written_out(PROBES[name], q, k, bias), rtol=1e-5, atol=1e-6)


def test_probes_heed_what_attention_heeds() -> None:
    """Sizes, and a bias with a row of its own for each query, as masks are."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, 9, 4, generator=generator) for _ in range(3))
    size = torch.randint(1, 4, (2, 9, 1), generator=generator).float()
    bias = torch.where(torch.rand(1, 1, 9, 9, generator=generator) < 0.3, HIDDEN, 0.0)
    tap = Tap(kind="probe_scores", layer=0, probe=Probe(start=2, stop=8, step=2, heads="none", rows="max"))
    wanted: list[Asked] = [tap.asked, "values", "class_attention"]
    _, taps = attention(q, k, v, size=size, bias=bias, wanted=wanted)
    added = bias + size.log().reshape(2, 1, 1, 9)
    torch.testing.assert_close(taps[tap.asked], written_out(tap.probe or Probe(), q, k, added))
    torch.testing.assert_close(taps["values"], v.mean(dim=1))
    row = written_out(Probe(start=0, stop=1), q, k, added)
    torch.testing.assert_close(taps["class_attention"], row)


COUNTED = {
    **{name: probe for name, probe in PROBES.items() if probe.softmax != "none"},
    "last row": Probe(rows="last"),
    "rows in front": Probe(start=1, stop=6, step=2, rows="mean", heads="none", pool="max", kernel=3),
    "all but the last rows": Probe(stop=-3, rows="sum", heads="group_mean"),
    "span alone": Probe(start=-5, first_key=2, stop_key=-4, softmax="span", rows="mean", heads="none", head_kernel=3),
    "each key by those that see it": Probe(rows="sum", normalize="probes", heads="none"),
    "each key by all behind it": Probe(start=-6, rows="sum", normalize="tokens", heads="group_sum"),
}


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("causal", [False, True])
def test_rows_that_probe_a_padded_batch_are_those_of_each_item_alone(name: str, causal: bool) -> None:
    """The window of an item that has fewer rows than it, too."""
    generator, probe, counts = torch.Generator().manual_seed(len(name)), COUNTED[name], [11, 8, 3, 6]
    q, k = (torch.randn(4, heads, 11, 8, generator=generator) for heads in (4, 2))
    size = torch.randint(1, 4, (4, 11, 1), generator=generator).float()
    tap = Tap(kind="probe_scores", layer=0, probe=probe)
    count = torch.tensor(counts)
    filling = torch.where(torch.arange(11) < count[:, None], 0.0, HIDDEN)[:, None, None]
    found = attention_taps([tap.asked], q, k, k, size=size, bias=filling, causal=causal, count=count)[tap.asked]
    for item, length in enumerate(counts):
        if probe.stop_key < 0 and length <= probe.first_key - probe.stop_key:
            assert not found[item].any()  # there is no span
            continue
        if not range(length)[probe.start : probe.stop : probe.step]:
            assert not found[item].any()  # there is no row
            continue
        mine = (x[item : item + 1, :, :length] for x in (q, k, k))
        alone = attention_taps([tap.asked], *mine, size=size[item : item + 1, :length], causal=causal)[tap.asked]
        torch.testing.assert_close(found[item : item + 1, ..., : alone.shape[-1]], alone, rtol=1e-5, atol=1e-6)
        assert not found[item, ..., alone.shape[-1] :].any()


def test_onnx_runtime_probes_a_padded_batch() -> None:
    class Probed(CompressedModule):
        def forward(self, q: Tensor, k: Tensor, count: Tensor) -> Tensor:
            valid = torch.arange(k.shape[2]) < count[:, None]
            tap = Tap(kind="probe_scores", layer=0, probe=PROBES["SnapKV"])
            return attention(q, k, k, valid=valid, wanted=[tap.asked])[1][tap.asked]

    shape, lengths = ("batch", 2, "tokens", 8), {"tokens": (4, 9, 12)}
    graph = GraphSpec(
        module=Probed().eval(),
        inputs=(
            TensorSpec(name="q", shape=shape),
            TensorSpec(name="k", shape=shape),
            TensorSpec(name="count", shape=("batch",), dtype="int64", values=(1, 4)),
        ),
        outputs=(TensorSpec(name="score", shape=("batch", 2, "tokens")),),
        lengths=lengths,
    )
    model = add_bodies(onnx_from_graph(graph, graph.module, max_batch=4, opset=20))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for tokens, counts in ((9, (9, 5, 2)), (6, (6, 4, 1))):
        q, k = torch.randn(2, 3, 2, tokens, 8).unbind()
        feed = {"q": q.numpy(), "k": k.numpy(), "count": np.array(counts, np.int64)}
        (score,) = session.run(None, feed)
        wanted = graph.module(q, k, torch.tensor(counts))
        np.testing.assert_allclose(np.asarray(score), wanted.numpy(), rtol=1e-5, atol=1e-6)


def test_the_last_rows_of_what_is_read_in_pieces() -> None:
    rows = torch.arange(1.0, 25).reshape(2, 1, 12, 1)
    kept, read = torch.zeros(2, 1, 4, 1), [0, 0]
    for counts in ([3, 5], [0, 2], [5, 1], [2, 4]):
        piece = torch.full((2, 1, 5, 1), -1.0)
        for item, count in enumerate(counts):
            piece[item, 0, :count] = rows[item, 0, read[item] : read[item] + count]
            read[item] += count
        kept = last_rows(kept, piece, torch.tensor(counts))
        for item, end in enumerate(read):
            there = rows[item, 0, max(end - 4, 0) : end]
            assert torch.equal(kept[item, 0, 4 - len(there) :], there) and not kept[item, 0, : 4 - len(there)].any()


def test_queries_and_keys_before_rotation() -> None:
    q, k, v, plain_q, plain_k = (torch.randn(1, 2, 5, 4) for _ in range(5))
    asked: dict[Asked, Tensor] = {
        Tap(kind="keys", layer=0, heads="each", rotated=False).asked: plain_k,
        Tap(kind="queries", layer=0, rotated=False).asked: plain_q.mean(dim=1),
        Tap(kind="queries", layer=0, heads="each").asked: q,
        Tap(kind="keys", layer=0).asked: k.mean(dim=1),
    }
    _, found = attention(q, k, v, wanted=[*asked], unrotated=(plain_q, plain_k))
    assert all(torch.equal(found[key], tensor) for key, tensor in asked.items()) and found.keys() == asked.keys()
    assert Tap(kind="keys", layer=3).asked == "keys"  # where the kind says all, the kind alone
    with pytest.raises(InternalError, match="a tap of keys has a probe"):
        Tap(kind="keys", layer=0, probe=Probe())


# ---- a method that stands on taps of two layers, in a host and in ONNX Runtime ---------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbingConfig(CompressorConfig):
    """Options of the made-up method."""


PROBING = Method(
    name="probing", summary="a test", source="none", differs="nothing", config=ProbingConfig, implementation="none"
)
SCORES = Tap(kind="probe_scores", layer=0, probe=Probe(start=0, stop=6, step=2, rows="sum"))
EACH = {kind: Tap(kind=kind, layer=1, heads="each") for kind in ("queries", "values")}  # type: ignore[arg-type]
HIDDEN_TAP = Tap(kind="hidden", layer=1)


class Probing(Compressor):
    """Behind layer 1, keep the six tokens that rows of layer 0 and values of layer 1 rank first."""

    method = PROBING
    seen: dict[str, Tensor]

    @classmethod
    def placements(cls, config: Any, host: HostInfo) -> tuple[Placement, ...]:
        return (Placement(kind="after_attention", layers=(1,)),)

    @classmethod
    def taps(cls, config: Any, host: HostInfo, site: Site) -> tuple[Tap, ...]:
        return (SCORES, *EACH.values(), HIDDEN_TAP)

    def __init__(self, config: Any, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.tokens_out, self.seen = 6, {}

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        values, queries, hidden = taps.at(EACH["values"]), taps.at(EACH["queries"]), taps.at(HIDDEN_TAP)
        self.seen = {"scores": taps.at(SCORES), "values": values, "queries": queries, "hidden": hidden}
        score = taps.at(SCORES) * (values * queries).square().sum(dim=(1, 3)) + hidden.square().mean(dim=2)
        x, index, _ = token_select(tokens.x, score, num_kept=6, forced=[0])
        return tokens.at(x, index)


@pytest.fixture
def probing(monkeypatch: pytest.MonkeyPatch) -> CompressorSpec:
    monkeypatch.setattr(spec, "METHODS", {**METHODS, "probing": PROBING})

    def find(method: Method) -> type[Acting]:
        return Probing if method is PROBING else compressor_class(method)

    monkeypatch.setattr(placer, "compressor_class", find)
    return CompressorSpec(name="probing", config=ProbingConfig())


def test_taps_of_two_layers_through_a_host_and_onnx_runtime(probing: CompressorSpec, tmp_path: Path) -> None:
    vit: Any = make_vit().eval()
    channels, height, width = vit.patch_embed.proj.in_channels, *vit.patch_embed.img_size
    graph = classifier_graph(vit, [probing], name="tiny", input_shape=(channels, height, width))
    image = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted = graph.module(image)
        x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(image))))
        heads = []
        for number in (0, 1):
            block = vit.blocks[number]
            qkv = block.attn.qkv(block.norm1(x)).reshape(2, -1, 3, block.attn.num_heads, block.attn.head_dim)
            heads.append(qkv.permute(2, 0, 3, 1, 4))
            hidden = x
            x = block(x)
    (step,) = graph.module.get_submodule("placed").steps("blocks.1")  # type: ignore[operator]
    (q0, k0, _), (q1, _, v1) = heads
    torch.testing.assert_close(
        step.seen["scores"], written_out(SCORES.probe or Probe(), q0, k0, torch.zeros(())), rtol=1e-4, atol=1e-5
    )
    for name, tensor in {"queries": q1, "values": v1, "hidden": hidden}.items():
        torch.testing.assert_close(step.seen[name], tensor, rtol=1e-4, atol=1e-5)
    model = add_bodies(onnx_from_graph(graph, graph.module, max_batch=2, opset=20))
    assert [node.op_type for node in model.graph.node].count("TrtcAttentionScore") == 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": image.numpy()})
    np.testing.assert_allclose(np.asarray(found), wanted.numpy(), rtol=1e-4, atol=1e-5)
    assert replace(SCORES, layer=0) == SCORES.asked
