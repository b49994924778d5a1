"""VTC-CLS against vectors of the authors' code: one step that needs the attention of several layers at once."""

import pytest
import torch

from tests.golden.golden_data import cases_on_disk, read
from trt_compress.methods.vision import VtcClsConfig
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, layer_sites, leading_spans
from trt_compress.models.compressors.vtc_cls import VtcCls

CASES = ("all_layers", "basic", "fp16_range", "one_layer")


def test_every_case_is_compared() -> None:
    assert cases_on_disk("vtc_cls") == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_patches_of_the_largest_sum_stay_in_order(case: str) -> None:
    arrays, meta = read("vtc_cls", case)
    hidden, rows = arrays["hidden"], arrays["attentions_cls_row"]
    depth, used = meta["layers"], meta["layers_used"]
    host = HostInfo(
        name="golden",
        sites=layer_sites("after_attention", depth, taps=("class_attention",)),
        depth=depth,
        num_tokens=hidden.shape[1],
        protected=leading_spans([("class", 1)]),
    )
    taps = Taps()
    for layer in range(depth):
        taps.put(layer, {"class_attention": rows[layer].mean(dim=1)})
    for count in meta["token_nums"]:
        config = VtcClsConfig(num_kept=count, first_layer=used[0])
        (placement,) = VtcCls.placements(config, host)
        assert placement.layers == (used[-1],)  # the last layer is left out, as there
        site = host.sites[used[-1]]
        assert [tap.layer for tap in VtcCls.taps(config, host, site)] == used
        arrival = Arrival(
            host=host, site=site, tokens=host.num_tokens, prefix=1, has_class_token=True, width=hidden.shape[2]
        )
        found = VtcCls(config, arrival)(Tokens(x=hidden), taps).x
        assert torch.equal(found[:, 1:], arrays[f"out_n{count}"])
        assert torch.equal(found[:, :1], hidden[:, :1])
