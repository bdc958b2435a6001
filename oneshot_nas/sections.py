"""The sections of a recipe: typed, strict values, each with its defaults and limits. `oneshot_nas.config` puts them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Values = dict[str, bool | int | float | str | tuple[int, ...]]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, numbers are checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _number(cls, value: Any, about: ValidationInfo) -> Any:
        """YAML's yes, no, on and off are no numbers, though pydantic takes them for 1 and 0."""
        kind = cls.model_fields[str(about.field_name)].annotation
        if isinstance(value, bool) and kind in (int, float, int | None, float | None):
            raise ValueError("a number is needed, not true or false")
        return value


def _unused(part: Section, names: Sequence[str], used: bool, why: str) -> None:
    """Raise ValueError for a setting that would be passed over in silence."""
    for name in names:
        if not used and getattr(part, name) != type(part).model_fields[name].default:
            raise ValueError(f"{name} {getattr(part, name)} says nothing: {why}")


class Optimizer(Section):
    """Stochastic gradient descent; `no_wd` spares biases, gamma and beta from weight decay."""

    name: Literal["sgd", "nag"] = "sgd"
    lr: float = Field(default=0.5, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    wd: float = Field(default=4e-5, ge=0)
    no_wd: bool = True
    clip: float | None = Field(default=None, gt=0, description="every gradient is clipped to [-clip, clip]")
    clip_norm: float | None = Field(default=None, gt=0, description="all gradients together are shortened to this norm")


class Schedule(Section):
    """Learning rate over the iterations: linear warm-up from `warmup_lr`, then `mode` down to `final_lr`.

    It stays where it first reaches `least_share` of the peak (BigNAS' constant ending: 0.05).
    """

    mode: Literal["cosine", "linear", "poly", "step", "exponential", "constant"] = "linear"
    warmup_epochs: float = Field(default=0, ge=0)
    warmup_lr: float = Field(default=0.0, ge=0)
    final_lr: float = Field(default=0.0, ge=0)
    power: float = Field(default=2.0, gt=0, description="of mode poly")
    decay: float = Field(default=0.1, gt=0, description="factor of modes step and exponential")
    decay_epochs: tuple[float, ...] = Field(default=(), description="of mode step")
    decay_every: float = Field(default=2.4, gt=0, description="epochs between the decays of mode exponential")
    least_share: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _goes_together(self) -> Schedule:
        for names, modes in ((("power",), ("poly",)), (("decay",), ("step", "exponential")), (("decay_epochs",), ("step",)),
                             (("decay_every",), ("exponential",)),
                             (("final_lr",), ("cosine", "linear", "poly", "step", "exponential"))):
            _unused(self, names, self.mode in modes, f"mode {self.mode} has none; take mode {' or '.join(modes)}")
        _unused(self, ("warmup_lr",), self.warmup_epochs > 0, "there is no warm-up; give warmup_epochs")
        if self.mode == "step" and not self.decay_epochs:
            raise ValueError("mode step needs decay_epochs, such as [30, 60]; a rate that stays as it is has mode constant")
        return self


class Loss(Section):
    """Cross entropy with label smoothing, mixup and a distillation teacher (a model zoo name)."""

    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    mixup_alpha: float = Field(default=0.0, ge=0)
    mixup_off_epochs: int = Field(default=0, ge=0, description="mixup is off in that many last epochs")
    teacher: str | None = None
    teacher_params: str | None = None
    temperature: float = Field(default=20.0, gt=0)
    hard_weight: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _goes_together(self) -> Loss:
        _unused(self, ("teacher_params", "temperature", "hard_weight"), self.teacher is not None, "there is no teacher; name one")
        _unused(self, ("mixup_off_epochs",), self.mixup_alpha > 0, "there is no mixup; give mixup_alpha")
        return self


class Distil(Section):
    """What the smaller networks of a sandwich step learn from the largest one's logits; see `oneshot_nas.train.losses`."""

    kind: Literal["soft", "kl", "alpha"] = "soft"
    temperature: float = Field(default=1.0, gt=0, description="of kinds soft and kl")
    alpha_min: float = Field(default=-1.0, description="of kind alpha, the smaller of its two alphas")
    alpha_max: float = Field(default=1.0, description="of kind alpha, the larger one")
    clip: float = Field(default=5.0, gt=1, description="of kind alpha, the most that a ratio of probabilities counts")

    @model_validator(mode="after")
    def _fits(self) -> Distil:
        if self.alpha_min >= self.alpha_max:
            raise ValueError(f"alpha_min {self.alpha_min:g} must be below alpha_max {self.alpha_max:g}")
        if self.kind == "alpha" and self.temperature != 1:
            raise ValueError("kind alpha has no temperature; leave it out, or take kind soft or kl")
        _unused(self, ("alpha_min", "alpha_max", "clip"), self.kind == "alpha", f"kind {self.kind} has none; take kind alpha")
        return self


class Sandwich(Section):
    """A step trains the largest network on the labels, then sampled ones and the smallest on what the largest says (BigNAS)."""

    random: int = Field(default=2, ge=0, le=64, description="networks from the sampler at every step")
    smallest: bool = True
    calm: bool = Field(default=True, description="dropout and drop connect in the largest network only")
    distil: Distil = Distil()

    @model_validator(mode="after")
    def _has_students(self) -> Sandwich:
        if not self.random and not self.smallest:
            raise ValueError("a sandwich without smaller networks is empty: give random above 0, or smallest: true")
        return self


class Guard(Section):
    """What a run does when training collapses; see `oneshot_nas.train.guard`. A step is skipped, not taken, when its loss or a
    gradient is not finite, or its loss is more than `factor` times the median of the last `window` ones."""

    factor: float = Field(default=2.0, gt=1)
    window: int = Field(default=50, ge=5, le=10_000, description="steps; explosions are looked for once half of them are known")
    patience: int = Field(default=10, ge=1, description="skipped steps in a row before the last checkpoint is restored")
    restores: int = Field(default=3, ge=0, description="restores before the run gives up")
    lr_factor: float = Field(default=0.5, gt=0, le=1, description="the learning rate is multiplied by it at every restore")


class Sampler(Section):
    """Which architectures a step trains; see `oneshot_nas.train.sampling` and, for flops, bestup and worstup, `.elastic`.

    Samplers with limits begin when everything is open: after `first_channel_epoch` and the warm-ups. With `sandwich` a step
    trains several networks.
    """

    name: Literal["uniform", "bins", "box", "stroll", "flops", "bestup", "worstup"] = "uniform"
    sandwich: Sandwich | None = None
    candidates: int = Field(default=3, ge=2, le=64, description="of bestup and worstup: networks that compete for a place")
    predictor: str | None = Field(
        default=None, description="of bestup and worstup: file of oneshot-nas predictor that judges them; none: the step's loss")
    first_channel_epoch: int = Field(default=0, ge=0, description="before it every scale is the largest")
    warmup: Literal["oneshot", "shufflenetv2+"] | None = Field(default=None, description="table by which smaller scales join")
    least_scale: float | None = Field(default=None, description="smallest scale that is drawn; none: the space's smallest")
    operator_warmup: int = Field(default=0, ge=0, description="epochs over which the other operators join the first of a choice")
    average_blocks: bool = Field(default=False, description="average all operators instead of choosing one")
    flops: str | None = Field(default=None, description="LO:HI, such as 290M:360M")
    params: str | None = None
    bins: int = Field(default=7, ge=1, le=1000, description="of bins, flops, bestup and worstup")
    rule: str = "macs"

    @model_validator(mode="after")
    def _goes_together(self) -> Sampler:
        for name in ("average_blocks", "first_channel_epoch", "warmup", "operator_warmup") if self.sandwich else ():
            if getattr(self, name):
                raise ValueError(f"sandwich and {name} contradict each other: a sandwich step trains the smallest network from "
                                 "the first step on; leave one of them out")
        if self.sandwich is not None and not self.sandwich.random and self.name != "uniform":
            raise ValueError(f"sandwich.random 0 draws no networks, so sampler '{self.name}' says nothing; leave 'name' out")
        attentive = self.name in ("bestup", "worstup")
        _unused(self, ("candidates", "predictor"), attentive, f"sampler '{self.name}' has none; take bestup or worstup")
        _unused(self, ("bins",), attentive or self.name in ("bins", "flops"), f"sampler '{self.name}' has none")
        return self


class AugmentConfig(Section):
    """Training augmentation by kind; `changes` replaces single numbers of it (see `oneshot_nas.data.augment.Augment`)."""

    kind: Literal["imagenet", "small", "digits", "none"] = "imagenet"
    changes: dict[str, bool | int | float | str | tuple[float, float]] = {}


class Progressive(Section):
    """Smaller images in the first epochs of a fixed network: from `size` pixels a side up to the input size over `epochs`.

    Source: Tan and Le, "EfficientNetV2: Smaller Models and Faster Training", ICML 2021, section 4 (sizes only).
    """

    size: int = Field(ge=8, le=4096)
    epochs: int = Field(ge=1)
    multiple: int = Field(default=4, ge=1, le=64, description="sizes between are multiples of it")

    def size_of(self, epoch: int, full: int) -> int:
        """Pixels a side in `epoch` (0, 1, ...) of a network that takes `full` ones."""
        if epoch >= self.epochs:
            return full
        between = self.size + (full - self.size) * epoch // self.epochs
        return max(self.size, between // self.multiple * self.multiple)


class HoldoutConfig(Section):
    """Images of the training set kept for the search and never trained on by the supernet."""

    calibration: int | None = Field(default=None, ge=0, description="none: 2000, at most a twentieth of the training images")
    validation: int | None = Field(default=None, ge=0, description="none: 5000, at most a tenth of the training images")
    augment: bool = Field(default=True, description="vary calibration images as training does; false: prepared as for validation")


class Records(Section):
    """Single RecordIO files instead of a data folder; an index left out has the name of its .rec file."""

    train: str
    train_idx: str | None = None
    val: str | None = None
    val_idx: str | None = None


class Start(Section):
    """Where training starts instead of at random weights: weights, optimizer state (plain arrays), epochs already done.

    `supernet` is a supernet's run folder: a fixed network starts with its share of those weights, recalibrated. `epoch` equal to
    the recipe's epochs takes finished weights over: they are validated and become a run that can be searched or exported.
    """

    weights: str | None = None
    supernet: str | None = None
    optimizer: str | None = None
    epoch: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_source(self) -> Start:
        if (self.weights is None) == (self.supernet is None):
            raise ValueError("start needs exactly one of 'weights' (a file) and 'supernet' (a run folder)")
        if self.supernet is not None and (self.optimizer or self.epoch):
            raise ValueError("a start from a supernet is a new run: leave out 'optimizer' and 'epoch'")
        return self
