"""Data sets: packing, reading back, checking, and every kind of bad input."""

import json
import math
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from oneshot_nas import shell
from oneshot_nas.cli.data import app
from oneshot_nas.config import read_recipe
from oneshot_nas.data import packers
from oneshot_nas.data.augment import make_augment
from oneshot_nas.data.datasets import check, dataset_from_files, load_dataset
from oneshot_nas.data.folder import SUFFIXES
from oneshot_nas.data.images import IMAGENET_MEAN, Preprocessing, decode, encode
from oneshot_nas.data.packers import pack_digits, pack_folder
from oneshot_nas.data.recordio import pack_record, read_index, write_records
from oneshot_nas.errors import UserError, WorkError
from oneshot_nas.files import held

PNG = encode(np.full((8, 8, 3), 100, np.uint8), ".png")


def photo(seed, height=40, width=56):
    """A smooth image, as JPEG keeps photographs and not noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    return folder, pack_digits(folder)


@pytest.fixture
def photos(tmp_path):
    """Two classes of ten JPEG photos, one of them a PNG and one a BMP."""
    root = tmp_path / "photos"
    for name in ("cat", "ant"):
        (root / name).mkdir(parents=True)
        for number in range(10):
            (root / name / f"{number}.jpg").write_bytes(encode(photo(number), ".jpg"))
    (root / "ant" / "10.png").write_bytes(encode(photo(10), ".png"))
    cv2.imwrite(str(root / "ant" / "11.bmp"), photo(11)[:, :, ::-1])
    (root / "ant" / ".hidden.jpg").write_bytes(b"not an image")
    return root


def test_digits_are_all_there_and_lossless(digits):
    from sklearn.datasets import load_digits

    folder, dataset = digits
    assert dataset.counts == {"train": 1438, "val": 359}
    assert dataset.classes == tuple("0123456789") and dataset.image_size == (32, 32)
    assert max(dataset.val_counts) - min(dataset.val_counts) <= 2
    assert check(folder / "train.rec").bad == check(folder / "val.rec").bad == ()
    stored = {
        (int(index.labels[position]), decode(index.read(position)).tobytes())
        for index in (dataset.part("train"), dataset.part("val"))
        for position in range(len(index))
    }
    source = load_digits()
    expected = set()
    for image, label in zip(source.images, source.target, strict=True):
        grey = cv2.resize(np.rint(image * 255 / 16).astype(np.uint8), (32, 32), interpolation=cv2.INTER_CUBIC)
        expected.add((int(label), np.repeat(grey[..., None], 3, axis=2).tobytes()))
    assert stored == expected


def test_statistics_are_those_of_the_training_pixels(digits):
    _, dataset = digits
    index = dataset.part("train")
    pixels = np.stack([decode(index.read(position)) for position in range(len(index))]).reshape(-1, 3).astype(float)
    assert np.allclose(dataset.mean, pixels.mean(0), atol=1e-3) and np.allclose(dataset.std, pixels.std(0), atol=1e-3)
    assert dataset.preprocessing(32) == Preprocessing(32, 1.0, dataset.mean, dataset.std)
    assert dataset.preprocessing(24).crop_ratio == 0.875


def test_packing_again_gives_the_same_bytes_and_other_settings_need_overwrite(digits, tmp_path):
    folder, _ = digits
    pack_digits(tmp_path)
    pack_digits(tmp_path)
    for name in ("train.rec", "train.idx", "val.rec", "val.idx", "dataset.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(UserError, match="already there.*--overwrite"):
        pack_digits(tmp_path, size=16)
    assert pack_digits(tmp_path, size=16, overwrite=True).image_size == (16, 16)


def test_records_that_are_not_ours_are_never_replaced(tmp_path):
    (tmp_path / "train.rec").write_bytes(b"hours of somebody's work")
    with pytest.raises(UserError, match="already there"):
        pack_digits(tmp_path)
    assert (tmp_path / "train.rec").read_bytes() == b"hours of somebody's work"


def test_folder_keeps_jpeg_bytes_and_sorts_classes(photos, tmp_path):
    dataset, skipped, others = pack_folder(photos, tmp_path / "out", val_ratio=0.2)
    assert dataset.classes == ("ant", "cat") and skipped == () and others == {}
    assert dataset.train_counts == (10, 8) and dataset.val_counts == (2, 2)
    stored = {index.read(position) for index in (dataset.part("train"), dataset.part("val")) for position in range(len(index))}
    kept = {path.read_bytes() for path in photos.rglob("*") if path.suffix in (".jpg", ".png") and path.name[0] != "."}
    assert kept < stored and len(stored) == len(kept) + 1
    (bmp,) = stored - kept
    assert np.array_equal(decode(bmp), photo(11))


def test_folder_shrinks_only_what_is_larger(photos, tmp_path):
    (photos / "cat" / "small.jpg").write_bytes(encode(photo(50, 20, 24), ".jpg"))
    dataset, *_ = pack_folder(photos, tmp_path / "out", val_ratio=0.2, resize=32)
    report = check(tmp_path / "out" / "train.rec")
    assert report.largest == (32, 45) and report.smallest in ((20, 24), (32, 45)) and dataset.image_size is None


def test_folder_with_train_and_val(photos, tmp_path):
    root = tmp_path / "split"
    for part in ("train", "val"):
        for name in ("cat", "ant"):
            (root / part / name).mkdir(parents=True)
            for number in range(3 if part == "train" else 2):
                (root / part / name / f"{number}.jpg").write_bytes((photos / name / f"{number}.jpg").read_bytes())
    dataset, *_ = pack_folder(root, tmp_path / "out")
    assert dataset.train_counts == (3, 3) and dataset.val_counts == (2, 2)
    for ratio in (0.2, 7.0):
        with pytest.raises(UserError, match=f"has a val folder, which becomes val as it is; leave out --val-ratio {ratio:g}"):
            pack_folder(root, tmp_path / "other", val_ratio=ratio)
    (root / "val" / "dog").mkdir()
    with pytest.raises(UserError, match="class 'dog' is not in both of"):
        pack_folder(root, tmp_path / "other")


def test_unreadable_image_is_named_and_skipped_only_when_asked(photos, tmp_path):
    (photos / "cat" / "bad.jpg").write_bytes(encode(photo(3), ".jpg")[:100])
    with pytest.raises(UserError, match=r"cat/bad\.jpg cannot be decoded.*--skip-bad"):
        pack_folder(photos, tmp_path / "out", val_ratio=0.2)
    assert not (tmp_path / "out" / "dataset.json").exists()
    dataset, skipped, _ = pack_folder(photos, tmp_path / "out2", val_ratio=0.2, skip_bad=True)
    assert len(skipped) == 1 and "cat/bad.jpg" in skipped[0] and sum(dataset.counts.values()) == 22


def test_folder_errors(photos, tmp_path):
    with pytest.raises(UserError, match="no folder"):
        pack_folder(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(UserError, match="no class folders"):
        pack_folder(photos / "cat", tmp_path / "out")
    with pytest.raises(UserError, match=r"quality 0 is not in 1\.\.100"):
        pack_folder(photos, tmp_path / "out", quality=0)
    (photos / "empty").mkdir()
    with pytest.raises(UserError, match="class folder .*empty holds no images"):
        pack_folder(photos, tmp_path / "out")
    (photos / "empty" / "only.jpg").write_bytes(PNG)
    with pytest.raises(UserError, match=r"photos with a single image: 'empty'; a split .* 2 per class: add images, remove"):
        pack_folder(photos, tmp_path / "out")
    for name in "abcdef":
        (photos / name).mkdir()
        (photos / name / "only.jpg").write_bytes(PNG)
    with pytest.raises(UserError, match=r"single image: 'a', 'b', 'c', 'd', 'e' and 2 more; a split"):
        pack_folder(photos, tmp_path / "out")
    for name in ("empty", *"abcdef"):
        shutil.rmtree(photos / name)
    (photos / "val").mkdir()
    with pytest.raises(UserError, match=r"has only one of the folders train and val; .* \(another name for a class"):
        pack_folder(photos, tmp_path / "out")
    (photos / "val").rmdir()
    with pytest.raises(UserError, match="ratio 1.5 is not between 0 and 1"):
        pack_folder(photos, tmp_path / "out", val_ratio=1.5)
    shutil.rmtree(photos / "cat")
    with pytest.raises(UserError, match="photos has a single class folder, 'ant'; at least 2 are needed"):
        pack_folder(photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_taken_are_counted_and_hidden_ones_are_not(photos, tmp_path):
    hidden = ("cat/.cache.bin", "cat/.ipynb/0.jpg", "cat/.ipynb/x.py")
    for name in ("ant/a.gif", "ant/deep/b.GIF", "cat/notes.txt", "cat/README", *hidden):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"x")
    (photos / "cat" / "v1.0").mkdir()
    dataset, skipped, others = pack_folder(photos, tmp_path / "api")
    assert sum(dataset.counts.values()) == 22 and skipped == () and others == {".gif": 2, ".txt": 1, "no ending": 1}
    result = CliRunner().invoke(app, ["folder", str(photos), str(tmp_path / "out"), "--json"])
    line = f"left out: 4 files that are no images ({' '.join(SUFFIXES)}) of a class folder: 2 .gif, 1 .txt, 1 no ending"
    assert result.stderr.splitlines() == [line] and json.loads(result.stdout)["other_files"] == others
    told = " ".join(CliRunner().invoke(app, ["folder", "--help"]).output.split())
    assert all(f" {ending}" in told for ending in SUFFIXES)


def test_images_outside_of_class_folders_are_counted(photos, tmp_path):
    split = tmp_path / "split"
    for part in ("train", "val", "test"):
        shutil.copytree(photos, split / part)
    for name in ("a.jpg", ".hidden.jpg", "val/b.png"):
        (split / name).write_bytes(PNG)
    _, _, others = pack_folder(split, tmp_path / "out")
    assert others.pop(".jpg beside class folders") == 1 and others.pop(".png beside class folders") == 1
    assert sum(count for name, count in others.items() if name.endswith(" in test")) == 22 == sum(others.values())


def test_two_processes_do_not_pack_into_one_folder(photos, tmp_path):
    with held(tmp_path, "taken"), pytest.raises(UserError, match="another process is packing into"):
        pack_folder(photos, tmp_path)
    pack_folder(photos, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dataset.json", "train.idx", "train.rec", "val.idx", "val.rec"]


def test_an_empty_file_is_called_so(photos, tmp_path):
    (photos / "cat" / "0.jpg").write_bytes(b"")
    result = CliRunner().invoke(app, ["folder", str(photos), str(tmp_path / "out"), "--skip-bad"])
    assert result.exit_code == 0
    assert result.stderr == f"left out: image {photos / 'cat' / '0.jpg'} cannot be decoded as an image (empty file)\n"


def test_bare_records_get_their_class_count_from_the_labels(tmp_path):
    write_records(tmp_path / "train.rec", [(label, PNG) for label in (0, 2, 1, 2)])
    write_records(tmp_path / "val.rec", [(3, PNG)])
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("0", "1", "2", "3") and dataset.train_counts == (1, 1, 2, 0) and dataset.val_counts == (0, 0, 0, 1)
    assert dataset.mean == IMAGENET_MEAN and dataset.image_size == (8, 8)
    assert load_dataset(tmp_path / "train.rec").class_count == 3
    with pytest.raises(UserError, match="5 classes were asked for.*has 4; ask for 4 .--set options.classes=4; train_imagenet.py"):
        load_dataset(tmp_path, class_count=5)
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    assert load_dataset(tmp_path, class_count=5).classes == tuple("abcde")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"record 1 \(key 1, byte \d+\) of .*train\.rec has label 2, beyond the 2 classes"):
        load_dataset(tmp_path)


def test_single_files_have_the_classes_that_dataset_json_declares(digits, tmp_path):
    folder = shutil.copytree(digits[0], tmp_path / "copy")
    about = json.loads((folder / "dataset.json").read_text())
    about["classes"] += ["ten", "eleven"]
    (folder / "dataset.json").write_text(json.dumps(about))
    assert load_dataset(folder / "train.rec").class_count == 12
    assert dataset_from_files(folder / "train.rec", None, folder / "val.rec").classes[-1] == "eleven"


def test_a_part_that_is_absent_is_said(tmp_path):
    write_records(tmp_path / "val.rec", [(0, PNG)])
    dataset = load_dataset(tmp_path)
    assert dataset.counts == {"train": 0, "val": 1}
    with pytest.raises(UserError, match="no train part, only .*val.rec"):
        dataset.part("train")
    with pytest.raises(UserError, match="no data set at"):
        load_dataset(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither train\.rec nor val\.rec"):
        load_dataset(tmp_path / "empty")
    with pytest.raises(UserError, match=r"at least one \.rec"):
        dataset_from_files()


@pytest.mark.parametrize("label", [0.5, -1.0, float("nan"), float("inf"), 1e9])
def test_labels_that_are_no_classes_are_refused_and_reported(tmp_path, label):
    path = tmp_path / "train.rec"
    path.write_bytes(pack_record(0, 0, PNG) + pack_record(label, 1, PNG))
    path.with_suffix(".idx").write_text(f"0\t0\n1\t{len(pack_record(0, 0, PNG))}\n")
    with pytest.raises(UserError, match=r"record 1 .* has label .*whole numbers"):
        load_dataset(tmp_path)
    (bad,) = check(path, class_count=10).bad
    assert bad.position == 1 and "whole number from 0 to 9" in bad.reason


def test_check_names_records_whose_pixels_are_damaged(tmp_path, capfd):
    jpeg = encode(photo(1), ".jpg")
    middle = len(jpeg) // 2
    broken = jpeg[:middle] + b"\xff\xd0" * 20 + jpeg[middle + 40:]  # decodes, with a warning and grey blocks
    write_records(tmp_path / "train.rec", enumerate([jpeg, broken, jpeg, broken, b"no image"]))
    bad = check(tmp_path / "train.rec").bad
    assert [each.position for each in bad] == [1, 3, 4]
    assert all("is damaged (Corrupt JPEG data" in each.reason for each in bad[:2])
    assert "JPEG" not in capfd.readouterr().err  # what libjpeg says is in the report


def test_check_names_every_bad_record(tmp_path):
    jpeg = encode(photo(1), ".jpg")
    images = [jpeg, jpeg[: len(jpeg) // 2], b"", b"no image", PNG[:30], PNG]
    write_records(tmp_path / "train.rec", enumerate(images))
    report = check(tmp_path / "train.rec")
    index = read_index(tmp_path / "train.rec")
    assert [(bad.position, bad.key, bad.offset) for bad in report.bad] == [(row, row, index.offsets[row]) for row in (1, 2, 3, 4)]
    assert all("cannot be decoded" in bad.reason for bad in report.bad)
    assert report.records == 6 and report.label_range == (0, 5) and report.smallest == (8, 8) and report.largest == (40, 56)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "supernet"}, "is of kind 'supernet', expected 'dataset'"),
        ({"classes": None}, "cannot be read"),
        ({"classes": ["a"]}, "beyond the 1 classes"),
        ({"mean": [1, 2]}, "three numbers"),
        ({"std": [0, 1, 1]}, "above 0"),
        ({"train": {"count": 1}}, "lacks the entry 'per_class'"),
        ({"image_size": "big"}, "cannot be read"),
        ({"val": {"per_class": [1] * 10}}, "differ in their images per class"),
    ],
)
def test_a_wrong_dataset_json_is_refused(digits, tmp_path, change, message):
    folder, _ = digits
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").unlink()
    (tmp_path / "dataset.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=message):
        load_dataset(tmp_path)


def test_a_full_disk_is_an_error_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WorkError, match="No space left"):
        pack_digits(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_folder_as_it_was_and_the_next_try_succeeds(photos, tmp_path):
    out = tmp_path / "out"
    (bad := next((photos / "cat").iterdir())).write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(UserError, match="--skip-bad"):
            pack_folder(photos, out)
        assert not out.exists()
    before, skipped, _ = pack_folder(photos, out, skip_bad=True)
    assert len(skipped) == 1 and str(bad) in skipped[0]
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match="--skip-bad"):
        pack_folder(photos, out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept and load_dataset(out) == before


@pytest.mark.parametrize("moved", range(5))
def test_a_kill_while_the_files_move_in_leaves_no_half_data_set(photos, tmp_path, monkeypatch, moved):
    out, real, calls = tmp_path / "out", packers.os.replace, []
    pack_folder(photos, out, val_ratio=0.5)

    def replace(source, target):
        if Path(target).parent == out:
            if len(calls) == moved:
                raise KeyboardInterrupt
            calls.append(target)
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(packers.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            pack_folder(photos, out, val_ratio=0.2, overwrite=True)
    with pytest.raises(UserError, match="out was interrupted just before its end; repeat that `oneshot-nas data` command"):
        load_dataset(out)
    pack_folder(photos, out, val_ratio=0.2, overwrite=moved % 2 == 0)
    assert load_dataset(out).train_counts == (10, 8) and not (out / packers.PACKING).exists()
    with pytest.raises(UserError, match="already there"):
        pack_folder(photos, out, val_ratio=0.2)


def test_what_was_interrupted_at_the_very_end_is_no_leave_to_pack_something_else(photos, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(packers.os, "replace", breaking(packers.os.replace))
        with pytest.raises(KeyboardInterrupt):
            pack_folder(photos, tmp_path / "out")
    with pytest.raises(UserError, match="train.rec is already there; give another folder"):
        pack_digits(tmp_path / "out")
    assert load_dataset(tmp_path / "out").classes == ("ant", "cat")


def test_what_was_interrupted_at_the_very_end_is_no_leave_to_pack_another_folder(photos, tmp_path, monkeypatch):
    other = shutil.copytree(photos, tmp_path / "other")
    next((other / "cat").iterdir()).write_bytes(PNG)
    with monkeypatch.context() as patched:
        patched.setattr(packers.os, "replace", breaking(packers.os.replace))
        with pytest.raises(KeyboardInterrupt):
            pack_folder(photos, tmp_path / "out")
    with pytest.raises(UserError, match="train.rec is already there; give another folder"):
        pack_folder(other, tmp_path / "out")


def breaking(replace):
    """An os.replace that is interrupted before it moves dataset.json to its place."""
    def until_dataset(source, target):
        if Path(source) == Path(target).parent / packers.PACKING / "dataset.json":
            raise KeyboardInterrupt
        replace(source, target)

    return until_dataset


def test_check_as_json_says_that_records_and_dataset_json_disagree(digits, tmp_path):
    folder = shutil.copytree(digits[0], tmp_path / "copy")
    about = json.loads((folder / "dataset.json").read_text())
    about["train"]["per_class"][0] += 1
    (folder / "dataset.json").write_text(json.dumps(about))
    result = CliRunner().invoke(app, ["check", str(folder), "--json"])
    told = json.loads(result.stdout)
    assert isinstance(result.exception, UserError) and told["ok"] is False and told["error"] == str(result.exception)
    assert "differ in their images per class" in told["error"] and [len(file["bad"]) for file in told["files"]] == [0, 0]


def test_preprocessing_goes_through_json_and_refuses_nonsense():
    preprocessing = Preprocessing(224, 0.9, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "cubic")
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing
    assert Preprocessing(224).resize == 256 and Preprocessing(224, 0.7).resize == 320 and Preprocessing(32, 1.0).resize == 32
    turned = preprocessing.reordered("BGR")
    assert (turned.channels, turned.mean, turned.std) == ("BGR", (3.0, 2.0, 1.0), (6.0, 5.0, 4.0))
    assert Preprocessing.from_json(turned.to_json()) == turned and turned.reordered("RGB") == preprocessing
    good = preprocessing.to_json()
    cases: list[tuple[dict, str]] = [
        ({"input_size": 0}, "whole number"), ({"input_size": 2.5}, "whole number"), ({"crop_ratio": 0}, r"in \(0, 1\]"),
        ({"crop_ratio": "a"}, "wrong type"), ({"std": [1, 2]}, "three numbers"), ({"interpolation": "best"}, "'linear'"),
        ({"channels": "GRB"}, "'BGR'"), ({"channels": ["RGB"]}, "wrong type"), ({"mean": ["a", 1, 2]}, "wrong type"),
        ({"mean": [math.nan, 1, 2]}, "three numbers"), ({"extra": 1}, "exactly the keys"),
    ]  # fmt: skip
    for change, message in cases:
        with pytest.raises(UserError, match=message):
            Preprocessing.from_json({**good, **change})


def test_augmentations_are_named_and_strict():
    assert make_augment("imagenet").area == (0.08, 1.0) and make_augment("small", {"pad": 2, "mirror": False}).pad == 2
    cases: list[tuple[str, dict, str]] = [
        ("strong", {}, "'strong' is not one of"),
        ("small", {"padding": 4}, "no field 'padding'"),
        ("small", {"pad": -1}, "pad -1"),
        ("small", {"pad": 1.5}, "pad 1.5 must be a whole number"),
        ("digits", {"contrast": -1}, "0 or more"),
        ("imagenet", {"area": (0, 1)}, "area"),
        ("imagenet", {"area": 1}, "wrong type"),
        ("imagenet", {"ratio": (2, 1)}, "ratio"),
        ("imagenet", {"crop": "any"}, "'any'"),
        ("imagenet", {"brightness": "much"}, "wrong type"),
    ]
    for kind, changes, message in cases:
        with pytest.raises(UserError, match=message):
            make_augment(kind, changes)


def test_command_line(photos, tmp_path):
    run = CliRunner().invoke
    out = tmp_path / "my data"
    result = run(app, ["folder", str(photos), str(out), "--val-ratio", "0.2"])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0] == f"{out}: 18 train and 4 val images of 2 classes, 40x56"
    words = shlex.split(result.output.splitlines()[-1])
    assert words[:3] == ["next:", shell.program(), "train"] and words[5:7] == ["--set", f"data={out}"]
    assert read_recipe(words[4], words[6:7]).data == str(out)  # the recipe is there and can be read
    result = run(app, ["check", str(out), "--json"])
    assert result.exit_code == 0 and json.loads(result.output)["ok"] is True
    index = read_index(out / "val.rec")
    with open(out / "val.rec", "r+b") as handle:
        handle.seek(int(index.offsets[2]) + 8 + 24)
        handle.write(b"garbage!" * 10)
    result = run(app, ["check", str(out)])
    assert isinstance(result.exception, UserError) and "1 bad record: record 2 (key 2" in str(result.exception)
    assert "bad: record 2 (key 2" in result.output
    result = run(app, ["check", str(out), "--json"])
    assert json.loads(result.output)["files"][1]["bad"][0]["position"] == 2
    (out / "train.idx").unlink()
    assert "--rebuild-index" in str(run(app, ["check", str(out / "train.rec")]).exception)
    assert run(app, ["check", str(out / "train.rec"), "--rebuild-index"]).exit_code == 0
    for command in ("digits", "folder", "cifar10", "check"):
        assert "Example:" in run(app, [command, "--help"]).output


def test_check_as_json_says_that_a_file_is_cut_off(digits, tmp_path):
    folder = shutil.copytree(digits[0], tmp_path / "copy")
    whole = (folder / "train.rec").read_bytes()
    (folder / "train.rec").write_bytes(whole[:-100])
    result = CliRunner().invoke(app, ["check", str(folder), "--json"])
    told = json.loads(result.stdout)
    assert isinstance(result.exception, UserError) and told["ok"] is False and "cut off" in told["error"]


@pytest.mark.parametrize("change", [{"image_size": [float("inf"), 1]}, {"train": {"count": 1, "per_class": [float("inf")]}}])
def test_endless_numbers_in_a_dataset_json_are_refused(digits, tmp_path, change):
    folder = shutil.copytree(digits[0], tmp_path / "copy")
    about = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(about | change))
    with pytest.raises(UserError, match="dataset.json cannot be read"):
        load_dataset(folder)
