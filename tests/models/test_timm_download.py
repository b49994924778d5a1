"""timm's pretrained weights where there is no network: one sentence in seconds, and what is in the cache is taken."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.models.hosts.registry import load_host

CACHED = "deit_tiny_patch16_224"
SILENT = "vit_tiny_patch16_224"
CLOSED = "vit_small_patch16_224"
FORBIDDEN = "vit_base_patch16_224"


def answer(connection: socket.socket) -> None:
    """As a hub may: no answer at all for one model, a closed connection for another, a refusal for a third."""
    asked = connection.recv(4096)
    if SILENT.encode() in asked:
        return
    if FORBIDDEN.encode() in asked:
        connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    connection.close()


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    held = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return
                threading.Thread(target=answer, args=(held[-1],), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    for connection in held:
        connection.close()


PROGRAM = """
import json, sys, time
from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.models.hosts.registry import load_host
found = {}
for name in sys.argv[1:]:
    start = time.monotonic()
    try:
        said = load_host(f"timm:{name}", weights="pretrained").weights.sha256
    except ConfigError as error:
        said = str(error)
    found[name] = [said, time.monotonic() - start]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answers(hub: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is said of each model, in seconds, with a cache that holds one of them; nothing else may be printed."""
    home = tmp_path_factory.mktemp("home")
    repository = home / "hub" / f"models--timm--{CACHED}.fb_in1k"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save_file(dict(timm.create_model(CACHED).state_dict()), snapshot / "model.safetensors")
    without_proxies = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, CACHED, SILENT, CLOSED, FORBIDDEN],
        env={**without_proxies, "HF_ENDPOINT": hub, "HF_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (SILENT, "127.0.0.1 does not answer within 5 s"),
        (CLOSED, "127.0.0.1 cannot be reached"),
        (FORBIDDEN, "127.0.0.1 answers with status 503"),
    ],
)
def test_without_a_network_it_is_one_sentence_in_seconds(name: str, reason: str, answers: dict[str, Any]) -> None:
    said, seconds = answers[name]
    first, second = said.splitlines()
    assert first == f"weights: timm's pretrained weights of {name} cannot be downloaded ({reason})."
    assert second.startswith("Hint: download the checkpoint elsewhere (http://127.0.0.1:")
    assert second.endswith("/resolve/main/model.safetensors) and give it as --weights FILE.")
    assert seconds < 15


def test_what_is_in_the_cache_needs_no_network(answers: dict[str, Any]) -> None:
    said, _ = answers[CACHED]
    assert len(said) == 64


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "timm:vit_giant_patch14_224",
            r"timm has no pretrained weights of vit_giant_patch14_224; give a file as --wei",
        ),
        ("timm:deit_small_patch16_224.nonsense", r"has no weights 'nonsense'; there are fb_in1k"),
        ("timm:deit_small_patch16_224.fb_in1", r"there are fb_in1k\. Did you mean 'fb_in1k'\?"),
        (
            "timm:vit_tiny_patch16_224?num_classes=3",
            "num_classes=3 contradicts timm's pretrained weights, which have num",
        ),
        ("timm:vit_tiny_patch16_224?in_chans=1", "in_chans=1 contradicts timm's pretrained weights"),
        (
            "timm:vit_tiny_patch16_224?img_size=384",
            "is for 224x224 pixels, and img_size=384x384 needs another; add resa",
        ),
        ("timm:vit_tiny_patch16_224?weights_key=ema", "weights_key is for a file of weights"),
        ("zoo:digits_vit", "'pretrained' downloads what timm has, and zoo:digits_vit is none of its models"),
    ],
)
def test_what_there_is_not_is_said_before_anything_is_asked(model: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_host(model, weights="pretrained")


def test_a_model_with_a_convolutional_stem_is_refused_by_name() -> None:
    with pytest.raises(
        UnsupportedError, match="timm:vit_small_r26_s32_224: patch embedding HybridEmbed is not supported"
    ):
        load_host("timm:vit_small_r26_s32_224")
