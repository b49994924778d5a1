"""Expected attention keeps what kvpress keeps, however a prompt comes in chunks, alone and beside others."""

from pathlib import Path

import pytest
import torch

from tests.golden.golden_data import FOLDER, read
from tests.models.cache.runs import CacheRun, golden_decoder
from trt_compress.errors import ConfigError
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.decoder import Decoder

LOGITS = 1e-4


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("case", ["expected", "expected_mean"])
@pytest.mark.parametrize("chunk", [64, 7])
def test_golden(family: str, case: str, chunk: int, tmp_path: Path) -> None:
    """The set that is kept in each layer, the logits behind the prompt, and those of steps on what was kept."""
    model, _ = read("kvpress", f"{family}_model")
    arrays, said = read("kvpress", f"{family}_{case}")
    decoder = golden_decoder(FOLDER / "kvpress" / f"{family}_model.npz", tmp_path, family)
    kept = int(arrays["kept_count"][0])
    spec = (
        f"expected:budget={kept},sinks={said['n_sink']},future={said['n_future_positions']},"
        f"covariance={str(said['use_covariance']).lower()},value_norm={str(said['use_vnorm']).lower()}"
    )
    prompts = model["input_ids"].tolist()
    run = CacheRun(decoder, spec, context=96, chunk=chunk, batch=len(prompts))
    whole = CacheRun(decoder, "none", context=96, chunk=chunk, batch=len(prompts))
    torch.testing.assert_close(run.read(prompts), arrays["prefill_logits"], rtol=0, atol=LOGITS)
    whole.read(prompts)
    for layer in range(len(decoder.layers)):
        index = arrays[f"kept_{layer}"].sort(dim=-1).values[..., None].expand(-1, -1, -1, 16)
        for name in ("keys", "values"):
            wanted = whole.states[f"{name}_{layer}"].gather(2, index)
            torch.testing.assert_close(run.states[f"{name}_{layer}"][:, :, :kept], wanted, rtol=0, atol=1e-5)
    tokens = arrays["next_token"][:, 0]
    for number in range(arrays["decode_logits"].shape[1]):
        logits = run.step(tokens.tolist())
        torch.testing.assert_close(logits, arrays["decode_logits"][:, number], rtol=0, atol=LOGITS)
        tokens = logits.argmax(dim=1)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return golden_decoder(FOLDER / "kvpress" / "llama_model.npz", tmp_path_factory.mktemp("hf"), "llama")


def texts(*counts: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 97, (count,), generator=generator).tolist() for count in counts]


def test_unequal_prompts_are_as_alone(decoder: Decoder) -> None:
    """In a batch a prompt that ends earlier, and one below the budget, give what they give alone; also a later one."""
    spec, prompts, later = "expected:budget=12,sinks=3,future=20", texts(37, 21, 9, 2), texts(15, 3, 8, 9)
    run = CacheRun(decoder, spec, context=96, chunk=8, batch=len(prompts))
    found = [run.read(prompts), run.step([5] * len(prompts)), run.read(later), run.step([6] * len(prompts))]
    for row, prompt in enumerate(prompts):
        alone = CacheRun(decoder, spec, context=96, chunk=16)
        each = [alone.read([prompt]), alone.step([5]), alone.read([later[row]]), alone.step([6])]
        for together, single in zip(found, each, strict=True):
            torch.testing.assert_close(together[row], single[0], rtol=0, atol=1e-4)


def test_a_budget_for_all_changes_nothing_and_what_was_evicted_is_not_read(decoder: Decoder) -> None:
    prompts = texts(30)
    whole, kept = (
        CacheRun(decoder, spec, context=96, chunk=8) for spec in ("none", "expected:budget=40,sinks=2,future=8")
    )
    for run in (whole, kept):
        run.read(prompts)
    for token in range(5):
        torch.testing.assert_close(kept.step([token]), whole.step([token]), rtol=0, atol=1e-4)
    first, poisoned = (CacheRun(decoder, "expected:budget=9,future=8", context=96, chunk=8) for _ in range(2))
    for run in (first, poisoned):
        run.read(prompts)
    for name, state in poisoned.states.items():
        if name.startswith(("keys", "values")):
            state[:, :, 9:] = 1e30
    for token in range(3):
        assert torch.equal(first.step([token]), poisoned.step([token]))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("budget=4", "expected: budget=4 has no room beside sinks=4"),
        ("budget=9,future=0", "expected: future=0 is out of range"),
        ("budget=9,epsilon=-1", "expected: epsilon=-1.0 is out of range"),
        ("sinks=4", "expected: option 'budget' is missing"),
    ],
)
def test_bad_input(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_spec(f"expected:{spec}")
