"""Resume is exact: killed, crashed, interrupted or out of disk, a run continues to the very bytes of an uninterrupted one."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from oneshot_nas.cli._supernet import tell_unfinished
from oneshot_nas.config import RunFolder
from oneshot_nas.errors import UserError, WorkError
from oneshot_nas.train import checkpoint, loop
from oneshot_nas.train.loop import train
from oneshot_nas.train.runs import load_fixed

MIXED = {"label_smoothing": 0.1, "mixup_alpha": 0.2, "mixup_off_epochs": 1}
SGD = {"name": "sgd", "lr": 0.1, "clip": 1}
CASES = {
    "supernet on two devices": lambda data: tiny.narrow_supernet(data, epochs=3, contexts=2, validate_every=2, loss=MIXED),
    "fixed network on three": lambda data: tiny.fixed(data, epochs=3, contexts=3, batch_size=12, loss=MIXED,
                                                    progressive={"size": 8, "epochs": 2}),
    "GluonCV model on two": lambda data: tiny.gluoncv(data, epochs=4, contexts=2, optimizer=SGD),
    "averaged without momentum": lambda data: tiny.gluoncv(data, epochs=3, ema=0.99, optimizer=SGD | {"momentum": 0}),
}


class Killed(BaseException):
    """Ends a run at once, as a kill does."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """name -> the result of a run that nothing disturbed."""
    known = {}

    def get(name):
        if name not in known:
            out = tmp_path_factory.mktemp("whole")
            train(CASES[name](data), out, quiet)
            known[name] = result(out)
        return known[name]

    return get


def quiet(text):
    pass


def result(out):
    """Everything about a finished run but the clock: bytes of weights and optimizer, metrics, descriptions."""
    files = sorted((out / "checkpoint").iterdir())
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(line.pop("timing") for line in metrics)
    about = {name: (out / name).read_text() for name in ("supernet.json", "arch.json", "config.yaml") if (out / name).exists()}
    return {path.name: path.read_bytes() for path in files}, metrics, about


def break_at(monkeypatch, owner, name, call, after=False):
    """Make the `call`-th call of owner.name end the run, before or after it has done its work."""
    real = getattr(owner, name)
    calls: list[None] = []

    def broken(*args, **options):
        calls.append(None)
        if len(calls) == call and not after:
            raise Killed
        value = real(*args, **options)
        if len(calls) == call:
            raise Killed
        return value

    monkeypatch.setattr(owner, name, broken)


SEAMS = [  # (owner, function, which call, after it); each run goes on where the one before broke
    (loop, "run_step", 2, False), (loop, "run_step", 7, True),
    (loop, "append_metrics", 1, False), (loop, "append_metrics", 1, True),
    (checkpoint, "write_params", 1, True), (checkpoint, "save_arrays", 4, False), (checkpoint, "write_json", 1, False),
    (checkpoint, "write_json", 1, True), (checkpoint, "save_checkpoint", 1, True),
]


@pytest.mark.parametrize(("name", "seams"), [*zip(CASES, (SEAMS[2::3], SEAMS[1::3], SEAMS, SEAMS[::4]), strict=True)])
def test_a_run_that_breaks_at_every_seam_ends_as_an_uninterrupted_one(name, seams, data, uninterrupted, tmp_path, monkeypatch):
    recipe = CASES[name](data)
    breaks = 0
    for seam in seams:
        with monkeypatch.context() as patch:
            break_at(patch, *seam)
            try:
                train(recipe, tmp_path, quiet)
            except Killed:
                breaks += 1
    train(recipe, tmp_path, quiet)
    assert breaks == len(seams)
    assert result(tmp_path) == uninterrupted(name)


CHILD = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import tiny, test_train_resume as test
from oneshot_nas.train.loop import train
for name, out in zip(list(test.CASES)[:2], ("supernet", "fixed")):
    train(test.CASES[name](Path(sys.argv[1])), Path(sys.argv[2]) / out)
"""


def test_kill_9_at_random_moments_changes_nothing(data, uninterrupted, tmp_path):
    rng = random.Random(int(time.time()))  # other moments every time; they must not matter
    command = [sys.executable, "-c", CHILD.format(tests=str(Path(__file__).parent)), str(data), str(tmp_path)]
    for lines in (3, 6, 0):  # killed shortly after so many lines of the log, then left alone
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            for _ in range(lines):
                process.stderr.readline()
            if lines:
                time.sleep(rng.random() * 0.6)
                process.kill()
            errors = process.communicate()[1]
    assert process.returncode == 0, errors
    for name, out in zip(list(CASES)[:2], ("supernet", "fixed"), strict=True):
        assert result(tmp_path / out) == uninterrupted(name)


def test_ctrl_c_ends_in_one_line_and_the_same_command_resumes(data, tmp_path):
    root = Path(__file__).parent.parent
    flags = (f"--model mobilenetv2_0.25 --use-rec --rec-train {data}/train.rec --rec-val {data}/val.rec --input-size 16 "
             "--batch-size 8 --num-epochs 300 --augment none --lr 0.001 --save-dir run")
    command = [sys.executable, str(root / "train_imagenet.py"), *flags.split()]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        while "epoch 2/" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    saved = json.loads((tmp_path / "run/checkpoint/latest.json").read_text())
    told = f"interrupted; state saved after epoch {saved['epoch']}, the same command resumes"
    assert errors.splitlines()[-1] == told and "Traceback" not in errors
    assert 1 <= saved["epoch"] < 300
    assert checkpoint.latest_weights(tmp_path / "run/checkpoint").exists()


@pytest.mark.parametrize("part", ["weights", "weights but for the last byte", "optimizer", "description"])
def test_a_disk_that_fills_up_while_saving_leaves_the_old_checkpoint(part, data, uninterrupted, tmp_path, monkeypatch):
    name = "GluonCV model on two"
    recipe = CASES[name](data)
    real = checkpoint.save_checkpoint

    def save(folder, net, trainer, position, about, average):
        if position.epoch != 2:
            return real(folder, net, trainer, position, about, average)
        whole = {file.name.split("-")[0]: file.stat().st_size for file in folder.glob("*[ms]")}
        sizes = {"weights": whole["weights"] // 2, "weights but for the last byte": whole["weights"] - 1,
                 "optimizer": whole["optimizer"] - 1, "description": 100}
        if part == "optimizer":  # the larger file comes first, so let it through
            written = checkpoint.write_params
            monkeypatch.setattr(checkpoint, "write_params",
                                lambda path, kind, *rest: written(path, kind, *rest) if kind == checkpoint.OPTIMIZER else None)
        with tiny.files_of_at_most(sizes[part]):
            return real(folder, net, trainer, position, about, average)

    monkeypatch.setattr(checkpoint, "save_checkpoint", save)
    with pytest.raises(WorkError, match="cannot write .*-0002.*; the previous file, if any, is unchanged"):
        train(recipe, tmp_path, quiet)
    assert json.loads((tmp_path / "checkpoint/latest.json").read_text())["epoch"] == 1
    assert not list((tmp_path / "checkpoint").glob(".*"))  # no half-written files
    monkeypatch.undo()
    train(recipe, tmp_path, quiet)
    assert result(tmp_path) == uninterrupted(name)


def test_a_full_disk_is_one_line_and_exit_code_1(data, tmp_path, capsys):
    from oneshot_nas.cli.main import exit_code

    def work():
        with tiny.files_of_at_most(20_000):
            train(tiny.fixed(data), tmp_path, quiet)

    assert exit_code(work) == 1
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1 and captured.err.startswith("error: cannot write ")


def test_a_second_process_on_the_folder_is_refused(data, tmp_path):
    with RunFolder(tmp_path).lock(), pytest.raises(UserError, match="another process is working in"):
        train(tiny.fixed(data), tmp_path, quiet)


def test_exactly_one_pair_of_array_files_is_kept(data, tmp_path):
    train(tiny.gluoncv(data, epochs=3), tmp_path, quiet)
    assert sorted(os.listdir(tmp_path / "checkpoint")) == [
        "latest.json", "optimizer-0003.arrays", "optimizer-0003.arrays.json", "weights-0003.params", "weights-0003.params.json"]
    assert json.loads((tmp_path / "checkpoint/optimizer-0003.arrays.json").read_text())["kind"] == "optimizer-state"


def test_save_every_decides_no_number(data, tmp_path, monkeypatch):
    train(tiny.gluoncv(data, epochs=3), tmp_path / "a", quiet)
    with monkeypatch.context() as patch:
        break_at(patch, loop, "append_metrics", 3)
        with pytest.raises(Killed):
            train(tiny.gluoncv(data, epochs=3, save_every=2), tmp_path / "b", quiet)
    assert json.loads((tmp_path / "b/checkpoint/latest.json").read_text())["epoch"] == 2
    train(tiny.gluoncv(data, epochs=3, save_every=5, input_threads=2, log_every=3), tmp_path / "b", quiet)  # these may change
    assert result(tmp_path / "a")[:2] == result(tmp_path / "b")[:2]


def test_save_every_decides_where_a_guard_goes_back_to(data, tmp_path):
    train(tiny.gluoncv(data, epochs=1, guard={}), tmp_path, quiet)
    with pytest.raises(UserError, match="save_every: 1 -> 2"):
        train(tiny.gluoncv(data, epochs=1, guard={}, save_every=2), tmp_path, quiet)


@pytest.mark.parametrize(("first", "second"), [(tiny.narrow_supernet, tiny.fixed), (tiny.fixed, tiny.gluoncv)])
def test_what_a_first_try_without_a_checkpoint_left_says_nothing_of_the_next_one(first, second, data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        break_at(patch, loop, "append_metrics", 1)
        with pytest.raises(Killed):
            train(first(data), tmp_path, quiet)
    (tmp_path / ".initial.params.1.tmp").write_bytes(b"what a kill left")
    train(second(data, epochs=1), tmp_path, quiet)
    run = load_fixed(tmp_path)
    assert (run.arch is None) == (second is tiny.gluoncv)
    assert not (tmp_path / "supernet.json").exists() and not list(tmp_path.glob(".*.tmp"))


def test_an_unfinished_run_is_told_by_its_checkpoint(data, tmp_path, capsys):
    recipe = tiny.gluoncv(data, epochs=2)
    train(recipe, tmp_path, quiet, until=1)
    tell_unfinished(str(tmp_path))
    assert capsys.readouterr().err == f"warning: the network in {tmp_path} has 1 of its 2 epochs behind it\n"
    train(recipe, tmp_path, quiet)
    tell_unfinished(str(tmp_path))
    tell_unfinished(str(tmp_path / "nowhere"))
    assert capsys.readouterr().err == ""


def test_another_recipe_is_refused_once_something_is_saved_and_not_before(data, tmp_path):
    with pytest.raises(UserError, match="asked for"):  # cannot start: leaves nothing that would have to be kept
        train(tiny.gluoncv(data, epochs=1, device="gpu"), tmp_path, quiet)
    train(tiny.gluoncv(data, epochs=1), tmp_path, quiet)
    with pytest.raises(UserError, match="epochs: 1 -> 2.*give the same recipe to resume it, or another folder"):
        train(tiny.gluoncv(data, epochs=2), tmp_path, quiet)


def test_a_finished_run_stays_as_it_is(data, tmp_path):
    recipe = tiny.narrow_supernet(data, epochs=1)
    first = train(recipe, tmp_path, quiet)
    files = result(tmp_path)
    assert train(recipe, tmp_path, quiet) == first
    assert result(tmp_path) == files
    assert json.loads((tmp_path / "supernet.json").read_text())["epoch"] == 1


def test_a_metrics_line_that_a_kill_cut_off_is_written_again(data, tmp_path, monkeypatch):
    recipe = tiny.gluoncv(data)
    with monkeypatch.context() as patch:
        break_at(patch, checkpoint, "save_checkpoint", 2)
        with pytest.raises(Killed):
            train(recipe, tmp_path, quiet)
    whole = (tmp_path / "metrics.jsonl").read_text()
    first, second = whole.splitlines()
    (tmp_path / "metrics.jsonl").write_text(f"{first}\n{second[:-1]}")  # ends with a bracket, and is no JSON
    train(recipe, tmp_path, quiet)
    assert [json.loads(line)["epoch"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_the_files_of_a_checkpoint_start_another_run_where_it_was(data, uninterrupted, tmp_path, monkeypatch):
    name = "GluonCV model on two"
    recipe = CASES[name](data)
    with monkeypatch.context() as patch:
        break_at(patch, checkpoint, "save_checkpoint", 2)
        with pytest.raises(Killed):
            train(recipe, tmp_path / "first", quiet)
    saved = tmp_path / "first/checkpoint"
    start = {"weights": str(saved / "weights-0001.params"), "optimizer": str(saved / "optimizer-0001.arrays"), "epoch": 1}
    train(CASES[name](data).model_copy(update={"start": start_of(start)}), tmp_path / "second", quiet)
    files, metrics, _ = result(tmp_path / "second")
    whole, all_metrics, _ = uninterrupted(name)
    assert files["weights-0004.params"] == whole["weights-0004.params"]
    assert files["optimizer-0004.arrays"] == whole["optimizer-0004.arrays"]
    assert metrics == all_metrics[1:]


def start_of(content):
    from oneshot_nas.config import Start

    return Start(**content)


class Trap:
    """Unpickling it would leave a mark."""

    def __reduce__(self):
        return open, ("trap-was-sprung", "w")


def test_a_pickled_optimizer_state_is_refused_by_name_and_never_read(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(tiny.gluoncv(data, epochs=1), "run", quiet)
    weights = str(tmp_path / "run/checkpoint/weights-0001.params")
    for protocol in (2, 5):
        Path("trainer.states").write_bytes(pickle.dumps({0: Trap()}, protocol))
        start = start_of({"weights": weights, "optimizer": str(tmp_path / "trainer.states")})
        with pytest.raises(UserError, match="trainer.states is a pickle, as Gluon's .states files are"):
            train(tiny.gluoncv(data).model_copy(update={"start": start}), "other", quiet)
    assert not Path("trap-was-sprung").exists()


@pytest.mark.parametrize(("name", "damage", "words"), [
    ("weights", lambda raw: raw[: len(raw) // 2], "is cut off or damaged"),
    ("weights", lambda raw: raw[:-1], "is cut off or damaged"),
    ("weights", lambda raw: b"", "is not an MXNet array file"),
    ("weights", lambda raw: b"PNG" + raw, "is not an MXNet array file"),
    ("optimizer", lambda raw: raw[:-1], "is cut off or damaged"),
    ("latest", lambda raw: b'{"kind": "checkpoint", "version": 1}', "lacks 'epoch'"),
    ("latest", lambda raw: raw[:-9], "is not valid JSON"),
])
def test_a_damaged_checkpoint_is_named(name, damage, words, data, tmp_path):
    train(tiny.gluoncv(data, epochs=1), tmp_path, quiet)
    (path,) = (path for path in (tmp_path / "checkpoint").glob(f"{name}*") if not path.name.endswith("s.json"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"{path.name}.* {words}"):
        train(tiny.gluoncv(data, epochs=1), tmp_path, quiet)


def test_weights_and_optimizer_state_of_another_network_are_refused(data, tmp_path):
    train(tiny.fixed(data, epochs=1), tmp_path / "ours", quiet)
    train(tiny.gluoncv(data, epochs=1), tmp_path / "theirs", quiet)
    ours, theirs = (tmp_path / run / "checkpoint" for run in ("ours", "theirs"))
    for weights, optimizer, words in (
        (theirs / "weights-0001.params", None, "but of a fixed network .cifar_resnet20_v1.: 417 missing: stem"),
        (ours / "weights-0001.params", theirs / "optimizer-0001.arrays", "is not of this network and optimizer"),
        (ours / "missing.params", None, "no parameter file at .*missing.params"),
        (ours / "optimizer-0001.arrays", None, "is of kind 'optimizer-state', expected 'network' or 'exported-params'"),
    ):
        start = start_of({"weights": str(weights), "optimizer": optimizer and str(optimizer)})
        with pytest.raises(UserError, match=words):
            train(tiny.fixed(data, epochs=2).model_copy(update={"start": start}), tmp_path / "new", quiet)
