"""GGUF files as llama.cpp's converter would make them, written by the writer of the package `gguf`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from torch import Tensor

ARCHITECTURES = {"gemma3_text": "gemma3", "mistral": "llama"}  # where it is not the model_type


def write(
    path: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    types: Mapping[str, Type] | Type = Type.F32,
    more: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
    extra: Mapping[str, np.ndarray[Any, Any]] | None = None,
    split: int = 0,
) -> Path:
    """Write a model.

    Args:
        path: The file.
        config: Of transformers, as a dictionary.
        state: Its tensors, by the names of transformers.
        types: Of matrices: one for all, or by their names in the file.
        more: Adds metadata.
        extra: Further tensors, by their names in the file.
        split: The most tensors of one file, of which several are made; 0: one is.
    """
    arch = str(ARCHITECTURES.get(config["model_type"], config["model_type"]))
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    writer.add_type("model")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_freq_base(config.get("rope_theta", 10_000.0))
    dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_dimension_count(int(dim * config.get("partial_rotary_factor", 1)))
    more(writer)
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(number, config["num_hidden_layers"])
    for name, tensor in state.items():
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert own is not None, name
        array = tensor.float().numpy()
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        if arch in ("llama", "smollm3") and (".q_proj." in name or ".k_proj." in name):
            count = heads if ".q_proj." in name else groups
            halves = array.reshape(count, 2, array.shape[0] // count // 2, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        wanted = types if isinstance(types, Type) else types.get(own, Type.F32)
        kind = wanted if array.ndim > 1 else Type.F32
        packed = gguf.quants.quantize(np.ascontiguousarray(array), kind)
        writer.add_tensor(own, packed, raw_dtype=kind)
    for own, array in (extra or {}).items():
        writer.add_tensor(own, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
