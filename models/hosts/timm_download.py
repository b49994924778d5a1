"""timm's pretrained weights: whether there are any, whether they can be had, and one sentence where they cannot.

A download is asked about first, once and briefly: the library behind it would try for a minute, and say so line by
line. What lies in its cache is taken without a network.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from timm.models import PretrainedCfg, get_deprecated_models, get_pretrained_cfg, list_pretrained

from trt_compress.errors import ConfigError
from trt_compress.suggest import did_you_mean

PATIENCE_S = 5.0
"""How long the server may take to say that the file is there."""

_CHATTY = ("huggingface_hub", "httpx", "httpx2", "urllib3", "filelock", "timm")
_FILES = ("model.safetensors", "pytorch_model.bin")


def check_has_weights(name: str) -> None:
    """Check that timm knows of pretrained weights of this name.

    Raises:
        ConfigError: there are none.
    """
    if not _config(name).has_weights:
        with_weights = list_pretrained("vit_*") + list_pretrained("deit*")
        raise ConfigError(
            f"weights: timm has no pretrained weights of {name}; give a file as --weights FILE, or another model."
            f"{did_you_mean(name, with_weights)}"
        )


def source_overlay(name: str) -> dict[str, Any]:
    """What to add to timm's configuration of `name`: the file in the cache, or nothing if it can be downloaded.

    Raises:
        ConfigError: it is neither in the cache nor to be had.
    """
    config = _config(name)
    with _quiet():
        if (path := _cached(config)) is not None:
            return {"file": str(path)}
        urls = _urls(config)
        found: list[Exception | None] = []
        asking = threading.Thread(target=lambda: found.extend(_ask(urls)), daemon=True)
        asking.start()
        asking.join(PATIENCE_S)
    host = urlsplit(urls[0]).hostname
    if not found:
        raise _not_there(name, f"{host} does not answer within {PATIENCE_S:g} s", urls[0])
    if found[-1] is not None:
        raise _not_there(name, _reason(found[-1], str(host)), urls[0])
    return {}


@contextlib.contextmanager
def download_errors(name: str) -> Iterator[None]:
    """Turn what goes wrong in a download into one sentence, and keep the libraries behind it quiet."""
    try:
        with _quiet():
            yield
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError) and library not in (*_CHATTY, "requests"):
            raise
        url = _urls(_config(name))[0]
        raise _not_there(name, _reason(error, str(urlsplit(url).hostname)), url) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _not_there(name: str, reason: str, url: str) -> ConfigError:
    return ConfigError(
        f"weights: timm's pretrained weights of {name} cannot be downloaded ({reason}).",
        hint=f"download the checkpoint elsewhere ({url}) and give it as --weights FILE.",
    )


def _config(name: str) -> Any:
    """timm's configuration of a name; of an old one that of the name which replaces it."""
    return get_pretrained_cfg(get_deprecated_models().get(name) or name) or PretrainedCfg()


def _repository(config: Any) -> tuple[str, str | None, tuple[str, ...]]:
    """Repository, revision, and the files that may hold the weights."""
    repository, _, revision = str(config.hf_hub_id).partition("@")
    return repository, revision or None, (config.hf_hub_filename,) if config.hf_hub_filename else _FILES


def _cached(config: Any) -> Path | None:
    if config.hf_hub_id:
        from huggingface_hub import try_to_load_from_cache

        repository, revision, files = _repository(config)
        paths = [try_to_load_from_cache(repository, file, revision=revision) for file in files]
        return next((Path(path) for path in paths if isinstance(path, str)), None)
    from torch.hub import get_dir

    path = Path(get_dir()) / "checkpoints" / Path(urlsplit(config.url).path).name
    return path if path.is_file() else None


def _urls(config: Any) -> list[str]:
    if not config.hf_hub_id:
        return [str(config.url)]
    from huggingface_hub import hf_hub_url

    repository, revision, files = _repository(config)
    return [hf_hub_url(repository, file, revision=revision) for file in files]


def _ask(urls: list[str]) -> list[Exception | None]:
    """Ask for each file until one is there: None for that, errors for those before."""
    from huggingface_hub import get_hf_file_metadata

    answers: list[Exception | None] = []
    for url in urls:
        try:
            get_hf_file_metadata(url, timeout=PATIENCE_S)
        except Exception as error:  # whatever a network, a proxy or a server does
            answers.append(error)
            if "EntryNotFound" not in type(error).__name__:
                break
        else:
            answers.append(None)
            break
    return answers


def _reason(error: Exception, host: str) -> str:
    kind = type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "Offline" in kind:
        return "HF_HUB_OFFLINE is set"
    if "Gated" in kind:
        return "their authors want their terms to be accepted first: do so there and set HF_TOKEN"
    if status is not None:
        return f"{host} answers with status {status}"
    return f"{host} cannot be reached"
