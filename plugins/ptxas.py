"""What ptxas says of each kernel: registers, stack, spilled bytes. As a script it stands before a call of nvcc.

    python ptxas.py nvcc … -o kernel.o

runs the call, keeps ptxas' lines out of the output and writes what they say to `kernel.o.ptxas.json`. It runs by its
path inside CMake, so it imports nothing of this package; the PATH that it gets there names absolute folders only.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

SUFFIX = ".ptxas.json"

_ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\d+)\w?'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")


def resources(lines: Iterable[str]) -> dict[str, dict[str, dict[str, int]]]:
    """Registers, stack and spills by kernel (mangled) and SM."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    use: dict[str, int] = {}
    for line in lines:
        if entry := _ENTRY.search(line):
            use = found.setdefault(entry.group(1), {}).setdefault(entry.group(2), {})
        elif spills := _SPILLS.search(line):
            stack, stores, loads = map(int, spills.groups())
            use |= {"stack_bytes": stack, "spill_bytes": stores + loads}
        elif used := _USED.search(line):
            use["registers"] = int(used.group(1))
    return found


def demangled(found: dict[str, dict[str, dict[str, int]]]) -> dict[str, dict[str, dict[str, int]]]:
    """The same by readable names, where c++filt is installed."""
    if not found or shutil.which("c++filt") is None:
        return found
    done = subprocess.run(["c++filt"], input="\n".join(found), capture_output=True, text=True, check=True)
    plain = (line.replace("(anonymous namespace)::", "").removeprefix("void ") for line in done.stdout.splitlines())
    names = (line.replace("(int)", "").partition("(")[0] for line in plain)
    return dict(zip(names, found.values(), strict=True))


def main(command: list[str]) -> int:
    """Run nvcc, and keep what ptxas says beside the object."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    lines = done.stderr.splitlines()
    # Lines of other functions ("Function properties for …") come with ptxas' own.
    ours = [line for line in lines if line.startswith("ptxas info") or _SPILLS.search(line) or not line.strip()]
    for line in lines:
        if line not in ours:
            print(line, file=sys.stderr)
    if done.returncode == 0 and "-o" in command:
        output = Path(command[command.index("-o") + 1])
        found = demangled(resources(ours))
        if found:
            draft = output.with_name(f"{output.name}{SUFFIX}.new")  # nothing of this package: no files.write_whole
            draft.write_text(json.dumps(found, indent=1), encoding="utf-8")
            os.replace(draft, output.with_name(output.name + SUFFIX))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
