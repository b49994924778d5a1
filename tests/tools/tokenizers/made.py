"""Small tokenizers made here, and texts of many scripts."""

import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LINES = (
    "The quick brown fox jumps over the lazy dog; it didn't mind. ",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.\n",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. ",
    "いろはにほへと ちりぬるを わかよたれそ つねならむ。",
    "我能吞下玻璃而不伤身体，真的。\n\n",
    "हम सब मिलकर काम करेंगे और सीखेंगे। ",
    "def f(x):\n    return  x ** 2  # 12345\n",
    "😀👩‍👩‍👧 ünïcödé… «¿qué?» 3,14159 \t\tend\r\n",
)

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(
    size: int = 600, *, pattern: str | None = None, normalizer: normalizers.Normalizer | None = None
) -> Tokenizer:
    """Byte-level BPE, trained on `LINES`; split by GPT-2's rule, or by a pattern of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, last]) if split else last
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES * 3, trainer)
    return tokenizer


def written(tokenizer: Tokenizer, folder: Path) -> Path:
    """The folder, with the tokenizer in it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def random_text(chance: random.Random, pieces: int = 12) -> str:
    """Pieces of `LINES`, cut anywhere, with spaces, ends of lines and specials between them."""
    glue = (
        "",
        "",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "'",
        "'s",
        "<|end|>",
        "<|e",
        "\r\n",
        "\u0301",
        "\u00a0",
        "\u3000",
        "7",
    )
    parts = []
    for _ in range(chance.randint(0, pieces)):
        line = chance.choice(LINES)
        start = chance.randrange(len(line))
        parts += [line[start : start + chance.randint(1, 20)], chance.choice(glue)]
    return "".join(parts)
