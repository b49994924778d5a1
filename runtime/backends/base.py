"""What a session needs of the library that runs its graphs.

An `Executable` is one loaded graph. A `Buffer` is memory of its device that holds a state, and a `Binding` ties buffers
to the inputs and outputs of a graph, once: what runs in a steady state runs bindings, and copies no state. A backend
whose memory is a GPU's keeps states there; what a caller gives and takes is in numpy arrays.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_CARRIERS = {"bfloat16": "uint16"} | dict.fromkeys(
    ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0"), "uint8"
)


def carrier(dtype: str) -> np.dtype[Any]:
    """What carries the bits of a dtype in numpy: the dtype itself, or integers as wide where numpy lacks it.

    Raises:
        TypeError: Nothing does; its values have no byte of their own.
    """
    return np.dtype(_CARRIERS.get(dtype, dtype))


class Buffer(Protocol):
    """Memory of the device that holds one tensor.

    Attributes:
        shape: Of the tensor.
        dtype: Its dtype, by the name that the manifest has for it.
        value: What the backend knows it by.
    """

    shape: tuple[int, ...]
    dtype: str
    value: Any

    @property
    def address(self) -> int:
        """Where it begins, on the device."""
        ...

    def read(self) -> Array:
        """The content in `carrier(dtype)`: the memory itself where the device is the CPU, elsewhere a copy."""
        ...


class Binding(Protocol):
    """A graph with memory tied to its states; for one thread at a time."""

    def run(self, inputs: Mapping[str, Array], held: Mapping[str, Buffer]) -> tuple[dict[str, Array], list[Buffer]]:
        """Run the graph.

        Args:
            inputs: Every input that is no state, by bare name.
            held: States whose memory is another one in each run, by the input that takes them.

        Returns:
            Every output that is no state, and the memory of those that the binding was told to make.

        Raises:
            UnsupportedError: The backend failed.
        """
        ...


class Executable(Protocol):
    """One loaded graph of any backend. Several threads may run it, each with bindings of its own.

    Attributes:
        files: What was read of the bundle for it.
        in_place: The output of a state → its input, where the two may have the same memory: a single native operator
            writes it, in place, and nothing reads the old value after it.
    """

    @property
    def files(self) -> frozenset[str]: ...  # noqa: D102

    @property
    def in_place(self) -> Mapping[str, str]: ...  # noqa: D102

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph on all of its inputs and return all of its outputs, by bare name.

        Raises:
            UnsupportedError: The backend failed.
        """
        ...

    def buffer(self, content: Array, dtype: str) -> Buffer:
        """Memory of the device with this content, which is given away: on the CPU it becomes the memory."""
        ...

    def bind(self, reads: Mapping[str, Buffer], writes: Mapping[str, Buffer], makes: Sequence[str]) -> Binding:
        """Tie memory to states.

        Args:
            reads: By input.
            writes: By output; the memory of the input, for those of `in_place`.
            makes: Outputs whose memory each run makes.
        """
        ...
