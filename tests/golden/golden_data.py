"""Inputs and outputs of the papers' own code, read from the folders beside this file, and ways to run ours on them."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from trt_compress.errors import PluginError
from trt_compress.export.lower import add_bodies
from trt_compress.export.trace import TraceOptions, onnx_from_module
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.timm_vit import CompressedViT, attach
from trt_compress.plugins.build import build
from trt_compress.plugins.library import Library
from trt_compress.plugins.registry import operators, specs
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.testing.forms import forms, session

FOLDER = Path(__file__).parent
FORMS = ("torch", "onnx", "native")
OPERATOR_TOLERANCE = max(spec.tolerance["float32"] for spec in specs().values())  # of the largest output
MODEL_TOLERANCE = 10 * OPERATOR_TOLERANCE  # a layer is a chain of about ten sums as long as an operator's


def read(method: str, case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays and parameters of a case; a missing file is an error."""
    with np.load(FOLDER / method / f"{case}.npz", allow_pickle=False) as archive:
        arrays = {name: torch.from_numpy(archive[name]) for name in archive.files if name != "meta"}
        return arrays, json.loads(str(archive["meta"]))


def cases_on_disk(method: str) -> set[str]:
    return {path.stem for path in (FOLDER / method).glob("*.npz")}


def call(form: str, op_type: str, attributes: Mapping[str, Any], *inputs: Tensor) -> tuple[Tensor, ...]:
    """An operator in one of FORMS."""
    operator = operators()[op_type]
    sample = Sample(axes={}, attributes=attributes, reason="golden")
    library = native_library() if form == "native" else None
    if library is not None and op_type not in library.operators:
        pytest.skip(f"{operator.spec.name} has no native form for the CPU")
    return forms(library)[form](operator, sample, inputs)(inputs)


@cache
def native_library() -> Library:
    """The CPU operators of these sources, built into the user's cache the first time."""
    try:
        (outcome,) = build(only=("onnxruntime",))
    except PluginError as error:
        if error.hint:  # a compiler's complaint
            raise
        pytest.skip(error.message)
    if outcome.library is None:
        pytest.skip(outcome.note)
    return outcome.library


def load_vit(arrays: Mapping[str, Tensor], parameters: Mapping[str, Any]) -> VisionTransformer:
    """timm's model of today with the weights of a case."""
    keywords = dict(parameters)
    distilled = keywords.pop("distilled", False)
    vit = (VisionTransformerDistilled if distilled else VisionTransformer)(qkv_bias=True, **keywords).eval()
    vit.load_state_dict({name[2:]: tensor for name, tensor in arrays.items() if name.startswith("w.")})
    return vit


def compress(vit: VisionTransformer, spec: str) -> CompressedViT:
    return attach(vit, parse_spec(spec))


def run_exported(module: CompressedViT, image: Tensor) -> Tensor:
    """Output of the exported graph in ONNX Runtime."""
    options = TraceOptions(input_name="image", output_name="logits", max_batch=4, opset=20)
    model = add_bodies(onnx_from_module(module, image.shape[1:], options))
    return torch.from_numpy(session(model.SerializeToString()).run(None, {"image": image.numpy()})[0])


def assert_close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Equal shapes, and no difference above `tolerance` times the largest wanted value."""
    assert found.shape == wanted.shape
    assert torch.isfinite(found).all()
    error = (found.double() - wanted.double()).abs().max() / wanted.abs().max()
    assert error <= tolerance, f"off by {error:.2g} of the largest value"
