"""Which parameters a run may move: everything, gamma and beta of every BatchNorm, or those that score a candidate (BN-NAS)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mxnet.gluon import Block, Parameter

from oneshot_nas.errors import UserError
from oneshot_nas.nets.supernet import Supernet


@dataclass(frozen=True)
class Count:
    """How many numbers training moves and leaves; running statistics are neither."""

    trainable: int
    frozen: int

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.trainable + self.frozen:,} parameters are trained"


def freeze(net: Block, which: str) -> Count:
    """Let only the parameters that `which` names move; for the others no gradients are computed any more.

    'all', 'bn' (gamma and beta everywhere) or 'scoring-bn' (gamma and beta of `Op.scoring`, the last BatchNorm, of every
    candidate block, as the published BN-NAS code trains them: Chen et al., "BN-NAS: Neural Architecture Search with Batch
    Normalization", ICCV 2021). Running statistics go on being updated.

    Raises: UserError when nothing would be left to train.
    """
    named = {name: parameter for name, parameter in net._collect_params_with_prefix().items() if parameter._differentiable}
    keep = {"all": lambda: set(named), "bn": lambda: {name for name in named if name.endswith((".gamma", ".beta"))},
            "scoring-bn": lambda: _scoring(net)}[which]()
    if not keep & set(named):
        raise UserError(f"trainable '{which}' leaves nothing to train: " + (
            "no block of this space is one candidate of several; take 'bn' or 'all'" if which == "scoring-bn" else
            "the network has no BatchNorm; take 'all'"))
    moving = {named[name] for name in keep}
    for parameter in set(named.values()) - moving:
        parameter.grad_req = "null"
    return Count(_numbers(moving), _numbers(set(named.values()) - moving))


def _scoring(net: Block) -> set[str]:
    if not isinstance(net, Supernet):
        raise UserError("trainable 'scoring-bn' is for a supernet; a fixed network has no candidates, take 'bn' or 'all'")
    norms = ((weights, block.op.scoring) for weights, block in net.candidates())
    return {f"{weights}.{norm}.{part}" for weights, norm in norms if norm for part in ("gamma", "beta")}


def _numbers(parameters: set[Parameter]) -> int:
    return sum(math.prod(parameter.shape) for parameter in parameters)
