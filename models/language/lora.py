"""A LoRA adapter of PEFT, merged into the tensors of a model as they are read.

Source: PEFT's adapter_config.json and adapter_model.safetensors (https://github.com/huggingface/peft).
Differs: nothing is kept apart: W + scale * (B @ A), computed in float32 and rounded to the dtype of W.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.foreign import shown
from trt_compress.models.hosts.hf_directory import read_json
from trt_compress.models.hosts.origin import Origin
from trt_compress.models.hosts.safetensors_file import SafetensorsFile
from trt_compress.models.language.source import Assets, Header, LanguageSource, sha256_of_files
from trt_compress.suggest import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from trt_compress.models.layers.blocks import WholeNumbers

_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_FLOATS = ("float32", "float16", "bfloat16")
_OTHER_KINDS: Mapping[str, str] = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "aLoRA",
    "lora_bias": "LoRA with a bias of its own",
    "fan_in_fan_out": "LoRA on transposed weights",
    "modules_to_save": "LoRA with whole modules beside it",
    "trainable_token_indices": "LoRA with trained tokens",
    "target_parameters": "LoRA on parameters that are no linear layers",
    "layer_replication": "LoRA on repeated layers",
    "megatron_config": "LoRA of Megatron",
    "corda_config": "CorDA",
    "arrow_config": "Arrow",
}
"""Keys of adapter_config.json that say it is something else, and what."""
_CHANGE_THE_MODEL = ("pissa", "olora", "corda", "loftq")


class WithLora:
    """A model with an adapter merged into it; `LanguageSource` says what it can do.

    Args:
        base: The model.
        path: The adapter's directory.

    Raises:
        ConfigError: A file is missing or damaged, or the adapter is of another model.
        UnsupportedError: It is something else than LoRA on linear layers.
    """

    def __init__(self, base: LanguageSource, path: Path) -> None:
        self._base, self.path = base, path
        self.name, self.config = base.name, base.config
        self._where = f"lora={path}"
        self._settings = read_json(path / "adapter_config.json")
        self._check_kind()
        self._file = SafetensorsFile.open(path / "adapter_model.safetensors")
        self._ranks = self._paired()
        self.origins: tuple[Origin, ...] = (*base.origins, self._file.origin)

    def names(self) -> tuple[str, ...]:
        """All tensors of the model."""
        return self._base.names()

    def header(self, name: str) -> Header:
        """What a tensor is, without reading it."""
        return self._base.header(name)

    def tensor(self, name: str) -> "Tensor":
        """Read one tensor now, and what the adapter adds to it."""
        tensor = self._base.tensor(name)
        module = name.removesuffix(".weight")
        if module not in self._ranks:
            return tensor
        down, up = (self._file.read(self._ranks[module][side]).float() for side in "AB")
        added = (up @ down) * self._scale(module, down.shape[0])
        return tensor.float().add_(added).to(tensor.dtype)

    def blocks(self, name: str) -> "WholeNumbers | None":
        """As the model's, unless something is added to the tensor."""
        return None if name.removesuffix(".weight") in self._ranks else self._base.blocks(name)

    def assets(self) -> Assets:
        """Those of the model, and a word on the adapter."""
        found = self._base.assets()
        note = f"merged with the LoRA adapter {self.path.name}"
        return replace(found, provenance="; ".join(filter(None, (found.provenance, note))))

    def sha256(self) -> str:
        """Hash of the model's files and the adapter's."""
        self._base.sha256()
        found = sha256_of_files(self.origins)
        self._file.origin.require_unchanged()
        return found

    def _check_kind(self) -> None:
        kind = self._settings.get("peft_type")
        if kind != "LORA":
            raise UnsupportedError(
                f"{self._where}: an adapter of the kind {shown(str(kind))[:40]} is not supported; there is LORA."
            )
        for key, what in _OTHER_KINDS.items():
            if self._settings.get(key):
                raise UnsupportedError(
                    f"{self._where}: {what} ({key}) is not supported; there is LoRA on linear layers."
                )
        started = str(self._settings.get("init_lora_weights")).lower()
        if started.startswith(_CHANGE_THE_MODEL):
            raise UnsupportedError(
                f"{self._where}: an adapter that began with init_lora_weights = {shown(started)[:40]} belongs to a "
                "changed model; convert it to plain LoRA when it is saved (path_initial_model_for_weight_conversion)."
            )
        if self._settings.get("bias", "none") != "none":
            raise UnsupportedError(f"{self._where}: LoRA with trained biases is not supported; there is bias = none.")
        for key in ("r", "lora_alpha"):
            self._positive(key, self._settings.get(key))

    def _positive(self, key: str, value: Any) -> float:
        if type(value) not in (int, float) or not 0 < value < 1e6:
            raise ConfigError(f"{self._where}: {key} = {shown(str(value))[:40]}; it must be a number above 0.")
        return float(value)

    def _paired(self) -> dict[str, dict[str, str]]:
        """Names of A and B by module."""
        found: dict[str, dict[str, str]] = {}
        for name in self._file.tensors:
            place = _NAME.fullmatch(name)
            if place is None:
                raise UnsupportedError(
                    f"{self._where}: '{shown(name)[:100]}' is no part of LoRA on a linear layer; such adapters are not "
                    "supported."
                )
            found.setdefault(place["module"], {})[place["side"]] = name
        known = set(self._base.names())
        for module, sides in found.items():
            if f"{module}.weight" not in known:
                raise ConfigError(
                    f"{self._where} changes '{shown(module)[:100]}', which {self._base.name} does not have; give the "
                    f"adapter of this model.{did_you_mean(module, [name.removesuffix('.weight') for name in known])}"
                )
            if sides.keys() != {"A", "B"}:
                raise ConfigError(f"{self._where}: of '{shown(module)[:100]}' one half is missing; save it again.")
            down, up = (self._file.tensors[sides[side]] for side in "AB")
            whole = self._base.header(f"{module}.weight").shape
            fits = len(down.shape) == len(up.shape) == 2 and down.shape[0] == up.shape[1]
            if not fits or (up.shape[0], down.shape[1]) != tuple(whole):
                raise ConfigError(
                    f"{self._where}: '{shown(module)[:100]}' is {list(up.shape)} times {list(down.shape)}, and that of "
                    f"{self._base.name} is {list(whole)}; give the adapter of this model."
                )
            if not {down.dtype, up.dtype} <= set(_FLOATS):
                raise UnsupportedError(
                    f"{self._where}: '{shown(module)[:100]}' is of {down.dtype}; save it in float32."
                )
            self._scale(module, down.shape[0])
        if not found:
            raise ConfigError(f"{self._where} holds no tensors; save the adapter again.")
        return found

    def _scale(self, module: str, rank: int) -> float:
        alpha = float(self._settings["lora_alpha"])
        patterns = self._settings.get("alpha_pattern") or {}
        for key, value in patterns.items() if isinstance(patterns, dict) else ():
            if not re.fullmatch(r"\^?[\w.]+\$?", key):
                raise UnsupportedError(
                    f"{self._where}: alpha_pattern '{shown(key)[:60]}' is no plain name of a module, which is not "
                    "supported; write the names out."
                )
            plain = key.strip("^$")
            if module == plain or module.endswith(f".{plain}"):
                alpha = self._positive(f"alpha_pattern.{key}", value)
                break
        return alpha / (math.sqrt(rank) if self._settings.get("use_rslora") else rank)
