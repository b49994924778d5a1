"""Selectors with the options that most share, and those that keep numbers for each row."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from trt_compress.methods.cache_selectors import SelectorConfig
from trt_compress.models.cache.contract import ROWS, CacheState, Choice, Memory, Selector
from trt_compress.models.cache.packing import moved_up
from trt_compress.models.compressors.sites import Arrival


class BudgetSelector(Selector):
    """A selector whose budget is the same in every layer, chosen when its options say."""

    config: Any

    def __init__(self, config: SelectorConfig, arrival: Arrival) -> None:
        self.config = config
        super().__init__(config, arrival)

    def entries(self, config: SelectorConfig) -> int:
        """The same in every layer."""
        return config.budget

    @property
    def every(self) -> int | None:
        """As the options say."""
        found: int | None = self.config.every
        return found

    @property
    def in_chunks(self) -> bool:
        """As the options say."""
        return bool(self.config.in_chunks)

    def looks(self) -> None:
        """Look at prompts; where it goes on choosing, at all tokens."""
        self.prompt_only = self.every is None
        self.observes = ("prefill",) if self.prompt_only else ("prefill", "step", "score")


class RowSelector(BudgetSelector):
    """A selector that keeps numbers for each row of a KV head, in a state [B, G, L, W] of float32.

    Attributes:
        state: Its name.
    """

    state: ClassVar[str]

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers of a row."""

    def cache_states(self) -> tuple[CacheState, ...]:
        """The numbers of each row."""
        shape = (self.layer.groups, ROWS, self.width)
        return (CacheState(name=self.state, shape=shape, kind="score", flush="rw", compact="rw", parts=self.observes),)

    def kept(self, choice: Choice, memory: Memory) -> None:
        """Move the numbers with their rows; rows that come later begin with zeros."""
        moved = choice.moved(memory[self.state])
        memory[self.state] = up_to(moved, choice.count)

    def packed(self, went: Tensor, memory: Memory) -> None:
        """Move the numbers with the rows that are left."""
        rows = memory[self.state]
        memory[self.state] = up_to(moved_up(rows, went), rows.shape[2] - went)


def up_to(rows: Tensor, length: Tensor) -> Tensor:
    """Rows [B, G, L, W] with zeros at and behind the length [B]."""
    there = torch.arange(rows.shape[2], device=rows.device) < length[:, None]
    return torch.where(there[:, None, :, None], rows, torch.zeros_like(rows))
