"""A language model from a GGUF file, under the names and in the forms of Hugging Face."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_compress.errors import ConfigError
from trt_compress.foreign import shown
from trt_compress.models.language.assets import text_assets
from trt_compress.models.language.gguf_blocks import PLAIN, Read, numbers, small_floats, whole_numbers
from trt_compress.models.language.gguf_config import architecture_of, config_of, names_of
from trt_compress.models.language.gguf_file import GgufTensor
from trt_compress.models.language.gguf_parts import GgufParts
from trt_compress.models.language.gguf_tokenizer import ending_tokens, token_texts, tokenizer_json
from trt_compress.models.language.source import Assets, Header, no_such_tensor, sha256_of_files

if TYPE_CHECKING:
    from torch import Tensor

    from trt_compress.models.layers.blocks import WholeNumbers

_SAMPLING = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


class GgufModel:
    """A model in a GGUF file, or in several; `LanguageSource` says what it can do.

    Args:
        path: The file, or the first of several.

    Raises:
        ConfigError: One cannot be read, is damaged, or a value that is needed is missing.
        UnsupportedError: Another version, type of numbers or architecture.

    Attributes:
        name: `gguf:FILE`.
        config: As config.json would have it.
        origins: The files.
    """

    def __init__(self, path: Path) -> None:
        self.name = f"gguf:{path}"
        self._file = GgufParts(path)
        self.origins = self._file.origins
        self._architecture = architecture_of(self.name, self._file.metadata)
        self._names = names_of(self.name, self._architecture, self._file.tensors)
        self.config: Mapping[str, Any] = config_of(
            self.name, self._architecture, self._file.metadata, self._file.tensors, self._factors
        )

    def names(self) -> tuple[str, ...]:
        """All tensors."""
        return tuple(self._names)

    def header(self, name: str) -> Header:
        """What a tensor is, without reading it."""
        stored, _ = self._stored(name)
        return Header(stored.shape, PLAIN.get(stored.type, "float16"), stored.bytes, stored.type.lower())

    def tensor(self, name: str) -> "Tensor":
        """Read one tensor now."""
        stored, read = self._stored(name)
        found = numbers(stored, read)
        if self._architecture.norm_plus_one and name.endswith("norm.weight"):
            found = found - 1
        return self._unpermuted(name, found)

    def blocks(self, name: str) -> "WholeNumbers | None":
        """Read one tensor of blocks as whole numbers."""
        found = whole_numbers(*self._stored(name))
        if found is None:
            return None
        return replace(
            found,
            codes=self._unpermuted(name, found.codes),
            scale=self._unpermuted(name, found.scale),
            zero=None if found.zero is None else self._unpermuted(name, found.zero),
            least=None if found.least is None else self._unpermuted(name, found.least),
        )

    def assets(self) -> Assets:
        """Tokenizer, chat template, settings of generation and licence out of the metadata."""
        metadata = self._file.metadata
        license_ = metadata.get("general.license.name") or metadata.get("general.license")
        license_ = shown(license_)[:200] if isinstance(license_, str) else None
        if "tokenizer.ggml.model" not in metadata and "tokenizer.huggingface.json" not in metadata:
            return Assets(license=license_)
        words = token_texts(self.name, metadata)
        special = {
            ours: words[number]
            for key, ours in _SPECIAL.items()
            if type(number := metadata.get(f"tokenizer.ggml.{key}_token_id")) is int and 0 <= number < len(words)
        }
        template = metadata.get("tokenizer.chat_template")
        text, files = text_assets(
            self.name,
            tokenizer_json(self.name, metadata, strips=self._architecture.model_type == "phi3"),
            vocabulary=self.config["vocab_size"],
            stop=ending_tokens(self.name, metadata),
            bos=self.config.get("bos_token_id"),
            pad=self.config.get("pad_token_id"),
            template=template if isinstance(template, str) else None,
            special=special,
            generation={
                ours: metadata[f"general.sampling.{key}"]
                for key, ours in _SAMPLING.items()
                if f"general.sampling.{key}" in metadata
            },
            context=self.config["max_position_embeddings"],
        )
        return Assets(files=files, text=text, license=license_)

    def sha256(self) -> str:
        """Hash of the file; of several as of a directory."""
        found = sha256_of_files(self.origins)
        self._file.require_unchanged()
        return found

    def _stored(self, name: str) -> tuple[GgufTensor, Read]:
        if name not in self._names:
            raise no_such_tensor(self.name, name, self._names)
        own = self._names[name]
        return self._file.tensors[own], self._file.read(own)

    def _factors(self, tensor: str) -> list[float]:
        stored = self._file.tensors[tensor]
        if stored.type != "F32" or stored.bytes > 1 << 16:
            raise ConfigError(f"{self.name}: '{tensor}' is no short list of float32; convert the model again.")
        return small_floats(stored, self._file.read(tensor))

    def _unpermuted(self, name: str, tensor: "Tensor") -> "Tensor":
        """Rows of q and k in halves again, as Hugging Face rotates them, where the file has them in pairs."""
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if not self._architecture.permuted or heads is None:
            return tensor
        count, rows = self.config[heads], tensor.shape[0]
        if rows % (2 * count):
            raise ConfigError(f"{self.name}: '{name}' has {rows} rows, which are not those of {count} heads.")
        return tensor.reshape(count, rows // count // 2, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
