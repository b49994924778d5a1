"""`trt-compress generate` as a user types it: streaming, conversations, JSON lines, interruptions, mistakes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.generate.toy import tokenizer_json, write
from tests.typed_commands import LIGHT, Typed
from trt_compress.runtime import Generator
from trt_compress.runtime.generate.sampling import Chooser
from trt_compress.runtime.generate.tokenizer import Tokenizer
from trt_compress.tools.cli.generate import generate

COMMAND = [sys.executable, "-m", "trt_compress.tools.cli.main", "generate"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles: b, others that are at fault, and lines of prompts."""
    folder = tmp_path_factory.mktemp("generate")
    write(folder / "b")
    write(folder / "endless", context=1 << 20)
    write(folder / "huge", context=(1 << 31) - 8)
    write(folder / "bare", text=False)
    write(folder / "raises", template="{{ raise_exception('no system prompt here') }}")
    large = Tokenizer.read(tokenizer_json(), "t")._library
    large.add_tokens([f"<{number}>" for number in range(40)])
    write(folder / "large", tokenizer=large.to_str().encode())
    lines = [
        {"prompt": "the fox"},
        {"messages": [{"role": "user", "content": "a"}], "max_new": 3, "id": "x", "seed": 2},
    ]
    lines += [{"tokens": [5, 6, 7], "stop": ["o"], "temperature": 0.0}]
    (folder / "p.jsonl").write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    (folder / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": "a", "max_nwe": 3}\n')
    (folder / "no.jsonl").write_text('{"prompt": "a"}\nnothing\n')
    return folder


@pytest.fixture(scope="module")
def typed(folder: Path) -> Iterator[Typed]:
    with Typed(folder, loaded=LIGHT) as typed:
        yield typed


@pytest.fixture(scope="module")
def generator(folder: Path) -> Iterator[Generator]:
    with Generator.open(folder / "b") as generator:
        yield generator


def printed(text: str) -> str:
    """As it stands on a terminal, for the characters that these models write."""
    return "".join(
        letter if letter in "\n\t" or letter.isprintable() else f"\\x{ord(letter):02x}".replace("\\x0d", "\\r")
        for letter in text
    )


def test_text_is_written_and_speed_is_said(typed: Typed, generator: Generator) -> None:
    done = typed("generate", "b", "--prompt", "the fox", "--max-new", 20)
    (wanted,) = generator.generate("the fox", max_new=20)
    assert (done.code, done.out) == (0, printed(wanted.text) + "\n")
    assert all(ord(letter) >= 32 for letter in done.out[:-1]) and any(ord(letter) < 32 for letter in wanted.text)
    assert "3 prompt tokens at " in done.err and "first token after " in done.err
    assert "20 new tokens at " in done.err and done.err.endswith("cache 264 B\n")
    assert {"torch", "onnx", "transformers"}.isdisjoint(done.loaded)


def test_json(typed: Typed, generator: Generator) -> None:
    done = typed(
        *(
            "generate",
            "b",
            "-p",
            "the fox",
            "--chat",
            "--system",
            "Be brief.",
            "--max-new",
            5,
            "--seed",
            4,
            "--top-k",
            9,
        ),
        *("--logprobs", 2, "--json"),
    )
    (answer,) = json.loads(done.out)["answers"]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the fox"}]
    prompt = generator.chat(messages)
    (wanted,) = generator.generate(prompt, max_new=5, seed=4, top_k=9, logprobs=2)
    assert answer["tokens"] == wanted.ids and answer["prompt_tokens"] == len(prompt) and answer["seed"] == 4
    assert answer["logprobs"] == [chosen.logprob for chosen in wanted.tokens] and len(answer["top"][0]) == 2
    assert json.loads(done.out)["timing"]["new_tokens"] == 5


def test_lines_are_answered_in_order(typed: Typed, folder: Path, generator: Generator) -> None:
    done = typed(
        "generate", "b", "--input", "p.jsonl", "--max-new", 6, "--temperature", 1, "--seed", 1, "-o", "o.jsonl"
    )
    assert (done.code, done.out) == (0, "") and done.err.startswith("Wrote o.jsonl\n")
    found: list[dict[str, Any]] = [json.loads(line) for line in (folder / "o.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in found] == [0, "x", 2]
    assert [answer["seed"] for answer in found] == [1, 2, None]
    assert found[0]["tokens"] == generator.generate("the fox", max_new=6, temperature=1.0, seed=1)[0].ids
    assert found[1]["new_tokens"] == 3 or found[1]["reason"] == "stop"
    assert found[2]["text"] == generator.generate([[5, 6, 7]], max_new=6, stop=["o"])[0].text
    again = typed("generate", "b", "--input", "p.jsonl", "--max-new", 6, "--temperature", 1, "--seed", 1, "--batch", 1)
    assert [json.loads(line) for line in again.out.splitlines()] == found


def test_a_conversation(typed: Typed, generator: Generator) -> None:
    done = typed("generate", "b", "--chat", "--max-new", 6, given="the fox\n\nä dog".encode())
    messages: list[dict[str, str]] = []
    wanted = []
    for content in ("the fox", "ä dog"):
        messages.append({"role": "user", "content": content})
        text = generator.generate(generator.chat(messages), max_new=6)[0].text
        messages.append({"role": "assistant", "content": text})
        wanted.append(printed(text) + "\n")
    assert (done.code, done.out) == (0, "".join(wanted))
    assert "new tokens" in done.err and done.err.count("\n") == 1


def test_stdin(typed: Typed, generator: Generator) -> None:
    done = typed("generate", "b", "--prompt", "-", "--json", "--max-new", 3, given="the fox\nä".encode())
    assert json.loads(done.out)["answers"][0]["tokens"] == generator.generate("the fox\nä", max_new=3)[0].ids
    for way in (("--prompt", "-"), ("--chat",), ("--input", "-")):
        done = typed("generate", "b", *way, given=b"abc\xff\xfe\n")
        assert done.is_one_sentence and "error: stdin is no UTF-8: the byte 0xff at 3 begins no character" in done.err


def test_an_interruption_ends_with_what_there_is(folder: Path) -> None:
    command = [*COMMAND, "endless", "--prompt", "the fox", "--max-new", "1000000", "--ignore-stop-ids"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)
    assert process.stdout is not None
    first = process.stdout.read(30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and len(first) == 30 and out.endswith(b"\n")
    assert err.startswith(b"3 prompt tokens at ") and err.count(b"\n") == 1


def test_an_interruption_keeps_the_answers_so_far(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "two.jsonl").write_text('{"prompt": "a", "max_new": 2}\n{"prompt": "the"}\n')
    choose, calls = Chooser.choose, iter(range(100))

    def interrupted(*arguments: Any) -> list[int]:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return choose(*arguments)

    monkeypatch.setattr(Chooser, "choose", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(folder / "b", input=tmp_path / "two.jsonl", output=tmp_path / "o", ignore_stop_ids=True)
    answers = [json.loads(line) for line in (tmp_path / "o").read_text().splitlines()]
    assert [(answer["reason"], answer["new_tokens"]) for answer in answers] == [("length", 2), ("cancelled", 5)]
    assert "7 new tokens" in capsys.readouterr().err


MISTAKES: dict[str, tuple[tuple[object, ...], str]] = {
    "nothing": (("b",), "Give one of --prompt TEXT, --chat and --input FILE.jsonl"),
    "two": (("b", "-p", "a", "--input", "p.jsonl"), "Give one of --prompt"),
    "system": (("b", "-p", "a", "--system", "x"), "--system is for conversations; give --chat too"),
    "bundle": (("no", "-p", "a"), "'no' does not exist"),
    "too long": (("b", "-p", "dog " * 200), "tokens, and the bundle reads up to 96; shorten it"),
    "too long, a line": (("b", "--input", "p.jsonl", "--context", 2), "Prompt 1 of 'p.jsonl' has 3 tokens, and the"),
    "context": (("b", "-p", "a", "--context", 97), "A context of 97 tokens is asked for, and 'b' reads up to 96"),
    "context 0": (("b", "-p", "a", "--context", 0), "context=0; give a whole number of at least 1"),
    "tokenizer": (("large", "-p", "a"), "and the model knows 300 (0 to 299); export the bundle again with the"),
    "no tokenizer": (("bare", "-p", "a"), "'bare' has no tokenizer; give the numbers of tokens"),
    "no template": (("bare", "--chat"), "'bare' has no chat template"),
    "memory": (("huge", "--input", "p.jsonl", "--max-new", 1 << 40), "KiB for the weights, and"),
    "temperature": (("b", "-p", "a", "--temperature", -1), "temperature=-1.0; give a number from 0 to 1000"),
    "max new": (("b", "-p", "a", "--max-new", 0), "max_new=0; give a whole number of at least 1"),
    "a key": (("b", "--input", "bad.jsonl"), "Prompt 2 of 'bad.jsonl': key 'max_nwe' is not known; there are id"),
    "a line": (("b", "--input", "no.jsonl"), "Line 2 of 'no.jsonl' is no JSON"),
    "no file": (("b", "--input", "nowhere.jsonl"), "'nowhere.jsonl' cannot be read (No such file"),
    "a folder": (("b", "--input", "b"), "'b' cannot be read ("),
    "output": (("b", "--input", "p.jsonl", "-o", "p.jsonl"), "--output p.jsonl is --input itself"),
    "output nowhere": (("b", "-p", "a", "-o", "no/where"), "'no/where' cannot be written"),
    "batch": (("b", "-p", "a", "--batch", 0), "batch=0; give a whole number of at least 1"),
    "raises": (("raises", "-p", "a", "--chat"), "'raises' refuses the conversation: no system prompt here."),
    "digest": (("b", "-p", "a", "--require-digest", "a" * 64), "is required; it is another bundle"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_said_before_the_model_is_loaded(typed: Typed, name: str) -> None:
    arguments, said = MISTAKES[name]
    done = typed("generate", *arguments)
    assert done.is_one_sentence, done.err
    assert said in done.err
    assert {"onnxruntime", "torch", "transformers"}.isdisjoint(done.loaded)
    assert done.out == ""
