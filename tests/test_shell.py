"""What a person is told to type next works where it is typed; wrong use of the scripts is one line."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from oneshot_nas import quickstart, shell


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An environment whose `oneshot-nas` the shell does not find by name."""
    binaries = tmp_path / "my env" / "bin"
    binaries.mkdir(parents=True)
    (binaries / shell.PROGRAM).write_text("#!/bin/sh\n")
    (binaries / shell.PROGRAM).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(binaries / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return binaries


def test_the_program_is_called_by_its_path_until_the_shell_finds_it(environment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shell.program() == f"my env/bin/{shell.PROGRAM}"
    assert shell.command("plot", tmp_path / "a b") == f"'my env/bin/{shell.PROGRAM}' plot '{tmp_path}/a b'"
    monkeypatch.chdir("/")
    assert os.path.samefile(shell.program(), environment / shell.PROGRAM)
    monkeypatch.setenv("PATH", f"{environment}:/bin")
    assert shell.command("doctor") == "oneshot-nas doctor"
    other = tmp_path / "other"  # another environment comes first: its program is not this one
    other.mkdir()
    (other / shell.PROGRAM).write_text("#!/bin/sh\n")
    (other / shell.PROGRAM).chmod(0o755)
    monkeypatch.setenv("PATH", f"{other}:{environment}:/bin")
    assert os.path.samefile(shell.program(), environment / shell.PROGRAM)
    (environment / shell.PROGRAM).unlink()
    assert shell.program() == shell.PROGRAM


@pytest.mark.parametrize("folder", [".", "/"])
def test_recipes_are_found_from_any_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path if folder == "." else folder)
    for name in ("digits_supernet", "cifar10_supernet", "folder_supernet", "folder_retrain"):
        assert os.path.isfile(shell.recipe(name))
    monkeypatch.chdir(shell.PACKAGE.parent)
    assert shell.recipe("digits_supernet") == "recipes/digits_supernet.yaml"
    with pytest.raises(ValueError, match="no recipe 'nothing'"):
        shell.recipe("nothing")


def test_wrong_use_of_a_script_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        quickstart.main(["--budget", "many"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and len(error.splitlines()) == 1
    assert error.startswith("error: ") and error.endswith("see: scripts/quickstart.sh --help\n")


def test_every_step_of_the_quickstart_can_be_repeated_by_hand(tmp_path, capsys, monkeypatch):
    called = []
    monkeypatch.setattr(quickstart, "call", lambda command: called.append(command) or (3 if command[0] == "search" else 0))
    assert quickstart.main(["--out", str(tmp_path / "my run")]) == 3  # stops at the step that failed and says so
    captured = capsys.readouterr()
    shown = [shlex.split(line[2:]) for line in captured.out.splitlines() if line.startswith("$ ")]
    assert shown == [[shell.program(), *command] for command in called]
    assert [command[0] for command in called] == ["data", "train", "search"]
    assert "exit code 3" in captured.err


def test_the_quickstart_takes_one_thread_unless_told(tmp_path):
    code = ("import os\nfrom oneshot_nas import quickstart\n"
            "quickstart.call = lambda command: print(os.environ['OMP_NUM_THREADS']) or 3\n"
            f"quickstart.main(['--out', {str(tmp_path / 'run')!r}])")
    env = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "ONESHOT_NAS_OMP_NUM_THREADS")}
    for given, wanted in (({}, "1"), ({"OMP_NUM_THREADS": "3"}, "3")):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=shell.PACKAGE.parent,
                              env={**env, **given})
        assert done.stdout.splitlines()[-1] == wanted, done.stderr


def test_ctrl_c_lets_the_step_save_its_state(tmp_path):
    """The step takes longer than the quarter of a second after which subprocess.run would kill it."""
    step = ("import sys, time\ntry:\n  open(sys.argv[1], 'w').close(); time.sleep(30)\n"
            "except KeyboardInterrupt:\n  time.sleep(1); open(sys.argv[1], 'w').write('saved'); sys.exit(130)\n")
    (tmp_path / "oneshot_nas.py").write_text(step)
    code = (f"import sys; sys.path.insert(0, {str(shell.PACKAGE.parent)!r})\nfrom oneshot_nas import quickstart\n"
            f"import os; os.chdir({str(tmp_path)!r})\n"  # its oneshot_nas.py is what python -m oneshot_nas runs there
            f"print(quickstart.call([{str(tmp_path / 'state')!r}]))\n")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    deadline = time.monotonic() + 20
    while not (tmp_path / "state").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (out.strip(), err) == ("130", "") and (tmp_path / "state").read_text() == "saved"
