"""The weights file of a bundle: every tensor once, aligned, shared by graphs and lowered files."""

import gc
import hashlib
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from trt_compress.errors import BundleError
from trt_compress.export.trace import onnx_from_graph
from trt_compress.export.weights import ALIGNMENT, INLINE, SMALL_ALIGNMENT, WEIGHTS_FILE, WeightsFile, places_of
from trt_compress.format.bundle import Bundle
from trt_compress.models.hosts.base import CompressedModule, GraphSpec, TensorSpec
from trt_compress.runtime import Session


class Tied(CompressedModule):
    """Tokens [B, T] to logits [B, T, 300]: an embedding that is the head's weight, too, and one more layer."""

    def __init__(self, layer: nn.Linear | None = None, embed: nn.Embedding | None = None) -> None:
        super().__init__()
        self.embed = embed or nn.Embedding(300, 64)
        self.layer = layer or nn.Linear(64, 64)
        self.head = nn.Linear(64, 300, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(tokens)))


def spec_of(module: CompressedModule) -> GraphSpec:
    return GraphSpec(
        module=module.eval(),
        inputs=(TensorSpec(name="tokens", shape=("batch", 5), dtype="int64"),),
        outputs=(TensorSpec(name="logits", shape=("batch", 5, 300)),),
    )


def read(folder: Path, model: onnx.ModelProto) -> dict[str, bytes]:
    content = (folder / WEIGHTS_FILE).read_bytes()
    return {name: content[at : at + length] for name, (at, length) in places_of(model).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_share_their_tensors_and_what_is_tied_is_there_once(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    first = Tied().to(dtype)
    second = Tied(layer=nn.Linear(64, 64), embed=first.embed).to(dtype)
    with WeightsFile(tmp_path / WEIGHTS_FILE) as weights:
        models = []
        for module in (first, second):
            spec = spec_of(module)
            if dtype is not torch.float32:
                spec = GraphSpec(
                    module=module.eval(),
                    inputs=spec.inputs,
                    outputs=(
                        TensorSpec(name="logits", shape=("batch", 5, 300), dtype=str(dtype).removeprefix("torch.")),
                    ),
                )
            models.append(onnx_from_graph(spec, module, max_batch=4, opset=20, weights=weights))
    embedding = first.embed.weight.detach().view(torch.uint8).numpy().tobytes()
    layers = [m.layer.weight.detach().T.contiguous().view(torch.uint8).numpy().tobytes() for m in (first, second)]
    found = [read(tmp_path, model) for model in models]
    assert [sorted(map(len, tensors.values())) for tensors in found] == [sorted((len(embedding), len(layers[0])))] * 2
    for tensors, layer in zip(found, layers, strict=True):
        assert set(tensors.values()) == {embedding, layer}
    everything = {place for model in models for place in places_of(model).values()}
    assert len(everything) == 3
    large = [place for place in everything if place.length >= ALIGNMENT]
    assert all(place.offset % ALIGNMENT == 0 for place in large)
    assert all(place.offset % SMALL_ALIGNMENT == 0 for place in everything)
    size = (tmp_path / WEIGHTS_FILE).stat().st_size
    assert size == max(offset + length for offset, length in everything)
    assert size < sum(map(len, (embedding, *layers))) + len(everything) * ALIGNMENT
    for model in models:
        assert all(len(tensor.raw_data) <= INLINE for tensor in model.graph.initializer)
        onnx.save_model(model, tmp_path / "model.onnx")
        onnx.checker.check_model(str(tmp_path / "model.onnx"))


def test_a_model_leaves_memory_when_it_was_traced(tmp_path: Path) -> None:
    module = Tied()
    tensors = [weakref.ref(tensor) for tensor in module.parameters()]
    with WeightsFile(tmp_path / WEIGHTS_FILE) as weights:
        onnx_from_graph(spec_of(module), module, max_batch=4, opset=20, weights=weights)
    gc.disable()  # it may not take a collection that comes by chance
    try:
        assert all(tensor() is not None for tensor in tensors)
        del module
        assert [tensor() for tensor in tensors] == [None] * len(tensors)
    finally:
        gc.enable()


def test_pieces_of_a_transposed_tensor_are_its_bytes_in_order(tmp_path: Path) -> None:
    data = np.arange(3000 * 1100, dtype=np.float32).reshape(1100, 3000).T
    with WeightsFile(tmp_path / "w") as weights:
        assert weights.is_empty
        first = weights.add(data[:1, :300])
        place = weights.add(data)
        assert weights.add(np.ascontiguousarray(data)) == place and weights.add(data[:1, :300].copy()) == first
    content = (tmp_path / "w").read_bytes()
    assert content[place.offset : place.offset + place.length] == np.ascontiguousarray(data).tobytes()
    assert len(content) == place.offset + place.length and not any(content[first.length : place.offset])


def test_a_bundle_holds_a_tensor_once_for_all_of_its_files(exported: Callable[..., Path]) -> None:
    bundle = exported("tome:num_merged=4", targets=("cpu", "jetson-orin-jp6"), batch="1")
    manifest = Bundle.open(bundle).manifest
    assert manifest.graphs[0].external_data == (WEIGHTS_FILE,)
    own, lowered = (
        onnx.load(bundle / name, load_external_data=False) for name in ("model.onnx", manifest.lowered[0].file)
    )
    assert places_of(own) == places_of(lowered) and len(places_of(own)) > 20
    tensors = read(bundle, own)
    hashes = {hashlib.sha256(content).digest() for content in tensors.values()}
    assert len(hashes) == len(set(places_of(own).values()))
    assert sum(len(numpy_helper.to_array(t).tobytes()) for t in own.graph.initializer if t.name not in tensors) < 32_000
    onnx.checker.check_model(str(bundle / manifest.lowered[0].file))


@pytest.mark.parametrize("cut", [1, 4096])
def test_a_weights_file_cut_short_is_refused_before_it_is_loaded(
    exported: Callable[..., Path], tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(exported("tome:num_merged=4", targets=("cpu", "jetson-orin-jp6"), batch="1"), bundle)
    size = (bundle / WEIGHTS_FILE).stat().st_size
    with (bundle / WEIGHTS_FILE).open("r+b") as file:
        file.truncate(size - cut)
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)
    for check in (True, False):
        with pytest.raises(
            BundleError, match=f"'weights.bin' in .* was changed: it has {size - cut} bytes, not {size};"
        ):
            Session.open(bundle, check_hashes=check)
