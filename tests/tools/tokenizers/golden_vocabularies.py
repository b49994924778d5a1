"""Byte-level tokenizers and tiny checkpoints out of the golden cases, which hold tokens as text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

_AS_LETTERS = {ord(" "): "Ġ", ord("\n"): "Ċ", ord("\t"): "ĉ", ord("\r"): "č"}


def byte_level(tokens: Sequence[str]) -> Tokenizer:
    """A tokenizer with these tokens in this order; each merge is what the earlier ones leave of a token: two pieces."""
    written = [token.translate(_AS_LETTERS) for token in tokens]
    merges: list[tuple[str, str]] = []
    for token in written:
        if len(token) > 1:
            first, second = _split(token, {pair: rank for rank, pair in enumerate(merges)})
            merges.append((first, second))
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(written)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


def _split(token: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    parts = list(token)
    while True:
        found = [
            (ranks[pair], place) for place, pair in enumerate(zip(parts, parts[1:], strict=False)) if pair in ranks
        ]
        if not found:
            return parts
        _, place = min(found)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def checkpoint(folder: Path, tokenizer: Tokenizer, table: Tensor, head: Tensor | None, **more: Any) -> Path:
    """A tiny Llama with this table of embeddings, and with this head if the two are not tied."""
    config = transformers.LlamaConfig(
        vocab_size=len(table),
        hidden_size=table.shape[1],
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=head is None,
        **more,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight").copy_(table)
        if head is not None:
            model.get_parameter("lm_head.weight").copy_(head)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
