"""The plain values decisions are made of: options, choices, cost units, and how they are checked and shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oneshot_nas.errors import UserError

Value = bool | int | float | str  # of a decision
Setting = Value | tuple[int, ...]  # of an option
MAX_LISTED = 20  # things that an error names one by one
MAX_SHOWN = 12
MAX_CHARACTERS = 60  # characters of one thing


class FrozenDict(dict):
    """A mapping that is hashable and cannot be changed; equal to a dict of the same items."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def _refuse(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("this mapping is frozen; build a new one")

    __setitem__ = __delitem__ = update = setdefault = pop = popitem = clear = __ior__ = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> tuple:
        return FrozenDict, (dict(self),)


def same_kind(value: Any, allowed: Any) -> bool:
    """Whether `value` equals `allowed` and is of its type; 1 may stand for 1.0, True never for 1."""
    if isinstance(value, bool) or isinstance(allowed, bool):
        return value is allowed
    if isinstance(allowed, int | float):
        return isinstance(value, int | float) and value == allowed
    return isinstance(value, str) and value == allowed


def listed(what: str, items: Sequence[str]) -> str:
    """How many of what there are, and which, such as '2 missing: a, b'; nothing of nothing."""
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return f"{len(items)} {what}: {', '.join(items[:MAX_LISTED])}{more}" if items else ""


def cut(text: str) -> str:
    """The text, or its beginning where it is longer than MAX_CHARACTERS."""
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS - 3] + "..."


def show(values: Iterable[Any]) -> str:
    """The values as text for an error message, shortened when there are many."""
    values = [cut(repr(value)) for value in values]
    if len(values) > MAX_SHOWN:
        values = [*values[: MAX_SHOWN - 1], "...", values[-1]]
    return "(" + ", ".join(values) + ")"


def shorten(value: Any) -> str:
    """`repr` of an untrusted value, at most MAX_CHARACTERS characters; of a nested one its type."""
    flat = isinstance(value, list | tuple) and len(value) <= MAX_SHOWN and all(isinstance(each, Value) for each in value)
    text = repr(value) if value is None or isinstance(value, Value) or flat else type(value).__name__
    return cut(text)


@dataclass(frozen=True)
class Option:
    """One variant setting: the values of `allowed`, or any integer in [low, high] when `allowed` is empty.

    With `many` it is a list of such integers that grow; an empty list stands for the space's own.
    """

    default: Setting
    allowed: tuple[Value, ...] = ()
    low: int = 1
    high: int = 1
    many: bool = False

    def check(self, name: str, value: Any, space: str) -> Setting:
        """Return the accepted value. Raises: UserError with what is allowed."""
        for allowed in self.allowed:
            if same_kind(value, allowed):
                return allowed
        if self.many and isinstance(value, list | tuple) and all(map(self._fits, value)) and list(value) == sorted(set(value)):
            return tuple(value)
        if not self.allowed and not self.many and self._fits(value):
            return value
        one = f"one of {show(self.allowed)}" if self.allowed else f"an integer from {self.low} to {self.high}"
        wanted = f"a list of growing numbers, each {one}" if self.many else one
        raise UserError(f"option '{name}' = {shorten(value)} of space '{space}' is not {wanted}")

    def _fits(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def parse(self, name: str, text: str, space: str) -> Setting:
        """Return the value that a command line word stands for; a list has commas, and may have brackets. Raises: UserError."""
        for allowed in self.allowed:
            if text.lower() == str(allowed).lower():
                return allowed
        try:
            value: Any = [int(word) for word in text.strip(" []").split(",")] if self.many else int(text)
        except ValueError:
            value = text
        return self.check(name, value, space)


@dataclass(frozen=True)
class Choice:
    """One named list of decisions: the allowed values of every position.

    `ordered` says that the values grow, so that a smallest and a largest exist. `default`, when there is one, stands for
    a choice that a published index list leaves out. `orders` maps the name of a published order to its {integer code: value};
    the first one is meant where none is named, and without any a code is the index among the allowed values.
    """

    name: str
    values: tuple[tuple[Value, ...], ...]
    ordered: bool = False
    default: Value | None = None
    orders: FrozenDict = FrozenDict()

    def check(self, given: Any, space: str) -> tuple[Value, ...]:
        """Return the accepted values. Raises: UserError that names the choice, the position and what is allowed."""
        if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
            raise UserError(f"choice '{self.name}' of space '{space}' must be a list of {len(self.values)} values, "
                            f"got {shorten(given)}")
        if len(given) != len(self.values):
            raise UserError(f"choice '{self.name}' has {len(given)} values, space '{space}' needs {len(self.values)}")
        accepted = []
        for position, (value, allowed) in enumerate(zip(given, self.values, strict=True)):
            match = [candidate for candidate in allowed if same_kind(value, candidate)]
            if not match:
                raise UserError(f"choice '{self.name}'[{position}] = {shorten(value)} is not one of {show(allowed)} "
                                f"in space '{space}'")
            accepted.append(match[0])
        return tuple(accepted)

    def decode(self, codes: Any, space: str, order: str | None = None) -> tuple[Value, ...]:
        """Return the values that a published list of integer codes stands for. Raises: UserError."""
        if isinstance(codes, str) or not isinstance(codes, Sequence) or len(codes) != len(self.values):
            length = f" of length {len(codes)}" if isinstance(codes, Sequence) else ""
            raise UserError(f"choice '{self.name}' of space '{space}' needs a list of {len(self.values)} indices, "
                            f"got {shorten(codes)}{length}")
        values = []
        for position, (code, allowed) in enumerate(zip(codes, self.values, strict=True)):
            table = self._codes(allowed, order)
            if not isinstance(code, int) or isinstance(code, bool) or table.get(code) not in allowed:
                legal = [index for index, value in table.items() if value in allowed]
                raise UserError(f"index '{self.name}'[{position}] = {shorten(code)} is not one of {show(legal)} "
                                f"in space '{space}'")
            values.append(table[code])
        return tuple(values)

    def encode(self, values: Sequence[Value], order: str | None = None) -> list[int]:
        """The inverse of `decode`, for values that are allowed."""
        tables = (self._codes(allowed, order) for allowed in self.values)
        return [{value: code for code, value in table.items()}[given] for table, given in zip(tables, values, strict=True)]

    def _codes(self, allowed: tuple[Value, ...], order: str | None) -> Mapping[int, Value]:
        """Code -> value at a position, in the named order or else the first one."""
        return self.orders.get(order) or next(iter(self.orders.values()), None) or dict(enumerate(allowed))


@dataclass(frozen=True)
class Unit:
    """One additive part of the cost: the layers whose `unit` is `name`, decided by these (choice, position) pairs only."""

    name: str
    positions: tuple[tuple[str, int], ...]
