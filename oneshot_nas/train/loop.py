"""The training loop: epochs of steps, metrics, validation, checkpoints, resume. One engine for supernets and fixed networks."""

from __future__ import annotations

import math
import os
import random
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import mxnet as mx
from mxnet import nd
from mxnet.gluon.utils import split_and_load

from oneshot_nas.config import Recipe, RunFolder
from oneshot_nas.data.augment import make_augment
from oneshot_nas.data.loader import DataWait, train_loader
from oneshot_nas.data.seeds import derive_seed
from oneshot_nas.data.source import Source, open_source
from oneshot_nas.errors import UserError, WorkError
from oneshot_nas.files import write_json
from oneshot_nas.train import checkpoint
from oneshot_nas.train.checkpoint import Position
from oneshot_nas.train.job import Job, absolute, asked_classes, make_job
from oneshot_nas.train.report import Bar, Log, append_metrics, kept_metrics, logging, tensorboard
from oneshot_nas.train.schedule import learning_rate
from oneshot_nas.train.step import LOSS_SCALE, CrossEntropy, Forward, mix, run_step, targets, trainer_of
from oneshot_nas.train.zoo import zoo_network

CHECK_EVERY = 20  # steps between looks at the loss, each of which waits for the device
CHANCE_STEPS = 200  # an epoch at chance that is at least this many steps into the run is worth a warning
IMAGENET_CLASSES = 1000  # of GluonCV's pretrained weights


def train(recipe: Recipe, out: str | os.PathLike, say: Log | None = None) -> dict[str, Any]:
    """Train what the recipe says in the run folder `out`; the same call again resumes after the last saved epoch.

    Returns: the last line of metrics.jsonl. Raises: UserError for bad input, WorkError when the loss becomes NaN.
    """
    run, recipe = RunFolder(out), absolute(recipe)
    with run.lock(), logging(run.log, say) as log:
        run.check_recipe(recipe)
        source = open_source(recipe, asked_classes(recipe))
        job = make_job(recipe, source)
        loop = _Loop(recipe, run, source, job, log)
        loop.prepare()
        run.save_recipe(recipe)  # only now: what cannot start leaves no trace that another try would have to agree with
        log(job.summary)
        return loop.run()


@dataclass
class _Tally:
    """Sums over the steps of an epoch, kept on the device until they are read."""

    loss: Any = 0.0
    right: Any = 0.0
    images: int = 0

    def add(self, losses: list, outputs: list, labels: list) -> None:
        home = losses[0].context
        for loss, logits, label in zip(losses, outputs, labels, strict=True):
            self.loss = self.loss + loss.astype("float32").sum().as_in_context(home)
            hits = (logits.argmax(axis=1).astype("float32") == label.as_in_context(logits.context)).sum()
            self.right = self.right + hits.as_in_context(home)
            self.images += len(label)

    def read(self) -> tuple[float, float]:
        """(mean loss, share of right answers) so far."""
        return float(self.loss.asscalar()) / self.images, float(self.right.asscalar()) / self.images


@dataclass
class _Loop:
    recipe: Recipe
    run_folder: RunFolder
    source: Source
    job: Job
    log: Any
    best: dict[str, Any] = field(default_factory=dict)

    def prepare(self) -> None:
        """Build all that a step needs and go to where the run stands. Raises: UserError for what does not fit together."""
        recipe, job = self.recipe, self.job
        self.trainer = trainer_of(job.net.collect_params(), recipe.optimizer, recipe.dtype)
        self.augment = make_augment(recipe.augment.kind, recipe.augment.changes)
        self.steps = self._steps(len(self._loader(0)))
        self.lr = learning_rate(recipe.schedule, recipe.optimizer.lr, recipe.epochs, self.steps)
        self.teacher = self._teacher()
        distil = self.teacher is not None
        self.loss = CrossEntropy(recipe.loss.temperature if distil else 1.0, recipe.loss.hard_weight if distil else 1.0)
        self.loss.hybridize()
        saved = checkpoint.load_checkpoint(self.run_folder.checkpoint, job.net, self.trainer, job.contexts)
        self.position = saved or self._start()
        if self.position.epoch and len(job.contexts) > 1:  # the kvstore copies device 0 to the others at its first use: now, when
            self.trainer.allreduce_grads()  # they are equal, not after the first step, when running statistics differ
        job.refresh()
        self.best = self.position.state.get("best", {})

    def run(self) -> dict[str, Any]:
        """Train the epochs that are left; returns the last line of metrics.jsonl."""
        recipe, job, folder, done = self.recipe, self.job, self.run_folder, self.position.epoch
        self.log(f"{self.steps} steps of {recipe.batch_size} images an epoch, {recipe.epochs} epochs"
                 + (f", {done} of them done" if done else ""))
        if job.arch is not None:
            write_json(folder.arch, "architecture", job.arch.to_json())
        self._describe(done)
        line = (kept_metrics(folder.metrics, done) or [{}])[-1]
        with tensorboard(folder.path / "tensorboard", done) as scalars:
            for epoch in range(done, recipe.epochs):
                line = self._epoch(epoch)
                self._keep_best(line)
                append_metrics(folder.metrics, line)
                scalars({**line, **line["timing"]}, epoch + 1)
                if (epoch + 1) % recipe.save_every == 0 or epoch + 1 == recipe.epochs:
                    position = Position(epoch + 1, {"best": self.best})
                    checkpoint.save_checkpoint(folder.checkpoint, job.net, self.trainer, position, job.about)
                    self._describe(epoch + 1)
        write_json(folder.result, "training-result",
                   {"epochs": recipe.epochs, "last": line, "best": self.best, "summary": job.summary})
        return line

    def _steps(self, batches: int) -> int:
        """Steps of an epoch that could have `batches`; see Recipe.epoch_images and epoch_share."""
        recipe = self.recipe
        if recipe.epoch_images is not None:
            batches = min(batches, recipe.epoch_images // recipe.batch_size)
        return max(1, int(batches * recipe.epoch_share + 1e-9))

    def _start(self) -> Position:
        """Where a new run starts: at random weights, or at the files of Recipe.start."""
        start, job = self.recipe.start, self.job
        if start is None:
            return Position(0, {})
        checkpoint.load_weights(job.net, start.weights, job.contexts)
        if start.optimizer is not None:
            checkpoint.load_optimizer(job.net, self.trainer, Path(start.optimizer), job.contexts, start.epoch * self.steps)
        return Position(start.epoch, {})

    def _loader(self, epoch: int) -> Any:
        return train_loader(
            self.source, batch_size=self.recipe.batch_size, preprocessing=self.job.preprocessing, augment=self.augment,
            seed=self.recipe.seed, epoch=epoch, exclude=self.job.holdout.excluded if self.job.holdout else (),
            threads=self.recipe.input_threads)

    def _teacher(self) -> Forward | None:
        loss, job = self.recipe.loss, self.job
        if loss.teacher is None:
            return None
        if loss.teacher_params is None and job.classes != IMAGENET_CLASSES:
            raise UserError(f"teacher '{loss.teacher}' needs weights for {job.classes} classes: give them as loss.teacher_params "
                            "(--teacher-params FILE.params)")
        options = {"input_size": job.preprocessing.input_size, "pretrained": loss.teacher_params is None}
        net, _, _ = zoo_network(loss.teacher, job.classes, options, job.contexts)
        if loss.teacher_params is not None:
            checkpoint.load_weights(net, loss.teacher_params, job.contexts)
        if self.recipe.dtype != "float32":
            net.cast(self.recipe.dtype)
        net.hybridize(static_alloc=True)

        def forward(images: Any) -> Any:
            with mx.autograd.pause(train_mode=False):
                return net(images)

        return forward

    def _epoch(self, epoch: int) -> dict[str, Any]:
        recipe, job = self.recipe, self.job
        mx.random.seed(derive_seed(recipe.seed, epoch))
        mixup = recipe.loss.mixup_alpha if epoch < recipe.epochs - recipe.loss.mixup_off_epochs else 0.0
        waiting = DataWait(self._loader(epoch))
        tally, start = _Tally(), time.monotonic()
        with Bar(epoch, recipe.epochs, self.steps) as bar:
            for step, (images, labels) in enumerate(islice(waiting, self.steps)):
                self.trainer.set_learning_rate(self.lr(epoch * self.steps + step))
                target = targets(labels, job.classes, recipe.loss.label_smoothing)
                if mixup:
                    share = random.Random(f"mixup/{recipe.seed}/{epoch}/{step}").betavariate(mixup, mixup)
                    images, target = mix(images, target, share)
                shards = list(zip(split_and_load(images.astype(recipe.dtype, copy=False), job.contexts),
                                  split_and_load(target, job.contexts), strict=True))
                losses, outputs = run_step(job.forward(epoch, step), shards, self.loss, self.trainer, len(labels), self.teacher,
                                           LOSS_SCALE[recipe.dtype])
                tally.add(losses, outputs, split_and_load(labels, job.contexts))
                told = bool(recipe.log_every) and (step + 1) % (recipe.log_every or 1) == 0
                if told or step % CHECK_EVERY == 0 or step == self.steps - 1:
                    loss, top1 = tally.read()
                    self._check(loss, epoch, step)
                    bar.show(step + 1, tally.images, waiting.share, loss, top1, self.log if told else None)
        seconds = time.monotonic() - start
        job.settle()
        checkpoint.average_statistics(job.net, job.contexts)
        job.refresh()
        self._check_weights(epoch)
        if (epoch + 1) * self.steps >= CHANCE_STEPS and top1 <= 1.2 / job.classes and not mixup:
            self.log(f"warning: after {(epoch + 1) * self.steps} steps training accuracy is {top1:.4f}, chance is "
                     f"{1 / job.classes:.4f}; lower the lr, add warm-up, or check the labels (oneshot-nas data check)")
        line: dict[str, Any] = {"epoch": epoch + 1, "loss": loss, "train_top1": top1, "lr": self.lr((epoch + 1) * self.steps - 1)}
        if (epoch + 1) % recipe.validate_every == 0 or epoch + 1 == recipe.epochs:
            line |= {f"val_{name}": value for name, value in job.validate().items()}
        line["timing"] = {"images_per_second": tally.images / seconds, "data_wait": waiting.share, "seconds": seconds,
                          "validate_seconds": time.monotonic() - start - seconds}
        shown = "  ".join(f"{k} {v:.4f}" for k, v in line.items() if isinstance(v, float))
        self.log(f"epoch {epoch + 1}/{recipe.epochs}  {shown}  {tally.images / seconds:.0f} images/s  "
                 f"data wait {waiting.share:.1%}")
        return line

    def _check(self, loss: float, epoch: int, step: int) -> None:
        if not math.isfinite(loss):
            raise WorkError(f"the loss became {loss} in epoch {epoch + 1}, step {step + 1}; {self._advice()}")

    def _advice(self) -> str:
        return (f"what was saved before is kept in {self.run_folder.path}; start again with a lower lr or a longer warm-up "
                "in another folder")

    def _check_weights(self, epoch: int) -> None:
        """Raise WorkError for a weight that is not finite: ReLU turns NaN into 0, so the loss alone may look well."""
        parameters = self.job.net._collect_params_with_prefix().items()
        finite = nd.concat(*(nd.all_finite(parameter.list_data()[0]) for _, parameter in parameters), dim=0).asnumpy()
        wrong = [name for (name, _), good in zip(parameters, finite, strict=True) if not good]
        if wrong:
            raise WorkError(f"'{wrong[0]}' and {len(wrong) - 1} other arrays are not finite after epoch {epoch + 1}, "
                            f"step {self.steps}; {self._advice()}")

    def _keep_best(self, line: dict[str, Any]) -> None:
        if line.get("val_top1", -1.0) > self.best.get("val_top1", -1.0):
            self.best = {"epoch": line["epoch"], "val_top1": line["val_top1"]}

    def _describe(self, epoch: int) -> None:
        """Write supernet.json of the weights after `epoch` epochs; a fixed network has none."""
        if self.job.holdout is None:
            return
        write_json(self.run_folder.supernet, "supernet", {
            **self.job.about, "holdout": self.job.holdout.to_json(), "holdout_seed": self.recipe.seed, "epoch": epoch})
