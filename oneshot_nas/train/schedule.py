"""The learning rate as a pure function of the iteration."""

from __future__ import annotations

import math
from collections.abc import Callable

from oneshot_nas.config import Schedule


def learning_rate(schedule: Schedule, peak: float, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return lr(iteration), iteration counted from 0 over the whole run.

    Linear warm-up from `warmup_lr` to `peak`, then the mode down to `final_lr`, reached at the last iteration, but never below
    `least_share` of the peak.
    """
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    last = max(epochs * steps_per_epoch - 1 - warmup, 1)
    modes: dict[str, Callable[[float, float], float]] = {
        "cosine": lambda share, epoch: (1 + math.cos(math.pi * share)) / 2,
        "linear": lambda share, epoch: 1 - share,
        "poly": lambda share, epoch: (1 - share) ** schedule.power,
        "step": lambda share, epoch: schedule.decay ** sum(epoch >= start for start in schedule.decay_epochs),
        "exponential": lambda share, epoch: schedule.decay ** math.floor(epoch / schedule.decay_every + 1e-9),
        "constant": lambda share, epoch: 1.0,
    }
    factor = modes[schedule.mode]

    def lr(iteration: int) -> float:
        if iteration < warmup:
            return schedule.warmup_lr + (peak - schedule.warmup_lr) * iteration / warmup
        share = min((iteration - warmup) / last, 1.0)
        lr = schedule.final_lr + (peak - schedule.final_lr) * factor(share, iteration / steps_per_epoch)
        return max(lr, schedule.least_share * peak)

    return lr
