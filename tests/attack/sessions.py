"""One node in ONNX Runtime, by a library or by its body, for calls of `calls.py`. Needs no torch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from tests.attack.calls import Array, Call

NUMBER = {
    **{"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16},
    **{"int64": TensorProto.INT64, "int32": TensorProto.INT32, "uint8": TensorProto.UINT8},
}
MOST_SESSIONS = 64
Contract = Mapping[str, Any]


def output_types(contract: Contract, call: Call) -> list[str]:
    """Types of the outputs, as `trtcDescribe` says where they come from."""
    of_inputs = {tensor["name"]: dtype for tensor, dtype in zip(contract["inputs"], call.dtypes, strict=True)}
    types = []
    for tensor in contract["outputs"]:
        if tensor["same_dtype_as"]:
            types.append(of_inputs[tensor["same_dtype_as"]])
        elif tensor["dtype_attribute"]:
            number = call.attributes[tensor["dtype_attribute"]]
            types.append(next((name for name in tensor["dtypes"] if NUMBER[name] == number), tensor["dtypes"][0]))
        else:
            types.append(tensor["dtypes"][0])
    return types


def model_of(contract: Contract, call: Call, function: onnx.FunctionProto | None, opset: int) -> onnx.ModelProto:
    """The node, of any sizes; bfloat16 inside is float32 outside, which numpy has."""
    nodes, ends = [], []
    for tensors, types in ((contract["inputs"], call.dtypes), (contract["outputs"], output_types(contract, call))):
        outside = []
        for tensor, dtype in zip(tensors, types, strict=True):
            is_narrow = dtype == "bfloat16"
            kind = TensorProto.FLOAT if is_narrow else NUMBER[dtype]
            outside.append(helper.make_tensor_value_info(f"{tensor['name']}_{'wide' * is_narrow}", kind, None))
        ends.append(outside)
    (given, wanted), inner = ends, []
    for tensors, outside in ((contract["inputs"], given), (contract["outputs"], wanted)):
        inner.append(
            [
                f"{t['name']}_{'narrow' if o.name.endswith('wide') else ''}"
                for t, o in zip(tensors, outside, strict=True)
            ]
        )
    for inside, value in zip(inner[0], given, strict=True):
        if inside != value.name:
            nodes.append(helper.make_node("Cast", [value.name], [inside], to=TensorProto.BFLOAT16))
    nodes.append(helper.make_node(call.op_type, inner[0], inner[1], "node", domain="trt_compress", **call.attributes))
    for inside, value in zip(inner[1], wanted, strict=True):
        if inside != value.name:
            nodes.append(helper.make_node("Cast", [inside], [value.name], to=TensorProto.FLOAT))
    return helper.make_model(
        helper.make_graph(nodes, "one", given, wanted),
        functions=[function] if function else [],
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("trt_compress", contract["version"])],
        ir_version=10,
    )


class Sessions:
    """Sessions by operator, attributes and types, the newest ones kept.

    Args:
        contracts: By operator, as `trtcDescribe` gives them.
        library: The native operators; None: the bodies run.
        function: The body of an operator; None: the node is left to the library.
        threads: Of a session.
        arena: Whether ONNX Runtime hands out parts of larger blocks, where a sanitizer sees no overrun.
    """

    def __init__(
        self,
        contracts: Mapping[str, Contract],
        library: Path | None,
        function: Callable[[Call], onnx.FunctionProto] | None = None,
        *,
        opset: int = 20,
        threads: int = 1,
        arena: bool = True,
    ) -> None:
        self._contracts, self._function, self._opset = contracts, function, opset
        self._kept: dict[Any, Any] = {}
        self._options = onnxruntime.SessionOptions()
        self._options.log_severity_level = 4
        self._options.intra_op_num_threads = threads
        self._options.enable_cpu_mem_arena = self._options.enable_mem_pattern = arena
        if library is not None:
            self._options.register_custom_ops_library(str(library))

    def session(self, call: Call) -> Any:
        key = (call.name, call.dtypes, repr(call.attributes))
        if key not in self._kept:
            function = self._function(call) if self._function else None
            model = model_of(self._contracts[call.name], call, function, self._opset).SerializeToString()
            made = onnxruntime.InferenceSession(model, self._options, providers=["CPUExecutionProvider"])
            self._kept[key] = made
            for old in list(self._kept)[:-MOST_SESSIONS]:
                del self._kept[old]
        return self._kept[key]

    def run(self, call: Call) -> list[Array]:
        """The outputs; what ONNX Runtime or the operator refuses is raised."""
        session = self.session(call)
        feeds = {value.name: array for value, array in zip(session.get_inputs(), call.inputs, strict=True)}
        return [np.asarray(output) for output in session.run(None, feeds)]
