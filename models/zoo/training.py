"""The one training loop of the zoo: steps of the optimizers, their schedules, the moving average, and what is said."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR


@dataclass(frozen=True, slots=True, kw_only=True)
class MovingAverage:
    """The exponential moving average of a model's weights, which is what the zoo releases.

    Attributes:
        model: Holds it; of the same form as the one that is trained, with its weights at first.
        decay: Of one step, at its highest.
        rise: After n steps the decay is at most n / (n + rise), so that what was there at first is soon forgotten.
    """

    model: nn.Module
    decay: float
    rise: int = 0

    @torch.no_grad()
    def take(self, trained: nn.Module, step: int) -> None:
        """Take the weights after step `step`, counted from 1."""
        decay = min(self.decay, step / (step + self.rise))
        for averaged, parameter in zip(self.model.parameters(), trained.parameters(), strict=True):
            averaged.lerp_(parameter, 1 - decay)


def say_on_stderr(text: str) -> None:
    """Tell whoever waits how far it is."""
    print(text, file=sys.stderr, flush=True)


def one_cycle(
    parameters: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float, steps: int, warmup_share: float
) -> OneCycleLR:
    """AdamW for these parameters, under a learning rate that rises during a share of the steps, and then falls."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    return OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=warmup_share, cycle_momentum=False)


def fit(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    schedules: Sequence[LRScheduler],
    *,
    steps: int,
    gradient_clip_norm: float,
    average: MovingAverage | None = None,
    say: Callable[[str], None] = say_on_stderr,
    say_every: int = 100,
) -> None:
    """Train `model` in place.

    Args:
        model: Its gradients are clipped together.
        loss_of: Makes the batch of a step, numbered from 0, and gives its loss.
        schedules: Each with its optimizer.
        steps: How many.
        gradient_clip_norm: Largest 2-norm of all gradients.
        average: Follows the weights.
        say: Gets the mean loss of every `say_every` steps.
        say_every: Steps.
    """
    started, running = time.process_time(), 0.0
    for step in range(1, steps + 1):
        loss = loss_of(step - 1)
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), gradient_clip_norm)
        for schedule in schedules:
            schedule.optimizer.step()
            schedule.step()
        if average is not None:
            average.take(model, step)
        running += loss.item()
        if step % say_every == 0:
            say(f"step {step}/{steps}, {time.process_time() - started:.0f} s: loss {running / say_every:.3f}")
            running = 0.0
