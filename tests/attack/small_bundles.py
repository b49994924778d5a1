"""Bundles that run in microseconds, so that an attack is on what is around them."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from trt_compress.export.bundle import write_bundle
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Batch, Graph, Manifest, Model, State, TensorInfo, Weights
from trt_compress.runtime.session import Session

WIDTH = 64


PICTURES: dict[str, Any] = {
    "shape": (1, 3, 8, 8),
    "preprocess": {"kind": "image", "scale": 1 / 255, "interpolation": "bilinear"},
}
SOUND: dict[str, Any] = {"shape": (1, 800), "preprocess": {"kind": "audio", "sample_rate": 16000}}


def counter_bundle(
    folder: Path,
    *,
    stateful: bool = True,
    graphs: tuple[str, ...] = ("model",),
    shape: Sequence[int] = (1, WIDTH),
    preprocess: dict[str, Any] | None = None,
) -> Bundle:
    """`total = total before + x`, the total a state of each graph; without states `total = x + x`."""
    files, entries, states = {}, [], []
    for name in graphs:
        node = helper.make_node("Add", ["before", "x"] if stateful else ["x", "x"], ["total"])
        nodes = [node, *([helper.make_node("Identity", ["total"], ["after"])] if stateful else [])]
        names = (["x", "before"], ["total", "after"]) if stateful else (["x"], ["total"])
        values = [
            [helper.make_tensor_value_info(one, TensorProto.FLOAT, list(shape)) for one in side] for side in names
        ]
        model = helper.make_model(
            helper.make_graph(nodes, name, values[0], values[1]),
            opset_imports=[helper.make_opsetid("", 20)],
            ir_version=10,
        )
        files[f"{name}.onnx"] = model.SerializeToString()
        infos = [tuple(TensorInfo(name=one, dtype="float32", shape=tuple(shape)) for one in side) for side in names]
        entries.append(Graph(name=name, file=f"{name}.onnx", inputs=infos[0], outputs=infos[1]))
        if stateful:
            states.append(State(graph=name, input="before", output="after", shape=tuple(shape), dtype="float32"))
    manifest = Manifest(
        name="counter",
        created_with={},
        model=Model(source="zoo:counter", family="test", weights=Weights(source="none")),
        recipe={},
        precision="fp32",
        opset=20,
        batch=Batch(min=1, opt=1, max=1),
        graphs=tuple(entries),
        states=tuple(states),
        preprocess=preprocess or {"kind": "tensors"},
    )
    return write_bundle(folder, manifest, files)


class Around:
    """A graph of a session with states: `before` is called ahead of every run."""

    def __init__(self, session: Session, graph: str, before: Callable[[], None]) -> None:
        loaded = session.loaded.graphs[graph]
        self._executable, self._before = loaded.executable, before
        session.loaded.graphs[graph] = dataclasses.replace(loaded, executable=self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executable, name)

    def bind(self, *arguments: Any) -> Any:
        binding = self._executable.bind(*arguments)

        def run(*given: Any) -> Any:
            self._before()
            return binding.run(*given)

        return SimpleNamespace(run=run)


def ones(value: float = 1.0) -> dict[str, np.ndarray]:
    """An input of `counter_bundle`."""
    return {"x": np.full((1, WIDTH), value, np.float32)}
