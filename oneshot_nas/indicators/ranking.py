"""How well an indicator ranks architectures: Kendall's tau and top-k regret against stand-alone training results.

Higher scores are better on both sides. As a tool, with the names of the scores where they are not "score":

    python -m oneshot_nas.indicators.ranking INDICATOR.jsonl STANDALONE.jsonl [SCORE [STANDALONE_SCORE]]
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from oneshot_nas.arch import Arch, read_arch, space_of
from oneshot_nas.errors import UserError
from oneshot_nas.files import parse_json, read_text

BY_LINE = "line "  # before the line number of a score without an architecture


@dataclass(frozen=True)
class Agreement:
    """How an indicator ranks `count` architectures: Kendall's tau-b (None where undefined) and regret by k."""

    count: int
    kendall_tau: float | None
    regret: Mapping[int, float]


def kendall_tau(indicator: Sequence[float], standalone: Sequence[float]) -> float:
    """Kendall's tau-b from -1 to 1: agreement of two rankings, ties counted on neither side; nan when one side is all equal.

    Raises: UserError for lists of different lengths, fewer than two values or values that are no numbers.
    """
    from scipy.stats import kendalltau

    _check(indicator, standalone, 2)
    return float(kendalltau(indicator, standalone).statistic)


def top_k_regret(indicator: Sequence[float], standalone: Sequence[float], k: int = 1) -> float:
    """What is lost by training only the indicator's best `k`: the best stand-alone score minus the best among these.

    In the unit of the stand-alone scores, 0 when the best is among them. Where the indicator gives equal scores the worst
    order is assumed, so that an indicator that says nothing is not lucky. Raises: UserError.
    """
    _check(indicator, standalone, 1)
    if not 1 <= k <= len(indicator):
        raise UserError(f"top-k regret needs k from 1 to {len(indicator)}, the number of architectures; got {k}")
    order = sorted(range(len(indicator)), key=lambda i: (-indicator[i], standalone[i]))
    return max(standalone) - max(standalone[i] for i in order[:k])


def compare(indicator: Sequence[float], standalone: Sequence[float], ks: Sequence[int] = (1, 3, 5)) -> Agreement:
    """Tau and the regrets of those `ks` that the number of architectures allows. Raises: UserError."""
    tau = kendall_tau(indicator, standalone)
    regret = {k: top_k_regret(indicator, standalone, k) for k in ks if k <= len(indicator)}
    return Agreement(len(indicator), None if math.isnan(tau) else tau, regret)


def compare_files(indicator: str, standalone: str, indicator_score: str = "score", standalone_score: str = "score",
                  ks: Sequence[int] = (1, 3, 5)) -> Agreement:
    """`compare` for two JSON Lines files (see `read_scores`), over the architectures that both hold. Raises: UserError."""
    first, second = read_scores(indicator, indicator_score), read_scores(standalone, standalone_score)
    return compare(*paired(first, second, (indicator, standalone)), ks)


def read_scores(path: str, score: str = "score") -> dict[str, float]:
    """Scores by network of a JSON Lines file; a network that occurs twice counts with its last line.

    A line is ``{"arch": {...}, "score": number}``, or one of ``oneshot-nas evaluate --json`` or ``history --json``, which hold
    the name `score` ("score" then means "top1"); a candidate that failed is left out. A line without an architecture, which
    may be the number alone, counts by its line number.

    Raises: UserError that names the line.
    """
    return {f"{BY_LINE}{number}" if arch is None else _network(arch): value for number, arch, value in _lines(path, score)}


def scored_archs(path: str, score: str = "top1") -> list[tuple[Arch, float]]:
    """Architectures and scores of such a file. Raises: UserError that names the line, also of a score without architecture."""
    found = []
    for number, arch, value in _lines(path, score):
        if arch is None:
            raise UserError(f"{path} line {number} has no architecture; "
                            f'a line is an object such as {{"arch": {{...}}, "{score}": 0.7}}')
        found.append((arch, value))
    return found


def _lines(path: str, score: str) -> list[tuple[int, Arch | None, float]]:
    """Number, architecture and score of every line that has one."""
    found: list[tuple[int, Arch | None, float]] = []
    for number, line in enumerate(read_text(path, "scores").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        content = parse_json(line, where)
        entry = content if isinstance(content, dict) else {score: content}
        if entry.get("error"):
            continue
        value = entry.get(score)
        if value is None:  # of `history --json` within "scores", of `evaluate --json` outside
            held = entry["scores"] if isinstance(entry.get("scores"), dict) else entry
            value = held.get("top1" if score == "score" else score)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{where} has no finite number '{score}'; a line is a number, or an object such as "
                            f'{{"arch": {{...}}, "{score}": 0.7}}')
        found.append((number, read_arch(entry["arch"], where) if "arch" in entry else None, float(value)))
    if not found:
        raise UserError(f"{path} holds no scores; write one JSON object with '{score}' per line")
    return found


def _network(arch: Arch) -> str:
    """What is equal for architectures that are the same network."""
    return space_of(arch).canonical(arch).key


def paired(first: Mapping[str, float], second: Mapping[str, float],
           names: tuple[str, str] = ("the first", "the second")) -> tuple[list[float], list[float]]:
    """Both scores of every network that has both; scores without architectures must correspond line by line.

    Raises: UserError when fewer than two are common, or lines do not correspond.
    """
    common = [key for key in first if key in second]
    if any(key.startswith(BY_LINE) for key in [*first, *second]) and first.keys() != second.keys():
        raise UserError("without 'arch' on every line the two files must correspond line by line; "
                        f"they have {len(first)} and {len(second)} scores")
    if len(common) < 2:
        raise UserError(f"{names[0]} has {len(first)} architectures, {names[1]} {len(second)}, and {len(common)} are in both; "
                        "a ranking needs at least two in common")
    return [first[key] for key in common], [second[key] for key in common]


def _check(indicator: Sequence[float], standalone: Sequence[float], least: int) -> None:
    if len(indicator) != len(standalone):
        raise UserError(f"a ranking compares two scores of the same architectures, got {len(indicator)} and {len(standalone)}")
    if len(indicator) < least:
        raise UserError(f"a ranking needs at least {least} architectures, got {len(indicator)}")
    if not all(map(math.isfinite, [*indicator, *standalone])):
        raise UserError("a ranking needs finite numbers; leave out architectures that failed")


def main(arguments: Sequence[str]) -> int:
    """Print the agreement of two files as JSON. Returns: 0, or 2 with one line on stderr."""
    if not 2 <= len(arguments) <= 4:
        print("usage: python -m oneshot_nas.indicators.ranking INDICATOR.jsonl STANDALONE.jsonl [SCORE [STANDALONE_SCORE]]",
              file=sys.stderr)
        return 2
    indicator, standalone, first, second = (*arguments, "score", "score")[:4]
    try:
        print(json.dumps(asdict(compare_files(indicator, standalone, first, second))))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
