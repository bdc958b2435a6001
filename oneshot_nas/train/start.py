"""Where a run starts: at random weights, at the files of another run, or at a network's share of a trained supernet."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from mxnet.gluon import Trainer

from oneshot_nas.data.images import Preprocessing
from oneshot_nas.errors import UserError
from oneshot_nas.indicators.accuracy import make_calibrator
from oneshot_nas.sections import Start
from oneshot_nas.train.checkpoint import Position, load_optimizer, load_weights
from oneshot_nas.train.job import Job
from oneshot_nas.train.report import Log
from oneshot_nas.train.runs import load_supernet


def begin(start: Start | None, job: Job, trainer: Trainer, steps: int, say: Log) -> Position:
    """Give `job` the weights that `start` names; `steps` are those of an epoch. Raises: UserError for what does not fit.

    `say` is told when the weights are used to other images than this run gives them.
    """
    if start is None:
        return Position(0, {})
    if start.supernet is not None:
        _from_supernet(start.supernet, job)
        return Position(0, {})
    assert start.weights is not None
    about = load_weights(job.net, start.weights, job.contexts)
    with suppress(UserError, KeyError, TypeError):  # no description, or not ours: nothing is known
        prepared = Preprocessing.from_json(about["preprocessing"])
        if prepared != job.preprocessing:
            say(f"warning: {start.weights} belongs to images prepared as {prepared.to_json()}, this run prepares them as "
                f"{job.preprocessing.to_json()}")
    if start.optimizer is not None:
        load_optimizer(job.net, trainer, Path(start.optimizer), job.contexts)
    return Position(start.epoch, {}, start.epoch * steps)


def _from_supernet(folder: str, job: Job) -> None:
    """Copy the supernet's weights for this architecture, recalibrated on its calibration images."""
    assert job.arch is not None
    run = load_supernet(folder)
    run.space.check(job.arch)
    prepared = run.preprocessing
    if prepared != job.preprocessing:
        raise UserError(f"the supernet in {folder} was trained on images prepared as {prepared.to_json()}, this run "
                        f"prepares them as {job.preprocessing.to_json()}; give the same mean, std and crop_ratio, and the same "
                        "data set")
    net = make_calibrator(run, run.source()).inherited(job.arch)
    wanted = job.net._collect_params_with_prefix()
    for name, parameter in net._collect_params_with_prefix().items():
        wanted[name].set_data(parameter.data())
