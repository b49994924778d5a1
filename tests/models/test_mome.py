"""The mixture of small experts, against a loop over tokens and experts."""

import pytest
import torch
from torch.nn import functional

from trt_compress.models.hosts.mome import MicroExperts


@pytest.fixture
def module() -> MicroExperts:
    torch.manual_seed(0)
    experts = MicroExperts(16, experts=7, bottleneck=3, active=2)
    with torch.no_grad():
        experts.up.weight.normal_()
    return experts.eval()


def test_the_best_few_and_the_shared_one(module: MicroExperts) -> None:
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, probability = module(x), module.router(x).softmax(dim=-1)
        for item in range(2):
            for token in range(5):
                best = probability[item, token].argsort(descending=True)[:2]
                wanted = torch.zeros(16)
                for expert, gate in [(0, 1.0), *((int(n) + 1, float(probability[item, token, n])) for n in best)]:
                    rows = slice(3 * expert, 3 * expert + 3)
                    inner = functional.gelu(module.down.weight[rows] @ x[item, token] + module.down.bias[rows])
                    wanted += gate * (module.up.weight[:, rows] @ inner)
                torch.testing.assert_close(found[item, token], wanted, atol=1e-5, rtol=0)
                assert int((module.gates(x)[item, token] > 0).sum()) == 2


def test_a_new_one_adds_nothing() -> None:
    assert not MicroExperts(8, experts=4)(torch.randn(1, 3, 8)).any()


def test_balance_is_one_where_tokens_spread_evenly(module: MicroExperts) -> None:
    with torch.no_grad():
        module.router.weight.zero_()
        even = module.balance_loss(torch.randn(4, 50, 16))
        module.router.weight[0] = 50
        uneven = module.balance_loss(torch.ones(4, 50, 16))
    assert even.item() == pytest.approx(7 / 2)  # all gates are equal, so every expert is chosen: 7 of 2 places
    assert uneven.item() > 3.4
