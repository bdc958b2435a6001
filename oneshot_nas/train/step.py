"""One training step: losses, the trainer, and forward and backward over one or several devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mxnet import autograd, nd
from mxnet.gluon import HybridBlock, ParameterDict, Trainer
from mxnet.ndarray import NDArray

from oneshot_nas.config import Optimizer

Forward = Callable[[NDArray], NDArray]
LOSS_SCALE = {"float32": 1.0, "float16": 128.0}  # keeps small float16 gradients from vanishing; a power of 2, so exact


def make_trainer(params: ParameterDict, optimizer: str, settings: Mapping[str, Any]) -> Trainer:
    """The only way a Trainer is made here: updates happen beside the parameters (``update_on_kvstore=False``).

    With two or more devices Gluon's default would update parameters of operators that were not sampled.
    """
    return Trainer(params, optimizer, dict(settings), update_on_kvstore=False)


def trainer_of(params: ParameterDict, config: Optimizer, dtype: str = "float32") -> Trainer:
    """The trainer of a recipe's optimizer; with `no_wd` biases, gamma and beta are not decayed."""
    for name, parameter in params.items():
        if config.no_wd and name.endswith(("bias", "gamma", "beta")):
            parameter.wd_mult = 0.0
    settings: dict[str, Any] = {"learning_rate": config.lr, "momentum": config.momentum, "wd": config.wd}
    if config.clip is not None:
        settings["clip_gradient"] = config.clip
    if dtype == "float16":
        settings["multi_precision"] = True
    return make_trainer(params, config.name, settings)


class CrossEntropy(HybridBlock):
    """Cross entropy per image, shape (N,), of logits (N, K) against target distributions (N, K).

    With teacher logits (N, K): (1 - w) T^2 CE(out / T, softmax(teacher / T)) + w CE(out, target).
    """

    def __init__(self, temperature: float = 1.0, hard_weight: float = 1.0) -> None:
        super().__init__(prefix="")
        self.temperature = temperature
        self.hard_weight = hard_weight

    def hybrid_forward(self, F: Any, logits: Any, target: Any, teacher: Any = None) -> Any:
        hard = -F.sum(target * F.log_softmax(logits), axis=1)
        if teacher is None:
            return hard
        soft = F.softmax(teacher / self.temperature)
        distilled = -F.sum(soft * F.log_softmax(logits / self.temperature), axis=1)
        return (1 - self.hard_weight) * self.temperature**2 * distilled + self.hard_weight * hard


def targets(labels: NDArray, classes: int, smoothing: float) -> NDArray:
    """Target distributions (N, classes): (1 - e) one-hot + e / classes."""
    return nd.one_hot(labels, classes, on_value=1 - smoothing + smoothing / classes, off_value=smoothing / classes)


def mix(images: NDArray, target: NDArray, share: float) -> tuple[NDArray, NDArray]:
    """Mixup of a batch with its reverse: `share` of the image itself."""
    return share * images + (1 - share) * images[::-1], share * target + (1 - share) * target[::-1]


def run_step(forward: Forward, shards: Iterable[tuple[NDArray, NDArray]], loss: CrossEntropy, trainer: Trainer, batch: int,
             teacher: Forward | None = None, scale: float = 1.0) -> tuple[list[NDArray], list[NDArray]]:
    """Forward and backward of every shard (images, target distributions), then one update over `batch` images.

    The loss is computed in float32; its gradient is multiplied by `scale` on the way back and divided by it in the update.

    Parameters that took no part are left alone: no update, no momentum, no weight decay. Rows of a used weight outside its
    slice get zero gradient; they coast on their momentum and decay, as in the published implementations.

    Returns: per shard, losses (n,) and logits (n, K).
    """
    losses, outputs = [], []
    with autograd.record():
        for images, target in shards:
            logits = forward(images).astype("float32", copy=False)
            extra: Sequence[NDArray] = () if teacher is None else (teacher(images).astype("float32", copy=False),)
            losses.append(loss(logits, target, *extra))
            outputs.append(logits)
    autograd.backward(losses, [nd.full(each.shape, scale, ctx=each.context) for each in losses])
    trainer.step(batch * scale, ignore_stale_grad=True)
    return losses, outputs
