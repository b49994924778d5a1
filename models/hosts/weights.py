"""Loading weights: safetensors or a PyTorch checkpoint, strictly, with every misfit named."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError
from trt_compress.models.hosts.base import WeightsInfo

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 3


def load_weights(module: nn.Module, path: Path) -> WeightsInfo:
    """Load the tensors of `path` into `module`; every tensor must be there, fit, and be used.

    Args:
        module: The model; changed only if everything fits.
        path: A `.safetensors` file, or a checkpoint of `torch.save` (tensors only; nothing in it is executed).

    Raises:
        ConfigError: the file cannot be read, or tensors are missing, extra, misshaped or not finite; all are named.
    """
    load_tensors(module, read_tensors(path), path.name)
    return WeightsInfo(source=path.name, sha256=file_sha256(path))


def zoo_weights(card: Mapping[str, Any], *, data_license: bool = False) -> WeightsInfo:
    """Where the weights of a model of the zoo come from, as its card says.

    Args:
        card: The card beside the weights.
        data_license: The data have a licence of their own, which is named.
    """
    license_ = f" ({card['data']['license']})" if data_license else ""
    return WeightsInfo(
        source=card["weights"]["file"],
        sha256=card["weights"]["sha256"],
        license=card["weights"]["license"],
        provenance=f"trained here on {card['data']['name']}{license_}: {card['command']}",
    )


def file_sha256(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read())
    return digest.hexdigest()


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Load `tensors`, which come from the file `name`, into `module`; it is changed only if everything fits.

    Raises:
        ConfigError: tensors are missing, extra, misshaped or not finite; all are named.
    """
    _check_fit(module.state_dict(), tensors, name)
    module.load_state_dict(tensors)


def tensors_sha256(module: nn.Module) -> str:
    """Hash of every tensor of `module` by name, dtype, shape and bytes: identifies weights that come from no file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or a checkpoint of `torch.save`; nothing in it is executed.

    Raises:
        ConfigError: there is no such file, or it holds no table of tensors.
    """
    if not path.is_file():
        raise ConfigError(
            f"weights: {path} is not a file; give a .safetensors file or a PyTorch checkpoint as --weights FILE."
        )
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ConfigError(
                f"weights: {path} is not a whole safetensors file ({error}); copy or download it again."
            ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler fed with something else fails in any way
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise ConfigError(
            f"weights: {path} is not a PyTorch checkpoint of tensors ({reason}); give a .safetensors file, or one "
            "saved by torch.save(model.state_dict(), …)."
        ) from error
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"weights: {path} holds no table of tensors; save model.state_dict() and give that.")
    return {_without_prefix(str(name)): tensor for name, tensor in content.items()}


def _without_prefix(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _check_fit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], file: str) -> None:
    shapes = [
        f"{name} is {list(given[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    not_finite = [n for n, t in given.items() if n in wanted and t.is_floating_point() and not t.isfinite().all()]
    problems = [
        ("misses", sorted(wanted.keys() - given.keys())),
        ("has more than the model:", sorted(given.keys() - wanted.keys())),
        ("has other shapes:", shapes),
        ("holds NaN or infinity in", not_finite),
    ]
    found = [f"{what} {_some(names)}" for what, names in problems if names]
    if found:
        raise ConfigError(
            f"weights: {file} does not fit the model: it {'; it '.join(found)}.",
            hint="give the checkpoint of exactly this model, or name the model that it belongs to.",
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
