"""Verify a bundle: against its PyTorch model, or its engines against ONNX Runtime."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from trt_compress.errors import ConfigError
from trt_compress.export.engines import Progress
from trt_compress.foreign import needs_extra, refusals_said

if TYPE_CHECKING:
    from trt_compress.export.verify_report import VerifyReport


@refusals_said()
def verify(
    bundle: str | Path,
    *,
    inputs: str | Path | None = None,
    weights: str | Path | None = None,
    model: str | None = None,
    native: bool | str | Path = False,
    backend: str | None = None,
    require_digest: str | Collection[str] | None = None,
    trust_paths: bool = False,
    verify_layers: int | None = None,
    progress: Progress | None = None,
) -> "VerifyReport":
    """Prove again that a bundle computes what its torch model computes, or that its engines do as ONNX Runtime does.

    Args:
        bundle: The bundle's directory.
        inputs, native, require_digest, progress: As `export.api.verify` takes them, or `verify_engines`.
        weights, model, trust_paths, verify_layers: As `export.api.verify` takes them; of the comparison with PyTorch.
        backend: "tensorrt" or "rtx" compares the engines of the bundle with ONNX Runtime, for which neither torch nor
            the model is needed; None: ONNX Runtime with PyTorch.

    Raises:
        GateError: something differs; `report` holds the VerifyReport.
        ConfigError, PluginError, UnsupportedError: as `export.api.verify` or `verify_engines` raises them.
    """
    if backend is None:
        with needs_extra("export"):
            from trt_compress.export import api
        return api.verify(
            bundle,
            inputs=inputs,
            weights=weights,
            model=model,
            native=native,
            require_digest=require_digest,
            trust_paths=trust_paths,
            verify_layers=verify_layers,
            progress=progress,
        )
    of_torch = {"--weights": weights, "--model": model, "--verify-layers": verify_layers}
    if given := [name for name, value in of_torch.items() if value is not None]:
        raise ConfigError(f"{given[0]} is for the comparison with PyTorch; leave it out, or leave --backend out.")
    from trt_compress.tools.against_engine import verify_engines

    return verify_engines(
        bundle, backend=backend, inputs=inputs, native=native, require_digest=require_digest, progress=progress
    )
