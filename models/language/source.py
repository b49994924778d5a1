"""What a language model is read from, whatever wrote it: configuration and tensors under the names of Hugging Face."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from trt_compress.digest import sha256
from trt_compress.errors import ConfigError
from trt_compress.foreign import shown
from trt_compress.format.text import Text
from trt_compress.models.hosts.origin import Origin
from trt_compress.suggest import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from trt_compress.models.layers.blocks import WholeNumbers


class Header(NamedTuple):
    """What is known of a tensor before it is read.

    Attributes:
        shape: As torch has it: [outputs, inputs] of a linear layer.
        dtype: What `tensor` gives, as torch calls it: blocks of whole numbers become "float16".
        bytes: In the file.
        kind: What it is there: the same, or the kind of its blocks: "q4_1", "awq".
    """

    shape: tuple[int, ...]
    dtype: str
    bytes: int
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assets:
    """What belongs to a model beside its tensors, and travels in its bundle.

    Attributes:
        files: Path in the bundle → content.
        text: What makes tokens of a text; None: the model came without a tokenizer.
        license: What its makers call the licence; None: they do not say.
        license_files: Of `files`, the licence as it came.
        provenance: What was done to the tensors, in words; None: nothing.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    text: Text | None = None
    license: str | None = None
    license_files: tuple[str, ...] = ()
    provenance: str | None = None


class LanguageSource(Protocol):
    """A language model that is opened and not read yet.

    Attributes:
        name: As the user wrote it, for messages: `hf:DIR`.
        config: What stands in Hugging Face's config.json, or would.
        origins: The files that hold tensors.
    """

    @property
    def name(self) -> str: ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def origins(self) -> tuple[Origin, ...]: ...

    def names(self) -> tuple[str, ...]:
        """All tensors, by the names that Hugging Face gives them."""
        ...

    def header(self, name: str) -> Header:
        """What a tensor is, without reading it.

        Raises:
            ConfigError: There is none of that name.
        """
        ...

    def tensor(self, name: str) -> "Tensor":
        """Read one tensor now, into memory that belongs to it alone; half precision stays half, blocks become float16.

        Raises:
            ConfigError: There is none of that name, or its file was changed or cut meanwhile.
        """
        ...

    def blocks(self, name: str) -> "WholeNumbers | None":
        """Read one tensor as the whole numbers that it is stored in; None: it is stored otherwise."""
        ...

    def assets(self) -> Assets:
        """What belongs to the model beside its tensors.

        Raises:
            ConfigError: A file is damaged, or the tokenizer does not fit the model.
        """
        ...

    def sha256(self) -> str:
        """Hash of the files with tensors: of one its own, of several that of the lines sha256sum writes of them.

        Raises:
            ConfigError: One was changed since it was opened; ask after the last tensor.
        """
        ...


def no_such_tensor(source: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a tensor that is not there."""
    return ConfigError(f"{source} has no tensor '{shown(name)[:100]}'.{did_you_mean(name, known)}")


def sha256_of_files(origins: Iterable[Origin]) -> str:
    """Hash of one file; of several, of the lines that sha256sum writes of them: hash, two spaces, name.

    Raises:
        ConfigError: One cannot be read.
    """
    hashes = {origin.path.name: origin.sha256 for origin in origins}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return sha256("".join(f"{hash_}  {name}\n" for name, hash_ in sorted(hashes.items())).encode())
