"""What a file of weights holds, and where in it a model's tensors are. Nothing in a file is executed.

A file is one of safetensors or of `torch.save`, told by its content, not by its suffix. Training frameworks wrap what
they save: in dictionaries (`state_dict`, `model`, several of them with averaged weights beside the plain ones) and in
prefixes (`module.`, `_orig_mod.`, `model.`), in any order. A place in a file is written with dots:
`state_dict_ema.module`.
"""

import io
import pickletools
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.files import open_regular
from trt_compress.foreign import shown
from trt_compress.models.hosts.file_tensors import FileTensors, Unread
from trt_compress.models.hosts.origin import Origin
from trt_compress.models.hosts.safetensors_file import SafetensorsFile
from trt_compress.models.hosts.weights_kind import is_safetensors, kind_of, no_weights
from trt_compress.suggest import did_you_mean

_TRANSPARENT = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""Parts of names that torch.compile, FSDP, checkpointing and DeepSpeed put in, at any depth; no model has them."""

_CUSTOMARY = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "weights",
    "module",
)
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged|average|teacher)([._]|$)")
_COUNTERS = ("n_averaged",)
"""What torch's AveragedModel keeps beside the weights: how many were averaged."""

_TOP = "the top level"
_PROTOCOL = 2  # the newest of pickle that torch reads without running code
_SHOWN = 3
_LONGEST = 100
_DEEPEST = 12

_OF_METHODS: Mapping[str, str] = MappingProxyType({"score_predictor.": "dynamicvit"})
"""Methods with tensors in one file with the model's, by how their names begin; an artifact takes these."""

_OPTIMIZER = "holds the state of an optimizer and no weights; save model.state_dict() and give that."


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointWeights:
    """The tensors of one model out of a file.

    Attributes:
        tensors: By the model's own names; those of safetensors are read when they are asked for.
        file: The file's name, for messages.
        key: The place in the file, `state_dict_ema.module`; empty: the file holds nothing else.
        others: Places of other sets of the same weights, which were not taken.
        left_out: Names of tensors beside the model's, left out because the caller named the place.
        methods: Methods whose tensors are in the file too; they are not the model's.
        origin: The file as it was read.
    """

    tensors: FileTensors
    file: str
    origin: Origin
    key: str = ""
    others: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()

    @property
    def note(self) -> str | None:
        """What of the file was taken and what was not, in words; None if it holds nothing else."""
        notes = []
        if self.others:
            notes.append(f"taken from '{self.key or _TOP}' of the file, which also holds {_quoted(self.others)}")
        if self.left_out:
            notes.append(f"left out of '{self.key}': {some(self.left_out)}")
        notes += [f"its tensors of {name} are for an artifact (calibrate --tensors)" for name in self.methods]
        return "; ".join(notes) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A tensor of a file.

    Attributes:
        home: Keys of the dictionaries around it, outermost first.
        name: Its key in the innermost one. Neither has the parts that wrappers put in.
    """

    home: tuple[str, ...]
    name: str
    tensor: Tensor | Unread

    @property
    def place(self) -> str:
        """Keys and name, joined by dots."""
        return ".".join((*self.home, self.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The tensors of a file."""

    path: Path
    entries: Sequence[Entry]
    origin: Origin

    def weights(self, wanted: Iterable[str], key: str | None = None) -> CheckpointWeights:
        """Find the tensors of a model.

        Args:
            wanted: Names of the model's tensors; some may be missing in the file, and the file may have more.
            key: The place to take them from; None: averaged weights before plain ones, as timm does.

        Raises:
            ConfigError: `key` is no place of such weights, or tensors lie beside the model's that it has no place for.
        """
        names = frozenset(wanted)
        places = self._places(names)
        chosen = places
        if key is not None:
            key = ".".join(_cleaned(key.split(".")))
            chosen = [place for place in places if f"{place}.".startswith(f"{key}.")]
            if not chosen:
                known = [place for place in places if place]
                there = f"there are {_quoted(known)}.{did_you_mean(key, known)}" if known else "leave weights_key out."
                raise ConfigError(f"weights: '{key}' is no place of the model's weights in {self.path.name}; {there}")
        if not chosen:
            return self.largest()
        taken = next((place for place in chosen if _AVERAGED.search(place)), chosen[0])
        others = [place for place in places if place != taken]
        tensors, strays = self._split(taken, others, names)
        of_methods = {name: method for name in (*tensors, *strays) if (method := _method_of(name, names)) is not None}
        tensors = {name: tensor for name, tensor in tensors.items() if name not in of_methods}
        strays = [name for name in strays if name not in of_methods]
        if strays and key != taken:
            raise ConfigError(
                f"weights: {self.path.name} has the model's weights under '{taken}.' and beside them {some(strays)}, "
                "for which the model has no place.",
                hint=f"save the model's part alone, or leave the rest out by ?weights_key={taken} behind timm:NAME or "
                "FILE.py:FACTORY.",
            )
        return CheckpointWeights(
            tensors=self._checked(tensors),
            file=self.path.name,
            origin=self.origin,
            key=taken,
            others=tuple(place or _TOP for place in others),
            left_out=tuple(strays),
            methods=tuple(dict.fromkeys(of_methods.values())),
        )

    def largest(self) -> CheckpointWeights:
        """The tensors of the dictionary that customarily holds the weights, or has most, without a common prefix.

        Raises:
            ConfigError: there are none but an optimizer's, or they are sparse or quantized.
        """
        homes = Counter(entry.home for entry in self.entries if not _is_optimizer(entry.home))
        if self.entries and not homes:
            raise ConfigError(f"weights: {self.path.name} {_OPTIMIZER}")
        rank = {name: place for place, name in enumerate(_CUSTOMARY)}
        order = sorted(homes, key=lambda home: (min((rank.get(part, 99) for part in home), default=98), -homes[home]))
        found = self._by_name((entry.name, entry.tensor) for entry in self.entries if entry.home in order[:1])
        while found and all(name.startswith("module.") for name in found):
            found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
        key = ".".join(order[0]) if order else ""
        return CheckpointWeights(tensors=self._checked(found), file=self.path.name, origin=self.origin, key=key)

    def _places(self, wanted: frozenset[str]) -> list[str]:
        """Where at least half of the wanted names are found; of these, places with fewer than half the most are out."""
        counts: Counter[str] = Counter()
        for entry in self.entries:
            parts = entry.place.split(".")
            for start in range(len(parts)):
                if ".".join(parts[start:]) in wanted:
                    counts[".".join(parts[:start])] += 1
        most = max(counts.values(), default=0)
        return [place for place, count in counts.items() if 2 * count >= most >= len(wanted) / 2]

    def _split(
        self, place: str, others: Sequence[str], wanted: frozenset[str]
    ) -> tuple[dict[str, Tensor | Unread], list[str]]:
        """The tensors at a place by their names there, and the names of what lies beside it and belongs nowhere.

        Beside it means in the same dictionary: what other dictionaries hold (an optimizer's state) is not the model's.
        """
        start = _start(place)
        homes = {e.home for e in self.entries if e.place.startswith(start) and e.place.removeprefix(start) in wanted}
        nested = len(homes) > 1  # a dictionary for each part of the model
        owned = [
            (_owner(entry.place, (place, *others), wanted), entry)
            for entry in self.entries
            if nested or entry.home in homes
        ]
        tensors = ((entry.place.removeprefix(start), entry.tensor) for owner, entry in owned if owner == place)
        strays = [entry.name for owner, entry in owned if owner is None and not nested and entry.name not in _COUNTERS]
        return self._by_name(tensors), strays

    def _by_name(self, tensors: Iterable[tuple[str, Tensor | Unread]]) -> dict[str, Tensor | Unread]:
        found: dict[str, Tensor | Unread] = {}
        for name, tensor in tensors:
            if name in found:
                raise ConfigError(
                    f"weights: {self.path.name} has {printable(name)} twice, once with a part in its name that "
                    f"torch.compile or another wrapper put in; save one of them."
                )
            found[name] = tensor
        return found

    def _checked(self, tensors: dict[str, Tensor | Unread]) -> FileTensors:
        """The tensors, if all are plain ones: dense, with data, not quantized."""
        problems: tuple[tuple[str, str, Callable[[Tensor], bool]], ...] = (
            ("sparse", "save them dense: tensor.to_dense()", lambda t: t.layout != torch.strided or t.is_nested),
            ("quantized", "give the weights in floating point: tensor.dequantize()", lambda t: t.is_quantized),
            ("empty", "they were saved from the meta device, without data", lambda t: t.is_meta),
        )
        for what, advice, has in problems:
            if names := [name for name, tensor in tensors.items() if isinstance(tensor, Tensor) and has(tensor)]:
                raise ConfigError(f"weights: {self.path.name} holds {what} tensors ({some(names)}); {advice}.")
        return FileTensors(tensors)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the tensors of a file of safetensors or of `torch.save`.

    Raises:
        ConfigError: there is no such file, it is of another kind or damaged, or it holds no table of tensors, or
            objects that only running its code could read; the message names them.
    """
    if not path.is_file():
        inside = sorted(item.name for item in path.glob("*") if item.suffix in (".safetensors", ".bin", ".pt", ".pth"))
        more = f" It has {some(inside)}." if inside else ""
        raise ConfigError(
            f"weights: {path} is not a file; give a .safetensors file or a PyTorch checkpoint as --weights FILE.{more}"
        )
    try:
        opened = open_regular(path)
    except OSError as error:
        raise ConfigError(f"weights: {path} cannot be read ({error.strerror}).") from None
    tensors: Mapping[tuple[str, ...], Tensor | Unread]
    with opened as file:
        try:
            start = file.read(32)
        except OSError as error:
            raise ConfigError(f"weights: {path} cannot be read ({error.strerror}).") from None
        file.seek(0)
        pickled = start.startswith((b"PK\x03\x04", b"\x80"))
        if is_safetensors(start) or (path.suffix == ".safetensors" and not pickled):
            stored = SafetensorsFile(file, path)
            origin, tensors = stored.origin, {(name,): Unread(stored, name) for name in stored.tensors}
        else:
            origin = Origin(file, path)
            tensors = _read_pickled(file, path, start)
    origin.require_unchanged()
    return Checkpoint(path=path, entries=_entries(tensors), origin=origin)


def _method_of(name: str, wanted: frozenset[str]) -> str | None:
    """The method that a tensor beside the model's is of; None: of none that is known."""
    if name in wanted:
        return None
    return next((method for start, method in _OF_METHODS.items() if name.startswith(start)), None)


def _start(place: str) -> str:
    return f"{place}." if place else ""


def _owner(name: str, places: Sequence[str], wanted: frozenset[str]) -> str | None:
    """The place that a tensor belongs to: the innermost one that has it under a wanted name, or else has it at all."""
    under = sorted((place for place in places if name.startswith(_start(place))), key=len, reverse=True)
    exact = [place for place in under if name.removeprefix(_start(place)) in wanted]
    return next(iter(exact or under), None)


def some(names: Iterable[str]) -> str:
    """The first few names, without anything that a terminal would act on, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(printable(name) for name in listed[:_SHOWN]) + more


def printable(name: str) -> str:
    """A name out of a file as it may be printed, cut where it is very long."""
    text = shown(name)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{printable(name)}'" for name in names)


def _cleaned(parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(part for part in parts if part not in _TRANSPARENT)


def _entries(tensors: Mapping[tuple[str, ...], Tensor | Unread]) -> tuple[Entry, ...]:
    return tuple(
        Entry(home=_cleaned(place[:-1]), name=".".join(_cleaned(place[-1].split("."))), tensor=tensor)
        for place, tensor in tensors.items()
    )


def _is_optimizer(home: tuple[str, ...]) -> bool:
    return any("optimizer" in part for part in home) or "state" in home[:-1]


def _read_pickled(file: BinaryIO, path: Path, start: bytes) -> dict[tuple[str, ...], Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, on sparse and quantized tensors, which are refused by name
            content = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # an unpickler fed with something else fails in any way
        reason, hint = _what_is_in_the_way(file, start)
        raise ConfigError(f"weights: {path} {no_weights('.pth', reason)}", hint=hint) from error
    found = dict(_tensors_in(content, (), 0)) if isinstance(content, Mapping) else {}
    if not found and isinstance(content, Mapping) and "param_groups" in content:
        raise ConfigError(f"weights: {path.name} {_OPTIMIZER}")
    if not found and not (isinstance(content, Mapping) and not content):
        raise ConfigError(f"weights: {path} holds no table of tensors; save model.state_dict() and give that.")
    return found


def _tensors_in(
    content: Mapping[Any, Any], place: tuple[str, ...], depth: int
) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    for key, value in content.items():
        here = (*place, str(key))
        if isinstance(value, Tensor):
            yield here, value
        elif isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _tensors_in(value, here, depth + 1)


def _what_is_in_the_way(file: BinaryIO, start: bytes) -> tuple[str, str | None]:
    """Why a file cannot be read as tensors alone, and what to do about it."""
    file.seek(0)
    if start.startswith(b"PK"):
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
                if any(name.endswith("constants.pkl") for name in names):
                    return "it is a TorchScript archive", "load it with torch.jit.load and save its state_dict()."
                if any(name.endswith(".npy") for name in names):
                    return "it is an archive of numpy arrays", None
                pickles = [archive.read(name) for name in names if name.endswith("data.pkl")]
        except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError):
            pickles = []
    elif start.startswith(b"\x80"):
        pickles = [file.read()]
    else:
        return kind_of(start) or "it is of another kind, cut short or damaged", None
    root, classes, protocol = _pickled_classes(pickles)
    if not classes and protocol > _PROTOCOL:
        return f"it was saved with pickle protocol {protocol}", "save it again with torch.save's own protocol."
    if not classes:
        whole = start.startswith(b"PK") and pickles
        return "it holds what is not read without running code" if whole else "it is cut short or damaged", None
    take = "{k: v for k, v in c.items() if k.startswith(('state_dict', 'model'))}" if root is None else "c.state_dict()"
    save = (
        'where you trust the file, take the weights out once: python -c "import torch; '
        f"c = torch.load('FILE', weights_only=False); torch.save({take}, 'weights.pth')\""
    )
    if root is not None:
        return f"it is a whole pickled object, {printable(root)}", save
    model = next((name for name in classes if name.startswith(("torch.nn.modules.", "timm.", "torchvision."))), None)
    if model is not None:
        return f"it holds a whole pickled model with {printable(model)}", "save its state_dict() and give that."
    training = ", the options of a training run" if "argparse.Namespace" in classes else ""
    return f"beside tensors it holds objects of {some(classes)}{training}", save


def _pickled_classes(pickles: Sequence[bytes]) -> tuple[str | None, list[str], int]:
    """Of pickles: the class of the whole, if it is an object; classes that are no tensors' or tables'; the protocol."""
    root: str | None = None
    protocol = 0
    classes: list[str] = []
    for content in pickles:
        stream = io.BytesIO(content)
        try:
            while stream.tell() < len(content):
                first = True
                texts: list[str] = []
                for opcode, argument, _ in pickletools.genops(stream):
                    if opcode.name == "PROTO":
                        protocol = max(protocol, int(argument or 0))
                    if opcode.name in ("PROTO", "FRAME"):
                        continue
                    if isinstance(argument, str) and opcode.name != "GLOBAL":
                        texts.append(argument)
                    if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                        name = str(argument).replace(" ", ".") if opcode.name == "GLOBAL" else ".".join(texts[-2:])
                        if not _is_innocent(name):
                            classes.append(name)
                            root = name if first and not name.startswith("collections.") else root
                    first = first and opcode.name in ("SHORT_BINUNICODE", "BINUNICODE", "MEMOIZE")
        except Exception:  # what follows the pickles of an old file are the tensors' bytes
            continue
    return root, list(dict.fromkeys(classes)), protocol


def _is_innocent(name: str) -> bool:
    """Whether a class is one that tables of tensors are made of."""
    module, _, last = name.rpartition(".")
    return (
        name
        in ("collections.OrderedDict", "collections.Counter", "_codecs.encode", "builtins.set", "builtins.bytearray")
        or module in ("torch", "torch._utils", "torch._tensor", "torch.storage", "torch.serialization")
        or (module == "torch.nn.parameter" and last == "Parameter")
    )
