"""JSON data and bytes as a stranger may have changed them."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**63, 2**64, 10**30, 10**300, -(2**63)),
    *(0.0, -0.0, 0.5, -1.5, 1e-300, 1e300, 1e308, 3.4e38),
    *(
        "",
        " ",
        "x",
        "model",
        "batch",
        "image",
        "zeros",
        "float32",
        "bfloat16",
        "float8_e4m3fn",
        "O",
        "V8",
        "datetime64",
    ),
    *(
        "object",
        "str",
        "U5",
        "<f4",
        "f4,f4",
        "(2,2)f4",
        "../x",
        "/etc/passwd",
        "a\nb",
        "\u202e",
        "ü",
        "日本",
        "😀",
        "\0",
    ),
    *(
        "1:2:3",
        "3:2:1",
        "0",
        "-1",
        "1e9",
        "nan",
        "NCHW",
        "NHWC",
        "audio",
        "tensors",
        "classification",
        "raw",
        "%s",
        "{}",
    ),
    *("9" * 300, "x" * 300, "x" * 70_000, "a.b", "model.onnx", "verify.json", "manifest.json", "verify.json/x"),
    *([], {}, [[]], [None], [0], [-1], [1, 1], ["batch"], [2**40, 2**40], [1] * 70, ["x", "x"], [0.0, 0.0], {"": {}}),
    *({"fill": 1}, {"fill": 1e300}, {"fill": 10**400}, {"file": "verify.json"}, {"total": "x"}, {"graphs": [1]}),
    *({"output": "y"}, {"min": 1}, [{}], {"x": 1}, {"total": 10**30}, {"model": {"x": []}}),
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in JSON data: what holds it, and its key or index there."""
    keys: Any = value if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def mutated(data: Any, rng: random.Random) -> Any:
    """A copy with one to four changes."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        found = list(places(data))
        if not found:
            break
        _change(*rng.choice(found), [entry for entry in found], rng)
    return data


def _change(holder: Any, key: Any, found: list[tuple[Any, Any]], rng: random.Random) -> None:
    before = holder[key]
    kind = rng.randrange(13)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(["x", "", "kind", "name", "ü", f"{key} ", str(key).upper()])] = holder.pop(key)
    elif kind == 2 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(before))
    elif kind == 3 and isinstance(holder, list):
        rng.shuffle(holder)
    elif kind == 4:
        other, place = rng.choice(found)
        if _holds(other, place):
            holder[key] = copy.deepcopy(other[place])
    elif kind == 5:
        other, place = rng.choice(found)
        if _holds(other, place) and not _inside(before, other) and not _inside(other[place], holder):
            holder[key], other[place] = other[place], before
    elif kind == 6:
        for _ in range(rng.choice((1, 3, 62, 66, 300))):
            holder[key] = rng.choice(([holder[key]], {"x": holder[key]}))
    elif kind == 7 and isinstance(before, int | float) and not isinstance(before, bool):
        holder[key] = rng.choice((before + 1, before - 1, -before, before * 1000, *_fractions(before), str(before)))
    elif kind == 8 and isinstance(before, str):
        holder[key] = rng.choice((before[:-1], before.upper(), f"{before}\0", f"{before}.", f"{before}/x", before * 40))
    else:
        holder[key] = copy.deepcopy(rng.choice(_ODD))


def _fractions(number: int | float) -> tuple[int | float, int | float]:
    """A third of it, and the number with a point; one beyond any with a point stays an integer."""
    try:
        return number / 3, float(number)
    except OverflowError:
        return number // 3, number


def _holds(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _inside(value: Any, holder: Any) -> bool:
    if value is holder:
        return True
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_inside(part, holder) for part in parts)


def mutated_text(text: str, rng: random.Random) -> bytes:
    """JSON text that was cut, repeated or spoilt."""
    raw = bytearray(text.encode())
    place = rng.randrange(len(raw) + 1)
    kind = rng.randrange(8)
    if kind == 0:
        return bytes(raw[:place])
    if kind == 1:
        return bytes(raw + raw)
    if kind == 2:
        raw[place:place] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 2, 9))))
    elif kind == 3:
        for _ in range(rng.choice((1, 2, 20))):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif kind == 4:
        raw[place:place] = rng.choice((b"[", b"{", b'"', b"NaN", b"1e999", b"\\ud800", b"9" * 5000, b"[" * 9000, b"//"))
    elif kind == 5:
        name = rng.choice(list(json.loads(text)))
        return text.replace("{", f'{{"{name}": 1,', 1).encode()
    elif kind == 6:
        return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-le")))
    else:
        del raw[place : place + rng.choice((1, 2, 50))]
    return bytes(raw)
