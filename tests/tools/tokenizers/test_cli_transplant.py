"""`trt-compress tokenizer transplant`: what it writes beside the tables, what it says, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from tests.tools.tokenizers.golden_vocabularies import byte_level, checkpoint
from tests.typed_commands import Ended, Typed
from trt_compress.errors import ConfigError
from trt_compress.models.language.directory import Directory
from trt_compress.models.language.written import config_of, tensors_of, write_checkpoint
from trt_compress.tools.tokenizers.transplant import transplant

OLD = [*"abcdefgh ", "ab", "cd", " ab", "abcd"]
NEW = [*"hgfedcba ", "cd", "bcd", " cd", "ef", "efg"]


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A folder with a checkpoint, another tokenizer, and vectors of all texts."""
    old, new = byte_level(OLD), byte_level(NEW)
    old.add_special_tokens(["<s>", "</s>"])
    new.add_special_tokens(["</s>", "<pad>"])
    chance = torch.Generator().manual_seed(1)
    table, head = torch.randn(15, 8, generator=chance), torch.randn(15, 8, generator=chance)
    checkpoint(tmp_path / "old", old, table, head, bos_token_id=13, eos_token_id=[14, 13], pad_token_id=None)
    (tmp_path / "old/LICENSE").write_text("MIT")
    (tmp_path / "new").mkdir()
    new.save(str(tmp_path / "new/tokenizer.json"))
    special = {"eos_token": "</s>", "pad_token": {"content": "<pad>"}, "auto_map": {"AutoTokenizer": ["x.Y", None]}}
    special["model_max_length"] = int(1e30)  # as transformers writes that there is no end
    (tmp_path / "new/tokenizer_config.json").write_text(json.dumps(special))
    vectors = np.random.default_rng(0)
    np.savez(tmp_path / "ext.npz", old=vectors.normal(size=(15, 4)), new=vectors.normal(size=(16, 4)))
    return tmp_path


@pytest.fixture
def typed(tokenizer_commands: Typed, places: Path) -> Callable[..., Ended]:
    def run(*options: object, model: str = "old", to: str = "new", external: str | None = "ext.npz") -> Ended:
        given = () if external is None else ("--external", external)
        return tokenizer_commands(
            "tokenizer", "transplant", model, "--to", to, "-o", "made", *given, *options, folder=places
        )

    return run


def test_what_stands_beside_the_tables(typed: Callable[..., Ended], places: Path) -> None:
    ended = typed()
    assert ended.code == 0, ended.err
    assert "15 → 16, in 128 rows" in ended.out and "11 copied, 5 both" in ended.out
    assert "no token for bos_token_id, which config.json now leaves open" in ended.out
    config = json.loads((places / "made/config.json").read_text())
    assert (config["vocab_size"], config["bos_token_id"], config["eos_token_id"]) == (128, None, [14])
    assert (places / "made/LICENSE").read_text() == "MIT"
    record = json.loads((places / "made/transplant.json").read_text())
    assert record["sha256"] == Directory(places / "old").sha256() and record["settings"]["temperature"] == 0.3
    assert record["tables"] == ["model.embed_tokens.weight", "lm_head.weight"] and record["external"] == "ext.npz"
    tokenizer = transformers.AutoTokenizer.from_pretrained(places / "made")
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.eos_token_id) == ("</s>", "<pad>", 14)
    old = transformers.AutoModelForCausalLM.from_pretrained(places / "old")
    new = transformers.AutoModelForCausalLM.from_pretrained(places / "made")
    for text in ("h cd", " cd a"):  # shared tokens alone, and those give what they gave
        before = old(input_ids=torch.tensor([_cut(OLD, text)])).logits
        after = new(input_ids=torch.tensor([_cut(NEW, text)])).logits
        assert torch.allclose(after[0, -1, _cut(NEW, text)], before[0, -1, _cut(OLD, text)], atol=1e-5)


def _cut(tokens: list[str], text: str) -> list[int]:
    """Letter by letter, whatever the merges."""
    return [tokens.index(letter) for letter in text]


def test_the_text_before_and_after(typed: Callable[..., Ended], places: Path) -> None:
    (places / "text.txt").write_text("abcd ab cd efg h " * 200)
    ended = typed("--text", "text.txt", "--limit", "400", "--json")
    assert ended.code == 0, ended.err
    found = {row["rows"]: row for row in json.loads(ended.out)["quality"]}
    assert list(found) == ["before", "after", "mean of pieces", "random"]
    text = ("abcd ab cd efg h " * 200)[:400]
    assert found["before"]["tokens"] == len(byte_level(OLD).encode(text).ids)
    assert found["after"]["tokens"] == len(byte_level(NEW).encode(text).ids)
    numbers = byte_level(NEW).encode(text).ids
    model = transformers.AutoModelForCausalLM.from_pretrained(places / "made")
    with torch.inference_mode():
        loss = float(model(input_ids=torch.tensor([numbers]), labels=torch.tensor([numbers])).loss)
    assert found["after"]["perplexity"]["value"] == pytest.approx(np.exp(loss), rel=1e-5)
    scored = len(byte_level(NEW).decode(numbers[1:]))
    bits = loss * (len(numbers) - 1) / np.log(2) / scored
    assert found["after"]["perplexity"]["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    shutil.rmtree(places / "made")
    shown = typed("--text", "text.txt", "--limit", "400").out
    assert "mean of pieces" in shown and "bits a byte" in shown


def test_shards(places: Path) -> None:
    source = Directory(places / "old")
    (places / "parts").mkdir()
    write_checkpoint(places / "parts", tensors_of(source), config_of(source), {}, shard_bytes=600)
    files = sorted(path.name for path in (places / "parts").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    again = Directory(places / "parts")
    assert set(again.names()) == set(source.names())
    assert all(torch.equal(again.tensor(name), source.tensor(name)) for name in source.names())
    transformers.AutoModelForCausalLM.from_pretrained(places / "parts")


def _changed(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def _large(places: Path) -> None:
    data = json.loads((places / "new/tokenizer.json").read_text())
    data["model"] = {"type": "WordLevel", "vocab": {"a": 0, "b": 2_000_000_000}, "unk_token": "a"}
    data["added_tokens"] = []
    (places / "new/tokenizer.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("spoil", "given", "said"),
    [
        (lambda p: _large(p), {}, "A tokenizer has a token of number 2000000000; numbers go to"),
        (lambda p: (p / "made").mkdir(), {}, "'made' is there already; give a folder that is not."),
        (lambda p: shutil.rmtree(p / "old"), {}, "old/config.json cannot be read (No such file"),
        (lambda p: (p / "old/tokenizer.json").unlink(), {}, "hf:old came without a tokenizer.json"),
        (lambda p: (p / "new/tokenizer.json").write_text("{}"), {}, "cannot be read (it has no 'model'); give a token"),
        (lambda p: _changed(p / "old/config.json", vision_config={}), {}, "reads more than text ('vision_config'"),
        (lambda p: None, {"external": "old/config.json"}, "'old/config.json' is not a readable .npz file"),
        (lambda p: None, {"external": "new"}, "'new' has no config.json; give a directory that sentence-transformers"),
        (lambda p: None, {"external": None}, "all-MiniLM-L6-v2, is not installed"),
        (lambda p: np.savez(p / "ext.npz", old=np.ones((3, 2))), {}, "'ext.npz' cannot be read (it has no 'new')"),
        (
            lambda p: np.savez(p / "ext.npz", old=np.ones((15, 2)), new=np.ones((9, 2))),
            {},
            "'ext.npz' has 9 vectors in 'new', and the new tokenizer has 16 tokens",
        ),
        (lambda p: None, {"options": ("--temperature", "0")}, "temperature 0.0; give a number above 0"),
        (lambda p: None, {"options": ("--global-weight", "2")}, "global weight 2.0; give a number from 0 to 1"),
        (lambda p: None, {"options": ("--neighbours", "0")}, "neighbours 0; give 1 or more"),
        (lambda p: None, {"options": ("--pad-to", "0")}, "--pad-to 0; give 1 or more"),
        (lambda p: None, {"options": ("--seed", "-1")}, "--seed -1; give a whole number from 0, below 2^63"),
        (lambda p: None, {"options": ("--seed", str(1 << 64))}, f"--seed {1 << 64}; give a whole number from 0"),
        (lambda p: None, {"options": ("--text", "none.txt")}, "'none.txt' cannot be read"),
        (lambda p: (p / "a.txt").write_text(""), {"options": ("--text", "a.txt")}, "'a.txt' has 0 tokens by the old"),
        (
            lambda p: (p / "a.txt").write_text("abcdef"),
            {"options": ("--text", "a.txt", "--limit", "1")},
            "--text: 'a.txt' has 1 tokens by the old tokenizer, of the bytes that --limit takes",
        ),
        (
            lambda p: (p / "a.txt").write_bytes(b"a\xff"),
            {"options": ("--text", "a.txt")},
            "'a.txt' is no UTF-8: byte 1",
        ),
        (lambda p: None, {"model": "hf:old?lora=x"}, "has options behind '?'"),
    ],
)
def test_bad_input(
    spoil: Callable[[Path], object], given: dict[str, Any], said: str, typed: Callable[..., Ended], places: Path
) -> None:
    spoil(places)
    before = sorted(places.iterdir())
    ended = typed(*given.pop("options", ()), **given)
    assert ended.is_one_sentence, ended.err
    assert said in ended.err
    assert sorted(places.iterdir()) == before  # nothing is left behind


def test_more_than_the_memory_that_is_free(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trt_compress.tools.tokenizers.transplant.available_bytes", lambda: 1 << 18)
    with pytest.raises(
        ConfigError, match=r"numbers of tokens up to 15: tables of 128 rows by 8 take 128.0 MiB to make"
    ):
        transplant(str(places / "old"), places / "new", places / "made", external=places / "ext.npz")
    assert not (places / "made").exists()
    monkeypatch.setattr("trt_compress.tools.tokenizers.transplant._SIMILARITIES", 0)
    (places / "a.txt").write_text("abcd efgh")
    with pytest.raises(ConfigError, match=r"--text: the model takes .* to score a text with, and 256.0 KiB are free"):
        transplant(str(places / "old"), places / "new", places / "made", external=places / "ext.npz",
                   text=places / "a.txt")  # fmt: skip
    assert not (places / "made").exists()


def test_a_model_that_gives_no_numbers(typed: Callable[..., Ended], places: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = places / "old/model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "model.norm.weight": torch.full((8,), torch.nan)}, file)
    (places / "a.txt").write_text("abcd efgh")
    ended = typed("--text", "a.txt", "--json")
    assert ended.code == 2 and "the model with the rows 'before' gives probabilities that are no numbers" in ended.err
    assert (places / "made/config.json").is_file()


def test_a_head_that_is_no_table(typed: Callable[..., Ended], places: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = places / "old/model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "other.wte.weight": torch.ones(3, 2)}, file)
    assert "has to have one table of embeddings" in typed().err
    save_file({**tensors, "lm_head.weight": torch.ones(15, 8, dtype=torch.int8)}, file)
    assert "'lm_head.weight' is int8 of [15, 8], and the embeddings have 15 rows" in typed().err


def test_a_kept_tokenizer_changes_nothing(typed: Callable[..., Ended], places: Path) -> None:
    """To its own tokenizer: every row is copied."""
    Tokenizer.from_file(str(places / "old/tokenizer.json")).save(str(places / "same.json"))
    ended = typed("--pad-to", "1", "--json", to="same.json")
    assert ended.code == 2 and "has 16 vectors in 'new'" in ended.err
    np.savez(places / "ext.npz", old=np.ones((15, 2)), new=np.ones((15, 2)))
    ended = typed("--pad-to", "1", "--json", to="same.json")
    assert json.loads(ended.out)["origins"] == {"copied": 15, "both": 0, "local": 0, "global": 0, "random": 0}
    old, new = Directory(places / "old"), Directory(places / "made")
    assert all(torch.equal(old.tensor(name), new.tensor(name)) for name in old.names())
