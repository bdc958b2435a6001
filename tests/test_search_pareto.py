"""Non-dominated sorting and crowding against brute force and numbers found by hand."""

from itertools import islice

import numpy as np
import pytest

from oneshot_nas.arch import get_space
from oneshot_nas.costs.analytic import Cost
from oneshot_nas.errors import UserError
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.pareto import check_costs, crowding, fronts, non_dominated, pareto_front


def dominated(points, i):
    return any((p <= points[i]).all() and (p < points[i]).any() for p in points)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_non_dominated_equals_brute_force(columns):
    rng = np.random.default_rng(columns)
    for count in (0, 1, 2, 50):
        points = rng.integers(0, 6, (count, columns)).astype(float)  # few values: many ties and equal rows
        assert non_dominated(points).tolist() == [i for i in range(count) if not dominated(points, i)]


def test_fronts_peel_as_they_are_asked_for():
    points = np.array([[0, 3], [3, 0], [1, 4], [4, 1], [5, 5], [0, 3]], dtype=float)
    assert [front.tolist() for front in fronts(points)] == [[0, 1, 5], [2, 3], [4]]
    assert [front.tolist() for front in islice(fronts(points), 2)] == [[0, 1, 5], [2, 3]]


def test_crowding_of_a_line():
    points = np.array([[0, 10], [1, 9], [4, 6], [10, 0]], dtype=float)
    assert crowding(points).tolist() == [np.inf, pytest.approx(0.8), pytest.approx(1.8), np.inf]
    assert crowding(points[:1]).tolist() == [np.inf]
    assert crowding(np.ones((3, 2))).tolist() == [np.inf, 0, np.inf]


def candidate(index, score, flops, params, error=None):
    arch = get_space("spos_shufflenet", classes=10, input_size=32, layout="small").smallest()
    return Candidate(index, arch, Cost(flops, params), {} if error else {"top1": score}, error=error)


def test_pareto_front_is_cheapest_first_and_leaves_failures_out():
    found = [candidate(0, 0.5, 9, 1), candidate(1, 0.5, 8, 1), candidate(2, 0.4, 9, 0), candidate(3, 0, 1, 1, "no"),
             candidate(4, 0.9, 9, 9)]

    def top1(c):
        return c.scores["top1"]

    assert [c.index for c in pareto_front(found, top1)] == [1, 2, 4]
    assert [c.index for c in pareto_front(found, top1, ["flops"])] == [1, 4]
    assert [c.index for c in pareto_front(found, top1, ["params"])] == [2, 0, 1, 4]
    assert pareto_front([], top1) == []


@pytest.mark.parametrize("names", [(), ("latency",), ("flops", "flops")])
def test_costs_are_checked(names):
    with pytest.raises(UserError, match="flops"):
        check_costs(names)
