"""Artifacts: what calibration or training made for a method, in one file that an option of the method names.

A file is one of safetensors. Its metadata say what it is: for which method and option and in which version of their
form, for which settings and weights, from which data, under which licence, and what hash the whole file has. Nothing
of it is used before all of that has been compared.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trt_compress.digest import Sha256, sha256
from trt_compress.errors import ConfigError
from trt_compress.files import read_regular
from trt_compress.foreign import reading, reason_of, shown, strict_json

DOCUMENT = "trt-compress artifact"
LARGEST = 2 << 30
_LONGEST_HEADER = 64 << 20
_HASH = '"content_sha256":"{}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactForm:
    """What a method says of the artifact that one of its options takes.

    Attributes:
        summary: What it is, as the end of `FILE: …`.
        version: Of its tensors: their names, shapes and meaning.
        settings: Other options of the method that it depends on; it is refused for other values.
        needs_data: It is made from data; False: the method makes samples of its own where none are given.
    """

    summary: str
    version: int = 1
    settings: tuple[str, ...] = ()
    needs_data: bool = True


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """The value of an option that takes an artifact.

    Attributes:
        path: Where it lies; of a bundle's own its name there.
        content: The file, once it has been read and its card checked; then `path` is a name and nothing more.
    """

    path: str
    content: bytes | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactCard:
    """What an artifact says of itself.

    Attributes:
        method: The method that it is for.
        option: The option of it.
        version: The version of its form.
        settings: What the options were that it depends on.
        weights: The weights that it was made for, in words.
        weights_sha256: Their hash, as a manifest has it.
        data: The file that it was made from, in words.
        data_sha256: Its hash.
        data_count: Samples in it; 0: tensors that were trained elsewhere.
        score: How well it does on samples that were held out, by the name of the measure.
        license: Of it, and of the data as far as these matter; None: nobody has said.
        made_with: The version of trt-compress that made it.
        content_sha256: Hash of the file with zeros in place of this hash.
    """

    method: str
    option: str
    version: int
    settings: Mapping[str, Any]
    weights: str
    weights_sha256: str
    data: str
    data_sha256: str
    data_count: int
    score: Mapping[str, float]
    license: str | None
    made_with: str
    content_sha256: str = "0" * 64

    def metadata(self) -> dict[str, str]:
        """The metadata of the file, which are texts."""
        return {
            "document": DOCUMENT,
            "method": self.method,
            "option": self.option,
            "version": str(self.version),
            "settings": json.dumps(dict(self.settings), sort_keys=True),
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "data": self.data,
            "data_sha256": self.data_sha256,
            "data_count": str(self.data_count),
            "score": json.dumps(dict(self.score), sort_keys=True),
            **({} if self.license is None else {"license": self.license}),
            "made_with": self.made_with,
            "content_sha256": self.content_sha256,
        }

    def require_weights(self, where: str, *, source: str, sha256: str) -> None:
        """Refuse weights that are others than those that it was made for.

        Raises:
            ConfigError: They are.
        """
        if sha256 != self.weights_sha256:
            raise ConfigError(
                f"{self.method}: {self.option} {shown(where)} was made for other weights than these: for "
                f"{shown(self.weights)} (sha256 {self.weights_sha256[:12]}…), not {shown(source)} (sha256 "
                f"{sha256[:12]}…); make one for them with `trt-compress calibrate`."
            )


def with_card(content: bytes, card: ArtifactCard) -> bytes:
    """A safetensors file with a card; the same tensors and card make the same bytes.

    Args:
        content: The file without metadata.
        card: Its `content_sha256` is filled in here.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    metadata = {**card.metadata(), "content_sha256": "0" * 64}
    header = json.dumps({"__metadata__": metadata, **json.loads(content[8:end])}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    whole = len(header).to_bytes(8, "little") + header + content[end:]
    zeros, digest = _HASH.format("0" * 64).encode(), sha256(whole)
    return whole.replace(zeros, _HASH.format(digest).encode(), 1)


def read_artifact(file: ArtifactFile, *, method: str, option: str) -> tuple[ArtifactFile, ArtifactCard]:
    """The file with its content, and its card, which fits the content.

    Raises:
        ConfigError: It cannot be read, is no artifact, or not as it was written.
    """
    where, content = f"{method}: {option} {shown(file.path)}", file.content
    if content is None:
        try:
            content = read_regular(Path(file.path), limit=LARGEST)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{where} cannot be read ({reason_of(error)}); give {method} a {option}=FILE that `trt-compress "
                "calibrate` has written."
            ) from None
    return ArtifactFile(file.path, content), _card(content, where, method, option)


def _card(content: bytes, where: str, method: str, option: str) -> ArtifactCard:
    length = int.from_bytes(content[:8], "little")
    metadata: Any = None
    with reading(where, "copy it again, or make it again with `trt-compress calibrate`"):
        if content[8:9] != b"{" or not 2 <= length <= min(_LONGEST_HEADER, len(content) - 8):
            raise ValueError("it is no whole safetensors file")
        metadata = strict_json(content[8 : 8 + length], limit=_LONGEST_HEADER).get("__metadata__")
    if not isinstance(metadata, dict) or not {"document", "content_sha256"} & metadata.keys():
        raise ConfigError(
            f"{where} holds tensors without saying what they were made for; make an artifact of them with "
            f"`trt-compress calibrate MODEL --compress {method}:… --tensors FILE -o ARTIFACT`."
        )
    _check_hash(content, length, str(metadata.get("content_sha256")), where)
    with reading(where, "make it again with `trt-compress calibrate`"):
        if metadata.get("document") != DOCUMENT:
            raise ValueError("it is no artifact")
        card = ArtifactCard(
            **{
                name: metadata[name]
                for name in ("method", "option", "weights", "weights_sha256", "data", "data_sha256", "made_with")
            },
            version=int(metadata["version"]),
            settings=dict(strict_json(metadata["settings"])),
            data_count=int(metadata["data_count"]),
            score={name: float(value) for name, value in dict(strict_json(metadata["score"])).items()},
            license=metadata.get("license"),
            content_sha256=metadata["content_sha256"],
        )
    if (card.method, card.option) != (method, option):
        raise ConfigError(f"{where} was made for {shown(card.method)}, as {shown(card.option)}; give it there.")
    return card


def _check_hash(content: bytes, length: int, said: str, where: str) -> None:
    mark = _HASH.format(said).encode()
    place = content.find(mark, 8, 8 + length)
    digest = Sha256()
    view = memoryview(content)
    for part in (view[:place], _HASH.format("0" * 64).encode(), view[place + len(mark) :]):
        digest.add(part)
    if place < 0 or not re.fullmatch("[0-9a-f]{64}", said) or digest.hex() != said:
        raise ConfigError(
            f"{where} was changed after it was made, its hash differs; copy it again, or make it again with "
            "`trt-compress calibrate`."
        )
