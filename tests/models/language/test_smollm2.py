"""A real GGUF model: what is read is what its own package reads, and its tokenizer is the model's."""

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from tests.real_models import smollm2
from trt_compress.models.language.gguf_model import GgufModel

pytestmark = pytest.mark.slow

TEXTS = [
    "Hello world",
    "It's 12345 o'clock!\n\n  def f(x):\treturn x",
    "ünïcödé 日本 Привет \U0001f600",
    "  a  b ",
    "\n\n\n",
]


@pytest.fixture(scope="module")
def model() -> GgufModel:
    return GgufModel(smollm2())


def test_the_configuration_is_that_of_the_model(model: GgufModel) -> None:
    expected = {
        **{"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536},
        **{"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64},
        **{"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100_000.0, "tie_word_embeddings": True},
    }
    assert {key: model.config[key] for key in expected} == expected
    assert len(model.names()) == 30 * 9 + 2
    assert sum(np.prod(model.header(name).shape) for name in model.names()) == 134_515_008


def test_tensors_are_those_that_the_package_reads(model: GgufModel) -> None:
    own = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2()).tensors}

    def expected(name: str) -> torch.Tensor:
        return torch.from_numpy(gguf.quants.dequantize(own[name].data, own[name].tensor_type).copy())

    embedding = model.tensor("model.embed_tokens.weight")
    torch.testing.assert_close(embedding.float(), expected("token_embd.weight"), atol=1e-6, rtol=2**-11)
    down = model.tensor("model.layers.29.mlp.down_proj.weight")
    torch.testing.assert_close(down.float(), expected("blk.29.ffn_down.weight"), atol=1e-6, rtol=2**-11)
    norm = model.tensor("model.norm.weight")
    assert norm.dtype == torch.float32 and torch.equal(norm, expected("output_norm.weight"))
    pairs = expected("blk.3.attn_q.weight").reshape(9, 32, 2, 576)  # rows 2 n and 2 n + 1 turn together there
    halves = torch.cat([pairs[:, :, 0], pairs[:, :, 1]], dim=1).reshape(576, 576)
    torch.testing.assert_close(
        model.tensor("model.layers.3.self_attn.q_proj.weight").float(), halves, atol=1e-6, rtol=2**-11
    )


def test_the_tokenizer_is_the_models(model: GgufModel) -> None:
    found = model.assets()
    assert found.license == "apache-2.0" and found.text is not None
    assert (found.text.vocabulary, found.text.context, found.text.stop) == (49152, 8192, (2, 0))
    assert found.text.special["eos_token"] == "<|im_end|>"
    tokenizer = Tokenizer.from_buffer(found.files["text/tokenizer.json"])
    assert tokenizer.encode("Hello world").ids == [19556, 905]
    assert tokenizer.encode("<|im_start|>user\nHi<|im_end|>").ids[0] == 1
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert b"<|im_start|>" in found.files["text/chat_template.jinja"]
