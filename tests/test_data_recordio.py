"""RecordIO files: equal to MXNet's own reader and writer, and every damaged file is one clear error."""

import os
import struct

import mxnet as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneshot_nas.data.recordio import (
    MAGIC_BYTES,
    pack_record,
    read_index,
    rebuild_index,
    scan_labels,
    write_records,
)  # fmt: skip
from oneshot_nas.errors import UserError, WorkError

ALIGNED = b"ab" * 2 + MAGIC_BYTES + b"tail"  # the header has 24 bytes, so byte 4 of an image is aligned
IMAGES = [b"first", ALIGNED, b"x" + MAGIC_BYTES + b"y", b"", MAGIC_BYTES * 3, bytes(range(256)) * 9]


@pytest.fixture
def rec(tmp_path):
    path = tmp_path / "train.rec"
    write_records(path, [(label, image) for label, image in enumerate(IMAGES)])
    return path


def test_mxnet_reads_what_we_write(rec):
    reader = mx.recordio.MXIndexedRecordIO(str(rec.with_suffix(".idx")), str(rec), "r")
    for position, image in enumerate(IMAGES):
        header, found = mx.recordio.unpack(reader.read_idx(position))
        assert (header.label, header.id, found) == (position, position, image)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.lists(st.sampled_from([MAGIC_BYTES, b"a", b"\x0a", b"bcde", MAGIC_BYTES[:3]]), max_size=8).map(b"".join),
        min_size=1,
        max_size=5,
    )
)
def test_both_writers_give_the_same_bytes_and_both_are_read(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("rec")
    writer = mx.recordio.MXIndexedRecordIO(str(folder / "theirs.idx"), str(folder / "theirs.rec"), "w")
    for key, image in enumerate(images):
        writer.write_idx(key, mx.recordio.pack(mx.recordio.IRHeader(0, float(key), key, 0), image))
    writer.close()
    write_records(folder / "ours.rec", enumerate(images))
    assert (folder / "ours.rec").read_bytes() == (folder / "theirs.rec").read_bytes()
    assert (folder / "ours.idx").read_bytes() == (folder / "theirs.idx").read_bytes()
    index = read_index(folder / "theirs.rec")
    assert [index.read(position) for position in range(len(index))] == images


def test_an_index_is_shared_and_so_cannot_be_changed(rec):
    assert read_index(rec) is read_index(rec)
    with pytest.raises(ValueError, match="read-only"):
        read_index(rec).labels[0] = 3


def test_index_follows_the_order_of_the_idx_file(rec):
    idx = rec.with_suffix(".idx")
    idx.write_text("".join(reversed(idx.read_text().splitlines(keepends=True))))
    index = read_index(rec)
    assert index.labels.tolist() == [5, 4, 3, 2, 1, 0]
    assert index.keys.tolist() == [5, 4, 3, 2, 1, 0]
    assert index.read(0) == IMAGES[5]


def test_labels_stored_as_an_array_are_read_and_several_are_refused(tmp_path):
    path = tmp_path / "a.rec"
    for labels in ([7.0], [1.0, 2.0]):
        writer = mx.recordio.MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "w")
        writer.write_idx(3, mx.recordio.pack(mx.recordio.IRHeader(0, labels, 9, 0), b"image"))
        writer.close()
        if len(labels) == 1:
            assert scan_labels(path).tolist() == [7.0]
            assert read_index(path).read(0) == b"image"
        else:
            with pytest.raises(UserError, match="holds 2 labels"):
                read_index(path)


def test_rebuilt_index_equals_the_written_one(rec):
    before = rec.with_suffix(".idx").read_bytes()
    rec.with_suffix(".idx").unlink()
    with pytest.raises(UserError, match=r"no index file .*train\.idx.*--rebuild-index"):
        read_index(rec)
    assert rebuild_index(rec) == len(IMAGES)
    assert rec.with_suffix(".idx").read_bytes() == before


def test_rebuilt_index_counts_where_ids_repeat_and_names_the_byte_of_a_break(tmp_path):
    path = tmp_path / "same.rec"
    path.write_bytes(pack_record(1, 4, b"abc") + pack_record(2, 4, b"defg"))
    rebuild_index(path)
    assert read_index(path).keys.tolist() == [0, 1]
    path.write_bytes(pack_record(1, 4, b"abc") + b"garbage, not a record")
    with pytest.raises(UserError, match=r"same\.rec: record 1 at byte 36: starts with 0x62726167"):
        rebuild_index(path)


def cut(rec, bytes_left):
    os.truncate(rec, bytes_left)


def poke(path, at, data):
    with open(path, "r+b") as handle:
        handle.seek(at)
        handle.write(data)


def add_line(rec, line):
    with open(rec.with_suffix(".idx"), "a") as out:
        out.write(line)


def drop_line(rec, number):
    lines = rec.with_suffix(".idx").read_text().splitlines(keepends=True)
    rec.with_suffix(".idx").write_text("".join(lines[:number] + lines[number + 1 :]))


OFFSET_1 = len(pack_record(0, 0, IMAGES[0]))
OFFSET_5 = sum(len(pack_record(0, 0, image)) for image in IMAGES[:5])
DAMAGE = {
    "missing rec": (lambda rec: rec.unlink(), r"no record file .*train\.rec"),
    "missing idx": (lambda rec: rec.with_suffix(".idx").unlink(), r"no index file .*train\.idx"),
    "empty rec": (lambda rec: cut(rec, 0), r"train\.rec is empty"),
    "empty idx": (lambda rec: cut(rec.with_suffix(".idx"), 0), r"train\.idx is empty"),
    "idx of blanks": (lambda rec: rec.with_suffix(".idx").write_text("\n \n"), r"train\.idx lists no records"),
    "last record cut": (
        lambda rec: cut(rec, rec.stat().st_size - 8),
        r"train\.rec: record 5 \(key 5 .*it ends at byte .* cut off",
    ),
    "odd length": (lambda rec: cut(rec, rec.stat().st_size - 3), r"train\.rec: record 5 .* cut off"),
    "half of it cut": (
        lambda rec: cut(rec, OFFSET_5 + 4),
        rf"record 5 \(key 5 of train\.idx, byte {OFFSET_5}\): there is no room",
    ),
    "one byte": (lambda rec: cut(rec, 1), r"record 0 .*there is no room"),
    "extra byte": (lambda rec: poke(rec, rec.stat().st_size, b"\0"), r"does not list the record at byte"),
    "idx beyond the end": (lambda rec: add_line(rec, "77\t99999996\n"), r"record 6 \(key 77 .*byte 99999996\): there is no room"),
    "negative offset": (lambda rec: add_line(rec, "77\t-4\n"), r"record 6 \(key 77 .*no room"),
    "offset twice": (lambda rec: add_line(rec, "77\t0\n"), r"record 6 \(key 77 .*listed twice"),
    "record not listed": (lambda rec: drop_line(rec, 2), r"record 1 .*does not list the record at byte"),
    "first not listed": (lambda rec: drop_line(rec, 0), r"does not list the record at byte 0"),
    "words in idx": (lambda rec: add_line(rec, "six\t12\n"), r"train\.idx line 7: b'six\\t12' is not 'key <tab> byte offset'"),
    "one column": (lambda rec: add_line(rec, "6\n"), r"train\.idx line 7"),
    "huge number": (lambda rec: add_line(rec, f"6\t{10**30}\n"), r"train\.idx line 7"),
    "binary idx": (lambda rec: rec.with_suffix(".idx").write_bytes(os.urandom(4096)), r"train\.idx line \d+"),
    "broken magic": (
        lambda rec: poke(rec, OFFSET_5, b"xxxx"),
        rf"record 5 \(key 5 of train\.idx, byte {OFFSET_5}\): starts with 0x78787878",
    ),
    "broken magic of a part": (lambda rec: poke(rec, OFFSET_1, b"xxxx"), r"record 1 .*starts with 0x78787878"),
    "length of 0": (lambda rec: poke(rec, 4, struct.pack("<I", 0)), r"record 0 .*has 0 bytes, fewer than the 24"),
    "length too long": (
        lambda rec: poke(rec, OFFSET_5 + 4, struct.pack("<I", 2**29 - 1)),
        r"record 5 .*it ends at byte .*cut off",
    ),
    "part without a start": (lambda rec: poke(rec, 4, struct.pack("<I", 3 << 29 | 29)), r"record 0 .*part flag 3"),
    "part without an end": (lambda rec: poke(rec, 4, struct.pack("<I", 1 << 29 | 32)), r"record 0 .*part flag"),
    "not RecordIO at all": (lambda rec: rec.write_bytes(b"PK" * 5000), r"record 0 .*starts with 0x4b504b50"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_clear_error(rec, name):
    damage, message = DAMAGE[name]
    read_index(rec)  # a good answer must not be remembered for the damaged file
    damage(rec)
    with pytest.raises(UserError, match=message) as caught:
        read_index(rec)
    assert "\n" not in str(caught.value)


def test_damage_after_the_index_was_read_is_an_error_too(rec):
    index = read_index(rec)
    cut(rec, OFFSET_5 + 12)
    with pytest.raises(UserError, match=r"record 5 \(key 5, byte \d+\) of .*train\.rec cannot be read: the file ends inside"):
        index.read(5)
    rec.unlink()
    with pytest.raises(UserError, match=r"record 0 .*No such file"):
        index.read(0)


def test_idx_of_another_file_is_refused(rec, tmp_path):
    write_records(tmp_path / "other.rec", [(0, b"longer than the first image"), (1, b"b")])
    with pytest.raises(UserError, match=r"train\.rec: record"):
        read_index(rec, tmp_path / "other.idx")


def test_interrupted_writing_keeps_the_old_files(rec):
    before = rec.read_bytes(), rec.with_suffix(".idx").read_bytes()

    def breaks():
        yield 0, b"new"
        raise OSError(28, "No space left on device")

    with pytest.raises(WorkError, match="No space left"):
        write_records(rec, breaks())
    assert (rec.read_bytes(), rec.with_suffix(".idx").read_bytes()) == before
    assert sorted(path.name for path in rec.parent.iterdir()) == ["train.idx", "train.rec"]


def test_a_hundred_thousand_headers_are_quick(tmp_path):
    labels = np.arange(100_000) % 1000
    write_records(tmp_path / "big.rec", ((int(label), b"image") for label in labels))
    assert np.array_equal(scan_labels(tmp_path / "big.rec"), labels)
