"""SCOUT's checkpoint attention: the authors' layer (ArefJafari/SCOUT ceff02c), as decoders run by the procedure."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.golden_data import FOLDER, cases_on_disk, read
from tests.golden.golden_scores import Llama
from tests.models.cache.one_layer import layer_decoder, tokens_of
from tests.models.cache.runs import CacheRun, golden_decoder
from tests.typed_commands import Typed
from trt_compress.errors import ConfigError
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.decoder_config import Caching
from trt_compress.models.hosts.decoder_families import read_config
from trt_compress.models.hosts.decoder_host import plan_of, read_decoder
from trt_compress.models.language.directory import Directory
from trt_compress.runtime.sequences import Sequences
from trt_compress.runtime.session import Session

CASES = ("gqa_batch", "mha", "short")
OUTPUTS = 1e-5


def test_every_case_is_compared() -> None:
    assert cases_on_disk("scout") == set(CASES)


@pytest.mark.parametrize("chunk", [64, 5, 1])
@pytest.mark.parametrize("case", CASES)
def test_golden_layer(case: str, chunk: int) -> None:
    """What prompt and steps give, and the checkpoints at the end."""
    arrays, said = read("scout", case)
    hidden, prompt, texts = arrays["hidden"], said["prompt"], tokens_of(arrays)
    spec = f"scout:period={said['selection_window_size']}"
    run = CacheRun(layer_decoder(arrays, said), spec, context=64, chunk=chunk, batch=len(texts))
    found = run.read([text[:prompt] for text in texts]) - hidden[:, prompt - 1]
    torch.testing.assert_close(found, arrays["prefill_output"][:, -1], rtol=0, atol=OUTPUTS)
    for step in range(said["steps"]):
        found = run.step([text[prompt + step] for text in texts]) - hidden[:, prompt + step]
        torch.testing.assert_close(found, arrays["decode_output"][:, step], rtol=0, atol=OUTPUTS)
    assert int(arrays["slots"][-1]) == (prompt + said["steps"]) // said["selection_window_size"]
    for name, which in (("keys", "keys"), ("values", "values")):
        wanted = arrays[f"end_ckpt_{which}"]
        found = run.states[f"{name}_0"][:, :, : wanted.shape[2]]
        torch.testing.assert_close(found, wanted, rtol=0, atol=OUTPUTS)


@pytest.mark.parametrize("case", CASES)
def test_every_position_of_golden_prompts(case: str) -> None:
    """As prompts of unequal length beside each other, read in chunks."""
    arrays, said = read("scout", case)
    prompt, text = said["prompt"], tokens_of(arrays)[0]
    spec = f"scout:period={said['selection_window_size']}"
    run = CacheRun(layer_decoder(arrays, said), spec, context=64, chunk=3, batch=prompt)
    logits = run.read([text[: count + 1] for count in range(prompt)])
    found = logits - arrays["hidden"][0, :prompt]
    torch.testing.assert_close(found, arrays["prefill_output"][0], rtol=0, atol=OUTPUTS)


def checkpoint_mask(count: int, period: int) -> Tensor:
    """Which keys a row does not see, [N, N]."""
    row, column = torch.arange(count)[:, None], torch.arange(count)
    return ~((column == row) | ((column < row) & (column % period == period - 1)))


def window_mask(count: int, window: int) -> Tensor:
    """Which keys a row does not see in front of its window, [N, N]."""
    return torch.arange(count)[:, None] - torch.arange(count) >= window


def logits_of(text: Sequence[int], masks: Callable[[int], Tensor]) -> Tensor:
    """Logits behind a text [V], of the weights of an archive and full attention with a mask for each layer."""
    arrays, said = read("tidaldecode", "gqa")
    options = {"num_attention_heads": said["heads"], "num_key_value_heads": said["kv_heads"]}
    llama = Llama(arrays, {**said, **options}, "w.model.layers.")
    embed = arrays["w.model.embed_tokens.weight"].float()
    hidden = embed[torch.tensor([list(text)])]
    for layer in range(said["layers"]):
        hidden = llama.layer(hidden, f"{layer}.", masks(layer))
    last = hidden[0, -1] * (hidden[0, -1].square().mean() + said["rms_norm_eps"]).rsqrt()
    return last * arrays["w.model.norm.weight"].float() @ embed.T


@pytest.mark.parametrize("period", [1, 3, 10])
def test_a_model_is_what_the_mask_says(period: int, tmp_path: Path) -> None:
    """Logits of a whole model, of unequal prompts and steps, against full attention with a mask; 1 is everything."""
    decoder = golden_decoder(FOLDER / "tidaldecode" / "gqa.npz", tmp_path, "llama")

    def logits(text: list[int]) -> Tensor:
        return logits_of(text, lambda layer: checkpoint_mask(len(text), period))

    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, 67, (count,), generator=generator).tolist() for count in (31, 9, 2)]
    run = CacheRun(decoder, f"scout:period={period}", context=64, chunk=8, batch=3)
    for name in run.states:
        run.states[name].fill_(1e30)  # slots that nobody has written
    found = run.read(prompts)
    for token in (None, *range(12)):
        if token is not None:
            prompts = [[*prompt, token] for prompt in prompts]
            found = run.step([token] * 3)
        for row, prompt in enumerate(prompts):
            torch.testing.assert_close(found[row], logits(prompt), rtol=0, atol=2e-4)


def saved_scout(folder: Path, window: int = 6, period: int = 4) -> Path:
    """The model of an archive as one of SCOUT: layers of a window and of checkpoints in turns."""
    golden_decoder(FOLDER / "tidaldecode" / "gqa.npz", folder, "llama")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "scout", "sliding_window": window, "selection_window_size": period}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def scout_logits(text: Sequence[int], window: int = 6, period: int = 4) -> Tensor:
    masks = (window_mask(len(text), window), checkpoint_mask(len(text), period))
    return logits_of(text, lambda layer: masks[layer % 2])


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_a_model_of_windows_and_checkpoints(chunk: int, tmp_path: Path) -> None:
    """Unequal prompts and steps behind them; nothing that it keeps grows with the text but the checkpoints."""
    source = Directory(saved_scout(tmp_path))
    decoder = read_decoder(read_config(source.config, name="scout"), source)
    run = CacheRun(decoder, "none", context=64, chunk=chunk, batch=2)
    texts = [list(range(7, 47)), list(range(20, 25))]
    found = run.read(texts)
    for token in (None, *range(6)):
        if token is not None:
            texts, found = [[*text, token] for text in texts], run.step([token] * 2)
        for row, text in enumerate(texts):
            torch.testing.assert_close(found[row], scout_logits(text), rtol=0, atol=2e-4)
    assert run.states["keys_0"].shape[2] == 6 + chunk - 1 and run.states["keys_1"].shape[2] == (64 + chunk) // 4 + 1
    with pytest.raises(ConfigError, match="but scout keeps a sliding window or checkpoints in every layer"):
        plan_of(decoder.config, Caching(context=64, chunk=8), "scout", parse_spec("kivi"))


def test_bundle(commands: Typed, tmp_path: Path) -> None:
    """Exported and verified; ONNX Runtime gives by the procedure what the masks say, of unequal prompts too."""
    model = saved_scout(tmp_path / "model")
    options = ("--context", 96, "--chunk", 16, "--batch", "1:1:2")
    ended = commands("export", f"hf:{model}", *options, "-o", tmp_path / "bundle", within=400)
    assert ended.code == 0, ended.err
    texts = [list(range(5, 45)), [3, 9, 1]]
    with Session.open(tmp_path / "bundle") as session:
        pair = Sequences(session, batch=2)
        found = pair.read([np.array(text) for text in texts])
        for token in (None, *range(8)):
            if token is not None:
                texts, found = [[*text, token] for text in texts], pair.step([token] * 2)
            for row, text in enumerate(texts):
                np.testing.assert_allclose(found[row], scout_logits(text), rtol=0, atol=2e-4)


def test_bytes_are_those_of_the_checkpoints() -> None:
    arrays, said = read("scout", "gqa_batch")
    run = CacheRun(layer_decoder(arrays, said), "scout:period=4", context=64, chunk=8)
    (site,) = run.plan.sites
    stored, slots = sum(state[0].nbytes for state in run.states.values()), run.states["keys_0"].shape[2]
    assert (site.tokens_in, site.tokens_out, slots) == (64, 16, (64 + 8) // 4 + 1)
    assert site.bytes == stored and site.bytes_per_token == stored / slots / 4


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("scout:period=65", "scout: period=65 is more than the 64 tokens of the context"),
        ("scout+snapkv:budget=40", "snapkv: cannot choose what is kept, as scout keeps the entries of fixed positions"),
        ("scout+kivi", "kivi: scout is the store of layer 0 already"),
    ],
)
def test_what_does_not_go_together_is_refused(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CacheRun(layer_decoder(*read("scout", "mha")), spec, context=64, chunk=8)


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="scout: period=0 is out of range"):
        parse_spec("scout:period=0")
    source = Directory(saved_scout(tmp_path, period=0))
    with pytest.raises(ConfigError, match="selection_window_size = 0; it must be a whole number from 1 on"):
        read_config(source.config, name="scout")
