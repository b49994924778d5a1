"""Train tokenizers: byte-level BPE, SuperBPE, KL3M's presets, and DNABERT-2's for genomes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from trt_compress.errors import ConfigError
from trt_compress.foreign import needs_extra, reading
from trt_compress.memory import available_bytes, format_bytes
from trt_compress.runtime.generate.tokenizer import panics_said
from trt_compress.runtime.text.pieces import byte_characters
from trt_compress.tools.tokenizers import kl3m, superbpe
from trt_compress.tools.tokenizers.tiktoken_format import PATTERNS

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

Kind = Literal["bpe", "superbpe", "kl3m", "kl3m-char", "dna"]
KINDS: tuple[Kind, ...] = ("bpe", "superbpe", "kl3m", "kl3m-char", "dna")

DEFAULT_SIZES: dict[Kind, int] = {"bpe": 32768, "superbpe": 32768, "kl3m": 32768, "kl3m-char": 4096, "dna": 4096}
_END = "<|endoftext|>"
_DNA_SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
_BYTES_AN_ENTRY = 1 << 10  # of a trainer, about
_STAGE = 0.9
_MOST = 1 << 32
_OTHERS = "give another, or another --pattern"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What is trained.

    Attributes:
        kind: Which of `KINDS`.
        size: Entries of the vocabulary, special ones among them.
        least: The fewest occurrences of a pair that is merged.
        pattern: Of `bpe` and the first stage of `superbpe`: how text is split before, by name or regular expression.
        first_stage: Of `superbpe`: entries after which merges go across white space; None: nine tenths.
        lowercase: Of `kl3m` and `kl3m-char`: capitals are made small.
        longest: Of `kl3m-char`: the most characters of a piece (of the byte-level alphabet).
        power_of_two: Of `kl3m` and `kl3m-char`: pad to the next power of two, as their code does on demand.
    """

    kind: Kind
    size: int
    least: int = 2
    pattern: str = "cl100k"
    first_stage: int | None = None
    lowercase: bool = False
    longest: int = 3
    power_of_two: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: One is out of its range, or there is not the memory for such a vocabulary.
        """
        least = self.smallest
        if self.size < least:
            raise ConfigError(
                f"--size {self.size}: a vocabulary of the kind {self.kind} begins with {least} entries (its alphabet "
                "and its special and custom tokens); give a larger size."
            )
        free = available_bytes()
        if free is not None and self.size * _BYTES_AN_ENTRY > free:
            raise ConfigError(
                f"--size {self.size}: training takes about {format_bytes(self.size * _BYTES_AN_ENTRY)} for so many "
                f"entries, and {format_bytes(free)} are free; give a smaller size."
            )
        if self.first_stage is not None and not least <= self.first_stage <= self.size:
            raise ConfigError(
                f"--first-stage {self.first_stage}: the first stage ends between {least} and {self.size} entries; give "
                "a number within that."
            )
        for name, number in (("--longest", self.longest), ("--min-frequency", self.least)):
            if not 1 <= number <= _MOST:
                raise ConfigError(f"{name} {number}: give a number from 1 to {_MOST}.")

    @property
    def smallest(self) -> int:
        """The entries that are there before anything is learned, and the special tokens that KL3M's code leaves out."""
        if self.kind == "dna":
            return len(_DNA_SPECIAL) + 4
        if self.kind in ("bpe", "superbpe"):
            return 256 + 1
        custom = len(kl3m.custom_tokens(lowercase=self.lowercase)) if self.kind == "kl3m" else 0
        return 256 + 2 * len(kl3m.SPECIAL) + custom


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A tokenizer that was trained.

    Attributes:
        library: It.
        config: What a `tokenizer_config.json` says of it.
        notes: What is to be said of it.
    """

    library: "Library"
    config: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Entries of its vocabulary."""
        return int(self.library.get_vocab_size(with_added_tokens=True))


def train(texts: Sequence[str], plan: TrainingPlan, step: Callable[[str], None] = lambda text: None) -> Trained:
    """Train a tokenizer.

    Args:
        texts: What it learns from; for `dna` sequences of A, C, G and T.
        plan: What is trained.
        step: Takes the name of what is being done.

    Raises:
        ConfigError: There is no text, the pattern is no regular expression, or the library fails on the texts with it.
        UnsupportedError: The library is not installed.
    """
    if not any(text.strip() for text in texts):
        raise ConfigError("The files hold nothing to learn from; give files of text.")
    step("counting and merging pairs")
    match plan.kind:
        case "bpe":
            found = Trained(library=_byte_level(texts, plan, plan.size), config=_config(_END, _END))
        case "superbpe":
            found = _super(texts, plan, step)
        case "kl3m" | "kl3m-char":
            found = _kl3m(texts, plan)
        case "dna":
            found = _dna(texts, plan)
    learned, wanted = found.size, plan.size
    if plan.kind.startswith("kl3m"):  # some of the custom tokens may be learned, and are not there twice
        learned, wanted = int(found.library.get_vocab_size(with_added_tokens=False)), _learned(plan)
    if learned < wanted:
        short = (
            f"The texts have pairs for {learned} entries and no more that occur {plan.least} times; --size was "
            f"{plan.size}."
        )
        found = Trained(library=found.library, config=found.config, notes=(*found.notes, short))
    return found


def _byte_level(texts: Sequence[str], plan: TrainingPlan, size: int) -> "Library":
    with needs_extra("text"):
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    pattern = PATTERNS.get(plan.pattern, plan.pattern)
    try:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
    except Exception as error:
        raise ConfigError(f"--pattern {pattern[:80]!r} is no regular expression ({error}).") from None
    library = Tokenizer(models.BPE())
    back = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([split, back])
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=plan.least,
        special_tokens=[_END],
        initial_alphabet=byte_characters(),
        show_progress=False,
    )
    _learn(library, texts, trainer)
    return library


def _learn(library: "Library", texts: Sequence[str], trainer: Any) -> None:
    """Train, and say it where the library fails, as a regular expression that takes too many steps makes it."""
    with reading("The text", _OTHERS), panics_said():
        library.train_from_iterator(texts, trainer)


def _super(texts: Sequence[str], plan: TrainingPlan, step: Callable[[str], None]) -> Trained:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    stage = plan.first_stage or max(plan.smallest, int(plan.size * _STAGE))
    first = _byte_level(texts, plan, stage)
    vocabulary, merges = _model_of(first)
    split = pre_tokenizers.Split(Regex(superbpe.SPLIT), "isolated")
    front = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    library = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    library.pre_tokenizer = front
    step("merging across white space")
    parts = []
    for text in texts:
        with reading("The text", _OTHERS), panics_said():
            encoded = library.encode(text, add_special_tokens=False)
        for _, pairs in groupby(zip(encoded.word_ids, encoded.ids, strict=True), key=lambda pair: pair[0]):
            parts.append([number for _, number in pairs])
    space = byte_characters()[ord(" ")]
    readable = {number: text.replace(space, " ") for text, number in vocabulary.items()}
    more, fresh = superbpe.further_merges(
        superbpe.sequences_of(parts), readable, max(0, plan.size - len(vocabulary)), least=plan.least, step=step
    )
    written = {number: text for text, number in vocabulary.items()}
    written |= {number: text.replace(" ", space) for number, text in fresh.items()}
    merges += [(written[one], written[other]) for one, other in more]
    library = Tokenizer(models.BPE(vocab={text: number for number, text in written.items()}, merges=merges))
    library.pre_tokenizer = front
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(_END, special=True, normalized=False)])
    across = sum(len(text.split()) > 1 for text in fresh.values())
    note = f"Merges go across white space behind {len(vocabulary)} entries; {across} pieces hold several words."
    return Trained(library=library, config=_config(_END, _END), notes=(note,))


def _learned(plan: TrainingPlan) -> int:
    """Entries of KL3M's that are learned: all but the custom tokens; their code counts the special ones twice."""
    custom = kl3m.custom_tokens(lowercase=plan.lowercase) if plan.kind == "kl3m" else []
    return plan.size - len(kl3m.SPECIAL) - len(custom)


def _kl3m(texts: Sequence[str], plan: TrainingPlan) -> Trained:
    with needs_extra("text"):
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    custom = kl3m.custom_tokens(lowercase=plan.lowercase) if plan.kind == "kl3m" else []
    library = Tokenizer(models.BPE())
    lower = [normalizers.Lowercase()] if plan.lowercase else []
    library.normalizer = normalizers.Sequence([normalizers.NFKC(), *lower])
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_learned(plan),
        min_frequency=plan.least,
        special_tokens=list(kl3m.SPECIAL),
        initial_alphabet=byte_characters(),
        show_progress=False,
        max_token_length=plan.longest + 1 if plan.kind == "kl3m-char" else None,  # the library takes one less
    )
    _learn(library, texts, trainer)
    known = library.get_vocab(with_added_tokens=True)
    library.add_tokens([token for token in custom if token not in known])
    if plan.power_of_two:
        now = library.get_vocab(with_added_tokens=True)
        library.add_tokens(kl3m.padding_tokens(len(now), now))
    library.enable_padding(direction="left", pad_id=library.token_to_id(kl3m.PAD), pad_token=kl3m.PAD)
    notes = (kl3m.MISSING_LISTS,) if custom else ()
    names = {"unk": "unk", "bos": "start", "eos": "end", "pad": "pad", "sep": "sep", "cls": "cls", "mask": "mask"}
    config = {f"{name}_token": f"<|{text}|>" for name, text in names.items()}
    return Trained(library=library, config={**_config(), **config, "padding_side": "left"}, notes=notes)


def _dna(texts: Sequence[str], plan: TrainingPlan) -> Trained:
    with needs_extra("text"):
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    library = Tokenizer(models.BPE(unk_token="[UNK]"))
    library.normalizer = normalizers.Sequence([normalizers.Replace(base, base.upper()) for base in "acgt"])
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(
        vocab_size=plan.size,
        min_frequency=plan.least,
        special_tokens=list(_DNA_SPECIAL),
        initial_alphabet=list("ACGT"),
        limit_alphabet=4,
        show_progress=False,
    )
    _learn(library, texts, trainer)
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, library.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    config = {f"{name.strip('[]').lower()}_token": name for name in _DNA_SPECIAL}
    return Trained(library=library, config={**_config(), **config})


def _model_of(library: "Library") -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of BPE."""
    import json

    model: dict[str, Any] = json.loads(library.to_str())["model"]
    return dict(model["vocab"]), [(str(one), str(other)) for one, other in model["merges"]]


def _config(begin: str | None = None, end: str | None = None) -> dict[str, Any]:
    named = {"bos_token": begin, "eos_token": end}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **{name: text for name, text in named.items() if text}}
