"""A graph under preflight, in the forms in which targets read it: each is made and looked through once, for all of
them."""

from functools import cached_property
from pathlib import Path

import onnx
import onnx.inliner
from onnx import ModelProto

from trt_compress.export.graph_view import GraphView, load_structure, without_weights
from trt_compress.export.lower import inline_bodies, lower_for_target
from trt_compress.export.soundness import Flaw, flaws
from trt_compress.export.targets import Target


class Subject:
    """A model, and what comes of it.

    Attributes:
        given: The model without the data of its weights.
        flaws: What is wrong with it wherever it goes.
    """

    def __init__(self, model: ModelProto | Path) -> None:
        """Take a model or its file, which does not change meanwhile.

        Raises:
            ConfigError: The file cannot be read or is not ONNX.
        """
        whole = load_structure(model) if isinstance(model, Path) else model
        self.flaws: tuple[Flaw, ...] = tuple(flaws(whole))
        self.given = without_weights(whole)
        self._read: dict[tuple[str, str, bool], GraphView] = {}

    def read_by(self, target: Target, *, lowered: bool) -> GraphView:
        """What a target reads.

        Args:
            target: Where it shall run.
            lowered: Whether the model already has the form in which the target reads it.
        """
        form = (target.lowering, target.backend, lowered)
        if form not in self._read:
            ready = self.given if lowered else lower_for_target(self.given, target)
            if target.backend == "onnxruntime" and ready.functions:
                ready = onnx.inliner.inline_local_functions(ready)
            self._read[form] = GraphView(ready)
        return self._read[form]

    @cached_property
    def bodies(self) -> GraphView:
        """The model with the bodies of operators in their places."""
        return GraphView(inline_bodies(self.given))
