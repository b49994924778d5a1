"""The source of a language model by its name: `hf:DIR`, `gguf:FILE`, and with `?lora=DIR` an adapter merged into it."""

from pathlib import Path

from trt_compress.errors import ConfigError
from trt_compress.model_name import ModelName
from trt_compress.models.language.directory import Directory
from trt_compress.models.language.gguf_model import GgufModel
from trt_compress.models.language.lora import WithLora
from trt_compress.models.language.packed import PackedDirectory, is_packed
from trt_compress.models.language.source import LanguageSource


def open_language(model: ModelName) -> LanguageSource:
    """Open a language model; headers are read and checked, tensors are not. Torch is not loaded.

    Args:
        model: A name of the source "hf" or "gguf".

    Raises:
        ConfigError: A file is missing, damaged, or does not fit the others.
        UnsupportedError: It is stored in a way that is not read.
    """
    path = Path(model.name)
    if path.suffix == ".gguf" and model.source == "hf" and path.is_file():
        raise ConfigError(f"hf:{path} is a file; write gguf:{path}.")
    opened: LanguageSource
    if model.source == "gguf":
        opened = GgufModel(path)
    else:
        directory = Directory(path)
        opened = PackedDirectory(directory) if is_packed(directory) else directory
    lora = model.options.get("lora")
    return opened if lora is None else WithLora(opened, lora)
