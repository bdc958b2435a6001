"""What can be decided and what was decided: Choice, Option, Arch and Space, all plain values.

A search space is one module in ``oneshot_nas/spaces``; `get_space` turns it into a `Space`. The module offers

* ``OPTIONS``: name -> `Option`, the variants that are fixed before any search (classes, input size, layout ...),
* ``choices(options)``: the `Choice` tuple that the search decides,
* ``plan(options, choices)``: the layers of one architecture (see `oneshot_nas.plan`),
* ``units(options)``: which decisions each part of the cost depends on,
* optionally ``canonical(options, choices)``: the same network with choices that have no effect reset.
"""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from oneshot_nas.errors import UserError
from oneshot_nas.files import VERSION, parse_json, read_text
from oneshot_nas.values import Choice, FrozenDict, Option, Setting, Unit, Value, same_kind, shorten, show

if TYPE_CHECKING:
    from oneshot_nas.plan import Plan

MAX_ARCH_TEXT = 2**20  # characters of one architecture; a real one has about a thousand


@dataclass(frozen=True)
class Arch:
    """One architecture: the space, its options and the decided values. Frozen, hashable, JSON."""

    space: str
    options: FrozenDict
    choices: FrozenDict

    def to_json(self) -> dict[str, Any]:
        """The object of interface ``arch.json``: space, all options, choices as lists."""
        return {
            "space": self.space,
            "options": {name: list(value) if isinstance(value, tuple) else value for name, value in self.options.items()},
            "choices": {name: list(values) for name, values in self.choices.items()},
        }

    @cached_property
    def key(self) -> str:
        """Text that is equal for equal architectures, for storage and sorting."""
        return json.dumps(self.to_json(), sort_keys=True)


def read_arch(content: Any, source: str = "architecture") -> Arch:
    """Return the checked architecture of a parsed ``arch.json`` object; missing options take the space's defaults.

    Raises: UserError that names what is missing, unknown or not allowed.
    """
    if not isinstance(content, dict):
        raise UserError(f"{source}: an architecture is a JSON object, got {type(content).__name__}")
    if content.get("kind", "architecture") != "architecture":
        raise UserError(f"{source} is of kind {shorten(content['kind'])}, expected 'architecture'")
    if content.get("version", VERSION) != VERSION:
        raise UserError(f"{source} has version {shorten(content['version'])}; this release reads version {VERSION}")
    unknown = sorted(map(str, set(content) - {"space", "options", "choices", "kind", "version"}))
    if unknown:
        raise UserError(f"{source}: unknown key {show(unknown)}; allowed are ('space', 'options', 'choices')")
    if not isinstance(content.get("space"), str):
        raise UserError(f"{source}: key 'space' must be one of {show(list_spaces())}")
    options, choices = content.get("options", {}), content.get("choices")
    if not isinstance(options, dict) or not isinstance(choices, dict):
        raise UserError(f"{source}: 'options' and 'choices' must be JSON objects")
    try:
        return get_space(content["space"], **options).arch(choices)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def read_arch_file(path: str) -> Arch:
    """Return the architecture in an ``arch.json`` file; ``-`` is standard input. Raises: UserError."""
    if path == "-":
        first, *others = islice(read_archs(path), 2)
        if others:
            raise UserError("standard input holds several architectures; one is wanted here")
        return first
    return read_arch(parse_json(read_text(path, "architecture"), path), path)


def read_archs(path: str) -> Iterator[Arch]:
    """Yield the architectures of a file: one JSON object, or one object per line; ``-`` is standard input.

    Reads line by line, so a file of any length takes little memory. Raises: UserError that names the file and the line.
    """
    source = "standard input" if path == "-" else str(path)
    if path == "-" and sys.stdin is None:
        raise UserError("standard input is closed, so no architectures can be read from it")
    try:
        with nullcontext(sys.stdin) if path == "-" else open(path, encoding="utf-8") as handle:
            yield from _archs_of(handle, source)
    except OSError as error:
        raise UserError(f"cannot read architectures from {source}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{source} is not UTF-8 text, so it holds no architectures") from None


def _archs_of(handle: TextIO, source: str) -> Iterator[Arch]:
    found = False
    for number, line in enumerate(iter(lambda: handle.readline(MAX_ARCH_TEXT), ""), start=1):
        where = f"{source} line {number}"
        if len(line) == MAX_ARCH_TEXT:
            raise UserError(f"{where} is longer than {MAX_ARCH_TEXT:,} characters; this is no architecture")
        if not line.strip():
            continue
        try:
            content = parse_json(line, where)
        except UserError as error:
            if found:
                raise
            content = _whole(line, handle, source, error)
        yield read_arch(content, where)
        found = True
    if not found:
        raise UserError(f"{source} holds no architecture; make some with oneshot-nas sample or oneshot-nas arch")


def _whole(first: str, handle: TextIO, source: str, error: UserError) -> Any:
    """The one object that starts on the line `first` and ends with the file; `error` tells why it is no line of its own."""
    rest = handle.read(MAX_ARCH_TEXT)
    if not rest.strip() or len(rest) == MAX_ARCH_TEXT:
        raise error
    try:
        return parse_json(first + rest, source)
    except UserError as second:
        raise UserError(f"{error}; read as one object, {second}") from None


@dataclass(frozen=True)
class Space:
    """A search space: named choices, the plan of every architecture, and the operations a searcher needs."""

    name: str
    options: FrozenDict
    choices: tuple[Choice, ...]
    _plan: Callable[[Mapping, Mapping], Plan] = field(compare=False, repr=False)
    _units: Callable[[Mapping], tuple[Unit, ...]] = field(compare=False, repr=False)
    _canonical: Callable[[Mapping, Mapping], Mapping] | None = field(default=None, compare=False, repr=False)

    @property
    def size(self) -> int:
        """Number of encodings (an upper bound on distinct networks when some choices have no effect)."""
        return math.prod(len(allowed) for choice in self.choices for allowed in choice.values)

    @cached_property
    def positions(self) -> tuple[tuple[str, int, tuple[Value, ...]], ...]:
        """Every decision in encoding order: (choice name, position, allowed values)."""
        return tuple((c.name, index, allowed) for c in self.choices for index, allowed in enumerate(c.values))

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """The additive parts of the cost; see `Unit`."""
        return self._units(self.options)

    def choice(self, name: str) -> Choice:
        """The choice of that name. Raises: UserError with the names there are."""
        for choice in self.choices:
            if choice.name == name:
                return choice
        raise UserError(f"space '{self.name}' has no choice {shorten(name)}; it has {show(c.name for c in self.choices)}")

    def arch(self, choices: Mapping[str, Any]) -> Arch:
        """Return the checked architecture of these values. Raises: UserError."""
        for name in choices:
            self.choice(name)
        for choice in self.choices:
            if choice.name not in choices:
                raise UserError(f"choice '{choice.name}' is missing; space '{self.name}' needs "
                                f"{show(c.name for c in self.choices)}")
        return self._arch({c.name: c.check(choices[c.name], self.name) for c in self.choices})

    def _arch(self, values: Mapping[str, tuple[Value, ...]]) -> Arch:
        return Arch(self.name, self.options, FrozenDict({c.name: values[c.name] for c in self.choices}))

    def check(self, arch: Arch) -> Arch:
        """Return `arch` if it belongs to this space with these options. Raises: UserError that says what differs."""
        if arch.space != self.name:
            raise UserError(f"the architecture is of space '{arch.space}', expected '{self.name}'")
        for name, value in self.options.items():
            if arch.options.get(name) != value:
                raise UserError(f"the architecture has option '{name}' = {shorten(arch.options.get(name))}, expected {value!r}")
        return self.arch(arch.choices)

    def from_indices(self, indices: Any, order: str | None = None) -> Arch:
        """Return the architecture of published index lists, one list per choice; `order` names what its codes mean where
        several orders are published (`Choice.orders`). Raises: UserError.
        """
        self._check_order(order)
        if not isinstance(indices, Mapping):
            raise UserError(f"indices must be an object with the lists {show(c.name for c in self.choices)}")
        for name in indices:
            self.choice(name)
        values = {}
        for choice in self.choices:
            if choice.name in indices:
                values[choice.name] = choice.decode(indices[choice.name], self.name, order)
            elif choice.default is not None:
                values[choice.name] = (choice.default,) * len(choice.values)
            else:
                raise UserError(f"index list '{choice.name}' is missing; space '{self.name}' needs {len(choice.values)} "
                                "indices for it")
        return self.arch(values)

    def to_indices(self, arch: Arch, order: str | None = None) -> dict[str, list[int]]:
        """The published index lists of an architecture, the inverse of `from_indices`. Raises: UserError."""
        self._check_order(order)
        values = self.check(arch).choices
        return {choice.name: choice.encode(values[choice.name], order) for choice in self.choices}

    def _check_order(self, order: str | None) -> None:
        known = list(dict.fromkeys(name for choice in self.choices for name in choice.orders))
        if order is not None and order not in known:
            raise UserError(f"space '{self.name}' has no index order {shorten(order)}; "
                            f"{f'it has {show(known)}' if known else 'it has one only, name none'}")

    def encode(self, arch: Arch) -> tuple[int, ...]:
        """The index of every decision among its allowed values, in the order of `positions`."""
        return tuple(allowed.index(arch.choices[name][position]) for name, position, allowed in self.positions)

    def decode(self, indices: Sequence[int]) -> Arch:
        """The inverse of `encode`. Raises: UserError for a wrong length or an index outside the space."""
        if len(indices) != len(self.positions):
            raise UserError(f"{len(indices)} indices given, space '{self.name}' has {len(self.positions)} decisions")
        values: dict[str, list[Value]] = {choice.name: [] for choice in self.choices}
        for index, (name, position, allowed) in zip(indices, self.positions, strict=True):
            if not 0 <= index < len(allowed):
                raise UserError(f"index {index} for '{name}'[{position}] is not from 0 to {len(allowed) - 1}")
            values[name].append(allowed[index])
        return self._arch({name: tuple(chosen) for name, chosen in values.items()})

    def sample(self, rng: random.Random) -> Arch:
        """One architecture, every decision uniform and independent."""
        return self.decode([rng.randrange(len(allowed)) for _, _, allowed in self.positions])

    def smallest(self) -> Arch:
        """The architecture of the first (smallest, where ordered) value everywhere."""
        return self.decode([0] * len(self.positions))

    def largest(self) -> Arch:
        """The architecture of the last (largest, where ordered) value everywhere."""
        return self.decode([len(allowed) - 1 for _, _, allowed in self.positions])

    def mutate(self, arch: Arch, rng: random.Random, probability: float = 0.1) -> Arch:
        """`arch` with every decision redrawn uniformly with `probability` (a redraw may give the same value)."""
        indices = list(self.encode(arch))
        for column, (_, _, allowed) in enumerate(self.positions):
            if rng.random() < probability:
                indices[column] = rng.randrange(len(allowed))
        return self.decode(indices)

    def crossover(self, first: Arch, second: Arch, rng: random.Random, probability: float = 0.5) -> Arch:
        """Every decision from `second` with `probability`, otherwise from `first` (uniform crossover)."""
        pairs = zip(self.encode(first), self.encode(second), strict=True)
        return self.decode([b if rng.random() < probability else a for a, b in pairs])

    def canonical(self, arch: Arch) -> Arch:
        """The same network with choices that have no effect reset, so that equal networks are equal values."""
        return arch if self._canonical is None else self._arch(self._canonical(self.options, arch.choices))

    def plan(self, arch: Arch) -> Plan:
        """The layers of `arch`, the only description of its network."""
        return self._plan(self.options, arch.choices)

    def restrict(self, allowed: Mapping[str, Sequence[Sequence[Value]]]) -> Space:
        """This space with fewer allowed values, `allowed[choice][position]`. Raises: UserError for an empty or foreign list."""
        choices = []
        for choice in self.choices:
            if choice.name in allowed:
                lists = allowed[choice.name]
                if len(lists) != len(choice.values):
                    raise UserError(f"restriction of '{choice.name}' has {len(lists)} positions, "
                                    f"space '{self.name}' has {len(choice.values)}")
                kept = []
                for position, (wanted, known) in enumerate(zip(lists, choice.values, strict=True)):
                    foreign = [value for value in wanted if not any(same_kind(value, k) for k in known)]
                    if foreign or not wanted:
                        raise UserError(f"restriction of '{choice.name}'[{position}] must be a non-empty part of {show(known)}, "
                                        f"got {show(wanted)}")
                    kept.append(tuple(k for k in known if any(same_kind(value, k) for value in wanted)))
                choice = replace(choice, values=tuple(kept))
            choices.append(choice)
        for name in allowed:
            self.choice(name)
        return replace(self, choices=tuple(choices))

    def freeze(self, arch: Arch, free: Iterable[str]) -> Space:
        """This space with every choice fixed to `arch` except the names in `free` (search over blocks or channels only)."""
        free = set(free)
        for name in free:
            self.choice(name)
        return self.restrict({n: [(value,) for value in values] for n, values in arch.choices.items() if n not in free})


@lru_cache(maxsize=1)
def list_spaces() -> tuple[str, ...]:
    """Names of all search spaces, sorted; a space is a module in ``oneshot_nas/spaces``."""
    folder = str(Path(__file__).parent / "spaces")
    return tuple(sorted(module.name for module in pkgutil.iter_modules([folder]) if not module.name.startswith("_")))


def option_table(name: str) -> dict[str, Option]:
    """Name -> `Option` of the space. Raises: UserError with the spaces there are."""
    if name not in list_spaces():
        raise UserError(f"unknown space {shorten(name)}; the spaces are {show(list_spaces())}")
    return importlib.import_module(f"oneshot_nas.spaces.{name}").OPTIONS


def parse_options(name: str, words: Iterable[str]) -> dict[str, Setting]:
    """Return the options of ``key=value`` words, as a command line has them. Raises: UserError."""
    table = option_table(name)
    options: dict[str, Setting] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"option {shorten(word)} is not key=value, such as classes=10; space '{name}' has {show(table)}")
        options[key] = table[key].parse(key, text, name) if key in table else text
    return options


def get_space(name: str, /, **options: Any) -> Space:
    """Return the space of that name; options left out take their defaults. Raises: UserError.

    Example: ``get_space("spos_shufflenet", classes=10, input_size=32)``
    """
    table = option_table(name)
    unknown = sorted(set(options) - set(table))
    if unknown:
        raise UserError(f"unknown option {show(unknown)} of space '{name}'; it has {show(table)}")
    module = importlib.import_module(f"oneshot_nas.spaces.{name}")
    resolved = FrozenDict({key: option.check(key, options.get(key, option.default), name) for key, option in table.items()})
    return Space(name, resolved, module.choices(resolved), module.plan, module.units, getattr(module, "canonical", None))


def space_of(arch: Arch) -> Space:
    """The whole space that `arch` belongs to."""
    return get_space(arch.space, **arch.options)
