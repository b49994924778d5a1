"""`FILE.py:FACTORY`: a module of one's own. The file's code is run.

FACTORY is a function without required arguments, a class, or a module that the file makes. What it gives must be a ViT
of timm that a host drives, also as a subclass that leaves the forward pass as it is; that is shown by running both.
"""

import contextlib
import inspect
import random
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trt_compress import digest
from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.files import read_regular
from trt_compress.foreign import reason_of
from trt_compress.model_file import check_model_file
from trt_compress.model_name import ModelName
from trt_compress.models.hosts import timm_eva
from trt_compress.models.hosts.base import LoadedHost, WeightsInfo
from trt_compress.models.hosts.timm_families import check_supported, timm_host
from trt_compress.models.hosts.weights import load_weights, tensors_sha256

SEED = 0
_TOLERANCE = 1e-8  # of the largest output, in double precision: attention is two products here, and fused in timm


def load_own(model: ModelName, weights: str | None, sha256: str | None = None) -> LoadedHost:
    """Run a file, take the module that its factory makes, and load weights into it.

    Args:
        model: A name of the source "file".
        weights: A file; None: those that the factory gives, made with a fixed seed.
        sha256: What the file must have, if it was hashed before; what is run is what has it.

    Raises:
        ConfigError: the file or the name in it is missing, its code fails, or what it gives is no module.
        UnsupportedError: no host drives the module; the message names the part.
    """
    sha256 = sha256 or check_model_file(model)
    source = f"{Path(model.name).name}:{model.factory}"
    path = Path(model.name).absolute()
    with _as_if_alone(path):
        module = _made(_found(model, path, source, sha256), path, source)
    module.eval()
    check_supported(module, source)
    _check_state(module, source)
    module = module.cpu().float()
    if weights is None:
        if "weights_key" in model.options:
            raise ConfigError(f"{source}: weights_key is for a file of weights; give one as --weights FILE.")
        _check_finite(module, source)
        info = WeightsInfo(source=f"made by {source} (seed {SEED})", sha256=tensors_sha256(module))
    else:
        info = load_weights(module, Path(weights), key=model.options.get("weights_key"))
    host = timm_host(module, source=source, weights=info, options=model.options)
    _check_same(host, source)
    return host


def _found(model: ModelName, path: Path, source: str, sha256: str) -> Any:
    """What the factory's name means in the file, which is run for it."""
    name = f"trt_compress_own_{path.stem}"
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up
    # Not by an import: that may take byte code which was compiled from another state of the file.
    content = read_regular(path)
    if digest.sha256(content) != sha256:
        raise ConfigError(f"{source}: the file was changed since it was hashed; give it when it is complete.")
    code = compile(content, str(path), "exec", dont_inherit=True)
    _run(lambda: exec(code, module.__dict__), source, path, "the file")
    found: Any = module
    for part in model.factory.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigError(f"{source}: the file has no '{model.factory}'; name a function or class in it.") from None
    return found


def _made(found: Any, path: Path, source: str) -> nn.Module:
    """The module that a factory gives, or that is there already."""
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise ConfigError(
            f"{source} is {_kind(found)}; give a function without required arguments that returns an nn.Module."
        )
    if needed := _required(found):
        raise ConfigError(
            f"{source} needs the argument{'s'[: len(needed) > 1]} {', '.join(needed)}; give a function without "
            "required arguments, for example one that calls it."
        )
    made = _run(found, source, path, source.partition(":")[2])
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{source} gives {_kind(made)}; it must return an nn.Module.")
    return made


def _required(factory: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # of something written in C
        return []
    return [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _run(call: Callable[[], Any], source: str, path: Path, what: str) -> Any:
    """Run the user's code; what goes wrong in it is said in one sentence, with the line."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" in line {lines[-1].lineno}" if lines else ""
        name, reason = type(error).__name__, reason_of(error)
        said = "" if reason == name else f": {reason}"
        raise ConfigError(
            f"{source}: {what} failed{where} with {name}{said}; correct it.",
        ) from error


@contextlib.contextmanager
def _as_if_alone(path: Path) -> Iterator[None]:
    """Let the file import what lies beside it, print to stderr, and have seeded random numbers; then undo all that.

    What it imported from its folder is forgotten, too: another file may have modules of the same names.
    """
    folder = str(path.parent)
    states = random.getstate(), np.random.get_state()
    before = set(sys.modules)
    sys.path.insert(0, folder)
    try:
        with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):
            random.seed(SEED)
            np.random.seed(SEED)
            torch.manual_seed(SEED)
            yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
        random.setstate(states[0])
        np.random.set_state(states[1])
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and str(file) != str(path) and Path(file).is_relative_to(folder):
                del sys.modules[name]


def _check_state(module: nn.Module, source: str) -> None:
    """Refuse a module that keeps something else than plain tensors: quantized layers do, and so may extra state."""
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor) or value.is_quantized:
            what = "a quantized tensor" if isinstance(value, torch.Tensor) else _kind(value)
            raise UnsupportedError(
                f"{source} gives a module that keeps {what} as {name}, which cannot be exported; give one in floating "
                "point whose state is tensors alone."
            )
        if value.is_meta:
            raise ConfigError(f"{source} gives a module on the meta device, without weights; make it on the CPU.")


def _check_finite(module: nn.Module, source: str) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ConfigError(f"{source} gives a module with NaN or infinity in {name}; its weights are not usable.")


def _check_same(host: LoadedHost, source: str) -> None:
    """Show that the module computes what the host makes of it: a subclass may have changed more than methods."""
    (graph,) = host.attach(())
    shape = [dim if isinstance(dim, int) else 2 for dim in graph.inputs[0].shape]
    images = torch.randn(shape, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    host.module.double()  # so that rounding, which weights may amplify, is no difference; single values come back whole
    try:
        with torch.no_grad():
            own = host.module(images)
            ours = graph.module(images)
    except Exception as error:
        raise ConfigError(
            f"{source} fails on images {shape} with {type(error).__name__}: {reason_of(error)}; correct it."
        ) from error
    finally:
        host.module.float()
    if not isinstance(own, torch.Tensor) or own.shape != ours.shape:
        shown = list(own.shape) if isinstance(own, torch.Tensor) else type(own).__name__
        raise UnsupportedError(
            f"{source} gives {shown} where its blocks and head give {list(ours.shape)}, so something in it is not "
            "timm's; give a module whose forward pass is that of timm's VisionTransformer or Eva."
        )
    error_size = float((own - ours).abs().max())
    theirs = "Eva" if host.family == timm_eva.FAMILY else "VisionTransformer"
    if not error_size <= _TOLERANCE * max(1.0, float(own.abs().max())):
        raise UnsupportedError(
            f"{source} computes something else than timm's {theirs} with its weights (largest difference "
            f"{error_size:.1e}); give a module whose forward pass is unchanged."
        )


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
