"""Checkpoints whose linear layers are quantized already, by GPTQ or AWQ: unpacked under the official names.

A layer `X` has no `X.weight`, but whole numbers packed into int32 (`qweight`), zero points packed so too (`qzeros`),
`scales`, and of GPTQ the group of every input (`g_idx`): weight = (number - zero point) * scale.

- GPTQ packs inputs: 32 / bits of them, one after the other, in an int32 from its low end; zero points along outputs.
  Its first form stores zero points less one, the second (`checkpoint_format` "gptq_v2") as they are.
- AWQ (form "gemm") packs outputs, eight in an int32, in the order 0, 2, 4, 6, 1, 3, 5, 7 from its low end.

Source: https://arxiv.org/abs/2210.17323 and https://arxiv.org/abs/2306.00978; the layouts of AutoGPTQ, GPTQModel and
AutoAWQ as their configurations name them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.foreign import shown
from trt_compress.models.hosts.hf_directory import read_json
from trt_compress.models.hosts.origin import Origin
from trt_compress.models.language.directory import Directory
from trt_compress.models.language.source import Assets, Header, no_such_tensor
from trt_compress.suggest import not_known

if TYPE_CHECKING:
    from torch import Tensor

    from trt_compress.models.layers.blocks import WholeNumbers

METHODS = ("gptq", "awq")
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # output of each place in an int32
_BITS = {"gptq": (2, 4, 8), "awq": (4,)}
_FORMS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_MIDDLE = {2: 2, 4: 8, 8: 128}  # of whole numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """How the layers of a checkpoint are packed.

    Attributes:
        method: One of `METHODS`.
        bits: Of a whole number.
        group: Inputs that share a scale; None: all.
        offset: What is added to a zero point that is stored.
        disordered: Inputs that share a scale are no neighbours (desc_act).
    """

    method: str
    bits: int
    group: int | None
    offset: int
    disordered: bool = False

    @property
    def kind(self) -> str:
        """What it is, in a word."""
        return f"{self.method} with desc_act" if self.disordered else self.method


def is_packed(directory: Directory) -> bool:
    """Whether a checkpoint is quantized."""
    return bool(directory.config.get("quantization_config")) or any(
        name.endswith(".qweight") for name in directory.names()
    )


class PackedDirectory:
    """A checkpoint of GPTQ or AWQ; `LanguageSource` says what it can do.

    Args:
        directory: With the parts of the layers as they lie in it.

    Raises:
        ConfigError: Parts are missing or do not fit each other.
        UnsupportedError: Another method, or a form of it that is not read.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.name, self.config = directory.name, directory.config
        self.origins: tuple[Origin, ...] = directory.origins
        self._form = self._read_form()
        self._stored = stored = frozenset(directory.names())
        self._layers = {name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")}
        hidden = {f"{layer}.{part}" for layer in self._layers for part in _PARTS}
        self._names = (
            *(name for name in directory.names() if name not in hidden),
            *(f"{layer}.weight" for layer in sorted(self._layers)),
        )
        self._shapes = {layer: self._shape(layer) for layer in self._layers}

    def names(self) -> tuple[str, ...]:
        """All tensors; of a packed layer its weight."""
        return self._names

    def header(self, name: str) -> Header:
        """What a tensor is, without reading it."""
        layer = name.removesuffix(".weight")
        if layer not in self._layers:
            return self._plain(name).header(name)
        size = sum(
            self._directory.header(f"{layer}.{part}").bytes for part in _PARTS if f"{layer}.{part}" in self._stored
        )
        return Header(self._shapes[layer], "float16", size, self._form.kind)

    def tensor(self, name: str) -> "Tensor":
        """Read one tensor now; a packed weight becomes float16."""
        layer = name.removesuffix(".weight")
        if layer not in self._layers:
            return self._plain(name).tensor(name)
        codes, zeros, scales = self._whole_numbers(layer)
        groups = self._groups(layer)
        found = (codes - zeros[groups]).float().mul_(scales.float()[groups])
        return found.half().t().contiguous()

    def blocks(self, name: str) -> "WholeNumbers | None":
        """Read a packed weight as whole numbers; None: its groups are no neighbours (desc_act), or it is not packed."""
        import torch

        from trt_compress.models.layers.blocks import WholeNumbers

        layer = name.removesuffix(".weight")
        if layer not in self._layers:
            return None
        inputs = self._shapes[layer][1]
        group = self._form.group or inputs
        if not torch.equal(self._groups(layer), torch.arange(inputs) // group):
            return None
        codes, zeros, scales = (part.t().contiguous() for part in self._whole_numbers(layer))
        if bool((scales < 0).any()):
            return None
        bits, middle = self._form.bits, _MIDDLE[self._form.bits]
        if bits == 2 or int(zeros.max()) >= 2 * middle:  # a zero point of 16, which 4 bits do not hold
            whole = codes - zeros.repeat_interleave(group, 1)
            bits = 4 if bits == 2 else 8
            if int(whole.abs().max()) >= 2 ** (bits - 1):
                return None
            return WholeNumbers(bits=bits, group=group, codes=whole.to(torch.int8), scale=scales)
        zero = None if bool((zeros == middle).all()) else (zeros - middle).to(torch.int8)
        return WholeNumbers(bits=bits, group=group, codes=(codes - middle).to(torch.int8), scale=scales, zero=zero)

    def assets(self) -> Assets:
        """Those of the directory, and a word on whole numbers that cannot stay as they are."""
        found = self._directory.assets()
        if not self._form.disordered:
            return found
        note = f"unpacked from {self._form.kind}, whose groups are no neighbours: --weights-bits quantizes it anew"
        return replace(found, provenance="; ".join(filter(None, (found.provenance, note))))

    def sha256(self) -> str:
        """Hash of the files with tensors."""
        return self._directory.sha256()

    def _plain(self, name: str) -> Directory:
        if name.endswith(tuple(f".{part}" for part in _PARTS)):
            raise no_such_tensor(self.name, name, self._names)
        return self._directory

    def _read_form(self) -> _Form:
        given: Any = self.config.get("quantization_config")
        if given is None and (self._directory.path / "quantize_config.json").is_file():
            given = {"quant_method": "gptq", **read_json(self._directory.path / "quantize_config.json")}
        given = given if isinstance(given, Mapping) else {}
        method = str(given.get("quant_method")).lower()
        if method not in METHODS:
            raise UnsupportedError(f"{self.name}: {not_known('quant_method', shown(method)[:60], METHODS)}")
        bits = given.get("bits", given.get("w_bit"))
        group = given.get("group_size", given.get("q_group_size"))
        form = str(given.get("checkpoint_format") or given.get("version") or _FORMS[method][0]).lower()
        if bits not in _BITS[method]:
            raise UnsupportedError(f"{self.name}: {not_known(f'{method}: bits', bits, _BITS[method])}")
        if form not in _FORMS[method]:
            raise UnsupportedError(f"{self.name}: {not_known(f'{method}: form', shown(form)[:60], _FORMS[method])}")
        if given.get("dynamic"):
            raise UnsupportedError(f"{self.name}: layers of different bits (dynamic) are not supported.")
        if type(group) is not int or not (group == -1 or group > 0):
            raise ConfigError(f"{self.name}: group_size = {shown(str(group))[:40]}; it is -1 or a number above 0.")
        return _Form(
            method=method,
            bits=bits,
            group=None if group == -1 else group,
            offset=int((method, form) == ("gptq", "gptq")),
            disordered=method == "gptq" and bool(given.get("desc_act")),
        )

    def _shape(self, layer: str) -> tuple[int, int]:
        """[outputs, inputs] of a layer whose parts fit each other."""
        per = 32 // self._form.bits
        missing = [part for part in _PARTS[:3] if f"{layer}.{part}" not in self._stored]
        if missing:
            raise ConfigError(f"{self.name}: '{shown(layer)[:100]}' has qweight and no {', '.join(missing)}.")
        parts = {
            part: self._directory.header(f"{layer}.{part}") for part in _PARTS if f"{layer}.{part}" in self._stored
        }
        first, second = (*parts["qweight"].shape, 0, 0)[:2]
        inputs, outputs = (first * per, second) if self._form.method == "gptq" else (first, second * per)
        group = self._form.group or inputs
        count = -(-inputs // max(group, 1))
        wanted = {
            "qweight": ((first, second), "int32"),
            "qzeros": ((count, outputs // per), "int32"),
            "scales": ((count, outputs), None),
            "g_idx": ((inputs,), "int32"),
        }
        for part, header in parts.items():
            shape, dtype = wanted[part]
            if header.shape != shape or dtype not in (None, header.dtype) or header.dtype == "bool":
                raise ConfigError(
                    f"{self.name}: '{shown(layer)[:100]}.{part}' is {header.dtype} {list(header.shape)}, and with bits "
                    f"= {self._form.bits} and group_size = {self._form.group or -1} it is {dtype or 'float16'} "
                    f"{list(shape)}."
                )
        if not inputs or not outputs or outputs % per or inputs % group:
            raise ConfigError(
                f"{self.name}: '{shown(layer)[:100]}' is {outputs} x {inputs}, which cannot be packed so."
            )
        return outputs, inputs

    def _whole_numbers(self, layer: str) -> "tuple[Tensor, Tensor, Tensor]":
        """Numbers int16 [inputs, outputs], zero points int16 and scales [groups, outputs]."""
        packed, zeros, scales = (self._directory.tensor(f"{layer}.{part}") for part in _PARTS[:3])
        bits = self._form.bits
        if self._form.method == "awq":
            return _outputs(packed, bits, _AWQ_ORDER), _outputs(zeros, bits, _AWQ_ORDER), scales
        plain = tuple(range(32 // bits))
        numbers = _outputs(packed.t(), bits, plain).t()
        return numbers, _outputs(zeros, bits, plain) + self._form.offset, scales

    def _groups(self, layer: str) -> "Tensor":
        """The group of every input, int64."""
        import torch

        inputs = self._shapes[layer][1]
        group = self._form.group or inputs
        if f"{layer}.g_idx" not in self._stored:
            return torch.arange(inputs) // group
        found = self._directory.tensor(f"{layer}.g_idx").long()
        count = inputs // group
        if int(found.min()) < 0 or int(found.max()) >= count:
            raise ConfigError(
                f"{self.name}: '{shown(layer)[:100]}.g_idx' names a group beyond the {count} that there are."
            )
        return found


def _outputs(packed: "Tensor", bits: int, order: tuple[int, ...]) -> "Tensor":
    """Whole numbers int16 out of int32 [rows, columns]: place p of an int32 is column `order[p]` of its own."""
    import torch

    found = torch.empty((*packed.shape, len(order)), dtype=torch.int16)
    for place, column in enumerate(order):
        found[..., column] = (packed >> (bits * place)) & (2**bits - 1)
    return found.flatten(-2)
