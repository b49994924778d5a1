"""Text in C++: the tokens that the library tokenizers gives, the text that Python gives out, and the same answers."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.real_vocabularies import vocabulary
from tests.runtime.cpp.conftest import ROOT, Built
from tests.runtime.cpp.driving import Job, Outcome
from tests.runtime.generate import toy
from tests.runtime.generate.test_detokenize import damaged
from tests.tools.tokenizers.made import CL100K, LINES
from trt_compress.models.language.gguf_tokenizer import SPLITS
from trt_compress.runtime import Generator, Sampling
from trt_compress.runtime.generate.tokenizer import Tokenizer as Ours
from trt_compress.tools import gen_unicode

CONFIG, BUNDLE, UNSUPPORTED = 1, 3, 4
TEXTS = 10_000
SCRIPTS = (
    *((0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x180), (0x250, 0x370), (0x300, 0x370), (0x370, 0x400), (0x400, 0x530)),
    *((0x5B0, 0x600), (0x600, 0x700), (0x900, 0x980), (0xB80, 0xC00), (0xE00, 0xE80), (0xF00, 0xFE0)),
    *((0x1100, 0x1200), (0x1E00, 0x2070), (0x2070, 0x2200), (0x3000, 0x3100), (0x4E00, 0x4F00), (0xAC00, 0xAD00)),
    *((0xF900, 0xFA6E), (0xFB00, 0xFE30), (0xFF00, 0xFFF0), (0x10330, 0x10350), (0x11000, 0x11050), (0x1D100, 0x1D200)),
    *((0x1D400, 0x1D500), (0x1F100, 0x1F200), (0x1F300, 0x1F700), (0x20000, 0x20100), (0xE0001, 0xE0080)),
)
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<0x41>", "▁", "ſ", "'S", "’s", "\u212a", "'ſ", "�", "\0")


def texts(seed: int, count: int = TEXTS) -> list[str]:
    """Texts of many scripts: letters, marks, digits, spaces, ends of lines, what looks special, parts of sentences."""
    dice = random.Random(seed)
    found = ["", " ", "\n", "a", "  a", "a  "]
    while len(found) < count:
        parts: list[str] = []
        for _ in range(dice.randrange(1, 7)):
            match dice.randrange(7):
                case 0:
                    parts.append(dice.choice(SPECIAL))
                case 1:
                    parts.append("".join(dice.choices(" \t\n\r\u00a0\u3000\u2028\x0b\x85", k=dice.randrange(1, 4))))
                case 2:
                    parts.append("".join(dice.choices("0123456789²½٣५Ⅷ𝟗①", k=dice.randrange(1, 6))))
                case 3:
                    line = dice.choice(LINES)
                    start = dice.randrange(len(line))
                    parts.append(line[start : start + dice.randrange(1, 20)])
                case 4:
                    parts.append(
                        dice.choice(["'s", "'LL", "don't", "x'Ve", "...", "!?", "—", "/*", "\r\n\r\n", "  \n"])
                    )
                case _:
                    low, high = dice.choice(SCRIPTS)
                    parts.append("".join(chr(dice.randrange(low, high)) for _ in range(dice.randrange(1, 6))))
        found.append("".join(parts))
    return found


def byte_level(
    cutter: pre_tokenizers.PreTokenizer, *, normalizer: normalizers.Normalizer | None = None, **model: Any
) -> Tokenizer:
    """A byte-level vocabulary trained on lines of many languages."""
    made = Tokenizer(models.BPE(**model))
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = cutter
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([*LINES * 3, *texts(99, 400)], trainer)
    made.add_special_tokens(["<s>", AddedToken("</s>", lstrip=True, rstrip=True)])
    made.add_tokens([AddedToken("<|im_start|>", normalized=False), AddedToken("<|im_end|>", rstrip=True), "im_"])
    start: Any = made.token_to_id("<s>")
    around = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", start), ("</s>", start + 1)])
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), around])
    return made


def sentence_piece(
    normalizer: normalizers.Normalizer | None, cutter: pre_tokenizers.PreTokenizer | None, decoder: decoders.Decoder
) -> Tokenizer:
    """A vocabulary with bytes to fall back to."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer is not None:
        made.normalizer = normalizer
    if cutter is not None:
        made.pre_tokenizer = cutter
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=1400, special_tokens=names, show_progress=False)
    made.train_from_iterator([*LINES * 3, "ab  cd   ef"], trainer)
    data = json.loads(made.to_str())  # trained so, the bytes would be special tokens
    data["added_tokens"] = data["added_tokens"][:3]
    data["model"].update(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made = Tokenizer.from_str(json.dumps(data))
    made.decoder = decoder
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def cut(pattern: str, behavior: str = "isolated") -> pre_tokenizers.PreTokenizer:
    """Split by a pattern, then bytes."""
    split = pre_tokenizers.Split(Regex(pattern), behavior)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


SPACE, FALLBACK = decoders.Replace("▁", " "), [decoders.ByteFallback(), decoders.Fuse()]
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MADE: dict[str, Callable[[], Tokenizer]] = {
    "GPT-2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "GPT-2 with a space": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "SmolLM2": lambda: byte_level(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    ),
    "Llama 3": lambda: byte_level(cut(SPLITS["llama3"]), ignore_merges=True),
    "Qwen2": lambda: byte_level(cut(SPLITS["qwen2"]), normalizer=normalizers.NFC()),
    "o200k": lambda: byte_level(cut(SPLITS["gpt-4o"])),
    "Tekken": lambda: byte_level(cut(SPLITS["tekken"], "removed"), normalizer=normalizers.NFD()),
    "cl100k": lambda: byte_level(cut(CL100K)),
    "DeepSeek": lambda: byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
                pre_tokenizers.Split(Regex("[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
                cut(DEEPSEEK),
            ]
        )
    ),
    "splits": lambda: byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split("the", "merged_with_next"),
                pre_tokenizers.Split(Regex(r"\s+"), "merged_with_previous"),
                pre_tokenizers.Split(Regex(r"\p{Lu}|(?:ab|a)c++x?"), "contiguous", invert=True),
                pre_tokenizers.Digits(),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    ),
    "Llama 2": lambda: sentence_piece(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        None,
        decoders.Sequence([SPACE, *FALLBACK, decoders.Strip(" ", 1, 0)]),
    ),
    "Mistral": lambda: sentence_piece(
        None,
        pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        decoders.Sequence([SPACE, *FALLBACK, decoders.Strip(" ", 1, 0)]),
    ),
    "Gemma": lambda: sentence_piece(
        normalizers.Replace(" ", "▁"),
        pre_tokenizers.Split(" ", "merged_with_previous"),
        decoders.Sequence([SPACE, *FALLBACK]),
    ),
    "Metaspace": lambda: sentence_piece(
        normalizers.Replace(Regex("[0-9]{2}"), "#"),
        pre_tokenizers.Metaspace(),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    ),
}


def compare(cpp: Built, library: Tokenizer, folder: Path, given: list[str], seed: int) -> Outcome:
    """Tokens and texts by both; `folder` gets what C++ read."""
    folder.mkdir()
    file = folder / "tokenizer.json"
    file.write_text(library.to_str())
    python, dice = Ours(Tokenizer.from_str(library.to_str())), random.Random(seed)
    wanted = [each.ids for each in library.encode_batch(given)]
    plain = [each.ids for each in library.encode_batch(given[:200], add_special_tokens=False)]
    mixed = [dice.choices(range(python.size + 2), k=dice.randrange(30)) for _ in range(300)]
    mixed += [*wanted[:300], *(damaged(python.library, dice) for _ in range(200))]
    streams = [(wanted[dice.randrange(len(wanted))] if dice.random() < 0.5 else [], tokens) for tokens in mixed]
    said = {"tokenizer": file, "texts": given, "plain": given[:200], "tokens": mixed, "pieces": streams}
    (done,) = cpp.drive([Job("tokenize", said)], folder / "work")
    assert done.refused is None, done.refused
    assert done.said["size"] == python.size
    for text, found, expected in zip(given, done.said["tokens"], wanted, strict=True):
        assert found == expected, (text, library.encode(text).tokens)
    assert done.said["plain"] == plain
    for tokens, found in zip(mixed, done.said["texts"], strict=True):
        assert found == python.decode(tokens), tokens
    for (before, tokens), found in zip(streams, done.said["pieces"], strict=True):
        detokenizer = python.detokenizer(before)
        assert found == [*map(detokenizer.add, tokens), detokenizer.rest()], (before, tokens)
    return done


@pytest.mark.parametrize("kind", MADE)
def test_tokens_and_texts_are_those_of_the_library(cpp: Built, tmp_path: Path, kind: str) -> None:
    """10,000 texts in all, each kind its own."""
    seed = list(MADE).index(kind)
    compare(cpp, MADE[kind](), tmp_path / "made", texts(seed, TEXTS // len(MADE) + 1), seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepseek", "gpt2", "qwen"])
def test_real_vocabularies(cpp: Built, tmp_path: Path, name: str) -> None:
    """Of packages; those of tiktoken's form have merges that are found from the order of their tokens."""
    file = vocabulary(name)
    if file.suffix == ".json":
        library = Tokenizer.from_file(str(file))
    else:
        library = from_ranks(ranks_of(file.read_bytes(), 12_000), SPLITS["qwen2"] if name == "qwen" else None)
    compare(cpp, library, tmp_path / "real", texts(7, 1500), 7)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], int, str]] = {
    "no JSON": (lambda data: None, CONFIG, "it is no JSON"),
    "no model": (lambda data: data.pop("model"), CONFIG, "it has no model"),
    "Unigram": (lambda data: data.update(model={"type": "Unigram", "vocab": [["a", 0.5]]}), UNSUPPORTED, "'Unigram'"),
    "a suffix": (lambda data: data["model"].update(end_of_word_suffix="</w>"), UNSUPPORTED, "end_of_word_suffix"),
    "dropout": (lambda data: data["model"].update(dropout=0.5), UNSUPPORTED, "a dropout"),
    "merges": (lambda data: data["model"].update(merges=["q u x"]), CONFIG, "not of the form that BPE has"),
    "a merge": (lambda data: data["model"].update(merges=["q ü"]), CONFIG, "a merge is of a token"),
    "a number": (lambda data: data["model"]["vocab"].update(a=-1), CONFIG, "a token has the number -1"),
    "the unknown": (lambda data: data["model"].update(unk_token="<none>"), CONFIG, "unknown token is none"),
    "a normalizer": (lambda data: data.update(normalizer={"type": "NFKC"}), UNSUPPORTED, "normalizer 'NFKC'"),
    "a cutter": (lambda data: data.update(pre_tokenizer={"type": "Whitespace"}), UNSUPPORTED, "'Whitespace'"),
    "a decoder": (lambda data: data.update(decoder={"type": "WordPiece"}), UNSUPPORTED, "decoder 'WordPiece'"),
    "an end": (lambda data: data.update(post_processor={"type": "Odd"}), UNSUPPORTED, "post-processor 'Odd'"),
    "a word": (lambda data: data["added_tokens"][0].update(single_word=True), UNSUPPORTED, "(single_word)"),
    **{
        f"pattern {pattern}": (
            lambda data, pattern=pattern: data.update(  # type: ignore[misc]
                pre_tokenizer={"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            ),
            UNSUPPORTED,
            f"{said}, at its character",
        )
        for pattern, said in {
            r"\bword\b": r"'\b'",
            r"(?<=a)b": "begins with '(?<='",
            r"a*": "that it may match nothing",
            r"(?:a|b*)+": "a repetition of what may match nothing",
            r"a+?": "a lazy repetition",
            r"[a-z&&[^b]]": "an intersection of classes",
            r"[[:alpha:]]": "a class in a class",
            r"\p{Han}": r"'\p{Han}'",
            r"(?i:ß)": "a letter beyond ASCII where cases are the same",
            r"(?i:ss)": "'ss', which one letter folds to, where cases are the same",
            r"(a)\1": "a reference to a group",
            r"a{9999}": "no repetition of at most 1000",
            r"^a": "'^' there",
            "(" * 50 + "a" + ")" * 50: "groups within more than 32 others",
        }.items()
    },
}


def test_what_cannot_be_read_is_refused_by_name(cpp: Built, sanitized: Path, tmp_path: Path) -> None:
    jobs = []
    for number, (change, _, _) in enumerate(REFUSED.values()):
        data = json.loads(toy.tokenizer_json())
        change(data)
        file = tmp_path / f"{number}.json"
        file.write_text("{" if number == 0 else json.dumps(data))
        jobs.append(Job("tokenize", {"tokenizer": file}))
    for done, (name, (_, status, said)) in zip(cpp.drive(jobs, tmp_path / "work"), REFUSED.items(), strict=True):
        assert done.refused is not None and done.refused[0] == status and said in done.refused[1], (name, done.said)
        assert done.refused[1].endswith("."), done.refused[1]


def test_no_text_and_no_tokenizer_crashes_it(sanitized: Path, tmp_path: Path) -> None:
    """Mutated tokenizers, and texts of any bytes, under sanitizers; what is no UTF-8 is refused."""
    import subprocess

    dice = random.Random(5)
    whole = [MADE[kind]().to_str().encode() for kind in ("Llama 3", "Mistral", "splits")]
    files = []
    for number in range(12):
        (tmp_path / f"{number}.txt").write_bytes(
            dice.choice(texts(number, 20)).encode()
            + (dice.randbytes(9) if number % 2 else b"\xed\xa0\x80"[: number % 3])
        )
        files.append(tmp_path / f"{number}.txt")
    seen = set()
    for number in range(60):
        content = bytearray(whole[number % 3])
        if number >= 3:
            start = content.rfind(b'"model"') if dice.random() < 0.3 else 0
            for _ in range(dice.choice((1, 1, 3))):
                place = dice.randrange(start, len(content)) if start else dice.randrange(min(3000, len(content)))
                content[place] = dice.choice(b'0919"{}[],:\\ax-\x00\xff')
        file = tmp_path / "tokenizer.json"
        file.write_bytes(content)
        done = subprocess.run([sanitized.parent / "check_tokens", file, *files], capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = done.stdout.decode(errors="replace").splitlines()
        seen.add(lines[0].split()[0])
        assert "the pieces are not the whole" not in done.stdout.decode(errors="replace")
        if number < 3:
            assert lines[0].startswith("size ") and any(
                line.startswith("refused The text is no UTF-8") for line in lines
            )
    assert seen == {"size", "refused"}


def test_unicode_tables_are_those_of_the_library() -> None:
    made = gen_unicode.text()
    assert (ROOT / gen_unicode.TARGET).read_text(encoding="utf-8") == made, "python -m trt_compress.tools.gen_unicode"


DRAWN: dict[str, Any] = {
    "chooses": 1,
    "temperature": 1.3,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.01,
    "repetition_penalty": 1.2,
}


def test_answers_are_those_of_python(cpp: Built, tmp_path: Path) -> None:
    """Greedy and drawn ones, with what ends them, on a bundle with flushes of its own and a context that ends."""
    toy.write(tmp_path / "b", batch=1, generation={"do_sample": True, "temperature": 2.0, "max_new_tokens": 21})
    answers: list[dict[str, Any]] = []
    wanted: list[Any] = []
    with Generator.open(tmp_path / "b", threads=1) as generator:

        def ask(
            text: str, *, sampling: Sampling, most: int | None = 30, detached: bool = False, **settings: Any
        ) -> None:
            prompt = generator.encode(text)
            answers.append({"prompt": prompt, "max_new": most or 0, "detached": int(detached), **settings})
            with generator.stream([prompt], max_new=most, sampling=sampling, detached=detached) as stream:
                pieces = [piece.text for piece in stream]
                wanted.append((stream.results()[0].ids, pieces, stream.results()[0].reason))

        greedy: dict[str, Any] = {"chooses": 1}
        for text in ("the fox", "a", "jumps over the lazy dog, the quick brown fox jumps"):
            ask(text, sampling=Sampling(), **greedy)
        ask("the fox", sampling=Sampling(ignore_stop_ids=True), most=500, ignore_stop_tokens=1, **greedy)
        ask("the fox", sampling=Sampling(ignore_stop_ids=True), detached=True, ignore_stop_tokens=1, **greedy)
        whole = "".join(wanted[3][1])
        for stop in (whole[4:6], whole[9:12], whole[-2:], "<|im_end|>"):
            end = Sampling(stop=(stop,), ignore_stop_ids=True)
            ask("the fox", sampling=end, most=60, stops=[stop], ignore_stop_tokens=1, **greedy)
        third = wanted[0][0][2]
        ask("the fox", sampling=Sampling(stop_ids=(third,)), stop_tokens=[third], **greedy)
        for seed in (0, 1, 2**32 + 5, 2**62):
            drawn = Sampling(**{key: DRAWN[key] for key in DRAWN if key != "chooses"}, seed=seed)
            ask("the fox", sampling=drawn, seed=seed, **DRAWN)
            ask("a", sampling=Sampling(temperature=1.0, seed=seed), seed=seed, chooses=1, temperature=1.0)
            ask(
                "a",
                sampling=Sampling(temperature=2.0, top_p=0.5, seed=seed),
                seed=seed,
                chooses=1,
                temperature=2.0,
                top_p=0.5,
            )
            ask("a", sampling=Sampling.of({"seed": seed}, generator.text.sampling), most=None, seed=seed)
    (done,) = cpp.drive([Job("generate", {"bundle": tmp_path / "b", "answers": answers})], tmp_path / "work")
    assert done.refused is None, done.refused
    for found, (ids, pieces, reason), asked in zip(done.said["answers"], wanted, answers, strict=True):
        assert (found["ids"], found["pieces"], found["reason"]) == (ids, pieces, reason), asked
        assert found["after"] == CONFIG
    assert {reason for _, _, reason in wanted} == {"stop", "length", "context"}


def test_answers_that_are_refused(cpp: Built, tmp_path: Path) -> None:
    toy.write(tmp_path / "b", batch=1)
    toy.write(tmp_path / "bare", batch=1, text=False)
    toy.write(tmp_path / "larger", batch=1, tokenizer=larger())
    toy.write(tmp_path / "fixed", fixed=2)
    cases: list[tuple[str, dict[str, Any], int, str]] = [
        ("b", {"prompt": []}, CONFIG, "The prompt has no token"),
        ("b", {"prompt": [300]}, CONFIG, "has the token 300; the model knows 0 to 299"),
        ("b", {"prompt": [5] * 97}, CONFIG, "has 97 tokens, and the bundle reads up to 96"),
        ("b", {"prompt": [5], "max_new": -1}, CONFIG, "max_new=-1"),
        ("b", {"prompt": [5], "capacity": 97}, CONFIG, "capacity=97; the bundle reads up to 96"),
        ("b", {"prompt": [5], "chooses": 1, "temperature": -1.0}, CONFIG, "temperature=-1"),
        ("b", {"prompt": [5], "chooses": 1, "top_p": 1.5}, CONFIG, "top_p=1.5"),
        ("b", {"prompt": [5], "chooses": 1, "min_p": float("nan")}, CONFIG, "min_p=nan"),
        ("b", {"prompt": [5], "stops": [""]}, CONFIG, "of 1 to 4096 bytes"),
        ("bare", {"prompt": [5], "stops": ["a"]}, CONFIG, "Without a tokenizer no text ends an answer"),
        ("larger", {"prompt": [5]}, BUNDLE, "and the model knows 300 (0 to 299); export"),
        ("fixed", {"prompt": [5]}, UNSUPPORTED, "reads 2 sequences at once"),
    ]
    jobs = [
        Job("generate", {"bundle": tmp_path / name, "text": name != "bare", "answers": [said]})
        for name, said, _, _ in cases
    ]
    jobs.append(Job("generate", {"bundle": tmp_path / "bare", "answers": []}))
    cases.append(("bare", {}, CONFIG, "The bundle has no tokenizer"))
    for done, (_, said, status, text) in zip(cpp.drive(jobs, tmp_path / "work"), cases, strict=True):
        assert done.refused is not None and done.refused[0] == status and text in done.refused[1], (said, done.said)


def larger() -> bytes:
    """The toy's tokenizer with more tokens than the model has."""
    made = Tokenizer.from_buffer(toy.tokenizer_json())
    made.add_tokens([f"more {number}" for number in range(64)])
    return bytes(made.to_str().encode())


def ranks_of(content: bytes, count: int) -> list[bytes]:
    """The first tokens of a file of tiktoken's form, in order."""
    import base64

    return [base64.b64decode(line.split()[0]) for line in content.splitlines()[:count]]


def from_ranks(tokens: list[bytes], pattern: str | None) -> Tokenizer:
    """A byte-level tokenizer of tokens in the order of their merges."""
    letters = {byte: letter for byte, letter in enumerate(bytes_as_letters())}
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for token, rank in ranks.items():
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            found = [ranks.get(parts[at] + parts[at + 1], rank) for at in range(len(parts) - 1)]
            if min(found) >= rank:
                break
            at = found.index(min(found))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append(parts)

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocabulary = {written(token): rank for token, rank in ranks.items()}
    made = Tokenizer(models.BPE(vocabulary, [(written(one), written(other)) for one, other in merges]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False) if pattern is None else cut(pattern)
    made.decoder = decoders.ByteLevel()
    return made


def bytes_as_letters() -> list[str]:
    """How GPT-2 writes each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]
