"""Decoders with cache policies become bundles on the command line, which read and score as their procedure says."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.models.decoders import saved, text
from tests.typed_commands import Typed
from trt_compress.format.bundle import Bundle
from trt_compress.runtime.sequences import Sequences
from trt_compress.runtime.session import Session

SPEC = "snapkv:budget=40,window=8+kivi:bits=4,group=8,residual=16"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def bundle(commands: Typed, folder: Path) -> Path:
    """A selector and a store that packs what it leaves."""
    output = folder / "bundle"
    options = ("--context", 192, "--chunk", 32, "--batch", "1:1:2", "--compress", SPEC)
    ended = commands("export", f"hf:{folder}", *options, "-o", output, within=300)
    assert ended.code == 0, ended.err
    assert "keeps 40 of 192 entries, packed to 4 bits, in 2 layers" in ended.out
    return output


def test_what_is_kept_is_said(commands: Typed, folder: Path, bundle: Path) -> None:
    """An export in words and as data, and the bundle's description, say the same of caches; without them, all."""

    def planned(spec: str, *options: str) -> str:
        return commands(
            "export", f"hf:{folder}", "--context", 192, "--compress", spec, "--dry-run", "-o", folder / "x", *options
        ).out

    said = "keeps 40 of 192 entries, packed to 4 bits, in 2 layers"
    assert json.loads(planned(SPEC, "--json"))["tokens"] == {"cache": said}
    assert f"cache: {said}" in commands("inspect", bundle).out
    assert "keeps all 192 entries, packed to 2 bits, in 2 layers" in planned("kivi")
    assert "keeps all 192 entries, packed to 8 bits, in 2 layers" in planned("int8")
    assert "keeps 64 of 192 entries in 2 layers" in planned("knorm:budget=64")
    assert "all kept" in planned("none")


def test_the_manifest_says_what_is_done(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert [graph.role for graph in manifest.graphs] == ["prefill", "step", "score", "compact", "flush"]
    assert [(each.site, each.compressor, each.tokens_in, each.tokens_out) for each in manifest.compression] == [
        (f"step/cache.{layer}", name, 192, kept) for layer in (0, 1) for name, kept in (("snapkv", 40), ("kivi", 192))
    ]
    assert manifest.verification is not None and manifest.verification.passed


def test_unequal_prompts_are_read_as_alone(bundle: Path) -> None:
    """One is longer than the budget and is chosen from, the other is kept whole; both are packed, and grow."""
    prompts, more = [text(100).numpy(), text(30, seed=3).numpy()], text(40, seed=4).numpy()
    with Session.open(bundle) as session:
        pair = Sequences(session, batch=2)
        found = [pair.read(prompts), *(pair.step([token, token]) for token in more)]
        packed = pair.states.value("packed")
        assert packed is not None and packed.any()
        for row, prompt in enumerate(prompts):
            alone = Sequences(session)
            logits = [alone.read([prompt]), *(alone.step([token]) for token in more)]
            np.testing.assert_allclose([each[row] for each in found], [each[0] for each in logits], atol=1e-4)


def test_bytes_in_the_manifest_are_those_of_the_arrays(bundle: Path) -> None:
    """Of the 40 entries that are kept, 32 are packed, in blocks of 8."""
    sites = {each.compressor: each for each in Bundle.open(bundle).manifest.compression if each.site == "step/cache.0"}
    with Session.open(bundle) as session:
        one = Sequences(session)
        one.read([text(100).numpy()])

        def value(name: str) -> np.ndarray:
            found = one.states.value(name)
            assert found is not None
            return found

        used = {name: int(value(name)[0]) for name in ("packed", "rows")}
        assert used == {"packed": 4, "rows": 8}
        stored = 0
        parts = [f"{which}_{what}" for which in "kv" for what in ("code", "scale", "minimum")]
        for name in ("keys", "values", *parts):
            array = value(f"{name}_0")
            stored += array.nbytes // array.shape[2] * used["rows" if name in ("keys", "values") else "packed"]
        assert sites["snapkv"].bytes == value("window_0").nbytes
    assert sites["kivi"].bytes == stored
    assert sites["kivi"].bytes_per_token == 2 * (8 + 16 * 4 / 8) + 2 * (8 + 2 * 4)


def test_packed_caches_grow_and_are_saved(bundle: Path, tmp_path: Path) -> None:
    """One grows while it reads on; beside a longer one it has had room for everything from the beginning."""
    prompt, more = text(30, seed=3).numpy(), text(90, seed=5).numpy()
    with Session.open(bundle) as session:
        alone, pair = Sequences(session), Sequences(session, batch=2)
        alone.read([prompt])
        pair.read([text(100).numpy(), prompt])
        before = alone.states.lengths
        for token in more:
            found, expected = alone.step([token])[0], pair.step([token, token])[1]
            np.testing.assert_allclose(found, expected, atol=1e-4)
        assert alone.states.lengths["blocks"] > before["blocks"]
        alone.save(tmp_path / "saved")
        again = Sequences.load(tmp_path / "saved", session)
        np.testing.assert_array_equal(again.step([5]), alone.step([5]))


def test_a_text_behind_a_prompt_is_scored_as_steps_read_it(bundle: Path) -> None:
    prompt, more = text(100).numpy(), text(8, seed=4).numpy()  # nothing is packed between them
    with Session.open(bundle) as session:
        one, other = Sequences(session), Sequences(session)
        for each in (one, other):
            each.read([prompt])
        (found,) = one.score([more])
        logits = np.stack([other.step([token])[0] for token in more[:-1]])
    wanted = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found, wanted[np.arange(len(more) - 1), more[1:]], atol=1e-4)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("snapkv:budget=8,window=8", "snapkv: budget=8 has no room beside window=8"),
        ("kivi:bits=3", "kivi: bits=3 is not allowed; codes have 8, 4 or 2."),
        ("kivi:group=8,residual=20", "kivi: residual=20 is not a multiple of group=8"),
        ("kivi+plain", "plain: kivi is the store of layer 0 already; a layer has one store, so give one of them."),
        ("snapkv:budget=40+kivi:prefill=packed", "snapkv: cannot choose what is kept, as kivi packs a prompt while"),
        ("tome:num_merged=2", "tome"),
    ],
)
def test_what_does_not_go_together_is_refused(commands: Typed, folder: Path, spec: str, said: str) -> None:
    ended = commands("export", f"hf:{folder}", "--compress", spec, "-o", folder / "refused")
    assert ended.code == 2 and said in ended.err and not (folder / "refused").exists()
