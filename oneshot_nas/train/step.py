"""One training step: the trainer, and forward and backward of one or several networks over one or several devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mxnet import autograd, nd
from mxnet.gluon import HybridBlock, Parameter, ParameterDict, Trainer
from mxnet.ndarray import NDArray

from oneshot_nas.config import Optimizer

Forward = Callable[[NDArray], NDArray]
Shard = tuple[NDArray, NDArray]
Result = tuple[list[NDArray], list[NDArray]]
Accept = Callable[[list[NDArray]], bool]
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


def targets(labels: NDArray, classes: int, smoothing: float) -> NDArray:
    """Target distributions (N, classes): (1 - e) one-hot + e / classes."""
    return nd.one_hot(labels, classes, on_value=1 - smoothing + smoothing / classes, off_value=smoothing / classes)


def mix(images: NDArray, target: NDArray, share: float) -> tuple[NDArray, NDArray]:
    """Mixup of a batch with its reverse: `share` of the image itself."""
    return share * images + (1 - share) * images[::-1], share * target + (1 - share) * target[::-1]


def accumulate(params: ParameterDict) -> None:
    """Let several backward passes of a step add up: their gradients are summed into the buffers that `run_step` zeroes first."""
    for parameter in params.values():
        if parameter.grad_req == "write":
            parameter.grad_req = "add"


def run_step(forward: Forward, shards: Sequence[Shard], loss: HybridBlock, trainer: Trainer, batch: int, *,
             teacher: Forward | None = None, scale: float = 1.0, students: Sequence[Forward] = (),
             distil: HybridBlock | None = None, accept: Accept | None = None, clip_norm: float | None = None) -> Result:
    """Forward and backward of every shard (images, target distributions), then one update over `batch` images.

    The loss is computed in float32; its gradient is multiplied by `scale` on the way back and divided by it in the update.
    `students` are run on the same images afterwards: their loss is ``distil(their logits, logits of forward)``, the latter being
    constants, and all gradients are summed before the one update (the parameters must `accumulate`). `accept(losses)` may refuse
    the update after the backward passes. All gradients together are shortened to the norm `clip_norm`.

    Parameters that took no part are left alone: no update, no momentum, no weight decay. Rows of a used weight outside its
    slice get zero gradient; they coast on their momentum and decay, as in the published implementations.

    Returns: per shard, losses (n,) and logits (n, K) of `forward`; two empty lists when the update was refused.
    """
    def supervised(images: NDArray, target: NDArray, logits: NDArray) -> NDArray:
        return loss(logits, target, *(() if teacher is None else (teacher(images).astype("float32", copy=False),)))

    if students:
        zero_gradients(trainer)
    losses, outputs = _backward(forward, shards, supervised, scale)
    everything = list(losses)
    if students:
        assert distil is not None
        taught = [(images, logits.detach()) for (images, _), logits in zip(shards, outputs, strict=True)]
        for student in students:
            everything += _backward(student, taught, lambda images, target, logits: distil(logits, target), scale)[0]
    if accept is not None and not accept(everything):
        forget_gradients(trainer)
        return [], []
    divisor = batch * scale
    if clip_norm is None:
        trainer.step(divisor, ignore_stale_grad=True)
    else:
        trainer.allreduce_grads()
        norm = math.sqrt(sum(float((g.astype("float32") ** 2).sum().asscalar()) for g in fresh_gradients(trainer)[0]))
        trainer.update(divisor * max(1.0, norm / divisor / clip_norm), ignore_stale_grad=True)
    return losses, outputs


def _backward(forward: Forward, shards: Sequence[Shard], loss: Callable[..., NDArray], scale: float) -> Result:
    """Losses and logits of every shard, after the backward pass of their sum."""
    losses, outputs = [], []
    with autograd.record():
        for images, target in shards:
            logits = forward(images).astype("float32", copy=False)
            losses.append(loss(images, target, logits))
            outputs.append(logits)
    autograd.backward(losses, [nd.full(each.shape, scale, ctx=each.context) for each in losses])
    return losses, outputs


def zero_gradients(trainer: Trainer) -> None:
    """Set all gradients to zero; also those of parameters that take no part, which an all-reduce would let grow."""
    for arrays in _by_device([(d, g) for p in _moving(trainer) for d, g in zip(p.list_data(), p.list_grad(), strict=True)]):
        nd.reset_arrays(*arrays, num_arrays=len(arrays))


def forget_gradients(trainer: Trainer) -> None:
    """Mark all gradients as used up, so that the next update does not take those of this step."""
    for parameter in _moving(trainer):
        for data in parameter.list_data():
            data._fresh_grad = False


def fresh_gradients(trainer: Trainer) -> list[list[NDArray]]:
    """Per device, the gradients that backward passes have written since the last update."""
    return _by_device([(data, gradient) for parameter in _moving(trainer)
                       for data, gradient in zip(parameter.list_data(), parameter.list_grad(), strict=True) if data._fresh_grad])


def _by_device(pairs: list[tuple[NDArray, NDArray]]) -> list[list[NDArray]]:
    devices: dict[Any, list[NDArray]] = {}
    for data, gradient in pairs:
        devices.setdefault(data.context, []).append(gradient)
    return list(devices.values())


def _moving(trainer: Trainer) -> list[Parameter]:
    return [parameter for parameter in trainer._params if parameter.grad_req != "null"]
