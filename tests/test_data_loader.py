"""Batches: which images arrive, how often, in which order; and that evaluation decodes to the same numbers on every path."""

import io
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import cv2
import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from oneshot_nas import progress
from oneshot_nas.data.augment import Augment, augment_image, draw, make_augment
from oneshot_nas.data.datasets import dataset_from_files
from oneshot_nas.data.folder import load_folder
from oneshot_nas.data.images import INTERPOLATIONS, Preprocessing, decode, encode, fit, normaliser
from oneshot_nas.data.loader import DataWait, batches_per_epoch, decode_images, train_loader, val_loader
from oneshot_nas.data.recordio import pack_record, write_records
from oneshot_nas.errors import UserError

COUNT = 83
SIZE = 16
PLAIN = Preprocessing(SIZE, 1.0, (0, 0, 0), (1, 1, 1))
NONE = make_augment("none")


def numbered(number):
    """An image whose every red pixel is `number`, kept exactly by PNG; green and blue hold row and column."""
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[..., 0] = number
    image[..., 1], image[..., 2] = np.mgrid[:SIZE, :SIZE] + 1
    return image


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    rec = tmp_path_factory.mktemp("numbers") / "train.rec"
    write_records(rec, [(number % 5, encode(numbered(number), ".png")) for number in range(COUNT)])
    return dataset_from_files(train_rec=rec, val_rec=rec)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photo-like JPEGs of many shapes, as records and as folders in the same order."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    records = []
    for number in range(24):
        height, width = rng.integers(30, 90, 2)
        image = cv2.resize(
            rng.integers(0, 256, (7, 9, 3), dtype=np.uint8), (int(width), int(height)), interpolation=cv2.INTER_CUBIC
        )
        records.append((number // 12, encode(image, ".jpg")))
        for part in ("train", "val"):
            path = root / part / "ab"[number // 12] / f"{number:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(records[-1][1])
    write_records(root / "val.rec", records)
    return dataset_from_files(val_rec=root / "val.rec"), load_folder(root)


def epoch(dataset, batch_size=8, augment=NONE, seed=1, number=0, **options):
    return train_loader(dataset, batch_size=batch_size, preprocessing=PLAIN, augment=augment, seed=seed, epoch=number, **options)


def arrived(loader, batch_size):
    """Return the ids in order; every batch must be full, of float32, and carry the labels of its images."""
    ids = []
    for data, label in loader:
        assert data.shape == (batch_size, 3, SIZE, SIZE) and data.dtype == label.dtype == np.float32
        pixels = data.asnumpy()
        assert np.array_equal(pixels, np.stack([numbered(int(image[0, 0, 0])).transpose(2, 0, 1) for image in pixels]))
        ids += pixels[:, 0, 0, 0].astype(int).tolist()
        assert np.array_equal(label.asnumpy(), np.array(ids[-batch_size:]) % 5)
    return ids


@pytest.mark.parametrize("batch_size", [1, 8, 40, 83])
@pytest.mark.parametrize("excluded", [(), (0,), (3, 4, 5, 82), tuple(range(0, 83, 2)), tuple(range(43))])
def test_each_kept_image_arrives_at_most_once_and_an_excluded_one_never(numbers, batch_size, excluded):
    kept = set(range(COUNT)) - set(excluded)
    if len(kept) < batch_size:
        with pytest.raises(UserError, match=f"{len(kept)} training images do not fill one batch of {batch_size}"):
            epoch(numbers, batch_size, exclude=excluded)
        return
    loader = epoch(numbers, batch_size, exclude=excluded)
    ids = arrived(loader, batch_size)
    assert len(ids) == len(set(ids)) == loader.images == len(loader) * batch_size
    assert len(loader) == batches_per_epoch(len(kept), batch_size) == len(kept) // batch_size
    assert set(ids) <= kept and len(kept) - len(ids) < batch_size


def test_over_the_epochs_all_kept_images_arrive_about_equally_often(numbers):
    counts = Counter(number for k in range(40) for number in arrived(epoch(numbers, 32, number=k, exclude=range(10)), 32))
    assert set(counts) == set(range(10, COUNT)) and min(counts.values()) > 25


def test_an_epoch_is_a_function_of_seed_and_number(numbers):
    def everything(**options):
        loader = epoch(numbers, augment=make_augment("small"), exclude=[7, 9], **options)
        return [np.concatenate([data.asnumpy().ravel(), label.asnumpy()]).tobytes() for data, label in loader]

    first = everything(number=3)
    assert everything(number=3) == first == everything(number=3, threads=1)
    assert everything(number=4) != first and everything(number=3, seed=2) != first


def test_a_loader_can_be_iterated_again_and_left_in_the_middle(numbers):
    loader = epoch(numbers, exclude=[1])
    next(iter(loader))
    assert arrived(loader, 8) == arrived(loader, 8)


@pytest.mark.parametrize("excluded", [(), (1, 2, 3)])
def test_batches_belong_to_the_receiver(numbers, excluded):
    """Kept batches must not change, nor may writing into one spoil the next."""
    loader = epoch(numbers, batch_size=4, exclude=excluded)
    kept = list(loader)
    assert [data[:, 0, 0, 0].asnumpy().tolist() for data, _ in kept] == np.array(arrived(loader, 4)).reshape(-1, 4).tolist()
    ids = []
    for data, _ in loader:
        ids += data[:, 0, 0, 0].asnumpy().tolist()
        data[:] = -7
    assert ids == arrived(loader, 4)


def test_augmentations_do_what_they_say(numbers):
    def images(kind, **changes):
        augment = make_augment(kind, changes)
        return np.concatenate(
            [data.asnumpy() for number in range(4) for data, _ in epoch(numbers, augment=augment, number=number)]
        )

    digits = images("digits")
    rows, columns = digits[:, 1, :, 8].max(1), digits[:, 2, 8, :].max(1)
    assert set(rows) == set(columns) == {14, 15, 16} and digits[:, 1].min() == 0
    assert all(np.all(np.diff(image[2, 8, 2:-2]) == 1) for image in digits), "digits must not be mirrored"
    small = images("small")
    rising = np.diff(small[:, 2, 8, 4:-4]).mean(1)
    assert set(rising) == {-1, 1} and 0.3 < (rising > 0).mean() < 0.7
    assert images("small", fill=200)[:, 1].max() == 200
    big = images("imagenet", brightness=0, contrast=0, saturation=0, pca_noise=0)
    assert np.all(big[:, 0] == big[:, 0, :1, :1]) and np.std(np.ptp(big[:, 1], axis=(1, 2))) > 1
    assert np.mean(images("imagenet")[:, 0] != big[:, 0]) > 0.5


def test_small_or_wrong_requests_are_refused(numbers):
    cases: list[tuple[dict, str]] = [
        ({"batch_size": 84}, "83 training images do not fill one batch of 84"),
        ({"batch_size": 0}, "1 or more"),
        ({"exclude": [83]}, "position 83 to leave out is outside"),
        ({"exclude": [-1]}, "position -1"),
        ({"dtype": "int8"}, "'int8'"),
        ({"threads": 0}, "at least 1"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            epoch(numbers, **options)
    with pytest.raises(UserError, match="1 or more"):
        val_loader(numbers, batch_size=0, preprocessing=PLAIN)
    with pytest.raises(UserError, match="position 83 is outside"):
        decode_images(numbers, [83], PLAIN)


def test_decoding_many_images_shows_how_far_it_is(numbers, monkeypatch, capsys):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    images, labels = decode_images(numbers, range(40), PLAIN)
    assert len(images) == len(labels) == 40
    assert capsys.readouterr().err.splitlines() == [f"decoding images: batch {number} of 3" for number in (1, 2, 3)]


def test_half_precision(numbers):
    data, label = next(iter(epoch(numbers, dtype="float16")))
    assert data.dtype == np.float16 and label.dtype == np.float32


def test_ids_and_keys_need_not_be_positions(tmp_path):
    """Records in another order than their .idx, all with the same id: positions are rows of the .idx all the same."""
    records = [pack_record(number % 5, 9, encode(numbered(number), ".png")) for number in range(12)]
    (tmp_path / "t.rec").write_bytes(b"".join(records))
    offsets = np.cumsum([0, *map(len, records[:-1])])
    (tmp_path / "t.idx").write_text("".join(f"{number + 50}\t{offsets[number]}\n" for number in reversed(range(12))))
    dataset = dataset_from_files(train_rec=tmp_path / "t.rec")
    assert set(arrived(epoch(dataset, 1, exclude=[0, 1]), 1)) == set(range(10))
    images, labels = decode_images(dataset, [0, 11], PLAIN)
    assert images[:, 0, 0, 0].tolist() == [11, 0] and labels.tolist() == [1, 0]


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "text", "cut png"])
def test_a_corrupt_image_is_named_on_every_path(tmp_path, damage):
    """ImageRecordIter dies of SIGFPE, or delivers a blank or half grey image, for one or another of these."""
    image = encode(cv2.resize(numbered(3), (64, 64)), ".jpg")
    png = encode(numbered(3), ".png")
    bad = {
        "cut": image[: len(image) // 3],
        "garbage": b"\xff\xd8 no image",
        "empty": b"",
        "text": b"hello",
        "cut png": png[: len(png) // 2],
    }[damage]
    write_records(tmp_path / "t.rec", [(0, bad if number == 6 else image) for number in range(12)])
    dataset = dataset_from_files(train_rec=tmp_path / "t.rec", val_rec=tmp_path / "t.rec")
    message = r"record 6 \(key 6, byte \d+\) of .*t\.rec cannot be decoded"
    with pytest.raises(UserError, match=message):
        decode_images(dataset, range(12), PLAIN)
    small = make_augment("small")
    for loader in (
        epoch(dataset, 4),
        epoch(dataset, 4, small, exclude=[1, 2]),
        val_loader(dataset, batch_size=4, preprocessing=PLAIN),
    ):
        with pytest.raises(UserError, match=message):
            list(loader)
    assert len(list(epoch(dataset, 11, exclude=[6]))) == 1


@pytest.mark.parametrize("batch_size", [8, 83, 100])
def test_evaluation_gives_every_image_once_in_order(numbers, batch_size):
    loader = val_loader(numbers, batch_size=batch_size, preprocessing=PLAIN)
    batches = [(data.asnumpy(), label.asnumpy()) for data, label in loader]
    assert [len(data) for data, _ in batches] == [len(label) for _, label in batches]
    assert np.concatenate([data[:, 0, 0, 0] for data, _ in batches]).tolist() == list(range(COUNT))
    assert np.concatenate([label for _, label in batches]).tolist() == [number % 5 for number in range(COUNT)]
    assert len(loader) == len(batches) and loader.images == COUNT


def by_mxnet(rec, preprocessing, count):
    """Return what MXNet's own reader makes of the records."""
    size = preprocessing.input_size
    numbers = {
        f"{name}_{channel}": value
        for name in ("mean", "std")
        for channel, value in zip("rgb", getattr(preprocessing, name), strict=True)
    }
    (batch,) = mx.io.ImageRecordIter(
        path_imgrec=str(rec), path_imgidx=str(rec.with_suffix(".idx")), data_shape=(3, size, size), batch_size=count,
        verbose=False, resize=preprocessing.resize, inter_method=INTERPOLATIONS[preprocessing.interpolation], **numbers,
    )  # fmt: skip
    return batch.data[0].asnumpy()


@pytest.mark.parametrize("size", [24, 32, 48])
@pytest.mark.parametrize("interpolation", ["linear", "area", "cubic"])
def test_memory_records_folders_and_mxnet_agree(photos, size, interpolation):
    dataset, folder = photos
    preprocessing = replace(dataset.preprocessing(size), interpolation=interpolation)
    found = []
    for source in (dataset, folder):
        batches = [
            (data.asnumpy(), label.asnumpy()) for data, label in val_loader(source, batch_size=7, preprocessing=preprocessing)
        ]
        assert [len(data) for data, _ in batches] == [len(label) for _, label in batches] == [7, 7, 7, 3]
        assert np.concatenate([label for _, label in batches]).tolist() == [0] * 12 + [1] * 12
        found.append(np.concatenate([data for data, _ in batches]))
        order = np.random.default_rng(1).permutation(24)
        images, labels = decode_images(source, order, preprocessing, part="val")
        assert np.array_equal(images, found[0][order]) and labels.tolist() == (order // 12).tolist()
    assert np.array_equal(*found)
    one_grey_level = 1.01 / min(preprocessing.std)
    difference = np.abs(by_mxnet(dataset.val_rec, preprocessing, 24) - found[0]).max()
    assert difference <= (one_grey_level if interpolation == "cubic" else 0)


def test_decoding_is_that_of_mxnet_for_every_kind_of_file():
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8), (64, 48))
    picture = Image.fromarray(image)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # orientation: turn by 90 degrees, which MXNet does not
    files = {}
    cases: list[tuple[str, str, str, dict]] = [
        ("rotated", "RGB", "JPEG", {"exif": rotated}),
        ("progressive", "RGB", "JPEG", {"progressive": True}),
        ("grey", "L", "JPEG", {}),
        ("cmyk", "CMYK", "JPEG", {}),
        ("alpha", "RGBA", "PNG", {}),
        ("palette", "P", "PNG", {}),
        ("rotated png", "RGB", "PNG", {"exif": rotated}),
    ]
    for name, mode, kind, options in cases:
        out = io.BytesIO()
        picture.convert(mode).save(out, kind, **options)
        files[name] = out.getvalue()
    for name, encoded in files.items():
        assert np.array_equal(decode(encoded), mx.image.imdecode(encoded).asnumpy()), name


def test_folders_keep_the_same_promises(photos):
    _, folder = photos
    options: dict = {"batch_size": 5, "preprocessing": folder.preprocessing(24), "augment": make_augment("imagenet"), "seed": 1}

    def epochs(number, exclude=(2, 20), threads=2):
        loader = train_loader(folder, epoch=number, exclude=exclude, threads=threads, **options)
        assert len(loader) == 4 and loader.images == 20
        return [data.asnumpy().tobytes() + label.asnumpy().tobytes() for data, label in loader]

    assert epochs(0) == epochs(0) == epochs(0, threads=1) != epochs(1)
    plain = train_loader(folder, epoch=0, exclude=(2, 20), **{**options, "augment": NONE, "batch_size": 22})
    data, label = next(iter(plain))
    kept = [number for number in range(24) if number not in (2, 20)]
    images, labels = decode_images(folder, kept, options["preprocessing"])
    assert sorted(image.tobytes() for image in data.asnumpy()) == sorted(image.tobytes() for image in images)
    assert sorted(label.asnumpy()) == sorted(labels)
    varied, _ = next(iter(train_loader(folder, epoch=0, exclude=(2, 20), **{**options, "batch_size": 22})))
    same, again = decode_images(folder, kept, options["preprocessing"], augment=options["augment"], seed=1)
    assert sorted(image.tobytes() for image in varied.asnumpy()) == sorted(image.tobytes() for image in same)
    assert (again == labels).all() and not (same == images).all(axis=(1, 2, 3)).any()
    assert folder.classes == ("a", "b") and folder.counts == {"train": 24, "val": 24}


def test_a_folder_names_its_bad_image(tmp_path):
    for part in ("train", "val"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "good.jpg").write_bytes(encode(numbered(3), ".jpg"))
        (tmp_path / part / "a" / "good.jpg").rename(tmp_path / part / "a" / "broken.jpg").write_bytes(b"\xff\xd8")
    folder = load_folder(tmp_path)
    with pytest.raises(UserError, match=r"image .*broken\.jpg cannot be decoded"):
        list(val_loader(folder, batch_size=1, preprocessing=PLAIN))
    (tmp_path / "train" / "a" / "broken.jpg").unlink()
    with pytest.raises(UserError, match=r"cannot read image .*broken\.jpg: No such file"):
        list(epoch(folder, 1))
    with pytest.raises(UserError, match="class folder .* holds no images"):
        load_folder(tmp_path)
    (tmp_path / "train" / "a" / "good.jpg").write_bytes(encode(numbered(3), ".jpg"))
    with pytest.raises(UserError, match="7 classes were asked for.*has 2"):
        load_folder(tmp_path, class_count=7)
    for part in ("train", "val"):
        shutil.rmtree(tmp_path / part / "b")
    with pytest.raises(UserError, match="train has a single class folder, 'a'; at least 2 are needed"):
        load_folder(tmp_path)


def test_draws_belong_to_seed_epoch_and_position_alone():
    draws = draw(1, 2, np.array([5, 900_000]))
    assert np.array_equal(draws[1:], draw(1, 2, np.array([900_000]))) and draws.min() >= 0 and draws.max() < 1
    many = np.concatenate([draw(seed, number, np.arange(200)) for seed in range(3) for number in range(4)])
    assert len(np.unique(many)) == many.size and np.all(np.abs(many.mean(0) - 0.5) < 0.05)


def recoloured(image, augment, draws):
    """Return what the four colour changes do one after another, in floating point."""
    grey = np.array([0.299, 0.587, 0.114])
    bright, contrast, saturation = (
        1 + (2 * value - 1) * limit
        for value, limit in zip(draws[1:4], (augment.brightness, augment.contrast, augment.saturation), strict=True)
    )
    x = image * bright
    x = contrast * x + (1 - contrast) * (x @ grey).mean()
    return saturation * x + (1 - saturation) * (x @ grey)[..., None]


def test_colours_change_as_one_after_another():
    image = cv2.resize(np.random.default_rng(0).integers(60, 180, (5, 5, 3), dtype=np.uint8), (SIZE, SIZE))
    augment = Augment(brightness=0.3, contrast=0.3, saturation=0.4)
    for draws in draw(0, 0, np.arange(20)).tolist():
        expected = np.clip(recoloured(image, augment, draws), 0, 255)
        assert np.abs(augment_image(image, augment, PLAIN, draws) - expected).max() < 1.6
    noisy = np.stack(
        [
            augment_image(image, Augment(pca_noise=0.1), PLAIN, draws).astype(int) - image
            for draws in draw(0, 0, np.arange(2000)).tolist()
        ]
    )
    shift = noisy.mean(
        (1, 2)
    )  # by far the largest component: 55.46 x 0.1 along (0.5675, 0.5808, 0.5836), in all channels together
    assert np.allclose(np.linalg.eigvalsh(np.cov(shift.T))[-1] ** 0.5, 5.546, rtol=0.1) and np.abs(shift.mean(0)).max() < 0.5


def test_augmentation_stays_in_shape_and_depends_on_its_draws_alone():
    image = numbered(120)
    for kind in ("imagenet", "small", "digits", "none"):
        results = [augment_image(image, make_augment(kind), PLAIN, draws) for draws in draw(0, 0, np.array([1, 1, 2])).tolist()]
        assert all(result.shape == (SIZE, SIZE, 3) and result.dtype == np.uint8 for result in results)
        assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2]) == (kind == "none")
    wide = cv2.resize(image, (400, 3))
    assert augment_image(wide, make_augment("imagenet"), PLAIN, draw(0, 0, np.array([1]))[0].tolist()).shape == (SIZE, SIZE, 3)
    out = np.empty((3, SIZE, SIZE), np.float32)
    normaliser(PLAIN)(fit(image, PLAIN), out)
    assert np.array_equal(out, image.transpose(2, 0, 1))


def test_channels_arrive_in_the_order_of_the_network(numbers):
    """Red holds the number of the image, green the row, blue the column."""
    image = numbered(7).transpose(2, 0, 1)
    rgb = Preprocessing(SIZE, 1.0, (1, 2, 3), (1, 2, 4))
    for preprocessing, wanted in (
        (rgb, [image[0] - 1.0, (image[1] - 2.0) / 2, (image[2] - 3.0) / 4]),
        (rgb.reordered("BGR"), [(image[2] - 3.0) / 4, (image[1] - 2.0) / 2, image[0] - 1.0]),
    ):
        (found,), _ = decode_images(numbers, [7], preprocessing)
        assert np.array_equal(found, np.array(wanted, np.float32))
        loader = train_loader(numbers, batch_size=COUNT, preprocessing=preprocessing, augment=NONE, seed=0, epoch=0)
        batch = next(iter(loader))[0].asnumpy()
        assert any(np.array_equal(row, found) for row in batch)


def test_waiting_is_measured():
    def slow(seconds):
        for _ in range(5):
            time.sleep(seconds)
            yield None

    waits = []
    for producer, consumer in ((0.02, 0.0), (0.0, 0.02)):
        wait = DataWait(slow(producer))
        for _ in wait:
            time.sleep(consumer)
        waits.append(wait.share)
    assert waits[0] > 0.9 and waits[1] < 0.1


class Slow:
    """A data set whose images take their time to be read."""

    def __init__(self, images, seconds):
        self.images, self.labels, self.name, self.seconds = images, images.labels, images.name, seconds

    def __len__(self):
        return len(self.images)

    def part(self, _name):
        return self

    def read(self, position):
        time.sleep(self.seconds)
        return self.images.read(position)


@pytest.mark.parametrize("excluded", [(), range(0, COUNT, 10)])
def test_input_is_prepared_while_the_receiver_computes(numbers, excluded):
    """Reading takes 32 ms a batch and computing 40: one after the other, waiting would be 44 % of the time."""
    wait = DataWait(epoch(Slow(numbers.part("train"), 0.004), batch_size=8, exclude=excluded))
    for data, _ in wait:
        data.wait_to_read()
        time.sleep(0.04)
    assert wait.share < 0.25


def test_packing_and_checking_do_not_import_mxnet():
    code = (
        "import sys, oneshot_nas.data.packers, oneshot_nas.data.cifar, oneshot_nas.data.holdout; sys.exit('mxnet' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_two_contexts_share_a_batch(numbers):
    data, _ = next(iter(epoch(numbers)))
    halves = mx.gluon.utils.split_and_load(data, [mx.cpu(0), mx.cpu(1)])
    assert np.array_equal(np.concatenate([half.asnumpy() for half in halves]), data.asnumpy())
