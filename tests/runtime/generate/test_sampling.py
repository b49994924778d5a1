"""How tokens are chosen, against the processors of transformers, which are the reference."""

from itertools import product

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.runtime import Sampling
from trt_compress.runtime.generate.sampling import Chooser, Room, left, log_probabilities, most_probable


def reference(logits: np.ndarray, settings: Sampling) -> np.ndarray:
    """Probabilities [V] by transformers, in float64."""
    steps = LogitsProcessorList([TemperatureLogitsWarper(settings.temperature)])
    if settings.top_k:
        steps.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        steps.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        steps.append(MinPLogitsWarper(settings.min_p))
    given = torch.from_numpy(logits.astype(np.float64))[None]
    found: np.ndarray = steps(torch.LongTensor([[0]]), given).softmax(dim=1)[0].numpy()
    return found


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 8.0])
def test_what_is_left_is_what_transformers_leaves(spread: float) -> None:
    random = np.random.default_rng(5)
    logits = random.normal(0, 1, 3000).astype(np.float32) * np.float32(spread) + random.random(3000, np.float32) / 1000
    cases = product((0.3, 1.0, 2.5), (0, 1, 40, 2999, 5000), (0.0001, 0.6, 0.95, 1.0), (0.0, 0.05, 1.0))
    for temperature, top_k, top_p, min_p in cases:
        settings = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        tokens, weights = left(logits, float(logits.max()), settings)
        found = np.zeros(len(logits))
        found[slice(None) if tokens is None else tokens] = weights / weights.sum(dtype=np.float64)
        wanted = reference(logits, settings)
        assert np.abs(found - wanted).max() < 1e-4 * wanted.max(), settings
        counts = [int((values > 1e-30).sum()) for values in (found, wanted)]  # float32 has no smaller ones
        assert abs(counts[0] - counts[1]) <= 1, settings  # one where the sum is just reached, by rounding


def test_memory_is_worked_in_again_and_logits_stay_as_they_are() -> None:
    """One room for settings and vocabularies in turn leaves what a new one each time leaves."""
    random, room = np.random.default_rng(6), Room()
    cases = product((0.3, 2.5), (0, 40), (0.6, 1.0), (0.0, 0.05), (3000, 700, 4000))
    for temperature, top_k, top_p, min_p, size in cases:
        logits = random.normal(0, 3, size).astype(np.float32)
        before, settings = logits.copy(), Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        tokens, weights = left(logits, float(logits.max()), settings, room)
        wanted, wanted_weights = left(logits, float(logits.max()), settings)
        assert (tokens is None) == (wanted is None) and np.array_equal(weights, wanted_weights), settings
        assert tokens is None or wanted is None or np.array_equal(tokens, wanted), settings
        assert np.array_equal(logits, before), settings


def test_draws_have_the_probabilities_of_the_model() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.2, 0.05]], np.float32))
    chooser = Chooser([Sampling(temperature=1, seed=7, top_p=0.9)], [[0]])
    counts = np.bincount([chooser.choose([0], logits.copy())[0] for _ in range(4000)], minlength=4)
    assert counts[3] == 0
    wanted = np.array([0.5, 0.25, 0.2]) / 0.95 * 4000
    assert (((counts[:3] - wanted) ** 2 / wanted).sum()) < 13.8  # chi-squared, 2 degrees of freedom, p = 0.001


def test_equal_logits_go_by_the_smaller_number() -> None:
    assert Chooser([Sampling()], [[0]]).choose([0], np.array([[1, 3, 3, 2]], np.float32)) == [1]
    assert most_probable(np.array([1, 3, 3, 2, 3], np.float32), 3) == [1, 2, 4]
    tokens, _ = left(np.array([2, 2, 2, 2], np.float32), 2.0, Sampling(temperature=1, top_p=0.5))
    assert tokens is not None and tokens.tolist() == [0, 1]


def test_repetition_penalty() -> None:
    logits = np.array([[2.0, -1.0, 0.5, 1.9], [2.0, -1.0, 0.5, 1.9]], np.float32)
    prompts = [[0, 1, 1], [2]]
    given = torch.from_numpy(logits.copy())
    wanted = [RepetitionPenaltyLogitsProcessor(1.5)(torch.LongTensor([prompts[0]]), given[:1])[0]]
    wanted.append(RepetitionPenaltyLogitsProcessor(1.5)(torch.LongTensor([prompts[1]]), given[1:])[0])
    chooser = Chooser([Sampling(repetition_penalty=1.5)] * 2, prompts)
    changed = logits.copy()
    assert chooser.choose([0, 1], changed) == [3, 0]
    np.testing.assert_allclose(changed, torch.stack(wanted).numpy(), rtol=1e-6)
    assert chooser.choose([0, 1], logits.copy()) == [0, 3]  # the new tokens count too: 1.9 / 1.5 < 2 / 1.5 < 1.9


def test_log_probabilities() -> None:
    logits = np.random.default_rng(1).normal(0, 20, (3, 5000)).astype(np.float32)
    logits[0, 7] = -np.inf
    wanted = torch.from_numpy(logits).double().log_softmax(dim=1).numpy()
    np.testing.assert_allclose(log_probabilities(logits), wanted, atol=2e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_leave_nothing(bad: float) -> None:
    chooser = Chooser([Sampling(temperature=1)], [[0]])
    with pytest.raises(UnsupportedError, match="No token can follow"):
        chooser.choose([0], np.full((1, 4), -np.inf, np.float32))
    with pytest.raises(UnsupportedError, match="NaN" if np.isnan(bad) else "one is"):
        chooser.choose([0], np.array([[0, bad, 1]], np.float32))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": -1}, "temperature=-1; give a number from 0 to 1000"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0}, "top_p=0; give a number above 0 and at most 1"),
        ({"top_p": "0.9"}, "top_p='0.9'"),
        ({"top_k": 1.5}, "top_k=1.5; give a whole number from 0"),
        ({"seed": -1}, "seed=-1"),
        ({"stop": "x"}, "stop='x'; give a list"),
        ({"stop": [""]}, "at least one character"),
        ({"top_q": 1}, "setting 'top_q' is not known; .* Did you mean 'top_p'"),
        ({"logprobs": True}, "logprobs=True"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Sampling.of(settings)


def test_choosing_at_all_is_meant_by_settings_that_need_it() -> None:
    assert Sampling.of({"top_p": 0.5}).temperature == 1
    assert Sampling.of({"top_p": 0.5, "temperature": 0.0}).temperature == 0
    assert Sampling.of({"top_p": 0.5}, Sampling(temperature=0.3)).temperature == 0.3
