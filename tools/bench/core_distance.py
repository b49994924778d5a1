"""How far two cores are from each other, as it is now: a virtual machine's cores move about the host.

Cores behind one cache pass a value there and back in some 80 ns; across the host it takes four times as long, and every
operator that two threads share gets slower by it, small ones by a multiple. Without knowing, two runs cannot be held
against each other.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from trt_compress.children import find_program, run
from trt_compress.strays import temporary_folder

NEAR_NS = 200.0
"""Round trips below this are within one cache."""

_SOURCE = Path(__file__).with_suffix(".cpp")
_TRIPS, _TIMES = 2_000, 10  # the least counts: other work on the cores only ever adds


def core_distance() -> Callable[[], float | None]:
    """Make what measures a round trip between the first two cores of this process, in nanoseconds.

    It gives None where that cannot be known: one core, no C++ compiler, not Linux.
    """
    compiler = next(filter(None, map(find_program, ("c++", "g++", "clang++"))), None)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if compiler is None or len(cores) < 2:
        return lambda: None
    with temporary_folder("bench") as folder:
        library = folder / "core_distance.so"
        command = [compiler, "-std=c++17", "-O2", "-shared", "-fPIC", "-pthread", str(_SOURCE), "-o", str(library)]
        if run(command).returncode:
            return lambda: None
        measure = ctypes.CDLL(str(library)).roundTripNs
    measure.restype = ctypes.c_double
    return lambda: min(float(measure(cores[0], cores[1], _TRIPS)) for _ in range(_TIMES))
