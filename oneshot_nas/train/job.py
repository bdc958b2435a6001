"""What a recipe asks to be trained: the network, how a step runs it, and how it is judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon import Block
from mxnet.ndarray import NDArray

from oneshot_nas.arch import Arch, Space, read_arch
from oneshot_nas.config import Recipe, training_space
from oneshot_nas.costs.analytic import cost
from oneshot_nas.data.holdout import Holdout, split_holdout
from oneshot_nas.data.images import Preprocessing
from oneshot_nas.data.loader import decode_images, val_loader
from oneshot_nas.data.source import Source
from oneshot_nas.errors import UserError
from oneshot_nas.indicators.accuracy import Evaluator, accuracy_of, calibration_images, make_evaluator
from oneshot_nas.indicators.predictor import load as load_predictor
from oneshot_nas.indicators.predictor import translation
from oneshot_nas.nets.fixed import Network, fixed_network, resolution_inside
from oneshot_nas.nets.supernet import Supernet
from oneshot_nas.progress import track
from oneshot_nas.train.elastic import Score
from oneshot_nas.train.losses import CrossEntropy
from oneshot_nas.train.sampling import Sampler, at_least, describe, make_sampler, rng_of
from oneshot_nas.train.step import Forward, Shard
from oneshot_nas.train.zoo import check_output, zoo_network

PROBES = 3  # fixed random architectures whose mean accuracy is the supernet's validation curve
PROBE_CALIBRATION, PROBE_VALIDATION = 512, 1024
MOST_CALIBRATION, MOST_VALIDATION = 2000, 5000  # images held out unless the recipe says how many



@dataclass
class Job:
    """A network to train.

    forwards(seed, epoch, step, shards): the functions from images to logits of that step, the first of which learns from the
    labels and teaches the others; `shards` are its images and targets. validate(): scores of the present weights.
    `holdout` is what training must not see; `about` describes the weights for the files beside them; `view` is what computes
    a fixed network in training, where that is not `net` itself.
    """

    net: Block
    classes: int
    preprocessing: Preprocessing
    forwards: Callable[[int, int, int, Sequence[Shard]], list[Forward]]
    validate: Callable[[], dict[str, float]]
    summary: str
    about: dict[str, Any]
    holdout: Holdout | None = None
    space: Space | None = None
    arch: Arch | None = None
    contexts: list = field(default_factory=lambda: [mx.cpu()])
    view: Network | None = None

    def settle(self) -> None:
        """Bring running statistics home to `net` from the views that computed them."""
        if isinstance(self.net, Supernet):
            self.net.flush()
        if self.view is not None:
            self.view.settle()

    def refresh(self) -> None:
        """Show `net`'s running statistics to the views, after they were loaded or averaged."""
        if self.view is not None:
            self.view.refresh()


def contexts_of(recipe: Recipe) -> list:
    """The devices of a recipe. Raises: UserError when there are not so many GPUs."""
    if recipe.device == "gpu":
        if mx.context.num_gpus() < recipe.contexts:
            raise UserError(f"{recipe.contexts} GPU{'s' * (recipe.contexts > 1)} asked for, MXNet sees {mx.context.num_gpus()}; "
                            "train on the CPU (device=cpu in a recipe, --num-gpus 0), or install a CUDA build of MXNet")
        return [mx.gpu(i) for i in range(recipe.contexts)]
    return [mx.cpu(i) for i in range(recipe.contexts)]


def asked_classes(recipe: Recipe) -> int | None:
    """The number of classes that the recipe or its architecture names, None when the data set decides."""
    asked: Any = ((recipe.arch or {}).get("options") or recipe.options).get("classes")
    return None if asked is None else int(asked)


def absolute(recipe: Recipe) -> Recipe:
    """The same recipe with absolute paths, so that a run folder can be used from any current directory."""
    def full(path: str | None) -> str | None:
        return str(Path(path).expanduser().absolute()) if path else None

    def section(part: Any, *names: str) -> Any:
        return None if part is None else part.model_copy(update={name: full(getattr(part, name)) for name in names})

    return recipe.model_copy(update={
        "data": full(recipe.data), "records": section(recipe.records, "train", "train_idx", "val", "val_idx"),
        "start": section(recipe.start, "weights", "supernet", "optimizer"), "loss": section(recipe.loss, "teacher_params"),
        "sampler": section(recipe.sampler, "predictor")})


def resolved(recipe: Recipe, job: Job) -> Recipe:
    """The recipe with all that its data set and defaults have decided in it, so that it means the same beside other data."""
    prepared = job.preprocessing
    found: dict[str, Any] = {"mean": prepared.mean, "std": prepared.std, "crop_ratio": prepared.crop_ratio}
    if job.space is not None and job.holdout is not None:
        sizes = {"calibration": len(job.holdout.calibration), "validation": len(job.holdout.validation)}
        found |= {"options": dict(job.space.options), "holdout": recipe.holdout.model_copy(update=sizes)}
    elif recipe.arch is not None and job.arch is not None:
        found["arch"] = job.arch.to_json()
    else:
        options = job.arch.options if job.arch is not None else {"classes": job.classes, "input_size": prepared.input_size}
        found["options"] = {**recipe.options, **options}
    return recipe.model_copy(update=found)


def make_job(recipe: Recipe, source: Source, over: Space | None = None) -> Job:
    """Build and initialise what the recipe trains; `over` is the part of a supernet's space that is trained (none: all of it).

    Raises: UserError for anything that does not fit together.
    """
    mx.random.seed(recipe.seed)
    job = _fixed_job(recipe, source) if recipe.space is None else _supernet_job(recipe, source, over)
    if recipe.depthwise_init == "fan_in":
        _start_small(job.net)
    return job


def _start_small(net: Block) -> None:
    """Start depthwise kernels at std 1 / kernel^2, as small as the pointwise ones are.

    BatchNorm makes the size of a kernel immaterial to the function, but SGD turns a kernel of norm n by lr / n^2: at SPOS's std
    of 1 the 7x7 ones hardly move before weight decay has shrunk them, which takes some (1 - momentum) / (lr wd) steps.
    """
    for parameter in net.collect_params().values():
        if parameter.name.endswith("weight") and len(parameter.shape) == 4 and parameter.shape[1] == 1 < parameter.shape[2]:
            std = 1 / (parameter.shape[2] * parameter.shape[3])
            parameter.initialize(mx.init.Normal(std), ctx=parameter.list_ctx(), force_reinit=True)


def _supernet_job(recipe: Recipe, source: Source, over: Space | None) -> Job:
    assert recipe.space is not None
    whole = training_space(recipe.space, {**recipe.options, "classes": source.class_count}, recipe.allowed)
    preprocessing = preprocessing_of(recipe, source, int(whole.options["input_size"]))
    contexts = contexts_of(recipe)
    net = Supernet(whole, recipe.bn_momentum)
    net.initialize(ctx=contexts)
    space = at_least(whole, recipe.sampler.least_scale)
    over = space if over is None else at_least(over, recipe.sampler.least_scale)
    holdout = holdout_of(recipe, source.part("train").labels.astype(int))

    smallest, largest = cost(space.smallest()), cost(space.largest())
    return Job(
        net, int(space.options["classes"]), preprocessing, _forwards(net, over, recipe),
        _probe(recipe, source, net, over, preprocessing, holdout, contexts),
        f"supernet of '{space.name}': {_count(net):,} parameters, {space.size:.3g} architectures, "
        f"{smallest.flops / 1e6:.1f} to {largest.flops / 1e6:.1f} M multiply-adds; "
        f"{describe(space, recipe.sampler, recipe.epochs)}",
        {"space": space.name, "options": dict(space.options), "preprocessing": preprocessing.to_json()},
        holdout=holdout, space=space, contexts=contexts,
    )


def _forwards(net: Supernet, over: Space, recipe: Recipe) -> Callable[[int, int, int, Sequence[Shard]], list[Forward]]:
    """What `Job.forwards` is for a supernet whose steps draw from `over`."""
    sandwich = recipe.sampler.sandwich
    first = net.mean_of_blocks if recipe.sampler.average_blocks else net
    others = net.calm if sandwich is not None and sandwich.calm else net

    @lru_cache(maxsize=1)
    def sampler_of(seed: int) -> Sampler:
        return make_sampler(over, recipe.sampler, seed)

    sampler_of(recipe.seed)  # now, for its errors
    predicted = None if recipe.sampler.predictor is None else _prediction(recipe.sampler.predictor, over)

    def forwards(seed: int, epoch: int, step: int, shards: Sequence[Shard]) -> list[Forward]:
        archs = sampler_of(seed)(epoch, step, predicted or partial(_loss_of, net, shards))
        return [partial(_call, first if place == 0 else others, arch) for place, arch in enumerate(archs)]

    return forwards


def _call(network: Callable[[NDArray, Arch], NDArray], arch: Arch, images: NDArray) -> NDArray:
    return network(images, arch)


def _prediction(path: str, space: Space) -> Score:
    """What attentive samplers choose by, from a predictor's file: its prediction, as a loss. Raises: UserError."""
    predictor = load_predictor(path)
    translation(space, predictor.space)  # now, for its errors
    return lambda arch: -float(predictor(space, np.array([space.encode(arch)]))[0])


def _loss_of(net: Supernet, shards: Sequence[Shard], arch: Arch) -> float:
    """Mean loss of `arch` on the batch over all devices, with batch statistics, without dropout; nothing is learnt from it."""
    with autograd.pause(train_mode=True):
        losses = [CrossEntropy()(net.calm(images, arch).astype("float32", copy=False), target) for images, target in shards]
    return sum(float(loss.sum().asscalar()) for loss in losses) / sum(map(len, losses))


def preprocessing_of(recipe: Recipe, source: Source, input_size: int) -> Preprocessing:
    """How images reach the network: as the data set says, with the recipe's channel order, and its own crop ratio, mean and std
    where it has them."""
    found = source.preprocessing(input_size, recipe.crop_ratio).reordered(recipe.channels)
    return replace(found, mean=recipe.mean or found.mean, std=recipe.std or found.std)


def holdout_of(recipe: Recipe, labels: np.ndarray) -> Holdout:
    """The images kept from the training of a supernet; see `HoldoutConfig`. Raises: UserError when there are too few."""
    spare = len(labels) - len(np.unique(labels))  # every class keeps an image
    wanted = recipe.holdout
    if spare < 2 and None in (wanted.calibration, wanted.validation):
        raise UserError(f"{len(labels)} training images are too few: {spare} can be set aside when every class keeps one, a "
                        "search needs at least 2; add images, or train without them (--set holdout.calibration=0 --set "
                        "holdout.validation=0) for a search by bn-gamma or angle")
    calibration = min(MOST_CALIBRATION, max(1, spare // 20)) if wanted.calibration is None else wanted.calibration
    validation = min(MOST_VALIDATION, max(1, spare // 10)) if wanted.validation is None else wanted.validation
    return split_holdout(labels, calibration, validation, recipe.seed)


def _probe(recipe: Recipe, source: Source, net: Supernet, over: Space, preprocessing: Preprocessing, holdout: Holdout,
           contexts: list) -> Callable[[], dict[str, float]]:
    """Mean accuracy of a few fixed random architectures of `over` on held-out images, {} when none were held out.

    In sandwich training of the largest, the smallest and a random one, the first two also by name.
    """
    if not holdout.calibration or not holdout.validation:
        return dict
    archs = {f"probe{number}": over.sample(rng_of("probe", recipe.seed, number)) for number in range(PROBES)}
    if recipe.sampler.sandwich is not None:
        archs = {"largest": over.largest(), "smallest": over.smallest(), "probe": archs["probe0"]}
    kept: list[Evaluator] = []

    def validate() -> dict[str, float]:
        if not kept:
            fixed = calibration_images(source, holdout.calibration[:PROBE_CALIBRATION], preprocessing, recipe)
            images, labels = decode_images(source, holdout.validation[:PROBE_VALIDATION], preprocessing)
            kept.append(make_evaluator(net, fixed, images, labels, contexts[0], {}))
        scores = {name: kept[0](archs[name]) for name in track(archs, "validating", unit="network")}
        means = {name: sum(score[name] for score in scores.values()) / len(scores) for name in ("top1", "top5")}
        return means | {f"{name}_top1": scores[name]["top1"] for name in ("largest", "smallest") if name in scores}

    return validate


def _fixed_job(recipe: Recipe, source: Source) -> Job:
    classes, contexts = source.class_count, contexts_of(recipe)
    net, arch, input_size = _fixed_network(recipe, classes, contexts)
    view = _fast_view(net, recipe)
    run: Block = net if view is None else view
    preprocessing = preprocessing_of(recipe, source, input_size)
    if recipe.progressive is not None:
        _check_growing(recipe, net, classes, preprocessing.input_size)
    summary = f"model '{recipe.model}' for {classes} classes" if recipe.model else "fixed network"
    if arch is not None:
        found = cost(arch)
        summary += f" of '{arch.space}': {found.flops / 1e6:.2f} M multiply-adds, {found.params / 1e6:.3f} M parameters"
    run.hybridize(static_alloc=True)  # with static_shape backward races in MXNet 1.9.1: runs differ, statistics are wrong

    about: dict[str, Any] = {"preprocessing": preprocessing.to_json()}
    about |= {"arch": arch.to_json()} if arch is not None else {"model": recipe.model, "classes": classes}
    return Job(net, classes, preprocessing, lambda *_: [run], _accuracy(recipe, source, net, preprocessing, contexts[0]),
               summary, about, arch=arch, contexts=contexts, view=view)


def _check_growing(recipe: Recipe, net: Block, classes: int, full: int) -> None:
    """Raises: UserError when the images cannot grow from ``recipe.progressive.size`` pixels to `full` in training."""
    assert recipe.progressive is not None
    size = recipe.progressive.size
    if size >= full:
        raise UserError(f"progressive.size {size} must be below the input size, {full} pixels")
    if isinstance(net, Network) and resolution_inside(net) is not None:
        raise UserError(f"a network of space '{net.arch.space}' resizes its images itself; leave 'progressive' out")
    small, large = (check_output(net, recipe.model or "fixed network", classes, side) for side in (size, full))
    if small != large:
        raise UserError(f"the weights of model '{recipe.model}' depend on the size of its images, which can therefore not grow; "
                        "leave 'progressive' out")


def _fixed_network(recipe: Recipe, classes: int, contexts: list) -> tuple[Block, Arch | None, int]:
    """(initialised network, its architecture if it is one of ours, input size) of a recipe with 'arch' or 'model'."""
    if recipe.arch is not None:
        arch: Arch | None = read_arch({**recipe.arch, "options": {**recipe.arch.get("options", {}), "classes": classes}})
        assert arch is not None
        net: Block = fixed_network(arch)
        net.initialize(ctx=contexts)
        size = int(arch.options["input_size"])
    else:
        net, arch, size = zoo_network(str(recipe.model), classes, recipe.options, contexts)
    if recipe.dtype != "float32":
        net.cast(recipe.dtype)
    return net, arch, size


def _fast_view(net: Block, recipe: Recipe) -> Network | None:
    return net.training_view() if isinstance(net, Network) and recipe.device == "cpu" else None


def _accuracy(recipe: Recipe, source: Source, net: Block, preprocessing: Preprocessing, context: mx.Context) -> Callable:
    """Accuracy of a copy of `net` on the validation images, {} when there are none.

    A copy, because MXNet (oneDNN) changes the memory layout of weights that it evaluates at a moment that timing decides;
    trained on, such weights gave another result each time.
    """
    kept: list[tuple[Block, Network | None]] = []

    def validate() -> dict[str, float]:
        if not source.counts["val"]:
            return {}
        if not kept:
            copy = _fixed_network(recipe, source.class_count, [context])[0]
            kept.append((copy, _fast_view(copy, recipe)))
        copy, view = kept[0]
        mine = net._collect_params_with_prefix()
        for name, parameter in copy._collect_params_with_prefix().items():
            parameter.set_data(mine[name].list_data()[0])
        if view is not None:
            view.refresh()
        run = copy if view is None else view
        run.hybridize(static_alloc=True)
        loader = val_loader(source, batch_size=recipe.batch_size, preprocessing=preprocessing, threads=recipe.input_threads)
        return accuracy_of(run, loader, context, recipe.dtype)

    return validate


def _count(net: Block) -> int:
    return sum(math.prod(p.shape) for p in net.collect_params().values() if p.grad_req != "null")

