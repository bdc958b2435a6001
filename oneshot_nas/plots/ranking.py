"""How well an indicator ranks architectures: its scores against stand-alone accuracies, with Kendall's tau."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from scipy.stats import kendalltau

from oneshot_nas.arch import read_arch
from oneshot_nas.errors import UserError
from oneshot_nas.files import parse_json, read_text
from oneshot_nas.plots.style import COLOURS, INK, styled


@styled
def ranking(indicator: Sequence[float], standalone: Sequence[float], indicator_label: str = "indicator",
            standalone_label: str = "stand-alone accuracy", title: str = "") -> Figure:
    """A point per architecture; the title tells Kendall's tau-b and the number of points.

    Raises: UserError for lists of different lengths, fewer than two architectures or values that are no numbers.
    """
    if len(indicator) != len(standalone):
        raise UserError(f"a ranking compares two scores of the same architectures, got {len(indicator)} and {len(standalone)}")
    if len(indicator) < 2:
        raise UserError(f"a ranking needs at least two architectures, got {len(indicator)}")
    if not all(map(math.isfinite, [*indicator, *standalone])):
        raise UserError("a ranking needs finite numbers; leave out architectures that failed")
    tau = kendalltau(indicator, standalone).statistic
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.scatter(indicator, standalone, s=34, color=COLOURS[0], alpha=0.85, edgecolor=INK, linewidth=0.5, zorder=3)
    axes.set_xlabel(indicator_label)
    axes.set_ylabel(standalone_label)
    measured = "undefined (all equal)" if math.isnan(tau) else f"{tau:.3f}"
    figure.suptitle(f"{title + ': ' if title else ''}Kendall's τ = {measured}, n = {len(indicator)}")
    return figure


def read_scores(path: str, score: str = "top1") -> dict[str, float]:
    """Scores by architecture of a JSON Lines file, as ``history --json`` prints; without architectures, by line number.

    A line is a number, or an object with the score itself or within ``scores``; one with an ``error`` is left out.
    Raises: UserError that names the line.
    """
    found: dict[str, float] = {}
    for number, line in enumerate(read_text(path, "scores").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        content = parse_json(line, where)
        if isinstance(content, dict) and content.get("error"):
            continue
        value = {**content, **(content.get("scores") or {})}.get(score) if isinstance(content, dict) else content
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{where} has no number '{score}'; a line is a number, or an object such as "
                            f'{{"arch": ..., "{score}": 0.7}}')
        arch = content.get("arch") if isinstance(content, dict) else None
        found[f"line {number}" if arch is None else read_arch(arch, where).key] = float(value)
    if not found:
        raise UserError(f"{path} holds no scores; write one JSON object with '{score}' per line")
    return found


def paired(first: Mapping[str, float], second: Mapping[str, float]) -> tuple[list[float], list[float]]:
    """Both scores of every architecture that has both; lists without architectures must be of one length.

    Raises: UserError when fewer than two are common, or lines do not correspond.
    """
    common = [key for key in first if key in second]
    if any(key.startswith("line ") for key in [*first, *second]) and first.keys() != second.keys():
        raise UserError("without 'arch' on every line the two files must correspond line by line; "
                        f"they have {len(first)} and {len(second)} scores")
    if len(common) < 2:
        raise UserError(f"the two files have {len(common)} architectures in common, a ranking needs at least two")
    return [first[key] for key in common], [second[key] for key in common]
