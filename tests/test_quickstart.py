"""The quickstart as a chain of commands: seeds, steps that are done, another winner. Its commands are tested on their own."""

import json
from argparse import Namespace

from oneshot_nas.model_zoo import published
from oneshot_nas.quickstart import steps, table

GIVEN = Namespace(budget=60, population=10, flops=":3M", seed=7)


def write_arch(folder, scale):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "arch.json").write_text(json.dumps({"choices": {"scale": [scale]}}))


def commands(out):
    """Every command of the chain; the search finds a network of scale 0.6."""
    found = []
    for _, command in steps(out, GIVEN):
        found.append(command)
        if command[0] == "search":
            write_arch(out / "search", 0.6)
    return found


def test_the_seed_reaches_data_training_and_search(tmp_path):
    found = commands(tmp_path)
    assert [command[0] for command in found] == ["data", "train", "search", "train", "export", "plot", "plot", "plot"]
    assert all("7" in command or "seed=7" in command for command in found[:4])


def test_data_that_is_there_is_not_packed_again(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").touch()
    assert commands(tmp_path)[0][0] == "train"


def test_the_table_names_the_pictures_of_this_winner(tmp_path):
    for name in ("supernet", "search", "retrain", "retrain-1"):
        (tmp_path / name / "plots").mkdir(parents=True)
        (tmp_path / name / "plots" / "curves.png").touch()
    (tmp_path / "export").mkdir()
    (tmp_path / "search" / "arch.json").write_text(json.dumps(published("oneshot").to_json()))
    (tmp_path / "search" / "result.json").write_text(json.dumps({"best": {"scores": {"top1": 0.9}}}))
    (tmp_path / "retrain" / "result.json").write_text(json.dumps({"last": {"val_top1": 0.95}}))
    told = table(tmp_path)
    assert told.count("curves.png") == 3 and "retrain-1" not in told and "95.00%" in told and "90.00%" in told


def test_the_network_of_another_winner_is_kept(tmp_path, capsys):
    for number in range(1, 3):
        write_arch(tmp_path / "retrain", 1.0 + number / 10)
        commands(tmp_path)
        kept = tmp_path / f"retrain-{number}"
        assert kept.is_dir() and not (tmp_path / "retrain").exists()
        assert f"kept in {kept}" in capsys.readouterr().out
    write_arch(tmp_path / "retrain", 0.6)
    commands(tmp_path)
    assert (tmp_path / "retrain").is_dir()
