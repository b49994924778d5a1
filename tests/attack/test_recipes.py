"""Recipes, spec strings, names of models and ranges as anybody may type them: read, or refused in a sentence."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.attack.mutations import mutated
from trt_compress.errors import InternalError, TrtCompressError
from trt_compress.export.ranges import BatchRange, LengthRange
from trt_compress.export.recipe import read_recipe, recipe_from_json, recipe_from_options
from trt_compress.methods import METHODS, parse_spec, spec_string
from trt_compress.model_name import parse_model, with_absolute_path
from trt_compress.models.hosts.catalog import check_model

SPECS = (
    "tome:num_merged=13",
    "evit:keep_ratio=[0.7,0.5],layers=[3,6]",
    "tome:num_merged=13+evit:keep_ratio=0.7",
    "toc3d:keep_ratio=0.5",
    "none",
    "frame_pool:stride=2",
    "snapkv:budget=256,in_chunks=true+kivi:bits=4,group=32,residual=64",
    "compresskv:budget=128,heads=heads.safetensors+int8",
)
NAMES = (
    "timm:deit_small_patch16_224?num_classes=10&img_size=224x192&mean=0.5,0.5,0.5&std=0.2",
    "zoo:digits_vit",
    "hf:folder?seconds=2",
    "wavtokenizer:c.safetensors?seconds=0.1",
    "net.py:make?mean=0.5&weights_key=a.b",
)
DEEPEST = 150  # levels of a table; what is read may have far fewer
RANGES = ("4", "1:4:8", "0:1:100", "1:100:400")
RECIPE = {
    "model": "zoo:digits_vit",
    "model_sha256": "0" * 64,
    "weights": "w.safetensors",
    "weights_sha256": "0" * 64,
    "targets": ["cpu", "rtx"],
    "batch": "1:4:8",
    "lengths": {"time": "1:100:400"},
    "precision": "fp32",
    "opset": 20,
    "compressors": [{"name": "tome", "num_merged": 13}, {"name": "evit", "keep_ratio": [0.7, 0.5], "layers": [3, 6]}],
}
_PIECES = (
    *(
        ":",
        "=",
        ",",
        "+",
        "?",
        "&",
        "[",
        "]",
        "[]",
        "..",
        "/",
        "\\",
        "%",
        "\0",
        "\n",
        "\x1b[2J",
        "\u202e",
        "é",
        "日本",
        "²",
    ),
    *("0", "-1", "1e999", "nan", "inf", "1_000", "٣", "9" * 5000, "true", "None", "none", "x" * 70_000, "0.5", "1.0"),
    *("tome", "evit", "num_merged", "keep_ratio", "layers", "zoo:", "timm:", "hf:", ".py:", ".toml", "(", "[[", "]]"),
    *(name for name in METHODS),
)


def mutated_words(text: str, rng: random.Random) -> str:
    """A text with one to four pieces put in, taken out or moved."""
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        place = rng.randrange(len(text) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            text = text[:place] + rng.choice(_PIECES) + text[place:]
        elif kind == 1:
            text = text[:place] + text[place + rng.choice((1, 1, 3, 9)) :]
        elif kind == 2:
            text = text[:place] + rng.choice(_PIECES)
        elif kind == 3:
            text = text[place:] + text[:place]
        else:
            text = text + text[place:]
    return text


def spelled(value: Any, left: int = DEEPEST) -> str:
    """A value as TOML, as far as TOML has it; what it does not have is written all the same, as a stranger may.

    Below `left` levels a list stands for what is in it, so that this test does not stop at its own limit.
    """
    if isinstance(value, dict | list) and not left:
        return "[]"
    if isinstance(value, dict):
        parts = (f"{json.dumps(str(key))} = {spelled(item, left - 1)}" for key, item in value.items())
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(spelled(item, left - 1) for item in value) + "]"
    return json.dumps(value)


def test_what_is_typed_is_read_or_refused_in_one_sentence(
    attack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = attack.random(22)
    file = tmp_path / "r.toml"

    def spec() -> None:
        found = parse_spec(mutated_words(rng.choice(SPECS), rng))
        assert parse_spec(spec_string(found)) == found
        for part in found:
            part.read()

    def name() -> None:
        text = mutated_words(rng.choice(NAMES), rng)
        with_absolute_path(text)
        parse_model(text)
        if not text.startswith("timm:") or rng.random() < 0.05:  # reads timm's sources, which takes a while
            check_model(text)

    def lengths() -> None:
        text = mutated_words(rng.choice(RANGES), rng)
        rng.choice((BatchRange.parse, lambda given: LengthRange.parse("time", given)))(text)

    def options() -> None:
        recipe_from_options(
            mutated_words(rng.choice(NAMES), rng),
            compress=mutated_words(rng.choice(SPECS), rng),
            batch=rng.choice(RANGES),
            targets=[mutated_words("cpu", rng)],
            precision=rng.choice(("fp32", "FP16", "int8", "\0")),
            opset=rng.choice((20, 0, -1, 10**30)),
        )

    def table() -> None:
        data = mutated(RECIPE, rng)
        recipe_from_json(data, where="r.toml", base=tmp_path).to_json()

    def recipe() -> None:
        data = mutated(RECIPE, rng)
        text = "\n".join(f"{json.dumps(key)} = {spelled(value)}" for key, value in data.items())
        text = mutated_words(text, rng) if rng.random() < 0.5 else text
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        read_recipe(file).to_toml()

    kinds: tuple[Callable[[], None], ...] = (spec, name, lengths, options, table, recipe)
    seen: Counter[str] = Counter()
    foreign: list[str] = []
    for number in range(attack.count(600, 12_000)):
        try:
            kinds[number % len(kinds)]()
            seen["read"] += 1
        except TrtCompressError as error:
            seen["refused"] += 1
            if isinstance(error, InternalError) or len(error.message) > 4100:
                foreign.append(f"{number}: {type(error).__name__} {error.message[:300]!r}")
        except Exception as error:
            foreign.append(f"{number} {kinds[number % len(kinds)].__name__}: {error!r:.300}")
    attack.saw(foreign_errors=len(foreign), **seen)
    assert not foreign, f"{len(foreign)}\n" + "\n".join(foreign[:40])
    assert min(seen["read"], seen["refused"]) > 0
