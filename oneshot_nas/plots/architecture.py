"""Drawing of one architecture from its plan: a row per layer with operator, widths, output, stride, gate and share of FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TypedDict

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from oneshot_nas.arch import Arch, Space, option_table, space_of
from oneshot_nas.costs.analytic import cost, layer_costs
from oneshot_nas.ops import Chain, Op
from oneshot_nas.plan import Layer, Plan
from oneshot_nas.plots.style import BAND, COLOURS, GREY, INK, PALE, flops_label, millions, styled
from oneshot_nas.primitives import Conv, Dense, GlobalPool, Primitive, Resize, SqueezeExcite

ROW, TOP, BOTTOM, RIGHT = 0.25, 1.0, 0.55, 0.15  # inches
WIDTHS, SHARES, GAP = 3.0, 1.9, 0.25  # inches of the two bar panels and between panels
LETTER = 0.072  # inches of one letter of 8.5 points
HATCHES = ("", "////", "....")


class Look(TypedDict):
    """How an operator is told apart."""

    facecolor: str
    hatch: str


@dataclass(frozen=True)
class Row:
    """What is drawn of one layer."""

    name: str
    operator: str
    middle: int
    out: int
    output: str
    stride: int
    gate: bool
    share: float
    fixed: bool


def operator_of(layer: Layer) -> str:
    """Name of what the layer computes: the chosen operator where there is a choice, otherwise kind and largest kernel."""
    if layer.candidate:
        return layer.candidate
    op = layer.op
    if isinstance(op, Chain):
        parts = [part for primitive in op.primitives if (part := _part(primitive))]
        return ", ".join(parts) if len(parts) < 4 else f"{parts[0]} ... {parts[-1]}"
    kernel = max((p.kernel for p in op.chain() if isinstance(p, Conv)), default=0)
    return f"{op.label} {kernel}×{kernel}" if kernel else op.label


def _part(primitive: Primitive) -> str:
    if isinstance(primitive, Conv):
        return f"conv {primitive.kernel}×{primitive.kernel}"
    return {GlobalPool: "pool", Dense: "dense", SqueezeExcite: "SE", Resize: "resize"}.get(type(primitive), "")


def middle_width(op: Op) -> int | None:
    """Channels that enter the last weighted operator of the longest branch, None for a layer with fewer than two of them."""
    weighted = max(([p for p in branch.chain if isinstance(p, Conv | Dense)] for branch in op.branches()), key=len, default=[])
    if len(weighted) < 2:
        return None
    last = weighted[-1]
    return last.in_channels if isinstance(last, Conv) else last.in_features


def rows_of(plan: Plan, rule: str = "macs") -> list[Row]:
    """What is drawn of every layer; `share` is in percent of the plan's FLOPs."""
    costs = layer_costs(plan, rule)
    total = sum(found.flops for _, found in costs) or 1
    rows = []
    for layer, found in costs:
        primitives = list(layer.op.chain())
        channels, height, width = layer.out_shape
        rows.append(Row(
            layer.name, operator_of(layer), middle_width(layer.op) or channels, channels, f"{channels} × {height} × {width}",
            max((p.stride for p in primitives if isinstance(p, Conv)), default=1),
            any(isinstance(p, SqueezeExcite) for p in primitives), 100 * found.flops / total, isinstance(layer.op, Chain)))
    return rows


def operators_of(space: Space) -> tuple[str, ...]:
    """Every operator of the space in the order of its values, so that all its drawings use the same colours."""
    most = max(len(allowed) for _, _, allowed in space.positions)
    plans = (space.plan(space.decode([min(i, len(allowed) - 1) for _, _, allowed in space.positions])) for i in range(most))
    return tuple(dict.fromkeys(operator_of(layer) for plan in plans for layer in plan.layers if not isinstance(layer.op, Chain)))


def architecture(arch: Arch, title: str = "", rule: str = "macs") -> Figure:
    """The drawing of an architecture; its title tells space, variant, FLOPs and parameters. Raises: UserError."""
    space, found = space_of(arch), cost(arch, rule)
    variant = [f"{name} {str(arch.options[name]).lower()}" for name, option in option_table(arch.space).items()
               if arch.options[name] != option.default]
    heading = f"{title or arch.space}: {millions(found.flops)} {flops_label(rule)}, {millions(found.params)} parameters"
    subtitle = ", ".join([arch.space, *variant] if title else variant)
    return draw_plan(space.plan(arch), heading, subtitle, operators_of(space), rule)


@styled
def draw_plan(plan: Plan, title: str = "", subtitle: str = "", operators: Sequence[str] = (), rule: str = "macs") -> Figure:
    """One row per layer: name, operator (colour), output, stride, gate; bars of its widths and of its share of FLOPs.

    `operators` fixes the order of colours. Consecutive layers of the same output resolution share a background band.
    """
    rows = rows_of(plan, rule)
    looks = _looks(rows, operators)
    columns = _columns(rows)
    table = sum(width for _, width in columns)
    wide, high = table + WIDTHS + GAP + SHARES + RIGHT + 0.15, ROW * len(rows) + TOP + BOTTOM
    figure = Figure(figsize=(wide, high))

    def panel(left: float, width: float, name: str) -> Axes:
        axes = figure.add_axes((left / wide, BOTTOM / high, width / wide, ROW * len(rows) / high), label=name)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", left=False, labelleft=False)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        for first, last in _bands(plan)[1::2]:
            axes.axhspan(first - 0.5, last + 0.5, color=BAND, zorder=0, linewidth=0)
        return axes

    left = 0.15
    _table(panel(left, table, "table"), rows, columns, looks)
    _width_bars(panel(left + table, WIDTHS, "widths"), rows, looks)
    _share_bars(panel(left + table + WIDTHS + GAP, SHARES, "shares"), rows, rule)
    figure.text(left / wide, 1 - 0.16 / high, title, fontsize=11, fontweight="bold", va="top")
    size = "×".join(map(str, plan.input_shape[1:]))
    about = ", ".join(filter(None, [f"{len(rows)} layers, input {size}", subtitle]))
    figure.text(left / wide, 1 - 0.42 / high, about, va="top", color="#555555")
    return figure


def _looks(rows: Sequence[Row], operators: Sequence[str]) -> dict[str, Look]:
    """Colour and hatch of every operator; layers that no choice changes are grey."""
    kinds = dict.fromkeys([*operators, *(row.operator for row in rows if not row.fixed)])
    every = [Look(facecolor=colour, hatch=hatch) for hatch in HATCHES for colour in COLOURS]
    plain = {row.operator: Look(facecolor=PALE, hatch="") for row in rows if row.fixed}
    return plain | dict(zip(kinds, cycle(every), strict=False))


def _columns(rows: Sequence[Row]) -> list[tuple[str, float]]:
    """Heading and width in inches of the table's columns."""
    def inches(texts: list[str], extra: float) -> float:
        return LETTER * max(map(len, texts)) + extra

    gates = [("SE", 0.4)] if any(row.gate for row in rows) else []
    return [("layer", inches([row.name for row in rows], 0.15)), ("operator", inches([row.operator for row in rows], 0.4)),
            ("output (C × H × W)", inches([row.output for row in rows] + ["output (C × H × W)"], 0.15)), ("stride", 0.6), *gates,
            ("middle", 0.65)]


def _bands(plan: Plan) -> list[tuple[int, int]]:
    """(first, last) rows of consecutive layers with the same output resolution."""
    starts = [i for i, layer in enumerate(plan.layers) if not i or layer.out_shape[1:] != plan.layers[i - 1].out_shape[1:]]
    return [(first, after - 1) for first, after in zip(starts, [*starts[1:], len(plan.layers)], strict=True)]


def _heading(axes: Axes, x: float, text: str, ha: str = "left") -> None:
    axes.text(x, -0.62, text, ha=ha, va="bottom", fontsize=8.5, fontweight="bold")


def _table(axes: Axes, rows: Sequence[Row], columns: Sequence[tuple[str, float]], looks: dict[str, Look]) -> None:
    axes.set_xlim(0, sum(width for _, width in columns))
    axes.tick_params(bottom=False, labelbottom=False)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    edges = [sum(width for _, width in columns[:i]) for i in range(len(columns))]
    for edge, (heading, _) in zip(edges, columns, strict=True):
        _heading(axes, edge, heading)
    for y, row in enumerate(rows):
        axes.add_patch(Rectangle((edges[1], y - 0.3), 0.17, 0.6, edgecolor=INK, linewidth=0.5, **looks[row.operator]))
        cells = {"layer": row.name, "operator": row.operator, "output (C × H × W)": row.output, "middle": str(row.middle),
                 "stride": str(row.stride) if row.stride > 1 else "", "SE": "SE" if row.gate else ""}
        for edge, (heading, _) in zip(edges, columns, strict=True):
            axes.text(edge + (0.25 if heading == "operator" else 0), y, cells[heading], va="center", fontsize=8.5)


def _width_bars(axes: Axes, rows: Sequence[Row], looks: dict[str, Look]) -> None:
    _heading(axes, 0, "middle width (bar), output channels (line)")
    for y, row in enumerate(rows):
        axes.barh(y, row.middle, height=0.66, edgecolor=INK, linewidth=0.5, **looks[row.operator])
        for colour, width in (("white", 3.4), (INK, 1.8)):
            axes.plot([row.out] * 2, [y - 0.42, y + 0.42], color=colour, linewidth=width, solid_capstyle="butt")
    most = max(max(row.middle, row.out) for row in rows)
    axes.set_xscale("function", functions=(lambda x: abs(x) ** 0.5, lambda x: x**2))
    axes.set_xlim(0, most * 1.1)
    axes.set_xticks([0] + [tick for tick in (16, 64, 256, 1024, 4096, 16384) if tick <= most * 1.1])
    axes.set_xlabel("channels (square-root scale)", labelpad=2)


def _share_bars(axes: Axes, rows: Sequence[Row], rule: str) -> None:
    _heading(axes, 0, f"share of {flops_label(rule)}")
    axes.barh(range(len(rows)), [row.share for row in rows], height=0.66, color=GREY)
    for y, row in enumerate(rows):
        axes.text(row.share, y, f" {row.share:.1f}", va="center", fontsize=8)
    axes.set_xlim(0, max(row.share for row in rows) * 1.25 or 1)
    axes.set_xlabel("%", labelpad=2)
