"""State dicts of other frameworks: read without unpickling, written, and renamed strictly."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from oneshot_nas.errors import INSTALL_EXTRA, UserError
from oneshot_nas.files import BROKEN_NPZ, atomic_path
from oneshot_nas.values import listed

Arrays = Mapping[str, np.ndarray]
MAX_BYTES = 2**31  # of the arrays in one .npz; the largest supernet has some 100 MB
COUNTER = "num_batches_tracked"  # PyTorch counts batches in every BatchNorm; nothing depends on it here


def unwrapped(state: Arrays) -> Arrays:
    """The state dict without the prefix that nn.DataParallel gives to every key."""
    if state and all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): array for key, array in state.items()}
    return state


def renamed(given: Arrays, keys: Mapping[str, tuple[str, tuple[int, ...]]], what: str) -> dict[str, np.ndarray]:
    """The arrays under their new names, float32, after checking that they are exactly those of `keys` (old -> new, shape).

    Raises: UserError that names missing, unknown and mis-shaped arrays one by one; `what` says whose they should be.
    """
    wrong = []
    for key, (_, shape) in keys.items():
        if key in given and given[key].shape != shape:
            wrong.append(f"{key} is {given[key].shape} instead of {shape}")
        elif key in given and not np.issubdtype(given[key].dtype, np.floating):
            wrong.append(f"{key} does not hold floating-point numbers but {given[key].dtype}")
        elif key in given and not np.isfinite(given[key]).all():
            wrong.append(f"{key} holds NaN or infinity")
    problems = [
        listed("missing", [f"{key} {shape}" for key, (_, shape) in keys.items() if key not in given]),
        listed("unknown", [f"{key} {given[key].shape}" for key in given if key not in keys]),
        listed("wrong", wrong),
    ]
    if any(problems):
        raise UserError(f"these are not the weights of this {what}: {'; '.join(filter(None, problems))}")
    return {new: np.ascontiguousarray(given[key], dtype=np.float32) for key, (new, _) in keys.items()}


def read_state(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a ``.npz`` or ``.safetensors`` file, or of a ``.pth`` / ``.pth.tar`` checkpoint when torch is there.

    Nothing is unpickled. Raises: UserError for a missing, broken or unknown file.
    """
    path = Path(path)
    read = next((read for suffix, read in READERS.items() if path.name.endswith(suffix)), None)
    if read is None:
        raise UserError(f"{path} is none of {', '.join(READERS)}; save the state dict as .npz or .safetensors")
    if not path.is_file():
        raise UserError(f"no weights at {path}")
    return read(path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                raise UserError(f"{path} unpacks to more than {MAX_BYTES >> 30} GiB; this is no such network")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except UserError:
        raise
    except BROKEN_NPZ as error:
        raise UserError(f"{path} is not an .npz file of plain arrays: {_first_line(error)}") from None


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    safetensors = _safetensors()
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a safetensors file of float arrays: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise UserError(f"safetensors is not installed; {INSTALL_EXTRA.format('onnx')} adds it, or save the state dict as "
                        ".npz") from None
    return safetensors


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path.name} is a PyTorch checkpoint and torch is not installed here; where it is, run "
            "python -c \"import numpy, torch; "
            f"s = torch.load('{path.name}', 'cpu', weights_only=True); s = s.get('state_dict', s); "
            "numpy.savez('weights.npz', **{k: v.numpy() for k, v in s.items()})\" and convert weights.npz") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = content.get("state_dict", content)
        return {key: tensor.numpy() for key, tensor in state.items()}
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError ... and AttributeError for other content
        raise UserError(f"{path} is not a state dict that torch loads with weights_only=True: {_first_line(error)}") from None


READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".npz": _read_npz, ".safetensors": _read_safetensors, ".pth.tar": _read_torch, ".pth": _read_torch, ".pt": _read_torch,
}


def write_state(path: str | os.PathLike, state: Arrays) -> None:
    """Write arrays as ``.npz`` or ``.safetensors``, atomically. Raises: UserError for another suffix, WorkError."""
    path = Path(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise UserError(f"{path} must end in .npz or .safetensors")
    with atomic_path(path) as temporary:
        if path.suffix == ".safetensors":
            _safetensors().numpy.save_file(dict(state), temporary)
        else:
            with open(temporary, "wb") as handle:
                np.savez(handle, **state)
