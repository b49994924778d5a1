"""Every cache policy that there is, as the spec string of a setting that does something in a tiny decoder."""

import dataclasses
from functools import cache
from pathlib import Path

from tests.models.decoders import saved
from trt_compress.export.calibration import calibrate
from trt_compress.locks import locked
from trt_compress.methods import METHODS
from trt_compress.methods.config import CACHE_KINDS

CONTEXT, CHUNK = 192, 32
SMALL = {"budget": 40, "window": 8, "smallest": 12, "heads": 2, "group": 8, "residual": 16, "rank": 2}
"""Options by these names have these values, where a method has them and does not take words."""

OWN: dict[str, str] = {
    "h2o": "budget=40",
    "kvquant": "outliers=0",  # of random entries many are outliers as much as others
    "razorattention": "window=24",
    "tidaldecode": "budget=10,start=0,reselect=0",  # of two layers one is left that reads what the other has chosen
}
"""Methods for which that does not do, with all their options."""

POLICIES = tuple(name for name, method in METHODS.items() if method.kind in CACHE_KINDS)
SELECTORS = tuple(name for name in POLICIES if METHODS[name].kind == "selector")
STORES = tuple(name for name in POLICIES if METHODS[name].kind == "store")
SETTINGS = (
    "streamingllm:budget=40,positions=cache,every=8,in_chunks=true",
    "h2o:budget=40,every=4,in_chunks=true,score=mean",
    "kivi:bits=2,group=8,residual=16,prefill=packed",
    "snapkv:budget=40,window=8+int4:group=8",
    "h2o:budget=40,every=4,in_chunks=true+int8",
    "pyramidkv:budget=40,window=8+kivi:bits=4,group=8,residual=16",
)
"""Settings whose graphs differ from those of the policies alone."""

EVERY = (*POLICIES, *SETTINGS)


def spec_of(policy: str, folder: Path) -> str:
    """The spec string of a policy, or of a setting as it is.

    Args:
        policy: One of `EVERY`.
        folder: Of the tiny decoder that `model` saved; artifacts are made beside it.
    """
    if policy not in METHODS:
        return policy
    method = METHODS[policy]
    fields = {field.name: field.default for field in dataclasses.fields(method.config)}
    options = OWN.get(policy) or ",".join(
        f"{name}={value}" for name, value in SMALL.items() if name in fields and not isinstance(fields[name], str)
    )
    spec = f"{policy}:{options}" if options else policy
    for name in () if "reselect=" in spec else method.artifacts:
        made = folder / f"{policy}-{name}.safetensors"
        lock = made.with_suffix(".lock")
        lock.touch()
        with locked(lock, patience=900):  # all workers have this folder
            if not made.exists():
                calibrate(f"hf:{folder}", compress=spec, output=made)
        spec += f"{',' if ':' in spec else ':'}{name}={made}"
    return spec


@cache
def model(folder: Path) -> Path:
    """The tiny Llama in a folder."""
    return saved("llama", folder)
