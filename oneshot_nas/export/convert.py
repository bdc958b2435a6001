"""Weights of official PyTorch releases as our parameter files, and back: one `Format` a release.

A format holds a fixed network (an architecture is needed), or a whole supernet (a space; an architecture takes its subnet out).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from oneshot_nas.arch import Arch, Space, show, space_of
from oneshot_nas.errors import UserError
from oneshot_nas.export import attentivenas, megvii
from oneshot_nas.export.state import Arrays
from oneshot_nas.files import read_params_about, write_params


@dataclass(frozen=True)
class Format:
    """How weights of one release become ours: renaming from and to, what its networks are fed, what the user must know.

    A `supernet` format renames (arrays, space); the others rename (arrays, architecture). `note` is told on the way here,
    `made_up` on the way back: what of the release's arrays has no counterpart in ours. `recipe`, one of those that come with
    the toolkit, prepares images as the release does.
    """

    supernet: bool
    renamed_from: Callable[[Arrays, Any], dict[str, np.ndarray]]
    renamed_to: Callable[[Arrays, Any], dict[str, np.ndarray]]
    preprocessing: dict[str, Any]
    note: str
    recipe: str
    made_up: str = "num_batches_tracked is 0 everywhere"


FORMATS = {
    "megvii-spos": Format(
        False, megvii.from_megvii, megvii.to_megvii, megvii.PREPROCESSING,
        "the network expects BGR images with values 0 to 255, not normalised (recorded beside the file)",
        "spos_retrain"),
    "attentivenas": Format(
        True, attentivenas.from_official, attentivenas.to_official, attentivenas.PREPROCESSING,
        "its running statistics are those of the release, which are meaningless: recalibrate before use",
        "attentivenas_supernet",
        "num_batches_tracked and the 1x1 shortcuts that the official code never runs are 0 everywhere"),
}


def check_format(name: str) -> str:
    """Return `name` if weights of that format can be converted. Raises: UserError."""
    if name not in FORMATS:
        raise UserError(f"weights of format '{name}' cannot be converted (yet); the formats are {show(FORMATS)}")
    return name


def check_target(name: str, space: Space | None, arch: Arch | None) -> None:
    """Raise UserError unless the format `name` can become weights of that space or architecture."""
    if FORMATS[name].supernet and space is None and arch is None:
        raise UserError(f"{name} holds a whole supernet; give its space with --space NAME, or --arch FILE for one subnet of it")
    if not FORMATS[name].supernet and (arch is None or space is not None):
        raise UserError(f"{name} holds one fixed network; give its architecture with --arch FILE and no --space")
    if space is not None and arch is not None:
        raise UserError("give --space for the whole supernet or --arch for one subnet of it, not both")


def from_official(name: str, state: Arrays, space: Space | None, arch: Arch | None) -> dict[str, np.ndarray]:
    """Our arrays of official ones: those of the supernet of `space`, or of the fixed network `arch`. Raises: UserError."""
    check_target(name, space, arch)
    found = FORMATS[name]
    if not found.supernet:
        return found.renamed_from(state, arch)
    if arch is None:
        return found.renamed_from(state, space)
    return attentivenas.subnet(found.renamed_from(state, space_of(arch)), space_of(arch), arch)


def to_official(name: str, params: Arrays, space: Space | None, arch: Arch | None) -> dict[str, np.ndarray]:
    """The official arrays of ours, the inverse of `from_official`. Raises: UserError."""
    check_target(name, space, arch)
    if FORMATS[name].supernet and space is None:
        raise UserError(f"{name} holds a whole supernet, which one subnet cannot fill; give --space NAME with a supernet")
    return FORMATS[name].renamed_to(params, space if FORMATS[name].supernet else arch)


def write_network(path: str | os.PathLike, params: Arrays, owner: Arch | Space, source: str) -> None:
    """Write parameters as a plain Gluon file of kind 'network' for ``load_parameters``. Raises: WorkError.

    `owner` is the architecture of a fixed network, or the space of a supernet; `source` the format they came from.
    """
    import mxnet as mx

    from oneshot_nas.train.checkpoint import save_arrays

    arrays = {name: mx.nd.array(array, dtype="float32") for name, array in params.items()}
    whose = {"arch": owner.to_json()} if isinstance(owner, Arch) else {"space": owner.name, "options": dict(owner.options)}
    about = {**whose, "source": source, "preprocessing": FORMATS[source].preprocessing}
    write_params(path, "network", partial(save_arrays, arrays=arrays), about)


def read_network(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a Gluon parameter file of kind 'network'. Raises: UserError."""
    from oneshot_nas.train.checkpoint import load_arrays

    read_params_about(path, "network")
    return {name: array.asnumpy() for name, array in load_arrays(Path(path)).items()}
