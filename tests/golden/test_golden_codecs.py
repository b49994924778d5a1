"""WavTokenizer and XY-Tokenizer against the papers' own code: head, encoder, decoder, codebooks, checkpoint names.

WavTokenizer (jishengpeng/WavTokenizer 5cf440d), XY-Tokenizer (gyt1145028706/XY-Tokenizer 5df5609).
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.golden_data import assert_close, cases_on_disk, read
from trt_compress.models.hosts import codec_wavtokenizer, codec_xytokenizer
from trt_compress.models.hosts.codec_wavtokenizer import WavTokenizer
from trt_compress.models.hosts.codec_xytokenizer import (
    ResidualCodebooks,
    StackConfig,
    XyTokenizer,
    XyTokenizerConfig,
)
from trt_compress.models.hosts.vocos import IstftHead, VocosConfig
from trt_compress.models.hosts.weights import load_tensors

MODEL_TOLERANCE = 1e-5  # of the largest value: float32 through all of a tiny codec, in the order of theirs


def test_every_case_is_compared() -> None:
    assert cases_on_disk("wavtokenizer_model") == cases_on_disk("xytokenizer_model") == {"tiny"}


def run(module: Any, *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = module(*inputs)
    return out


@pytest.mark.parametrize("case", ["istft_head", "istft_head_hop_quarter", "istft_one_frame"])
def test_head(case: str) -> None:
    arrays, meta = read("wavtokenizer_istft", case)
    head = IstftHead(meta["dim"], meta["n_fft"], meta["hop"])
    head.out.load_state_dict({"weight": arrays["weight"], "bias": arrays["bias"]})
    found = run(head, arrays["x"])
    for item, wanted in zip(found, arrays["audio"], strict=True):  # the item with cut magnitudes is large
        assert_close(item, wanted, MODEL_TOLERANCE)


def weights_of(method: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    arrays, meta = read(method, "tiny")
    weights = {name[2:]: value.float() for name, value in arrays.items() if name.startswith("w.")}
    return weights, {name: value for name, value in arrays.items() if not name.startswith("w.")}, meta


def wavtokenizer(num_samples: int) -> WavTokenizer:
    weights, _, _ = weights_of("wavtokenizer_model")
    tensors = codec_wavtokenizer.official_tensors(weights, "golden")
    codec = WavTokenizer(codec_wavtokenizer.config_of(tensors, "golden"), num_samples=num_samples)
    load_tensors(codec, tensors, "golden")
    return codec.eval()


def test_wavtokenizer_s_sizes_are_read_from_its_tensors() -> None:
    _, _, meta = weights_of("wavtokenizer_model")
    config = wavtokenizer(800).config
    assert (list(config.strides), config.filters, config.dimension) == (meta["strides"], 2, meta["dimension"])
    backbone = config.backbone
    assert (backbone.dim, backbone.intermediate_dim, backbone.num_layers) == (32, 48, 2)
    assert (backbone.n_fft, backbone.hop, backbone.adanorm_num_embeddings) == (meta["n_fft"], meta["hop"], 4)
    assert backbone.position_net and config.codebook_size == 32


@pytest.mark.parametrize("case", ["whole", "one_more", "one_less", "short"])
def test_wavtokenizer_encodes(case: str) -> None:
    _, arrays, _ = weights_of("wavtokenizer_model")
    audio, wanted = arrays[f"audio_{case}"].float(), arrays[f"frames_{case}"]
    codec = wavtokenizer(audio.shape[1])
    found = run(codec.encoder, audio[:, None])
    assert_close(found, wanted, MODEL_TOLERANCE)
    codes = run(codec.encode, audio)
    assert codes.shape == (2, -(-audio.shape[1] // 40), 1) == (2, codec.num_frames, 1)
    distance = torch.cdist(wanted.transpose(1, 2).double(), codec.codebook.double())
    assert torch.equal(codes[..., 0], distance.argmin(dim=2))
    assert run(codec.decode, codes).shape == (2, codec.num_frames * 40)
    assert run(codec, audio).shape == audio.shape


def test_wavtokenizer_decodes() -> None:
    _, arrays, _ = weights_of("wavtokenizer_model")
    found = run(wavtokenizer(800).decode_frames, arrays["features"].float().transpose(1, 2))
    assert_close(found, arrays["decoded"], MODEL_TOLERANCE)


def xy_config() -> XyTokenizerConfig:
    """The sizes by hand: heads are two here, and 64 wide in a real checkpoint, which does not tell them."""
    into = {"semantic_encoder": 10, "acoustic_encoder": 10, "pre_rvq_adapter": 32, "post_rvq_adapter": 64}
    out = {"post_rvq_adapter": 64, "acoustic_decoder": 10}
    names = (*into, "semantic_encoder_adapter", "acoustic_decoder")
    stacks = {
        name: StackConfig(
            channels_in=into.get(name, 16),
            width=16,
            channels_out=out.get(name, 16),
            layers=1,
            ffn=24,
            heads=2,
            positions=50,
        )
        for name in names
    }
    vocos = VocosConfig(input_channels=10, dim=16, intermediate_dim=24, num_layers=2, n_fft=640, hop=160)
    return XyTokenizerConfig(num_mels=10, stacks=stacks, rvq_dim=12, stages=3, codebook_size=16, vocos=vocos)


def xytokenizer() -> XyTokenizer:
    weights, _, _ = weights_of("xytokenizer_model")
    codec = XyTokenizer(xy_config(), num_samples=40 * 160)
    load_tensors(codec, codec_xytokenizer.official_tensors(weights, "golden"), "golden")
    return codec.eval()


def test_xytokenizer_s_sizes_are_read_from_its_tensors() -> None:
    weights, _, _ = weights_of("xytokenizer_model")
    found = codec_xytokenizer.config_of(codec_xytokenizer.official_tensors(weights, "golden"), "golden")
    wanted = xy_config()
    assert found.vocos == wanted.vocos and (found.rvq_dim, found.stages, found.codebook_size) == (12, 3, 16)
    for name, stack in wanted.stacks.items():
        ours = found.stacks[name]
        assert (ours.channels_in, ours.width, ours.channels_out) == (stack.channels_in, 16, stack.channels_out), name
        assert (ours.layers, ours.ffn, ours.positions) == (1, 24, 50)


def test_xytokenizer_encodes_and_decodes() -> None:
    _, arrays, _ = weights_of("xytokenizer_model")
    codec = xytokenizer()
    frames = run(codec.frames_of_mel, arrays["mel"].float())
    assert_close(frames, arrays["frames"], MODEL_TOLERANCE)
    wanted = arrays["codes"].long().permute(1, 2, 0)
    assert torch.equal(run(codec.quantizer.encode, arrays["frames"]), wanted)
    assert_close(run(codec.mel_of_codes, wanted), arrays["mel_decoded"], MODEL_TOLERANCE)
    assert_close(run(codec.decode, wanted), arrays["audio"], MODEL_TOLERANCE)


@pytest.mark.parametrize("case", ["rvq", "rvq_no_projection"])
def test_xytokenizer_s_codebooks(case: str) -> None:
    arrays, meta = read("xytokenizer", case)
    codebooks = arrays["codebooks"]
    sizes = {"stages": codebooks.shape[0], "codebook_size": codebooks.shape[1], "rvq_dim": codebooks.shape[2]}
    config = XyTokenizerConfig(num_mels=10, stacks={}, vocos=xy_config().vocos, **sizes)
    module = ResidualCodebooks(meta["input_dim"], config, meta["output_dim"])
    names = {
        f"{part}_{kind}": f"{part}.{kind}" for part in ("input_proj", "output_proj") for kind in ("weight", "bias")
    }
    given = {name: arrays[array] for array, name in names.items() if array in arrays}
    module.load_state_dict({"codebooks": codebooks, **given})
    codes = run(module.encode, arrays["z"])
    for item, length in enumerate(arrays["lengths"].tolist()):  # behind it the original searches for zeros
        assert torch.equal(codes[item, :length], arrays["codes"][:, item, :length].T)
    assert_close(run(module.decode, arrays["codes"].permute(1, 2, 0)), arrays["decoded"], MODEL_TOLERANCE)


@pytest.mark.parametrize(("channels_in", "inner", "channels_out"), [(20, 16, 18), (16, 16, 18), (20, 16, 16)])
def test_xytokenizer_s_codebooks_take_widths_apart(channels_in: int, inner: int, channels_out: int) -> None:
    """The official quantizer projects where a width differs from the codes', on each side by itself."""
    config = XyTokenizerConfig(
        num_mels=10, stacks={}, vocos=xy_config().vocos, rvq_dim=inner, stages=3, codebook_size=32
    )
    module = ResidualCodebooks(channels_in, config, channels_out)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    given = {name: tensor for name, tensor in module.state_dict().items()}
    assert ("input_proj.weight" in given, "output_proj.weight" in given) == (
        channels_in != inner,
        channels_out != inner,
    )
    z = torch.randn(2, channels_in, 5, generator=generator)

    def projected(x: Tensor, name: str) -> Tensor:
        if f"{name}.weight" not in given:
            return x
        return torch.einsum("oi,bif->bof", given[f"{name}.weight"][..., 0], x) + given[f"{name}.bias"][:, None]

    residual, summed = projected(z, "input_proj").transpose(1, 2), torch.zeros(2, 5, inner)
    wanted = []
    for words in given["codebooks"]:
        wanted.append(torch.cdist(residual, words[None].expand(2, -1, -1)).argmin(dim=2))
        residual, summed = residual - words[wanted[-1]], summed + words[wanted[-1]]
    codes = run(module.encode, z)
    assert torch.equal(codes, torch.stack(wanted, dim=2))
    assert_close(run(module.decode, codes), projected(summed.transpose(1, 2), "output_proj"), MODEL_TOLERANCE)


def test_a_checkpoint_s_widths_behind_the_codebooks_are_its_own() -> None:
    """An adapter that takes 40 channels where 64 were encoded, a decoder of half the width of what was encoded."""
    config = xy_config()
    narrow = {
        "post_rvq_adapter": replace(config.stacks["post_rvq_adapter"], channels_in=40, channels_out=48),
        "acoustic_decoder": replace(config.stacks["acoustic_decoder"], width=8, channels_in=8),
    }
    config = replace(config, stacks={**config.stacks, **narrow})
    torch.manual_seed(0)
    whole = XyTokenizer(config, num_samples=40 * 160).eval()
    tensors = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("frontend.")}
    books = tensors.pop("quantizer.codebooks")
    saved = {**tensors, **{f"quantizer.quantizers.{stage}.codebook": book for stage, book in enumerate(books)}}
    named = codec_xytokenizer.official_tensors(saved, "made")
    found = codec_xytokenizer.config_of(named, "made")
    assert found.stacks["post_rvq_adapter"].channels_in == 40 and found.stacks["acoustic_decoder"].width == 8
    codec = XyTokenizer(config, num_samples=40 * 160).eval()
    load_tensors(codec, named, "made")
    codes = torch.arange(3 * 5).reshape(1, 5, 3) % 16
    assert_close(run(codec.decode, codes), run(whole.decode, codes), MODEL_TOLERANCE)
