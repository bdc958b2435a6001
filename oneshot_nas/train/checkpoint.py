"""Checkpoints that are atomic and complete: weights, optimizer state and position, without any pickle.

A checkpoint is two array files and ``latest.json``, which names them. ``latest.json`` is replaced last and in one step, so a
kill at any moment leaves the previous checkpoint valid; files it does not name are removed at the next save.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mxnet import nd
from mxnet.base import MXNetError
from mxnet.gluon import Block, Parameter, Trainer
from mxnet.ndarray import NDArray

from oneshot_nas.errors import UserError
from oneshot_nas.files import read_json, read_params_about, write_json, write_params
from oneshot_nas.nets.supernet import Supernet
from oneshot_nas.values import listed

KIND = "checkpoint"
OPTIMIZER = "optimizer-state"
NETWORK, EXPORTED = "network", "exported-params"  # kinds of weights: of structural names, and beside a symbol
ARRAYS = bytes.fromhex("1201000000000000")  # first bytes of an MXNet array file
EMPTY = "no state yet"  # stands in an optimizer file without arrays
PICKLE = b"\x80"  # first byte of a pickle, which Gluon's own optimizer states are


@dataclass(frozen=True)
class Position:
    """Where a run stands: epochs done, what the loop wants to find again, and updates of the weights done."""

    epoch: int
    state: dict[str, Any]
    updates: int = 0


def save_checkpoint(folder: Path, net: Block, trainer: Trainer, position: Position, about: dict[str, Any],
                    average: Mapping[str, NDArray] | None = None) -> None:
    """Write weights and optimizer state of `position.epoch` finished epochs, and `average`d weights where a run has them.

    Raises: WorkError, the old one stays valid.
    """
    weights, arrays = f"weights-{position.epoch:04d}.params", f"optimizer-{position.epoch:04d}.arrays"
    nd.waitall()  # an error of the computation comes up here, not as one of the disk
    write_params(folder / weights, NETWORK, partial(save_arrays, arrays=weight_arrays(net)), about)
    write_params(folder / arrays, OPTIMIZER, partial(save_arrays, arrays=optimizer_arrays(net, trainer)), {})
    keep = {weights, f"{weights}.json", arrays, f"{arrays}.json", "latest.json"}
    averaged = f"average-{position.epoch:04d}.params"
    if average is not None:
        write_params(folder / averaged, NETWORK, partial(save_arrays, arrays=average), about)
        keep |= {averaged, f"{averaged}.json"}
    write_json(folder / "latest.json", KIND, {
        "epoch": position.epoch, "weights": weights, "optimizer": arrays, "state": position.state,
        "updates": position.updates, **({} if average is None else {"average": averaged}),
    })
    for path in folder.iterdir():
        ours = path.name.startswith(("weights-", "optimizer-", "average-")) or (path.name[0] == "." and path.suffix == ".tmp")
        if ours and path.name not in keep:
            with suppress(OSError):  # the new checkpoint is complete, whatever becomes of the old one
                path.unlink()


def amend(folder: Path, state: dict[str, Any]) -> None:
    """Replace the position's `state` in ``latest.json``, in one step."""
    write_json(folder / "latest.json", KIND, {**read_latest(folder), "state": state})


def save_initial(path: Path, net: Block, about: dict[str, Any]) -> None:
    """Write the weights that a supernet starts from, for indicators that measure what training changed. Raises: WorkError."""
    nd.waitall()
    write_params(path, NETWORK, partial(save_arrays, arrays=weight_arrays(net)), about)


def save_arrays(path: str, arrays: Mapping[str, NDArray]) -> None:
    """Write a plain MXNet array file and read it back: MXNet takes no notice of a disk that fills up with the last bytes.

    Raises: OSError when the disk did not take all of it.
    """
    try:
        nd.save(path, dict(arrays))
        nd.load(path)
    except MXNetError as error:
        reason = str(error).strip().splitlines()[-1].rpartition(": ")[2]
        raise OSError(errno.EIO, f"the disk is full or refuses the file ({reason})") from error


def weight_arrays(net: Block) -> dict[str, NDArray]:
    """All weights and running statistics by structural name, from the first device: the content of a ``save_parameters`` file.

    Gluon's own method writes the mean over the devices, which for three of them is not bit by bit what each has.
    """
    _settle(net)
    return {name: parameter.list_data()[0] for name, parameter in net._collect_params_with_prefix().items()}


def _settle(net: Block) -> None:
    """Bring home what the last steps of a supernet left in its views."""
    if isinstance(net, Supernet):
        net.flush()


def read_latest(folder: Path) -> dict[str, Any]:
    """The content of ``latest.json``. Raises: UserError when there is no checkpoint or it is a foreign one."""
    latest = read_json(folder / "latest.json", KIND)
    missing = [key for key in ("epoch", "weights", "optimizer", "state", "updates") if key not in latest]
    if missing:
        raise UserError(f"{folder / 'latest.json'} lacks '{missing[0]}'; it was not written by this program")
    return latest


def latest_weights(folder: Path) -> Path:
    """Path of the newest complete weights, the averaged ones of a run that has them. Raises: UserError without a checkpoint."""
    latest = read_latest(folder)
    return folder / latest.get("average", latest["weights"])


def load_average(folder: Path) -> dict[str, NDArray] | None:
    """The averaged weights of the newest checkpoint, None when there are none."""
    if not (folder / "latest.json").exists() or "average" not in read_latest(folder):
        return None
    return load_arrays(folder / read_latest(folder)["average"])


def load_checkpoint(folder: Path, net: Block, trainer: Trainer, contexts: list) -> Position | None:
    """Restore the newest checkpoint; None when there is none yet. Raises: UserError for broken or foreign files."""
    if not (folder / "latest.json").exists():
        return None
    latest = read_latest(folder)
    load_weights(net, folder / latest["weights"], contexts)
    load_optimizer(net, trainer, folder / latest["optimizer"], contexts)
    return Position(latest["epoch"], latest["state"], latest["updates"])


def load_arrays(path: Path) -> dict[str, NDArray]:
    """Named arrays of an MXNet array file. Raises: UserError when it is missing, truncated or something else; never unpickles."""
    try:
        with open(path, "rb") as handle:
            head = handle.read(len(ARRAYS))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if head.startswith(PICKLE):
        raise UserError(f"{path} is a pickle, as Gluon's .states files are; it is not read, for reading one can run any code; "
                        "give a plain array file: checkpoint/optimizer-NNNN.arrays of a run folder")
    if head != ARRAYS:
        raise UserError(f"{path} is not an MXNet array file; give a .params file, or for optimizer state "
                        "checkpoint/optimizer-NNNN.arrays of a run folder")
    try:
        arrays = nd.load(str(path))
    except (MXNetError, ValueError, MemoryError) as error:
        reason = str(error).strip().splitlines()[-1].rpartition(": ")[2]
        raise UserError(f"{path} is cut off or damaged ({reason[:120]}); copy or make it again") from None
    if not isinstance(arrays, dict):
        raise UserError(f"{path} holds {len(arrays)} arrays without names; give a file of named arrays")
    return arrays


def load_weights(net: Block, path: Path | str, contexts: list) -> dict[str, Any]:
    """Load a plain ``save_parameters`` file strictly; returns the description beside it, {} where there is none.

    Raises: UserError for a file of another kind, and one that names missing, unknown or mis-shaped arrays.
    """
    path = Path(path)
    about = read_params_about(path, NETWORK, EXPORTED) or {}
    given = {name.removeprefix("arg:").removeprefix("aux:"): array for name, array in load_arrays(path).items()}
    wanted = net._collect_params_with_prefix()
    problems = [
        listed("missing", [name for name in wanted if name not in given]),
        listed("unknown", [name for name in given if name not in wanted]),
        listed("of another shape", [
            f"{name} {given[name].shape} instead of {parameter.shape}" for name, parameter in wanted.items()
            if name in given and shapes_differ(parameter.shape, given[name].shape)]),
    ]
    if any(problems):
        raise UserError(f"{path} is not of this network{_whose(about)}: {'; '.join(filter(None, problems))}")
    _settle(net)
    for name, parameter in wanted.items():
        parameter._load_init(given[name], contexts, cast_dtype=True)
    return about


def _whose(about: Mapping[str, Any]) -> str:
    """What the description beside a parameter file says it belongs to, as a phrase."""
    if "space" in about:
        return f" but of a supernet of '{about['space']}'"
    arch = about.get("arch")
    name = arch.get("space") if isinstance(arch, dict) else about.get("model")
    return f" but of a fixed network ({name})" if name else ""


def shapes_differ(wanted: tuple[int, ...] | None, given: tuple[int, ...]) -> bool:
    """Whether an array of shape `given` does not fit a parameter; sizes that are not known yet are 0 or -1."""
    if wanted is None:
        return False
    return len(wanted) != len(given) or any(w not in (0, -1, g) for w, g in zip(wanted, given, strict=True))


def optimizer_arrays(net: Block, trainer: Trainer) -> dict[str, NDArray]:
    """Optimizer state as plain arrays named 'parameter:part', from the first device (all devices hold the same).

    A parameter that has never been updated has no state.
    """
    names = _names(net)
    arrays = {}
    for index, state in sorted(trainer._updaters[0].states.items()):
        for part, array in enumerate(_parts(state)):
            if array is not None:
                arrays[f"{names[trainer._params[index]]}:{part}"] = array
    return arrays or {EMPTY: nd.zeros(1)}


def load_optimizer(net: Block, trainer: Trainer, path: Path, contexts: list) -> None:
    """Put the optimizer state of a file back on every device. Raises: UserError when it is of another network or optimizer."""
    read_params_about(path, OPTIMIZER)
    arrays = load_arrays(path)
    names = _names(net)
    left = set(arrays) - {EMPTY}
    updated = {key.rpartition(":")[0] for key in left}
    for updater, context in zip(trainer._updaters, contexts, strict=True):
        for index, parameter in enumerate(trainer._params):
            name = names[parameter]
            if name not in updated:
                continue
            state = updater.optimizer.create_state_multi_precision(index, parameter.data(context))
            for part, array in enumerate(_parts(state)):
                saved = arrays.get(f"{name}:{part}")
                if array is None and saved is None:
                    continue
                if array is None or saved is None or saved.shape != array.shape:
                    raise UserError(f"{path} is not of this network and optimizer: the state of '{name}' does not fit")
                array[:] = saved.as_in_context(context)
                left.discard(f"{name}:{part}")
            updater.states[index] = state
            updater.states_synced[index] = True
    if left:
        raise UserError(f"{path} is not of this network and optimizer: it holds '{min(left)}', which is unknown here")


def _names(net: Block) -> dict[Parameter, str]:
    """Structural name of every parameter; a shared one has its first."""
    return {parameter: name for name, parameter in reversed(net._collect_params_with_prefix().items())}


def _parts(state: Any) -> tuple:
    return tuple(state) if isinstance(state, tuple | list) else (state,)


def average_statistics(net: Block, contexts: list) -> None:
    """Give every device the mean of the running statistics, which each device keeps for itself while training."""
    if len(contexts) < 2:
        return
    _settle(net)
    for parameter in net.collect_params().values():
        if not parameter._differentiable:
            parameter.set_data(sum(array.as_in_context(contexts[0]) for array in parameter.list_data()) / len(contexts))
