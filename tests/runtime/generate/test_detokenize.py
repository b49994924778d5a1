"""Text that is given out as tokens come: together it is the text of all of them, and nothing of a stop is in it."""

import random

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from trt_compress.errors import BundleError, ConfigError
from trt_compress.runtime.generate.detokenize import StopTexts
from trt_compress.runtime.generate.tokenizer import Tokenizer

TEXT = "héllo 你好 🎉🇩🇪 ﬁn�  a"


def byte_level() -> Library:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Library(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def byte_fallback(decoder: decoders.Decoder) -> Library:
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁ ▁a a b ▁the ▁▁ é".split(" ")]
    made = Library(models.BPE({name: at for at, name in enumerate(names)}, [], byte_fallback=True, unk_token="<unk>"))
    made.decoder = decoder
    return made


SPACE = decoders.Replace("▁", " ")
MADE = {
    "byte level": byte_level,
    "Llama 2": lambda: byte_fallback(
        decoders.Sequence([SPACE, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    ),
    "Gemma": lambda: byte_fallback(decoders.Sequence([SPACE, decoders.ByteFallback(), decoders.Fuse()])),
    "Metaspace": lambda: byte_fallback(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])),
}


def names_of_bytes(library: Library) -> list[str]:
    """What a vocabulary calls each byte."""
    if library.token_to_id("<0x00>") is not None:
        return [f"<0x{byte:02X}>" for byte in range(256)]
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's: these stand for themselves
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def damaged(library: Library, choose: random.Random) -> list[int]:
    """Tokens of damaged UTF-8, with others, also silent and unknown ones, in between."""
    content = bytearray(TEXT.encode())
    for _ in range(choose.choice((0, 1, 4))):
        content[choose.randrange(len(content))] = choose.randrange(256)
    names = names_of_bytes(library)
    tokens: list[int] = []
    for byte in content[choose.randrange(8) :]:
        number = library.token_to_id(names[byte])
        assert number is not None
        tokens.append(number)
        if choose.random() < 0.15:
            tokens.append(choose.randrange(library.get_vocab_size() - 6, library.get_vocab_size() + 2))
    return tokens


@pytest.mark.parametrize("kind", MADE)
def test_pieces_are_the_whole(kind: str) -> None:
    library = MADE[kind]()
    library.add_special_tokens(["<s>"])
    library.add_tokens(["<x>", "�"])
    tokenizer, choose = Tokenizer(library), random.Random(3)
    given_early = 0
    for case in range(600):
        tokens = damaged(library, choose)
        if case % 3 == 0:
            tokens = [choose.randrange(library.get_vocab_size()) for _ in range(choose.randrange(40))]
        detokenizer = tokenizer.detokenizer()
        pieces = [detokenizer.add(token) for token in tokens]
        assert "".join(pieces) + detokenizer.rest() == tokenizer.decode(tokens), tokens
        given_early += len("".join(pieces[: len(tokens) // 2]))
    assert given_early > 600  # it does not wait for the end


@pytest.mark.parametrize("kind", MADE)
def test_text_behind_a_prompt_is_what_the_prompt_gets_longer_by(kind: str) -> None:
    library = MADE[kind]()
    tokenizer, choose = Tokenizer(library), random.Random(4)
    found = (library.token_to_id(name) for name in ("a", "b", "▁the", "▁a", "▁"))
    words = [number for number in found if number is not None]
    for _ in range(200):
        before, after = ([choose.choice(words) for _ in range(choose.randrange(1, 30))] for _ in range(2))
        detokenizer = tokenizer.detokenizer(before)
        found = "".join(map(detokenizer.add, after)) + detokenizer.rest()
        assert tokenizer.decode(before) + found == tokenizer.decode(before + after)


def test_stop_texts() -> None:
    choose = random.Random(5)
    for _ in range(3000):
        stops = ["".join(choose.choice("ab") for _ in range(choose.randrange(1, 5))) for _ in range(2)]
        parts = ["".join(choose.choice("abc") for _ in range(choose.randrange(4))) for _ in range(8)]
        whole = "".join(parts)
        places = [(place + len(stop), place) for stop in stops if (place := whole.find(stop)) >= 0]
        wanted = whole[: min(places)[1]] if places else whole
        texts, given, ended = StopTexts(stops), "", False
        for part in parts:
            more, ended = texts.add(part)
            given += more
            assert wanted.startswith(given)
            if ended:
                break
        else:
            given += texts.rest()
        assert given == wanted and ended == bool(places)


def test_what_is_no_tokenizer() -> None:
    for content in (b"", b"{}", b"\xff\xfe", b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}'):
        with pytest.raises(BundleError, match=r"^'tokenizer.json' cannot be read \(.*\); export the bundle again"):
            Tokenizer.read(content, "'tokenizer.json'")
    tokenizer = Tokenizer.read(byte_level().to_str().encode(), "'tokenizer.json'")
    with pytest.raises(ConfigError, match="The text cannot be read .*surrogates not allowed"):
        tokenizer.encode("a\ud800")
    with pytest.raises(BundleError, match="has tokens up to 255, and the model knows 200"):
        tokenizer.check_fits(200, "b")
