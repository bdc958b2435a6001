"""The CIFAR-10 archive: read without running anything in it."""

import io
import os
import pickle
import struct
import tarfile
from typing import Any

import numpy as np
import pytest

from oneshot_nas.data.cifar import PIXELS, TRAIN, VAL, pack_cifar10
from oneshot_nas.data.images import decode
from oneshot_nas.errors import UserError

PurePickler: Any = pickle._Pickler
NAMES = [b"airplane", b"automobile", b"bird"]


class Python2Pickler(PurePickler):
    """Writes bytes as Python 2 wrote its strings, as in the official archive."""

    dispatch = PurePickler.dispatch.copy()

    def save_string(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_string


def python2(content):
    out = io.BytesIO()
    Python2Pickler(out, protocol=2).dump(content)
    return out.getvalue()


def python3(content):
    return pickle.dumps(content, protocol=2)


def batch(seed, count=6):
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (count, PIXELS), dtype=np.uint8)
    return {
        b"batch_label": b"some batch",
        b"labels": [row % 3 for row in range(count)],
        b"data": data,
        b"filenames": [b"a.png"] * count,
    }


def archive(path, dump=python2, **changes):
    members = {name: dump(batch(seed)) for seed, name in enumerate((*TRAIN, *VAL))}
    members["batches.meta"] = dump({b"label_names": NAMES, b"num_vis": PIXELS})
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {**members, **changes}.items():
            if content is not None:
                info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("dump", [python2, python3])
def test_pixels_and_labels_arrive_exactly(tmp_path, dump):
    dataset = pack_cifar10(archive(tmp_path / "c.tar.gz", dump), tmp_path / "out")
    assert dataset.classes == ("airplane", "automobile", "bird")
    assert dataset.counts == {"train": 30, "val": 6} and dataset.image_size == (32, 32)
    for part, names in (("train", TRAIN), ("val", VAL)):
        index = dataset.part(part)
        expected = np.concatenate([batch((*TRAIN, *VAL).index(name))[b"data"] for name in names]).reshape(-1, 3, 32, 32)
        found = np.stack([decode(index.read(position)).transpose(2, 0, 1) for position in range(len(index))])
        assert np.array_equal(found, expected)
        assert index.labels.tolist() == [row % 3 for _ in names for row in range(6)]


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("name", ["batches.meta", "data_batch_3", "test_batch"])
@pytest.mark.parametrize("function", [os.system, eval, getattr, np.load, pickle.loads], ids=lambda function: function.__name__)
def test_malicious_pickles_are_refused_and_not_run(tmp_path, name, function):
    mark = tmp_path / "was-here"
    attack = pickle.dumps({b"labels": Evil(function, f"touch {mark}"), b"label_names": NAMES}, protocol=2)
    with pytest.raises(UserError, match=rf"{name} asks for .*{function.__name__}.*refused"):
        pack_cifar10(archive(tmp_path / "c.tar.gz", **{name: attack}), tmp_path / "out")
    assert not mark.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "lacks data_batch_2"),
        (b"", "no CIFAR-10 batch: EOFError"),
        (b"\x80\x02garbage", "no CIFAR-10 batch"),
        (python2([1, 2]), "has no list 'labels'"),
        (python2({b"labels": [0]}), "has no array 'data'"),
        (python2({b"labels": [0, 1], b"data": b"x" * PIXELS}), "has no array 'data'"),
        (python2({b"labels": [0, 1], b"data": np.zeros((1, PIXELS), np.uint8)}), r"2 labels and data of shape \(1, 3072\)"),
        (python2({b"labels": [3], b"data": np.zeros((1, PIXELS), np.uint8)}), r"labels that are not 0 \.\.\. 2"),
        (python2({b"labels": [0], b"data": np.zeros((1, PIXELS), np.float32)}), "type .*f4.*, expected uint8"),
        (python2({b"labels": [0], b"data": np.zeros((1, 1), object)}), "type .*O8.*, expected uint8"),
    ],
)
def test_damaged_members_are_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        pack_cifar10(archive(tmp_path / "c.tar.gz", data_batch_2=content), tmp_path / "out")


def test_what_is_no_archive_is_refused(tmp_path):
    with pytest.raises(UserError, match="no archive"):
        pack_cifar10(tmp_path / "missing.tar.gz", tmp_path / "out")
    path = archive(tmp_path / "c.tar.gz")
    for content in (b"", b"text", path.read_bytes()[:200], path.read_bytes()[: path.stat().st_size // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"no readable \.tar\.gz|lacks"):
            pack_cifar10(path, tmp_path / "out")


def test_links_in_the_archive_lead_nowhere(tmp_path):
    (tmp_path / "secret").write_bytes(python2(batch(0)))
    path = tmp_path / "c.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in (*TRAIN, *VAL, "batches.meta"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
            tar.addfile(info)
    with pytest.raises(UserError, match="lacks batches.meta, data_batch_1"):
        pack_cifar10(path, tmp_path / "out")


@pytest.mark.parametrize("names", [["cat", "dog", "cow"], [1, 2, 3], [b"\xff", b"a", b"b"]])
def test_names_that_are_no_text_are_refused(tmp_path, names):
    with pytest.raises(UserError, match="batches.meta has label_names that are not UTF-8 bytes"):
        pack_cifar10(archive(tmp_path / "c.tar.gz", **{"batches.meta": python3({b"label_names": names})}), tmp_path / "out")


def test_another_archive_needs_overwrite(tmp_path):
    pack_cifar10(archive(tmp_path / "a.tar.gz"), tmp_path / "out")
    pack_cifar10(archive(tmp_path / "a.tar.gz"), tmp_path / "out")
    other = archive(tmp_path / "b.tar.gz", data_batch_2=python2(batch(99)))
    with pytest.raises(UserError, match="already there"):
        pack_cifar10(other, tmp_path / "out")
    pack_cifar10(other, tmp_path / "out", overwrite=True)
