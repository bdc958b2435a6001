"""Weights of official PyTorch releases as our parameters, and back.

Format ``megvii-spos``: the fixed network of megvii-model/ShuffleNet-Series (OneShot) and megvii-model/SinglePathOneShot.
Its modules are Sequentials whose places are those of our plan's primitives, and its channel split (even channels pass by)
is ours, so every array is taken over as it is: no permutation, no transposition.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from oneshot_nas.arch import Arch, space_of
from oneshot_nas.errors import UserError
from oneshot_nas.files import atomic_path, write_params
from oneshot_nas.plan import Layer
from oneshot_nas.primitives import BatchNorm, Dense, Primitive

Arrays = Mapping[str, np.ndarray]
FORMATS = ("megvii-spos",)
MAX_BYTES = 2**31  # of the arrays in one .npz; a network has some 14 MB
SHOWN = 5
BROKEN_NPZ = (OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, MemoryError, SyntaxError,
              zipfile.BadZipFile, zlib.error)
TERMS = {"weight": "weight", "gamma": "weight", "beta": "bias", "running_mean": "running_mean", "running_var": "running_var"}
COUNTER = "num_batches_tracked"  # PyTorch counts batches in every BatchNorm; nothing depends on it here
# What the official network is fed (megvii-model/SinglePathOneShot, train.py): no mean, no std, the stem's BatchNorm absorbs them
PREPROCESSING = {"input_size": 224, "crop_ratio": 0.875, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0],
                 "interpolation": "linear", "channels": "BGR"}


def check_format(name: str) -> str:
    """Return `name` if weights of that format can be converted. Raises: UserError."""
    if name not in FORMATS:
        raise UserError(f"weights of format '{name}' cannot be converted (yet); the formats are {', '.join(FORMATS)}")
    return name


def megvii_keys(arch: Arch) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Official key -> (our parameter name, shape) of every array of the network.

    Raises: UserError when the official code has no such network.
    """
    _check_official(arch)
    keys = {}
    for place, layer in enumerate(space_of(arch).plan(arch).layers):
        for branch in layer.op.branches():
            for index, primitive in enumerate(branch.chain):
                module = _module(layer, place, branch.name, primitive)
                shapes = {**primitive.parameters(), **(primitive.statistics() if isinstance(primitive, BatchNorm) else {})}
                for name, shape in shapes.items():
                    term = TERMS[name.rsplit(".", 1)[1]]
                    keys[f"{module}.{0 if isinstance(primitive, Dense) else index}.{term}"] = (f"{layer.name}.{name}", shape)
    return keys


def _module(layer: Layer, place: int, branch: str, primitive: Primitive) -> str:
    """The official Sequential that holds the primitive."""
    if layer.name == "stem":
        return "first_conv"
    if layer.name == "head":
        return "classifier" if isinstance(primitive, Dense) else "conv_last"
    return f"features.{place - 1}.branch_{'proj' if branch == 'projection' else branch}"


def _check_official(arch: Arch) -> None:
    allowed: dict[str, tuple] = {
        "se": (False,), "tail": ("conv",), "layout": ("oneshot", "shufflenetv2+"), "classifier_bias": (False,),
    }
    if arch.space != "spos_shufflenet":
        raise UserError(f"megvii-spos weights are of space 'spos_shufflenet', the architecture is of '{arch.space}'")
    for name, values in allowed.items():
        if arch.options[name] not in values:
            wanted = " or ".join(str(value).lower() for value in values)
            raise UserError(f"the architecture has option '{name}' = {arch.options[name]}, the official network has {wanted}; "
                            f"make the architecture with --option {name}={str(values[0]).lower()}")


def from_megvii(state: Arrays, arch: Arch) -> dict[str, np.ndarray]:
    """Our parameters (name -> float32 array, as `load_parameters` reads them) of an official state dict.

    Raises: UserError that names missing, unknown and mis-shaped arrays. ``num_batches_tracked`` has no counterpart here.
    """
    if state and all(key.startswith("module.") for key in state):  # saved from nn.DataParallel
        state = {key.removeprefix("module."): array for key, array in state.items()}
    weights = {key: array for key, array in state.items() if not key.endswith(f".{COUNTER}")}
    return _renamed(weights, megvii_keys(arch))


def to_megvii(params: Arrays, arch: Arch) -> dict[str, np.ndarray]:
    """The official state dict of our parameters, the inverse of `from_megvii`; batch counters are 0.

    Raises: UserError that names missing, unknown and mis-shaped arrays.
    """
    keys = {ours: (theirs, shape) for theirs, (ours, shape) in megvii_keys(arch).items()}
    state = _renamed(params, keys)
    counters = {f"{key.rsplit('.', 1)[0]}.{COUNTER}": np.zeros((), np.int64) for key in state if key.endswith("running_var")}
    return {**state, **counters}


def _renamed(given: Arrays, keys: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """The arrays under their new names, after checking that they are exactly those of `keys`."""
    wrong = []
    for key, (_, shape) in keys.items():
        if key in given and given[key].shape != shape:
            wrong.append(f"{key} is {given[key].shape} instead of {shape}")
        elif key in given and not (np.issubdtype(given[key].dtype, np.floating) and np.isfinite(given[key]).all()):
            wrong.append(f"{key} does not hold finite floating-point numbers but {given[key].dtype}")
    problems = [
        _listed("missing", [f"{key} {shape}" for key, (_, shape) in keys.items() if key not in given]),
        _listed("unknown", [f"{key} {given[key].shape}" for key in given if key not in keys]),
        _listed("wrong", wrong),
    ]
    if any(problems):
        raise UserError(f"these are not the weights of this architecture: {'; '.join(filter(None, problems))}")
    return {new: np.ascontiguousarray(given[key], dtype=np.float32) for key, (new, _) in keys.items()}


def _listed(what: str, items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"{len(items)} {what}: {', '.join(items[:SHOWN])}{more}" if items else ""


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
        raise UserError("safetensors is not installed; run pip install safetensors, or save the state dict as .npz") from None
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


def write_network(path: str | os.PathLike, params: Arrays, arch: Arch, source: str) -> None:
    """Write parameters as a plain Gluon file of kind 'network' for ``net.load_parameters``. Raises: WorkError."""
    import mxnet as mx

    arrays = {name: mx.nd.array(array, dtype="float32") for name, array in params.items()}
    about = {"arch": arch.to_json(), "source": source, "preprocessing": PREPROCESSING}
    write_params(path, "network", lambda temporary: mx.nd.save(temporary, arrays), about)


def read_network(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a Gluon parameter file of kind 'network'. Raises: UserError."""
    from oneshot_nas.files import read_params_about
    from oneshot_nas.train.checkpoint import load_arrays

    read_params_about(path, "network")
    return {name: array.asnumpy() for name, array in load_arrays(Path(path)).items()}
