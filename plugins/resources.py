"""Registers and spills of every kernel, as the compiler of record gives them.

`python -m trt_compress.plugins.resources` writes `resources.json` beside this file; a test holds a new build against
it, so that a jump is seen in review. The GPUs of record are Orin (SM 87) and Hopper (SM 90).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trt_compress.files import write_whole
from trt_compress.plugins.build import build
from trt_compress.plugins.library import Library

RECORD = Path(__file__).with_name("resources.json")
RECORDED_SMS = (87, 90)
JUMP = 8  # registers: the unit in which an SM gives them out

Use = Mapping[str, Mapping[str, Mapping[str, int]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile for every SM, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    (outcome,) = build(only=("cuda",), cuda="all", step=lambda line: print(line, file=sys.stderr))
    assert outcome.library is not None
    write_whole(RECORD, json.dumps(record_of(outcome.library), indent=1) + "\n")
    spilling = spills(outcome.library.info["resources"])
    print(f"Wrote {RECORD.name}: {len(outcome.library.info['resources'])} kernels, {len(spilling)} of them spill.")
    print("\n".join(spilling), end="\n" if spilling else "")
    return 0


def record_of(library: Library) -> dict[str, Any]:
    """What is kept of a build: the compiler, and the kernels' registers and spills on the SMs of record."""
    kernels = library.info["resources"]
    return {
        "compiler": library.info["compilers"]["cuda"],
        "kernels": {
            name: {str(sm): by_sm[str(sm)] for sm in RECORDED_SMS if str(sm) in by_sm}
            for name, by_sm in sorted(kernels.items())
        },
    }


def spills(kernels: Use) -> list[str]:
    """Kernels that spill registers, with SM and bytes."""
    return [
        f"{name} spills {use['spill_bytes']} bytes on SM {sm}"
        for name, by_sm in sorted(kernels.items())
        for sm, use in by_sm.items()
        if use.get("spill_bytes")
    ]


def jumps(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What differs so much between two records that somebody should look at it."""
    old, new = recorded["kernels"], found["kernels"]
    said = [f"{name} is not in the record" for name in sorted(new.keys() - old.keys())]
    said += [f"{name} is in the record and no more in the build" for name in sorted(old.keys() - new.keys())]
    for name in sorted(old.keys() & new.keys()):
        for sm in old[name].keys() & new[name].keys():
            before, after = old[name][sm], new[name][sm]
            if after["registers"] > before["registers"] + JUMP:
                said.append(f"{name} on SM {sm}: {before['registers']} → {after['registers']} registers")
            if after.get("spill_bytes", 0) > before.get("spill_bytes", 0):
                said.append(f"{name} on SM {sm}: {before['spill_bytes']} → {after['spill_bytes']} bytes spilled")
    return said


if __name__ == "__main__":
    sys.exit(main())
