"""What holds of every cache policy, on its bundle: targets, bytes, rows that are never read, batches, growth, files.

That its graphs compute what torch computes, one by one and by their procedure, is what the export itself has verified.
Bytes and positions are asked of every policy in torch: `tests/models/cache/test_every_policy.py`.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.cache.policies import CHUNK, CONTEXT, EVERY, SELECTORS, model, spec_of
from tests.models.decoders import reference, text
from trt_compress.errors import UnsupportedError
from trt_compress.export.api import export_model
from trt_compress.export.check import preflight_report
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Manifest, State
from trt_compress.plugins.library import Library
from trt_compress.runtime.sequences import Sequences
from trt_compress.runtime.session import Session

Array = np.ndarray[Any, np.dtype[Any]]
QUICK = "snapkv:budget=40,window=8+int4:group=8"
"""A selector that observes, and a store that packs."""
CLOSE = 1e-4


PARTS = {
    **dict.fromkeys(("snapkv", "int4"), QUICK),
    **dict.fromkeys(("h2o", "int8"), "h2o:budget=40,every=4,in_chunks=true+int8"),
    **dict.fromkeys(("pyramidkv", "kivi", "plain"), "pyramidkv:budget=40,window=8+kivi:bits=4,group=8,residual=16"),
    "streamingllm": "streamingllm:budget=40,positions=cache,every=8,in_chunks=true",
}
"""Policies that compute nothing which a setting beside them does not; the long form of the attacks has them."""
ALIKE = {
    **PARTS,
    **dict.fromkeys(("random_kv", "knorm", "keydiff", "tova"), "expected"),
    "compresskv": QUICK,
}
"""Policies whose states are kept and moved as those of another: what holds of their bundles is in the long form.
`test_every_policy` asks their graphs in torch, all of them in the quick run too."""


def marked(names: tuple[str, ...], long: Iterable[str]) -> list[Any]:
    """All of them, but only the representative in the quick run; those in `long` in the long form alone."""
    found = []
    for name in names:
        marks = [] if name == QUICK else [pytest.mark.slow]
        marks += [pytest.mark.long] if name in long else []
        found.append(pytest.param(name, marks=marks))
    return found


BUILT_LONG = ("gear", "kvquant", "zipcache")
"""Of these TensorRT-RTX takes a minute and more for all graphs, which the long form of the attacks has."""
every_built = pytest.mark.parametrize("policy", marked(EVERY, (*ALIKE, *BUILT_LONG)))
every_policy = pytest.mark.parametrize("policy", marked(EVERY, ALIKE))
TOGETHER = ("zipcache",)  # packs all sequences of a batch anew when one has to be: the same where all have to be
ROOMY = ("zipcache",)  # begins with slots for what one run packs at most, which here is the whole context


@pytest.fixture(scope="module")
def bundle_of(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Callable[[str], Path]:
    """The bundle of a policy, exported once, for the targets with function bodies and with plugins."""
    folder = made_once("a tiny Llama", model)

    @cache
    def export(policy: str) -> Path:
        targets = ("cpu", "rtx", "jetson-orin-jp6")
        how: dict[str, Any] = {"context": CONTEXT, "chunk": CHUNK, "batch": "1:1:4"}

        def make(output: Path) -> None:
            export_model(f"hf:{folder}", output=output, compress=spec_of(policy, folder), targets=targets, **how)

        return made_once(f"a tiny Llama with {policy}", make)

    return export


def used_slots(manifest: Manifest, sequences: Sequences, symbol: str) -> Array:
    """How many slots of a capacity each sequence uses."""
    (capacity,) = (each for each in manifest.capacities if each.symbol == symbol)
    found = np.array(sequences.seen) if capacity.used is None else sequences.states.value(capacity.used)
    assert found is not None
    return found


def growing_states(manifest: Manifest) -> Iterator[tuple[State, int | None]]:
    """Each state of a layer once, and the axis of its slots."""
    symbols = {each.symbol for each in manifest.capacities}
    for state in {state.key: state for state in manifest.states if state.layer is not None}.values():
        yield state, next((axis for axis, dim in enumerate(state.shape) if dim in symbols), None)


def value(sequences: Sequences, key: str) -> Array:
    found = sequences.states.value(key)
    assert found is not None
    return found


# ---- targets --------------------------------------------------------------------------------------------------------


@every_built
def test_tensorrt_rtx_builds_every_graph(policy: str, bundle_of: Callable[[str], Path]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the real builder: pip install 'trt-compress[rtx]'")
    bundle = bundle_of(policy)
    report = preflight_report(bundle, target="rtx")
    said = [sentence for sentence in report.checked if sentence.startswith("the file itself was ")]
    assert report.findings == ()
    assert len(said) == 1 and said[0].startswith("the file itself was parsed and built by TensorRT-RTX"), said


@every_policy
def test_jetpack_6_takes_the_plugins_of_every_graph(policy: str, bundle_of: Callable[[str], Path]) -> None:
    bundle = bundle_of(policy)
    found = preflight_report(bundle, target="jetson-orin-jp6")
    assert {finding.rule for finding in found.findings} == {"needs-plugin"} and found.errors == ()
    forms = {(form.target, form.graph) for form in Bundle.open(bundle).manifest.lowered}
    graphs = [graph.name for graph in Bundle.open(bundle).manifest.graphs]
    assert {("jetson-orin-jp6", name) for name in graphs} <= forms


# ---- bytes ----------------------------------------------------------------------------------------------------------


@every_policy
def test_bytes_in_the_manifest_are_those_of_the_arrays(policy: str, bundle_of: Callable[[str], Path]) -> None:
    """Behind a prompt that fills the context: of each layer all its states, of their slots those in use."""
    bundle = bundle_of(policy)
    manifest = Bundle.open(bundle).manifest
    with Session.open(bundle, native=False) as session:
        one = Sequences(session)
        one.read([text(CONTEXT).numpy()])
        stored: dict[int, int] = {}
        for state, axis in growing_states(manifest):
            array = value(one, state.key)
            slots = 1 if axis is None else array.shape[axis]
            used = 1 if axis is None else int(used_slots(manifest, one, str(state.shape[axis]))[0])
            stored[int(state.layer or 0)] = stored.get(int(state.layer or 0), 0) + array.nbytes // slots * used
    said: dict[int, int] = {}
    for site in manifest.compression:
        layer = int(site.site.rpartition(".")[2])
        said[layer] = said.get(layer, 0) + (site.bytes or 0)
    assert said == stored and min(said.values()) > 0


# ---- rows that are never read ---------------------------------------------------------------------------------------


def poisoned(path: Path, sequences: Sequences, manifest: Manifest, *, values: float) -> None:
    """Save sequences with what nobody may read: in keys, and in scales and minima of packed ones, NaN; codes 255."""
    sequences.save(path)
    with np.load(path) as saved:
        arrays = {name: saved[name] for name in saved.files}
    for state, axis in growing_states(manifest):
        if axis is None or state.kind == "score":  # scores of rows to come are zeros, and added to
            continue
        array, used = arrays[f"state/{state.key}"], used_slots(manifest, sequences, str(state.shape[axis]))
        of_values = state.key.startswith("v")
        for row, count in enumerate(used):
            behind = np.moveaxis(array[row], axis - 1, 0)[int(count) :]
            behind[...] = (values if of_values else np.nan) if array.dtype.kind == "f" else 255
    with path.open("wb") as file:
        np.savez(file, **arrays)


@pytest.mark.parametrize("form", ["body", "native"])
@every_policy
def test_rows_that_are_not_there_are_never_read(
    policy: str,
    form: str,
    bundle_of: Callable[[str], Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Evicted ones and those to come, between all runs.

    The bodies multiply what attention gives to a slot, 0 where none is there, with its value, so that a number there
    is without effect and NaN would not be: there the largest number of float16 is put in. Native operators do not look
    at these slots at all.
    """
    bundle = bundle_of(policy)
    library: Any = False if form == "body" else request.getfixturevalue("native_library").path
    manifest = Bundle.open(bundle).manifest
    with Session.open(bundle, native=library, threads=1) as session:
        assert ("native" in set(session.operator_paths().values())) == (form == "native")
        clean, dirty = Sequences(session, batch=2), Sequences(session, batch=2)
        prompts = [text(100).numpy(), text(50, seed=2).numpy()]
        np.testing.assert_array_equal(clean.read(prompts), dirty.read(prompts))
        for token in text(20, seed=3).tolist():
            poisoned(tmp_path / "states", dirty, manifest, values=65504 if form == "body" else np.nan)
            dirty = Sequences.load(tmp_path / "states", session)
            np.testing.assert_array_equal(clean.step([token, token]), dirty.step([token, token]))
        poisoned(tmp_path / "states", dirty, manifest, values=65504 if form == "body" else np.nan)
        dirty = Sequences.load(tmp_path / "states", session)
        more = [text(40, seed=5).numpy(), text(3, seed=6).numpy()]
        np.testing.assert_array_equal(clean.read(more), dirty.read(more))


# ---- batches, growth, files -----------------------------------------------------------------------------------------


@every_policy
def test_unequal_prompts_are_as_alone(policy: str, bundle_of: Callable[[str], Path]) -> None:
    """Prompts, steps, prompts again: one longer than any budget, one shorter, one of a single token."""
    lengths, more_lengths = ((100,) * 3, (20,) * 3) if policy in TOGETHER else ((100, 30, 1), (5, 40, 20))
    prompts = [text(count, seed=seed).numpy() for seed, count in enumerate(lengths)]
    more = [text(count, seed=5 + seed).numpy() for seed, count in enumerate(more_lengths)]
    steps = text(12, seed=9).tolist()
    with Session.open(bundle_of(policy), native=False, threads=1) as session:
        together = Sequences(session, batch=3)
        found = [together.read(prompts), *(together.step([token] * 3) for token in steps)]
        found += [together.read(more), together.step([7, 8, 9])]
        for row, prompt in enumerate(prompts):
            alone = Sequences(session)
            expected = [alone.read([prompt]), *(alone.step([token]) for token in steps)]
            expected += [alone.read([more[row]]), alone.step([7 + row])]
            np.testing.assert_allclose([each[row] for each in found], [each[0] for each in expected], atol=CLOSE)


@every_policy
def test_a_capacity_that_grows_on_the_way_changes_nothing(
    policy: str, bundle_of: Callable[[str], Path], native_library: Library
) -> None:
    """By native operators not a bit; bodies add up zeros of the slots that are not there in another order, so that they
    may round otherwise, and a code be one step apart."""
    bundle = bundle_of(policy)
    manifest = Bundle.open(bundle).manifest
    largest = {each.symbol: manifest.lengths[each.symbol].max for each in manifest.capacities}
    for native in (native_library.path, *(() if any(state.bits for state in manifest.states) else (False,))):
        with Session.open(bundle, native=native, threads=1) as session:
            grown, roomy = Sequences(session), Sequences(session)
            roomy.states.reserve(largest)
            before = {symbol: grown.states.lengths[symbol] for symbol in largest}
            prompt, more = text(60).numpy(), text(CONTEXT - 60, seed=2).tolist()
            found = [grown.read([prompt]), *(grown.step([token]) for token in more)]
            wanted = [roomy.read([prompt]), *(roomy.step([token]) for token in more)]
            np.testing.assert_allclose(found, wanted, rtol=0, atol=0 if native else CLOSE)
            after = {symbol: grown.states.lengths[symbol] for symbol in largest}
            grew = any(after[symbol] > before[symbol] for symbol in largest)
            assert grew or not largest or policy in ROOMY, "nothing grew, so that nothing was seen"


@every_policy
def test_what_was_saved_goes_on_alike(policy: str, bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Saved behind a prompt that was compressed and some steps; loaded into another session."""
    bundle, more = bundle_of(policy), text(30, seed=4).tolist()
    with Session.open(bundle, native=False, threads=1) as session:
        pair = Sequences(session, batch=2)
        pair.read([text(100).numpy(), text(30, seed=3).numpy()])
        for token in more[:7]:
            pair.step([token, token + 1])
        pair.save(tmp_path / "pair")
        expected = [pair.step([token, token + 1]) for token in more[7:]]
        expected.append(pair.read([text(33).numpy(), text(50, seed=3).numpy()]))
    with Session.open(bundle, native=False, threads=1) as session:
        again = Sequences.load(tmp_path / "pair", session)
        assert again.seen == (107, 37)
        found = [again.step([token, token + 1]) for token in more[7:]]
        found.append(again.read([text(33).numpy(), text(50, seed=3).numpy()]))
    np.testing.assert_array_equal(found, expected)


def test_nan_in_keys_names_layer_and_step_and_leaves_the_cache(
    bundle_of: Callable[[str], Path], tmp_path: Path
) -> None:
    with Session.open(bundle_of(QUICK), native=False, threads=1) as session:
        one = Sequences(session)
        one.read([text(100).numpy()])
        one.save(tmp_path / "saved")
        with np.load(tmp_path / "saved") as saved:
            arrays = {name: saved[name] for name in saved.files}
        arrays["state/k_scale_1"][0, 0, 3] = np.nan
        with (tmp_path / "saved").open("wb") as file:
            np.savez(file, **arrays)
        bad = Sequences.load(tmp_path / "saved", session)
        for _ in range(2):
            with pytest.raises(UnsupportedError) as caught:
                bad.step([5])
            assert "behind 100 tokens gives NaN, and so does first the cache of layer 1; " in caught.value.message
            assert "are as they were before it" in caught.value.message and "\n" not in caught.value.message
            assert bad.seen == (100,)
            for state, _ in growing_states(session.bundle.manifest):
                np.testing.assert_array_equal(value(bad, state.key), arrays[f"state/{state.key}"])


# ---- positions ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def first_keys(tokens: list[int]) -> Array:
    """The turned keys of the first layer, [G, N, D], as transformers keeps them: of token and place alone."""
    cached = reference("llama")(torch.tensor([tokens]), use_cache=True).past_key_values
    return np.asarray(cached.layers[0].keys[0].numpy())


@pytest.mark.parametrize("policy", marked((*SELECTORS, *(each for each in EVERY if "positions=cache" in each)), ALIKE))
def test_positions_go_on_behind_all_that_was_read(policy: str, bundle_of: Callable[[str], Path]) -> None:
    """Behind a prompt of 100 tokens of which fewer are kept the next one has the place 100; with positions of the
    cache the place of its slot."""
    bundle = bundle_of(policy)
    prompt, next_ = text(100).tolist(), text(3, seed=8).tolist()
    with Session.open(bundle, native=False) as session:
        one = Sequences(session)
        one.read([np.array(prompt)])
        for number, token in enumerate(next_):
            rows = int(value(one, "rows")[0])
            assert rows < 100 + number
            one.step([token])
            if int(value(one, "rows")[0]) != rows + 1:
                continue  # it has chosen anew behind the step, or packed
            place = rows if "positions=cache" in policy else 100 + number
            wanted = first_keys([*prompt, *next_, *prompt][:place] + [token])[:, -1]
            np.testing.assert_allclose(value(one, "keys_0")[0, :, rows], wanted, atol=CLOSE)
            return
    pytest.fail("every step was followed by upkeep")
