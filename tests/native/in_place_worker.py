"""Run one model whose cache is bound as input and as output, with most of the cache's pages read-only.

`in_place_worker.py LIBRARY MODEL INPUTS.npz FIRST LAST`: of each KV head's slots only the pages FIRST to LAST - 1 may
be written; a write anywhere else ends the process. Prints the addresses, writes the cache to `INPUTS.npz.out.npy`.
"""

import ctypes
import json
import mmap
import sys

import numpy as np
import onnxruntime

PAGE = mmap.PAGESIZE
READ, READ_WRITE = 1, 3

library, model, inputs = sys.argv[1:4]
first, last = int(sys.argv[4]), int(sys.argv[5])
with np.load(inputs) as file:
    feeds = {name: file[name] for name in file.files}
given = feeds.pop("cache")
memory = mmap.mmap(-1, given.nbytes)
cache = np.frombuffer(memory, dtype=given.dtype).reshape(given.shape)
cache[...] = given
start = cache.ctypes.data

options = onnxruntime.SessionOptions()
options.log_severity_level = 3
options.register_custom_ops_library(library)
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
value = onnxruntime.OrtValue.ortvalue_from_numpy(cache)
binding = session.io_binding()
binding.bind_ortvalue_input("cache", value)
binding.bind_ortvalue_output("cache_out", value)
for name, array in feeds.items():
    binding.bind_cpu_input(name, array)

libc = ctypes.CDLL(None, use_errno=True)


def protect(address: int, num_bytes: int, mode: int) -> None:
    if num_bytes and libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(num_bytes), mode):
        raise OSError(ctypes.get_errno(), "mprotect failed")


head_bytes = cache[0, 0].nbytes
for head in range(start, start + cache.nbytes, head_bytes):
    protect(head, first * PAGE, READ)
    protect(head + last * PAGE, head_bytes - last * PAGE, READ)
session.run_with_iobinding(binding)
protect(start, cache.nbytes, READ_WRITE)

out = binding.get_outputs()[0]
print(json.dumps({"memory": start, "input": value.data_ptr(), "output": out.data_ptr()}))
np.save(f"{inputs}.out.npy", cache)
