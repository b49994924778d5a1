"""Rows for new tokens against a reference in plain Python, and what the golden cases do not have."""

import math

import numpy as np
import pytest
import torch

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.models.text.heuristics import Heuristics, RowOrigin
from trt_compress.models.text.transplant import Mixture, mixture, transplanted

OLD, NEW, WIDTH, VECTOR = 23, 31, 6, 5


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def row(
    token: int, pieces: list[int], lengths: list[int], old_lengths: list[int],
    external: np.ndarray, old_external: np.ndarray, table: np.ndarray, settings: Heuristics,
) -> np.ndarray | None:  # fmt: skip
    """One row, in doubles, as the paper's text has it."""

    def cosine(old: int) -> float:
        a, b = external[token], old_external[old]
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    local = wide = None
    if pieces and settings.global_weight < 1:
        alike = softmax([cosine(piece) for piece in pieces])
        mean = [(a + old_lengths[piece] / lengths[token]) / 2 for a, piece in zip(alike, pieces, strict=True)]
        weights = softmax([value / (settings.temperature + 1e-5) for value in mean])
        local = np.array(weights) @ table[pieces]
    if settings.global_weight > 0:
        near = sorted(range(OLD), key=lambda old: (-cosine(old), old))[: settings.neighbours]
        kept = [old for old in near if cosine(old) >= settings.threshold]
        if kept:
            scores = [cosine(old) / (settings.temperature + 1e-5) for old in kept]
            wide = np.array(softmax(scores)) @ table[kept]
    if local is None or wide is None:
        return wide if local is None else local
    return (1 - settings.global_weight) * local + settings.global_weight * wide


@pytest.mark.parametrize(
    "settings",
    [
        Heuristics(),
        Heuristics(temperature=0.05, global_weight=0.6, neighbours=7, threshold=0.4),
        Heuristics(global_weight=0.0),
        Heuristics(global_weight=1.0, neighbours=100, threshold=-1),
    ],
)
def test_against_plain_python(settings: Heuristics) -> None:
    chance = np.random.default_rng(4)
    table, external = chance.normal(size=(OLD, WIDTH)), chance.normal(size=(NEW, VECTOR))
    old_external = chance.normal(size=(OLD, VECTOR))
    lengths, old_lengths = chance.integers(1, 9, NEW).tolist(), chance.integers(1, 5, OLD).tolist()
    copied = [number if number < 11 and number % 3 else -1 for number in range(NEW)]
    pieces: list[list[int]] = [
        [] if copied[number] >= 0 or number == 30 else chance.integers(0, OLD, 1 + number % 4).tolist()
        for number in range(NEW)
    ]
    made = mixture(
        settings,
        copied=torch.tensor(copied),
        pieces=pieces,
        lengths=torch.tensor(lengths),
        old_lengths=torch.tensor(old_lengths),
        external=torch.tensor(external, dtype=torch.float32),
        old_external=torch.tensor(old_external, dtype=torch.float32),
    )
    found = transplanted(torch.tensor(table, dtype=torch.float32), made, NEW).numpy()
    for number in range(NEW):
        if copied[number] >= 0:
            wanted: np.ndarray | None = table[copied[number]]
        else:
            wanted = row(number, pieces[number], lengths, old_lengths, external, old_external, table, settings)
            assert (wanted is None) == (made.origin[number] == RowOrigin.RANDOM)
        if wanted is not None:
            np.testing.assert_allclose(found[number], wanted, rtol=0, atol=2e-6 * np.abs(table).max())


def simple(external: torch.Tensor, old_external: torch.Tensor, **settings: float) -> Mixture:
    count = len(external)
    return mixture(
        Heuristics(**{"global_weight": 1.0, **settings}),  # type: ignore[arg-type]
        copied=torch.full((count,), -1),
        pieces=[[]] * count,
        lengths=torch.ones(count, dtype=torch.int64),
        old_lengths=torch.ones(len(old_external), dtype=torch.int64),
        external=external,
        old_external=old_external,
    )


def test_of_equals_the_smaller_number_is_taken() -> None:
    equal = torch.tensor([[1.0, 0.0]]).repeat(40, 1)
    equal[7] = torch.tensor([0.0, 1.0])
    made = simple(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), equal, neighbours=4)
    assert made.neighbours.tolist() == [[0, 1, 2, 3], [7, 0, 1, 2]]


def test_what_has_no_text_stays_random_and_is_no_neighbour() -> None:
    old = torch.tensor([[0.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    made = simple(torch.tensor([[0.0, 0.0], [1.0, 0.1]]), old, neighbours=3, threshold=-1.0)
    assert made.origin.tolist() == [RowOrigin.RANDOM, RowOrigin.GLOBAL]
    assert made.neighbours.tolist() == [[-1, -1, -1], [1, 2, -1]]
    table = torch.tensor([[100.0], [1.0], [2.0]])
    new = transplanted(table, made, 5, seed=3)
    assert 1 < float(new[1]) < 2
    assert torch.equal(new, transplanted(table, made, 5, seed=3))
    assert not torch.equal(new[2:], transplanted(table, made, 5, seed=4)[2:])


def test_random_rows_have_the_spread_of_the_old_ones() -> None:
    table = torch.randn(300, 64) * 3 + 5
    made = simple(torch.zeros(2, 2), torch.zeros(300, 2))
    new = transplanted(table, made, 2000)
    assert float(new.mean()) == pytest.approx(5, abs=0.05) and float(new.std()) == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_bias_and_the_dtype(dtype: torch.dtype) -> None:
    made = simple(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), neighbours=1)
    new = transplanted(torch.tensor([0.25, 9.0], dtype=dtype), made, 3)
    assert (new.dtype, new.shape, float(new[0])) == (dtype, (3,), 0.25)


def test_what_does_not_fit_is_refused() -> None:
    made = simple(torch.zeros(4, 2), torch.zeros(3, 2))
    with pytest.raises(ShapeError, match="3 rows for 4 tokens"):
        transplanted(torch.zeros(3, 2), made, 3)
    for name, value in (("temperature", 0.0), ("global_weight", 1.5), ("neighbours", 0), ("threshold", 2.0)):
        with pytest.raises(ConfigError, match=name.replace("_", " ")):
            Heuristics(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="a row for each token"):
        mixture(
            Heuristics(),
            copied=torch.zeros(2),
            pieces=[],
            lengths=torch.ones(2),
            old_lengths=torch.ones(1),
            external=torch.zeros(2, 2),
            old_external=torch.zeros(1, 2),
        )
