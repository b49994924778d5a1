"""Where the time of a model on a GPU goes, kernel by kernel, from PyTorch's profiler."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from trt_compress.tools.gpu.timing import Call

# The first that matches names what a kernel is for.
KINDS: Mapping[str, str] = {
    "token merging": r"trtc|tokenMerge",
    "attention": r"flash|fmha|attention|softmax",
    "matrix products": r"gemm|cutlass|nvjet|xmma|cublas|conv|addmm|linear|matmul|\bbmm\b|\bmm\b",
    "sorting and scattering": r"sort|scatter|gather|index|radix",
    "normalisation": r"norm",
}
RUNS = 5
MOST_ROWS = 25


def account(call: Call, device: torch.device) -> dict[str, Any]:
    """Time by kind of kernel and by kernel, in microseconds of one run; profiled in a run of its own."""
    on_gpu = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    call()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(RUNS):
            call()
        if on_gpu:
            torch.cuda.synchronize()
    spent: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for event in profile.key_averages():
        time_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        # On a GPU an operator's own row repeats the time of the kernels it launched.
        if time_us > 0 and (not on_gpu or str(event.device_type).endswith("CUDA")):
            spent[event.key] += time_us / RUNS
            launches[event.key] += event.count
    kinds: Counter[str] = Counter()
    for name, time_us in spent.items():
        kinds[kind_of(name)] += time_us
    return {
        "total_us": round(sum(spent.values()), 1),
        "kernels": sum(launches.values()) // RUNS,
        "by_kind_us": {kind: round(time_us, 1) for kind, time_us in kinds.most_common()},
        "by_kernel_us": [
            {"kernel": name[:120], "us": round(time_us, 1), "count": launches[name] // RUNS}
            for name, time_us in spent.most_common(MOST_ROWS)
        ],
    }


def kind_of(kernel: str) -> str:
    """What a kernel is for, by its name."""
    found = (kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.IGNORECASE))
    return next(found, "elementwise and the rest")
