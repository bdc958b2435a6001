"""RecordIO image files read and written exactly, without MXNet, so that a bad file is an error and never a crash.

A record is ``magic, flag << 29 | length, payload, padding to 4 bytes``; its payload is ``flag, label, id, id2`` (24 bytes) and an
encoded image. A payload that contains the magic number at a multiple of 4 bytes is stored as several parts (flags 1, 2 ... 3)
with the magic left out between them. The .idx file has one line ``key <tab> byte offset`` per record.

MXNet's reader trusts both files: an empty .idx is a segmentation fault, a broken magic drops a record in silence, and a record
missing from the .idx is delivered with its predecessor. `read_index` verifies the structure before anything is read.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from oneshot_nas.errors import UserError
from oneshot_nas.files import atomic_path, write_text
from oneshot_nas.progress import track

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
LENGTH_BITS = 29
MAX_LENGTH = (1 << LENGTH_BITS) - 1
HEADER = struct.Struct("<IfQQ")
WHOLE, FIRST, MIDDLE, LAST = 0, 1, 2, 3
BLOCK = 65536


@dataclass(frozen=True, eq=False)
class Index:
    """The headers of one .rec file in the order of its .idx; a *position* is a row of these arrays.

    keys, offsets: int64 as in the .idx; labels: float32.
    """

    rec: Path
    idx: Path
    keys: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, position: int) -> bytes:
        """Return the encoded image of the record at `position`. Raises: UserError when it cannot be read."""
        try:
            with open(self.rec, "rb") as handle:
                payload = _read_payload(handle, int(self.offsets[position]))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.name(position)} cannot be read: {error}") from error
        labels = HEADER.unpack_from(payload)[0]
        return payload[HEADER.size + 4 * labels :]

    def name(self, position: int) -> str:
        """Return words that lead a person to one record."""
        return f"record {position} (key {self.keys[position]}, byte {self.offsets[position]}) of {self.rec}"


def read_index(rec: str | os.PathLike, idx: str | os.PathLike | None = None) -> Index:
    """Return the `Index` of a .rec file whose structure has been verified; `idx` defaults to the same name with .idx.

    Only headers are read. Verified: every magic number, every length, and that the .idx lists each record of the file exactly
    once, with no gap. The answer is kept until a file changes. Raises: UserError naming the file, the record and the reason.
    """
    rec = Path(rec)
    idx = Path(idx) if idx is not None else rec.with_suffix(".idx")
    size = _size(rec, "record file")
    if not idx.is_file():
        raise UserError(f"no index file {idx} for {rec}; make it with: oneshot-nas data check {rec} --rebuild-index")
    _size(idx, "index file")
    try:
        return _read_index(rec, idx, size, rec.stat().st_mtime_ns, idx.stat().st_size, idx.stat().st_mtime_ns)
    except OSError as error:
        raise UserError(f"cannot read {rec} and {idx}: {error.strerror or error}") from error


def scan_labels(rec: str | os.PathLike, idx: str | os.PathLike | None = None) -> np.ndarray:
    """Return the label of every record (float32, in the order of the .idx), reading only headers. Raises: UserError."""
    return read_index(rec, idx).labels


def write_records(rec: str | os.PathLike, records: Iterable[tuple[int, bytes]]) -> int:
    """Write (label, encoded image) pairs as a .rec file and the .idx beside it; return how many. Keys and ids are 0, 1, 2 ...

    Both files appear whole or not at all. Raises: WorkError when the disk refuses, UserError when an image is too large.
    """
    rec = Path(rec)
    idx = rec.with_suffix(".idx")
    offset = count = 0
    lines = []
    with atomic_path(idx) as idx_part, atomic_path(rec) as rec_part:
        with open(rec_part, "wb") as out:
            for count, (label, image) in enumerate(records, start=1):
                record = pack_record(label, count - 1, image)
                out.write(record)
                lines.append(f"{count - 1}\t{offset}\n")
                offset += len(record)
        idx_part.write_text("".join(lines), encoding="ascii")
    return count


def pack_record(label: float, identity: int, image: bytes) -> bytes:
    """Return one record: `image` with its header, split where it contains the magic number, padded to 4 bytes."""
    payload = HEADER.pack(0, label, identity, 0) + image
    if len(payload) > MAX_LENGTH:
        raise UserError(f"image {identity} has {len(image)} bytes; a record holds at most {MAX_LENGTH - HEADER.size}")
    cuts = [-4]
    at = payload.find(MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0:
            cuts.append(at)
        at = payload.find(MAGIC_BYTES, at + 4 - at % 4)
    pieces = [payload[start + 4 : end] for start, end in zip(cuts, [*cuts[1:], len(payload)], strict=True)]
    flags = [WHOLE] if len(pieces) == 1 else [FIRST, *[MIDDLE] * (len(pieces) - 2), LAST]
    parts = (
        MAGIC_BYTES + struct.pack("<I", flag << LENGTH_BITS | len(piece)) + piece
        for flag, piece in zip(flags, pieces, strict=True)
    )
    return b"".join(parts) + bytes(-len(payload) % 4)


def rebuild_index(rec: str | os.PathLike) -> int:
    """Write the .idx beside `rec` by walking its records; return how many. Keys are the ids, or 0, 1, 2 ... where ids repeat.

    Raises: UserError naming the byte at which the file is not a record.
    """
    rec = Path(rec)
    size = _size(rec, "record file")
    with open(rec, "rb") as handle:
        found = list(track(_walk(handle, size), f"indexing {rec.name}", unit="record"))
    offsets, ids = [offset for offset, _ in found], [identity for _, identity in found]
    keys = ids if len(set(ids)) == len(ids) else range(len(ids))
    write_text(rec.with_suffix(".idx"), "".join(f"{key}\t{offset}\n" for key, offset in zip(keys, offsets, strict=True)))
    return len(offsets)


def _walk(handle: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Yield byte offset and id of every record of a file of `size` bytes. Raises: UserError."""
    count = 0
    while (offset := handle.tell()) < size:
        try:
            yield offset, HEADER.unpack_from(_read_payload(handle, offset))[2]
        except ValueError as error:
            where = f"{handle.name}: record {count} at byte {offset}"
            raise UserError(f"{where}: {error}; copy or pack the file again") from error
        count += 1


def _size(path: Path, what: str) -> int:
    if not path.is_file():
        raise UserError(f"no {what} {path}; give the path of an existing .rec or .idx file")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{what} {path} is empty; copy or pack it again")
    return size


def _read_payload(handle, offset: int) -> bytes:
    """Return the payload that starts at `offset` and leave `handle` behind it. Raises: ValueError with the reason."""
    payload, expected = b"", (WHOLE, FIRST)
    handle.seek(offset)
    while True:
        head = handle.read(8)
        if len(head) < 8:
            raise ValueError("the file ends inside this record")
        magic, word = struct.unpack("<II", head)
        flag, length = word >> LENGTH_BITS, word & MAX_LENGTH
        if magic != MAGIC:
            raise ValueError(f"starts with {magic:#010x}, not with the RecordIO magic {MAGIC:#010x}")
        if flag not in expected:
            raise ValueError(f"part flag {flag} where {expected[0]} or {expected[1]} belongs")
        body = handle.read(length + -length % 4)
        if len(body) < length + -length % 4:
            raise ValueError("the file ends inside this record")
        payload += body[:length]
        if flag in (WHOLE, LAST):
            break
        payload, expected = payload + MAGIC_BYTES, (MIDDLE, LAST)
    if len(payload) < HEADER.size:
        raise ValueError(f"has {len(payload)} bytes, fewer than the {HEADER.size} of an image header")
    return payload


@lru_cache(maxsize=8)
def _read_index(rec: Path, idx: Path, size: int, *_signature: int) -> Index:
    keys, offsets = _parse_idx(idx)
    order = np.argsort(offsets, kind="stable")
    starts = offsets[order]

    hint = f"rebuild the index with: oneshot-nas data check {rec} --rebuild-index"

    def fail(row: int, reason: str) -> UserError:
        at = order[row]
        return UserError(f"{rec}: record {at} (key {keys[at]} of {idx.name}, byte {offsets[at]}): {reason}")

    broken = np.flatnonzero((starts < 0) | (starts % 4 != 0) | (starts > size - 8 - HEADER.size))
    if len(broken):
        reason = f"there is no room for a record in a file of {size} bytes"
        raise fail(broken[0], f"{reason}; the .rec is cut off or the .idx is of another file")
    twice = np.flatnonzero(np.diff(starts) == 0)
    if len(twice):
        raise fail(twice[0] + 1, f"this byte offset is listed twice in the .idx; {hint}")
    ends, labels = _gather(rec, starts, fail)
    follows = np.append(starts[1:], size)
    wrong = np.flatnonzero(ends != follows)
    if len(wrong) and ends[wrong[0]] > size:
        raise fail(wrong[0], f"it ends at byte {ends[wrong[0]]} of a file of {size}: the .rec is cut off; copy or pack it again")
    if len(wrong) or starts[0] != 0:
        row = wrong[0] if len(wrong) else 0
        byte = ends[row] if len(wrong) else 0
        raise fail(row, f"the .idx does not list the record at byte {byte}: it is of another file or only a part; {hint}")
    index = Index(rec, idx, keys, offsets, labels[np.argsort(order, kind="stable")])
    for shared in (index.keys, index.offsets, index.labels):
        shared.setflags(write=False)
    return index


def _parse_idx(idx: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys and byte offsets of an .idx file, both int64. Raises: UserError naming the line."""
    lines = idx.read_bytes().splitlines()
    try:
        values = np.array([tuple(map(int, line.split())) for line in lines if line.strip()], np.int64)
        if values.ndim != 2 or values.shape[1] != 2:
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        pass
    else:
        return values[:, 0].copy(), values[:, 1].copy()
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if line.strip() and (len(fields) != 2 or not all(field.isdigit() and len(field) < 19 for field in fields)):
            raise UserError(f"{idx} line {number}: {line[:60]!r} is not 'key <tab> byte offset' with two whole numbers")
    raise UserError(f"{idx} lists no records; rebuild it with: oneshot-nas data check RECORDS.rec --rebuild-index")


def _gather(rec: Path, starts: np.ndarray, fail) -> tuple[np.ndarray, np.ndarray]:
    """Return (end bytes int64, labels float32) of the records at `starts`; `fail(row, reason)` makes the error."""
    ends, labels = np.empty(len(starts), np.int64), np.empty(len(starts), np.float32)
    with open(rec, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        mapped.madvise(mmap.MADV_RANDOM)
        for at in track(range(0, len(starts), BLOCK), f"headers of {rec.name}", unit="block"):
            rows = slice(at, at + BLOCK)
            words = _words(mapped, starts[rows, None] // 4 + np.arange(4))
            flag, length, counts = words[:, 1] >> LENGTH_BITS, words[:, 1] & MAX_LENGTH, words[:, 2]
            ends[rows] = starts[rows] + 8 + (length.astype(np.int64) + 3) // 4 * 4
            labels[rows] = np.ascontiguousarray(words[:, 3]).view(np.float32)
            odd = (words[:, 0] != MAGIC) | (flag != WHOLE) | (counts != 0) | (length < HEADER.size)
            for row in np.flatnonzero(odd) + at:  # split over parts, labels as an array, or broken
                try:
                    labels[row] = _read_label(_read_payload(handle, int(starts[row])))
                except ValueError as error:
                    raise fail(row, f"{error}; copy or pack the file again") from error
                ends[row] = handle.tell()
    return ends, labels


def _words(mapped: mmap.mmap, positions: np.ndarray) -> np.ndarray:
    """Return the little-endian 32-bit words of a mapped file at `positions`; no view of the map survives the call."""
    return np.frombuffer(mapped, "<u4", count=len(mapped) // 4)[positions]


def _read_label(payload: bytes) -> float:
    """Return the label of a payload. Raises: ValueError unless there is exactly one."""
    count, label, _, _ = HEADER.unpack_from(payload)
    if count > 1:
        raise ValueError(f"holds {count} labels, a classification record holds one")
    if count == 1:
        if len(payload) < HEADER.size + 4:
            raise ValueError("ends before its label")
        (label,) = struct.unpack_from("<f", payload, HEADER.size)
    return label
