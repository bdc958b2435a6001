"""The whole road on real images in a few minutes: data, supernet, search, retraining, export, pictures.

Every step is an ordinary ``oneshot-nas`` command, printed before it runs, so that each can be repeated by hand. A step that
is finished already is not done again: the same command resumes.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from oneshot_nas import shell
from oneshot_nas.interrupts import leave, quiet_interrupts
from oneshot_nas.threads import configure_threads, usable_cores

INTERRUPTED = 130
RUNS = ("supernet", "search", "retrain")  # run folders, all with pictures


def main(arguments: list[str] | None = None) -> int:
    """Run the quickstart and return the exit code of the first step that failed, 0 when all is done."""
    parser = shell.Parser(prog="scripts/quickstart.sh", description=__doc__.splitlines()[0],
                                     epilog="Example:  sh scripts/quickstart.sh runs/quickstart --budget 60")
    parser.add_argument("--out", default="runs/quickstart", help="folder for everything (default: %(default)s)")
    parser.add_argument("--budget", type=int, default=40, help="architectures the search evaluates (default: %(default)s)")
    parser.add_argument("--population", type=int, default=10, help="architectures of one generation (default: %(default)s)")
    parser.add_argument("--flops", default=":3M", help="FLOPs limit LO:HI of the search (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of data split, training and search (default: %(default)s)")
    given = parser.parse_args(arguments)
    configure_threads(usable_cores())  # one thread: two are no faster on such images, and stall beside other work
    out = Path(given.out)
    start = time.monotonic()
    for title, command in steps(out, given):
        print(f"\n== {title}\n$ {shell.command(*command)}", flush=True)
        code = call(command)
        if code:
            if code != INTERRUPTED:
                print(f"the step failed with exit code {code}; mend it and run the same command again, it resumes",
                      file=sys.stderr)
            return code
    print(f"\n== Done in {time.monotonic() - start:.0f} s")
    print(table(out))
    return 0


def call(command: list[str]) -> int:
    """Run one command of `oneshot-nas` in a process of its own and return its exit code.

    Ctrl-C reaches that process as well, which saves its state and ends: it is waited for.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # which the process inherits, unlike a function
        signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.call([sys.executable, "-m", "oneshot_nas", *command])
    finally:
        signal.signal(signal.SIGINT, before)


def steps(out: Path, given: Namespace) -> Iterator[tuple[str, list[str]]]:
    """Yield (title, command) of every step, in order; each is asked for when those before it are done."""
    data, supernet, search, retrain = (str(out / name) for name in ("data", *RUNS))
    seed = str(given.seed)
    if not (out / "data" / "dataset.json").exists():
        yield "Pack 1,797 real images of handwritten digits", ["data", "digits", data, "--seed", seed]
    yield ("Train a supernet: one set of weights for every architecture",
           ["train", "--recipe", shell.recipe("digits_supernet"), "--set", f"data={data}", "--set", f"seed={seed}",
            "--out", supernet])
    yield ("Search it by evolution under a FLOPs limit",
           ["search", "--supernet", supernet, "--out", search, "--algorithm", "evolution", "--budget", str(given.budget),
            "--population", str(given.population), "--flops", given.flops, "--seed", seed])
    _keep_other_winner(out)
    yield ("Train the winner from scratch on all training images",
           ["train", "--recipe", shell.recipe("digits_retrain"), "--arch", str(out / "search" / "arch.json"),
            "--set", f"data={data}", "--set", f"seed={seed}", "--out", retrain])
    yield ("Export it; each file is read back and compared",
           ["export", "--run", retrain, "--format", "symbol,onnx", "--out", str(out / "export")])
    for name in RUNS:
        yield f"Draw {name}", ["plot", str(out / name)]


def _keep_other_winner(out: Path) -> None:
    """Move the network of an earlier winner out of the way when a longer search has found a better one."""
    retrain, winner = out / "retrain", out / "search" / "arch.json"
    if (retrain / "arch.json").exists() and _read(retrain / "arch.json")["choices"] != _read(winner)["choices"]:
        kept = next(path for number in count(1) if not (path := out / f"retrain-{number}").exists())
        retrain.rename(kept)
        print(f"\nthe search has found another winner; the network trained before is kept in {kept}", flush=True)


def table(out: Path) -> str:
    """The closing table and the next commands, from the files that the steps wrote."""
    from oneshot_nas.arch import read_arch_file
    from oneshot_nas.costs.analytic import cost

    arch = read_arch_file(str(out / "search" / "arch.json"))
    found = cost(arch)
    search = _read(out / "search" / "result.json")
    trained = _read(out / "retrain" / "result.json")
    rows = [
        ("architecture", " ".join(map(str, arch.choices["block"]))),
        ("widths", " ".join(map(str, arch.choices["scale"]))),
        ("FLOPs", f"{found.flops:,} multiply-adds"),
        ("params", f"{found.params:,}"),
        ("supernet accuracy", f"{search['best']['scores']['top1']:.2%} on held-out training images, inherited weights"),
        ("retrained accuracy", f"{trained['last']['val_top1']:.2%} on the validation set"),
        ("files", ", ".join(sorted(str(path) for path in (out / "export").iterdir()))),
        ("pictures", ", ".join(str(path) for run in RUNS for path in sorted((out / run / "plots").glob("*.png")))),
    ]
    commands = [
        shell.command("evaluate", "--run", out / "retrain"),
        shell.command("history", out / "search", "--json"),
        shell.command("dashboard", out / "search"),
        shell.command("data", "folder", "MY_IMAGES", "data/mine") + "      # your own images: one folder per class",
    ]
    lines = [f"{name:20} {value}" for name, value in rows]
    return "\n".join([*lines, "", "next:", *(f"  {command}" for command in commands)])


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    quiet_interrupts()
    leave(main())
