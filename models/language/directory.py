"""A model of a directory as Hugging Face writes it: config.json, and safetensors in one file or in shards."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.foreign import shown
from trt_compress.models.hosts.hf_directory import INDEX, read_json, weight_files
from trt_compress.models.hosts.safetensors_file import SafetensorsFile
from trt_compress.models.language.assets import directory_assets
from trt_compress.models.language.source import Assets, Header, no_such_tensor, sha256_of_files

if TYPE_CHECKING:
    from torch import Tensor

    from trt_compress.models.layers.blocks import WholeNumbers

_READ = frozenset({"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"})

_SHOWN = 3
_LEFT_OVER = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Ends of names of what old versions saved although it is computed."""


class Directory:
    """A model in a directory; `LanguageSource` says what it can do.

    Args:
        path: The directory.

    Raises:
        ConfigError: A file is missing, damaged or cut, or the files do not agree on which has which tensor.
        UnsupportedError: Tensors of a dtype that is not read.

    Attributes:
        name: `hf:DIR`.
        config: What stands in config.json.
        origins: The files of tensors, in the order of their names.
    """

    def __init__(self, path: Path) -> None:
        self.name = f"hf:{path}"
        self.path = path
        self.config: Mapping[str, Any] = read_json(path / "config.json")
        if not (path / INDEX).is_file() and not (path / "model.safetensors").is_file():
            others = sorted(
                file.name for file in path.glob("*") if file.suffix in (".bin", ".pth", ".pt", ".safetensors")
            )
            raise ConfigError(
                f"{self.name} has no model.safetensors and no {INDEX}"
                + (f", but {', '.join(shown(name)[:60] for name in others[:_SHOWN])}" if others else "")
                + "; save the model with save_pretrained."
            )
        self._places: dict[str, SafetensorsFile] = {}
        files = [self._opened(file) for file in weight_files(path)]
        self.origins = tuple(file.origin for file in files)
        for opened in files:
            for tensor in opened.tensors:
                if tensor in self._places:
                    raise ConfigError(
                        f"{self.name}: two of its files have a tensor '{shown(tensor)[:100]}'; save the model again "
                        "with save_pretrained into an empty directory."
                    )
                self._places[tensor] = opened
        if (path / INDEX).is_file():
            self._check_index()
        self._names = tuple(name for name in self._places if not name.endswith(_LEFT_OVER))

    def names(self) -> tuple[str, ...]:
        """All tensors."""
        return self._names

    def header(self, name: str) -> Header:
        """What a tensor is, without reading it."""
        stored = self._file(name).tensors[name]
        return Header(stored.shape, stored.dtype, stored.nbytes, stored.dtype)

    def tensor(self, name: str) -> "Tensor":
        """Read one tensor now."""
        return self._file(name).read(name)

    def blocks(self, name: str) -> "WholeNumbers | None":
        """None: these tensors are what they are."""
        return None

    def assets(self) -> Assets:
        """Tokenizer, chat template, settings of generation and licence out of the directory."""
        return directory_assets(self.path, self.config)

    def sha256(self) -> str:
        """Hash of the files with tensors."""
        found = sha256_of_files(self.origins)
        for origin in self.origins:
            origin.require_unchanged()
        return found

    def _file(self, name: str) -> SafetensorsFile:
        if name not in self._places:
            raise no_such_tensor(self.name, name, self._places)
        return self._places[name]

    def _opened(self, path: Path) -> SafetensorsFile:
        if not path.exists():
            raise ConfigError(
                f"{self.name}: {path.name} is named in {INDEX} and is not there; download it, or save the model again."
            )
        opened = SafetensorsFile.open(path)
        for name, stored in opened.tensors.items():
            if stored.dtype not in _READ:
                raise UnsupportedError(
                    f"{self.name}: '{shown(name)[:100]}' is of {stored.dtype}, which is not read here; there are "
                    f"{', '.join(sorted(_READ))}."
                )
        return opened

    def _check_index(self) -> None:
        """The index says the same as the shards."""
        places = read_json(self.path / INDEX)["weight_map"]
        for name, shard in places.items():
            if name not in self._places or self._places[name].origin.path.name != shard:
                raise ConfigError(
                    f"{self.name}: {INDEX} says that '{shown(name)[:100]}' is in {shown(shard)[:100]}, and it is not; "
                    "download both again, or save the model again."
                )
        if extra := [name for name in self._places if name not in places]:
            more = f" and {len(extra) - _SHOWN} more" if len(extra) > _SHOWN else ""
            named = ", ".join(f"'{shown(name)[:100]}'" for name in extra[:_SHOWN])
            raise ConfigError(
                f"{self.name}: its files hold {named}{more}, which {INDEX} does not name; download them again, or save "
                "the model again."
            )
