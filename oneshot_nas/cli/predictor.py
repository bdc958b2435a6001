"""`oneshot-nas predictor`: fits a predictor of accuracy to a finished search, for screening in further ones."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    run: Annotated[str, typer.Option(help="Run folder of a search; its candidates are what is fitted.", metavar="RUN2")],
    out: Annotated[str, typer.Option(help="The file to write: plain arrays, nothing is pickled.", metavar="FILE.npz")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the folds that are held out.")] = 0,
    storage: Annotated[str | None, typer.Option(help="Database URL, when RUN2 does not tell it.", metavar="URL")] = None,
    study: Annotated[str | None, typer.Option(help="Name of the history in the storage.", metavar="NAME")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON line.")] = False,
) -> None:
    """Fit a predictor of the search's objective, store it, and print its rank correlation on candidates held out from the fit.

    Example:  oneshot-nas predictor --run runs/search --out runs/search/predictor.npz
    """
    import json

    from oneshot_nas.errors import UserError
    from oneshot_nas.indicators.predictor import FOLDS, LEAST, fit, held_out_tau, save
    from oneshot_nas.search.record import open_run
    from oneshot_nas.search.task import Objective

    if not out.endswith(".npz"):
        raise UserError(f"--out must end in .npz, got {out}")
    history = open_run(run, storage, study)
    objective = Objective(**history.about["objective"])
    tau = held_out_tau(history.space, history.candidates, objective.fitness, seed)
    fitted = fit(history.space, history.candidates, objective.fitness)
    assert fitted is not None, f"{LEAST} candidates or more"
    trained = {"objective": history.about["objective"], "search": history.about["about"]}
    save(out, fitted, {"held_out_tau": tau, "folds": FOLDS, "seed": seed, **trained})
    count = fitted.about["candidates"]
    if json_:
        print(json.dumps({"file": out, "candidates": count, "held_out_tau": tau, "folds": FOLDS}))
        return
    print(f"{out}: {history.space.name}, {count} candidates, Kendall's tau {tau:.3f} on held-out ones (mean of {FOLDS} folds)")
