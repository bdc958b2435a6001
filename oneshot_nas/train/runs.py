"""Trained runs read back: the supernet or the fixed network of a run folder, with the data it belongs to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
from mxnet.gluon import Block

from oneshot_nas.arch import Arch, Space, read_arch_file
from oneshot_nas.config import Recipe, RunFolder, read_recipe, training_space
from oneshot_nas.data.holdout import Holdout
from oneshot_nas.data.images import Preprocessing
from oneshot_nas.data.source import Source, open_source
from oneshot_nas.errors import UserError
from oneshot_nas.files import read_json
from oneshot_nas.nets.fixed import fixed_network
from oneshot_nas.nets.supernet import Supernet
from oneshot_nas.train.checkpoint import latest_weights, load_weights
from oneshot_nas.train.sampling import at_least
from oneshot_nas.train.zoo import zoo_network
from oneshot_nas.values import listed


@dataclass(frozen=True)
class SupernetRun:
    """A trained supernet: its space, network, data and the images that were kept from its training."""

    folder: Path
    space: Space
    net: Supernet
    recipe: Recipe
    holdout: Holdout
    preprocessing: Preprocessing
    about: dict[str, Any]
    digest: str

    def source(self) -> Source:
        """The data it was trained on. Raises: UserError when it is gone or another one."""
        try:
            source = open_source(self.recipe, int(self.space.options["classes"]))
            self.holdout.check(source.part("train").labels)
        except UserError as error:
            raise UserError(f"{error} ({self.folder / 'config.yaml'} says where the data of this supernet is)") from None
        return source


@dataclass(frozen=True)
class FixedRun:
    """A trained fixed network; `arch` is None for a model of GluonCV's zoo, and `identity` is what says which network it is."""

    folder: Path
    recipe: Recipe
    arch: Arch | None
    net: Block
    preprocessing: Preprocessing
    classes: int
    identity: dict[str, Any]


@dataclass(frozen=True)
class SupernetFiles:
    """A supernet run without its network: what it says of itself, and where its newest complete weights are."""

    folder: Path
    space: Space
    recipe: Recipe
    about: dict[str, Any]
    weights: Path

    @property
    def digest(self) -> str:
        """Digest of the weights, which tells two supernets apart on every machine."""
        return hashlib.sha256(self.weights.read_bytes()).hexdigest()


def open_supernet(folder: str | Path) -> SupernetFiles:
    """Read what a supernet run says of itself, not its weights. Raises: UserError that names the missing or foreign file."""
    run = RunFolder(folder)
    if not run.path.is_dir():
        raise UserError(f"no run folder {folder}; `oneshot-nas train --recipe FILE.yaml --out {folder}` makes one")
    if not run.supernet.exists():
        inner = run.path / "supernet"
        if RunFolder(inner).supernet.exists():
            raise UserError(f"{folder} is not a supernet run itself, its supernet lies in {inner} (see shrink); give that folder")
        raise UserError(f"{folder} holds no supernet.json, so it is not a supernet run; give the folder of a trained supernet")
    about, recipe = read_json(run.supernet, "supernet"), read_recipe(run.config)
    try:
        space = at_least(training_space(about["space"], about["options"], recipe.allowed), recipe.sampler.least_scale)
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.supernet} lacks {error}; it was not written by this program") from None
    if not (run.checkpoint / "latest.json").exists():
        raise UserError(f"the supernet in {folder} has not finished an epoch; run its train command again")
    return SupernetFiles(run.path, space, recipe, about, latest_weights(run.checkpoint))


def load_supernet(folder: str | Path, contexts: list | None = None) -> SupernetRun:
    """Read a supernet run with its newest complete weights. Raises: UserError that names the missing or foreign file."""
    run = open_supernet(folder)
    try:
        holdout = Holdout.from_json(run.about["holdout"])
        preprocessing = Preprocessing.from_json(run.about["preprocessing"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.folder / 'supernet.json'} lacks {error}; it was not written by this program") from None
    net, digest = Supernet(run.space), run.digest
    load_weights(net, run.weights, contexts or [mx.cpu()])
    broken = [name for name, parameter in net._collect_params_with_prefix().items()
              if not np.isfinite(parameter.list_data()[0].asnumpy()).all()]
    if broken:
        raise UserError(f"{run.weights} holds numbers that are not finite ({listed('arrays', broken)}): training diverged, or "
                        "the file is damaged; train again with a lower lr or guard: {}")
    return SupernetRun(run.folder, run.space, net, run.recipe, holdout, preprocessing, run.about, digest)


def load_fixed(folder: str | Path, contexts: list | None = None) -> FixedRun:
    """Read a fixed-network run with its newest complete weights. Raises: UserError that names the missing or foreign file."""
    run = RunFolder(folder)
    if not run.path.is_dir():
        raise UserError(f"no run folder {folder}")
    if run.supernet.exists() or not run.config.exists() or not run.checkpoint.exists():
        raise UserError(f"{folder} is not the run of a trained fixed network; give the --out of `oneshot-nas train --arch ...`")
    recipe, contexts = read_recipe(run.config), contexts or [mx.cpu()]
    weights = latest_weights(run.checkpoint)
    about = read_json(f"{weights}.json", "network")
    net: Block
    arch: Arch | None
    try:
        preprocessing = Preprocessing.from_json(about["preprocessing"])
        if run.arch.exists():
            ours = read_arch_file(str(run.arch))
            classes, identity = int(ours.options["classes"]), {"arch": ours.to_json()}
            net, arch = fixed_network(ours), ours
        else:
            classes, identity = int(about["classes"]), {"model": about["model"], "classes": about["classes"]}
            net, arch, _ = zoo_network(str(about["model"]), classes, {**recipe.options, "pretrained": False}, contexts)
    except KeyError as error:
        raise UserError(f"{weights}.json lacks {error}; it was not written by this program") from None
    load_weights(net, weights, contexts)
    return FixedRun(run.path, recipe, arch, net, preprocessing, classes, identity)
