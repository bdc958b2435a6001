"""`oneshot-nas cost`: FLOPs and parameters of architectures."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from oneshot_nas.arch import Arch, read_archs, space_of
from oneshot_nas.costs.analytic import Cost, check_rule, cost, layer_costs
from oneshot_nas.costs.limits import human
from oneshot_nas.progress import track


def command(
    file: Annotated[str, typer.Argument(help="arch.json, or one architecture per line; - is standard input.", metavar="FILE|-")],
    rule: Annotated[str, typer.Option(help="macs, oneshot-mxnet, oneshot-mxnet-full, mmrazor or abs-lut.")] = "macs",
    per_layer: Annotated[bool, typer.Option("--per-layer", help="List the layers as well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per architecture.")] = False,
) -> None:
    """Print the exact FLOPs (one image) and trainable parameters of each architecture.

    Rules: macs counts the multiply-adds of convolutions and dense layers. oneshot-mxnet adds biases and the input elements of
    global pools, oneshot-mxnet-full also 3 per BatchNorm element and 1 per ReLU element. mmrazor counts convolutions with
    biases, dense weights, 2 per BatchNorm element, 1 per ReLU element and the input elements of all pools. abs-lut is macs, but
    a dense layer counts (2 in - 1) out.

    Example:  oneshot-nas arch oneshot | oneshot-nas cost - --rule oneshot-mxnet --json
    """
    check_rule(rule)
    for arch in track(read_archs(file), "counting", unit="architecture"):
        total, layers = cost(arch, rule), layer_rows(arch, rule) if per_layer else []
        if as_json:
            typer.echo(json.dumps({**asdict(total), **({"layers": layers} if per_layer else {})}))
        else:
            typer.echo(report(total, layers))


def layer_rows(arch: Arch, rule: str) -> list[dict[str, Any]]:
    """Every layer as plain data: name, op, shapes (channels, height, width) and costs."""
    return [{"name": layer.name, "op": layer.candidate or layer.op.label, "in_shape": layer.in_shape,
             "out_shape": layer.out_shape, "flops": found.flops, "params": found.params}
            for layer, found in layer_costs(space_of(arch).plan(arch), rule)]


def report(total: Cost, layers: list[dict[str, Any]]) -> str:
    """The readable report: the layers, then the total."""
    lines = [f"{row['name']:<16} {row['op']:<10} {_size(row['in_shape']):>12} -> {_size(row['out_shape']):<12} "
             f"{row['flops']:>14,} {row['params']:>12,}" for row in layers]
    return "\n".join([*lines, f"{human(total.flops)} FLOPs ({total.flops:,}), {human(total.params)} params ({total.params:,}), "
                              f"rule {total.rule}"])


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
