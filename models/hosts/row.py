"""What the hosts share whose one graph is a row of layers, with compressors in the layers and behind them."""

from collections.abc import Sequence
from typing import TypeVar

from trt_compress.methods import CompressorSpec
from trt_compress.models.compressors.place import GraphPlan, place_first, place_one
from trt_compress.models.compressors.sites import HostInfo
from trt_compress.models.hosts.base import CompressedModule
from trt_compress.models.layers.first import first_layers

_Row = TypeVar("_Row", bound="CompressedRow")


class CompressedRow(CompressedModule):
    """A row of layers with compressors.

    Attributes:
        row: Where the layers are in the module.
        info: What compressors may know of the model; it says how wide its tokens are.
        specs: The compressors, in order.
        placed: Where they act.
        tokens_out: Tokens behind the row.
        width_out: Their channels.
    """

    row: str
    info: HostInfo
    specs: tuple[CompressorSpec, ...]
    placed: GraphPlan
    tokens_out: int
    width_out: int

    def place(self, specs: Sequence[CompressorSpec], info: HostInfo, *, row: str) -> None:
        """Put compressors where they act.

        Raises:
            ConfigError: one does not fit the model.
        """
        self.row, self.info, self.specs = row, info, tuple(specs)
        self.take(place_one(specs, info))

    def take(self, placed: GraphPlan) -> None:
        """Have compressors where this plan says."""
        assert self.info.width is not None  # each of these hosts tells it
        self.placed, self.plan = placed, placed.sites
        self.tokens_out, self.width_out = placed.tokens_out, placed.width_out or self.info.width

    def first_layers(self: _Row, count: int) -> _Row:
        """The same without its last layers, and with what acts at those that are left and behind the row."""
        short = first_layers(self, [self.row], count)
        short.take(place_first(self.specs, self.info, self.placed, count))
        return short
