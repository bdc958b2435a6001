"""The command line: exit codes and single lines for every way to fail, and the commands that need no MXNet."""

import errno
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from oneshot_nas import cost, get_space, list_models, list_spaces
from oneshot_nas.arch import read_arch
from oneshot_nas.cli.main import command_names, exit_code, run, summary
from oneshot_nas.config import SAVED
from oneshot_nas.errors import UserError, WorkError
from oneshot_nas.model_zoo import published

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = [0, 0, 3, 1, 1, 1, 0, 0, 2, 0, 2, 1, 1, 0, 2, 0, 2, 1, 3, 2]
SCALES = [6, 5, 3, 5, 2, 6, 3, 4, 2, 5, 7, 5, 4, 6, 7, 4, 4, 5, 4, 3]


@pytest.fixture
def call(capsys, monkeypatch):
    """Run a command line in this process; returns (exit code, stdout, stderr)."""

    def invoke(*arguments, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return invoke


def shell(*arguments, **settings):
    """Run a command line in a process of its own, from another directory."""
    return subprocess.run(
        [sys.executable, "-m", "oneshot_nas", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **settings,
    )


def test_spaces(call):
    code, out, err = call("spaces", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "") and [entry["name"] for entry in found] == list(list_spaces())
    spos = next(entry for entry in found if entry["space"] == "spos_shufflenet")
    assert spos["size"] == 40**20 and spos["choices"]["scale"]["positions"] == 20
    assert spos["choices"]["block"]["values"][0] == ["shuffle3", "shuffle5", "shuffle7", "xception"]
    assert spos["options"]["classes"] == {"default": 1000, "low": 2, "high": 100000}
    code, out, err = call("spaces")
    assert code == 0 and "spos_shufflenet: 1.1e+32 architectures" in out and "x20: 0.2, 0.4" in out


def test_published_indices_become_an_architecture(call):
    code, out, err = call(
        "arch",
        "spos_shufflenet",
        "--indices",
        json.dumps({"block": BLOCKS, "scale": SCALES}),
        "--option",
        "classifier_bias=FALSE",
    )
    assert (code, err) == (0, "") and read_arch(json.loads(out)) == published("oneshot") and len(out.splitlines()) == 1
    code, out, _ = call(
        "arch", "spos_shufflenet", "--indices", json.dumps({"block": BLOCKS}), "--option", "se=true", "--option", "classes=10"
    )
    assert json.loads(out)["choices"]["scale"] == [1.0] * 20 and json.loads(out)["options"]["se"] is True


def test_published_names_become_architectures(call):
    for name in list_models():
        assert read_arch(json.loads(call("arch", name)[1])) == published(name)
    assert json.loads(call("arch", "oneshot", "--option", "classes=10")[1])["options"]["classes"] == 10


def test_sample_prints_reproducible_json_lines_within_limits(call):
    arguments = (
        "sample",
        "spos_shufflenet",
        "-n",
        20,
        "--seed",
        3,
        "--flops",
        "290M:330M",
        "--params",
        ":4M",
        "--option",
        "se=true",
        "--rule",
        "mmrazor",
    )
    code, out, err = call(*arguments)
    archs = [read_arch(json.loads(line)) for line in out.splitlines()]
    assert (code, err, len(set(archs))) == (0, "", 20)
    assert all(
        290e6 <= cost(arch, "mmrazor").flops <= 330e6 and cost(arch).params <= 4e6 and arch.options["se"] for arch in archs
    )
    assert call(*arguments)[1] == out
    assert (
        call("sample", "spos_shufflenet", "-n", 5, "--seed", 3)[1].splitlines()
        == call("sample", "spos_shufflenet", "-n", 9, "--seed", 3)[1].splitlines()[:5]
    )
    assert call("sample", "spos_shufflenet", "--seed", 4)[1] != call("sample", "spos_shufflenet", "--seed", 5)[1]


def test_cost_of_a_stream(call):
    archs = [published("oneshot"), published("oneshot_plus", classes=10)]
    lines = "\n".join(json.dumps(arch.to_json()) for arch in archs)
    code, out, err = call("cost", "-", "--json", "--rule", "oneshot-mxnet", stdin=lines + "\n")
    assert (code, err) == (0, "")
    assert [json.loads(line) for line in out.splitlines()] == [
        {"flops": cost(arch, "oneshot-mxnet").flops, "params": cost(arch).params, "rule": "oneshot-mxnet"} for arch in archs
    ]


def test_cost_of_a_file(call, tmp_path):
    path = tmp_path / "arch.json"
    path.write_text(json.dumps(published("oneshot", classifier_bias=True).to_json(), indent=2))
    assert json.loads(call("cost", path, "--json")[1]) == {"flops": 327857920, "params": 3433579, "rule": "macs"}
    assert call("cost", path)[1] == "327.9M FLOPs (327,857,920), 3.434M params (3,433,579), rule macs\n"
    detailed = json.loads(call("cost", path, "--json", "--per-layer", "--rule", "oneshot-mxnet-full")[1])
    assert detailed["flops"] == 344984616 == sum(row["flops"] for row in detailed["layers"])
    assert detailed["params"] == sum(row["params"] for row in detailed["layers"])
    assert detailed["layers"][1] == {
        "name": "stage1.block1",
        "op": "shuffle3",
        "in_shape": [16, 112, 112],
        "out_shape": [64, 56, 56],
        "flops": detailed["layers"][1]["flops"],
        "params": 3948,
    }
    readable = call("cost", path, "--per-layer")[1].splitlines()
    assert len(readable) == 23 and readable[0].split()[:2] == ["stem", "chain"]


GOOD = json.dumps(published("oneshot").to_json())


@pytest.mark.parametrize(
    "arguments,stdin,message",
    [
        (["spaces", "extra"], "", "unexpected extra argument(s) (extra); see: oneshot-nas spaces --help"),
        (["sampel"], "", "no command 'sampel'; there is sample"),
        (["cost"], "", "Missing argument 'FILE|-'; see: oneshot-nas cost --help"),
        (["cost", "-", "--jsn"], "", "No such option: --jsn"),
        (["cost", "/nonexistent/a.json"], "", "cannot read architectures from /nonexistent/a.json: No such file or directory"),
        (["cost", str(ROOT)], "", "Is a directory"),
        (["cost", "-"], "", "standard input holds no architecture"),
        (["cost", "-"], f"{GOOD}\n{{", "standard input line 2 is not valid JSON"),
        (
            ["cost", "-"],
            f"{GOOD}\n{GOOD.replace('shuffle3', 'shuffle4', 1)}",
            "standard input line 2: choice 'block'[0] = 'shuffle4' is not one of",
        ),
        (["cost", "-"], "[" * 100_000, "standard input line 1 is not valid JSON"),
        (["cost", "-"], "[]", "standard input line 1: an architecture is a JSON object, got list"),
        (["cost", "-", "--rule", "flops"], GOOD, "unknown cost rule 'flops'; the rules are ('macs', "),
        (["arch", "spos_shufflenet"], "", "space 'spos_shufflenet' needs --indices"),
        (["arch", "resnet"], "", "'resnet' is neither a space ("),
        (["arch", "oneshot", "--indices", "{}"], "", "'oneshot' is a published architecture, it takes no --indices"),
        (["arch", "spos_shufflenet", "--indices", "{"], "", "--indices '{' is not valid JSON"),
        (["arch", "spos_shufflenet", "--indices", '{"block": [9]}'], "", "needs a list of 20 indices"),
        (["arch", "oneshot", "--option", "classes"], "", "option 'classes' is not key=value, such as classes=10"),
        (["arch", "oneshot", "--option", "name=1"], "", "unknown option ('name') of space 'spos_shufflenet'"),
        (
            ["arch", "oneshot", "--option", "classes=ten"],
            "",
            "option 'classes' = 'ten' of space 'spos_shufflenet' is not an integer from 2 to 100000",
        ),
        (["sample", "none"], "", "unknown space 'none'; the spaces are"),
        (["sample", "spos_shufflenet", "-n", "0"], "", "Invalid value for '-n' / '--count'"),
        (["sample", "spos_shufflenet", "-n", "x"], "", "Invalid value for '-n' / '--count'"),
        (["sample", "spos_shufflenet", "--seed", "-1"], "", "Invalid value for '--seed'"),
        (
            ["sample", "spos_shufflenet", "--flops", "1M:2M"],
            "",
            "no architecture of 'spos_shufflenet' has FLOPs in 1M:2M; reachable is 94.96M:880.3M, exactly",
        ),
        (["sample", "spos_shufflenet", "--flops", "2M:1M"], "", "FLOPs limit '2M:1M' is empty"),
        (["sample", "spos_shufflenet", "--params", "many"], "", "params limit 'many' is not LO:HI"),
        (["sample", "spos_shufflenet", "--flops", ""], "", "FLOPs limit '' is empty"),
        (["sample", "spos_shufflenet", "--rule", "x"], "", "unknown cost rule 'x'"),
        (["convert", "w.npz", "--out", "o.params"], "", "give either --from FORMAT"),
        (
            ["convert", "w.npz", "--from", "detnas", "--space", "attentive_mobilenet", "--out", "o.params"],
            "",
            "cannot be converted (yet)",
        ),
        (
            ["convert", "w.npz", "--from", "megvii-spos", "--space", "spos_shufflenet", "--out", "o.params"],
            "",
            "give its architecture with --arch FILE",
        ),
        (
            ["convert", "w.npz", "--from", "megvii-spos", "--arch", "none.json", "--out", "o.params"],
            "",
            "cannot read architecture none.json",
        ),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(call, arguments, stdin, message):
    code, _, err = call(*arguments, stdin=stdin)
    assert code == 2 and message in err and err.startswith("error: ") and len(err.splitlines()) == 1
    assert len(err) < 1500


def test_good_lines_before_a_broken_one_are_printed(call):
    code, out, err = call("cost", "-", "--json", stdin=f"{GOOD}\nnull\n{GOOD}\n")
    assert code == 2 and len(out.splitlines()) == 1 and "line 2" in err


def raising(error):
    def work():
        raise error

    return work


class MXNetError(Exception):
    """Of the name and form of MXNet's."""


@pytest.mark.parametrize(
    "error,code,line",
    [
        (UserError("given, allowed,\nto do"), 2, "error: given, allowed, to do"),
        (WorkError("disk gone"), 1, "error: disk gone"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt(SAVED), 130, "interrupted; state saved, the same command resumes"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x"),
            1,
            "error: the disk is full (/data/x); free some space, what was saved before is kept",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "error: the disk is full (that of standard output, or of the files of a run); free some space, what was saved before "
            "is kept",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "x"),
            1,
            "error: PermissionError: [Errno 13] Permission denied: 'x'; ONESHOT_NAS_TRACEBACK=1 shows where it happened",
        ),
        (
            MXNetError(
                'Traceback (most recent call last):\n  File "../src/x.cc", line 3\n'
                "MXNetError: Check failed: a == b: shapes differ\n  [bt] 1"
            ),
            1,
            "error: MXNetError: Check failed: a == b: shapes differ; ONESHOT_NAS_TRACEBACK=1 shows where it happened",
        ),
        (ValueError("first\nsecond"), 1, "error: ValueError: first; ONESHOT_NAS_TRACEBACK=1 shows where it happened"),
        (MemoryError(), 1, "error: MemoryError: no message; ONESHOT_NAS_TRACEBACK=1 shows where it happened"),
        (RecursionError("x" * 10_000), 1, f"error: RecursionError: {'x' * 500}; ONESHOT_NAS_TRACEBACK=1 shows where it happened"),
        (typer.Exit(0), 0, None),
        (typer.Exit(2), 2, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_failures_map_to_exit_codes_and_one_line(capsys, monkeypatch, error, code, line):
    monkeypatch.delenv("ONESHOT_NAS_TRACEBACK", raising=False)
    assert exit_code(raising(error)) == code
    assert capsys.readouterr().err == ("" if line is None else line + "\n")
    monkeypatch.setenv("ONESHOT_NAS_TRACEBACK", "1")
    exit_code(raising(error))
    shown = "Traceback (most recent call last)" in capsys.readouterr().err
    assert shown == (isinstance(error, Exception) and not isinstance(error, typer.Exit))


def test_help_lists_every_command_and_shows_examples(call):
    code, out, _ = call("--help")
    assert code == 0 and "Example: oneshot-nas" in out
    assert {"spaces", "arch", "sample", "cost", "convert"} <= set(command_names()) and "main" not in command_names()
    for name in command_names():
        assert f"  {name} " in out and summary(name)
        module = importlib.import_module(f"oneshot_nas.cli.{name}")
        below = typer.main.get_group(module.app).commands if hasattr(module, "app") else ()
        for line in ([name], *([name, inner] for inner in below)):
            code, text, err = call(*line, "--help")
            assert code == 0 and err == "" and "xample" in text, f"{' '.join(line)} --help shows no example"


def test_no_command_shows_the_help(call):
    code, out, err = call()
    assert code == 2 and "Commands:" in out and err == "error: no command given; see: oneshot-nas --help\n"


def test_version(call):
    from oneshot_nas import __version__

    assert call("--version") == (0, f"oneshot-nas {__version__}\n", "")


def test_the_quick_commands_never_load_mxnet(tmp_path):
    (tmp_path / "a.json").write_text(GOOD)
    code = """if True:
        import importlib, sys
        from oneshot_nas.cli.main import run
        for line in ("--help", "--version", "spaces", "sample spos_shufflenet", "arch oneshot", "cost a.json"):
            assert run(line.split()) == 0, line
        importlib.import_module("oneshot_nas.cli.history")
        sys.exit("mxnet" in sys.modules)"""
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
        ).returncode
        == 0
    )


def test_as_a_program(tmp_path):
    """The exit code reaches the shell, nothing else is on stdout, and the package is found from any directory."""
    done = shell("cost", "-", "--json", input=GOOD, cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)["flops"], done.stderr) == (0, 327857920, "")
    done = shell("cost", "-", "--json", input="{}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("line", "code", "words"), [
    ("cost - --json <&-", 2, "error: standard input is closed, so no architectures can be read from it\n"), ("spaces >&-", 0, ""),
    ("cost oneshot_nas/zoo/oneshot.json --json >/dev/null 2>&-", 0, ""),
])
def test_closed_streams(line, code, words):
    done = subprocess.run(f"{sys.executable} -m oneshot_nas {line}", shell=True, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", words)


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    done = subprocess.run(
        f"{sys.executable} -m oneshot_nas sample spos_shufflenet -n 3000 | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "") and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(("lines", "code"), [("out", 0), ("err", 1)])
def test_work_whose_progress_nobody_reads_any_more_has_not_succeeded(lines, code):
    program = (f"import sys\nfrom oneshot_nas.cli.main import exit_code\n"
               f"def work():\n    while True:\n        print('a line', file=sys.std{lines}, flush=True)\n"
               "sys.exit(exit_code(work))")
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **{f"std{lines}": subprocess.PIPE})
    pipe = getattr(process, f"std{lines}")
    assert pipe.readline() == b"a line\n"
    pipe.close()
    assert process.wait(timeout=60) == code


def test_control_c_while_working(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "oneshot_nas", "sample", "spos_shufflenet", "-n", "100000000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "interrupted\n"


def test_an_architecture_file_moves_to_other_options(call, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(published("oneshot").to_json(), indent=1))
    code, out, err = call("arch", tmp_path / "a.json", "--option", "classes=3", "--option", "input_size=96")
    assert (code, err) == (0, "") and json.loads(out) == published("oneshot", classes=3, input_size=96).to_json()
    assert call("arch", "-", "--option", "classes=3", stdin=json.dumps(published("oneshot").to_json()))[1] == json.dumps(
        published("oneshot", classes=3).to_json()) + "\n"
    assert "unknown option ('class')" in call("arch", tmp_path / "a.json", "--option", "class=3")[2]


def test_a_file_of_many_architectures_gives_a_line_each(call, tmp_path):
    lines = call("sample", "spos_shufflenet", "-n", 3, "--seed", 1)[1]
    (tmp_path / "many.jsonl").write_text(lines)
    code, out, _ = call("arch", tmp_path / "many.jsonl", "--option", "classes=3")
    moved = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [arch["options"]["classes"] for arch in moved] == [3, 3, 3]
    assert [arch["choices"] for arch in moved] == [json.loads(line)["choices"] for line in lines.splitlines()]
    assert len(call("arch", "-", "--as-indices", stdin=lines)[1].splitlines()) == 3


def test_list_options_are_shown_as_lists(call):
    assert "list of growing numbers with commas, each 8 to 1024 (default the space's own)" in call("spaces")[1]
    found = {entry["space"]: entry["options"] for entry in map(json.loads, call("spaces", "--json")[1].splitlines())}
    assert found["attentive_mobilenet"]["resolutions"] == {"default": [], "low": 8, "high": 1024, "many": True}
    assert "'resolutions' = [224, 192] of" in call("arch", "attentive_a0", "--option", "resolutions=224,192")[2]


class Freed:
    """As MXNet's arrays, something with a finaliser; Ctrl-C arrives in this one."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)  # Python looks for signals here at the latest


def test_control_c_in_a_finaliser_is_not_lost(capfd):
    def work():
        Freed()
        time.sleep(20)

    start = time.monotonic()
    assert exit_code(work) == 130 and time.monotonic() - start < 10
    assert capfd.readouterr().err == "interrupted\n"


def test_convert_there_and_back(call, tmp_path):
    import numpy as np

    from oneshot_nas.export.megvii import megvii_keys

    arch = published("oneshot", classes=10)
    (tmp_path / "arch.json").write_text(json.dumps(arch.to_json()))
    rng = np.random.default_rng(0)
    state = {key: rng.normal(size=shape).astype(np.float32) for key, (_, shape) in megvii_keys(arch).items()}
    np.savez(tmp_path / "in.npz", **state)
    common = ("--arch", tmp_path / "arch.json", "--json")
    code, out, err = call("convert", tmp_path / "in.npz", "--from", "megvii-spos", "--out", tmp_path / "net.params", *common)
    assert (code, err) == (0, "") and json.loads(out)["arrays"] == len(state) and "BGR" in json.loads(out)["note"]
    code, out, err = call(
        "convert", tmp_path / "net.params", "--to", "megvii-spos", "--out", tmp_path / "back.safetensors", *common
    )
    assert (code, err) == (0, "")
    from safetensors.numpy import load_file

    back = load_file(tmp_path / "back.safetensors")
    assert all(np.array_equal(back[key], array) for key, array in state.items())
    del state["classifier.0.weight"]
    np.savez(tmp_path / "in.npz", **state)
    code, out, err = call("convert", tmp_path / "in.npz", "--from", "megvii-spos", "--out", tmp_path / "other.params", *common)
    assert code == 2 and "1 missing: classifier.0.weight (10, 1024)" in err and not (tmp_path / "other.params").exists()


def test_the_network_entry_point(tmp_path):
    """From another directory and without installation; its symbol has the published counts."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "oneshot_nas/oneshot_nas_network.py"), "--out", "symbols"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "327,909,096 FLOPs, 3,433,579 parameters" in done.stdout
        and "supernet: 15,939,672 parameters, 1.1e+32 architectures" in done.stdout
    )
    command = done.stdout.splitlines()[-1].removeprefix("next: ")
    counted = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert counted.returncode == 0 and "Total FLOPs: 327909096 " in counted.stdout, counted.stderr
    from oneshot_nas.export.symbol_flops import count_symbol

    path = tmp_path / "symbols" / "ShuffleNas_fixArch-symbol.json"
    assert (tmp_path / "symbols" / "ShuffleNas_fixArch-0000.params").exists()
    for rule, flops in (("oneshot-mxnet", 327_909_096), ("oneshot-mxnet-full", 344_984_616)):
        found = count_symbol(str(path), (1, 3, 224, 224), rule)
        assert (found.flops, found.params) == (flops, 3_433_579)
    from oneshot_nas.oneshot_nas_network import main

    with pytest.raises(SystemExit) as stop:
        main(["--wrong"])
    assert stop.value.code == 2
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file")]) == 2


def test_the_space_of_every_sample_is_whole(call):
    for name in list_spaces():
        line = call("sample", name, "--seed", 1)[1]
        assert get_space(name).check(read_arch(json.loads(line)))


LOADING = """
import signal, sys
class Strike:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Strike())
"""
LEAVING = """
import atexit, signal
atexit.register(signal.raise_signal, signal.SIGINT)
"""


@pytest.mark.parametrize("script", ["train_imagenet.py", "calculate_flops.py", "oneshot_nas/oneshot_nas_network.py"])
def test_control_c_while_a_script_loads_shows_no_traceback(script):
    """It arrives at the first of three imports that a script needs: typer, argparse or the costs."""
    strike = LOADING.replace('name == "typer"', 'name in ("typer", "argparse", "oneshot_nas.costs")')
    program = f"{strike}\nimport runpy; sys.argv = ['{script}', '--help']\nrunpy.run_path('{script}', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("moment, code, told", [(LOADING, 130, "interrupted\n"), (LEAVING, 0, "")], ids=["loading", "leaving"])
def test_control_c_around_the_work_shows_no_traceback(moment, code, told):
    program = f"{moment}\nimport sys; sys.argv = ['oneshot-nas', '--version']\nfrom oneshot_nas.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, told)


def test_one_architecture_comes_from_standard_input_where_one_is_wanted(call, tmp_path):
    lines = call("sample", "spos_shufflenet", "-n", 2, "--seed", 1)[1]
    words = ["convert", "--from", "megvii-spos", tmp_path / "none.npz", "--out", tmp_path / "o.params", "--arch"]
    assert "none.npz" in call(*words, "-", stdin=lines.splitlines()[0])[2]  # the next thing that is read
    assert "standard input holds several architectures; one is wanted here" in call(*words, "-", stdin=lines)[2]
    assert "standard input holds no architecture" in call(*words, "-")[2]


def test_an_empty_name_of_an_architecture_is_no_supernet(call, tmp_path):
    (tmp_path / "r.yaml").write_text("space: spos_shufflenet\ndata: nowhere\n")
    for flag, message in (("--arch", "cannot read architecture"), ("--from-supernet", "start.supernet")):
        code, _, err = call("train", "--recipe", tmp_path / "r.yaml", flag, "", "--out", tmp_path / "run")
        assert code == 2 and message in err and len(err.splitlines()) == 1


def test_lists_may_have_brackets(call):
    words = ["sample", "attentive_mobilenet", "-n", 1, "--option"]
    found = call(*words, "resolutions=[192, 224]")
    assert found == call(*words, "resolutions=192,224") and found[0] == 0


def test_words_of_an_error_are_shortened(call):
    text = json.dumps({"space": "spos_shufflenet", "options": {"x" * 100_000: 1}, "choices": {}})
    code, _, err = call("cost", "-", stdin=text)
    assert code == 2 and "unknown option" in err and len(err) < 1000
