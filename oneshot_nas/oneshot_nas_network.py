"""Builds the fixed network of the paper and the supernet, and exports the fixed network's symbol and parameters.

Example: python oneshot_nas/oneshot_nas_network.py --out ./symbols
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # run as a script: import the package beside it, not its modules as top-level ones
        sys.path[0] = str(Path(__file__).resolve().parents[1])
    from oneshot_nas.interrupts import leave, quiet_interrupts

    quiet_interrupts()  # before all that takes time to load

import argparse
import shlex
from collections.abc import Sequence

from oneshot_nas.cli.main import exit_code
from oneshot_nas.costs.analytic import plan_cost
from oneshot_nas.costs.limits import human
from oneshot_nas.costs.table import cost_table, reachable
from oneshot_nas.shell import PACKAGE, Parser, near

NAME = "ShuffleNas_fixArch"
INPUT_SHAPE = (1, 3, 224, 224)


def build(out: Path) -> None:
    """Export the fixed network (the paper's choices, classifier with bias) to `out` and tell about it and the supernet."""
    from math import prod

    import mxnet as mx

    from oneshot_nas.arch import get_space
    from oneshot_nas.export.symbol import export_symbol
    from oneshot_nas.model_zoo import get_model
    from oneshot_nas.nets.supernet import Supernet

    net = get_model("oneshot", classifier_bias=True)
    net.initialize(ctx=mx.cpu())
    space = get_space(net.arch.space, **net.arch.options)
    found = plan_cost(space.plan(net.arch), "oneshot-mxnet")
    print(f"fixed network: {found.flops:,} FLOPs, {found.params:,} parameters (rule {found.rule})")
    trainable = [p for p in Supernet(space).collect_params().values() if p.grad_req != "null"]
    least, most = reachable(cost_table(space, found.rule))[0]
    print(f"supernet: {sum(prod(p.shape) for p in trainable):,} parameters, {space.size:.3g} architectures "
          f"of space '{space.name}', {human(least)} to {human(most)} FLOPs")
    files = export_symbol(net, out, NAME, INPUT_SHAPE, {"arch": net.arch.to_json()})
    print(f"wrote {files.symbol}\nwrote {files.params} (random weights)")
    script = near(PACKAGE.parent / "calculate_flops.py")
    print(f"next: {shlex.join([near(Path(sys.executable)), script, '-norelubn', '-s', str(files.symbol)])}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Export to the folder that the command line names. Returns the exit code, as `oneshot-nas`."""
    parser = Parser(prog="oneshot_nas_network.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("./symbols"), help="folder for the files (default: ./symbols)")
    args = parser.parse_args(arguments)
    return exit_code(lambda: build(args.out))


if __name__ == "__main__":
    leave(main())
