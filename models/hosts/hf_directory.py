"""A directory as transformers' save_pretrained writes it: which files are there, and what stands in those of JSON."""

from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.files import read_regular
from trt_compress.foreign import reason_of, strict_json

INDEX = "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConfigError: it is not there, or no JSON object.
    """
    try:
        content = strict_json(read_regular(path, limit=16 << 20))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); hf:PATH takes a directory written by save_pretrained."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({reason_of(error)}); copy or download it again.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no JSON object; copy or download it again.")
    return content


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a directory, in the order of their names.

    Raises:
        ConfigError: there are none.
    """
    index = path / INDEX
    if index.is_file():
        places = read_json(index).get("weight_map", {})
        files: list[Any] = list(places.values()) if isinstance(places, dict) else [None]
        if not all(isinstance(name, str) and Path(name).name == name for name in files):
            raise ConfigError(
                f"{index} does not name files of its folder by tensor; save the model again with save_pretrained."
            )
        names = sorted(set(files))
    else:
        names = ["model.safetensors"] if (path / "model.safetensors").is_file() else []
    if not names:
        raise ConfigError(
            f"{path} has no model.safetensors; save the model with save_pretrained, or give its file as --weights FILE."
        )
    return [path / name for name in names]
