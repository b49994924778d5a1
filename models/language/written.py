"""A language model as Hugging Face keeps one: config.json, safetensors in shards, and the files beside them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trt_compress.errors import UnsupportedError
from trt_compress.files import sync_folder, write_whole
from trt_compress.models.hosts.hf_directory import INDEX
from trt_compress.models.language.source import LanguageSource

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 1 << 30

_ONLY = "model.safetensors"
_FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "phi3": "Phi3", "gemma2": "Gemma2"}


class Planned(NamedTuple):
    """A tensor that will be written.

    Attributes:
        name: As Hugging Face calls it.
        nbytes: Its size in the file.
        read: Makes it when its turn comes.
    """

    name: str
    nbytes: int
    read: "Callable[[], Tensor]"


def tensors_of(source: LanguageSource) -> list[Planned]:
    """All tensors of a model as they are; blocks of whole numbers become float16."""

    def planned(name: str) -> Planned:
        header = source.header(name)
        size = 1
        for length in header.shape:
            size *= length
        bits = {"float64": 8, "float32": 4, "int64": 8, "int32": 4}.get(header.dtype, 2)
        return Planned(name, size * bits, lambda: source.tensor(name))

    return [planned(name) for name in source.names()]


def config_of(source: LanguageSource) -> dict[str, Any]:
    """The config.json of a model, with the class that transformers loads it as.

    Raises:
        UnsupportedError: The model does not name its class, and it is of no family whose class is known.
    """
    config = {key: value for key, value in source.config.items() if key != "quantization_config"}
    if not config.get("architectures"):
        kind = config.get("model_type")
        if kind not in _FAMILIES:
            raise UnsupportedError(f"{source.name} is of the family {kind}; written are {', '.join(_FAMILIES)}.")
        config["architectures"] = [f"{_FAMILIES[kind]}ForCausalLM"]
    return config


def write_checkpoint(
    folder: Path,
    tensors: Sequence[Planned],
    config: Mapping[str, Any],
    files: Mapping[str, bytes],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint into a folder that is there, file by file to the disk.

    A shard's tensors are in memory at a time, twice.

    Args:
        folder: The folder; who wants it whole or not at all gives a staged one.
        tensors: What is written, in order.
        config: What will stand in config.json.
        files: Other files of the folder by name.
        shard_bytes: The most of a file with more than one tensor.

    Raises:
        OSError: It cannot be written.
    """
    shards = list(_shards(tensors, shard_bytes))
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [_ONLY]
    total = 0
    places: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        read = {each.name: each.read().contiguous() for each in shard}
        total += sum(tensor.numel() * tensor.element_size() for tensor in read.values())
        places |= dict.fromkeys(read, name)
        _save(folder / name, read)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_whole(folder / INDEX, json.dumps(index, indent=2) + "\n")
    write_whole(folder / "config.json", json.dumps(config, indent=2) + "\n")
    for name, content in files.items():
        write_whole(folder / name, content)
    sync_folder(folder)


def _shards(tensors: Sequence[Planned], most: int) -> Iterator[list[Planned]]:
    shard: list[Planned] = []
    size = 0
    for each in tensors:
        if shard and size + each.nbytes > most:
            yield shard
            shard, size = [], 0
        shard.append(each)
        size += each.nbytes
    yield shard


def _save(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    from safetensors.torch import save

    write_whole(path, save(dict(tensors), {"format": "pt"}))
