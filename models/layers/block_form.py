"""The form of quantized weights as a user writes it: `8`, `4`, or with the size of a block `4:128`."""

from dataclasses import dataclass, replace

from trt_compress.errors import ConfigError

GROUPS = (16, 32, 64, 128, 256)
"""What ONNX Runtime and TensorRT have kernels for."""
DEFAULT_GROUP = 32
BLOCKED_OPSET = 21
"""The first whose DequantizeLinear takes blocks, and 4 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockForm:
    """Bits of a weight (8 or 4), and how many inputs of an output share a scale, at most."""

    bits: int
    group: int = DEFAULT_GROUP

    def __str__(self) -> str:
        return f"{self.bits}:{self.group}"

    def dividing(self, inputs: int) -> "BlockForm | None":
        """The form with the largest group, up to this one, that divides the inputs of a layer; None: none does."""
        group = next((group for group in reversed(GROUPS) if group <= self.group and inputs % group == 0), None)
        return None if group is None else replace(self, group=group)

    @classmethod
    def parse(cls, text: str) -> "BlockForm":
        """Read `8`, `4` or `4:128`.

        Raises:
            ConfigError: It is none of these.
        """
        bits, colon, group = text.partition(":")
        if bits in ("8", "4") and (not colon or group in map(str, GROUPS)):
            return cls(bits=int(bits), group=int(group) if colon else DEFAULT_GROUP)
        raise ConfigError(
            f"weights_bits={text[:40]!r} is not a form of weights; give 8 or 4, or with the weights that share a scale "
            f"8:GROUP or 4:GROUP, where GROUP is one of {', '.join(map(str, GROUPS))}."
        )
