"""Losses per image: cross entropy with labels or a teacher, and what small networks of a sandwich step learn from the largest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mxnet.gluon import HybridBlock

from oneshot_nas.sections import Distil


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


class Distillation(HybridBlock):
    """T^2 CE(student / T, softmax(teacher / T)) per image, shape (N,), of logits (N, K); with `kl` minus the teacher's entropy.

    Both have the same gradient. AttentiveNAS takes the cross entropy at T = 1, mmrazor the divergence.
    """

    def __init__(self, temperature: float = 1.0, kl: bool = False) -> None:
        super().__init__(prefix="")
        self.temperature = temperature
        self.kl = kl

    def hybrid_forward(self, F: Any, student: Any, teacher: Any) -> Any:
        log_teacher = F.log_softmax(teacher / self.temperature)
        difference = F.log_softmax(student / self.temperature) - (log_teacher if self.kl else 0.0)
        return -(self.temperature**2) * F.sum(F.exp(log_teacher) * difference, axis=1)


class AlphaDivergence(HybridBlock):
    """The larger of two alpha-divergences between teacher p and student q per image, shape (N,), of logits (N, K).

    D = sum q ((p / q)^alpha - 1) / (alpha (alpha - 1)), where (p / q)^alpha counts at most `clip`; alpha 0 and 1 are its limits,
    KL(q, p) and KL(p, q), which are bounded and not clipped. With alphas -1 and 1 and a clip of 5 the loss of AlphaNet (Wang et
    al., "AlphaNet: Improved Training of Supernets with Alpha-Divergence", ICML 2021, section 4). The gradient is that of the
    unclipped divergence with the clipped ratio put in: -sum q rho grad(log q), rho = (p / q)^alpha / alpha.
    """

    def __init__(self, alpha_min: float = -1.0, alpha_max: float = 1.0, clip: float = 5.0) -> None:
        super().__init__(prefix="")
        self.alphas = (alpha_min, alpha_max)
        self.clip = clip

    def hybrid_forward(self, F: Any, student: Any, teacher: Any) -> Any:
        log_student, log_teacher = F.log_softmax(student), F.BlockGrad(F.log_softmax(teacher))
        fixed = F.BlockGrad(log_student)
        (low, weight_low), (high, weight_high) = (self._of(F, alpha, fixed, log_teacher) for alpha in self.alphas)
        first = F.expand_dims(low > high, axis=1)
        weight = F.where(F.broadcast_like(first, weight_low), weight_low, weight_high)
        surrogate = -F.sum(weight * log_student, axis=1)
        return F.maximum(low, high) + surrogate - F.BlockGrad(surrogate)  # this value, that gradient

    def _of(self, F: Any, alpha: float, log_student: Any, log_teacher: Any) -> tuple[Any, Any]:
        """(divergence (N,), q rho (N, K)) for one alpha."""
        student, difference = F.exp(log_student), log_teacher - log_student
        if alpha == 1:
            teacher = F.exp(log_teacher)
            return F.sum(teacher * difference, axis=1), teacher
        if alpha == 0:
            return -F.sum(student * difference, axis=1), student * difference
        ratio = F.exp(F.minimum(alpha * difference, math.log(self.clip)))
        return F.sum(student * (ratio - 1), axis=1) / (alpha * (alpha - 1)), student * ratio / alpha


def distillation(config: Distil) -> HybridBlock:
    """The loss that a recipe names, called as ``loss(student logits, teacher logits)``; hybridized."""
    kinds: dict[str, Callable[[], HybridBlock]] = {
        "soft": lambda: Distillation(config.temperature),
        "kl": lambda: Distillation(config.temperature, kl=True),
        "alpha": lambda: AlphaDivergence(config.alpha_min, config.alpha_max, config.clip),
    }
    loss = kinds[config.kind]()
    loss.hybridize()
    return loss
