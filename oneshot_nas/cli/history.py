"""`oneshot-nas history`: every candidate of a search in order, as a table or as JSON lines."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    run: Annotated[str, typer.Argument(help="Run folder of a search.", metavar="RUN2")],
    storage: Annotated[str | None, typer.Option(help="Database URL, when RUN2 does not tell it.", metavar="URL")] = None,
    study: Annotated[str | None, typer.Option(help="Name of the history in the storage.", metavar="NAME")] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object per candidate.")] = False,
) -> None:
    """Print every candidate in order: index, architecture, cost, scores, parents, seconds.

    Works while the search runs, and never changes it.

    Example:  oneshot-nas history runs/search --json
    """
    import json

    from oneshot_nas.search.record import open_run

    candidates = open_run(run, storage, study).candidates
    if json_:
        for candidate in candidates:
            print(json.dumps(candidate.to_json()))
        return
    names = list(dict.fromkeys(name for candidate in candidates for name in candidate.scores))
    print("".join([f"{'index':>6}{'FLOPs':>13}{'params':>11}", *(f"{name:>10}" for name in names), f"{'seconds':>10}  parents"]))
    for candidate in candidates:
        scores = [f"{candidate.scores[name]:10.4f}" if name in candidate.scores else "-".rjust(10) for name in names]
        origin = " ".join(map(str, candidate.parents)) if candidate.ok else f"failed: {candidate.error}"
        costs = f"{candidate.cost.flops:13}{candidate.cost.params:11}"
        print(f"{candidate.index:6}{costs}{''.join(scores)}{candidate.seconds:10.2f}  {origin}".rstrip())
