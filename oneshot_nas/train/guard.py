"""The collapse guard: steps whose loss explodes or whose gradients are not finite are skipped, and told.

Supernets of sandwich training are known to fall to chance within a few steps, or to fill with NaN, after days of training.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any

from mxnet import nd
from mxnet.gluon import Block, Trainer
from mxnet.ndarray import NDArray

from oneshot_nas.sections import Guard
from oneshot_nas.train.step import fresh_gradients

TOGETHER = 200  # arrays that MXNet's multi_all_finite takes; with one more it overruns its memory


class Collapse(Exception):
    """More steps in a row were skipped than the recipe bears; the message says why the last one was."""


class Watch:
    """Judges every step before its update; its `state` is plain numbers that a checkpoint keeps.

    ``watch.accept(losses)`` is True when the update may happen. A refused step leaves weights, momentum and the list of losses
    as they were. `skipped` counts the refused steps of the run.
    """

    def __init__(self, config: Guard, trainer: Trainer, say: Callable[[str], None], state: dict[str, Any] | None = None) -> None:
        self.config = config
        self.trainer = trainer
        self.say = say
        state = state or {}
        self.recent: deque[float] = deque(state.get("recent", ()), maxlen=config.window)
        self.skipped = int(state.get("skipped", 0))
        self.streak = int(state.get("streak", 0))

    @property
    def state(self) -> dict[str, Any]:
        """What `Watch` needs to go on as if it had not been interrupted."""
        return {"recent": list(self.recent), "skipped": self.skipped, "streak": self.streak}

    def accept(self, losses: list[NDArray]) -> bool:
        """Whether the update of this step may happen; reads the losses, so it waits for the device.

        Raises: Collapse after `patience` refusals in a row.
        """
        loss = math.fsum(float(each.sum().asscalar()) for each in losses) / sum(map(len, losses))
        reason = self._objection(loss)
        if reason is None:
            self.recent.append(loss)
            self.streak = 0
            return True
        self.skipped += 1
        self.streak += 1
        self.say(f"warning: step skipped ({self.streak} in a row): {reason}")
        if self.streak >= self.config.patience:
            raise Collapse(f"{self.streak} steps in a row were skipped, the last one because {reason}")
        return False

    def _objection(self, loss: float) -> str | None:
        if not math.isfinite(loss):
            return f"its loss is {loss}"
        if len(self.recent) >= self.config.window // 2:
            median = statistics.median(self.recent)
            if loss > self.config.factor * median:
                return f"its loss {loss:.4g} is more than {self.config.factor:g} times the median {median:.4g} of the last steps"
        finite = [nd.multi_all_finite(*part, num_arrays=len(part)) for arrays in fresh_gradients(self.trainer)
                  for part in (arrays[start : start + TOGETHER] for start in range(0, len(arrays), TOGETHER))]
        return None if all(bool(flag.asscalar()) for flag in finite) else "a gradient is not finite"


def heal_statistics(net: Block) -> None:
    """Set running statistics that are not finite back to where they started: a skipped step has moved them all the same."""
    for name, parameter in net.collect_params().items():
        if not parameter._differentiable:
            for array in parameter.list_data():
                fill = nd.ones_like(array) if name.endswith("running_var") else nd.zeros_like(array)
                array[:] = nd.where(nd.contrib.isfinite(array), array, fill)
