"""SmolLM2 with another tokenizer, texts found alike by all-MiniLM-L6-v2: better than random rows, and it loads."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.real_models import minilm, smollm2
from tests.typed_commands import Typed

TOKENS = 1500
"""Of the text, which is read once for each kind of rows."""


@pytest.mark.slow
def test_smollm2_reads_by_another_tokenizer(tokenizer_commands: Typed, tmp_path: Path) -> None:
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4096, show_progress=False, initial_alphabet=alphabet)
    made.train_from_iterator([text[: len(text) // 2]], trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(text[-20_000:])
    places = (f"gguf:{smollm2()}", "--to", "tokenizer.json", "-o", "made", "--external", minilm())
    ended = tokenizer_commands(
        "tokenizer",
        "transplant",
        *places,
        "--text",
        "text.txt",
        "--limit",
        TOKENS,
        "--json",
        folder=tmp_path,
        within=1800,
    )
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    assert said["tied"] and said["new_tokens"] == 4096 and said["origins"]["random"] == 0
    assert said["origins"]["copied"] > 1000 and said["origins"]["both"] > 500
    bits = {row["rows"]: row["perplexity"]["bits_per_byte"] for row in said["quality"]}
    assert bits["before"] < bits["after"] < bits["random"]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    table, head = model.get_parameter("model.embed_tokens.weight"), model.get_parameter("lm_head.weight")
    assert table.shape == (4096, 576) and head.data_ptr() == table.data_ptr()

    # A model with a head of its own gets two tables, each made of its own rows.
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head.detach() * 0.5)
    model.save_pretrained(tmp_path / "untied")
    shutil.copy(tmp_path / "made" / "tokenizer.json", tmp_path / "untied")
    other = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    other.add_tokens(["transplanted"])
    other.save(str(tmp_path / "other.json"))
    given = ("untied", "--to", "other.json", "-o", "two", "--external", minilm(), "--json")
    ended = tokenizer_commands("tokenizer", "transplant", *given, folder=tmp_path, within=1800)
    assert ended.code == 0, ended.err
    assert not json.loads(ended.out)["tied"]
    two = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    table, head = two.get_parameter("model.embed_tokens.weight"), two.get_parameter("lm_head.weight")
    number = other.token_to_id("transplanted")
    assert number is not None
    assert not torch.equal(table[number], torch.zeros(576))
    assert torch.allclose(head[: number + 1], table[: number + 1] * 0.5, atol=1e-6)
