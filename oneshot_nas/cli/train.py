"""``oneshot-nas train``: a supernet, or with ``--arch`` a fixed network, from a recipe."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    recipe: Annotated[str, typer.Option(help="YAML recipe, such as recipes/digits_supernet.yaml", metavar="FILE.yaml")],
    out: Annotated[str, typer.Option(help="run folder; the same command again resumes in it", metavar="RUN")],
    set_: Annotated[list[str] | None, typer.Option(
        "--set", help="replace a value of the recipe; keys: oneshot_nas/config.py, sections.py", metavar="KEY=VALUE")] = None,
    arch: Annotated[str | None, typer.Option(help="train this architecture as a fixed network", metavar="ARCH.json")] = None,
    from_supernet: Annotated[str | None, typer.Option(help="start --arch with its share of this supernet's weights, recalibrated",
                                                      metavar="RUN")] = None,
    json_: Annotated[bool, typer.Option("--json", help="print the last metrics as one JSON line")] = False,
) -> None:
    """Train a supernet, or with --arch a fixed network; the same command again resumes after the last finished epoch.

    Example:  oneshot-nas train --recipe recipes/digits_supernet.yaml --set data=data/digits --out runs/supernet

    Fine-tuning:  oneshot-nas train --recipe recipes/cifar10_finetune.yaml --arch arch.json --from-supernet runs/supernet ...
    """
    import json
    import sys

    from oneshot_nas.arch import read_arch_file
    from oneshot_nas.config import read_recipe

    content = read_arch_file(arch).to_json() if arch is not None else None
    start = [f"start.supernet={from_supernet}"] if from_supernet is not None else []
    parsed = read_recipe(recipe, [*(set_ or ()), *start], content)

    from oneshot_nas.train.loop import train
    from oneshot_nas.train.report import next_command

    metrics = train(parsed, out)
    if json_:
        print(json.dumps(metrics))
    print(f"next: {next_command(parsed, out)}", file=sys.stderr)
