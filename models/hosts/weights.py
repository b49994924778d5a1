"""Loading weights: what a file holds goes into a model strictly, with every misfit named."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trt_compress.digest import Sha256
from trt_compress.errors import ConfigError
from trt_compress.models.hosts.base import WeightsInfo
from trt_compress.models.hosts.checkpoint import CheckpointWeights, read_checkpoint, some
from trt_compress.models.hosts.file_tensors import likes
from trt_compress.models.language.source import sha256_of_files

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COMPLEX = (torch.complex32, torch.complex64, torch.complex128)


def load_weights(module: nn.Module, path: Path, *, key: str | None = None) -> WeightsInfo:
    """Load the tensors of `path` into `module`; every tensor must be there, fit, and be used.

    Args:
        module: The model; changed only if everything fits.
        path: A safetensors file, or a checkpoint of `torch.save` (tensors only; nothing in it is executed).
        key: The place in the file, `state_dict_ema`; None: averaged weights before plain ones.

    Raises:
        ConfigError: the file cannot be read, or tensors are missing, extra, of another shape or type, or not finite;
            the first few are named.
    """
    return load_found(module, read_checkpoint(path).weights(module.state_dict(), key), path)


def load_found(module: nn.Module, weights: CheckpointWeights, path: Path, *, note: str | None = None) -> WeightsInfo:
    """Load what was found in `path`; `note` is added to what is said of where the weights come from.

    Raises:
        ConfigError: see `load_tensors`; or the file was changed while it was read.
    """
    load_tensors(module, weights.tensors, weights.file)
    weights.origin.require_unchanged()
    notes = [text for text in (weights.note, note) if text]
    return WeightsInfo(source=path.name, sha256=weights.origin.sha256, provenance="; ".join(notes) or None)


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


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Load `tensors`, which come from the file `name`, into `module`; it is changed only if everything fits.

    What the module has on the meta device becomes a tensor of the file, in its dtype; other numbers are converted.

    Raises:
        ConfigError: tensors are missing, extra, misshaped or not finite; all are named.
    """
    state = module.state_dict()
    _check_fit(state, tensors, name)
    is_empty = any(own.is_meta for own in state.values())
    with torch.no_grad():
        for key, own in state.items():  # one at a time: what is read of a file is gone when it has been copied
            if own.is_meta:
                state[key] = tensors[key]
            else:
                own.copy_(tensors[key])
    module.load_state_dict(state, assign=is_empty)  # what hooks of the module do about it


def tensors_sha256(module: nn.Module) -> str:
    """Hash of every tensor of `module` by name, dtype, shape and bytes: identifies weights that come from no file."""
    digest = Sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.add(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.add(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hex()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of which no model's names are known yet, without what training frameworks wrap around them.

    Raises:
        ConfigError: see `read_checkpoint`.
    """
    found = read_checkpoint(path).largest()
    tensors = dict(found.tensors)
    found.origin.require_unchanged()
    return tensors


def read_files(files: Sequence[Path]) -> tuple[dict[str, Tensor], WeightsInfo]:
    """The tensors of one or several files, as `read_tensors`, and where they come from.

    Raises:
        ConfigError: see `read_checkpoint`; or a file was changed while it was read.
    """
    found = [read_checkpoint(file).largest() for file in files]
    tensors = {name: tensor for one in found for name, tensor in one.tensors.items()}
    return tensors, WeightsInfo(source=files[0].name, sha256=sha256_of_files(one.origin for one in found))


def require_floating(tensors: Mapping[str, Tensor], file: str) -> None:
    """Check that tensors are weights in floating point, before anything is computed with them.

    Raises:
        ConfigError: some are whole numbers, truth values or complex; the first few are named.
    """
    if wrong := [f"{name} ({_dtype(tensor)})" for name, tensor in tensors.items() if tensor.dtype not in _FLOATS]:
        raise ConfigError(
            f"weights: {file} holds {some(wrong)}, where weights in floating point are needed; no other numbers are "
            "taken for them.",
            hint="of a quantized model give the checkpoint as it was before.",
        )


def _check_fit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], file: str) -> None:
    there = likes(given)
    both = {name: (own, there[name]) for name, own in wanted.items() if name in there}
    require_floating({name: tensor for name, (own, tensor) in both.items() if own.dtype in _FLOATS}, file)
    shapes = [
        f"{name} is {list(tensor.shape)} instead of {list(own.shape)}"
        for name, (own, tensor) in both.items()
        if own.shape != tensor.shape
    ]
    types, not_finite = [], []
    for name, (own, tensor) in both.items():
        if own.dtype not in _FLOATS:
            if not _is_kept(given[name], own.dtype):
                types.append(f"{name} is {_dtype(tensor)} instead of {_dtype(own)}")
        elif not _is_finite(given[name], own.dtype):
            not_finite.append(name)
    problems = [
        ("misses", sorted(wanted.keys() - given.keys())),
        ("has more than the model:", sorted(given.keys() - wanted.keys())),
        ("has other shapes:", shapes),
        ("has other types:", types),
        ("holds NaN or infinity in", not_finite),
    ]
    found = [f"{what} {some(names)}" for what, names in problems if names]
    if found:
        raise ConfigError(
            f"weights: {file} does not fit the model: it {'; it '.join(found)}.",
            hint="give the checkpoint of exactly this model, or name the model that it belongs to.",
        )


def _is_finite(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether no number is infinite or none at all, in another type; a second tensor of this size is not made."""
    return not tensor.numel() or all(bool(end.to(dtype).isfinite()) for end in tensor.aminmax())


def _is_kept(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether whole numbers or truth values are the same ones in another type."""
    if tensor.dtype == dtype:
        return True
    kinds = {tensor.dtype in (*_FLOATS, *_COMPLEX), dtype in (*_FLOATS, *_COMPLEX), torch.bool in (tensor.dtype, dtype)}
    return kinds == {False} and torch.equal(tensor.to(dtype).to(tensor.dtype), tensor)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
