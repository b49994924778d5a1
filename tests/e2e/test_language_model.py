"""From a directory as Hugging Face writes it to text, as a user types it, against transformers at every end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.runtime.generate.toy import CHATML, tokenizer_json
from tests.typed_commands import Typed
from trt_compress.runtime import Generator

PROMPTS = ("the quick fox", "dog", "jumps over the lazy dog and so on and so on")


@pytest.mark.slow
def test_answers_are_those_of_transformers(tmp_path: Path, commands: Typed) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():  # no choice is a near tie
        if "norm" not in name:
            torch.nn.init.normal_(parameter, 0, 0.25 if "q_proj" in name or "k_proj" in name else 0.15)
    model.generation_config.eos_token_id = [1, 3]
    model.save_pretrained(tmp_path / "llama")
    (tmp_path / "llama" / "tokenizer.json").write_bytes(tokenizer_json())
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "llama" / "tokenizer_config.json").write_text(json.dumps({**said, "chat_template": CHATML}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "llama")

    def wanted(tokens: list[int], count: int) -> list[int]:
        with torch.no_grad():
            found = model.generate(torch.tensor([tokens]), max_new_tokens=count, do_sample=False)
        return list(found[0, len(tokens) :].tolist())

    export = ("export", f"hf:{tmp_path / 'llama'}", "--context", 128, "--chunk", 16, "-o", tmp_path / "b")
    done = commands(*export, within=300)
    assert done.code == 0, done.err
    with Generator.open(tmp_path / "b") as generator:
        assert generator.context == 128 and generator.text.stop_ids == {1, 3}
        texts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
        assert [generator.encode(prompt) for prompt in PROMPTS] == texts
        for answer, tokens in zip(generator.generate(PROMPTS, max_new=40, batch=3), texts, strict=True):
            assert answer.ids == wanted(tokens, 40)
            assert answer.reason == ("stop" if answer.ids[-1] in (1, 3) else "length")
        (scores,) = generator.score(PROMPTS[2])
        with torch.no_grad():
            logarithms = model(torch.tensor([texts[2]])).logits[0].log_softmax(dim=1).numpy()
        np.testing.assert_allclose(scores, logarithms[np.arange(len(scores)), texts[2][1:]], atol=1e-4)
    messages = [{"role": "user", "content": "the fox"}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    done = commands("generate", tmp_path / "b", "-p", "the fox", "--chat", "--max-new", 12, "--json")
    (told,) = json.loads(done.out)["answers"]
    assert told["tokens"] == wanted(asked, 12)
    assert told["text"] == tokenizer.decode(told["tokens"], skip_special_tokens=True)
