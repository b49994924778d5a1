"""Wrong input for cache policies as it is typed: a sentence, exit code 2, nothing written.

What a target lacks is missing here: every store has a form for every target (`tests/export/test_cache_proofs.py`).
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.e2e.test_bad_contract import LONG, everything_in, refused
from tests.models.decoders import saved
from tests.typed_commands import Typed

EXPORTS: dict[str, tuple[str, str]] = {
    "a budget without room beside the sinks": (
        "streamingllm:budget=4,sinks=4",
        "streamingllm: budget=4 has no room beside sinks=4, which are kept in any case; give more than 4.",
    ),
    "a budget without room beside the window": (
        "snapkv:budget=16,window=16",
        "snapkv: budget=16 has no room beside window=16, which are kept in any case; give more than 16.",
    ),
    "a budget of nothing": ("random_kv:budget=0", "random_kv: budget=0 is out of range; give 1 or more entries."),
    "a budget of everything": (
        "knorm:budget=192",
        "knorm: every layer would keep 192 entries, and the context has 192 tokens, so that none is removed; give a "
        "smaller budget, or leave knorm out.",
    ),
    "a budget that is missing": ("h2o", "h2o: option 'budget' is missing; write h2o:budget=…."),
    "a budget in words": ("h2o:budget=some", "h2o: budget"),
    "bits that there are not": ("kivi:bits=3", "kivi: bits=3 is not allowed; codes have 8, 4 or 2."),
    "a residual that is no multiple": ("kivi:group=8,residual=20", "kivi: residual=20 is not a multiple of group=8"),
    "a group that does not divide a head": ("int4:group=5", "int4: group=5"),
    "a rank that no block has": (
        "gear:group=8,residual=8,rank=9",
        "gear: rank=9 is more than the 8 that a block of 8 tokens and 16 channels can have.",
    ),
    "two selectors": (
        "h2o:budget=40+tova:budget=40",
        "tova: h2o is the selector of layer 0 already; a layer has one selector, so give one of them.",
    ),
    "two stores": ("int8+int4", "int4: int8 is the store of layer 0 already; a layer has one store, so give one of"),
    "a selector that would tear groups": (
        "h2o:budget=40,every=1+kivi:group=8,residual=16",
        "h2o: every=1 chooses among generated tokens, which kivi packs in groups that cannot be torn; leave every out",
    ),
    "a prompt that is packed before it can be chosen from": (
        "keydiff:budget=40+kivi:group=8,residual=16,prefill=packed",
        "keydiff: cannot choose what is kept, as kivi packs a prompt while it is read; give prefill=exact.",
    ),
    "keys that cannot be turned any more": (
        "streamingllm:budget=40,positions=cache+int8",
        "streamingllm: positions in the cache turn keys that move, and int8 has packed them; give positions=kept",
    ),
    "a calibration that is missing": ("compresskv:budget=40", "compresskv: calibration=FILE is missing; make it with"),
    "a calibration that is no file": ("razorattention:search=none.safetensors", "razorattention: search none."),
    "fewer bits than many": ("zipcache:fewer_bits=8", "zipcache: fewer_bits=8 is not allowed; give 8, 4 or 2, at most"),
    "a selector before what chooses by itself": (
        "snapkv:budget=40,window=8+zipcache",
        "snapkv: cannot choose what is kept, as zipcache chooses by itself which entries get fewer bits, and packs all",
    ),
    "entries that are packed and would be merged": (
        "ems:budget=40,window=8+int8",
        "ems: merges entries into others, and int8 has packed them; take a store that keeps new keys as they are.",
    ),
    "tables that are missing": ("kvquant", "kvquant: tables=FILE is missing; make it with"),
    "a policy of no decoder": ("tome:num_merged=2", "tome"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama, and the same with another norm."""
    made = tmp_path_factory.mktemp("caches")
    saved("llama", made / "model")
    shutil.copytree(made / "model", made / "other")
    weights = load_file(made / "other" / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, made / "other" / "model.safetensors", metadata={"format": "pt"})
    return made


def export(model: str, spec: str, *more: object) -> tuple[object, ...]:
    return ("export", f"hf:{model}", "--context", 192, "--chunk", 32, "--compress", spec, "-o", "out", *more)


@pytest.mark.parametrize("case", EXPORTS)
def test_what_cannot_be_exported(case: str, folder: Path, commands: Typed) -> None:
    spec, message = EXPORTS[case]
    before = sorted(os.listdir(folder))
    refused(commands(*export("model", spec), folder=folder, within=LONG), message)
    assert sorted(os.listdir(folder)) == before


def test_a_context_beyond_what_the_model_was_made_for(folder: Path, commands: Typed) -> None:
    words = ("export", "hf:model", "--context", 100_000, "-o", "out")
    refused(commands(*words, folder=folder, within=LONG), "100000")
    assert "out" not in os.listdir(folder)


ARTIFACTS: dict[str, tuple[str, Mapping[str, Tensor]]] = {
    "compresskv:budget=40,calibration": ("compresskv:budget=40", {"scores": torch.rand(2, 4), "errors": torch.ones(2)}),
    "kvquant:tables": (
        "kvquant",
        {
            **{"upper": torch.ones(2, 32), "lower": -torch.ones(2, 32)},
            **{f"{which}_signposts": torch.linspace(-1, 1, 16).repeat(2, 1) for which in "kv"},
            **{f"{which}_moments": torch.ones(2, 2) for which in "kv"},
        },
    ),
    "razorattention:search": ("razorattention", {"echo": torch.rand(2, 2), "induction": torch.rand(2, 2)}),
}


@pytest.mark.parametrize("option", ARTIFACTS)
def test_a_calibration_of_other_weights(option: str, folder: Path, tmp_path: Path, commands: Typed) -> None:
    spec, tensors = ARTIFACTS[option]
    save_file(dict(tensors), tmp_path / "tensors")
    made = commands(
        *("calibrate", "hf:other", "--compress", spec, "--tensors", tmp_path / "tensors", "-o", tmp_path / "made"),
        folder=folder,
        within=LONG,
    )
    assert made.code == 0, made.err
    before = sorted(os.listdir(folder))
    ended = commands(*export("model", f"{option}={tmp_path / 'made'}"), folder=folder, within=LONG)
    refused(ended, "was made for other weights than these: for model.safetensors (sha256 ")
    assert sorted(os.listdir(folder)) == before


# ---- bundles that run -----------------------------------------------------------------------------------------------

READ = """
import numpy as np
from trt_compress.runtime import Session
from trt_compress.runtime.sequences import Sequences
with Session.open("bundle", native=False) as session:
    {call}
print("went on")
"""
RUNS: dict[str, tuple[str, str]] = {
    "context beyond capacity": (
        "Sequences(session).read([np.arange(300) % 100])",
        "slots are needed on 'slots', and these states may have ",
    ),
    "a capacity above the bundle's": ("Sequences(session, capacity=10_000)", "capacity=10000; the bundle allows from "),
    "NaN in keys": (
        "Sequences.load('nan', session).step([5])",
        "A run behind 100 tokens gives NaN, and so does first the cache of layer 1; the sequences are as they were",
    ),
    "saved sequences that are cut short": ("Sequences.load('cut', session)", "'cut' cannot be read"),
    "saved states of no sequences": (
        "session.new_states(batch=1).save('s'); Sequences.load('s', session)",
        "'s' holds states, and not how many tokens their sequences have read; load it with Session.load_states",
    ),
}


@pytest.fixture(scope="module")
def runs(folder: Path, commands: Typed) -> Path:
    """A bundle, and saved sequences with NaN, and others that are cut."""
    words = ("export", "hf:model", "--context", 192, "--chunk", 32, "--batch", "1:1:2", "--compress")
    made = commands(*words, "snapkv:budget=40,window=8", "-o", "bundle", folder=folder, within=300)
    assert made.code == 0, made.err
    call = "one = Sequences(session); one.read([np.arange(100)]); one.save('whole')"
    ended = commands("python", READ.format(call=call), folder=folder, within=LONG)
    assert ended.code == 0, ended.err
    whole = (folder / "whole").read_bytes()
    (folder / "cut").write_bytes(whole[: len(whole) // 2])
    with np.load(folder / "whole") as arrays:
        held = {name: arrays[name] for name in arrays.files}
    held["state/keys_1"][0, 0, 3] = np.nan
    with (folder / "nan").open("wb") as file:
        np.savez(file, **held)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("case", RUNS)
def test_what_cannot_be_run(case: str, runs: Path, commands: Typed) -> None:
    call, message = RUNS[case]
    before = everything_in(runs)
    refused(commands("python", READ.format(call=call), folder=runs, within=LONG), message)
    after = everything_in(runs)
    after.pop("s", None)  # what the case itself has saved
    assert {name: before[name] for name in before} == {name: after[name] for name in before}
