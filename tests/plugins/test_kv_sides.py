"""KVAttention where something is done to rows as they are read: products of low rank, keys that are turned."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trt_compress.errors import ConfigError, ShapeError, TrtCompressError
from trt_compress.plugins.kv_attention.op import OPERATOR, kv_attention
from trt_compress.plugins.kv_attention_plain.op import kv_attention_plain
from trt_compress.plugins.kv_dequantize.op import kv_dequantize
from trt_compress.plugins.kv_quantize.op import kv_quantize
from trt_compress.plugins.testing import call_torch, onnx_model
from trt_compress.plugins.testing.forms import session

B, H, G, T, L, D, BLOCK, RANK = 2, 4, 2, 3, 12, 8, 4, 2
FORMAT: dict[str, Any] = {"k_bits": 4, "k_axis": "token", "v_bits": 4, "v_axis": "token"}
LENGTH = torch.tensor([12, 7])


def cache(seed: int = 0) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Queries, codes with scales, and the rows that these are."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(B, H, T, D, generator=generator)
    packed, rows = [], []
    for _ in "kv":
        code = kv_quantize(torch.randn(B, G, L, D, generator=generator), bits=4, axis="token")
        packed += code
        rows.append(kv_dequantize(*code, bits=4, axis="token", to=torch.float32))
    return q, packed, rows


def factors(seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, G, L, RANK), (B, G, L // BLOCK, RANK * D)) * 2
    return [torch.randn(shape, generator=generator) for shape in shapes]


def table(position: Tensor, turned: int = D) -> Tensor:
    """Cosines and sines of positions [B, G, L]."""
    angle = position[..., None] / 100.0 ** (torch.arange(turned // 2) / (turned // 2))
    return torch.cat([angle.cos(), angle.sin()], dim=3)


def turned_by_matrix(rows: Tensor, position: Tensor) -> Tensor:
    """Each row times the matrix of its rotation, built from the definition."""
    found = torch.empty_like(rows)
    for at in np.ndindex(*rows.shape[:3]):
        matrix = torch.eye(D)
        for pair in range(D // 2):
            angle = position[at] / torch.tensor(100.0) ** (pair / (D // 2))
            first, second = pair, pair + D // 2
            matrix[first, first] = matrix[second, second] = angle.cos()
            matrix[first, second], matrix[second, first] = -angle.sin(), angle.sin()
        found[at] = matrix @ rows[at]
    return found


def attended(*tensors: Any, **options: Any) -> tuple[Tensor, Tensor]:
    return kv_attention(*tensors, **options)


def attended_plain(*tensors: Any, **options: Any) -> tuple[Tensor, Tensor]:
    return kv_attention_plain(*tensors, **options)


def assert_same(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], error: float = 2e-6) -> None:
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=error, atol=error)


def test_products_are_added_to_the_rows_of_their_block() -> None:
    q, packed, rows = cache()
    sides = factors()
    wanted = []
    for number, one in enumerate(rows):
        factor, basis = sides[2 * number : 2 * number + 2]
        whole = one.clone()
        for slot in range(L):
            matrix = basis[:, :, slot // BLOCK].reshape(B, G, RANK, D)
            whole[:, :, slot] += torch.einsum("bgr,bgrd->bgd", factor[:, :, slot], matrix)
        wanted.append(whole)
    found = attended(q, *packed, LENGTH, None, None, *sides, block=BLOCK, causal=True, **FORMAT)
    assert_same(found, attended_plain(q, *wanted, LENGTH, causal=True))
    without = attended(q, *packed, LENGTH, causal=True, **FORMAT)
    assert (found[0] - without[0]).abs().max() > 0.1


def test_keys_are_turned_as_if_they_had_been_before() -> None:
    q, packed, (k, v) = cache()
    position = torch.tensor([3, 0, 7, 2, 30, 31, 32, 1, 50, 51, 90, 4]).float() + torch.arange(B * G).reshape(B, G, 1)
    wanted = attended_plain(q, turned_by_matrix(k, position), v, LENGTH)
    assert_same(attended(q, *packed, LENGTH, rope=table(position), **FORMAT), wanted)


def test_only_distances_count() -> None:
    """Queries and keys that move by the same number of positions see each other as before."""
    q, packed, _ = cache()
    position = torch.arange(float(L)).expand(1, 1, L)
    own = torch.full((B, H, T), 12.0)
    found = [
        attended(turned_by_matrix(q, own + moved), *packed, LENGTH, rope=table(position + moved), **FORMAT)
        for moved in (0, 5)
    ]
    assert_same(found[1], found[0], 1e-5)
    other = attended(turned_by_matrix(q, own + 5), *packed, LENGTH, rope=table(position), **FORMAT)
    assert (other[0] - found[0][0]).abs().max() > 1e-3


def test_products_are_added_before_keys_are_turned() -> None:
    q, packed, (k, v) = cache()
    factor, basis = factors()[:2]
    sums = (factor.reshape(B, G, L // BLOCK, BLOCK, RANK) @ basis.reshape(B, G, L // BLOCK, RANK, D)).reshape(k.shape)
    position = torch.arange(float(L)).expand(B, G, L)
    wanted = attended_plain(q, turned_by_matrix(k + sums, position), v, LENGTH)
    rope = table(position[:1, :1])
    assert_same(attended(q, *packed, LENGTH, None, None, factor, basis, rope=rope, block=BLOCK, **FORMAT), wanted)


def test_one_body_serves_calls_with_sides_and_calls_without() -> None:
    """Layers of one model: nothing, products, turns, and chosen slots."""
    generator = torch.Generator().manual_seed(2)
    reasons = ("five queries", "products for keys alone", "products for values", "keys turned", "some channels turned")
    plain = [next(s for s in OPERATOR.samples if s.reason.startswith(reason)) for reason in reasons]
    chosen = [s for s in OPERATOR.samples if s.attributes["indexed"] and s.axes["L"] < 20]
    for samples in (plain, plain + chosen):
        body = OPERATOR.function_proto(20, [sample.attributes for sample in samples])
        for sample in samples:
            inputs = OPERATOR.make_inputs(sample, generator)
            outputs = call_torch(OPERATOR, sample, inputs)
            model = onnx_model(OPERATOR, sample, inputs, outputs)
            del model.functions[:]
            model.functions.append(body)
            feeds = {t.name: tensor.numpy() for t, tensor in zip(OPERATOR.spec.inputs, inputs, strict=True)}
            for one, two in zip(session(model.SerializeToString()).run(None, feeds), outputs, strict=True):
                np.testing.assert_allclose(one, two.numpy(), rtol=1e-5, atol=1e-5)


def test_a_body_without_sides_has_none_of_their_nodes() -> None:
    usual = next(s for s in OPERATOR.samples if s.reason.startswith("five queries"))
    with_sides = [s for s in OPERATOR.samples if s.attributes["turned"] and s.attributes["k_rank"]]
    small, large = (
        {name for node in OPERATOR.function_proto(20, [sample.attributes]).node for name in node.input}
        for sample in (usual, with_sides[0])
    )
    sides = {"k_factor", "k_basis", "v_factor", "v_basis", "rope"}
    assert not sides & small and sides <= large


def attend(**changes: Any) -> Callable[[], object]:
    given: dict[str, Any] = dict(zip(("k_factor", "k_basis", "v_factor", "v_basis"), factors(), strict=True))
    given |= {"block": BLOCK, "rope": table(torch.zeros(1, 1, L)), **FORMAT, **changes}
    q, packed, _ = cache()
    return lambda: attended(q, *packed, LENGTH, **given)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (attend(k_basis=None), ShapeError, r"k_factor is given without k_basis; give both, or neither\.$"),
        (attend(v_factor=None), ShapeError, r"v_basis is given without v_factor; give both, or neither\.$"),
        (attend(block=5), ConfigError, r"block=5 does not divide L=12; give 0 \(all of it\) or a divisor\.$"),
        (attend(block=-1), ConfigError, r"block=-1 is not allowed; give 0 \(all of L\) or a divisor of L\.$"),
        (attend(block=6), ShapeError, r"k_basis has shape \[2, 2, 3, 16\]; it must be \[2, 2, 2, 16\] with axes BGPW"),
        (attend(k_factor=factors()[0][:, :, :5]), ShapeError, r"k_factor has shape .*; it must be \[2, 2, 12, R\]"),
        (attend(v_basis=factors()[3][..., :9]), ShapeError, r"v_basis has shape .*; it must be \[2, 2, 3, 16\]"),
        (attend(k_factor=torch.zeros(B, G, L, 0)), ShapeError, r"k_factor has R=0 columns; give at least one"),
        (attend(v_factor=factors()[2].half()), ShapeError, r"v_factor has dtype float16; it must be float32\.$"),
        (attend(k_factor=factors()[0].bfloat16()), ShapeError, r"k_factor has dtype bfloat16; it must be float32 or "),
        (attend(rope=torch.zeros(1, 1, L, 3)), ShapeError, r"rope turns 3 channels; it must be an even number of them"),
        (attend(rope=torch.zeros(1, 1, L, 10)), ShapeError, r"rope turns 10 channels; .*, at most D=8\.$"),
        (attend(rope=torch.zeros(1, 1, 5, 8)), ShapeError, r"rope has shape \[1, 1, 5, 8\]; it must be \[1 \| 2, 1 \|"),
        (attend(rope=torch.zeros(1, 1, L, 8).half()), ShapeError, r"rope has dtype float16; it must be float32\.$"),
    ],
)
def test_bad_input(call: Callable[[], object], error: type[TrtCompressError], message: str) -> None:
    with pytest.raises(error, match=rf"^kv_attention: .*{message}"):
        call()
