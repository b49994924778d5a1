"""The operators there are."""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from trt_compress.errors import InternalError
from trt_compress.plugins.operator import Operator
from trt_compress.plugins.spec import OpSpec


@cache
def operators() -> Mapping[str, Operator]:
    """Every operator by its ONNX op type."""
    from trt_compress.plugins.token_merge.op import OPERATOR as TOKEN_MERGE
    from trt_compress.plugins.token_restore.op import OPERATOR as TOKEN_RESTORE
    from trt_compress.plugins.token_select.op import OPERATOR as TOKEN_SELECT

    found: dict[str, Operator] = {}
    for operator in (TOKEN_MERGE, TOKEN_SELECT, TOKEN_RESTORE):
        if operator.spec.op_type in found:
            raise InternalError(f"two operators are called {operator.spec.op_type}; names must be unique.")
        found[operator.spec.op_type] = operator
    return MappingProxyType(found)


def specs() -> Mapping[str, OpSpec]:
    """Every operator's SPEC by its ONNX op type."""
    return {op_type: operator.spec for op_type, operator in operators().items()}
