"""Set-up scripts (with a stand-in for Python that records what it is asked), packaging, threads and doctor."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import requires, version
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from typer.testing import CliRunner

import oneshot_nas.threads
from oneshot_nas.cli import doctor as doctor_command
from oneshot_nas.doctor import core_problems, extra_problems, machine_problems
from oneshot_nas.errors import UserError
from oneshot_nas.threads import compiler, configure_threads, import_mxnet, remedy, usable_cores

ROOT = Path(__file__).parents[1]
TOOLS = ("sh", "cat", "cksum", "dirname", "grep", "mkdir", "rm", "sed", "sleep", "tr")
# Answers `-c` by the real Python under another version, records all other calls; `-m venv` copies it into the new environment.
FAKE_PYTHON = f"""#!/bin/sh
case "$1 ${{2-}}" in
    "-m venv") mkdir -p "$3/bin"; cat "$0" >"$3/bin/python"; {shutil.which("chmod")} +x "$3/bin/python"; echo "venv" >>"$CALLS" ;;
    "-m pip") echo "pip $*" >>"$CALLS"; sleep "${{PIP_SECONDS:-0}}"; exit "${{PIP_STATUS:-0}}" ;;
    "-m "*|*.py*) printf '%s\\n' "$@" >>"$CALLS" ;;
    "-c import cv2") exit "${{CV2_STATUS:-0}}" ;;
    "-c import cv2, mxnet") ;;
    *) exec {shlex.quote(sys.executable)} -c 'import sys; sys.version_info = (3, @MINOR@, 1); exec(sys.argv.pop(1))' "$2" ;;
esac
"""


class Checkout:
    """A copy of the scripts in a folder with a space, and a PATH with nothing but the tools they need."""

    def __init__(self, folder: Path) -> None:
        self.root, self.tools, self.calls = folder / "a check out", folder / "bin", folder / "calls"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        for name in ("setup.py", "constraints.txt"):
            shutil.copy(ROOT / name, self.root)
        self.tools.mkdir()
        for tool in TOOLS:
            (self.tools / tool).symlink_to(shutil.which(tool))
        self.environment = {"PATH": str(self.tools), "CALLS": str(self.calls)}

    def python(self, name: str, minor: int = 11) -> Path:
        return self.program(name, FAKE_PYTHON.replace("@MINOR@", str(minor)))

    def program(self, name: str, text: str) -> Path:
        path = self.tools / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def start(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["sh", str(self.root / "scripts" / script), *arguments], cwd=self.tools, env={**self.environment, **variables},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )

    def run(self, script: str, *arguments: str, **variables: str) -> tuple[int, str, str]:
        with self.start(script, *arguments, **variables) as process:
            out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def called(self) -> list[str]:
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_no_fitting_python_is_told_with_exit_code_2(checkout):
    checkout.program("python3.11", "#!/bin/sh\necho 'pyenv: python3.11: command not found' >&2\nexit 127\n")
    checkout.python("python3", minor=12)
    code, out, err = checkout.run("quickstart.sh")
    assert (code, out) == (2, "")
    assert "Python 3.10 or 3.11 is needed" in err
    assert "python3.11 does not run" in err
    assert "python3.10 is not there" in err
    assert "python3 is Python 3.12" in err
    assert not (checkout.root / ".venv").exists()


def test_a_python_named_by_the_user_is_not_replaced_by_another(checkout):
    checkout.python("python3.11")
    code, _, err = checkout.run("test.sh", PYTHON=str(checkout.python("mine", minor=9)))
    assert code == 2
    assert "mine is Python 3.9" in err
    assert "python3.11 is" not in err


def test_the_first_python_that_really_runs_is_taken(checkout):
    checkout.program("python3.11", "#!/bin/sh\nexit 127\n")
    checkout.python("python3.10", minor=10)
    code, _, err = checkout.run("quickstart.sh")
    assert code == 0, err
    assert "with Python 3.10" in err


def test_quickstart_installs_once_and_forwards_its_arguments(checkout):
    checkout.python("python3.11")
    code, _, err = checkout.run("quickstart.sh", "out folder", "--seed", "1")
    assert code == 0, err
    venv, pip, *run = checkout.called()
    assert venv == "venv"
    assert pip.endswith("-c constraints.txt -e .[onnx,dashboard]")
    assert run == ["-m", "oneshot_nas.quickstart", "--out", "out folder", "--seed", "1"]

    for arguments, out in (([], "runs/quickstart"), (["--quick"], "runs/quickstart")):
        code, _, err = checkout.run("quickstart.sh", *arguments)
        assert (code, err) == (0, "")
        assert checkout.called() == ["-m", "oneshot_nas.quickstart", "--out", out, *arguments]


def test_the_test_extras_leave_the_quickstart_ready(checkout):
    checkout.python("python3.11")
    checkout.run("quickstart.sh")
    checkout.called()
    code, _, err = checkout.run("test.sh", "tests/test_x.py", "-k", "y")
    assert code == 0, err
    calls = checkout.called()
    assert calls[0].endswith("-e .[onnx,dashboard,test]")
    assert "ruff" in calls
    assert calls[-6:] == ["pytest", "-n", "2", "tests/test_x.py", "-k", "y"]
    for script in ("quickstart.sh", "test.sh"):
        checkout.run(script)
        assert not any(line.startswith("pip") for line in checkout.called())


def test_changed_requirements_are_installed_into_the_same_venv(checkout):
    checkout.python("python3.11")
    checkout.run("quickstart.sh")
    checkout.called()
    with (checkout.root / "constraints.txt").open("a") as constraints:
        constraints.write("another==1.0\n")
    checkout.run("quickstart.sh")
    assert [line.split()[0] for line in checkout.called()][:2] == ["pip", "-m"]


@pytest.mark.parametrize("harm", ["moved", "python gone", "another version"])
def test_a_venv_that_cannot_be_used_is_made_anew(checkout, harm):
    checkout.python("python3.11")
    checkout.run("quickstart.sh")
    checkout.called()
    variables = {}
    if harm == "moved":
        checkout.root = checkout.root.rename(checkout.root.with_name("elsewhere"))
    elif harm == "python gone":
        (checkout.root / ".venv/bin/python").unlink()
    else:
        variables["PYTHON"] = str(checkout.python("mine", minor=10))
    code, _, err = checkout.run("quickstart.sh", **variables)
    assert code == 0, err
    assert "making .venv anew" in err
    assert checkout.called()[0] == "venv"


def test_a_venv_of_the_user_is_never_removed(checkout):
    checkout.python("python3.11")
    (checkout.root / ".venv").mkdir()
    code, _, err = checkout.run("quickstart.sh")
    assert code == 2
    assert "did not make it" in err
    assert (checkout.root / ".venv").exists()


def test_a_kill_while_installing_is_noticed(checkout):
    checkout.python("python3.11")
    with checkout.start("quickstart.sh", PIP_SECONDS="20") as process:
        wait_for(lambda: checkout.calls.exists() and "pip" in checkout.calls.read_text())
        os.killpg(process.pid, signal.SIGKILL)
    checkout.called()
    code, _, err = checkout.run("quickstart.sh")
    assert code == 0, err
    assert "left half-made" in err
    assert [line.split()[0] for line in checkout.called()][:2] == ["venv", "pip"]


def test_a_failed_install_is_told_and_tried_again(checkout):
    checkout.python("python3.11")
    code, _, err = checkout.run("quickstart.sh", PIP_STATUS="1")
    assert code == 1
    assert "pip could not install" in err
    assert checkout.run("quickstart.sh")[0] == 0


def test_two_processes_install_once(checkout):
    checkout.python("python3.11")
    with checkout.start("quickstart.sh", PIP_SECONDS="1") as first:
        wait_for(checkout.calls.exists)
        code, _, err = checkout.run("quickstart.sh")
        first.communicate(timeout=120)
    assert (first.returncode, code) == (0, 0)
    assert "waiting" in err
    assert sum(line.startswith("pip") for line in checkout.called()) == 1


def test_opencv_without_libgl_is_replaced_by_the_headless_build(checkout):
    checkout.python("python3.11")
    assert checkout.run("quickstart.sh", CV2_STATUS="1")[0] == 0
    assert any("opencv-python-headless==4." in line for line in checkout.called())


@pytest.mark.parametrize("script", ["train_fixarch.sh", "train_supernet.sh"])
def test_imagenet_recipes_name_every_unset_variable_and_missing_file(checkout, script):
    code, out, err = checkout.run(script)
    assert (code, out) == (2, "")
    assert "REC_TRAIN is unset" in err
    assert "REC_VAL is unset" in err

    train = checkout.tools / "train set.rec"
    train.touch()
    code, _, err = checkout.run(script, REC_TRAIN=str(train), REC_VAL="nowhere.rec")
    assert code == 2
    assert "REC_VAL=nowhere.rec is no file" in err
    assert "REC_TRAIN_IDX=" in err
    assert f"REC_TRAIN={train} is" not in err


def test_imagenet_recipes_call_the_trainer_and_let_arguments_win(checkout):
    variables = {"PYTHON": str(checkout.python("mine")), "GPUS": "4"}
    for name in ("TRAIN", "VAL"):
        path = checkout.tools / f"{name} set.rec"
        path.touch()
        path.with_suffix(".idx").touch()
        variables[f"REC_{name}"] = str(path)
    code, _, err = checkout.run("train_fixarch.sh", "--num-epochs", "1", **variables)
    assert code == 0, err
    trainer, *arguments = checkout.called()
    assert Path(trainer) == checkout.root / "train_imagenet.py"
    assert arguments[arguments.index("--rec-val-idx") + 1] == str(checkout.tools / "VAL set.idx")
    assert arguments[arguments.index("--batch-size") + 1] == "256"
    assert arguments[-2:] == ["--num-epochs", "1"]


def test_search_recipe(checkout):
    code, _, err = checkout.run("search_supernet.sh")
    assert code == 2
    assert "SUPERNET is unset" in err
    code, _, err = checkout.run("search_supernet.sh", "--budget", "9", SUPERNET=".", OUT="o", PYTHON=str(checkout.python("mine")))
    assert code == 0, err
    called = checkout.called()
    assert called[:3] == ["-m", "oneshot_nas", "search"]
    assert called[-2:] == ["--budget", "9"]


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited 60 s in vain"
        time.sleep(0.02)


def test_every_requirement_has_an_exact_version_that_fits():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    requirements = [Requirement(text) for text in requires("oneshot-nas") or ()]
    assert len(requirements) > 20
    for requirement in requirements:
        assert pins[requirement.name.lower()] in requirement.specifier, f"constraints.txt does not fit {requirement}"


@pytest.mark.parametrize("script", ["quickstart.sh", "train_fixarch.sh", "train_supernet.sh", "search_supernet.sh", "bnnas.sh"])
def test_scripts_explain_themselves(checkout, script):
    _, out, _ = checkout.run(script, "--help", PYTHON=str(checkout.python("mine")))
    assert f"sh scripts/{script}" in out


def test_an_installed_package_is_whole(tmp_path):
    """The compiled operators' source was once left out, and training from a wheel failed."""
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)], cwd=ROOT, check=True, timeout=60)

    def files(folder):
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}

    recipes = tmp_path / "oneshot_nas" / "recipes"
    assert {name for name in files(recipes) if name != "__init__.py"} == files(ROOT / "recipes")
    shutil.rmtree(recipes)
    assert files(tmp_path / "oneshot_nas") == files(ROOT / "oneshot_nas")


def test_threads_follow_the_usable_cores_and_leave_the_users_choice(monkeypatch):
    for name in oneshot_nas.threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(oneshot_nas.threads.OURS + name, raising=False)
    monkeypatch.delitem(sys.modules, "mxnet", raising=False)
    monkeypatch.setattr(oneshot_nas.threads, "usable_cores", lambda: 6)
    assert configure_threads(processes=4)["OMP_NUM_THREADS"] == {"value": "1", "set_by": "oneshot_nas"}
    assert configure_threads()["OMP_NUM_THREADS"] == {"value": "1", "set_by": "oneshot_nas"}
    assert configure_threads()["OMP_WAIT_POLICY"] == {"value": None, "set_by": None}
    assert configure_threads()["GOMP_SPINCOUNT"] == {"value": "20000", "set_by": "oneshot_nas"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert configure_threads()["OMP_NUM_THREADS"] == {"value": "3", "set_by": "user"}
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert configure_threads()["GOMP_SPINCOUNT"]["value"] is None
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setitem(sys.modules, "mxnet", sys)
    assert configure_threads()["OMP_NUM_THREADS"]["value"] is None


def test_copies_start_no_second_team_of_threads():
    """Two teams are more threads than two cores have; GNU OpenMP then puts every waiting thread to sleep at once, for good."""
    code = """
import os
from oneshot_nas.threads import configure_threads
configure_threads()
import mxnet as mx, numpy as np
images, weight = mx.nd.ones((8, 3, 100, 100)), mx.nd.ones((4, 3, 1, 1))
threads = []
for _ in range(2):
    mx.nd.Convolution(images, weight, kernel=(1, 1), num_filter=4, no_bias=True).wait_to_read()
    threads.append(len(os.listdir("/proc/self/task")))
    mx.nd.array(np.ones((1000, 300))).asnumpy()
    threads.append(len(os.listdir("/proc/self/task")))
print(*threads)
"""
    own = {name: value for name, value in os.environ.items() if "GOMP" not in name and "MXNET_CPU" not in name}
    done = subprocess.run([sys.executable, "-c", code], env={**own, "OMP_NUM_THREADS": "2"}, stdout=subprocess.PIPE, text=True)
    threads = done.stdout.split()
    assert len(threads) == 4 and len(set(threads)) == 1, done


@pytest.mark.parametrize(("files", "cores"), [
    ({"cpu.max": "max 100000"}, 8), ({"cpu.max": "150000 100000"}, 2), ({"cpu.max": "1000 100000"}, 1),
    ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 8),
    ({"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"}, 3),
])
def test_a_container_quota_limits_the_cores(monkeypatch, tmp_path, files, cores):
    for name, content in files.items():
        (tmp_path / name).write_text(content + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(oneshot_nas.threads, "cgroup_folders", lambda: iter([tmp_path]))
    assert usable_cores() == cores


@pytest.mark.parametrize(("error", "words"), [
    (OSError("libquadmath.so.0: cannot open shared object file"), "apt-get install -y libgomp1 libquadmath0"),
    (ModuleNotFoundError("No module named 'distutils'", name="distutils"), "Python 3.10 or 3.11"),
    (ModuleNotFoundError("No module named 'mxnet'", name="mxnet"), "scripts/quickstart.sh"),
    (AttributeError("module 'numpy' has no attribute 'bool'"), "numpy>=1.23,<1.24"),
])
def test_an_mxnet_that_cannot_be_imported_says_what_to_install(monkeypatch, error, words):
    def fail(name):
        raise error

    monkeypatch.setattr(oneshot_nas.threads, "import_module", fail)
    with pytest.raises(UserError, match="MXNet cannot be imported") as caught:
        import_mxnet()
    assert words in str(caught.value)
    assert words in remedy(error)


def run_doctor(*arguments):
    app = typer.Typer()
    app.command()(doctor_command.command)
    return CliRunner().invoke(app, arguments)


def test_doctor_reports_as_json_and_as_text():
    result = run_doctor("--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["works"]
    assert report["versions"]["mxnet"] == version("mxnet") == "1.9.1"
    assert "OPENMP" in report["mxnet"]["features"]
    assert report["threads"]["OMP_NUM_THREADS"]["value"] == os.environ["OMP_NUM_THREADS"]
    assert report["machine"]["cores"] == usable_cores()
    assert "int8 export" in [problem["what"] for problem in report["problems"]]
    text = run_doctor()
    assert text.exit_code == 0
    assert "Training works here." in text.stdout


def test_doctor_fails_when_training_cannot_work(monkeypatch):
    def fail():
        raise UserError("MXNet cannot be imported (libgomp.so.1): install libgomp1")

    monkeypatch.setattr("oneshot_nas.doctor.import_mxnet", fail)
    result = run_doctor()
    assert result.exit_code == 1
    assert "! training: MXNet cannot be imported (libgomp.so.1)\n      -> install libgomp1" in result.stdout


def test_doctor_names_what_is_missing_or_too_new():
    versions = dict.fromkeys(("gluoncv", "scikit-learn", "matplotlib", "optuna", "pydantic", "typer", "PyYAML", "portalocker",
                              "tensorboardX", "safetensors", "optuna-dashboard", "torch", "onnxruntime", "opencv-python"))
    versions.update({"python": "3.12.1", "numpy": "1.26.4", "onnx": "1.19.0", "mxnet": "1.9.0"})
    problems = [*core_problems(versions, {"error": None}), *extra_problems(versions)]
    told = " ".join(problem.why for problem in problems)
    for words in ("numpy 1.26.4", "onnx 1.19.0", "mxnet 1.9.0", "gluoncv is not", "optuna-dashboard is not", "torch is not"):
        assert words in told
    assert any(problem.fatal for problem in problems)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
@pytest.mark.parametrize(("settings", "kept"), [({}, True), ({"MALLOC_ARENA_MAX": "8"}, False), ({"GLIBC_TUNABLES": "x"}, False)])
def test_freed_memory_is_kept_unless_the_user_decides(settings, kept):
    code = ("import resource, numpy\nfrom oneshot_nas.memory import keep_freed_memory\nkept = keep_freed_memory()\n"
            "for _ in range(5):\n    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n    numpy.ones(2**23)\n"
            "print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean | settings, check=True)
    told, faults = done.stdout.split()
    assert told == str(kept)
    assert (int(faults) < 10) == kept  # 64 MiB are 16,384 pages, or 32 huge ones


def test_doctor_names_too_many_threads():
    def thread(value):
        return {"value": value, "set_by": "user"}

    threads = {"OMP_NUM_THREADS": thread("4"), "OMP_WAIT_POLICY": thread("passive")}
    machine = {"cores": 2, "memory_gib": 1.0, "disk_free_gib": 0.5}
    told = " ".join(problem.why for problem in machine_problems({"gpus": 0}, threads, machine))
    for words in ("on 2 usable cores", "passive", "1.0 GiB of memory", "0.5 GiB of disk", "no GPU"):
        assert words in told


@pytest.mark.parametrize(("command", "there"),
                         [(f"env {sys.executable}", True), ("/nowhere/c++", False), (" ", False), ('env "', False)])
def test_doctor_finds_the_compiler_that_builds_the_operators(monkeypatch, command, there):
    monkeypatch.setenv("CXX", command)
    threads = {name: {"value": None, "set_by": None} for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
    problems = machine_problems({"gpus": 1}, threads, {"cores": 2, "memory_gib": 99.0, "disk_free_gib": 99.0})
    assert any("no C++ compiler" in problem.why for problem in problems) is not there
    assert bool(compiler()) == there
