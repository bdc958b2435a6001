"""The quickstart as a chain of commands: seeds, steps that are done, another winner. Its commands are tested on their own."""

import json
from argparse import Namespace

from oneshot_nas.quickstart import steps

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
