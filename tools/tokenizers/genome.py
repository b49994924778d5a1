"""Sequences of bases out of FASTA files, or of files that hold nothing else."""

import re
from pathlib import Path

from trt_compress.errors import ConfigError
from trt_compress.files import read_regular
from trt_compress.foreign import reading, shown
from trt_compress.tools.tokenizers.texts import LARGEST, unpacked

_ALLOWED = re.compile(rb"[ACGTURYKMSWBDHVNacgturykmswbdhvn.*-]*")
_LONGEST = 1 << 16  # bases that are given to a trainer as one word
_LEAST = 8


def read_sequences(path: Path) -> list[str]:
    """The runs of A, C, G and T in a file, in capitals; what stands for several bases, or for none, parts them.

    Args:
        path: A file of FASTA, or of lines of bases; packed by gzip or not.

    Raises:
        ConfigError: It cannot be read, or a line is no line of bases; the message says which.
    """
    with reading(f"'{shown(str(path))}'", "give a file of FASTA"):
        data = read_regular(path, limit=LARGEST)
        if data[:2] == b"\x1f\x8b":
            data = unpacked(data, LARGEST)
    sequences: list[list[bytes]] = [[]]
    for number, line in enumerate(data.splitlines(), 1):
        if line[:1] in (b">", b";"):
            sequences.append([])
        elif _ALLOWED.fullmatch(line.strip()) is None:
            raise ConfigError(
                f"'{path}' is no FASTA: line {number} holds other characters than bases; give sequences of A, C, G and "
                "T."
            )
        else:
            sequences[-1].append(line.strip())
    runs: list[str] = []
    for lines in sequences:
        whole = b"".join(lines).upper().replace(b"U", b"T").decode("ascii")
        for run in re.findall(f"[ACGT]{{{_LEAST},}}", whole):
            runs += [run[start : start + _LONGEST] for start in range(0, len(run), _LONGEST)]
    return runs
