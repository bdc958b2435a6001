"""Training curves of a run: loss, accuracy and learning rate over the epochs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oneshot_nas.errors import UserError
from oneshot_nas.files import parse_json, read_text
from oneshot_nas.plots.style import COLOURS, INK, styled, whole_numbers

FEW = 25  # up to so many epochs, each is marked


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` in order of their epochs; a last line that is only half written is left out.

    Raises: UserError when there is no finished epoch or a line is not one of this program.
    """
    lines = read_text(path, "metrics").split("\n") if Path(path).exists() else []
    found: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError:
            if number == len(lines):  # no line break after it: still being written
                break
            parse_json(line, f"{path} line {number}")
        if not isinstance(content, dict) or not isinstance(content.get("epoch"), int):
            raise UserError(f"{path} line {number} is no line of metrics: it needs a whole number 'epoch'")
        found[content["epoch"]] = content
    if not found:
        raise UserError(f"{path} holds no finished epoch yet; plot again after the first one")
    return [found[epoch] for epoch in sorted(found)]


@styled
def training_curves(metrics: Sequence[Mapping[str, Any]], title: str = "", validation: str = "validation") -> Figure:
    """Loss, top-1 accuracy (training and `validation`, best marked) and learning rate of every epoch, one below the other."""
    figure = Figure(figsize=(6.5, 6.2), layout="constrained")
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.6))
    _curve(loss, metrics, "loss", "training", COLOURS[0])
    loss.set_ylabel("training loss")
    _curve(accuracy, metrics, "train_top1", "training", COLOURS[0], scale=100)
    validated = _curve(accuracy, metrics, "val_top1", validation, COLOURS[4], scale=100, marker="s")
    accuracy.set_ylabel("top-1 accuracy (%)")
    if validated:
        epoch, best = max(validated, key=lambda point: (point[1], -point[0]))
        accuracy.plot([epoch], [best], "*", color=COLOURS[4], markersize=12, markeredgecolor=INK, markeredgewidth=0.7,
                      linestyle="none", zorder=4, label=f"best: {best:.2f} % (epoch {epoch})")
    accuracy.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, handletextpad=0.5)
    _curve(rate, metrics, "lr", "learning rate", INK)
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.set_xlabel("epoch")
    whole_numbers(rate, [line["epoch"] for line in metrics])
    figure.align_ylabels()
    if title:
        figure.suptitle(title)
    return figure


def _curve(axes: Axes, metrics: Sequence[Mapping[str, Any]], key: str, label: str, colour: str, scale: float = 1,
           marker: str = "o") -> list[tuple[int, float]]:
    """Draw one metric where it was measured and return its points (epoch, value)."""
    points = [(line["epoch"], line[key] * scale) for line in metrics
              if isinstance(line.get(key), int | float) and math.isfinite(line[key])]
    if points:
        few = len(points) <= FEW or len(points) < len(metrics) / 2
        axes.plot(*zip(*points, strict=True), color=colour, label=label, marker=marker if few else "", clip_on=False, zorder=3)
    return points
