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
    from trt_compress.plugins.attention_score.op import OPERATOR as ATTENTION_SCORE
    from trt_compress.plugins.codebook_decode.op import OPERATOR as CODEBOOK_DECODE
    from trt_compress.plugins.codebook_encode.op import OPERATOR as CODEBOOK_ENCODE
    from trt_compress.plugins.kv_append.op import OPERATOR as KV_APPEND
    from trt_compress.plugins.kv_attention.op import OPERATOR as KV_ATTENTION
    from trt_compress.plugins.kv_compact.op import OPERATOR as KV_COMPACT
    from trt_compress.plugins.kv_dequantize.op import OPERATOR as KV_DEQUANTIZE
    from trt_compress.plugins.kv_quantize.op import OPERATOR as KV_QUANTIZE
    from trt_compress.plugins.token_merge.op import OPERATOR as TOKEN_MERGE
    from trt_compress.plugins.token_mix.op import OPERATOR as TOKEN_MIX
    from trt_compress.plugins.token_restore.op import OPERATOR as TOKEN_RESTORE
    from trt_compress.plugins.token_select.op import OPERATOR as TOKEN_SELECT
    from trt_compress.plugins.token_select_dynamic.op import OPERATOR as TOKEN_SELECT_DYNAMIC

    found: dict[str, Operator] = {}
    of_tokens = (TOKEN_MERGE, TOKEN_SELECT, TOKEN_RESTORE, TOKEN_SELECT_DYNAMIC, TOKEN_MIX)
    of_scores_and_codes = (ATTENTION_SCORE, CODEBOOK_ENCODE, CODEBOOK_DECODE)
    of_caches = (KV_QUANTIZE, KV_DEQUANTIZE, KV_APPEND, KV_ATTENTION, KV_COMPACT)
    for operator in (*of_tokens, *of_scores_and_codes, *of_caches):
        if operator.spec.op_type in found:
            raise InternalError(f"two operators are called {operator.spec.op_type}; names must be unique.")
        found[operator.spec.op_type] = operator
    return MappingProxyType(found)


def specs() -> Mapping[str, OpSpec]:
    """Every operator's SPEC by its ONNX op type."""
    return {op_type: operator.spec for op_type, operator in operators().items()}
