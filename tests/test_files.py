"""Files that survive a kill and know what they are: links, devices, what is written first, JSON that says a thing once."""

import json
import os

import pytest

from oneshot_nas.errors import UserError, WorkError
from oneshot_nas.files import held, parse_json, read_json, staged, write_json, write_params, write_text


def test_a_link_stays_a_link_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "file.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    assert os.listdir(tmp_path / "real") == ["file.txt"]


def test_devices_and_pipes_are_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(UserError, match="it is a device or a pipe, no file; give another"):
            write_text(tmp_path / name, "text")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()


def test_what_the_file_system_refuses_is_told(tmp_path):
    with pytest.raises(WorkError, match="File name too long; the previous file, if any, is unchanged"):
        write_text(tmp_path / ("a" * 300), "text")


def test_a_description_never_tells_of_weights_that_were_not_written(tmp_path):
    path = tmp_path / "net.params"

    def full(temporary):
        raise OSError(28, "No space left on device")

    write_params(path, "network", lambda temporary: write_text(temporary, "first"), {"number": 1})
    with pytest.raises(WorkError, match="No space left on device; the previous file, if any, is unchanged"):
        write_params(path, "network", full, {"number": 2})
    assert path.read_text() == "first" and read_json(f"{path}.json", "network")["number"] == 1


def test_a_key_given_twice_is_refused_and_a_byte_order_mark_is_not(tmp_path):
    with pytest.raises(UserError, match="a.json is not valid JSON: key 'b' is given twice"):
        parse_json('{"a": {"b": 1, "c": 2, "b": 3}}', "a.json")
    write_json(tmp_path / "a.json", "thing", {"a": 1})
    (tmp_path / "b.json").write_text((tmp_path / "a.json").read_text(), encoding="utf-8-sig")
    assert read_json(tmp_path / "b.json", "thing") == json.loads((tmp_path / "a.json").read_text())


def test_a_huge_object_with_a_key_given_twice_is_refused_at_once():
    text = "{" + ",".join(f'"{number}": 1' for number in range(100_000)) + ', "99999": 2}'
    with pytest.raises(UserError, match="key '99999' is given twice"):
        parse_json(text, "a.json")


def test_staged_files_take_their_places_together_or_not_at_all(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(WorkError, match="No space left"), staged(tmp_path) as folder:
        (folder / "a").write_text("new")
        raise OSError(28, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"
    with staged(tmp_path) as folder:
        (folder / "a").write_text("new")
        (folder / "b").write_text("more")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "b": "more"}
    with pytest.raises(UserError, match="a part of it is a file"), staged(tmp_path / "a"):
        pass


def test_a_folder_is_held_by_one_process(tmp_path):
    with held(tmp_path, "taken"), pytest.raises(UserError, match="taken"), held(tmp_path, "taken"):
        pass
    with held(tmp_path, "taken"):
        pass
