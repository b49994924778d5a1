"""Small hosts of every kind: states of constant and of growing size, several inputs, several graphs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trt_compress.format.graphs import StateSpec
from trt_compress.methods.config import CompressorConfig
from trt_compress.models.compressors.place import SitePlan
from trt_compress.models.hosts.base import CompressedModule, GraphSpec, LoadedHost, TensorSpec, WeightsInfo
from trt_compress.plugins.operator import at_site, mark_tensor
from trt_compress.plugins.token_select.op import token_select

FRAME = TensorSpec(name="frame", shape=("batch", 12, 8))
SCORE = TensorSpec(name="score", shape=("batch", 5))
MEAN = StateSpec(input="mean_in", output="mean_out", shape=("batch", 8), initial={"fill": 0.25}, name="mean")


def linear(rows: int, columns: int, seed: int) -> nn.Linear:
    layer = nn.Linear(rows, columns)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / rows**0.5)
    return layer


class Selecting(CompressedModule):
    """Keeps the tokens of a frame that differ most from a running mean, which is its state."""

    def __init__(self, num_kept: int) -> None:
        super().__init__()
        self.num_kept = num_kept
        self.head = linear(8, 5, seed=1)
        plan = SitePlan(
            name="frame", layer=0, compressor="toy", config=CompressorConfig(), tokens_in=12, tokens_out=num_kept
        )
        self.plan = (plan,)

    def forward(self, frame: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        score = (frame - mean[:, None]).square().sum(dim=2)
        with at_site("frame"):
            kept, _, _ = token_select(frame, score, num_kept=self.num_kept)
            kept = mark_tensor("tokens", kept)
        return self.head(kept.tanh()).mean(dim=1), 0.5 * mean + 0.5 * kept.mean(dim=1)


class Growing(CompressedModule):
    """Hears chunks of any length, adds a bias by the number of a voice, and remembers all that it heard."""

    def __init__(self) -> None:
        super().__init__()
        self.voices = nn.Embedding.from_pretrained(linear(8, 4, seed=2).weight.detach())
        self.mix = linear(8, 8, seed=3)

    def forward(self, chunk: Tensor, voice: Tensor, heard: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        new = self.mix(chunk) + self.voices(voice)[:, None]
        heard = torch.cat([heard, new], dim=1)
        return new.softmax(dim=2), heard.sum(dim=1).argmax(dim=1), heard


class Encode(CompressedModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = linear(8, 8, seed=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).argmax(dim=2)


class Decode(CompressedModule):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(linear(8, 8, seed=5).weight.detach())

    def forward(self, codes: Tensor, gain: Tensor) -> Tensor:
        return self.table(codes) * gain[:, None, None]


def host_of(*graphs: GraphSpec, links: tuple[tuple[str, str], ...] = ()) -> LoadedHost:
    return LoadedHost(
        source="zoo:toy",
        family="toy",
        module=graphs[0].module,
        weights=WeightsInfo(source="seeded", sha256="0" * 64),
        attach=lambda specs: graphs,
        links=links,
    )


def levels() -> LoadedHost:
    """Two levels of one model that carry on the same state."""
    return host_of(
        *(
            GraphSpec(name=name, module=Selecting(kept).eval(), inputs=(FRAME,), outputs=(SCORE,), states=(MEAN,))
            for name, kept in (("k4", 4), ("k9", 9))
        )
    )


def level() -> LoadedHost:
    """One level alone."""
    graph = GraphSpec(module=Selecting(4).eval(), inputs=(FRAME,), outputs=(SCORE,), states=(MEAN,))
    return host_of(graph)


def growing() -> LoadedHost:
    """A state that grows by chunks whose length varies, and an input of integers."""
    graph = GraphSpec(
        module=Growing().eval(),
        inputs=(
            TensorSpec(name="chunk", shape=("batch", "time", 8)),
            TensorSpec(name="voice", shape=("batch",), dtype="int64", values=(0, 3)),
        ),
        outputs=(
            TensorSpec(name="share", shape=("batch", "time", 8)),
            TensorSpec(name="loudest", shape=("batch",), dtype="int64"),
        ),
        states=(StateSpec(input="past", output="heard", shape=("batch", "held", 8), capacity=40),),
        lengths={"time": (1, 5, 9), "held": (0, 10, 40)},
    )
    return host_of(graph)


def codec() -> LoadedHost:
    """Encode and decode, linked."""
    codes = TensorSpec(name="codes", shape=("batch", "time"), dtype="int64", values=(0, 7))
    lengths = {"time": (2, 6, 10)}
    encode = GraphSpec(
        name="encode",
        role="encode",
        module=Encode().eval(),
        inputs=(TensorSpec(name="x", shape=("batch", "time", 8)),),
        outputs=(codes,),
        lengths=lengths,
    )
    decode = GraphSpec(
        name="decode",
        role="decode",
        module=Decode().eval(),
        inputs=(codes, TensorSpec(name="gain", shape=("batch",))),
        outputs=(TensorSpec(name="y", shape=("batch", "time", 8)),),
        lengths=lengths,
    )
    return host_of(encode, decode, links=(("encode.codes", "decode.codes"),))


HOSTS: dict[str, Callable[[], LoadedHost]] = {"level": level, "levels": levels, "growing": growing, "codec": codec}
