"""A sentencepiece model, run by the library of that name, behind what every tokenizer can do."""

from collections.abc import Sequence

from trt_compress.errors import ConfigError
from trt_compress.foreign import needs_extra, reading
from trt_compress.runtime.protobuf import BYTES, VARINT, fields
from trt_compress.runtime.text.encoder import Spans
from trt_compress.runtime.text.pieces import Part

_TRAINER_SPEC, _MODEL_TYPE = 2, 3
_KINDS = {1: "Unigram", 2: "BPE", 3: "WordLevel", 4: "characters"}


def kind_of_model(content: bytes) -> str:
    """What kind of model it is, as the file says.

    Raises:
        ValueError: It is no sentencepiece model.
    """
    kind = 1  # what a file that says nothing means
    pieces = 0
    for field in fields(memoryview(content)):
        pieces += field.number == 1 and field.kind == BYTES
        if field.number == _TRAINER_SPEC and isinstance(field.value, memoryview):
            for inner in fields(field.value):
                if inner.number == _MODEL_TYPE and inner.kind == VARINT and isinstance(inner.value, int):
                    kind = inner.value
    if not pieces or kind not in _KINDS:
        raise ValueError("it is no sentencepiece model")
    return _KINDS[kind]


class SentencePieceEncoder:
    """A sentencepiece model that was read.

    Attributes:
        processor: The library's own, to be looked at and not changed.
    """

    def __init__(self, content: bytes, where: str) -> None:
        """Read a model.

        Raises:
            ConfigError: It is none.
            UnsupportedError: The library is not installed.
        """
        with needs_extra("text"):
            from sentencepiece import SentencePieceProcessor
        with reading(where, "give a sentencepiece model"):
            self.processor = SentencePieceProcessor(model_proto=content)

    @property
    def size(self) -> int:
        """All numbers of tokens are below it."""
        return int(self.processor.get_piece_size())

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text; `special`: with the token of a beginning in front, if there is one.

        Raises:
            ConfigError: It holds half of a character.
        """
        _check(text)
        found = [int(number) for number in self.processor.encode(text)]
        begin = int(self.processor.bos_id())
        return [begin, *found] if special and begin >= 0 else found

    def spans(self, text: str) -> tuple[list[int], Spans]:
        """The tokens of a text, and where each comes from; of the bytes of a character, all from that character.

        Raises:
            ConfigError: It holds half of a character.
        """
        _check(text)
        found = self.processor.encode_as_offset_mapping(text)
        offsets = [(int(start), int(end)) for start, end in found["offsets"]]
        for place in range(len(offsets) - 2, -1, -1):  # the library gives the character to its last byte
            if self.processor.is_byte(found["ids"][place]) and offsets[place][0] == offsets[place][1]:
                offsets[place] = (offsets[place][0], offsets[place + 1][1])
        return [int(number) for number in found["ids"]], offsets

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return str(self.processor.decode(list(tokens)))

    def token(self, number: int) -> str:
        """A token as the vocabulary writes it; an empty text where it has none of this number."""
        return str(self.processor.id_to_piece(number)) if 0 <= number < self.size else ""


class SentencePiecePieces:
    """What a sentencepiece model is given: the whole normalized text as one piece.

    Attributes:
        vocabulary: Number of each byte string that the model knows, in UTF-8 with U+2581 for a space.
    """

    def __init__(self, encoder: SentencePieceEncoder) -> None:
        self._processor = encoder.processor
        self.vocabulary: dict[bytes, int] = {}
        bytes_of: dict[bytes, int] = {}
        for number in range(encoder.size):
            if self._processor.is_byte(number):
                bytes_of[bytes([int(encoder.token(number)[3:5], 16)])] = number
            elif not (self._processor.is_control(number) or self._processor.is_unknown(number)):
                self.vocabulary[encoder.token(number).encode()] = number
        self.vocabulary = {**bytes_of, **self.vocabulary}

    def of(self, text: str) -> list[Part]:
        """What the model is given of a text.

        Raises:
            ConfigError: The text holds half of a character.
        """
        _check(text)
        content = str(self._processor.normalize(text)).encode()
        return [content] if content else []


def _check(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError("The text holds half of a character; give another.") from None
