"""GEAR's own simulated compression (HaoKang-Timmy/GEAR efe0bfe) against the store's blocks, and what steps make of it.

The original gives float16 where it has outliers. Its power iteration orthonormalizes in the last pass only: the product
of the factors is the same.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.golden_data import FOLDER, read
from tests.models.cache.runs import CacheRun, golden_decoder
from trt_compress.methods import parse_spec
from trt_compress.models.cache.gear import Gear, low_rank, marked, outliers_of
from trt_compress.models.hosts.decoder_config import Caching
from trt_compress.models.hosts.decoder_families import read_config
from trt_compress.models.hosts.decoder_host import plan_of
from trt_compress.plugins.kv_dequantize.op import kv_dequantize
from trt_compress.plugins.operator import recording


def store_of(spec: str, *, groups: int, head_dim: int) -> Gear:
    sizes: dict[str, Any] = {"hidden_size": groups * head_dim, "num_attention_heads": groups, "head_dim": head_dim}
    sizes |= {"vocab_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "max_position_embeddings": 256}
    config = read_config({"model_type": "llama", **sizes}, name="tiny")
    (cache,) = plan_of(config, Caching(context=256, chunk=32), "tiny", parse_spec(spec)).layers
    assert isinstance(cache.store, Gear)
    return cache.store


def codes_of(store: Gear, which: str, memory: Mapping[str, Tensor]) -> Tensor:
    """What the codes stand for without the rest."""
    how = (
        {"axis": "channel", "group": store.key_group} if which == "k" else {"axis": "token", "group": store.value_group}
    )
    return kv_dequantize(*store.parts(which, memory), bits=store.config.bits, **how, to=torch.float32)


@pytest.mark.parametrize("case", ["lowrank_batch1", "lowrank_batch2"])
def test_power_iteration(case: str) -> None:
    """Each item by itself; the original multiplies by the factors of the first."""
    arrays, meta = read("gear", case)
    left, right = low_rank(arrays["error"], arrays["p0"], meta["loops"])
    torch.testing.assert_close(left @ right.transpose(2, 3), arrays["approx_sim"], rtol=0, atol=2e-4)
    torch.testing.assert_close(left.transpose(2, 3) @ left, torch.eye(2).expand(*left.shape[:2], 2, 2))


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        *((case, "key") for case in ("sim_gear", "sim_gearl", "sim_gear_kcvt", "sim_gearl_kcvt")),
        *((case, "value") for case in ("sim_gear", "sim_gearl")),  # without groups: one scale there for all heads
    ],
)
def test_blocks(case: str, kind: str) -> None:
    arrays, meta = read("gear", case)
    rows, rank = arrays[kind], meta[f"rank_{kind}"]
    outliers = 0.0 if "gearl" in case else meta["sparsity"]
    group = 0 if case.endswith("kcvt") else meta["group_size"]
    spec = f"gear:bits={meta['bits']},group={group},residual=32,rank={rank},outliers={outliers},scales=float32"
    store = store_of(spec, groups=rows.shape[1], head_dim=rows.shape[3])
    assert not outliers or store.apart(kind[0]) == meta["outliers_per_side"]
    store.start = arrays[f"p0_{kind}"][:, :, None]
    found = store.unpacked(kind[0], store.pack(kind[0], rows))
    torch.testing.assert_close(found, arrays[f"{kind}_out"].float(), rtol=0, atol=1.5e-3 * float(rows.abs().max()))
    assert (found - rows).norm() <= 1.001 * (arrays[f"{kind}_out"].float() - rows).norm()


def test_outliers_are_the_first_of_equal_ones_and_each_once() -> None:
    lines = torch.tensor([[5.0, 5, 5, 5, 9], [1, 1, 1, 1, 1], [3, -2, 7, 0, 7]])
    numbers = outliers_of(lines, 2)
    assert numbers.tolist() == [[0, 4, 1, 2], [0, 1, 2, 3], [2, 4, 1, 3]]
    restored = marked(numbers, 5, lines.gather(1, numbers))
    assert (restored == torch.where(marked(numbers, 5) > 0, lines, 0.0)).all() and (marked(numbers, 5) <= 1).all()


@pytest.mark.parametrize("options", ["group=8,residual=16,rank=2", "bits=4,group=0,residual=16,rank=3,outliers=0"])
def test_steps_attend_to_what_the_blocks_stand_for(options: str, tmp_path: Path) -> None:
    """A plain cache with the reconstructed rows gives the same logits; and GEAR's rows are nearer to the true ones."""
    decoder = golden_decoder(FOLDER / "kvpress" / "llama_model.npz", tmp_path, "llama")
    (text, *_) = read("kvpress", "llama_model")[0]["input_ids"].tolist()
    plain, gear = (CacheRun(decoder, spec, context=96, chunk=16) for spec in ("plain", f"gear:{options}"))
    for run in (plain, gear):
        run.read([text[:37]])
    assert gear.states["rows"].tolist() == [5] and gear.states["packed"].tolist() == [2]
    for cache in gear.plan.layers:
        store, number = cache.store, cache.number
        assert isinstance(store, Gear)
        for which, name in (("k", "keys"), ("v", "values")):
            memory = {state.name: gear.states[f"{state.name}_{number}"] for state in cache.states()}
            found, true = store.unpacked(which, memory)[:, :, :32], plain.states[f"{name}_{number}"][:, :, :32]
            codes_alone = {key: part for key, part in memory.items() if key.split("_")[0] == which}
            assert (found - true).norm() < 0.9 * (codes_of(store, which, codes_alone)[:, :, :32] - true).norm()
            plain.states[f"{name}_{number}"][:, :, :32] = found
            tail = gear.states[f"{name}_{number}"][:, :, :5]
            torch.testing.assert_close(plain.states[f"{name}_{number}"][:, :, 32:37], tail, rtol=0, atol=1e-5)
    for token in text[:6]:
        with recording() as record:
            found, expected = gear.step([token]), plain.step([token])
        ranks = {int(value) for name, value in record.items() if name.endswith("KVAttention/k_rank")}
        # factors are read as they are, or nothing that is packed is
        assert ranks == ({3} if "outliers=0" in options else set())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
