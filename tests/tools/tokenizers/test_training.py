"""Training: merges across white space against counting anew, presets, and what the command writes and refuses."""

import gzip
import json
import random
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.tools.tokenizers.made import LINES
from trt_compress.errors import ConfigError
from trt_compress.tools.tokenizers import kl3m
from trt_compress.tools.tokenizers.superbpe import WORDS, further_merges, sequences_of
from trt_compress.tools.tokenizers.training import TrainingPlan, train

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

PROSE = ["of the one and of the other in the middle of the day, and so on and so on for all of the people\n" * 20]


def counted_anew(
    sequences: dict[tuple[int, ...], int], texts: dict[int, str], wanted: int, least: int
) -> tuple[list[tuple[int, int]], dict[int, str]]:
    """All pairs counted before each merge, the most frequent first, of equal ones that of smaller numbers."""
    work = [(list(sequence), times) for sequence, times in sequences.items()]
    names, fresh, merges, refused = dict(texts), dict[int, str](), list[tuple[int, int]](), set[tuple[int, int]]()
    while len(fresh) < wanted:
        pairs: Counter[tuple[int, int]] = Counter()
        for sequence, times in work:
            for pair in zip(sequence, sequence[1:], strict=False):
                pairs[pair] += times
        possible = [pair for pair, times in pairs.items() if times >= least and pair not in refused]
        if not possible:
            break
        best = min(possible, key=lambda pair: (-pairs[pair], pair))
        text = names[best[0]] + names[best[1]]
        if len(text.split()) > WORDS:
            refused.add(best)
            continue
        number = next((number for number, known in names.items() if known == text), max(names) + 1)
        if number not in names:
            names[number] = fresh[number] = text
        merges.append(best)
        for sequence, _ in work:
            place = 0
            while place + 1 < len(sequence):
                if (sequence[place], sequence[place + 1]) == best:
                    sequence[place : place + 2] = [number]
                place += 1
    return merges, fresh


@pytest.mark.parametrize("seed", range(12))
def test_merges_are_those_of_counting_anew(seed: int) -> None:
    chance = random.Random(seed)
    texts = dict(enumerate(["a", "b", " c", " d", "a", " e f", "b c"][: 3 + seed % 4]))
    texts = {number: f"{text}{number}" for number, text in texts.items()}
    parts = [[chance.choice(list(texts)) for _ in range(chance.randint(1, 12))] for _ in range(30)]
    sequences = sequences_of(parts)
    assert further_merges(sequences, texts, 25, least=2) == counted_anew(dict(sequences), texts, 25, 2)


def test_superbpe_saves_tokens_over_bpe_and_comes_back() -> None:
    plain = train([*PROSE, *LINES], TrainingPlan(kind="bpe", size=340))
    across = train([*PROSE, *LINES], TrainingPlan(kind="superbpe", size=340, first_stage=325))
    assert plain.size == across.size == 340
    numbers = [len(one.library.encode(PROSE[0]).ids) for one in (plain, across)]
    assert numbers[1] < 0.7 * numbers[0]
    assert "pieces hold several words" in across.notes[0]
    several = [text for text in across.library.get_vocab() if "Ġ" in text[1:]]
    assert any(text.strip("Ġ").count("Ġ") for text in several)
    assert all(len(text.replace("Ġ", " ").split()) <= WORDS for text in several)
    for text in (*PROSE, *LINES, "a 12345 b\r\n\r\nof the  of the"):
        assert across.library.decode(across.library.encode(text).ids) == text
    whole = across.library.encode("12345 of the\nof the", add_special_tokens=False).tokens
    assert not any("3" in token and "4" in token for token in whole) and not any("Ċo" in token for token in whole)


def test_a_genome(cli: Cli, tmp_path: Path) -> None:
    chance = random.Random(2)
    motif = "".join(chance.choice("ACGT") for _ in range(40))
    bases = "".join(motif if chance.random() < 0.3 else chance.choice("ACGT") for _ in range(3000))
    lines = [
        ">one description",
        *(bases[at : at + 60].lower() for at in range(0, 3000, 60)),
        "NNNN",
        ">two",
        bases[:90],
    ]
    (tmp_path / "a.fa.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    done = cli("tokenizer", "train", "a.fa.gz", "--kind", "dna", "--size", 64, "-o", "dna", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["size"] == 64
    library = Tokenizer.from_file(str(tmp_path / "dna" / "tokenizer.json"))
    assert [library.id_to_token(number) for number in range(5)] == ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    encoded = library.encode(bases.lower())
    assert encoded.tokens[0] == "[CLS]" and encoded.tokens[-1] == "[SEP]"
    assert "".join(encoded.tokens[1:-1]) == bases and len(bases) / len(encoded.ids) > 3
    loaded = AutoTokenizer.from_pretrained(tmp_path / "dna")
    assert loaded.mask_token == "[MASK]" and loaded(motif)["input_ids"] == library.encode(motif).ids


@pytest.mark.parametrize("kind", ["bpe", "superbpe", "kl3m", "kl3m-char"])
def test_what_the_command_writes(cli: Cli, tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.txt").write_text("".join(LINES) * 4)
    size = {"kl3m": 2100}.get(kind, 420)
    done = cli(
        "tokenizer", "train", "a.txt", "--kind", kind, "--size", size, "--min-frequency", 2, "-o", "out", "--json"
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record == json.loads(done.stdout) and record["kind"] == kind
    assert record["size"] == size if kind in ("bpe", "superbpe") else record["size"] <= size
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    library = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    for text in LINES:
        ids = library.encode(text, add_special_tokens=False).ids
        assert loaded(text, add_special_tokens=False)["input_ids"] == ids
        if not kind.startswith("kl3m"):
            assert library.decode(ids) == text
    assert loaded.eos_token == ("<|end|>" if kind.startswith("kl3m") else "<|endoftext|>")
    counted = cli("tokenizer", "count", "a.txt", "-t", "out", "--json")
    assert counted.returncode == 0, counted.stderr
    again = cli("tokenizer", "train", "a.txt", "--kind", kind, "--size", size, "-o", "out")
    assert again.returncode == 2 and "exists; give another folder, or --force" in again.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--kind", "wordpiece"), "--kind 'wordpiece' is not known; there are bpe, superbpe, kl3m, kl3m-char, dna"),
        (("--kind", "bpe", "--size", 100), "--size 100: a vocabulary of the kind bpe begins with 257 entries"),
        (("--kind", "kl3m", "--size", 1000), "--size 1000: a vocabulary of the kind kl3m begins with 1937 entries"),
        (("--kind", "bpe", "--size", 10**12), "training takes about"),
        (("--kind", "bpe", "--lowercase"), "--lowercase is an option of --kind kl3m and kl3m-char, and --kind bpe"),
        (("--kind", "bpe", "--first-stage", 300), "--first-stage is an option of --kind superbpe"),
        (("--kind", "superbpe", "--size", 400, "--first-stage", 500), "ends between 257 and 400 entries"),
        (("--kind", "bpe", "--pattern", "(a", "--size", 300), "--pattern '(a' is no regular expression"),
        (("--kind", "dna"), "'a.txt' is no FASTA: line 1 holds other characters than bases"),
        (
            ("--kind", "bpe", "--min-frequency", 10**20),
            f"--min-frequency {10**20}: give a number from 1 to 4294967296.",
        ),
        (("--kind", "kl3m-char", "--longest", 0), "--longest 0: give a number from 1 to 4294967296."),
    ],
)
def test_bad_input(cli: Cli, tmp_path: Path, options: tuple[object, ...], said: str) -> None:
    (tmp_path / "a.txt").write_text(LINES[0])
    done = cli("tokenizer", "train", "a.txt", "-o", "out", *options)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_nothing_to_learn_from(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n")
    done = cli("tokenizer", "train", "a.txt", "--kind", "bpe", "-o", "out")
    assert done.returncode == 2 and "The files hold nothing to learn from" in done.stderr
    with pytest.raises(ConfigError, match="nothing to learn from"):
        train([], TrainingPlan(kind="dna", size=100))
    short = train(["some text"], TrainingPlan(kind="bpe", size=5000))
    assert "no more that occur 2 times; --size was 5000" in short.notes[-1]


def test_custom_tokens_that_are_learned_leave_no_gap_to_be_explained() -> None:
    text = "12,12,12 " * 40 + "several words that are long enough to be merged from letters " * 40
    trained = train([text], TrainingPlan(kind="kl3m", size=1960))
    assert trained.size == 1960 - len(kl3m.SPECIAL) - 1  # 12 is learned, and custom
    assert trained.notes == (kl3m.MISSING_LISTS,)
    short = train(["12,12 " * 40], TrainingPlan(kind="kl3m", size=1960))
    assert "and no more that occur 2 times; --size was 1960" in short.notes[-1]
