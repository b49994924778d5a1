"""The same runs on the graphs as they are exported, in ONNX Runtime."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.models.cache.runs import CacheRun
from trt_compress.export.lower import add_bodies
from trt_compress.export.trace import onnx_from_graph
from trt_compress.models.hosts.base import GraphSpec
from trt_compress.plugins.testing.forms import session


class OnnxRun(CacheRun):
    """Each graph is exported, with the bodies of its operators, when it is run for the first time."""

    def _computed(self, graph: GraphSpec, *given: Tensor) -> Sequence[Tensor]:
        exported: dict[str, Any] = self.__dict__.setdefault("exported", {})
        if graph.name not in exported:
            model = add_bodies(onnx_from_graph(graph, graph.module, max_batch=4, opset=20))
            exported[graph.name] = session(model.SerializeToString(), threads=1)
        feeds = {spec.name: tensor.numpy() for spec, tensor in zip(graph.all_inputs, given, strict=True)}
        known = {each.name for each in exported[graph.name].get_inputs()}
        found = exported[graph.name].run(None, {name: value for name, value in feeds.items() if name in known})
        return [torch.from_numpy(each) for each in found]
