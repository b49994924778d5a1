"""MoME: a mixture of small experts beside a layer, shared by every rate of a matryoshka model."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class MicroExperts(nn.Module):
    """One expert that always counts and the best few of many routed ones, all narrow.

    All experts run, as two matrix products, and those that were not chosen are multiplied by zero: that is cheaper than
    picking them, and the graph is the same for every input.

    Args:
        width: Of the tokens.
        experts: Routed experts.
        bottleneck: Width inside an expert.
        active: Routed experts that count for a token.

    Source: MoME, arXiv:2510.04136.
    Differs: the order of softmax and choice is not stated there: softmax over all experts comes first here, and the
        gates of the chosen ones are not rescaled. Equal gates that cross the last place all count.
    """

    def __init__(self, width: int, *, experts: int, bottleneck: int = 12, active: int = 4) -> None:
        super().__init__()
        self.routed, self.bottleneck, self.active = experts, bottleneck, min(active, experts)
        inner = (experts + 1) * bottleneck
        self.router = nn.Linear(width, experts, bias=False)
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def gates(self, x: Tensor) -> Tensor:
        """Weight of each routed expert for each token, [B, N, experts]; zero for those that are not chosen."""
        probability = self.router(x).softmax(dim=-1)
        last_place = probability.topk(self.active, dim=-1).values[..., -1:]
        gates: Tensor = torch.where(probability >= last_place, probability, 0)
        return gates

    def forward(self, x: Tensor) -> Tensor:
        """What the experts add to tokens [B, N, C]."""
        gates = self.gates(x)
        weight = torch.cat([torch.ones_like(gates[..., :1]), gates], dim=-1)
        hidden = functional.gelu(self.down(x)).reshape(*x.shape[:-1], self.routed + 1, self.bottleneck)
        update: Tensor = self.up((hidden * weight[..., None]).reshape(*x.shape[:-1], -1))
        return update

    def balance_loss(self, x: Tensor) -> Tensor:
        """How unevenly tokens go to experts: 1 if evenly, `experts` if all go to one (Switch Transformer's loss)."""
        probability = self.router(x).softmax(dim=-1).flatten(0, -2)
        chosen = (self.gates(x) > 0).flatten(0, -2).float().mean(dim=0) / self.active
        loss: Tensor = self.routed * (chosen * probability.mean(dim=0)).sum()
        return loss
