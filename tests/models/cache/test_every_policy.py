"""What holds of every policy by its definition: who keeps all changes nothing, and packed codes are what they were.

Here in torch; `tests/export/test_cache_proofs.py` asks the bundles of policies that differ in what keeps states.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.models.cache.policies import CHUNK, CONTEXT, EVERY, SELECTORS, model, spec_of
from tests.models.cache.runs import CacheRun
from tests.models.decoders import reference, text
from trt_compress.methods import parse_spec
from trt_compress.models.compressors.artifacts import for_weights
from trt_compress.models.hosts.decoder import Decoder
from trt_compress.models.hosts.decoder_families import read_config
from trt_compress.models.hosts.decoder_host import read_decoder
from trt_compress.models.language.directory import Directory
from trt_compress.plugins.kv_dequantize.op import kv_dequantize
from trt_compress.plugins.kv_format import pack, unpack
from trt_compress.plugins.kv_quantize.op import kv_quantize


@pytest.fixture(scope="module")
def folder(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """That of `tests/export/test_cache_proofs.py`, with the artifacts that were calibrated for it."""
    return made_once("a tiny Llama", model)


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    source = Directory(folder)
    return read_decoder(read_config(source.config, name=source.name), source)


@pytest.mark.parametrize("policy", SELECTORS)
def test_a_selector_that_keeps_all_changes_nothing(policy: str, folder: Path, decoder: Decoder) -> None:
    """A prompt in chunks, steps, a second prompt, steps; all of it has room in the budget."""
    spec = spec_of(policy, folder).replace("budget=40", "budget=150")
    assert "budget=150" in spec
    read = for_weights(parse_spec(spec), source="tiny", sha256=Directory(folder).sha256())
    kept, plain = (CacheRun(decoder, one, context=192, chunk=16) for one in (read, "none"))
    steps = text(20, seed=2).tolist()
    for seed, count in ((1, 60), (3, 17)):
        prompt = text(count, seed=seed).tolist()
        torch.testing.assert_close(kept.read([prompt]), plain.read([prompt]), rtol=0, atol=1e-4)
        for token in steps:
            torch.testing.assert_close(kept.step([token]), plain.step([token]), rtol=0, atol=1e-4)


def run_of(policy: str, folder: Path, decoder: Decoder, *, chunk: int = CHUNK) -> CacheRun:
    """One sequence with a policy of `EVERY`."""
    read = for_weights(parse_spec(spec_of(policy, folder)), source="tiny", sha256=Directory(folder).sha256())
    return CacheRun(decoder, read, context=CONTEXT, chunk=chunk)


@pytest.mark.parametrize("policy", EVERY)
def test_bytes_that_are_planned_are_those_of_the_states(policy: str, folder: Path, decoder: Decoder) -> None:
    """Behind a prompt that fills the context: of each layer all its states, of their slots those in use."""
    run = run_of(policy, folder, decoder)
    run.read([text(CONTEXT).tolist()])
    capacities = {each.symbol: each for graph in run.graphs.values() for each in graph.capacities}
    states = {str(state.name): state for graph in run.graphs.values() for state in graph.states}
    stored: dict[int, int] = {}
    for name, state in states.items():
        if state.layer is None:
            continue
        array = run.states[name]
        axis = next((axis for axis, dim in enumerate(state.shape) if dim in capacities), None)
        slots = used = 1
        if axis is not None:
            counted = capacities[str(state.shape[axis])].used
            slots, used = array.shape[axis], int((run.seen if counted is None else run.states[counted])[0])
        stored[state.layer] = stored.get(state.layer, 0) + array.nbytes // slots * used
    planned: dict[int, int] = {}
    for site in run.plan.sites:
        planned[site.layer] = planned.get(site.layer, 0) + (site.bytes or 0)
    assert planned == stored and min(planned.values()) > 0


def poison(run: CacheRun) -> int:
    """Put NaN where nobody may look: in slots that are not in use. Returns how many numbers that were.

    Values have the largest number of float16 there: what attention gives to such a slot is 0, which is multiplied with
    them. Codes are 255; scores of rows to come are zeros that are added to, and stay.
    """
    capacities = {each.symbol: each for graph in run.graphs.values() for each in graph.capacities}
    specs = {str(state.name): state for graph in run.graphs.values() for state in graph.states}
    changed = 0
    for name, state in specs.items():
        axis = next((axis for axis, dim in enumerate(state.shape) if dim in capacities), None)
        if axis is None or state.kind == "score":
            continue
        counted, array = capacities[str(state.shape[axis])].used, run.states[name].clone()
        for row, count in enumerate((run.seen if counted is None else run.states[counted]).tolist()):
            behind = array[row].movedim(axis - 1, 0)[int(count) :]
            behind.fill_(255 if not array.is_floating_point() else 65504 if name.startswith("v") else float("nan"))
            changed += behind.numel()
        run.states[name] = array
    return changed


@pytest.mark.parametrize("policy", [each for each in EVERY if each != "scout"])  # whose slots are all in use
def test_rows_that_are_not_there_are_never_read(policy: str, folder: Path, decoder: Decoder) -> None:
    """Evicted ones and those to come: between a prompt, steps and a second prompt."""
    clean, dirty = run_of(policy, folder, decoder), run_of(policy, folder, decoder)
    prompt, more = text(100).tolist(), text(40, seed=5).tolist()
    assert torch.equal(clean.read([prompt]), dirty.read([prompt]))
    for token in text(5, seed=3).tolist():
        assert poison(dirty) > 0
        assert torch.equal(clean.step([token]), dirty.step([token]))
    poison(dirty)
    assert torch.equal(clean.read([more]), dirty.read([more]))


@torch.no_grad()
def first_keys(tokens: list[int]) -> Tensor:
    """The turned keys of the first layer, [G, N, D], as transformers keeps them: of token and place alone."""
    keys: Tensor = reference("llama")(torch.tensor([tokens]), use_cache=True).past_key_values.layers[0].keys[0]
    return keys


@pytest.mark.parametrize("policy", (*SELECTORS, *(each for each in EVERY if "positions=cache" in each)))
def test_positions_go_on_behind_all_that_was_read(policy: str, folder: Path, decoder: Decoder) -> None:
    """Behind a prompt of 100 tokens of which fewer are kept the next one has the place 100; with positions of the
    cache the place of its slot."""
    run = run_of(policy, folder, decoder)
    prompt, next_ = text(100).tolist(), text(3, seed=8).tolist()
    run.read([prompt])
    for number, token in enumerate(next_):
        rows = int(run.states["rows"][0])
        assert rows < 100 + number
        run.step([token])
        if int(run.states["rows"][0]) != rows + 1:
            continue  # it has chosen anew behind the step, or packed
        place = rows if "positions=cache" in policy else 100 + number
        wanted = first_keys([*prompt, *next_, *prompt][:place] + [token])[:, -1]
        torch.testing.assert_close(run.states["keys_0"][0, :, rows], wanted, rtol=0, atol=1e-4)
        return
    pytest.fail("every step was followed by upkeep")


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_packing_is_undone_by_unpacking(bits: int) -> None:
    """All bytes there are, as codes and back; and codes as bytes and back."""
    whole = torch.arange(256, dtype=torch.uint8).reshape(4, 64)
    assert torch.equal(pack(unpack(whole, bits), bits), whole)
    codes = torch.randint(0, 1 << bits, (3, 5, 32), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes, bits), bits), codes)


@pytest.mark.parametrize("axis", ["channel", "token"])
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("group", [0, 8])
def test_rows_that_codes_can_say_come_back_as_they_were(bits: int, axis: str, group: int) -> None:
    """Whole numbers from the least to the largest code in each group: the scale is 1, the minimum a whole number."""
    generator = torch.Generator().manual_seed(group)
    rows = torch.randint(0, 1 << bits, (2, 3, 16, 16), generator=generator).float()
    lines = rows if axis == "token" else rows.transpose(2, 3)
    lines[..., ::8], lines[..., 1::8] = 0, (1 << bits) - 1
    rows = rows - 5
    code, scale, minimum = kv_quantize(rows, bits=bits, axis=axis, group=group, scale_type=torch.float16)
    assert torch.equal(kv_dequantize(code, scale, minimum, bits=bits, axis=axis, group=group, to=torch.float32), rows)
