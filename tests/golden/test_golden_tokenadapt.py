"""Tables that TokenAdapt's own code makes (Tinycompany-AI/tokenadapt 3f7ff1d), by the functions and by the command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from tests.golden.golden_data import assert_close, cases_on_disk
from tests.golden.golden_text import parted, read_text_case
from tests.tools.tokenizers.golden_vocabularies import byte_level, checkpoint
from tests.typed_commands import Typed
from trt_compress.models.text.heuristics import Heuristics, RowOrigin
from trt_compress.models.text.transplant import global_rows, local_rows, mixture, transplanted

CASES = ("global_only", "local_only", "threshold", "threshold_global_only", "tied_hybrid", "untied_hybrid")
TOLERANCE = 1e-5  # of the largest number, as the vectors' own README suggests


def test_every_case_is_compared() -> None:
    assert cases_on_disk("tokenadapt") == set(CASES)


def tensor(array: Any) -> Tensor:
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else array)


@pytest.mark.parametrize("case", CASES)
def test_rows(case: str) -> None:
    arrays, meta = read_text_case("tokenadapt", case)
    made = mixture(
        Heuristics(
            temperature=meta["temperature"],
            global_weight=meta["global_weight"],
            neighbours=meta["top_k"],
            threshold=meta["threshold"],
        ),
        copied=tensor(arrays["shared_old"]),
        pieces=parted(arrays["pieces"], arrays["pieces_len"]),
        lengths=torch.tensor([len(text) for text in arrays["new_tokens"]]),
        old_lengths=torch.tensor([len(text) for text in arrays["old_tokens"]]),
        external=tensor(arrays["ext_new"]),
        old_external=tensor(arrays["ext_old"]),
    )
    assert made.origin.tolist() == arrays["kind"].tolist()
    if meta["global_weight"] > 0:
        assert made.neighbours.tolist() == arrays["neighbours"][made.unique].tolist()
        assert_close(made.similarities, tensor(arrays["similarity"])[made.unique], TOLERANCE)
    known = tensor(arrays["kind"]) != RowOrigin.RANDOM
    for old, new, suffix in (("E_old", "E_new", ""), ("U_old", "U_new", "_out")):
        if old not in arrays:
            continue
        table, wanted = tensor(arrays[old]), tensor(arrays[new])
        if meta["global_weight"] < 1:
            assert_close(local_rows(table, made), tensor(arrays[f"local{suffix}"])[made.unique], TOLERANCE)
        if meta["global_weight"] > 0:
            assert_close(global_rows(table, made), tensor(arrays[f"global{suffix}"])[made.unique], TOLERANCE)
        found = transplanted(table, made, len(wanted))
        assert found.shape == wanted.shape
        assert_close(found[: len(known)][known], wanted[: len(known)][known], TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_the_checkpoint_that_the_command_writes(case: str, commands: Typed, tmp_path: Path) -> None:
    arrays, meta = read_text_case("tokenadapt", case)
    old, new = byte_level(arrays["old_tokens"]), byte_level(arrays["new_tokens"])
    head = tensor(arrays["U_old"]) if "U_old" in arrays else None
    checkpoint(tmp_path / "old", old, tensor(arrays["E_old"]), head)
    new.save(str(tmp_path / "tokenizer.json"))
    np.savez(tmp_path / "ext.npz", old=arrays["ext_old"], new=arrays["ext_new"])
    given = {"temperature": "temperature", "global_weight": "global-weight", "top_k": "neighbours"}
    given |= {"threshold": "threshold", "pad_to_multiple_of": "pad-to"}
    options = [part for key, option in given.items() for part in (f"--{option}", str(meta[key]))]
    places = (tmp_path / "old", "--to", tmp_path / "tokenizer.json", "-o", tmp_path / "new")
    ended = commands("tokenizer", "transplant", *places, "--external", tmp_path / "ext.npz", *options, "--json")
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    assert list(said["origins"].values()) == meta["counts_by_kind"]
    assert (said["old_tokens"], said["new_tokens"], said["tied"]) == (150, 260, head is None)

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    assert tokenizer.encode(" lighthouse keepers") == new.encode(" lighthouse keepers").ids
    known = tensor(arrays["kind"]) != RowOrigin.RANDOM
    tables = {"E_new": model.get_parameter("model.embed_tokens.weight"), "U_new": model.get_parameter("lm_head.weight")}
    for name, table in tables.items():
        wanted = arrays["E_new"] if head is None else arrays[name]
        assert table.shape == wanted.shape
        assert_close(table.detach()[: len(known)][known], tensor(wanted)[: len(known)][known], TOLERANCE)
    others = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "old").state_dict()
    for name, wanted in others.items():
        if "embed_tokens" not in name and "lm_head" not in name:
            assert torch.equal(model.state_dict()[name], wanted)
