"""Bad calls of operators: each is refused with what was given, what is allowed and what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.plugins.token_merge.op import max_merged, token_merge
from trt_compress.plugins.token_restore.op import token_restore
from trt_compress.plugins.token_select.op import token_select

X, METRIC, SIZE, SCORE = torch.ones(2, 9, 4), torch.ones(2, 9, 3), torch.ones(2, 9, 1), torch.ones(2, 9)


def merge(x: Any = X, metric: Any = METRIC, size: Any = SIZE, **attributes: Any) -> object:
    return token_merge(x, metric, size, **{"num_merged": 2, **attributes})


def select(x: Any = X, score: Any = SCORE, **attributes: Any) -> object:
    return token_select(x, score, **{"num_kept": 4, **attributes})


def restore(y: Any = X, index: Any = None, **attributes: Any) -> object:
    return token_restore(y, torch.zeros(2, 5, dtype=torch.int64) if index is None else index, **attributes)


CONFIG: list[tuple[Callable[[], object], str]] = [
    (
        lambda: merge(num_merged=5),
        r"token_merge: num_merged=5 is out of range; with N=9 tokens of which 0 are .* 0\.\.4",
    ),
    (
        lambda: merge(num_merged=4, num_protected=2),
        r"num_merged=4 is out of range; .* of which 2 are protected .*0\.\.3",
    ),
    (lambda: merge(num_merged=-1), r"token_merge: num_merged=-1 is out of range; .*0\.\.4\."),
    (lambda: merge(num_merged=1.5), r"token_merge: num_merged=1\.5 is not a whole number; give one in 0\.\.4\."),
    (lambda: merge(num_merged=True), r"token_merge: num_merged=True is not a whole number; give one in 0\.\.4\."),
    (
        lambda: merge(num_protected=8),
        r"token_merge: num_protected=8 leaves 1 of N=9 tokens to merge; at least two must",
    ),
    (lambda: merge(num_protected=-1), r"token_merge: num_protected=-1 is out of range; N=9 tokens allow 0\.\.7\."),
    (lambda: merge(order="size"), r"token_merge: order 'size' is not known; there are position, similarity\."),
    (lambda: select(num_kept=10), r"token_select: num_kept=10 is out of range; N=9 tokens allow 0\.\.9\."),
    (lambda: select(num_kept=-1), r"token_select: num_kept=-1 is out of range; N=9 tokens allow 0\.\.9\."),
    (lambda: select(num_kept="4"), r"token_select: num_kept='4' is not a whole number; give one in 0\.\.9\."),
    (lambda: select(order="size"), r"token_select: order 'size' is not known; there are position, score\."),
    (lambda: select(remainder="keep"), r"token_select: remainder 'keep' is not known; there are drop, fuse\."),
    (
        lambda: select(num_kept=9, remainder="fuse"),
        r"num_kept=9 keeps all N=9 tokens, so nothing is left to fuse; drop it",
    ),
    (lambda: select(forced=[0, 9]), r"token_select: forced=\[0, 9\] is out of range; positions are 0\.\.8\."),
    (lambda: select(forced=[-1]), r"token_select: forced=\[-1\] is out of range; positions are 0\.\.8\."),
    (lambda: select(num_kept=1, forced=[0, 1]), r"token_select: num_kept=1 is less than the 2 forced tokens\."),
    (lambda: restore(mode="undo"), r"token_restore: mode 'undo' is not known; there are unmerge, unpermute\."),
]
SHAPE: list[tuple[Callable[[], object], str]] = [
    (lambda: merge(x=X[0]), r"token_merge: x has shape \[9, 4\]; it must be \[B, N, C\] with axes BNC\."),
    (lambda: merge(metric=METRIC[:, 1:]), r"token_merge: metric has shape \[2, 8, 3\]; it must be \[2, 9, D\]"),
    (lambda: merge(size=SIZE[..., 0]), r"token_merge: size has shape \[2, 9\]; it must be \[2, 9, 1\] with axes BN1\."),
    (lambda: merge(x=X.long()), r"token_merge: x has dtype int64; it must be float32 or float16 or bfloat16\."),
    (lambda: merge(x=X.double()), r"token_merge: x has dtype float64; it must be float32 or float16 or bfloat16\."),
    (lambda: merge(size=SIZE.int()), r"token_merge: size has dtype int32; it must be float32"),
    (lambda: select(score=SCORE[:1]), r"token_select: score has shape \[1, 9\]; it must be \[2, 9\] with axes BN\."),
    (lambda: select(score=SCORE.long()), r"token_select: score has dtype int64; it must be float32"),
    (lambda: restore(y=X[0]), r"token_restore: y has shape \[9, 4\]; it must be \[B, M, C\] with axes BMC\."),
    (lambda: restore(index=torch.zeros(2, 5)), r"token_restore: index has dtype float32; it must be int64\."),
    (lambda: restore(mode="unpermute"), r"token_restore: index has shape \[2, 5\]; it must be \[2, 9\] with axes BN\."),
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
    merge(num_merged=4)
    merge(num_merged=3, num_protected=2)
    select(num_kept=9)
    select(num_kept=8, remainder="fuse")
    select(num_kept=0)


@pytest.mark.parametrize(
    ("num_tokens", "num_protected", "most"), [(9, 0, 4), (9, 1, 4), (9, 2, 3), (2, 0, 1), (1, 5, 0)]
)
def test_max_merged(num_tokens: int, num_protected: int, most: int) -> None:
    assert max_merged(num_tokens, num_protected) == most


def test_forced_tokens_may_be_named_twice() -> None:
    _, index, _ = token_select(X, torch.arange(9.0).expand(2, 9), num_kept=3, forced=[4, 0, 4])
    assert index.tolist() == [[0, 4, 8]] * 2
