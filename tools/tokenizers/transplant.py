"""A checkpoint that reads by another tokenizer: TokenAdapt over its tables of embeddings."""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.foreign import needs_extra, shown
from trt_compress.memory import available_bytes, format_bytes
from trt_compress.model_name import parse_model
from trt_compress.models.text.heuristics import Heuristics, RowOrigin
from trt_compress.paths import check_new_folder
from trt_compress.runtime.generate.tokenizer import Tokenizer
from trt_compress.strays import put_in_place, staged_folder
from trt_compress.tools.tokenizers.external import External, external_of
from trt_compress.tools.tokenizers.sources import open_tokenizer
from trt_compress.tools.tokenizers.texts import read_text
from trt_compress.tools.tokenizers.vocabulary import Beside, Vocabulary, beside, special_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from trt_compress.models.language.source import LanguageSource
    from trt_compress.models.text.transplant import Mixture
    from trt_compress.tools.tokenizers.transplant_quality import TextCost

RECORD = "transplant.json"

_INPUTS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight")
_OUTPUTS = ("lm_head.weight", "embed_out.weight", "output.weight", "lm_head.bias", "embed_out.bias")
_SEVERAL = ("text_config", "vision_config", "audio_config", "encoder")
_SIMILARITIES = 1 << 27  # bytes of those that are looked at together
WINDOW = 512
"""Tokens of a text that are scored together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transplanted:
    """What was written.

    Attributes:
        path: The new checkpoint.
        old_tokens: Numbers of tokens that the model had rows for.
        new_tokens: Numbers of the new tokenizer.
        rows: Rows of the new tables, padding counted.
        origins: New tokens by what their rows are made of: copied, both, local, global, random.
        tables: The tensors that were made anew.
        tied: Whether one table is both.
        without: Special tokens of the configuration that the new vocabulary does not have.
        quality: The text before and after; None: none was given.
    """

    path: Path
    old_tokens: int
    new_tokens: int
    rows: int
    origins: Mapping[str, int]
    tables: tuple[str, ...]
    tied: bool
    without: tuple[str, ...] = ()
    quality: "tuple[TextCost, ...] | None" = field(default=None)

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        found = {**asdict(self), "path": str(self.path)}
        found["quality"] = None if self.quality is None else [each.to_json() for each in self.quality]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """A model, and what has to be made of it."""

    source: "LanguageSource"
    inputs: str
    outputs: tuple[str, ...]
    rows: int
    width: int
    old: Vocabulary


def transplant(
    checkpoint: str,
    to: Path,
    output: Path,
    *,
    external: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    pad_to: int = 128,
    seed: int = 0,
    text: Path | None = None,
    limit: int = 20_000,
    progress: Callable[[str], None] = lambda _: None,
) -> Transplanted:
    """Write a checkpoint that reads by another tokenizer, whole or not at all.

    Args:
        checkpoint: `hf:DIR`, the directory alone, or `gguf:FILE`.
        to: A tokenizer.json, or a folder that holds one.
        output: The folder of the new checkpoint, which is not there yet.
        external: What finds texts alike; see `external_of`.
        settings: Of `Heuristics`, by name.
        pad_to: The new tables have a multiple of so many rows.
        seed: Of rows that nothing makes.
        text: UTF-8, of which the perplexity is taken before and after.
        limit: At most so many bytes of it.
        progress: Is told what is being done.

    Raises:
        ConfigError: Something that was given is wrong, or is too large for the memory there is.
        UnsupportedError: A model or a tokenizer of a kind that is not known, or a library is missing.

    Source: TokenAdapt, arXiv:2505.09738; code Tinycompany-AI/tokenadapt 3f7ff1d, src/transplant.py.
    Differs: texts are found alike by all-MiniLM-L6-v2 (the paper: nomic-embed-text-v2); a token without text stays
    random (the code embeds an empty text).
    """
    for name, value, least in (("--pad-to", pad_to, 1), ("--limit", limit, 1)):
        if value < least:
            raise ConfigError(f"{name} {value}; give {least} or more.")
    if not 0 <= seed < 1 << 63:
        raise ConfigError(f"--seed {seed}; give a whole number from 0, below 2^63.")
    heuristics = Heuristics(**(settings or {}))
    if os.path.lexists(output):
        raise ConfigError(f"'{output}' is there already; give a folder that is not.")
    check_new_folder(output, "-o")
    given = None if text is None else read_text(text).text.encode()[:limit].decode(errors="ignore")
    found = external_of(external)
    opened = _open(checkpoint)
    target = open_tokenizer(to)
    if not isinstance(target.encoder, Tokenizer):
        raise UnsupportedError(f"'{to}' is of the kind {target.kind}; --to takes a tokenizer.json.")
    new = Vocabulary(target.encoder)
    rows = -(-new.size // pad_to) * pad_to
    _check_memory(opened, new.size, rows, found, to)
    if given is not None:
        _check_text(given, opened, new, rows, text)
    aside = beside(target.path, new)
    with needs_extra("export"):
        import safetensors  # noqa: F401
        import torch  # noqa: F401
    progress("texts of tokens")
    made = _mixture(opened, new, found, heuristics, progress)
    counts = Counter(RowOrigin(number).name.lower() for number in made.origin.tolist())
    config, without = _config(opened, new, aside, rows)
    result = Transplanted(
        path=output,
        old_tokens=opened.rows,
        new_tokens=new.size,
        rows=rows,
        origins={origin.name.lower(): counts[origin.name.lower()] for origin in RowOrigin},
        tables=(opened.inputs, *opened.outputs),
        tied=not opened.outputs or bool(config.get("tie_word_embeddings")),
        without=without,
    )
    progress("new tables")
    about = {"external": found.name, "settings": asdict(heuristics), "seed": seed, "to": target.name}
    _write(opened, made, config, aside, result, about, seed)
    if given is None:
        return result
    with needs_extra("export"):
        from trt_compress.tools.tokenizers.transplant_quality import measure
    tables = {name: opened.source.tensor(name) for name in (opened.inputs, *opened.outputs)}
    quality = measure(
        output, given, window=WINDOW, old=opened.old, new=new, tables=tables, made=made, seed=seed, progress=progress
    )
    return Transplanted(**{**{name: getattr(result, name) for name in result.__slots__}, "quality": quality})


def _open(checkpoint: str) -> _Opened:
    name = checkpoint if checkpoint.startswith(("hf:", "gguf:")) else f"hf:{checkpoint}"
    model = parse_model(name)
    if model.options:
        raise ConfigError(f"'{checkpoint}' has options behind '?'; a transplant takes the model as it is.")
    with needs_extra("export"):
        from trt_compress.models.language.open import open_language
    source = open_language(model)
    for several in _SEVERAL:
        if isinstance(source.config.get(several), dict):
            raise UnsupportedError(
                f"{source.name} reads more than text ('{several}' in config.json), whose tokens another tokenizer "
                "would move; give a model of text alone."
            )
    inputs = [each for each in source.names() if _ends(each, _INPUTS)]
    outputs = tuple(each for each in source.names() if _ends(each, _OUTPUTS))
    if len(inputs) != 1:
        listed = ", ".join(shown(each)[:60] for each in inputs[:4]) or "none"
        raise UnsupportedError(
            f"{source.name} has to have one table of embeddings, a tensor with one of the names {', '.join(_INPUTS)}; "
            f"it has {listed}."
        )
    rows, width = _shape(source, inputs[0])
    for output in outputs:
        if (header := source.header(output)).shape[0] != rows or not header.dtype.startswith(("float", "bfloat")):
            raise UnsupportedError(
                f"{source.name}: '{output}' is {header.dtype} of {list(header.shape)}, and the embeddings have {rows} "
                "rows; give a checkpoint whose head is not quantized."
            )
    assets = source.assets()
    if assets.text is None:
        raise ConfigError(f"{source.name} came without a tokenizer.json, which the old tokens are read from; add it.")
    old = Vocabulary(Tokenizer.read(assets.files[assets.text.tokenizer], f"the tokenizer.json of {source.name}"))
    return _Opened(source=source, inputs=inputs[0], outputs=outputs, rows=rows, width=width, old=old)


def _ends(name: str, ends: tuple[str, ...]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _shape(source: "LanguageSource", name: str) -> tuple[int, int]:
    header = source.header(name)
    if len(header.shape) != 2 or not header.dtype.startswith(("float", "bfloat")):
        raise UnsupportedError(f"{source.name}: '{name}' is {header.dtype} of {list(header.shape)}, and no table.")
    return header.shape[0], header.shape[1]


def _check_memory(opened: _Opened, tokens: int, rows: int, found: External, to: Path) -> None:
    """Old and new tables in float32 and as they are written, and the vectors of all texts twice."""
    tables = 1 + sum(opened.source.header(name).shape[1:] != () for name in opened.outputs)
    needed = tables * opened.width * (8 * rows + 4 * opened.rows) + 8 * found.width * (tokens + opened.rows)
    needed += _SIMILARITIES
    free = available_bytes()
    if free is not None and needed > free:
        raise ConfigError(
            f"'{to}' has numbers of tokens up to {tokens - 1}: tables of {rows} rows by {opened.width} take "
            f"{format_bytes(needed)} to make, and {format_bytes(free)} are free; give a smaller tokenizer."
        )


def _check_text(given: str, opened: _Opened, new: Vocabulary, rows: int, text: Path | None) -> None:
    """Refuse a text that gives nothing to score, and a model that is too large to score it with, in float32."""
    for which, vocabulary in (("old", opened.old), ("new", new)):
        if (count := len(vocabulary.tokenizer.encode(given, special=False))) < 2:
            raise ConfigError(
                f"--text: '{text}' has {count} tokens by the {which} tokenizer, of the bytes that --limit takes; give "
                "a text of two at least."
            )
    source, free = opened.source, available_bytes()
    numbers = sum(math.prod(source.header(name).shape) for name in source.names())
    needed = 4 * (numbers + 2 * opened.width * (rows + opened.rows) + 3 * WINDOW * max(rows, opened.rows))
    if free is not None and needed > free:
        raise ConfigError(
            f"--text: the model takes {format_bytes(needed)} to score a text with, and {format_bytes(free)} are free; "
            "leave --text out, or free some."
        )


def _mixture(
    opened: _Opened, new: Vocabulary, found: External, heuristics: Heuristics, progress: Callable[[str], None]
) -> "Mixture":
    import torch

    from trt_compress.models.text.transplant import mixture

    old = opened.old
    old_texts = [*old.texts[: opened.rows], *[""] * (opened.rows - old.size)]
    copied = torch.full((new.size,), -1, dtype=torch.int64)
    for token, number in new.numbers.items():
        before = old.numbers.get(token, -1)
        copied[number] = before if before < opened.rows else -1
    missing = [number for number in torch.nonzero(copied < 0)[:, 0].tolist() if new.texts[number]]
    pieces: list[list[int]] = [[] for _ in range(new.size)]
    for number, cut in zip(missing, old.cut([new.texts[number] for number in missing]), strict=True):
        pieces[number] = [piece for piece in cut if piece < opened.rows]
    wanted, used = set(missing), {piece for cut in pieces for piece in cut}
    needed = [text if number in wanted else "" for number, text in enumerate(new.texts)]
    compared = old_texts
    if heuristics.global_weight == 0:  # pieces alone
        compared = [text if number in used else "" for number, text in enumerate(old_texts)]
    progress(f"vectors of {len(missing)} new and {sum(map(bool, compared))} old texts by {found.name}")
    old_vectors, vectors = found.vectors(compared, needed)
    progress("weights")
    return mixture(
        heuristics,
        copied=copied,
        pieces=pieces,
        lengths=torch.tensor([len(text) for text in new.texts]),
        old_lengths=torch.tensor([len(text) for text in old_texts]),
        external=vectors,
        old_external=old_vectors,
    )


def _config(opened: _Opened, new: Vocabulary, aside: Beside, rows: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The new config.json, and which special tokens were lost."""
    from trt_compress.models.language.written import config_of

    config = config_of(opened.source)
    numbers = special_numbers(config, new, opened.old, aside.special)
    lost = tuple(key for key, value in numbers.items() if value is None and config[key] is not None)
    return {**config, **numbers, "vocab_size": rows}, lost


def _write(
    opened: _Opened,
    made: "Mixture",
    config: Mapping[str, Any],
    aside: Beside,
    result: Transplanted,
    about: Mapping[str, Any],
    seed: int,
) -> None:
    from trt_compress.models.language.written import Planned, tensors_of, write_checkpoint
    from trt_compress.models.text.transplant import transplanted

    source = opened.source

    def new_table(name: str) -> "Callable[[], Tensor]":
        return lambda: transplanted(source.tensor(name), made, result.rows, seed=seed)

    tensors = []
    for each in tensors_of(source):
        if each.name in result.tables:
            per_row = each.nbytes // source.header(each.name).shape[0]
            each = Planned(each.name, per_row * result.rows, new_table(each.name))
        tensors.append(each)
    assets = source.assets()
    licences = {Path(name).name: assets.files[name] for name in assets.license_files}
    files = {**licences, **aside.files}
    target = Path(os.path.realpath(result.path))
    with staged_folder(target) as staged:
        generation = _generation(opened, config)
        if generation is not None:
            files["generation_config.json"] = generation
        record = {"method": "TokenAdapt", "from": source.name, "sha256": source.sha256(), **about, **result.to_json()}
        del record["path"], record["quality"]
        files[RECORD] = (json.dumps(record, indent=2) + "\n").encode()
        write_checkpoint(staged, tensors, config, files)
        put_in_place(staged, target)


def _generation(opened: _Opened, config: Mapping[str, Any]) -> bytes | None:
    """The settings of generation with the new numbers of special tokens; None: there are none."""
    assets = opened.source.assets()
    settings = dict(assets.text.generation) if assets.text is not None else {}
    if not settings:
        return None
    numbers = {
        key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None
    }
    return (json.dumps({**settings, **numbers}, indent=2) + "\n").encode()
