"""The only description of a network: layers of concrete numbers, from which costs, blocks, names and pictures follow.

A `Plan` is a chain of `Layer`s, a layer holds an op (`oneshot_nas.ops`), an op lists primitives (`oneshot_nas.primitives`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from oneshot_nas.ops import Op
from oneshot_nas.primitives import Shape


@dataclass(frozen=True)
class Layer:
    """One layer of a plan: its name, op and shapes.

    `candidate` is the operator's name where the search chooses among several with weights of their own; `unit` is the
    cost unit it belongs to ('' for the part that no choice changes).
    """

    name: str
    op: Op
    in_shape: Shape
    out_shape: Shape
    candidate: str = ""
    unit: str = ""

    @property
    def weights(self) -> str:
        """Name of its set of weights in a supernet."""
        return f"{self.name}.{self.candidate}" if self.candidate else self.name


@dataclass(frozen=True)
class Plan:
    """The layers of one network, first to last, for one input image of `input_shape`."""

    input_shape: Shape
    layers: tuple[Layer, ...]


def chain_layers(input_shape: Shape, entries: Iterable[tuple[str, Op, str, str]]) -> Plan:
    """Return the plan of a chain of (name, op, candidate, unit); shapes follow from the input shape."""
    layers = []
    shape = input_shape
    for name, op, candidate, unit in entries:
        out = op.out_shape(shape)
        layers.append(Layer(name, op, shape, out, candidate, unit))
        shape = out
    return Plan(input_shape, tuple(layers))
