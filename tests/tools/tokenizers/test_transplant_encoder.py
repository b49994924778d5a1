"""`tokenizer transplant --external BUNDLE`: texts found alike by an encoder of ours, as by the checkpoint it is of."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.models.tiny_bert import tiny_bert
from tests.real_models import minilm
from tests.tools.tokenizers.golden_vocabularies import byte_level, checkpoint
from tests.typed_commands import Typed
from trt_compress.errors import ConfigError
from trt_compress.models.text.sentence_encoder import SentenceEncoder
from trt_compress.tools.tokenizers.external import external_of

OLD = [*"abcdefgh ", "ab", "cd", " ab", "abcd"]
NEW = [*"hgfedcba ", "cd", "bcd", " cd", "ef", "efg"]

Made = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="module")
def encoder(made_once: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The directory of an encoder, and a bundle of it."""
    folder = tmp_path_factory.mktemp("encoder")
    tiny_bert(folder)

    def make(output: Path) -> None:
        from trt_compress.export.api import export_model

        export_model(f"hf:{folder}?tokens=8", output=output, targets=["cpu"], batch="2:3:5")

    return folder, made_once("a bundle of a tiny text encoder", make)


def test_vectors_are_those_of_the_checkpoint(encoder: tuple[Path, Path]) -> None:
    folder, bundle = encoder
    old, new = ["a", "", "bad caf", "a", "abcdefg"], ["hh", "bad"]
    ours = external_of(bundle)
    assert ours.width == 16
    found = torch.cat(ours.vectors(old, new))
    wanted = SentenceEncoder(folder).encode([*old, *new])
    # the checkpoint's own class reads all 7 letters of the longest text; 8 tokens hold 6, and the marks around them
    kept = [0, 1, 2, 3, 5, 6]
    assert torch.allclose(found[kept], wanted[kept], atol=2e-6) and not torch.equal(found[4], wanted[4])
    assert torch.allclose(found[4], SentenceEncoder(folder).encode(["abcdef"])[0], atol=2e-6)
    assert not found[1].any() and torch.allclose(found[[0, 2, 4]].norm(dim=1), torch.ones(3), atol=1e-5)


def test_the_command(encoder: tuple[Path, Path], tokenizer_commands: Typed, tmp_path: Path) -> None:
    folder, bundle = encoder
    chance = torch.Generator().manual_seed(1)
    table = torch.randn(13, 8, generator=chance)
    checkpoint(tmp_path / "old", byte_level(OLD), table, None)
    byte_level(NEW).save(str(tmp_path / "new.json"))
    made = {}
    for name, external in (("by_bundle", bundle), ("by_checkpoint", folder)):
        given = ("tokenizer", "transplant", "old", "--to", "new.json", "-o", name, "--external", external, "--json")
        ended = tokenizer_commands(*given, folder=tmp_path)
        assert ended.code == 0, ended.err
        made[name] = load_file(tmp_path / name / "model.safetensors")["model.embed_tokens.weight"][:14]
    assert torch.allclose(made["by_bundle"], made["by_checkpoint"], atol=1e-5)
    assert not any(np.allclose(row, table) for row in made["by_bundle"][9:])


def test_bundles_that_are_none(exported: Callable[..., Path], encoder: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="is none of a text encoder; give a bundle that was exported from hf:DIR"):
        external_of(exported())


ALIKE = ("A cat sits on the mat.", "A kitten lies on the rug.", "Share prices fell after the bank's report.")
TOKENS = ("the", " parliament", "##ing", "naïve", "東京", "Ünïcödé 🦖", "a", ALIKE[0] * 3)


@pytest.mark.slow
def test_all_minilm_as_a_bundle(tmp_path: Path) -> None:
    """The real encoder, exported: the vectors that transformers computes with its own tokenizer and pooling by hand."""
    from transformers import AutoModel, AutoTokenizer

    from trt_compress.export.api import export_model

    folder = minilm()
    export_model(f"hf:{folder}?tokens=32", output=tmp_path / "encoder", targets=["cpu"], batch="1:4:8")
    ours = external_of(tmp_path / "encoder")
    assert ours.width == 384
    found, others = ours.vectors(ALIKE, TOKENS)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    wanted = []
    for text in (*ALIKE, *TOKENS):  # one at a time: nothing is padded
        given = tokenizer(text, return_tensors="pt")
        assert given["input_ids"].shape[1] <= 32
        with torch.no_grad():
            wanted.append(torch.nn.functional.normalize(model(**given).last_hidden_state.mean(1), dim=1)[0])
    assert torch.allclose(torch.cat((found, others)), torch.stack(wanted), atol=2e-6)
    assert torch.allclose(SentenceEncoder(folder).encode([*ALIKE, *TOKENS]), torch.stack(wanted), atol=2e-6)
    alike, apart = float(found[0] @ found[1]), float(found[0] @ found[2])
    assert alike > 0.5 > 0.2 > apart
