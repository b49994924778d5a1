"""Tiny towers of images as transformers writes them, with random weights and what makes pictures their input."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 24, "patch_size": 4}
CLIP = {**SIZES, "intermediate_size": 24}
TEXTS = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "vocab_size": 20,
    "max_position_embeddings": 8,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "CLIPVisionModel": CLIP,
    "CLIPVisionModelWithProjection": {**CLIP, "projection_dim": 6},
    "CLIPModel": {"vision_config": CLIP, "text_config": TEXTS, "projection_dim": 6},
    "SiglipVisionModel": CLIP,
    "SiglipModel": {"vision_config": CLIP, "text_config": {**TEXTS, "hidden_size": 16}},
    "Siglip2VisionModel": {**{name: CLIP[name] for name in CLIP if name != "image_size"}, "num_patches": 36},
    "Dinov2Model": {**SIZES, "mlp_ratio": 2},
    "Dinov2ForImageClassification": {**SIZES, "mlp_ratio": 2, "num_labels": 5},
    "Dinov2WithRegistersModel": {**SIZES, "mlp_ratio": 2, "use_swiglu_ffn": True, "num_register_tokens": 3},
    "Dinov2WithRegistersForImageClassification": {**SIZES, "mlp_ratio": 2, "num_register_tokens": 3, "num_labels": 5},
    "ViTModel": CLIP,
    "ViTForImageClassification": {**CLIP, "num_labels": 5},
}
EDGE = {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 24, "width": 24}}
WHOLE = {"size": {"height": 24, "width": 24}}
PICTURES = {"do_resize": True, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
NORMAL = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}


def tiny_tower(folder: Path, cls: str, front: dict[str, Any] | None = None, **more: Any) -> Any:
    """Write one, and return transformers' model of it.

    Args:
        folder: Where to; it is there.
        cls: A key of CONFIGS.
        front: What preprocessor_config.json says beside PICTURES and NORMAL; None: it takes the whole picture.
        more: Entries of its configuration.
    """
    base = getattr(transformers, cls)
    torch.manual_seed(0)
    config = base.config_class(**{**CONFIGS[cls], **more})
    config._attn_implementation = "eager"
    model = base(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * (0.3 if parameter.ndim < 2 else 0.2))
    model.save_pretrained(folder)
    written = {**PICTURES, **NORMAL, **(WHOLE if front is None else front)}
    (folder / "preprocessor_config.json").write_text(json.dumps(written))
    return model
