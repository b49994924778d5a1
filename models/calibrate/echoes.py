"""Head search of RazorAttention: a block of random tokens is read several times, and heads are scored by how much they
attend to earlier copies of a token (echo), and to what stands behind these (induction).

Source: RazorAttention, arXiv:2407.15891, §3.2.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.models.cache.contract import CacheLayer, Memory, NewEntries
from trt_compress.models.compressors.calibration import Alphabet, Batch, CalibrationData, CalibrationHost

BLOCK, REPEATS = 2500, 4
"""Random tokens, and how often they stand in the text; where a model reads less, the block is shorter."""
_SHORTEST = 8
_SEED = 25


def samples(alphabet: Alphabet) -> CalibrationData:
    """One text to search on, and another with a block of a quarter of the length, whose search is compared.

    Raises:
        ConfigError: The model reads too few tokens.
    """
    first = [] if alphabet.first is None else [alphabet.first]
    block = min(BLOCK, (alphabet.context - len(first)) // REPEATS)
    if block < _SHORTEST:
        raise ConfigError(
            f"calibrate: {alphabet.context} tokens of context are too few to repeat {_SHORTEST} of them {REPEATS} "
            "times."
        )
    generator = np.random.default_rng(_SEED)
    texts = [
        np.concatenate([first, np.tile(generator.choice(alphabet.tokens, length), REPEATS)]).astype(np.int64)[None]
        for length in (block, max(block // 4, _SHORTEST))
    ]
    return CalibrationData(fit=[{"prompt": texts[0]}], held_out=[{"prompt": texts[1]}])


def search(host: CalibrationHost, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Echo and induction scores of each KV head, [layers, G] each: of its query heads the largest.

    A head's score is the share of the attention of tokens that stood in the text before, the mean over these.
    """
    totals: dict[int, Tensor] = {}  # of heads, by KV head
    count = 0
    for batch in batches:
        text = torch.as_tensor(batch["prompt"])
        count += int(_copies(text, 0, text.shape[1])[0].any(dim=2).sum())

        def look(layer: CacheLayer, reading: NewEntries, memory: Memory, text: Tensor = text) -> None:
            start = int(reading.seen[0])
            if start < text.shape[1]:
                of_heads = scores(layer, reading.query, memory["keys"], text, start)
                found = torch.unflatten(of_heads, 1, (layer.groups, -1))
                totals[layer.place] = totals.get(layer.place, torch.zeros_like(found)) + found

        for _ in host.watch_caches([batch], look):
            pass
    if not count:
        raise ConfigError("calibrate: no token of the data stands twice in its text; give texts that repeat tokens.")
    both = torch.stack([totals[place].amax(dim=2) for place in sorted(totals)], dim=1) / count
    return both[0].float(), both[1].float()


def scores(layer: CacheLayer, query: Tensor, keys: Tensor, text: Tensor, start: int) -> Tensor:
    """Attention of each head to copies and behind copies, summed over rows, [2, H] in float64.

    Args:
        layer: The layer.
        query: Of tokens from `start` on, [B, H, T, D].
        keys: Of all tokens up to these, [B, G, L, D].
        text: All tokens, [B, N].
        start: The first of the run.
    """
    stop = min(start + query.shape[2], text.shape[1])
    masks = _copies(text, start, stop)
    repeats = layer.heads // layer.groups
    hidden = torch.arange(stop) > torch.arange(start, stop)[:, None]
    found = []
    for head in range(layer.heads):
        own = keys[:, head // repeats, :stop].float()
        products = query[:, head, : stop - start].float() @ own.transpose(1, 2) * layer.scale
        if layer.softcap:
            products = (products / layer.softcap).tanh() * layer.softcap
        attention = products.masked_fill(hidden, -torch.inf).softmax(dim=2)
        found.append([(attention * mask).sum(dtype=torch.float64) for mask in masks])
    return torch.tensor(found, dtype=torch.float64).T


def _copies(text: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """For tokens from `start` to `stop`, which of those before are the same, and which stand behind such, [B, T, L]."""
    column = torch.arange(stop)
    row = torch.arange(start, stop)[:, None]
    same = text[:, start:stop, None] == text[:, None, :stop]
    before = torch.zeros_like(same)
    before[:, :, 1:] = same[:, :, :-1] & (column[:-1] < row)
    return same & (column < row), before
