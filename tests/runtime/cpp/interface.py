"""The C interface of the C++ runtime, by ctypes, as `runtime.h` declares it: numpy and nothing else of this project."""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
AXES = 8
NAMES = (
    "", "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "bfloat16",
    "float32", "float64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
)  # fmt: skip
CARRIERS = {"bfloat16": "uint16"} | dict.fromkeys(NAMES[14:], "uint8")


class Tensor(ctypes.Structure):
    """`trtc_tensor`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * AXES),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
    )


class TensorInfo(ctypes.Structure):
    """`trtc_tensor_info`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * AXES),
        ("symbols", ctypes.c_char_p * AXES),
    )


class SessionOptions(ctypes.Structure):
    """`trtc_session_options`."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("backend", ctypes.c_char_p),
        ("onnxruntime", ctypes.c_char_p),
        ("native_library", ctypes.c_char_p),
        ("require_digest", ctypes.c_char_p),
        ("graphs", ctypes.POINTER(ctypes.c_char_p)),
        ("num_graphs", ctypes.c_size_t),
        ("threads", ctypes.c_int32),
        ("no_spin", ctypes.c_int32),
        ("do_not_check_hashes", ctypes.c_int32),
    )


class StatesOptions(ctypes.Structure):
    """`trtc_states_options`."""

    _fields_ = (("size", ctypes.c_size_t), ("batch", ctypes.c_int64), ("capacity", ctypes.c_int64))


class GenerateOptions(ctypes.Structure):
    """`trtc_generate_options`."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("max_new", ctypes.c_int64),
        ("capacity", ctypes.c_int64),
        ("chooses", ctypes.c_int32),
        ("detached", ctypes.c_int32),
        ("temperature", ctypes.c_double),
        ("top_k", ctypes.c_int64),
        ("top_p", ctypes.c_double),
        ("min_p", ctypes.c_double),
        ("repetition_penalty", ctypes.c_double),
        ("seed", ctypes.c_uint64),
        ("stops", ctypes.POINTER(ctypes.c_char_p)),
        ("num_stops", ctypes.c_size_t),
        ("stop_tokens", ctypes.POINTER(ctypes.c_int64)),
        ("num_stop_tokens", ctypes.c_size_t),
        ("ignore_stop_tokens", ctypes.c_int32),
    )


class Piece(ctypes.Structure):
    """`trtc_piece`."""

    _fields_ = (
        ("token", ctypes.c_int64),
        ("text", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("reason", ctypes.c_int),
    )


REASONS = ("", "stop", "length", "context")


class Refused(Exception):
    """A call that failed: its status, and its sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Interface:
    """The loaded library."""

    def __init__(self, library: Path, onnxruntime: Path) -> None:
        self.c = ctypes.CDLL(str(library))
        self.onnxruntime = onnxruntime
        for name in ("last_error", "version", "session_digest", "session_backend_version", "session_graph"):
            getattr(self.c, f"trtc_{name}").restype = ctypes.c_char_p
        for name in ("num_inputs", "num_outputs", "num_states", "num_graphs"):
            getattr(self.c, f"trtc_session_{name}").restype = ctypes.c_size_t
        for name in ("count", "vocabulary"):
            getattr(self.c, f"trtc_sequences_{name}").restype = ctypes.c_size_t
        self.c.trtc_sequences_states.restype = ctypes.c_void_p
        self.c.trtc_states_data.restype = ctypes.c_void_p
        self.c.trtc_tokenizer_size.restype = ctypes.c_size_t

    def check(self, status: int) -> None:
        """Raise unless a call succeeded."""
        if status:
            raise Refused(status, self.c.trtc_last_error().decode())

    @contextmanager
    def session(self, bundle: str, **options: Any) -> Iterator[ctypes.c_void_p]:
        """An open session."""
        given = SessionOptions(size=ctypes.sizeof(SessionOptions), onnxruntime=str(self.onnxruntime).encode())
        graphs = [name.encode() for name in options.pop("graphs", [])]
        if graphs:
            given.graphs, given.num_graphs = (ctypes.c_char_p * len(graphs))(*graphs), len(graphs)
        for name, value in options.items():
            setattr(given, name, value.encode() if isinstance(value, str) else value)
        handle = ctypes.c_void_p()
        self.check(self.c.trtc_session_open(bundle.encode(), ctypes.byref(given), ctypes.byref(handle)))
        try:
            yield handle
        finally:
            self.c.trtc_session_free(ctypes.byref(handle))

    @contextmanager
    def made(self, what: str, session: ctypes.c_void_p, batch: int = 0, capacity: int = 0) -> Iterator[ctypes.c_void_p]:
        """States or sequences of a session."""
        given = StatesOptions(size=ctypes.sizeof(StatesOptions), batch=batch, capacity=capacity)
        handle = ctypes.c_void_p()
        self.check(getattr(self.c, f"trtc_{what}_new")(session, ctypes.byref(given), ctypes.byref(handle)))
        try:
            yield handle
        finally:
            getattr(self.c, f"trtc_{what}_free")(ctypes.byref(handle))

    def infos(self, session: ctypes.c_void_p, side: str) -> dict[str, TensorInfo]:
        """Inputs, outputs or states of a session, by name."""
        found = {}
        for number in range(getattr(self.c, f"trtc_session_num_{side}s")(session)):
            info = TensorInfo()
            self.check(getattr(self.c, f"trtc_session_{side}")(session, ctypes.c_size_t(number), ctypes.byref(info)))
            found[info.name.decode()] = info
        return found

    def run(self, states: Any, inputs: Mapping[str, Array], wanted: Sequence[str], *, graph: str = "",
            most: int = 1 << 24) -> dict[str, Array]:  # fmt: skip
        """Run all graphs, or one of them."""
        given = tensors(inputs)
        buffers = {name: np.full(most, 0xA5, np.uint8) for name in wanted}
        taken = (Tensor * len(wanted))()
        for at, name in enumerate(wanted):
            taken[at].name, taken[at].data, taken[at].bytes = name.encode(), buffers[name].ctypes.data, most
        sizes = [ctypes.c_size_t(len(inputs)), taken, ctypes.c_size_t(len(wanted))]
        if graph:
            self.check(self.c.trtc_run_graph(states, graph.encode(), given, *sizes))
        else:
            self.check(self.c.trtc_run(states, given, *sizes))
        return {name: _array(taken[at], buffers[name]) for at, name in enumerate(wanted)}

    def value(self, states: Any, name: str) -> Array | None:
        """A state."""
        asked = Tensor(name=name.encode())
        self.check(self.c.trtc_states_value(states, ctypes.byref(asked)))
        if asked.rank < 0:
            return None
        buffer = np.empty(max(asked.bytes, 1), np.uint8)
        asked.data = buffer.ctypes.data
        self.check(self.c.trtc_states_value(states, ctypes.byref(asked)))
        return _array(asked, buffer)

    @contextmanager
    def handle(self, what: str, *arguments: Any, made: str = "new") -> Iterator[ctypes.c_void_p]:
        """What `trtc_WHAT_MADE` makes of these."""
        handle = ctypes.c_void_p()
        self.check(getattr(self.c, f"trtc_{what}_{made}")(*arguments, ctypes.byref(handle)))
        try:
            yield handle
        finally:
            getattr(self.c, f"trtc_{what}_free")(ctypes.byref(handle))

    def encode(self, tokenizer: ctypes.c_void_p, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text."""
        given, tokens, count = text.encode(), ctypes.POINTER(ctypes.c_int64)(), ctypes.c_size_t()
        size, around = ctypes.c_size_t(len(given)), ctypes.c_int32(special)
        where = ctypes.byref(tokens), ctypes.byref(count)
        self.check(self.c.trtc_tokenizer_encode(tokenizer, given, size, around, *where))
        found = tokens[: count.value]
        self.c.trtc_tokens_free(ctypes.byref(tokens))
        assert not tokens
        return found

    def decode(self, tokenizer: ctypes.c_void_p, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        text, size = ctypes.c_void_p(), ctypes.c_size_t()
        where = ctypes.byref(text), ctypes.byref(size)
        self.check(self.c.trtc_tokenizer_decode(tokenizer, *numbers(tokens), *where))
        found = ctypes.string_at(text, size.value).decode()
        self.c.trtc_bytes_free(ctypes.byref(text))
        return found

    def pieces(self, tokenizer: ctypes.c_void_p, tokens: Sequence[int], before: Sequence[int] = ()) -> list[str]:
        """What is given out for each token, and at last."""
        text, size = ctypes.c_void_p(), ctypes.c_size_t()
        where, found = (ctypes.byref(text), ctypes.byref(size)), []
        with self.handle("detokenizer", tokenizer, *numbers(before)) as detokenizer:
            for token in tokens:
                self.check(self.c.trtc_detokenizer_add(detokenizer, ctypes.c_int64(token), *where))
                found.append(ctypes.string_at(text, size.value).decode())
            self.check(self.c.trtc_detokenizer_rest(detokenizer, *where))
            found.append(ctypes.string_at(text, size.value).decode())
        return found

    def generate(
        self, session: ctypes.c_void_p, tokenizer: ctypes.c_void_p | None, prompt: Sequence[int], **settings: Any
    ) -> dict[str, Any]:
        """An answer: its tokens, its pieces, and why it ended."""
        given = GenerateOptions(size=ctypes.sizeof(GenerateOptions))
        stops = [text.encode() for text in settings.pop("stops", ())]
        ends = settings.pop("stop_tokens", ())
        given.stops, given.num_stops = (ctypes.c_char_p * len(stops))(*stops), len(stops)
        given.stop_tokens, given.num_stop_tokens = (ctypes.c_int64 * len(ends))(*ends), len(ends)
        for name, value in settings.items():
            setattr(given, name, value)
        found: dict[str, Any] = {"ids": [], "pieces": [], "reason": ""}
        options = ctypes.byref(given)
        with self.handle("generate", session, tokenizer, *numbers(prompt), options) as generation:
            while not found["reason"]:
                piece = Piece()
                self.check(self.c.trtc_generate_next(generation, ctypes.byref(piece)))
                found["ids"].append(piece.token)
                found["pieces"].append(ctypes.string_at(piece.text, piece.bytes).decode())
                found["reason"] = REASONS[piece.reason]
            found["after"] = self.c.trtc_generate_next(generation, ctypes.byref(Piece()))
        return found


def numbers(tokens: Sequence[int]) -> tuple[Any, ctypes.c_size_t]:
    """Tokens as `int64_t const*` and how many; at least one, as a pointer to nothing may be NULL."""
    return (ctypes.c_int64 * max(len(tokens), 1))(*tokens), ctypes.c_size_t(len(tokens))


def tensors(arrays: Mapping[str, Array]) -> Any:
    """Arrays as `trtc_tensor[]`; they have to live as long as it is used."""
    made = (Tensor * max(len(arrays), 1))()
    for at, (name, array) in enumerate(arrays.items()):
        assert array.flags.c_contiguous
        made[at].name, made[at].dtype, made[at].rank = name.encode(), NAMES.index(array.dtype.name), array.ndim
        made[at].shape[: array.ndim] = array.shape
        made[at].data, made[at].bytes = array.ctypes.data, array.nbytes
    return made


def _array(tensor: Tensor, buffer: Array) -> Array:
    name = NAMES[tensor.dtype]
    dtype = np.dtype(CARRIERS.get(name, name))
    shape = tuple(tensor.shape[: tensor.rank])
    count = int(np.prod(shape, dtype=np.int64))
    return buffer[: count * dtype.itemsize].view(dtype).reshape(shape).copy()
