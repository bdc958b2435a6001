"""How every picture looks, and the one way in which it is written: object API of matplotlib, no global state left behind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from oneshot_nas.files import VERSION, atomic_path

# Okabe and Ito's palette, told apart with every kind of colour vision; wine instead of black, which is for lines on top.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7A1F4B", "#F0E442")
INK, GREY, PALE, BAND = "#222222", "#8a8a8a", "#c9c9c9", "#f3f3f3"
DPI = 150
MILLION = 1e6

STYLE = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9, "text.color": INK, "text.usetex": False,
    "figure.titlesize": 10.5, "figure.titleweight": "bold", "axes.titlesize": 9.5, "axes.labelsize": 9,
    "axes.labelcolor": INK, "axes.formatter.useoffset": False, "axes.edgecolor": GREY, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": "#e2e2e2", "grid.linewidth": 0.6,
    "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "xtick.color": INK, "ytick.color": INK,
    "legend.fontsize": 8.5, "legend.frameon": False, "lines.linewidth": 1.6, "lines.markersize": 4.5,
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
}
styled = matplotlib.rc_context(STYLE)  # used as a decorator: the settings hold inside the function only


@styled
def save(figure: Figure, path: str | os.PathLike) -> Path:
    """Write the figure as PNG (150 dpi) atomically and return its path. Raises: WorkError when it cannot be written."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Kind": "plot", "Version": str(VERSION)})
    return Path(path)


def flops_label(rule: str) -> str:
    """What FLOPs are under a counting rule, for an axis or a title."""
    return "multiply-adds" if rule == "macs" else f"FLOPs (rule {rule})"


def millions(value: float) -> str:
    """A count in millions with four significant digits, such as 327.9 M."""
    return f"{value / MILLION:.4g} M"


def whole_numbers(axes: Axes, values: Sequence[int]) -> None:
    """Let the x axis show whole numbers only."""
    if len(set(values)) == 1:
        axes.set_xticks([values[0]])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def viridis(count: int) -> list[tuple[float, float, float, float]]:
    """`count` colours from dark to light, readable in grey too; without the palest end, which is lost on white."""
    table = matplotlib.colormaps["viridis"]
    return [table(0.92 * place / max(count - 1, 1)) for place in range(count)]
