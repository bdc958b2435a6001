"""The training loop: epochs of steps, metrics, validation, checkpoints, resume. One engine for supernets and fixed networks."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import mxnet as mx
from mxnet import nd
from mxnet.gluon.utils import split_and_load
from mxnet.ndarray import NDArray

from oneshot_nas.arch import Space
from oneshot_nas.config import Recipe, RunFolder
from oneshot_nas.data.augment import make_augment
from oneshot_nas.data.holdout import Holdout
from oneshot_nas.data.loader import DataWait, train_loader
from oneshot_nas.data.seeds import derive_seed
from oneshot_nas.data.source import Source, open_source
from oneshot_nas.errors import UserError, WorkError
from oneshot_nas.files import read_json, write_json
from oneshot_nas.train import checkpoint
from oneshot_nas.train.average import Average
from oneshot_nas.train.checkpoint import Position
from oneshot_nas.train.guard import Collapse, Watch, heal_statistics
from oneshot_nas.train.job import Job, absolute, asked_classes, make_job, resolved
from oneshot_nas.train.losses import CrossEntropy, distillation
from oneshot_nas.train.report import Bar, Log, Tally, append_metrics, kept_metrics, logging, speed, tensorboard
from oneshot_nas.train.sampling import scales_epoch
from oneshot_nas.train.schedule import learning_rate
from oneshot_nas.train.start import begin
from oneshot_nas.train.step import LOSS_SCALE, accumulate, forget_gradients, mix, run_step, targets, trainer_of
from oneshot_nas.train.trainable import freeze
from oneshot_nas.train.zoo import make_teacher

RESTORED = 7  # counter of the seeds that a run continues with after a restore
CHECK_EVERY = 20  # steps between looks at the loss, each of which waits for the device
CHANCE_STEPS = 200  # an epoch at chance that is at least this many steps into the run is worth a warning


def train(recipe: Recipe, out: str | os.PathLike, say: Log | None = None, until: int | None = None,
          over: Space | None = None) -> dict[str, Any]:
    """Train what the recipe says in the run folder `out`; the same call again resumes after the last saved epoch.

    `until` ends it after that many of the recipe's epochs; `over`, a part of a supernet's space, is what its steps draw from.

    Returns: the last line of metrics.jsonl. Raises: UserError for bad input, WorkError when the loss becomes NaN or the guard
    of a recipe gives up.
    """
    run, recipe = RunFolder(out), absolute(recipe)
    with run.lock(), _told_what_is_kept(run), logging(run.log, say) as log:
        run.check_recipe(recipe, unset=True)
        source = open_source(recipe, asked_classes(recipe))
        job = make_job(recipe, source, over)
        _check_same_data(run, source)
        recipe = resolved(recipe, job)
        run.check_recipe(recipe)
        loop = _Loop(recipe, run, source, job, log, min(until or recipe.epochs, recipe.epochs))
        loop.prepare()
        if not (run.checkpoint / "latest.json").exists():
            run.forget()
        run.save_recipe(recipe)  # only now: what cannot start leaves no trace that another try would have to agree with
        log(loop.summary)
        _warn_of_enlarging(source, job.preprocessing.input_size, recipe.arch is not None, log)
        _warn_of_schedules(recipe, job, log)
        return loop.run()


@contextmanager
def _told_what_is_kept(run: RunFolder) -> Iterator[None]:
    """Within it Ctrl-C says which epoch's state the same command resumes from."""
    try:
        yield
    except KeyboardInterrupt:
        if not (run.checkpoint / "latest.json").exists():
            raise KeyboardInterrupt("no epoch has been saved yet, the same command begins anew") from None
        epoch = checkpoint.read_latest(run.checkpoint)["epoch"]
        raise KeyboardInterrupt(f"state saved after epoch {epoch}, the same command resumes") from None


def _check_same_data(run: RunFolder, source: Source) -> None:
    """Raise UserError when a supernet's run would go on with another training set: its held-out images would be trained on."""
    if run.supernet.exists() and (run.checkpoint / "latest.json").exists():
        try:
            Holdout.from_json(read_json(run.supernet, "supernet").get("holdout")).check(source.part("train").labels)
        except UserError as error:
            raise UserError(f"{run.path} cannot be resumed: {error}") from None


def _warn_of_enlarging(source: Source, full: int, given: bool, log: Log) -> None:
    """A network made for larger images than there are is mostly a forgotten --arch or input_size; `given` is one of an --arch."""
    stored = getattr(source, "image_size", None)
    if stored is not None and 2 * max(stored) <= full:
        mend = (f"make the architecture one for your images: oneshot-nas arch FILE --option input_size={max(stored)}"
                if given else "give the network (--arch ARCH.json) or its input size (--set options.input_size=N)")
        mend += "; train_imagenet.py takes --input-size N"
        log(f"warning: images of {stored[0]}x{stored[1]} pixels are enlarged to the {full}x{full} that the network takes; if "
            f"that is not meant, {mend}")


def _warn_of_schedules(recipe: Recipe, job: Job, log: Log) -> None:
    """Too few epochs for a warm-up are mostly a try-out of a long recipe, whose results should not be taken for more."""
    if recipe.schedule.warmup_epochs >= recipe.epochs:
        log(f"warning: the learning rate still warms up after the last of {recipe.epochs} epochs (schedule.warmup_epochs, "
            f"--warmup-epochs: {recipe.schedule.warmup_epochs:g}); it never reaches {recipe.optimizer.lr:g}")
    if job.space is None:
        return
    if recipe.sampler.first_channel_epoch >= recipe.epochs:
        log(f"warning: in {recipe.epochs} epochs only the largest scales are trained (sampler.first_channel_epoch, "
            f"--epoch-start-cs: {recipe.sampler.first_channel_epoch}); a search over scales would compare untrained ones")
    elif (start := scales_epoch(job.space, recipe.sampler)) >= recipe.epochs:
        log(f"warning: the smallest scales join in epoch {start + 1} (sampler.warmup, --cs-warm-up), after the last of "
            f"{recipe.epochs} epochs; a search over scales would compare untrained ones")


def _figures(line: dict[str, Any]) -> str:
    return "  ".join(f"{key} {value:.4f}" for key, value in line.items() if isinstance(value, float))


@dataclass
class _Loop:
    recipe: Recipe
    run_folder: RunFolder
    source: Source
    job: Job
    log: Any
    end: int
    best: dict[str, Any] = field(default_factory=dict)

    def prepare(self) -> None:
        """Build all that a step needs and go to where the run stands. Raises: UserError for what does not fit together."""
        recipe, job = self.recipe, self.job
        self.summary, self.seed = job.summary, recipe.seed
        if recipe.trainable != "all":
            self.summary += f"; {freeze(job.net, recipe.trainable)}"
        if recipe.sampler.sandwich is not None and job.space is not None:
            accumulate(job.net.collect_params())
        self.trainer = trainer_of(job.net.collect_params(), recipe.optimizer, recipe.dtype)
        self.augment = make_augment(recipe.augment.kind, recipe.augment.changes)
        self.steps = self._steps(len(self._loader(0)))
        self.lr = learning_rate(recipe.schedule, recipe.optimizer.lr, recipe.epochs, self.steps)
        self.teacher = make_teacher(recipe.loss, job.classes, job.preprocessing.input_size, job.contexts, recipe.dtype)
        distil = self.teacher is not None
        self.loss = CrossEntropy(recipe.loss.temperature if distil else 1.0, recipe.loss.hard_weight if distil else 1.0)
        self.loss.hybridize()
        sandwich = recipe.sampler.sandwich
        self.distil = None if sandwich is None else distillation(sandwich.distil)
        saved = checkpoint.load_checkpoint(self.run_folder.checkpoint, job.net, self.trainer, job.contexts)
        self.position = saved or begin(recipe.start, job, self.trainer, self.steps, self.log)
        if self.position.epoch and len(job.contexts) > 1:  # the kvstore copies device 0 to the others at its first use: now, when
            self.trainer.allreduce_grads()  # they are equal, not after the first step, when running statistics differ
        job.refresh()
        state = self.position.state
        self.best, self.restores = state.get("best", {}), state.get("restores", 0)
        self.updates = self.position.updates
        if self.restores:
            self.seed = derive_seed(recipe.seed, RESTORED, self.restores)
        self.watch = Watch(recipe.guard, self.trainer, self.log, state.get("guard")) if recipe.guard else None
        self.average = Average(job.net, recipe.ema, checkpoint.load_average(self.run_folder.checkpoint)) if recipe.ema else None

    def run(self) -> dict[str, Any]:
        """Train the epochs that are left; returns the last line of metrics.jsonl."""
        if self.watch is not None and not (self.run_folder.checkpoint / "latest.json").exists():
            self._save(self.position.epoch)  # what the guard goes back to in the first epoch
        while True:
            try:
                return self._epochs()
            except Collapse as collapse:
                self._restore(str(collapse))

    def _restore(self, reason: str) -> None:
        """Go back to the last checkpoint, to other images and networks at a lower rate. Raises: WorkError after too many."""
        guard, latest = self.recipe.guard, checkpoint.read_latest(self.run_folder.checkpoint)
        assert guard is not None and self.watch is not None
        restores = latest["state"].get("restores", 0) + 1
        if restores > guard.restores:
            raise WorkError(f"training collapsed again after {guard.restores} restores: {reason}; {self._advice()}")
        watched = {**latest["state"].get("guard", {}), "streak": 0, "skipped": self.watch.skipped}
        checkpoint.amend(self.run_folder.checkpoint, {**latest["state"], "restores": restores, "guard": watched})
        self.log(f"warning: {reason}; back to the checkpoint after epoch {latest['epoch']}, with learning rates times "
                 f"{guard.lr_factor**restores:g} (restore {restores} of {guard.restores})")
        forget_gradients(self.trainer)
        self.prepare()

    def _epochs(self) -> dict[str, Any]:
        recipe, job, folder, done = self.recipe, self.job, self.run_folder, self.position.epoch
        self.log(f"{self.steps} steps of {recipe.batch_size} images an epoch, {recipe.epochs} epochs"
                 + (f", {done} of them done" if done else ""))
        if job.arch is not None:
            write_json(folder.arch, "architecture", job.arch.to_json())
        if job.space is not None and recipe.keep_initial and not done:
            checkpoint.save_initial(folder.initial, job.net, job.about)
        self._describe(done)
        line = (kept_metrics(folder.metrics, done) or [{}])[-1]
        if not line and done >= recipe.epochs:
            line = self._take_over(done)
        with tensorboard(folder.path / "tensorboard", done) as scalars:
            for epoch in range(done, self.end):
                line = self._epoch(epoch)
                self._keep_best(line)
                append_metrics(folder.metrics, line)
                scalars({**line, **line["timing"]}, epoch + 1)
                if (epoch + 1) % recipe.save_every == 0 or epoch + 1 == self.end:
                    self._save(epoch + 1)
                    self._describe(epoch + 1)
        write_json(folder.result, "training-result",
                   {"epochs": recipe.epochs, "last": line, "best": self.best, "summary": self.summary})
        return line

    def _take_over(self, epoch: int) -> dict[str, Any]:
        """Make finished weights (`start`) the result of this run; returns the line of metrics.jsonl."""
        line: dict[str, Any] = {"epoch": epoch, **{f"val_{name}": value for name, value in self.job.validate().items()}}
        self._keep_best(line)
        append_metrics(self.run_folder.metrics, line)
        self._save(epoch)
        self.log("weights taken over  " + _figures(line))
        return line

    def _save(self, epoch: int) -> None:
        state = {"best": self.best}
        if self.watch is not None:
            state |= {"restores": self.restores, "guard": self.watch.state}
        checkpoint.save_checkpoint(self.run_folder.checkpoint, self.job.net, self.trainer, Position(epoch, state, self.updates),
                                   self.job.about, self.average.arrays if self.average else None)

    def _rate(self, iteration: int) -> float:
        guard = self.recipe.guard
        return self.lr(iteration) * (guard.lr_factor**self.restores if guard else 1.0)

    def _steps(self, batches: int) -> int:
        """Steps of an epoch that could have `batches`; see Recipe.epoch_images and epoch_share."""
        recipe = self.recipe
        if recipe.epoch_images is not None:
            batches = min(batches, recipe.epoch_images // recipe.batch_size)
        return max(1, int(batches * recipe.epoch_share + 1e-9))

    def _loader(self, epoch: int) -> Any:
        return train_loader(
            self.source, batch_size=self.recipe.batch_size, preprocessing=self.job.preprocessing, augment=self.augment,
            seed=self.seed, epoch=epoch, exclude=self.job.holdout.excluded if self.job.holdout else (),
            threads=self.recipe.input_threads)

    def _epoch(self, epoch: int) -> dict[str, Any]:
        recipe, job = self.recipe, self.job
        mx.random.seed(derive_seed(self.seed, epoch))
        mixup = recipe.loss.mixup_alpha if epoch < recipe.epochs - recipe.loss.mixup_off_epochs else 0.0
        waiting = DataWait(self._loader(epoch))
        tally, start = Tally(), time.monotonic()
        with Bar(epoch, recipe.epochs, self.steps) as bar:
            for step, (images, labels) in enumerate(islice(waiting, self.steps)):
                self.trainer.set_learning_rate(self._rate(epoch * self.steps + step))
                images = self._sized(images, epoch)
                target = targets(labels, job.classes, recipe.loss.label_smoothing)
                if mixup:
                    share = random.Random(f"mixup/{self.seed}/{epoch}/{step}").betavariate(mixup, mixup)
                    images, target = mix(images, target, share)
                shards = list(zip(split_and_load(images.astype(recipe.dtype, copy=False), job.contexts),
                                  split_and_load(target, job.contexts), strict=True))
                first, *students = job.forwards(self.seed, epoch, step, shards)
                losses, outputs = run_step(
                    first, shards, self.loss, self.trainer, len(labels), teacher=self.teacher, scale=LOSS_SCALE[recipe.dtype],
                    students=students, distil=self.distil, accept=self.watch.accept if self.watch else None,
                    clip_norm=recipe.optimizer.clip_norm)
                if not losses:
                    self._heal()
                    continue
                self.updates += 1
                tally.add(losses, outputs, split_and_load(labels, job.contexts))
                if self.average is not None:
                    job.settle()
                    self.average.update(self.updates)
                told = bool(recipe.log_every) and (step + 1) % (recipe.log_every or 1) == 0
                if told or step % CHECK_EVERY == 0 or step == self.steps - 1:
                    loss, top1 = tally.read()
                    self._check(loss, epoch, step)
                    bar.show(step + 1, tally.images, waiting.share, loss, top1, self.log if told else None)
        if not tally.images:
            raise Collapse(f"every step of epoch {epoch + 1} was skipped")
        loss, top1 = tally.read()
        self._check(loss, epoch, self.steps - 1)
        seconds = time.monotonic() - start
        job.settle()
        checkpoint.average_statistics(job.net, job.contexts)
        job.refresh()
        self._check_weights(epoch)
        lr = self._rate((epoch + 1) * self.steps - 1)
        line: dict[str, Any] = {"epoch": epoch + 1, "loss": loss, "train_top1": top1, "lr": lr}
        if self.watch is not None:
            line["skipped"] = self.watch.skipped
        if (epoch + 1) % recipe.validate_every == 0 or epoch + 1 == recipe.epochs:
            with self.average.shown() if self.average else nullcontext():
                line |= {f"val_{name}": value for name, value in job.validate().items()}
        seen, what = (line.get("val_top1", 1.0), "validation") if mixup else (top1, "training")  # mixup blurs the labels
        if (epoch + 1) * self.steps >= CHANCE_STEPS and seen <= 1.2 / job.classes:
            self.log(f"warning: after {(epoch + 1) * self.steps} steps {what} accuracy is {seen:.4f}, chance is "
                     f"{1 / job.classes:.4f}; lower the lr, add warm-up, or check the labels (oneshot-nas data check)")
        line["timing"] = {"images_per_second": tally.images / seconds, "data_wait": waiting.share, "seconds": seconds,
                          "validate_seconds": time.monotonic() - start - seconds}
        self.log(f"epoch {epoch + 1}/{recipe.epochs}  {_figures(line)}  {speed(tally.images, seconds)}  "
                 f"data wait {waiting.share:.1%}")
        return line

    def _sized(self, images: NDArray, epoch: int) -> NDArray:
        """The images of a step at the size of `epoch` (bilinear); see `Progressive`."""
        growing, full = self.recipe.progressive, self.job.preprocessing.input_size
        size = full if growing is None else growing.size_of(epoch, full)
        return images if size == full else nd.contrib.BilinearResize2D(images, height=size, width=size, align_corners=False)

    def _heal(self) -> None:
        """After a skipped step: bring running statistics home and repair what is not finite among them."""
        self.job.settle()
        heal_statistics(self.job.net)
        self.job.refresh()

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
