"""`oneshot-nas table`: the FLOPs look-up table of BN-NAS and AngleNAS as a file, written or checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from oneshot_nas.arch import get_space, parse_options
from oneshot_nas.costs.lut import PICKLES, RULE, SPACE, differences, read_table, write_table
from oneshot_nas.errors import UserError


def command(
    space: Annotated[str, typer.Argument(help=f"The search space; only {SPACE} has such a table.", metavar="SPACE")] = SPACE,
    out: Annotated[Path | None, typer.Option(help="Write the table to this JSON file.")] = None,
    check: Annotated[Path | None, typer.Option(help="Compare every entry of this file with the network's own counts.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A space option; may be repeated.")] = None,
    rule: Annotated[str, typer.Option(help="By which FLOPs are counted.")] = RULE,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write the table {operator: {(inputs, outputs, height, width, stride): FLOPs}} as JSON, or check a file of this kind.

    The predecessors pickle it; a pickle can run code, so JSON is written and pickles are refused. A file that is checked
    says itself which space, options and rule it is for.

    Example:  oneshot-nas table proxyless_gpu --out op_flops_dict_gpu.json

    Example:  oneshot-nas table --check op_flops_dict_gpu.json
    """
    if (out is None) == (check is None):
        raise UserError("give either --out FILE to write a table or --check FILE to check one")
    if check is not None and (option or rule != RULE or space != SPACE):
        raise UserError(f"--check takes space, options and rule from {check} itself; leave SPACE, --option and --rule out")
    if out is not None:
        if out.suffix in PICKLES:
            raise UserError(f"--out {out} is named like a pickle, the table is JSON; name it {out.with_suffix('.json')}")
        write_table(out, get_space(space, **parse_options(space, option or [])), rule)
    path = out or check
    assert path is not None
    known, rule, table = read_table(path)
    wrong = differences(known, rule, table)
    if wrong:
        raise UserError(f"{path} is no table of '{known.name}' with {dict(known.options)}: {len(wrong)} entries differ: "
                        f"{'; '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}")
    entries = sum(map(len, table.values()))
    typer.echo(json.dumps({"file": str(path), "entries": entries, "rule": rule}) if as_json
               else f"{path}: {entries} entries, rule {rule}, each as the network of '{known.name}' counts")
