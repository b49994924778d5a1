"""A small encoder that makes a vector of a text, out of a directory as sentence-transformers writes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trt_compress.errors import UnsupportedError
from trt_compress.foreign import reading, shown
from trt_compress.models.hosts.hf_directory import pooling_of, weight_files

_AT_ONCE = 256  # texts
_LONGEST = 64  # tokens: these texts are tokens themselves


class SentenceEncoder:
    """An encoder of transformers, with the pooling that its directory asks for: the mean, or the first token.

    Args:
        path: A directory with config.json, model.safetensors and tokenizer.json. No code in it is run.

    Raises:
        ConfigError: A file is missing or damaged.
        UnsupportedError: It pools in another way, or transformers does not know the model.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer
        from transformers import AutoModel

        weight_files(path)
        self._first = pooling_of(path).first
        advice = "give a directory that sentence-transformers wrote"
        with reading(f"'{shown(str(path))}'", advice):
            self._tokenizer: Any = Tokenizer.from_file(str(path / "tokenizer.json"))
        self._tokenizer.enable_truncation(_LONGEST)
        self._tokenizer.enable_padding()
        with reading(f"'{shown(str(path))}'", advice, error=UnsupportedError):
            self._model: Any = AutoModel.from_pretrained(
                path, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            ).eval()

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of texts, [n, E] float32, of length 1; equal texts are computed once.

        Args:
            texts: An empty one gives zeros.
        """
        each = sorted({text for text in texts if text}, key=lambda text: (len(text), text))
        rows: dict[str, Tensor] = {}
        for start in range(0, len(each), _AT_ONCE):
            part = each[start : start + _AT_ONCE]
            rows.update(zip(part, self._vectors(part), strict=True))
        width = int(self._model.config.hidden_size)
        return torch.stack([rows[text] if text else torch.zeros(width) for text in texts]).clone()

    def _vectors(self, texts: Sequence[str]) -> Tensor:
        encoded = self._tokenizer.encode_batch(list(texts))
        numbers = torch.tensor([item.ids for item in encoded])
        mask = torch.tensor([item.attention_mask for item in encoded])
        states = self._model(input_ids=numbers, attention_mask=mask).last_hidden_state
        if self._first:
            return F.normalize(states[:, 0], dim=1)
        return F.normalize((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=1)
