"""Packs the official CIFAR-10 python archive, whose members are Python pickles, through an unpickler that can do nothing.

A pickle may name any callable of any module. Here only the three names that a numpy array needs are known, and each stands for an
inert class of this file: neither numpy nor anything else of the process is reachable from the archive.
"""

from __future__ import annotations

import io
import lzma
import os
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from oneshot_nas.data.datasets import Dataset
from oneshot_nas.data.images import encode
from oneshot_nas.data.packers import Sample, digest_of, write_dataset
from oneshot_nas.errors import UserError

TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
VAL = ("test_batch",)
META = "batches.meta"
MAX_MEMBER = 64 * 2**20
PIXELS = 3 * 32 * 32


def pack_cifar10(archive: str | os.PathLike, out: str | os.PathLike, *, overwrite: bool = False) -> Dataset:
    """Write cifar-10-python.tar.gz as a data set of lossless 32x32 PNG (official train and test parts); return it.

    Nothing is extracted to disk, nothing in it is executed. Raises: UserError when a member is missing or not as expected.
    """
    archive = Path(archive).expanduser()
    members = _read_members(archive)
    digest = digest_of(members[name] for name in sorted(members))
    names = _names(members[META], archive)
    batches = {name: _batch(members.pop(name), archive, name, len(names)) for name in (*TRAIN, *VAL)}

    def samples(part: tuple[str, ...]) -> Iterator[Sample]:
        for name in part:
            for label, image in zip(*batches[name], strict=True):
                pixels = np.ascontiguousarray(image.reshape(3, 32, 32).transpose(1, 2, 0))
                yield label, encode(pixels, ".png"), pixels

    totals = (sum(len(batches[name][0]) for name in TRAIN), sum(len(batches[name][0]) for name in VAL))
    made_by = {"source": "cifar10", "members": digest}
    return write_dataset(out, made_by, names, samples(TRAIN), samples(VAL), overwrite=overwrite, totals=totals)


def _read_members(archive: Path) -> dict[str, bytes]:
    """Return the bytes of the members that hold data. Raises: UserError."""
    if not archive.is_file():
        raise UserError(f"no archive {archive}; give the official cifar-10-python.tar.gz")
    wanted = {*TRAIN, *VAL, META}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                name = Path(member.name).name
                if name not in wanted or not member.isfile():
                    continue
                if member.size > MAX_MEMBER or name in found:
                    raise UserError(
                        f"{archive}: member {member.name} is too large or there twice; this is not the official archive"
                    )
                handle = tar.extractfile(member)
                found[name] = handle.read() if handle else b""
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition(": - method")[0]  # then come the reasons of every other compression
        raise UserError(f"{archive} is no readable .tar.gz file ({reason}); download cifar-10-python.tar.gz again") from error
    missing = sorted(wanted - set(found))
    if missing:
        raise UserError(f"{archive} lacks {', '.join(missing)}; give the official cifar-10-python.tar.gz")
    return found


def _names(encoded: bytes, archive: Path) -> list[str]:
    """Return the names of the classes. Raises: UserError."""
    try:
        return [name.decode() for name in _field(encoded, b"label_names", archive, META, list)]
    except (AttributeError, UnicodeDecodeError):
        raise UserError(f"{archive}: {META} has label_names that are not UTF-8 bytes; give the official archive") from None


def _batch(encoded: bytes, archive: Path, name: str, classes: int) -> tuple[list[int], np.ndarray]:
    """Return (labels, pixels: uint8, images x 3072) of one batch. Raises: UserError."""
    labels = _field(encoded, b"labels", archive, name, list)
    array = _field(encoded, b"data", archive, name, _Array)
    if not all(type(label) is int and 0 <= label < classes for label in labels):
        raise UserError(f"{archive}: {name} has labels that are not 0 ... {classes - 1}")
    if array.shape != (len(labels), PIXELS) or len(array.data) != len(labels) * PIXELS:
        raise UserError(
            f"{archive}: {name} has {len(labels)} labels and data of shape {array.shape}, expected ({len(labels)}, {PIXELS})"
        )
    return labels, np.frombuffer(array.data, np.uint8).reshape(array.shape)


def _field(encoded: bytes, key: bytes, archive: Path, name: str, kind: type) -> Any:
    """Return one entry of a pickled dictionary, of type `kind`. Raises: UserError."""
    try:
        content = SafeUnpickler(io.BytesIO(encoded), encoding="bytes").load()
    except UserError as error:
        raise UserError(f"{archive}: {name} {error}") from error
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(f"{archive}: {name} is no CIFAR-10 batch: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get(key), kind):
        raise UserError(
            f"{archive}: {name} has no {kind.__name__.strip('_').lower()} '{key.decode()}'; give the official archive"
        )
    return content[key]


class SafeUnpickler(pickle.Unpickler):
    """Reads plain values and uint8 arrays; whatever else a pickle names is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Dtype,
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in known:
            raise UserError(f"asks for {module}.{name}, which no CIFAR-10 batch needs; it may be an attack, the file is refused")
        return known[module, name]


class _Array:
    """Stands for numpy.ndarray: keeps shape and bytes, checked where they are used."""

    shape: tuple[int, ...] = ()
    data = b""

    def __setstate__(self, state: Any) -> None:
        _version, self.shape, dtype, by_columns, self.data = state
        if not isinstance(dtype, _Dtype) or by_columns or not isinstance(self.data, bytes):
            raise UserError("holds an array that is not plain uint8 in row order")


class _Dtype:
    """Stands for numpy.dtype of unsigned bytes, the only one allowed."""

    def __init__(self, code: Any, *_flags: Any) -> None:
        if code not in ("u1", b"u1"):
            raise UserError(f"holds an array of type {code!r}, expected uint8")

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like: nothing to keep for single bytes."""


def _reconstruct(*_arguments: Any) -> _Array:
    return _Array()


def _latin1(text: str, *_encoding: Any) -> bytes:
    return text.encode("latin1")
