"""Encoders of the BERT family against transformers' own, and compressors in them: padding changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.tiny_bert import WORDS, tiny_bert
from trt_compress.errors import ConfigError, TrtCompressError
from trt_compress.export.api import export_model, verify
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.catalog import check_model
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.hosts.text_encoder import BertEncoder
from trt_compress.runtime.session import Session

pytest.importorskip("transformers")
LENGTHS = (12, 5, 2)


def texts(count: int = 12) -> tuple[Tensor, Tensor]:
    """Tokens [3, count] with other ones behind the text, and how many are of it."""
    chance = torch.Generator().manual_seed(2)
    return torch.randint(4, len(WORDS), (len(LENGTHS), count), generator=chance), torch.tensor(LENGTHS)


def of(module: Any, *inputs: Tensor) -> Any:
    with torch.no_grad():
        return module(*inputs)


def close(found: Tensor, wanted: Tensor, tolerance: float = 2e-6) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


@pytest.mark.parametrize("cls", ["BertModel", "BertForMaskedLM"])
@pytest.mark.parametrize(("mean", "unit"), [(True, True), (False, False)])
def test_the_numbers_of_transformers(tmp_path: Path, cls: str, mean: bool, unit: bool) -> None:
    model = tiny_bert(tmp_path, cls, mean=mean, unit=unit)
    model = model if cls == "BertModel" else model.bert
    host = load_host(f"hf:{tmp_path}")
    tokens, length = texts()
    mask = (torch.arange(12) < length[:, None]).long()
    wanted = of(lambda: model(input_ids=tokens, attention_mask=mask)).last_hidden_state
    pooled = (wanted * mask[..., None]).sum(1) / length[:, None] if mean else wanted[:, 0]
    hidden, size, embedding = of(host.module, tokens, length)
    for row, count in enumerate(LENGTHS):
        close(hidden[row, :count], wanted[row, :count])
    assert torch.equal(size, mask.float())
    close(embedding, torch.nn.functional.normalize(pooled, dim=1) if unit else pooled)
    (graph,) = host.attach(())
    assert all(
        torch.equal(a, b) for a, b in zip(of(graph.module, tokens, length), (hidden, size, embedding), strict=True)
    )
    assert host.text is not None and host.preprocess == {"kind": "text", "input": "tokens"}


def test_names_of_old_versions(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_bert(tmp_path)
    before = of(load_host(f"hf:{tmp_path}").module, *texts())
    tensors = load_file(tmp_path / "model.safetensors")
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): each for name, each in tensors.items()}
    old = {f"bert.{name.replace('LayerNorm.bias', 'LayerNorm.beta')}": each for name, each in old.items()}
    save_file({**old, "bert.embeddings.position_ids": torch.arange(20)[None]}, tmp_path / "model.safetensors")
    after = of(load_host(f"hf:{tmp_path}").module, *texts())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("spec", ["none", "tome:num_merged=2", "evit:keep_ratio=0.5,layers=[1]", "frame_pool:stride=2"])
def test_a_text_is_what_it_is_alone(tmp_path: Path, spec: str) -> None:
    """What stands behind a text, and beside it in a batch, changes nothing of its embedding."""
    tiny_bert(tmp_path)
    host = load_host(f"hf:{tmp_path}")
    (graph,) = host.attach(() if spec == "none" else parse_spec(spec))
    tokens, length = texts()
    hidden, size, embedding = of(graph.module, tokens, length)
    (hidden_spec, size_spec, _) = graph.outputs
    assert (hidden.shape[1], size.shape[1]) == (hidden_spec.shape[1], size_spec.shape[1])
    assert (hidden.shape[1] < 12) == (spec != "none")
    for row in range(len(LENGTHS)):
        other = tokens.clone()
        other[row, LENGTHS[row] :] = 4
        found = of(graph.module, other[row : row + 1], length[row : row + 1])[2]
        close(found, embedding[row : row + 1], 1e-5)
    if spec.startswith("tome"):
        assert torch.allclose(size.sum(1), length.float())  # every token is in one of them


def test_a_compressed_bundle(tmp_path: Path) -> None:
    """Exported, verified against torch, and run without it."""
    tiny_bert(tmp_path / "model")
    name = f"hf:{tmp_path / 'model'}?tokens=16"
    spec = "tome:num_merged=3"
    result = export_model(name, compress=spec, output=tmp_path / "b", targets=["cpu"], batch="1:2:3")
    manifest = result.manifest
    assert manifest.verification is not None and manifest.verification.passed
    assert verify(tmp_path / "b", model=name).passed
    assert [info.shape for info in manifest.graphs[0].inputs] == [("batch", 16), ("batch",)]
    assert manifest.text is not None and manifest.text.vocabulary == len(WORDS)
    tokens, length = texts(16)
    (graph,) = load_host(name).attach(parse_spec(spec))
    wanted = of(graph.module, tokens, length)
    with Session.open(tmp_path / "b") as session:
        found = session.run({"tokens": tokens.numpy(), "length": length.numpy()})
    for output, tensor in zip(("hidden", "size", "embedding"), wanted, strict=True):
        np.testing.assert_allclose(found[output], tensor.numpy(), rtol=0, atol=2e-5)


def _config(**entries: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))

    return change


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (
            _config(architectures=["BertForSequenceClassification"]),
            "",
            "architectures BertForSequenceClassification is",
        ),
        (_config(is_decoder=True), "", "a decoder is not supported; of bert encoders"),
        (_config(position_embedding_type="relative_key"), "", "position_embedding_type relative_key is not supported"),
        (_config(hidden_act="mish"), "", "bert: activation 'mish' is not known"),
        (_config(num_attention_heads=3), "", "a width of 16 cannot be split among 3 heads"),
        (_config(num_hidden_layers=4), "", "it misses encoder.layer.3"),
        (_config(hidden_size="wide"), "", "cannot be read"),
        (
            lambda p: (p / "modules.json").write_text('[{"type": "x.Dense"}]'),
            "",
            "has the module Dense in modules.json",
        ),
        (lambda p: (p / "modules.json").write_text("{}"), "", "holds no JSON list"),
        (lambda p: (p / "1_Pooling/config.json").write_text("{}"), "", "pools by nothing; there are pooling_mode_mean"),
        (lambda p: (p / "sentence_bert_config.json").write_text('{"max_seq_length": "x"}'), "", "max_seq_length 'x'"),
        (lambda p: None, "?tokens=21", "texts of 21 tokens; this model takes 2 to 20"),
        (lambda p: None, "?tokens=1", "'tokens=1' is not key=whole number from 2 on; write hf:PATH?tokens=64"),
        (lambda p: None, "?seconds=3", "seconds is an option of audio models; leave it out"),
        (_config(model_type="whisper"), "?tokens=8", "tokens is an option of text encoders; leave it out"),
        (lambda p: (p / "model.safetensors").unlink(), "", "has no model.safetensors"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: Callable[[Path], object], options: str, said: str) -> None:
    tiny_bert(tmp_path)
    change(tmp_path)
    with pytest.raises(TrtCompressError) as raised:
        load_host(f"hf:{tmp_path}{options}")
    assert said in raised.value.message


def test_compressors_that_do_not_fit(tmp_path: Path) -> None:
    tiny_bert(tmp_path, mean=False)
    host = load_host(f"hf:{tmp_path}")
    assert isinstance(host.module, BertEncoder) and host.module.num_tokens == 12
    with pytest.raises(ConfigError, match="atome: .* pads its inputs"):
        host.attach(parse_spec("atome:merge_ratio=0.4"))
    with pytest.raises(ConfigError, match="cannot tell padding from tokens"):
        host.attach(parse_spec("streamingllm:budget=8"))
    with pytest.raises(ConfigError, match="--weights FILE|give a file"):
        check_model(f"hf:{tmp_path}", "pretrained")
