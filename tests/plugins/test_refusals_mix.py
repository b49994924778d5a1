"""Bad calls of threshold selection, mixing, attention scores and codebooks, each refused in one sentence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.plugins.attention_score.op import attention_score
from trt_compress.plugins.codebook_decode.op import codebook_decode
from trt_compress.plugins.codebook_encode.op import codebook_encode, fsq_codebook, sign_codebook
from trt_compress.plugins.token_merge.op import token_merge
from trt_compress.plugins.token_mix.op import token_mix
from trt_compress.plugins.token_select.op import token_select
from trt_compress.plugins.token_select_dynamic.op import token_select_dynamic

X, SCORE, Q, K = torch.ones(2, 9, 4), torch.ones(2, 9), torch.ones(2, 6, 3, 4), torch.ones(2, 3, 9, 4)
MANY = torch.ones(1, 1, 1).expand(1, 2**24, 1)
ROWS, BOOK, CODE = torch.arange(3), torch.ones(2, 5, 4), torch.zeros(2, 9, 2, dtype=torch.int64)


def select(x: Any = X, score: Any = SCORE, **attributes: Any) -> object:
    return token_select_dynamic(x, score, **{"threshold": 0.5, "max_kept": 4, **attributes})


def mix(x: Any = X, weight: Any = None, **attributes: Any) -> object:
    return token_mix(x, torch.ones(5, 9) if weight is None else weight, **attributes)


def score(
    q: Any = Q, k: Any = K, position: Any = ROWS, bias: Any = None, length: Any = None, **attributes: Any
) -> object:
    return attention_score(q, k, position, bias, length, **attributes)


def encode(x: Any = X, codebook: Any = BOOK, **attributes: Any) -> object:
    return codebook_encode(x, codebook, **attributes)


def decode(code: Any = CODE, codebook: Any = BOOK, **attributes: Any) -> object:
    return codebook_decode(code, codebook, **attributes)


CONFIG: list[tuple[Callable[[], object], str]] = [
    (lambda: select(mode="top"), r"token_select_dynamic: mode 'top' is not known; there are threshold, mass\."),
    (lambda: select(threshold="0.5"), r"threshold='0\.5' is not a finite number; give one\."),
    (lambda: select(threshold=float("inf")), r"threshold=inf is not a finite number; give one\."),
    (lambda: select(threshold=float("nan")), r"threshold=nan is not a finite number; give one\."),
    (
        lambda: select(mode="mass", threshold=1.0),
        r"threshold=1\.0 is no share of the mass; give one in 0 <= threshold < 1",
    ),
    (lambda: select(mode="mass", threshold=-0.1), r"threshold=-0\.1 is no share of the mass"),
    (lambda: select(max_kept=10), r"token_select_dynamic: max_kept=10 is out of range; .*N=9 .*0\.\.9\."),
    (lambda: select(max_kept=0), r"max_kept=0 leaves no room for a token; give one in 1\.\.9\."),
    (lambda: select(max_kept=2.0), r"max_kept=2\.0 is not a whole number; give one in 0\.\.9\."),
    (lambda: select(min_kept=5), r"min_kept=5 is out of range; max_kept=4 allows 0\.\.4\."),
    (lambda: select(min_kept=-1), r"min_kept=-1 is out of range; max_kept=4 allows 0\.\.4\."),
    (lambda: select(forced=[9]), r"forced=\[9\] is out of range; positions are 0\.\.8\."),
    (lambda: select(forced=[-1]), r"forced=\[-1\] is out of range; positions are 0\.\.8\."),
    (lambda: select(forced=[0, 1, 2, 3, 4]), r"max_kept=4 is less than the 5 forced tokens\."),
    (lambda: mix(normalize="sum"), r"token_mix: normalize 'sum' is not known; there are none, softmax\."),
    (lambda: score(softmax="rows"), r"attention_score: softmax 'rows' is not known; there are none, all, span\."),
    (lambda: score(rows="first"), r"rows 'first' is not known; there are mean, sum, max, last\."),
    (lambda: score(heads="all"), r"heads 'all' is not known; there are none, group_mean, .*max\."),
    (lambda: score(normalize="rows"), r"normalize 'rows' is not known; there are none, probes, tokens\."),
    (lambda: score(pool="min"), r"pool 'min' is not known; there are avg, max\."),
    (lambda: score(causal=True, softmax="none"), r"causal=True needs a softmax, since an unseen key has no logit"),
    (lambda: score(causal=True, position=None), r"causal=True needs the position of each row; give position\."),
    (lambda: score(normalize="probes"), r"normalize='probes' divides a sum, and rows='mean'; give rows='sum'\."),
    (lambda: score(start=-1), r"start=-1 and stop=0 hold no span of N=9 keys"),
    (lambda: score(start=4, stop=4), r"start=4 and stop=4 hold no span of N=9 keys"),
    (lambda: score(stop=10), r"start=0 and stop=10 hold no span of N=9 keys; give 0 <= start < stop <= N"),
    (lambda: score(stop=-9), r"start=0 and stop=-9 hold no span of N=9 keys"),
    (lambda: score(start=1.0), r"start=1\.0 is not a whole number; give one\."),
    (lambda: score(kernel=4), r"kernel=4 has no middle; give an odd number, 1 for no pooling\."),
    (lambda: score(head_kernel=0), r"head_kernel=0 has no middle; give an odd number"),
    (lambda: score(scale=float("inf")), r"scale=inf is not a finite number; give one, or None for 1 / sqrt\(D\)\."),
    (lambda: encode(kind="rvq"), r"codebook_encode: kind 'rvq' is not known; there are vector, table, fsq, sign\."),
    (lambda: encode(group=2), r"group=2 is for sign bits, and kind='vector'; leave it at 1\."),
    (lambda: encode(codebook=sign_codebook(4), kind="sign", group=3), r"group=3 does not divide D=4 channels"),
    (
        lambda: encode(codebook=sign_codebook(4), kind="sign", group=31),
        r"group=31 is out of range; a code has 1\.\.30 bits",
    ),
    (lambda: encode(group=0), r"group=0 is out of range; a code has 1\.\.30 bits\."),
    (lambda: decode(kind="rvq"), r"codebook_decode: kind 'rvq' is not known"),
    (
        lambda: decode(CODE + 5),
        r"codebook_decode: code holds 5, and the codebook has the codes 0\.\.4; give codes that",
    ),
    (lambda: fsq_codebook([8, 1]), r"fsq_codebook: levels=\[8, 1\] is out of range; each must be in 2\.\.256\."),
    (lambda: fsq_codebook([]), r"fsq_codebook: levels=\[\] is out of range"),
    (lambda: fsq_codebook([256, 256, 257]), r"fsq_codebook: levels=\[256, 256, 257\] is out of range"),
    (lambda: fsq_codebook([256, 256, 256, 2]), r"levels=.* give 33554432 codes; at most 2\*\*24 may be\."),
]
SHAPE: list[tuple[Callable[[], object], str]] = [
    (
        lambda: score(q=torch.ones(2, 0, 3, 4)),
        r"q has shape \[2, 0, 3, 4\]; it must have at least one head, one row and",
    ),
    (
        lambda: score(q=torch.ones(2, 6, 0, 4)),
        r"q has shape \[2, 6, 0, 4\]; it must have at least one head, one row and",
    ),
    (
        lambda: score(q=torch.ones(2, 6, 3, 0)),
        r"q has shape \[2, 6, 3, 0\]; it must have at least one head, one row and",
    ),
    (lambda: score(k=torch.ones(2, 0, 9, 4)), r"q has H=6 heads and k has G=0; H must be a multiple of G\."),
    (
        lambda: token_select(MANY, MANY[..., 0], num_kept=1),
        r"token_select: N=16777216 tokens are too many; at most 16777215 are allowed\.",
    ),
    (
        lambda: select(x=MANY, score=MANY[..., 0]),
        r"token_select_dynamic: N=16777216 tokens are too many; at most 16777215 are allowed\.",
    ),
    (
        lambda: token_merge(MANY, MANY, MANY, num_merged=1),
        r"token_merge: N=16777216 tokens are too many; at most 16777215 are allowed\.",
    ),
    (lambda: select(x=X[0]), r"token_select_dynamic: x has shape \[9, 4\]; it must be \[B, N, C\] with axes BNC\."),
    (lambda: select(score=SCORE[:, 1:]), r"score has shape \[2, 8\]; it must be \[2, 9\] with axes BN\."),
    (lambda: select(score=SCORE.long()), r"score has dtype int64; it must be float32"),
    (lambda: mix(weight=torch.ones(5, 8)), r"token_mix: weight has shape \[1, 5, 8\]; it must be \[B, M, 9\]"),
    (lambda: mix(weight=torch.ones(3, 5, 9)), r"weight has shape \[3, 5, 9\]; its first axis must be 1, or B=2"),
    (lambda: mix(x=X.int()), r"token_mix: x has dtype int32; it must be float32"),
    (
        lambda: score(position=torch.zeros(3, 3).long()),
        r"position has shape \[3, 3\]; it must be \[3\] with axes R\.",
    ),
    (
        lambda: score(length=torch.zeros(3).long()),
        r"attention_score: length has shape \[3\]; it must be \[2\] with axes B\.",
    ),
    (lambda: score(q=Q[0]), r"attention_score: q has shape \[6, 3, 4\]; it must be \[B, H, R, D\] with axes BHRD\."),
    (lambda: score(k=K[..., :3]), r"k has shape \[2, 3, 9, 3\]; it must be \[2, G, N, 4\] with axes BGND\."),
    (lambda: score(k=torch.ones(2, 4, 9, 4)), r"q has H=6 heads and k has G=4; H must be a multiple of G\."),
    (lambda: score(position=ROWS[:2]), r"position has shape \[2\]; it must be \[3\] with axes R\."),
    (lambda: score(position=ROWS.int()), r"position has dtype int32; it must be int64\."),
    (lambda: score(bias=torch.ones(2, 6, 2, 9)), r"bias has shape \[2, 6, 2, 9\]; axis R must be 1 or 3 to broadcast"),
    (lambda: score(bias=torch.ones(8)), r"bias has shape \[1, 1, 1, 8\]; axis N must be 1 or 9 to broadcast to BHRN\."),
    (
        lambda: encode(codebook=BOOK[..., :3]),
        r"codebook_encode: codebook has shape \[2, 5, 3\]; it must be \[S, K, 4\]",
    ),
    (lambda: encode(kind="table"), r"codebook has shape \[2, 5, 4\]; a table has one stage, \[1, K, D\]\."),
    (lambda: encode(kind="fsq"), r"codebook has shape \[2, 5, 4\]; kind='fsq' takes \[1, 1, D\], see fsq_codebook\."),
    (lambda: encode(x=X.double()), r"codebook_encode: x has dtype float64; it must be float32"),
    (lambda: decode(CODE[..., :1]), r"codebook_decode: code has shape \[2, 9, 1\]; it must be \[B, N, 2\]"),
    (lambda: decode(CODE.int()), r"codebook_decode: code has dtype int32; it must be int64\."),
]


@pytest.mark.parametrize(("call", "message"), CONFIG, ids=[message for _, message in CONFIG])
def test_bad_attribute(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize(("call", "message"), SHAPE, ids=[message for _, message in SHAPE])
def test_bad_tensor(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        call()


def test_the_most_that_is_allowed_is_allowed() -> None:
    select(max_kept=9, min_kept=9)
    select(max_kept=1, forced=[8, 8])
    select(mode="mass", threshold=0.999)
    score(start=8, stop=9)
    score(stop=-8, kernel=99)
    encode(codebook=fsq_codebook([256, 256, 16, 16]), kind="fsq")
    encode(x=torch.ones(1, 1, 30), codebook=sign_codebook(30), kind="sign", group=30)
