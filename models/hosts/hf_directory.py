"""A directory as transformers' save_pretrained writes it: which files are there, and what stands in those of JSON."""

from pathlib import Path
from typing import Any, NamedTuple

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.files import read_regular
from trt_compress.foreign import reason_of, strict_json

INDEX = "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. In settings of tokenizers lengths may be as large as transformers writes them.

    Raises:
        ConfigError: it is not there, or no JSON object.
    """
    content = _content(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no JSON object; copy or download it again.")
    return content


def read_list(path: Path) -> list[Any]:
    """The list in a JSON file.

    Raises:
        ConfigError: it is not there, or no list.
    """
    content = _content(path)
    if not isinstance(content, list):
        raise ConfigError(f"{path} holds no JSON list; copy or download it again.")
    return content


def _content(path: Path) -> Any:
    try:
        return strict_json(read_regular(path, limit=16 << 20), wide=path.name == "tokenizer_config.json")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); hf:PATH takes a directory written by save_pretrained."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({reason_of(error)}); copy or download it again.") from error


def weight_files(path: Path, given: str | None = None) -> list[Path]:
    """The safetensors files of a directory, in the order of their names; the file `given` instead, if there is one.

    Raises:
        ConfigError: there are none.
    """
    if given:
        return [Path(given)]
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


class Pooling(NamedTuple):
    """How sentence-transformers makes one vector of the tokens of a text.

    Attributes:
        first: It is the first token; False: the mean of all.
        unit: It is given the length 1.
    """

    first: bool
    unit: bool


def pooling_of(path: Path) -> Pooling:
    """What a directory says in modules.json and 1_Pooling; of one that says nothing the mean, as it is.

    Raises:
        ConfigError: A file of it is no JSON.
        UnsupportedError: It pools in another way, or has other modules behind.
    """
    names: list[str] = []
    if (path / "modules.json").is_file():
        for module in read_list(path / "modules.json"):
            names.append(str(module.get("type") if isinstance(module, dict) else module).rpartition(".")[2])
    if other := [name for name in names if name not in ("Transformer", "Pooling", "Normalize")]:
        raise UnsupportedError(
            f"'{path}' has the module {other[0][:60]} in modules.json; there are Transformer, Pooling and Normalize."
        )
    file = path / "1_Pooling" / "config.json"
    pooling = read_json(file) if file.is_file() else {"pooling_mode_mean_tokens": True}
    wanted = {name for name, value in pooling.items() if name.startswith("pooling_mode_") and value is True}
    if wanted not in ({"pooling_mode_cls_token"}, {"pooling_mode_mean_tokens"}):
        raise UnsupportedError(
            f"'{path}' pools by {', '.join(sorted(wanted)) or 'nothing'}; there are pooling_mode_mean_tokens and "
            "pooling_mode_cls_token."
        )
    return Pooling(first="pooling_mode_cls_token" in wanted, unit="Normalize" in names)


def longest_text(path: Path) -> int | None:
    """Tokens of the longest text, as sentence-transformers wrote it there; None: it did not.

    Raises:
        ConfigError: It is no number.
    """
    file = path / "sentence_bert_config.json"
    found = read_json(file).get("max_seq_length") if file.is_file() else None
    if found is not None and (type(found) is not int or found < 1):
        raise ConfigError(f"{file} has max_seq_length {str(found)[:60]!r}; it is a number from 1 on.")
    return found
