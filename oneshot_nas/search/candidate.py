"""One entry of the search history, a plain value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from oneshot_nas.arch import Arch
from oneshot_nas.costs.analytic import Cost


@dataclass(frozen=True)
class Candidate:
    """An architecture that was tried: our own consecutive `index`, its cost, its scores and where it came from.

    `parents` are indices of earlier candidates (none: drawn at random). `scores` is a function of the architecture;
    `seconds` and `timings` are not. A candidate whose evaluation failed has an `error` and no scores.
    """

    index: int
    arch: Arch
    cost: Cost
    scores: Mapping[str, float] = field(default_factory=dict)
    parents: tuple[int, ...] = ()
    seconds: float = 0.0
    timings: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    worker: str = ""

    @property
    def ok(self) -> bool:
        """Whether the evaluation succeeded."""
        return self.error is None

    def to_json(self) -> dict[str, Any]:
        """One line of ``history --json``."""
        content = {
            "index": self.index,
            "arch": self.arch.to_json(),
            "cost": asdict(self.cost),
            "scores": dict(self.scores),
            "parents": list(self.parents),
            "seconds": self.seconds,
            "timings": dict(self.timings),
            "worker": self.worker,
        }
        return content if self.ok else {**content, "error": self.error}
