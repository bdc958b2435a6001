"""FLOPs and parameters of an MXNet symbol file, operator by operator, as exact integers for one image.

Example: python calculate_flops.py -norelubn -s symbols/ShuffleNas_fixArch-symbol.json -ds 1,3,224,224
"""

from __future__ import annotations

if __name__ == "__main__":  # before all that takes time to load
    from oneshot_nas.interrupts import leave, quiet_interrupts

    quiet_interrupts()

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from oneshot_nas import shell
from oneshot_nas.costs.analytic import RULES
from oneshot_nas.errors import UserError
from oneshot_nas.shell import Parser

if TYPE_CHECKING:
    from oneshot_nas.export.symbol_flops import SymbolCost

DEFAULT_SYMBOL = "./symbols/ShuffleNas_fixArch-symbol.json"
USUAL = {"stride": ("(1,1)",), "dilate": ("(1,1)",), "pad": ("(0,0)",), "num_group": ("1",), "global_pool": ("False",),
         "fix_gamma": ("False",)}
HEADINGS = ("layer", "operator", "input", "output", "attributes", "FLOPs", "params")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="calculate_flops.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-s", "--symbol", default=DEFAULT_SYMBOL, help="symbol file (default: %(default)s)")
    parser.add_argument("-ds", "--data-shape", default="1,3,224,224", metavar="N,C,H,W",
                        help="input shape, the input's name may come first: data,1,3,224,224 (default: %(default)s); "
                             "totals are for one image, whatever N is")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-norelubn", action="store_true", help="leave out BatchNorm and ReLU: rule oneshot-mxnet; "
                                                              "without it the rule is oneshot-mxnet-full")
    group.add_argument("--rule", choices=tuple(RULES), help="any other counting rule")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    return parser


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Return the input's name and shape of ``[NAME,]N,C,H,W``. Raises: UserError."""
    words = [word.strip() for word in text.split(",")]
    name = words.pop(0) if len(words) == 5 else "data"
    if not name or len(words) != 4 or not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        raise UserError(f"input shape '{text}' is not batch,channels,height,width; give for example -ds 1,3,224,224")
    return name, tuple(map(int, words))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) if index >= 5 else cell.ljust(width)
                               for index, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows)


def size(shape: Sequence[int]) -> str:
    """A shape as 1x3x224x224."""
    return "x".join(map(str, shape))


def details(attributes: dict[str, str]) -> str:
    """The attributes that are not the usual ones."""
    plain = {key: value.replace(" ", "") for key, value in attributes.items()}
    return " ".join(f"{key}={value}" for key, value in plain.items() if value not in USUAL.get(key, ()))


def report(cost: SymbolCost) -> str:
    """The readable report: operators that cost something or are unknown, the others by kind, then the totals."""
    from oneshot_nas.export.symbol_flops import IGNORED

    shown = [row for row in cost.rows if row.flops or row.params or row.state == "unknown"]
    free = Counter(row.operator for row in cost.rows if row not in shown and row.state == "counted")
    ignored = Counter(row.operator for row in cost.rows if row.state == "ignored")
    cells = ([row.name, row.operator, size(row.input_shape), size(row.output_shape), details(row.attributes),
              "unknown" if row.state == "unknown" else str(row.flops), str(row.params)] for row in shown)
    lines = [table([HEADINGS, *cells]), ""]
    lines += [f"nothing to count under this rule: {operator} ({count})" for operator, count in free.items()]
    lines += [f"ignored on purpose: {operator} ({count}), {IGNORED[operator]}" for operator, count in ignored.items()]
    lines += ["", f"Rule: {cost.rule}; input {size(cost.input_shape)}, one image",
              f"Total FLOPs: {cost.flops} ({cost.flops / 1e6:.3f} M)", f"Total params: {cost.params} ({cost.params / 1e6:.3f} M)"]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the costs of a symbol file. Returns the exit code: 0, 2 for bad input, told in one line, or 130 when interrupted."""
    from oneshot_nas.cli.main import exit_code

    args = parser().parse_args(arguments)
    return exit_code(lambda: show(args))


def show(args: argparse.Namespace) -> None:
    """Print what the flags ask for. Raises: UserError."""
    data_name, shape = parse_shape(args.data_shape)
    if args.symbol == DEFAULT_SYMBOL and not Path(args.symbol).exists():
        raise UserError(f"no symbol file at {args.symbol}; make it with python "
                        f"{shell.near(shell.PACKAGE / 'oneshot_nas_network.py')}, "
                        "or give another one with -s FILE")
    from oneshot_nas.export.symbol_flops import UnknownOperator, count_symbol, describe_unknown

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownOperator)
        cost = count_symbol(args.symbol, shape, args.rule or ("oneshot-mxnet" if args.norelubn else "oneshot-mxnet-full"),
                            data_name)
    for line in describe_unknown(cost):
        print(f"warning: {line}", file=sys.stderr)
    if args.json:
        print(json.dumps({"flops": cost.flops, "params": cost.params, "rule": cost.rule, "input_shape": cost.input_shape,
                          "unknown": sorted({row.operator for row in cost.unknown}), "layers": [*map(asdict, cost.rows)]}))
    else:
        print(report(cost))


if __name__ == "__main__":
    leave(main())
