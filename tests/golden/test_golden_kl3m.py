"""KL3M's custom tokens, against the lists of its own code, and the settings of the tokenizers that are published."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.tools.tokenizers.made import LINES
from tests.typed_commands import Typed
from trt_compress.tools.tokenizers import kl3m
from trt_compress.tools.tokenizers.sources import open_tokenizer
from trt_compress.tools.tokenizers.training import TrainingPlan, train

FOLDER = Path(__file__).parent / "kl3m"
FILES = ("001_32k", "004_char_4k_cased", "004_char_8k_cased", "005_multi_word_example_32k")


def read(case: str) -> dict[str, Any]:
    with np.load(FOLDER / f"{case}.npz", allow_pickle=False) as archive:
        return {
            name: json.loads(str(archive[name])) if archive[name].ndim == 0 else archive[name] for name in archive.files
        }


def test_every_case_is_compared() -> None:
    assert {path.stem for path in FOLDER.glob("*.npz")} == {*FILES, "custom_tokens"}


def test_custom_tokens() -> None:
    case = read("custom_tokens")
    groups, lower = kl3m.custom_groups(), kl3m.custom_groups(lowercase=True)
    assert {f"tokens_{name}": tokens for name, tokens in groups.items()} == {
        name: value for name, value in case.items() if name.startswith("tokens_")
    }
    assert kl3m.custom_tokens() == case["all"] and kl3m.custom_tokens(lowercase=True) == case["all_lower"]
    for name, tokens in groups.items():
        assert case["counts"][name] == {"cased": len(tokens), "lowercase": len(lower[name])}


@pytest.mark.parametrize("kind", ["kl3m", "kl3m-char"])
def test_settings_are_those_of_the_published_files(kind: str) -> None:
    published = read("custom_tokens")["settings"]["kl3m-004-char-4k-cased"]
    size = 4096 if kind == "kl3m" else 512
    trained = train(LINES * 5, TrainingPlan(kind=kind, size=size, power_of_two=True))  # type: ignore[arg-type]
    said = json.loads(trained.library.to_str())
    assert said["normalizer"] == published["normalizer"]
    assert said["pre_tokenizer"] == published["pre_tokenizer"]
    assert said["post_processor"]["type"] == published["post_processor"]
    special = [token["content"] for token in said["added_tokens"] if token["special"]]
    assert special == published["special"]
    ours = {name: said["padding"][name] for name in ("direction", "pad_id", "pad_token", "pad_type_id")}
    assert ours == {name: published["padding"][name] for name in ours}
    assert trained.size & (trained.size - 1) == 0
    if kind == "kl3m-char":
        learned = [text for text in said["model"]["vocab"] if text not in special]
        assert max(map(len, learned)) == published["longest_not_added"] == 3


@pytest.mark.parametrize("case", FILES)
def test_published_files_through_the_command(commands: Typed, tmp_path: Path, case: str) -> None:
    arrays = read(case)
    for number, text in enumerate(arrays["texts"]):
        (tmp_path / f"{number:02}.txt").write_bytes(text.encode())
    files = sorted(tmp_path.glob("*.txt"))
    options = ("tokenizer", "encode", *files, "-t", FOLDER / f"{case}.json.gz", "--whole", "--json")
    ended = commands(*options)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)["texts"]
    assert [number for text in found for number in text["tokens"]] == arrays["ids"].tolist()
    assert [len(text["tokens"]) for text in found] == arrays["lens"].tolist()
    library = open_tokenizer(FOLDER / f"{case}.json.gz").encoder
    assert [[library.token(number) for number in text["tokens"]] for text in found] == arrays["pieces"]
    assert [library.decode(text["tokens"]) for text in found] == arrays["decoded"]
    exact = commands(*options, "--vocabulary-only", "exact")
    if case != "001_32k":  # their alphabets are not those of bytes
        assert exact.code == 2 and "has no piece for" in exact.err
    else:
        alone = json.loads(exact.out)
        assert alone["tokens_bpe"] == len(arrays["ids"]) and alone["tokens"] <= alone["tokens_bpe"]


def test_padding_goes_to_the_next_power() -> None:
    tokens = kl3m.padding_tokens(4083, ())
    assert len(tokens) == 13 and tokens[:4] == ["  ", "\n\n", "   ", "\n\n\n"]
    assert len(kl3m.padding_tokens(4096, ())) == 4096
    assert kl3m.padding_tokens(1021, {"  ", "\n\n\n"}) == ["\n\n", "   ", "    "]


def test_custom_tokens_are_cut_out_of_words_and_numbers() -> None:
    """They are appended behind training, so that they match anywhere, as the published ones do."""
    trained = train(["The Act of 17765 was signed in 1776. " * 30], TrainingPlan(kind="kl3m", size=4096))
    library: Tokenizer = trained.library
    assert [library.id_to_token(number) for number in library.encode("17765").ids] == ["1776", "5"]
    assert kl3m.MISSING_LISTS in trained.notes and "fetches from another project" in kl3m.MISSING_LISTS
