"""What travels with a model: tokenizer, template, settings, licence; a tokenizer of another model is refused."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.models.language.gguf_files import write
from trt_compress.errors import ConfigError, TrtCompressError
from trt_compress.models.language.directory import Directory
from trt_compress.models.language.gguf_model import GgufModel
from trt_compress.models.language.gguf_tokenizer import CONTROL, NORMAL, SPLITS, UNUSED

TEXTS = [
    "Hello world, it's 12345 o'clock!\n\n  def f(x):\treturn x+1  # ünïcödé 日本 Привет",
    "WE'LL see...   \r\n\r\n  1999/12/31, 3.14159 <|end|>again<|start|>  ",
    "",
    " ",
    "a\u0301 e\u0301 \U0001f600\U0001f3fd ½ ²",
]


def byte_level(words: int = 300) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    return made


def directory(path: Path, tokenizer: Tokenizer | None, config: dict[str, Any] | None = None) -> Directory:
    save_file({"model.norm.weight": torch.ones(4)}, path / "model.safetensors")
    settings = {"model_type": "llama", "vocab_size": 320, "max_position_embeddings": 64, "eos_token_id": 1}
    (path / "config.json").write_text(json.dumps({**settings, **(config or {})}))
    if tokenizer is not None:
        tokenizer.save(str(path / "tokenizer.json"))
    return Directory(path)


def test_all_that_belongs_to_a_model_is_found(tmp_path: Path) -> None:
    special = {"bos_token": {"content": "<|start|>"}, "eos_token": "<|end|>"}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**special, "chat_template": "{{ bos_token }}", "model_max_length": int(1e30)})
    )
    (tmp_path / "generation_config.json").write_text(
        json.dumps(
            {"eos_token_id": [1, 0], "temperature": 0.6, "top_p": 0.9, "do_sample": True, "transformers_version": "5"}
        )
    )
    (tmp_path / "LICENSE.txt").write_text("Do what you like.")
    (tmp_path / "README.md").write_text("---\ntags:\n- x\nlicense: other\nlicense_name: my-own\n---\n# Model\n")
    found = directory(tmp_path, byte_level()).assets()
    assert found.text is not None
    assert (found.text.stop, found.text.bos, found.text.vocabulary, found.text.context) == ((1, 0), 0, 320, 64)
    assert found.text.special == {"bos_token": "<|start|>", "eos_token": "<|end|>"}
    assert found.text.generation == {"temperature": 0.6, "top_p": 0.9, "do_sample": True}
    assert (found.license, found.license_files) == ("my-own", ("license/LICENSE.txt",))
    assert found.files["text/chat_template.jinja"] == b"{{ bos_token }}"
    assert found.files["license/LICENSE.txt"] == b"Do what you like."
    assert found.files["text/tokenizer.json"] == (tmp_path / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", "a {{ x }}"),
        ("chat_template.json", json.dumps({"chat_template": "a {{ x }}"})),
        (
            "tokenizer_config.json",
            json.dumps(
                {"chat_template": [{"name": "tool", "template": "b"}, {"name": "default", "template": "a {{ x }}"}]}
            ),
        ),
    ],
)
def test_a_template_is_found_wherever_it_stands(file: str, content: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(content)
    found = directory(tmp_path, byte_level()).assets()
    assert found.files["text/chat_template.jinja"] == b"a {{ x }}"


def test_a_model_without_a_tokenizer_has_no_text(tmp_path: Path) -> None:
    found = directory(tmp_path, None).assets()
    assert (found.text, dict(found.files), found.license) == (None, {}, None)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the tokenizer has a token 299 \('.*'\), and the model knows 200: they"):
        directory(tmp_path, byte_level(), {"vocab_size": 200}).assets()


def test_added_tokens_that_nothing_needs_are_left_out_and_others_refused(tmp_path: Path) -> None:
    made = byte_level()
    made.add_special_tokens([AddedToken("<image>", special=True)])
    count = made.get_vocab_size() - 1
    found = directory(tmp_path, made, {"vocab_size": count}).assets()
    assert "<image>" not in Tokenizer.from_buffer(found.files["text/tokenizer.json"]).get_vocab()
    (tmp_path / "chat_template.jinja").write_text("<image>{{ x }}")
    with pytest.raises(ConfigError, match=rf"the tokenizer has a token {count} \('<image>'\)"):
        directory(tmp_path, made, {"vocab_size": count}).assets()


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", "{", "tokenizer.json cannot be read"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 1}}}', "tokenizer.json cannot be read"),
        ("tokenizer.json", '{"model": 3}', "tokenizer.json cannot be read"),
        ("tokenizer_config.json", "[]", "holds no JSON object"),
        ("generation_config.json", '{"temperature": "hot"}', "'text.generation.temperature' is 'hot'; it is a number"),
        ("generation_config.json", '{"eos_token_id": 1000}', r"'text.stop[0]' is 1000; tokens are 0 to 319"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id is 'x'; it is the number of a token"),
    ],
)
def test_a_damaged_file_is_one_sentence(file: str, content: str, said: str, tmp_path: Path) -> None:
    opened = directory(tmp_path, byte_level())
    (tmp_path / file).write_text(content)
    with pytest.raises(ConfigError) as caught:
        opened.assets()
    assert said in caught.value.message and "\n" not in caught.value.message


def test_a_tokenizer_of_another_form_is_refused_with_the_way_out(tmp_path: Path) -> None:
    opened = directory(tmp_path, None)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"has tokenizer.model and no tokenizer.json; make one: python -c"):
        opened.assets()


CONFIG = {
    **{"model_type": "qwen2", "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 0},
    **{"num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5},
}


def of_gguf(path: Path, tokens: list[str], types: list[int], fill: Any, **changes: Any) -> GgufModel:
    def more(writer: gguf.GGUFWriter) -> None:
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        fill(writer)

    config = {**CONFIG, "num_hidden_layers": 1, "vocab_size": len(tokens), **changes}
    return GgufModel(write(path, config, {"model.embed_tokens.weight": torch.ones(config["vocab_size"], 4)}, more=more))


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "qwen2", "gpt-2", "tekken", "gpt-4o"])
def test_a_byte_level_tokenizer_of_gguf_is_the_one_that_was_put_in(pre: str, tmp_path: Path) -> None:
    """Vocabulary and merges are trained with each way to cut texts, as the models' own tokenizer.json have it."""
    made = byte_level()
    if pre != "smollm":
        from tokenizers import Regex

        cut = [pre_tokenizers.Split(Regex(SPLITS[pre]), "isolated")] if pre != "gpt-2" else []
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [*cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre == "gpt-2")]
        )
    if pre == "qwen2":
        made.normalizer = normalizers.NFC()
    state = json.loads(made.to_str())["model"]
    state["ignore_merges"] = pre in ("llama-bpe", "tekken")
    words = sorted(state["vocab"], key=state["vocab"].get)

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([" ".join(pair) for pair in state["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_add_bos_token(False)
        writer.add_string("general.license", "mit")

    types = [CONTROL if number < 2 else NORMAL for number in range(len(words))] + [UNUSED]
    found = of_gguf(tmp_path / "a.gguf", [*words, "[PAD300]"], types, fill).assets()
    assert found.text is not None and (found.text.stop, found.text.bos, found.license) == ((1,), 0, "mit")
    tokenizer = Tokenizer.from_buffer(found.files["text/tokenizer.json"])
    reference = Tokenizer.from_str(json.dumps({**json.loads(made.to_str()), "model": state}))
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert ids == reference.encode(text).ids
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        assert decoded == reference.decode(ids, skip_special_tokens=False)
        assert pre == "qwen2" or decoded == text
    assert "[PAD300]" not in tokenizer.get_vocab()


@pytest.mark.parametrize("prefix", [True, False])
def test_a_tokenizer_of_scores_is_as_sentencepiece_has_it(prefix: bool, tmp_path: Path) -> None:
    pieces = ["▁", "▁h", "▁he", "l", "ll", "▁hell", "o", "▁hello", "w", "or", "▁w", "ld", "▁wor", "r", "d", "h", "e"]
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *pieces]
    types = [2, CONTROL, CONTROL, *[6] * 256, *[NORMAL] * len(pieces)]
    scores = [0.0] * 259 + [-float(number) for number in range(len(pieces))]

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(scores)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_add_bos_token(True)
        writer.add_add_space_prefix(prefix)
        writer.add_chat_template("{{ bos_token }}")

    found = of_gguf(tmp_path / "a.gguf", tokens, types, fill).assets()
    tokenizer = Tokenizer.from_buffer(found.files["text/tokenizer.json"])
    encoded = tokenizer.encode("hello world é")
    start = ["<s>", "▁hello"] if prefix else ["<s>", "h", "e", "ll", "o"]
    assert encoded.tokens == [*start, "▁wor", "ld", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(encoded.ids) == "hello world é"
    assert tokenizer.encode("hello</s>").ids[-1] == 2
    assert found.text is not None and found.text.stop == (2,) and found.text.chat_template is not None
    assert found.text.special["unk_token"] == "<unk>"


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (lambda w: w.add_tokenizer_model("rwkv"), "tokenizer 'rwkv' is not known; there are gpt2, llama"),
        (
            lambda w: (w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre("odd"), w.add_token_merges(["a b"])),
            "pre-tokenizer 'odd' is not known",
        ),
        (lambda w: w.add_tokenizer_model("gpt2"), "have no merges of tokens"),
        (lambda w: w.add_tokenizer_model("llama"), "do not say the score of each of its tokens"),
        (
            lambda w: (w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre("gpt-2"), w.add_token_merges(["x y"])),
            "its tokenizer cannot be read",
        ),
    ],
)
def test_a_tokenizer_of_gguf_that_cannot_be_made_is_refused(fill: Any, said: str, tmp_path: Path) -> None:
    opened = of_gguf(tmp_path / "a.gguf", ["a", "b", "ab"], [1, 1, 1], fill)
    with pytest.raises(TrtCompressError) as caught:
        opened.assets()
    assert said in caught.value.message and caught.value.exit_code == 2
