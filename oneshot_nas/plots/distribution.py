"""Where the architectures of a sampler lie: FLOPs against parameters, with the distribution of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from oneshot_nas.arch import Space, show
from oneshot_nas.config import Sampler as SamplerConfig
from oneshot_nas.costs.limits import Limits, parse_limits
from oneshot_nas.costs.table import cost_table, random_indices
from oneshot_nas.errors import UserError
from oneshot_nas.plots.samplers import named_sampler
from oneshot_nas.plots.style import COLOURS, INK, MILLION, flops_label, styled
from oneshot_nas.progress import track
from oneshot_nas.train.sampling import make_sampler

EPOCHS = 16  # epochs, evenly spread over the training, that the architectures of a sampler are taken from
BINS = 60


@dataclass(frozen=True, eq=False)
class Costs:
    """FLOPs and parameters of drawn architectures, arrays of shape (n,), and the limits that the sampler obeys."""

    flops: np.ndarray
    params: np.ndarray
    limits: Limits


def uniform_costs(space: Space, count: int, seed: int = 0, rule: str = "macs") -> Costs:
    """Costs of `count` uniform architectures of the space."""
    flops, params = cost_table(space, rule)(random_indices(space, np.random.default_rng(seed), count))
    return Costs(flops, params, Limits(rule=rule))


def sampler_costs(space: Space, config: SamplerConfig, count: int, epochs: int = 1, seed: int = 0) -> Costs:
    """Costs of `count` architectures that a sampler gives in consecutive steps of epochs spread over the whole training.

    Raises: UserError for limits no architecture meets, or an unknown rule.
    """
    limits = parse_limits(config.flops or None, config.params or None, config.rule)
    sampler = make_sampler(space, config, seed)
    chosen = sorted({round(epoch) for epoch in np.linspace(0, epochs - 1, min(EPOCHS, epochs, count))})
    steps = [(epoch, step) for epoch in chosen for step in range(-(-count // len(chosen)))]
    archs = [arch for epoch, step in track(steps, f"sampler {config.name}") for arch in sampler(epoch, step)][:count]
    return Costs(*cost_table(space, limits.rule)(np.array([space.encode(arch) for arch in archs])), limits)


def compared(space: Space, config: SamplerConfig, count: int, epochs: int = 1, seed: int = 0) -> dict[str, Costs]:
    """Costs of a sampler, with uniform sampling of the space beside it where that is something else."""
    own: dict[str, Costs] = {config.name: sampler_costs(space, config, count, epochs, seed)}
    if config == named_sampler("uniform", rule=config.rule):
        return own
    return {"whole space": uniform_costs(space, count, seed, config.rule), **own}


@styled
def distribution(samples: Mapping[str, Costs], title: str = "") -> Figure:
    """FLOPs against parameters of the named samples, with a histogram of each cost on its side and limits as dashed boxes.

    Raises: UserError when there is nothing to draw, or for samples under different cost rules.
    """
    if not samples or any(not len(costs.flops) for costs in samples.values()):
        raise UserError("a distribution needs at least one architecture of every sampler; give -n 1 or more")
    rules = sorted({costs.limits.rule for costs in samples.values()})
    if len(rules) > 1:
        raise UserError(f"the samples are counted under different rules {show(rules)}; use one rule to compare them")
    figure = Figure(figsize=(7.2, 6.2), layout="constrained")
    grid = figure.subplot_mosaic([["top", "."], ["main", "side"]], width_ratios=(4, 1.25), height_ratios=(1.25, 4))
    main, top, side = grid["main"], grid["top"], grid["side"]
    top.sharex(main)
    side.sharey(main)
    flops_edges, params_edges = (
        _edges([getattr(costs, name) for costs in samples.values()],
               [limit for costs in samples.values() for limit in getattr(costs.limits, name)]) for name in ("flops", "params"))
    for place, (name, costs) in enumerate(samples.items()):
        colour = COLOURS[place % len(COLOURS)]
        flops, params = costs.flops / MILLION, costs.params / MILLION
        main.scatter(flops, params, s=7, color=colour, alpha=0.35, linewidth=0, label=f"{name} ({len(flops):,})", zorder=3)
        _margin(top, flops, flops_edges, "vertical", colour, len(samples) < 3)
        _margin(side, params, params_edges, "horizontal", colour, len(samples) < 3)
    for limits in dict.fromkeys(costs.limits for costs in samples.values() if costs.limits != Limits(rule=rules[0])):
        _box(main, limits)
    main.set_xlabel(f"{flops_label(rules[0])} (M)")
    main.set_ylabel("parameters (M)")
    top.tick_params(labelbottom=False)
    side.tick_params(labelleft=False)
    top.set_ylabel("share (%)")
    side.set_xlabel("share (%)")
    top.yaxis.set_major_locator(MaxNLocator(3))
    side.xaxis.set_major_locator(MaxNLocator(3))
    key = figure.legend(*main.get_legend_handles_labels(), loc="outside lower center", ncols=2, markerscale=2.5)
    for handle in filter(None, key.legend_handles):
        handle.set_alpha(1)
    if title:
        figure.suptitle(title)
    return figure


def _edges(arrays: list[np.ndarray], limits: list[float]) -> list[float]:
    """Bin edges, in millions, that all samples share; a limit between them is an edge too."""
    low, high = min(a.min() for a in arrays) / MILLION, max(a.max() for a in arrays) / MILLION
    if not high > low:
        return [low * 0.99, low * 1.01]
    edges = np.linspace(low, high, BINS + 1)
    for limit in (limit / MILLION for limit in limits if low < limit / MILLION < high):
        edges[1 + np.abs(edges[1:-1] - limit).argmin()] = limit
    return np.unique(edges).tolist()


def _margin(axes: Axes, values: np.ndarray, edges: list[float], way: Literal["vertical", "horizontal"], colour: str,
            fill: bool) -> None:
    """The histogram of one cost, in percent of its sample."""
    shares = np.full(len(values), 100 / len(values))
    if fill:
        axes.hist(values, edges, weights=shares, orientation=way, color=colour, histtype="stepfilled", alpha=0.18)
    axes.hist(values, edges, weights=shares, orientation=way, color=colour, histtype="step", linewidth=1.3)


def _box(axes: Axes, limits: Limits) -> None:
    """The limits as a dashed box that ends where the picture ends."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x0, x1 = max(limits.flops[0] / MILLION, left), min(limits.flops[1] / MILLION, right)
    y0, y1 = max(limits.params[0] / MILLION, bottom), min(limits.params[1] / MILLION, top)
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=INK, linestyle="--", linewidth=1.2, zorder=5,
                             label=str(limits)))
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
