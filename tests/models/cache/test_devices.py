"""Cache policies compute where their inputs are: no tensor is made on whatever device is the default one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden.golden_data import FOLDER, read
from tests.models.cache.runs import CacheRun, golden_decoder
from trt_compress.methods import METHODS
from trt_compress.methods.config import CACHE_KINDS

ARTIFACTS = {
    "compresskv": "calibration",
    "razorattention": "search",
    "kvquant": "tables",
}  # without one they do not act
OPTIONS = {
    "kivi": "kivi:bits=4,group=8,residual=8",
    "gear": "gear:bits=4,group=8,residual=8,rank=2",
    "snapkv": "snapkv:budget=16,window=4",
    "pyramidkv": "pyramidkv:budget=16,window=4",
    "ems": "ems:budget=16,window=4",
    "zipcache": "zipcache:every=2,window=4",
    "tidaldecode": "tidaldecode:budget=8,start=0,reselect=0",
}
NAMES = [name for name, method in METHODS.items() if method.kind in CACHE_KINDS and name not in ARTIFACTS]


class ElsewhereRun(CacheRun):
    """Runs its graphs while another device is the default."""

    def _graph(self, name: str, *inputs: Tensor) -> Tensor:
        with torch.device("meta"):
            return super()._graph(name, *inputs)


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_computes_where_its_inputs_are(name: str, tmp_path: Path) -> None:
    model, _ = read("kvpress", "llama_model")
    decoder = golden_decoder(FOLDER / "kvpress" / "llama_model.npz", tmp_path, "llama")
    spec = OPTIONS.get(name, f"{name}:budget=16" if METHODS[name].kind == "selector" else name)
    prompt = model["input_ids"].tolist()[:1]
    found = []
    for kind in (CacheRun, ElsewhereRun):
        run = kind(decoder, spec, context=96, chunk=16)
        found.append(torch.cat([run.read(prompt), *(run.step([token]) for token in (5, 6, 7))]))
    assert torch.equal(*found)
