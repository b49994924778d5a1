"""What a text costs a model before and after its tokenizer was exchanged, and with rows made in simpler ways."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trt_compress.errors import UnsupportedError
from trt_compress.models.text.heuristics import RowOrigin
from trt_compress.models.text.transplant import Mixture, transplanted
from trt_compress.runtime.generate.perplexity import Perplexity, perplexity_of, windows_of
from trt_compress.tools.tokenizers.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCost:
    """A way to make rows, and what the text costs with it.

    Attributes:
        rows: `before`, `after`, or a simpler way: `mean of pieces` (as ReTok), `random`.
        tokens: Of the whole text.
        perplexity: Of the text; bits a byte compare tokenizers, perplexities of tokens do not.
    """

    rows: str
    tokens: int
    perplexity: Perplexity

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return asdict(self)


def measure(
    checkpoint: Path,
    text: str,
    *,
    window: int,
    old: Vocabulary,
    new: Vocabulary,
    tables: Mapping[str, Tensor],
    made: Mixture,
    seed: int,
    progress: Callable[[str], None],
) -> tuple[TextCost, ...]:
    """Score a text with the new checkpoint, and with other tables put into it.

    Args:
        checkpoint: The new checkpoint, which transformers loads.
        text: The text, of two tokens at least by both tokenizers.
        window: Tokens that are scored together.
        old: The old tokenizer.
        new: The new one.
        tables: The old tables by name: the embeddings first, then the head and its bias where there are some.
        made: What the new rows were made of.
        seed: Of random rows.
        progress: Is told what is being done.

    Raises:
        UnsupportedError: The model gives what is no number.
    """
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    model = loader.from_pretrained(
        checkpoint, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
    ).eval()
    rows = int(model.config.vocab_size)
    found = []
    for name, vocabulary, how in (
        ("before", old, None),
        ("after", new, made),
        ("mean of pieces", new, _plain_mean(made)),
        ("random", new, replace(made, origin=made.origin.where(made.origin == RowOrigin.COPIED, RowOrigin.RANDOM))),
    ):
        progress(f"the text, {name}")
        _put(model, [table if how is None else transplanted(table, how, rows, seed=seed) for table in tables.values()])
        found.append(_quality(name, model, vocabulary, text, window))
    return tuple(found)


def _plain_mean(made: Mixture) -> Mixture:
    """The mean of the pieces of each token that has some; neighbours count for nothing."""
    counts = torch.zeros(len(made.unique)).index_add_(0, made.piece_of, torch.ones(len(made.pieces)))
    origin = made.origin.clone()
    origin[made.unique] = torch.where(counts > 0, RowOrigin.LOCAL, RowOrigin.RANDOM).to(torch.uint8)
    return replace(made, origin=origin, piece_weights=1 / counts[made.piece_of])


def _put(model: Any, tables: Sequence[Tensor]) -> None:
    """Other tables in a model: embeddings, head and bias; a head that is tied gets the embeddings."""
    entrance, head = model.get_input_embeddings(), model.get_output_embeddings()
    entrance.weight = nn.Parameter(tables[0].float(), requires_grad=False)
    entrance.padding_idx = None
    two = [table for table in tables[1:] if table.ndim == 2]
    tied = bool(model.config.tie_word_embeddings) or not two
    head.weight = entrance.weight if tied else nn.Parameter(two[0].float(), requires_grad=False)
    if bias := [table for table in tables[1:] if table.ndim == 1]:
        head.bias = nn.Parameter(bias[0].float(), requires_grad=False)


@torch.inference_mode()
def _quality(name: str, model: Any, vocabulary: Vocabulary, text: str, size: int) -> TextCost:
    tokens = vocabulary.tokenizer.encode(text, special=False)
    scores, scored = [], 0
    for window in windows_of(tokens, size):
        logits = model(input_ids=torch.tensor([window])).logits[0, :-1].float()
        found = logits.log_softmax(-1).gather(1, torch.tensor(window[1:])[:, None])[:, 0]
        if not bool(found.isfinite().all()):
            raise UnsupportedError(
                f"--text: the model with the rows '{name}' gives probabilities that are no numbers; its weights are "
                "damaged, or too large for float32. The new checkpoint was written all the same."
            )
        scores.append(found.double().numpy())
        scored += len(vocabulary.tokenizer.library.decode(window[1:], skip_special_tokens=False).encode())
    return TextCost(rows=name, tokens=len(tokens), perplexity=perplexity_of(scores, scored))
