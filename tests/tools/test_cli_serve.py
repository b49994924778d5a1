"""`trt-compress serve` against OpenAI's own client: eight at once, one of which goes away; refusals; a clean end."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.runtime.generate.toy import write
from tests.typed_commands import LIGHT, Typed
from trt_compress.runtime import Generator

ENDLESS = 1 << 16


@dataclass
class Server:
    """A server that was started."""

    process: "subprocess.Popen[str]"
    url: str
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self) -> openai.OpenAI:
        self.clients.append(openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=60))
        return self.clients[-1]

    def end(self, number: int) -> None:
        """End it, if it was not ended, and see that it ends well."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=30)
        for client in self.clients:
            client.close()
        assert (self.process.returncode, err) == (0, "")


def start(bundle: Path, *arguments: str) -> Server:
    command = [sys.executable, "-m", "trt_compress.tools.cli.main", "serve", str(bundle), "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "2000"})
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.search(r"on (http://127\.0\.0\.1:\d+/v1); Ctrl-C ends it", line)
    assert found is not None, line + process.stderr.read()
    return Server(process, found[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    write(folder / "b", context=ENDLESS)
    write(folder / "bare", text=False)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    server = start(folder / "b", "--parallel", "3", "--queue", "5")
    yield server
    server.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def generator(folder: Path) -> Iterator[Generator]:
    with Generator.open(folder / "b") as generator:
        yield generator


def test_eight_clients_at_once_one_of_which_goes_away(server: Server, generator: Generator) -> None:
    def talk(number: int) -> str:
        client = server.client()
        if number == 3:
            stream = client.completions.create(
                model="toy", prompt="the fox", max_tokens=ENDLESS, stream=True, extra_body={"temperature": 0}
            )
            for _, _ in zip(stream, range(5), strict=False):
                pass
            stream.close()
            return ""
        content = f"the fox {number}"
        if number % 2:
            chunks = client.chat.completions.create(
                model="toy",
                messages=[{"role": "user", "content": content}],
                max_tokens=20,
                temperature=1,
                seed=number,
                stream=True,
            )
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        answer = client.completions.create(model="toy", prompt=content, max_tokens=20, temperature=1, seed=number)
        assert answer.usage is not None and answer.usage.prompt_tokens == len(generator.encode(content))
        return answer.choices[0].text

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(talk, range(8)))
    for number, text in enumerate(found):
        content = f"the fox {number}"
        prompt = generator.chat([{"role": "user", "content": content}]) if number % 2 else generator.encode(content)
        with generator.stream(prompt, max_new=20, temperature=1.0, seed=number, detached=bool(number % 2)) as stream:
            wanted = "" if number == 3 else "".join(piece.text for piece in stream)
        assert text == wanted, number
    client = server.client()  # the one that went away left nothing behind: all places are free
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: client.completions.create(model="toy", prompt="a", max_tokens=3), range(8)))
    assert len(done) == 8 and time.monotonic() - began < 20


def test_answers_have_the_form_of_the_interface(server: Server, generator: Generator) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["toy"]
    prompt = generator.chat([{"role": "user", "content": "a"}])
    (wanted,) = generator.generate(prompt, max_new=4, logprobs=2)
    message: Any = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    answer = client.chat.completions.create(
        model="toy", messages=[message], max_completion_tokens=4, logprobs=True, top_logprobs=2, n=2
    )
    for choice in answer.choices:
        assert choice.finish_reason == ("stop" if wanted.reason == "stop" else "length")
        assert choice.message.role == "assistant" and choice.logprobs is not None
        assert choice.logprobs.content is not None
        told = [(one.logprob, len(one.top_logprobs)) for one in choice.logprobs.content]
        assert told == [(pytest.approx(one.logprob, abs=1e-5), 2) for one in wanted.tokens]
    assert answer.usage is not None and answer.usage.completion_tokens == 2 * len(wanted.tokens)
    several = client.completions.create(model="toy", prompt=["a", "the fox"], max_tokens=6, stop="o", logprobs=1)
    for choice, text in zip(several.choices, ("a", "the fox"), strict=True):
        assert choice.text == generator.generate(text, max_new=6, stop=["o"])[0].text
        assert choice.logprobs is not None and choice.logprobs.token_logprobs
    chunks = list(
        client.chat.completions.create(
            model="toy",
            messages=[{"role": "user", "content": "a"}],
            max_tokens=4,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason is not None
    assert chunks[-1].usage is not None and chunks[-1].usage.prompt_tokens == len(prompt) and not chunks[-1].choices


def test_what_prompts_begin_with_is_read_once(server: Server, generator: Generator) -> None:
    client, system = server.client(), {"role": "system", "content": "the quick brown fox jumps over the lazy dog " * 3}
    reused = []
    for number in range(4):
        messages: Any = [system, {"role": "user", "content": f"fox {number}"}]
        answer = client.chat.completions.create(
            model="toy", messages=messages, max_tokens=9, temperature=0.9, seed=7, n=1 + number
        )
        prompt = generator.chat(messages)
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        reused.append((answer.usage.prompt_tokens_details.cached_tokens, len(prompt)))
        for at, choice in enumerate(answer.choices):
            with generator.stream(prompt, max_new=9, temperature=0.9, seed=7 + at, detached=True) as stream:
                assert choice.message.content == "".join(piece.text for piece in stream)
    alike = len(generator.chat([system], add_generation_prompt=False))
    assert reused[0][0] == 0 and all(alike <= (read or 0) // (1 + at) for at, (read, _) in enumerate(reused) if at)


def test_a_seed_gives_the_same_answer_and_a_stop_ends_it(server: Server, generator: Generator) -> None:
    client = server.client()
    twice = [
        client.completions.create(model="toy", prompt="the", max_tokens=12, temperature=1, seed=3).choices[0].text
        for _ in range(2)
    ]
    assert twice[0] == twice[1] == generator.generate("the", max_new=12, temperature=1.0, seed=3)[0].text
    full = client.completions.create(model="toy", prompt="the", max_tokens=30).choices[0].text
    stop = full[5:7]
    ended = client.completions.create(model="toy", prompt="the", max_tokens=30, stop=["\u2620", stop]).choices[0]
    assert (ended.text, ended.finish_reason) == (full[: full.index(stop)], "stop")
    message: Any = [{"role": "user", "content": "a"}]
    quiet = client.chat.completions.create(
        model="toy", messages=message, max_tokens=2, user="me", metadata={"a": "b"}, store=False, tool_choice="auto"
    )
    assert quiet.choices[0].message.content is not None
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with pytest.raises(openai.BadRequestError, match="tools is given, and no tools are called here: answers are text"):
        client.chat.completions.create(model="toy", messages=message, tools=tools)
    with pytest.raises(openai.BadRequestError, match="field 'max_token' is not known") as refusal:
        client.chat.completions.create(model="toy", messages=message, extra_body={"max_token": 3})
    assert refusal.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError, match="'other' is not served here") as unknown:
        client.completions.create(model="other", prompt="a")
    assert unknown.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("route", "request_", "status", "said"),
    [
        ("completions", {"prompt": [5] * (ENDLESS + 1)}, 400, "65537 tokens, and the bundle reads up to 65536"),
        ("completions", {"prompt": "a", "model": "gpt"}, 404, "The model 'gpt' is not served here; there is 'toy'"),
        ("completions", {"prompt": "a", "best_of": 2}, 400, "best_of=2 is not done here; leave it out"),
        ("completions", {"prompt": "a", "presence_penalty": 0.5}, 400, "presence_penalty=0.5 is not done here"),
        ("completions", {"prompt": "a", "max_token": 2}, 400, "field 'max_token' is not known; .*'max_tokens'"),
        ("completions", {"prompt": "a", "temperature": -1}, 400, "temperature=-1; give a number"),
        ("completions", {"prompt": "a", "n": 99}, 400, "n=99; give a whole number from 1 to 16"),
        ("completions", {}, 400, "prompt is a text, the numbers of tokens"),
        ("chat/completions", {"messages": []}, 400, "are no messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "parts"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, 400, "tools is"),
        ("completions", b"{", 400, "The request is no JSON \\("),
        ("completions", b"[]", 400, "no JSON object"),
    ],
)
def test_what_is_refused(server: Server, route: str, request_: object, status: int, said: str) -> None:
    found, answer = posted(server, route, request_, "application/json")
    assert found == status and re.search(said, json.loads(answer)["error"]["message"])


def posted(server: Server, route: str, request: object, kind: str, **headers: str) -> tuple[int, str]:
    content = request if isinstance(request, bytes) else json.dumps(request).encode()
    asked = urllib.request.Request(f"{server.url}/{route}", content, {"Content-Type": kind, **headers})
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_pages_of_a_browser_get_nowhere(server: Server) -> None:
    assert posted(server, "completions", {"prompt": "a"}, "text/plain")[0] == 400
    assert posted(server, "completions", {"prompt": "a"}, "application/json", Host="evil.example")[0] == 400


def test_what_is_too_much_waits_or_is_told_to(server: Server) -> None:
    client, opened = server.client(), []
    try:
        for _ in range(8):
            opened.append(client.completions.create(model="toy", prompt="a", max_tokens=ENDLESS, stream=True))
        with pytest.raises(openai.RateLimitError, match="8 requests are open, which is as many as may be"):
            client.completions.create(model="toy", prompt="a", max_tokens=1)
    finally:
        for stream in opened:
            stream.close()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            assert client.completions.create(model="toy", prompt="a", max_tokens=1).choices
            return
        except openai.RateLimitError:
            time.sleep(0.1)
    pytest.fail("the places of those that went away are not free again")


def test_an_end_while_a_stream_is_open_is_clean(folder: Path) -> None:
    server = start(folder / "b", "--model", "mine")
    stream = server.client().completions.create(model="mine", prompt="a", max_tokens=ENDLESS, stream=True)
    next(iter(stream))
    ending = threading.Timer(0.2, lambda: server.process.send_signal(signal.SIGINT))
    ending.start()
    reasons = [chunk.choices[0].finish_reason for chunk in stream]
    ending.join()
    server.end(signal.SIGTERM)
    assert reasons[-1] == "stop"


def test_mistakes(folder: Path) -> None:
    with Typed(folder, loaded=(*LIGHT, "trt_compress.tools.serve.app", "trt_compress.tools.generating")) as typed:
        for arguments, said in (
            (("no",), "'no' does not exist"),
            (("bare",), "'bare' has no tokenizer, so that it serves no text"),
            (("b", "--parallel", 0), "--parallel 0; give at least 1"),
            (("b", "--port", 70000), "--port 70000; give a number from 0 to 65535"),
            (("b", "--host", "203.0.113.1"), "203.0.113.1:8000 cannot be listened on ("),
            (("b", "--context", 1 << 17), "A context of 131072 tokens is asked for"),
        ):
            done = typed("serve", *arguments)
            assert done.is_one_sentence and said in done.err, done.err
            assert "onnxruntime" not in done.loaded
