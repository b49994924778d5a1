"""Whisper and AST from a directory against transformers' own models, and how compressors act in them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.arrivals import a_host, arrival_at
from trt_compress.errors import ConfigError, ShapeError, UnsupportedError
from trt_compress.methods import ArtifactFile, CompressorSpec, parse_spec
from trt_compress.methods.audio import FrameStackConfig
from trt_compress.models.compressors.frame_stack import FrameStack
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.hosts.audio import AudioModel, CompressedAudio, WhisperModel, audio_graph
from trt_compress.models.hosts.audio_encoder import AstConfig, WhisperConfig
from trt_compress.models.hosts.registry import load_host

transformers = pytest.importorskip("transformers")
RATE = 16000


def randomise(module: torch.nn.Module) -> None:
    """Weights that matter: transformers' own start near zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.3 if parameter.ndim < 2 else 1.5 / parameter[0].numel() ** 0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def whisper_config(**more: Any) -> Any:
    return transformers.WhisperConfig(
        d_model=32,
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=100,
        max_source_positions=50,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=2,
        **more,
    )


def ast_config(**more: Any) -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    return transformers.ASTConfig(**sizes, max_length=64, num_mel_bins=32, num_labels=5, **more)


Made = tuple[Path, Any]


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """Build a model of transformers with random weights, and write it with save_pretrained."""

    def make(cls: str, config: Any, extractor: Any = None) -> Made:
        torch.manual_seed(0)
        model = getattr(transformers, cls)(config).eval()
        randomise(model)
        path = tmp_path_factory.mktemp(cls)
        model.save_pretrained(path)
        if extractor is not None:
            extractor.save_pretrained(path)
        return path, model

    return make


def sound(samples: int, batch: int = 2) -> Tensor:
    time = torch.arange(samples) / RATE
    rows = [0.3 * torch.sin(6.28 * (300 + 700 * row + 900 * time) * time) for row in range(batch)]
    noise = 0.02 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(1))
    return torch.stack(rows) + noise


def call(module: Any, *inputs: Tensor) -> Any:
    with torch.no_grad():
        return module(*inputs)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    assert ((found - wanted).abs().max() / wanted.abs().max()).item() <= tolerance


# ---- the same numbers as transformers -------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ["WhisperModel", "WhisperForConditionalGeneration"])
@pytest.mark.parametrize("num_mels", [80, 128])
def test_whisper_s_encoder(save: Callable[..., Made], cls: str, num_mels: int) -> None:
    path, model = save(cls, whisper_config(num_mel_bins=num_mels))
    host = load_host(f"hf:{path}")
    ours = host.module
    assert isinstance(ours, WhisperModel) and not ours.num_labels
    features = torch.randn(2, num_mels, 100, generator=torch.Generator().manual_seed(2))
    x = call(ours.encoder.embed, features)
    for layer in ours.encoder.stack:
        x = x + call(layer.attend, x)[0]
        x = x + call(layer.feed, x)
    close(call(ours.encoder.finish, x), call(model.get_encoder(), features).last_hidden_state)


def test_whisper_from_the_waveform(save: Callable[..., Made]) -> None:
    path, model = save("WhisperModel", whisper_config())
    host = load_host(f"hf:{path}")
    audio = sound(RATE)
    extractor = transformers.WhisperFeatureExtractor(chunk_length=1)
    features = extractor(list(audio.numpy()), sampling_rate=RATE, return_tensors="pt")["input_features"]
    wanted = call(model.get_encoder(), features).last_hidden_state
    close(call(host.module, audio), wanted, 1e-4)  # the two front ends differ by up to 1e-4
    (graph,) = host.attach(())
    frames, sizes = call(graph.module, audio)
    assert torch.equal(frames, call(host.module, audio)) and torch.equal(sizes, torch.ones(2, 50))
    assert [spec.shape for spec in graph.outputs] == [("batch", 50, 32), ("batch", 50)]


def test_whisper_with_a_classifier(save: Callable[..., Made]) -> None:
    path, model = save("WhisperForAudioClassification", whisper_config(num_labels=7, classifier_proj_size=16))
    host = load_host(f"hf:{path}")
    audio = sound(RATE)
    ours = host.module
    assert isinstance(ours, AudioModel)
    close(call(ours, audio), call(model, call(ours.frontend, audio)).logits)
    assert host.postprocess["classes"] == 7 and len(host.postprocess["labels"]) == 7


@pytest.mark.parametrize("cls", ["ASTForAudioClassification", "ASTModel"])
def test_ast(save: Callable[..., Made], cls: str) -> None:
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=64, mean=-3.0, std=2.0)
    path, model = save(cls, ast_config(), extractor)
    ours = load_host(f"hf:{path}").module
    assert isinstance(ours, AudioModel) and ours.num_samples == 400 + 63 * 160
    audio = sound(ours.num_samples)
    wanted = extractor(list(audio.numpy()), sampling_rate=RATE, return_tensors="pt")["input_values"]
    close(call(ours.frontend, audio), wanted, 1e-4)
    reference = call(model, call(ours.frontend, audio))
    close(call(ours, audio), reference.logits if cls != "ASTModel" else reference.last_hidden_state)


def test_a_sharded_checkpoint(save: Callable[..., Made], tmp_path: Path) -> None:
    path, _ = save("WhisperModel", whisper_config())
    tensors = load_file(path / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
    audio = sound(RATE)
    whole, sharded = load_host(f"hf:{path}"), load_host(f"hf:{tmp_path}")
    assert torch.equal(call(whole.module, audio), call(sharded.module, audio))


def test_less_audio_is_less_work(save: Callable[..., Made]) -> None:
    path, model = save("WhisperModel", whisper_config())
    host = load_host(f"hf:{path}?seconds=0.81")
    ours = host.module
    assert isinstance(ours, WhisperModel)
    assert (ours.num_samples, ours.num_tokens) == (12960, 40)  # floor(0.81 * 50)
    assert load_host(f"hf:{path}?seconds=0.1").attach(())[0].outputs[0].shape == ("batch", 25, 32)  # at least 25
    frames = call(host.attach(())[0].module, sound(12960))[0]
    features = call(ours.frontend, sound(12960)[:, :12800])
    x = call(model.get_encoder().conv1, features)
    assert frames.shape == (2, 40, 32) and x.shape[-1] == 80


# ---- refused --------------------------------------------------------------------------------------------------------


def edit(path: Path, target: Path, **changes: Any) -> Path:
    config = {**json.loads((path / "config.json").read_text()), **changes}
    (target / "config.json").write_text(json.dumps(config))
    (target / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    return target


def test_other_models_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2"}')
    with pytest.raises(
        UnsupportedError,
        match="model_type 'wav2vec2' is not supported; .*Encoders of audio, text and images are whisper",
    ):
        load_host(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"config\.json holds no model_type; give a directory written by save_pretra"):
        load_host(f"hf:{tmp_path}")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read \(No such file"):
        load_host(f"hf:{tmp_path}/absent")
    with pytest.raises(
        ConfigError,
        match=r"'secs' is not known; there are seconds, tokens, img_size, .*, lora",
    ):
        load_host(f"hf:{tmp_path}?secs=5")
    with pytest.raises(ConfigError, match=r"'seconds=x' is not key=number; write hf:PATH\?seconds=5"):
        load_host(f"hf:{tmp_path}?seconds=x")


def test_tensors_that_do_not_fit_are_named(save: Callable[..., Made], tmp_path: Path) -> None:
    path, _ = save("WhisperModel", whisper_config())
    tensors = load_file(path / "model.safetensors")
    del tensors["encoder.layers.1.fc1.weight"]
    tensors["encoder.layer_norm.bias"] = tensors["encoder.layer_norm.bias"][:31].clone()
    tensors["encoder.layers.9.fc1.bias"] = torch.ones(64)
    edit(path, tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError) as caught:
        load_host(f"hf:{tmp_path}")
    assert "it misses encoder.layers.1.fc1.weight; " in str(caught.value)
    assert "it has more than the model: encoder.layers.9.fc1.bias; " in str(caught.value)
    assert "encoder.layer_norm.bias is [31] instead of [32]" in str(caught.value)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no model\.safetensors; save the model with save_pretrained"):
        load_host(f"hf:{tmp_path}")


def test_variants_that_are_not_driven_say_so(save: Callable[..., Made], tmp_path: Path) -> None:
    path, _ = save("WhisperModel", whisper_config())
    with pytest.raises(UnsupportedError, match="use_weighted_layer_sum is not supported"):
        load_host(f"hf:{edit(path, tmp_path, use_weighted_layer_sum=True)}")
    with pytest.raises(ConfigError, match="activation 'tanh' is not known; there are gelu, relu, silu"):
        load_host(f"hf:{edit(path, tmp_path, activation_function='tanh')}")
    with pytest.raises(ConfigError, match="a width of 32 cannot be split among 5 heads"):
        load_host(f"hf:{edit(path, tmp_path, encoder_attention_heads=5)}")
    with pytest.raises(
        ConfigError, match=r"32000 samples of audio are out of range; this model takes 320 to 16000 \(1 s\)"
    ):
        load_host(f"hf:{path}?seconds=2")
    with pytest.raises(ConfigError, match="patch_size=40 is larger than the spectrogram of 32 x 64"):
        AstConfig(num_mel_bins=32, max_length=64, patch_size=40)
    host = load_host(f"hf:{path}")
    with pytest.raises(ShapeError, match="audio: 15999 samples were given; hf:.* takes 16000 at 16 kHz"):
        call(host.attach(())[0].module, sound(15999))


# ---- compressors in them --------------------------------------------------------------------------------------------


def tiny(labels: int = 0, **more: Any) -> WhisperModel:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_layers": 4, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    config = WhisperConfig(num_mel_bins=40, max_source_positions=50, num_labels=labels, **sizes, **more)
    return WhisperModel(config).eval()


def compress(spec: str, model: AudioModel | None = None) -> CompressedAudio:
    return CompressedAudio(model or tiny(), parse_spec(spec), name="tiny").eval()


@pytest.mark.parametrize(
    ("spec", "tokens", "width"),
    [
        ("none", 50, 32),
        ("frame_pool:stride=4", 12, 32),
        ("frame_pool:stride=4,remainder=keep", 13, 32),
        ("frame_pool:stride=2,layer=1", 25, 32),
        ("frame_pool:stride=3,mode=max,layer=0+frame_stack:stride=5", 3, 160),
        ("atome:merge_ratio=0.5", 8, 32),
        ("fastast:num_merged=6", 26, 32),
        ("tome:num_merged=4", 34, 32),
        ("frame_stack", 10, 160),
    ],
)
def test_what_leaves(spec: str, tokens: int, width: int) -> None:
    module = compress(spec)
    frames, sizes = call(module, sound(RATE))
    assert frames.shape == (2, tokens, width)
    assert (module.tokens_out, module.width_out) == (tokens, width)
    dropped = "remainder" not in spec and ("pool" in spec or "stack" in spec)
    if not dropped and spec != "none":
        assert torch.equal(sizes.sum(dim=1), torch.full((2,), 50.0))


def test_detached_is_the_model() -> None:
    model, audio = tiny(labels=5), sound(RATE)
    assert torch.equal(call(compress("none", model), audio), call(model, audio))
    assert compress("atome", model).detach() is model


def test_a_pooled_classifier_needs_its_width() -> None:
    with pytest.raises(ConfigError, match="frame_stack: tiny has a classifier for frames of 32 channels, and 160"):
        compress("frame_stack", tiny(labels=5))
    assert call(compress("frame_pool:stride=7,remainder=keep", tiny(labels=5)), sound(RATE)).shape == (2, 5)


def test_pooling_a_constant_changes_nothing() -> None:
    """Frames that are all alike: their mean, maximum and last are the frame itself."""
    model = tiny(labels=5)
    quiet = torch.zeros(1, RATE)
    with torch.no_grad():
        model.encoder.embed_positions.weight.zero_()
        for conv in (model.encoder.conv1, model.encoder.conv2):
            conv.weight[..., 0] = conv.weight[..., 2] = 0  # no border
    wanted = call(compress("none", model), quiet)
    for spec in ("frame_pool:stride=5,layer=1", "frame_pool:stride=5,mode=max", "atome", "fastast:num_merged=9"):
        torch.testing.assert_close(call(compress(spec, model), quiet), wanted, atol=1e-5, rtol=0)


def test_adjacent_merging_against_a_loop() -> None:
    """A-ToMe's segments, frame by frame: cut the least similar links, and average what is between the cuts."""
    from trt_compress.methods.audio import AtomeConfig
    from trt_compress.models.compressors.atome import Atome
    from trt_compress.models.compressors.passing import Taps, Tokens

    generator = torch.Generator().manual_seed(5)
    x, keys = torch.randn(3, 21, 8, generator=generator), torch.randn(3, 21, 4, generator=generator)
    size = torch.randint(1, 5, (3, 21, 1), generator=generator).float()
    step = Atome(AtomeConfig(merge_ratio=0.6, layers=(0,)), arrival_at(a_host(1, 21, 2)))
    state = step(Tokens(x=x, size=size), Taps(keys=keys))
    assert step.num_merged == 10 and step.tokens_out == 11 and state.size is not None
    for item in range(3):
        k = keys[item, 2:].double().numpy()
        cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(k, k[1:], strict=False)]
        merged = set(np.argsort(-np.array(cosine), kind="stable")[:10].tolist())
        segments: list[list[int]] = [[2]]
        for link in range(18):
            if link in merged:
                segments[-1].append(link + 3)
            else:
                segments.append([link + 3])
        for place, frames in enumerate([[0], [1], *segments]):
            weights = size[item, frames]
            torch.testing.assert_close(state.x[item, place], (x[item, frames] * weights).sum(0) / weights.sum())
            assert state.size[item, place] == weights.sum()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("frame_pool:stride=0", r"frame_pool: stride=0 is out of range; give 1 or more\."),
        ("frame_pool:stride=51", r"frame_pool: stride=51 is larger than the 50 frames of tiny there; give at most 50"),
        ("frame_stack:stride=0", r"frame_stack: stride=0 is out of range"),
        ("frame_stack:stride=60", r"frame_stack: stride=60 is larger than the 50 frames of tiny; give at most 50"),
        ("atome:merge_ratio=1.0", r"atome: merge_ratio=1\.0 is out of range; it is the share of links that merge"),
        ("atome:merge_ratio=[0.1,0.2]", r"atome: merge_ratio lists 2 ratios; give layers= with as many layers"),
        ("atome:layers=[4]", r"atome: layers=\[4\] names layer 4, but tiny has layers 0\.\.3"),
        ("fastast:num_merged=-1", r"fastast: num_merged=-1 is negative"),
        ("frame_stack:projector=/absent.safetensors", r"/absent\.safetensors was not read and compared with the weig"),
    ],
)
def test_bad_settings(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compress(spec)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"linear2": (4, 8)},
            r"has linear2\.bias, linear2\.weight; a projector is linear1\.bias, linear1\.weight, lin",
        ),
        ({"linear1": (8, 99)}, r"linear1\.weight \[8, 99\]; here they must be \[hidden, 160\]"),
        (
            {"linear1": (8, 160), "linear2": (4, 9)},
            r"linear2\.weight \[4, 9\]; here they must be .*hidden\]\. Check st",
        ),
    ],
)
def test_a_projector_that_does_not_fit(tensors: dict[str, tuple[int, int]], message: str) -> None:
    model = tiny()
    config = FrameStackConfig(projector=ArtifactFile("p", projector_file(tensors)))
    with pytest.raises(ConfigError, match=message):
        CompressedAudio(model, [CompressorSpec(name="frame_stack", config=config)], name="tiny")


def projector_file(layers: dict[str, tuple[int, int]]) -> bytes:
    tensors = {f"{name}.weight": torch.ones(shape) for name, shape in layers.items()}
    return safetensors.torch.save(tensors | {f"{name}.bias": torch.ones(shape[0]) for name, shape in layers.items()})


def test_a_classifier_by_prefix_tokens_keeps_them(save: Callable[..., Made]) -> None:
    path, _ = save("ASTForAudioClassification", ast_config())
    host = load_host(f"hf:{path}")
    projector = ArtifactFile("p", projector_file({"linear1": (32, 64)}))
    config = FrameStackConfig(stride=2, projector=projector)
    with pytest.raises(ConfigError, match="classifies by its class and distillation tokens, which it drops; pool with"):
        audio_graph(cast(AudioModel, host.module), [CompressorSpec(name="frame_stack", config=config)], name="tiny")
    (graph,) = host.attach(parse_spec("frame_pool:stride=2"))
    assert [(site.tokens_in, site.tokens_out) for site in graph.module.plan] == [(12, 7)]


# ---- its first layers alone -----------------------------------------------------------------------------------------


def shallower(model: WhisperModel, layers: int) -> WhisperModel:
    """A model that was made with so many layers, with the tensors that another one has for them."""
    made = WhisperModel(
        replace(model.encoder.config, encoder_layers=layers),
        num_samples=model.num_samples,
        clip_range=model.frontend.clip_range,
    )
    kept = {name for name, _ in made.named_parameters()}
    made.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in kept}, strict=False)
    return made.eval()


def test_first_layers_are_the_model_that_has_no_others() -> None:
    model = tiny(labels=5)
    whole = compress("tome:num_merged=[6,4,4,2]+frame_pool:stride=3,remainder=keep", model)
    short = whole.first_layers(2)
    assert [(site.name, site.tokens_in, site.tokens_out) for site in short.plan] == [
        ("blocks.0", 50, 44),
        ("blocks.1", 44, 40),
        ("encoder_output", 40, 14),
    ]
    wanted = compress("tome:num_merged=[6,4]+frame_pool:stride=3,remainder=keep", shallower(model, 2))
    audio = sound(RATE)
    assert torch.equal(call(short, audio), call(wanted, audio))
    own = {tensor.data_ptr() for tensor in model.parameters()}
    assert {tensor.data_ptr() for tensor in short.parameters()} < own  # no copies, and nothing of the last layers
    assert len(whole.plan) == 5 and whole.model is model and len(model.encoder.layers) == 4


def test_first_layers_keep_what_is_trained_behind_them() -> None:
    config = FrameStackConfig(stride=5, projector=ArtifactFile("p", projector_file({"linear1": (8, 160)})))
    specs = [*parse_spec("tome:num_merged=[0,3,4]"), CompressorSpec(name="frame_stack", config=config)]
    whole = CompressedAudio(tiny(), specs, name="tiny").eval()
    (step,) = whole.placed.steps("encoder_output")
    assert isinstance(step, FrameStack) and step.projector is not None
    step.projector.linear1 = torch.nn.Linear(160, 8)  # as quantization puts another one there
    short = whole.first_layers(2)
    (left,) = short.placed.steps("encoder_output")
    assert isinstance(left, FrameStack) and left.projector is step.projector
    assert (step.tokens_in, left.tokens_in) == (43, 47) and call(short, sound(RATE))[0].shape == (2, 9, 8)


def test_first_layers_of_ast(save: Callable[..., Made]) -> None:
    path, _ = save("ASTForAudioClassification", ast_config())
    (graph,) = load_host(f"hf:{path}").attach(parse_spec("fastast:num_merged=1"))
    assert graph.layers is not None and graph.layers.count == 3
    short = graph.layers.first(1)
    model = cast(AudioModel, short.module.model)
    audio = sound(model.num_samples)
    with torch.no_grad():
        wanted = one_layer(model, cast(CompressedAudio, graph.module).placed.steps("blocks.0")[0], audio)
    close(call(short.module, audio), wanted)
    assert short.outputs == graph.outputs and [site.name for site in short.module.plan] == ["blocks.0"]


def one_layer(model: AudioModel, step: Any, audio: Tensor) -> Tensor:
    """The classifier on what one layer with a method makes of sound, written out."""
    layer = model.encoder.stack[0]
    x = model.embed(audio)
    update, found, _ = layer.attend(x, wanted=frozenset({"keys"}))
    taps = Taps()
    taps.put(0, found)
    tokens = step(Tokens(x=x + update), taps.seen_from(0, None))
    x = tokens.x + layer.feed(tokens.x)
    return model.head(model.encoder.finish(x), tokens.size)
