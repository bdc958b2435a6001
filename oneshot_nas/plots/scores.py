"""Scores of architectures against their FLOPs: one line per file, to compare families, supernets and stand-alone training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from oneshot_nas.plots.style import COLOURS, INK, MILLION, flops_label, styled

MARKERS = "osD^vPX*"


@styled
def scores_against_flops(series: Mapping[str, Sequence[tuple[int, float]]], label: str = "top-1 accuracy (%)",
                         rule: str = "macs") -> Figure:
    """(FLOPs, score) of every series by rising FLOPs: points, joined where there are several."""
    figure = Figure(figsize=(6.8, 4.2), layout="constrained")
    axes = figure.subplots()
    for place, (name, points) in enumerate(series.items()):
        flops, scores = zip(*sorted(points), strict=True)
        axes.plot([value / MILLION for value in flops], scores, color=COLOURS[place % len(COLOURS)], markeredgecolor=INK,
                  markeredgewidth=0.5, marker=MARKERS[place % len(MARKERS)], markersize=6, linewidth=1.3, label=name)
    axes.set_xlabel(f"{flops_label(rule)} (M)")
    axes.set_ylabel(label)
    figure.legend(loc="outside lower center", ncols=3)
    return figure
