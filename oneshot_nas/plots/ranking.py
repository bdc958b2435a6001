"""How well an indicator ranks architectures: its scores against stand-alone accuracies, with Kendall's tau."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from oneshot_nas.indicators.ranking import kendall_tau
from oneshot_nas.plots.style import COLOURS, INK, styled


@styled
def ranking(indicator: Sequence[float], standalone: Sequence[float], indicator_label: str = "indicator",
            standalone_label: str = "stand-alone accuracy", title: str = "") -> Figure:
    """A point per architecture; the title tells Kendall's tau-b and the number of points.

    Raises: UserError for lists of different lengths, fewer than two architectures or values that are no numbers.
    """
    tau = kendall_tau(indicator, standalone)
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.scatter(indicator, standalone, s=34, color=COLOURS[0], alpha=0.85, edgecolor=INK, linewidth=0.5, zorder=3)
    axes.set_xlabel(indicator_label)
    axes.set_ylabel(standalone_label)
    measured = "undefined (all equal)" if math.isnan(tau) else f"{tau:.3f}"
    figure.suptitle(f"{title + ': ' if title else ''}Kendall's τ = {measured}, n = {len(indicator)}")
    return figure
