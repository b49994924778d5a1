"""The worker of gpu-check with the emulation in place of a GPU: `emulated_worker.py LIBRARY FOLDER NAMES [options]`.

A case whose name begins with `fault<number>-` sets that fault of `faulty_kernels.cpp`.
"""

import ctypes
import sys
from pathlib import Path

from tests.native.emulation.host_device import HostDevice
from trt_compress.tools.gpu.guarded import Kernels
from trt_compress.tools.gpu.worker import run_folder, run_turns

library, folder, names = map(Path, sys.argv[1:4])
repeats = int(sys.argv[sys.argv.index("--repeats") + 1]) if "--repeats" in sys.argv else 0
if "--turns" in sys.argv:
    run_turns(Kernels(library), HostDevice(library), folder, names.read_text().split())
    sys.exit()
for name in names.read_text().split():
    if name.startswith("fault"):
        ctypes.CDLL(str(library)).trtcSetFault(int(name.removeprefix("fault").partition("-")[0]))
    run_folder(Kernels(library), HostDevice(library), folder, [name], once="--once" in sys.argv, repeats=repeats)
