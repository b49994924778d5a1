"""A GGUF file becomes a bundle on the command line: its blocks are the bundle's, and its text files travel with it."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from tests.models.decoders import config_json, reference, text
from tests.models.language.gguf_files import write
from tests.typed_commands import Typed
from trt_compress.format.bundle import Bundle
from trt_compress.models.language.gguf_tokenizer import CONTROL, NORMAL
from trt_compress.runtime.backends.ort import OrtGraph
from trt_compress.runtime.generate.generator import Generator
from trt_compress.runtime.sequences import Sequences
from trt_compress.runtime.session import Session


def with_text(writer: gguf.GGUFWriter) -> None:
    letters = [chr(number) for number in range(33, 127)]
    pairs = [f"{first} {second}" for first in "abcdefgh" for second in "nrst"]
    words = ["<|start|>", "<|end|>", *letters, *(pair.replace(" ", "") for pair in pairs)][:128]
    merges = [pair for pair in pairs if pair.replace(" ", "") in words]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([CONTROL if number < 2 else NORMAL for number in range(len(words))])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages }}")
    writer.add_string("general.license", "mit")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 with matrices of Q8_0, norms of float32 and a tokenizer."""
    config: dict[str, Any] = config_json("qwen3")
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    return write(path, config, reference("qwen3").state_dict(), types=Type.Q8_0, more=with_text)


def test_its_blocks_are_those_of_the_bundle(
    commands: Typed, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--context", 64, "--chunk", 16, "--weights-bits", "8:32", "--batch", 1)
    ended = commands("export", f"gguf:{file}", *options, "-o", tmp_path / "b", within=300)
    assert ended.code == 0, ended.err
    opened = Bundle.open(tmp_path / "b")
    manifest = opened.manifest
    assert manifest.verification is not None
    # what was quantized before is not rounded again: only the matrices came as float16
    assert manifest.verification.quantization_error is not None and manifest.verification.quantization_error < 5e-3
    assert manifest.text is not None and manifest.text.stop == (1,) and manifest.text.context == 512
    assert opened.read("text/chat_template.jinja") == b"{{ messages }}"
    assert manifest.model.weights.license == "mit"
    shown = commands("inspect", tmp_path / "b")
    assert "mit" in shown.out and "128 tokens by text/tokenizer.json" in shown.out

    own = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    model, names = reference("qwen3"), gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 2)
    whole = {}
    for name, tensor in model.state_dict().items():
        stored = own[str(names.get_name(name, try_suffixes=(".weight", ".bias")))]
        values = gguf.quants.dequantize(stored.data, stored.tensor_type).copy()
        whole[name] = torch.from_numpy(values).reshape(tensor.shape)
    tokens = text(40)
    with torch.no_grad():
        wanted = torch.func.functional_call(model, whole, (tokens[None],)).logits[0]
    monkeypatch.setattr("trt_compress.runtime.session.SMALL", 0)  # as if the graphs shared large weights
    with Session.open(tmp_path / "b") as session:
        (found,) = Sequences(session).score([tokens.numpy()])
        for graph in session.loaded.graphs.values():  # quantized weights are rearranged, or all runs would wait for it
            assert isinstance(graph.executable, OrtGraph)
            with pytest.raises(RuntimeError, match="disable_prepacking"):
                graph.executable.session.get_session_options().get_session_config_entry("session.disable_prepacking")
    with Generator.open(tmp_path / "b") as generator:
        assert generator.session.graphs == ("step",)  # the other one has no copy of its own until it is asked for
        np.testing.assert_array_equal(generator.score(tokens.tolist())[0], found.astype(np.float64))
    expected = wanted[:-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0].numpy()
    assert np.abs(found - expected).max() < 0.05  # ONNX Runtime rounds what it multiplies with blocks to 8 bits


def test_mistakes_are_said_before_anything_is_loaded(commands: Typed, file: Path, tmp_path: Path) -> None:
    for options, said in (
        (("--context", 1024), "--context 1024 is more than the 512 tokens"),
        (("--weights", str(file)), "holds its tensors itself; leave --weights out"),
    ):
        ended = commands("export", f"gguf:{file}", "-o", tmp_path / "b", *options)
        assert ended.is_one_sentence and said in ended.err and not (tmp_path / "b").exists()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:-100])
    ended = commands("export", f"gguf:{cut}", "-o", tmp_path / "b")
    assert ended.is_one_sentence and ended.code == 2 and "it is cut" in ended.err
