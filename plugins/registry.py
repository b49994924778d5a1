"""The operators there are, with two ways in: `specs()` is plain data, `operators()` needs torch."""

import importlib
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from trt_compress.errors import InternalError
from trt_compress.plugins.attention_score.spec import SPEC as ATTENTION_SCORE
from trt_compress.plugins.codebook_decode.spec import SPEC as CODEBOOK_DECODE
from trt_compress.plugins.codebook_encode.spec import SPEC as CODEBOOK_ENCODE
from trt_compress.plugins.kv_append.spec import SPEC as KV_APPEND
from trt_compress.plugins.kv_attention.spec import SPEC as KV_ATTENTION
from trt_compress.plugins.kv_attention_plain.spec import SPEC as KV_ATTENTION_PLAIN
from trt_compress.plugins.kv_compact.spec import SPEC as KV_COMPACT
from trt_compress.plugins.kv_dequantize.spec import SPEC as KV_DEQUANTIZE
from trt_compress.plugins.kv_quantize.spec import SPEC as KV_QUANTIZE
from trt_compress.plugins.spec import OpSpec
from trt_compress.plugins.token_merge.spec import SPEC as TOKEN_MERGE
from trt_compress.plugins.token_mix.spec import SPEC as TOKEN_MIX
from trt_compress.plugins.token_restore.spec import SPEC as TOKEN_RESTORE
from trt_compress.plugins.token_select.spec import SPEC as TOKEN_SELECT
from trt_compress.plugins.token_select_dynamic.spec import SPEC as TOKEN_SELECT_DYNAMIC

if TYPE_CHECKING:
    from trt_compress.plugins.operator import Operator

_OF_TOKENS = (TOKEN_MERGE, TOKEN_SELECT, TOKEN_RESTORE, TOKEN_SELECT_DYNAMIC, TOKEN_MIX)
_OF_SCORES_AND_CODES = (ATTENTION_SCORE, CODEBOOK_ENCODE, CODEBOOK_DECODE)
_OF_CACHES = (KV_QUANTIZE, KV_DEQUANTIZE, KV_APPEND, KV_ATTENTION, KV_ATTENTION_PLAIN, KV_COMPACT)


@cache
def specs() -> Mapping[str, OpSpec]:
    """Every operator's SPEC by its ONNX op type."""
    found: dict[str, OpSpec] = {}
    for spec in (*_OF_TOKENS, *_OF_SCORES_AND_CODES, *_OF_CACHES):
        if spec.op_type in found:
            raise InternalError(f"two operators are called {spec.op_type}; names must be unique.")
        found[spec.op_type] = spec
    return MappingProxyType(found)


@cache
def operators() -> Mapping[str, "Operator"]:
    """Every operator by its ONNX op type, in the order of `specs()`."""
    modules = (importlib.import_module(f"trt_compress.plugins.{spec.torch_name}.op") for spec in specs().values())
    return MappingProxyType({op_type: module.OPERATOR for op_type, module in zip(specs(), modules, strict=True)})
