"""The FLOPs look-up table of BN-NAS and AngleNAS as a file: written from the plan, read, compared with it.

The predecessors keep a pickled ``{operator: {(inputs, outputs, height, width, stride): FLOPs}}``, height and width at the
layer's input. A pickle can run code when it is read, so this file is JSON with the same operators, tuples (as text) and
numbers. `PreProcessing` is stem and fixed first block, `PostProcessing` the last 1x1 convolution and the classifier.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from oneshot_nas.arch import Arch, Space, get_space, shorten, show, space_of
from oneshot_nas.costs.analytic import check_rule, op_cost
from oneshot_nas.errors import UserError
from oneshot_nas.files import read_json, write_json
from oneshot_nas.plan import Layer
from oneshot_nas.primitives import Conv
from oneshot_nas.spaces.proxyless_gpu import OPERATORS, SKIP

KIND = "flops-table"
SPACE = "proxyless_gpu"  # the only space that the layout describes
PICKLES = (".pkl", ".pickle")
RULE = "abs-lut"  # by which the predecessors count
NAMES = {value: f"mobilenet_{kernel}x{kernel}_ratio_{expansion}" for value, (kernel, expansion) in OPERATORS.items()}
NAMES[SKIP] = "identity"  # has entries in mmrazor's variant only, where it is a 1x1 convolution
BEFORE, AFTER = "PreProcessing", "PostProcessing"
Shape = tuple[int, int, int, int, int]  # inputs, outputs, input height, input width, stride
FlopsTable = Mapping[str, Mapping[Shape, int]]
SHAPE = re.compile(r"\((\d{1,9}), (\d{1,9}), (\d{1,9}), (\d{1,9}), (\d{1,9})\)")


def flops_table(space: Space, rule: str = RULE) -> FlopsTable:
    """Operator -> {(inputs, outputs, height, width, stride): FLOPs of one image}, skips without an entry.

    For the whole space at 224 pixels it has 68 entries, those of the predecessors. Raises: UserError for a space of another kind.
    """
    check_rule(rule)
    if space.name != SPACE:
        raise UserError(f"space '{space.name}' has no FLOPs table of this layout; only '{SPACE}' has")
    table: dict[str, dict[Shape, int]] = {name: {} for name in (BEFORE, *NAMES.values(), AFTER)}
    before, _, after = _parts(space.plan(space.smallest()).layers)
    for name, layers in ((BEFORE, before), (AFTER, after)):
        table[name][_shape(layers[0])] = sum(op_cost(layer.op, layer.in_shape, rule).flops for layer in layers)
    for value in NAMES:
        values = [value if value in allowed else allowed[0] for allowed in space.choice("op").values]
        for layer in _parts(space.plan(space.arch({"op": values})).layers)[1]:
            if flops := op_cost(layer.op, layer.in_shape, rule).flops:
                table[NAMES[layer.candidate]][_shape(layer)] = flops
    return {name: entries for name, entries in table.items() if entries}


def table_flops(table: FlopsTable, arch: Arch) -> int:
    """FLOPs of one image of `arch` as the sum of its entries. Raises: UserError that names the first missing entry."""
    before, searched, after = _parts(space_of(arch).plan(arch).layers)
    total = _entry(table, BEFORE, before[0]) + _entry(table, AFTER, after[0])
    return total + sum(_entry(table, NAMES[layer.candidate], layer) for layer in searched if layer.op.parameters())


def write_table(path: str | os.PathLike, space: Space, rule: str = RULE) -> None:
    """Write the table of `space` as JSON with its kind, version, space, options and rule."""
    table = {name: {str(shape): flops for shape, flops in entries.items()} for name, entries in flops_table(space, rule).items()}
    write_json(path, KIND, {"space": space.name, "options": dict(space.options), "rule": rule, "table": table})


def read_table(path: str | os.PathLike) -> tuple[Space, str, FlopsTable]:
    """Return the space, the counting rule and the table of a file, as it says; `differences` tells whether it is right.

    Raises: UserError for a pickle, which is never read, for a file of another kind, and for an entry that is no table's.
    """
    if _is_pickle(Path(path)):
        raise UserError(f"{path} is a pickle, which may run code when it is read, so it is not; write the table anew with "
                        f"`oneshot-nas table {SPACE} --out FILE.json`")
    content = read_json(path, KIND)
    name, options, rule, table = (content.get(key) for key in ("space", "options", "rule", "table"))
    if name != SPACE or not isinstance(options, dict) or not isinstance(rule, str) or not isinstance(table, dict):
        raise UserError(f"{path} needs the keys space ('{SPACE}'), options, rule and table of a FLOPs table")
    return get_space(name, **options), check_rule(rule), {str(key): _entries(entries, f"{path}: {shorten(key)}")
                                                          for key, entries in table.items()}


def differences(space: Space, rule: str, table: FlopsTable) -> list[str]:
    """What is missing, unknown or different in `table` against the plan's own counts, a line each; empty when it is right."""
    wanted = {(name, shape): flops for name, entries in flops_table(space, rule).items() for shape, flops in entries.items()}
    found = {(name, shape): flops for name, entries in table.items() for shape, flops in entries.items()}
    missing = [f"{name} {shape} is missing" for name, shape in wanted if (name, shape) not in found]
    unknown = [f"{name} {shape} is no layer of the space" for name, shape in found if (name, shape) not in wanted]
    return missing + unknown + [f"{name} {shape} is {found[name, shape]:,}, the network has {flops:,}"
                                for (name, shape), flops in wanted.items() if found.get((name, shape), flops) != flops]


def _parts(layers: Iterable[Layer]) -> tuple[list[Layer], list[Layer], list[Layer]]:
    """The layers before the searched ones, the searched ones, and those after them."""
    layers = list(layers)
    places = [place for place, layer in enumerate(layers) if layer.unit]
    return layers[: places[0]], layers[places[0] : places[-1] + 1], layers[places[-1] + 1 :]


def _shape(layer: Layer) -> Shape:
    convolutions = [primitive for primitive in layer.op.chain() if isinstance(primitive, Conv)]
    outputs, stride = convolutions[-1].out_channels, max(conv.stride for conv in convolutions)
    return (*layer.in_shape[:1], outputs, *layer.in_shape[1:], stride)


def _entry(table: FlopsTable, name: str, layer: Layer) -> int:
    shape = _shape(layer)
    if shape not in table.get(name, {}):
        raise UserError(f"the FLOPs table has no entry {name} {shape}, which layer {layer.name} needs; it has "
                        f"{show(table.get(name, ()))}; write one for this space with oneshot-nas table")
    return table[name][shape]


def _entries(entries: object, where: str) -> dict[Shape, int]:
    if not isinstance(entries, dict):
        raise UserError(f"{where} must be an object of '(inputs, outputs, height, width, stride)': FLOPs")
    found = {}
    for text, flops in entries.items():
        match = SHAPE.fullmatch(text)
        if not match:
            raise UserError(f"{where} has the key {shorten(text)}; write (inputs, outputs, height, width, stride)")
        if isinstance(flops, bool) or not isinstance(flops, int | float) or not 0 <= flops < 2**53 or flops != int(flops):
            raise UserError(f"{where} {text} = {shorten(flops)} is no count of FLOPs; write a whole number")
        found[tuple(map(int, match.groups()))] = int(flops)
    return found  # type: ignore[return-value]


def _is_pickle(path: Path) -> bool:
    """Whether a file starts as binary pickles of protocol 2 and later do, or is named .pkl."""
    try:
        with open(path, "rb") as handle:
            return handle.read(1) == b"\x80" or path.suffix in PICKLES
    except OSError:
        return False  # read_json says why
