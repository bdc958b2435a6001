"""Search by proof: the best architectures of an additive score inside limits, and what another search missed.

The result has the form of any other search's, but there is no history: nothing was tried that could have been worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oneshot_nas.arch import Space
from oneshot_nas.costs.exact import Scored, best_within, front_downwards, rising
from oneshot_nas.costs.limits import Limits
from oneshot_nas.errors import UserError, WorkError
from oneshot_nas.files import as_json
from oneshot_nas.progress import track
from oneshot_nas.search.batch import parents_of
from oneshot_nas.search.history import History
from oneshot_nas.search.storage import differences
from oneshot_nas.search.task import limits_json


def exact_result(space: Space, scores: Mapping[str, np.ndarray], name: str, limits: Limits, top: int,
                 about: Mapping[str, Any], commands: Sequence[str]) -> dict[str, Any]:
    """The content of ``result.json``: the `top` best inside the limits and the front of score against FLOPs there.

    `scores` are the tables of the space's cost units, `name` is what the score is called.
    Raises: UserError for limits no architecture meets, with what is reachable.
    """
    def entry(index: int, found: Scored) -> dict[str, Any]:
        return {"index": index, "arch": found.arch.to_json(), "cost": vars(found.cost), "scores": {name: found.score},
                "fitness": found.score}

    best = [entry(*each) for each in enumerate(best_within(space, scores, limits, top))]
    proved: list[Scored] = []
    try:
        for found in track(front_downwards(space, scores, limits), "front", unit="architecture"):
            proved.append(found)
        complete = True
    except WorkError:  # in narrow windows a proof may take too much memory; the best is proved, and so is what came before
        complete = False
    front = [entry(*each) for each in enumerate(rising(proved))]
    return {
        "best": best[0], "top": best, "front": front, "front_of": [name, "flops"], "front_complete": complete, "noise": None,
        "candidates": len(best), "failed": 0, "seconds": 0.0,
        "ended": f"proved: no architecture inside the limits ({limits}) scores higher",
        "algorithm": "exact", "objective": name, "limits": limits_json(limits), "about": dict(about), "next": list(commands)}


def regret(space: Space, result: Mapping[str, Any], history: History, limits: Limits) -> dict[str, Any]:
    """What a search by the same indicator lost against the optimum of `space`.

    Returns: {"regret", "best", "index", "candidates", "where"}.
    Raises: UserError when the history is of another indicator or supernet, or holds nothing inside the limits.
    """
    name, about = result["objective"], dict(history.about.get("about", {}))
    known = {key: value for key, value in as_json(result["about"]).items() if key != "allowed"}
    about.pop("allowed", None)
    if about != known:
        raise UserError(f"the search in {history.where} was scored by something else ({differences(about, known)}); "
                        "compare searches by the same indicator on the same supernet")
    inside = [c for c in parents_of(space, history.candidates) if name in c.scores and limits.reject(c.cost) is None]
    if not inside or history.about["limits"]["rule"] != limits.rule:
        raise UserError(f"the search in {history.where} holds no candidate of the searched space inside the limits ({limits}, "
                        f"rule {limits.rule})")
    best = max(inside, key=lambda c: (c.scores[name], -c.index))
    lost = result["best"]["fitness"] - best.scores[name]  # the two add up in another order, so equal sums may differ a little
    lost = 0.0 if abs(lost) < 1e-9 * max(1.0, abs(best.scores[name])) else lost
    return {"regret": lost, "best": best.scores[name], "index": best.index,
            "candidates": len(history.candidates), "where": history.where}
