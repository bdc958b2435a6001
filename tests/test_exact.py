"""Exact sums over all architectures: bounds, counting and drawing inside limits, the best inside limits, the front."""

import itertools
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oneshot_nas.arch import get_space
from oneshot_nas.costs import draw, labels, limits
from oneshot_nas.costs.analytic import Cost, cost
from oneshot_nas.costs.chain import Step, chain
from oneshot_nas.costs.draw import count_within, distribution
from oneshot_nas.costs.exact import Scored, best_within, score_front
from oneshot_nas.costs.labels import START, Problem, best_labels, front_labels, reaches, resource
from oneshot_nas.costs.limits import ANY, Limits, check_reachable, parse_limits, sample_within
from oneshot_nas.costs.scores import BITS, Scores
from oneshot_nas.costs.table import CostTable, UnitTable, cost_table, reachable
from oneshot_nas.errors import UserError, WorkError

SPOS = get_space("spos_shufflenet")
BNNAS = get_space("proxyless_gpu", variant="bnnas")
ATTENTIVE = get_space("attentive_mobilenet")
SCALE_CASES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def few(space, columns):
    """The space with all but the decisions in `columns` fixed to their first value."""
    allowed: dict[str, list] = {choice.name: [(values[0],) for values in choice.values] for choice in space.choices}
    for column in columns:
        name, position, values = space.positions[column]
        allowed[name][position] = values
    return space.restrict(allowed)


def shared():
    """5,184 architectures whose stages share the resolution and their widths."""
    space = get_space("attentive_mobilenet", layout="small", input_size=32)
    wanted = {("resolution", 0), ("width", 1), ("width", 2), ("width", 3), ("depth", 1), ("kernel", 2), ("expand", 3),
              ("width", 6), ("depth", 5), ("width", 8)}
    return few(space, [column for column, (name, position, _) in enumerate(space.positions) if (name, position) in wanted])


def apart():
    """1,600 architectures whose cost units share nothing."""
    return few(SPOS, [0, 9, 20, 29])


SMALL = {"shared": shared(), "apart": apart()}


def everything(space):
    """Indices of all architectures, their FLOPs and params."""
    indices = np.array(list(itertools.product(*(range(len(allowed)) for _, _, allowed in space.positions))))
    return indices, *cost_table(space)(indices)


@st.composite
def tables(draw_from):
    """Cost tables of random units that share decisions in any way, with the number of values of every column."""
    sizes = draw_from(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    scale = draw_from(st.sampled_from([1, 1, 12]))
    units = []
    for number in range(draw_from(st.integers(1, 4))):
        columns = tuple(draw_from(st.lists(st.sampled_from(range(len(sizes))), max_size=3, unique=True)))
        counts = [sizes[column] for column in columns]
        strides = tuple(int(np.prod(counts[place + 1 :])) for place in range(len(counts)))
        amounts = [draw_from(st.lists(st.integers(0, 40), min_size=int(np.prod(counts)), max_size=int(np.prod(counts))))
                   for _ in range(2)]
        units.append(UnitTable(f"u{number}", columns, strides, np.array(amounts[0]) * scale, np.array(amounts[1])))
    fixed = Cost(draw_from(st.integers(0, 50)), 7)
    return CostTable("macs", fixed, tuple(units), tuple(unit for unit in units if unit.columns))


def rows_of(table):
    """All rows of the columns the table uses (others 0), their flops and params by hand."""
    sizes = {column: count for unit in table.units for column, count in zip(unit.columns, unit.counts, strict=True)}
    width = max(sizes, default=0) + 1
    rows = np.array(list(itertools.product(*(range(sizes.get(column, 1)) for column in range(width)))))
    totals = [getattr(table.fixed, name) + sum(
        getattr(unit, name)[sum((rows[:, c] * s for c, s in zip(unit.columns, unit.strides, strict=True)),
                                np.zeros(len(rows), int))] for unit in table.units) for name in ("flops", "params")]
    return rows, totals[0], totals[1]


@SCALE_CASES
@given(table=tables(), low=st.integers(0, 900), width=st.integers(0, 400), work=st.sampled_from([1, 60, 2**27]),
       name=st.sampled_from(["flops", "params"]), seed=st.integers(0, 99))
def test_counting_and_drawing_on_random_tables(table, low, width, work, name, seed, monkeypatch):
    rows, *costs = rows_of(table)
    values = costs[name == "params"]
    assert reachable(table) == tuple((int(c.min()), int(c.max())) for c in costs)
    monkeypatch.setattr(draw, "MOST_WORK", work)
    for whole in (distribution(table, name), distribution(table, name, low, low + width)):
        window = whole.window(low, low + width)
        inside = int(((values >= low) & (values <= low + width)).sum())
        near = int(((values >= low - whole.slack) & (values <= low + width + whole.slack)).sum())
        assert inside <= window.count <= near
        if window.count:
            drawn = np.zeros((40, rows.shape[1]), int)
            window.fill(np.random.default_rng(seed), drawn)
            numbers = {tuple(row): value for row, value in zip(rows.tolist(), values.tolist(), strict=True)}
            got = np.array([numbers[tuple(row)] for row in drawn.tolist()])
            assert ((got >= low - whole.slack) & (got <= low + width + whole.slack)).all()
    if work == 2**27:
        assert whole.slack == 0


@settings(SCALE_CASES, max_examples=200)
@given(table=tables(), data=st.data())
def test_the_best_of_random_tables_is_that_of_brute_force(table, data):
    rows, flops, params = rows_of(table)
    scores = [np.array(data.draw(st.lists(st.integers(-3, 9), min_size=len(u.flops), max_size=len(u.flops))))
              for u in table.units]
    total = sum(s[sum((rows[:, c] * k for c, k in zip(u.columns, u.strides, strict=True)), np.zeros(len(rows), int))]
                for s, u in zip(scores, table.units, strict=True))
    ranges = []
    for values in (flops, params):
        low, high = sorted(data.draw(st.tuples(st.integers(0, len(rows) - 1), st.integers(0, len(rows) - 1))))
        ordered = np.sort(values)
        ranges.append((int(ordered[low]) if data.draw(st.booleans()) else 0, int(ordered[high]) - data.draw(st.integers(0, 1))))
    top = data.draw(st.integers(1, 5))
    bounded = [resource(table.steps, table.weights(name), low - getattr(table.fixed, name), high - getattr(table.fixed, name))
               for name, (low, high) in zip(("flops", "params"), ranges, strict=True)]
    problem = Problem(table.steps, [s[step.entry] for s, step in zip(scores, table.steps, strict=True)], *bounded)
    width = data.draw(st.sampled_from([(2, 8, 10**6), (10**6,)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels, "WIDTHS", width)
        ways, found = best_labels(problem, top)
    inside = (flops >= ranges[0][0]) & (flops <= ranges[0][1]) & (params >= ranges[1][0]) & (params <= ranges[1][1])
    assert found.tolist() == sorted(total[inside].tolist(), reverse=True)[:top]
    assert len(np.unique(ways, axis=0)) == len(ways)


@pytest.mark.parametrize("limited", [("flops",), ("params",), ("flops", "params")])
@pytest.mark.parametrize("widths", [(10**6,), (4, 16, 10**6)])
def test_costs_that_conflict_with_scores(limited, widths, monkeypatch):
    """4,096 combinations each: high scores cost much of what is limited, so that greed and one-sided dominance fail."""
    monkeypatch.setattr(labels, "WIDTHS", widths)
    steps = chain([(column,) for column in range(6)], dict.fromkeys(range(6), 4))
    rows = np.array(list(itertools.product(range(4), repeat=6)))
    for seed in range(25):
        rng = np.random.default_rng(seed)
        scores = [rng.integers(0, 12, 4) for _ in steps]
        amounts = {name: [rng.integers(0, 30, 4) + (3 * score if name in limited else 0) for score in scores]
                   for name in ("flops", "params")}
        sums = {name: sum(part[rows[:, place]] for place, part in enumerate(parts))
                for name, parts in {**amounts, "score": scores}.items()}
        high = {name: int(np.quantile(sums[name], 0.3)) if name in limited else 10**9 for name in amounts}
        problem = Problem(steps, scores, *(resource(steps, amounts[name], 0, high[name]) for name in amounts))
        inside = (sums["flops"] <= high["flops"]) & (sums["params"] <= high["params"])
        for top in (1, 3):
            assert best_labels(problem, top)[1].tolist() == np.sort(sums["score"][inside])[::-1][:top].tolist()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("work", [2**27, 200])
def test_draws_are_uniform_by_exhaustive_enumeration(name, work, monkeypatch):
    """Exact counts, then a chi-square of draws; with little work allowed the grid is coarse and draws are rejected."""
    space = SMALL[name]
    indices, flops, _ = everything(space)
    monkeypatch.setattr(draw, "MOST_WORK", work)
    for cached in (draw._whole, draw._part):
        cached.cache_clear()
    ordered = np.sort(flops)
    wanted = Limits(flops=(float(ordered[300]), float(ordered[420])))
    inside = {tuple(row) for row in indices[wanted.inside(flops, flops)].tolist()}
    window = count_within(space, "macs", "flops", *wanted.flops)
    assert window.count == len(inside) if work == 2**27 else window.count > len(inside) and window.whole.slack > 0
    archs = sample_within(space, wanted, np.random.default_rng(1), 60 * len(inside))
    assert archs == sample_within(space, wanted, np.random.default_rng(1), 60 * len(inside))
    counts = Counter(space.encode(arch) for arch in archs)
    assert set(counts) == inside
    freedom = len(inside) - 1
    square = sum((count - 60) ** 2 / 60 for count in counts.values())
    assert abs(square - freedom) < 4.5 * (2 * freedom) ** 0.5  # normal approximation of chi-square
    for cached in (draw._whole, draw._part):
        cached.cache_clear()


@pytest.mark.parametrize("space", [SPOS, BNNAS, ATTENTIVE], ids=lambda space: space.name)
@pytest.mark.parametrize("key", ["flops", "params"])
def test_very_narrow_limits_take_no_rejection(space, key, monkeypatch):
    monkeypatch.setattr(limits, "DRAWS", 100)  # the whole space would need thousands
    ranges = reachable(cost_table(space))
    least, most = ranges[key == "params"]
    middle = (least + most) // 2
    for low, high in ((middle, middle + (most - least) * 3e-4), (least, least), (least, least + (most - least) * 2e-3),
                      (most - (most - least) * 1e-2, most)):
        wanted = Limits(**{key: (low, high)})
        drawn = sample_within(space, wanted, np.random.default_rng(0), 50)
        assert all(wanted.reject(cost(arch)) is None for arch in drawn)
        assert len(set(drawn)) >= min(15, count_within(space, "macs", key, low, high).count)


def test_both_limits_are_kept_and_draws_stay_uniform():
    space = SMALL["shared"]
    indices, flops, params = everything(space)
    wanted = Limits(flops=(float(np.quantile(flops, 0.3)), float(np.quantile(flops, 0.6))),
                    params=(float(np.quantile(params, 0.2)), float(np.quantile(params, 0.3))))
    inside = {tuple(row) for row in indices[wanted.inside(flops, params)].tolist()}
    counts = Counter(space.encode(arch) for arch in sample_within(space, wanted, np.random.default_rng(0), 60 * len(inside)))
    assert set(counts) == inside and len(inside) > 20
    freedom = len(inside) - 1
    assert abs(sum((count - 60) ** 2 / 60 for count in counts.values()) - freedom) < 4.5 * (2 * freedom) ** 0.5


def test_a_gap_between_costs_is_named(monkeypatch):
    costs = np.unique(everything(SMALL["apart"])[1])
    place = int(np.argmax(np.diff(costs)))
    gap = Limits(flops=(float(costs[place] + 1), float(costs[place + 1] - 1)))
    with pytest.raises(UserError, match=r"no architecture of 'spos_shufflenet' has FLOPs from [\d,]+ to [\d,]+, a gap"):
        sample_within(SMALL["apart"], gap, np.random.default_rng(0), 1)
    flat = {unit.name: np.ones(len(unit.flops)) for unit in cost_table(SMALL["apart"]).units}
    with pytest.raises(UserError, match="meets FLOPs .*a gap"):
        best_within(SMALL["apart"], flat, gap)
    monkeypatch.setattr(limits, "DRAWS", 500)
    monkeypatch.setattr(limits, "check_reachable", lambda *_: None)  # as if its bounds did not prove it
    least, most = reachable(cost_table(SPOS))
    with pytest.raises(UserError, match=r"none of [\d,]+ draws from 'spos_shufflenet' met"):
        sample_within(SPOS, Limits(flops=(0, least[0] * 1.001), params=(most[1] * 0.9, 1e9)), np.random.default_rng(0), 1)


@pytest.mark.parametrize("name", ["flops", "params"])
def test_both_ends_of_a_large_space_can_be_drawn(name):
    """At the top a handful of architectures stand beside 10^32 others: float64 must not swallow them."""
    for space in (SPOS, ATTENTIVE, BNNAS):
        ends = dict(zip(("flops", "params"), reachable(cost_table(space)), strict=True))[name]
        for end in ends:
            arch = sample_within(space, Limits(**{name: (end, end)}), np.random.default_rng(0), 3)[-1]
            assert getattr(cost(arch), name) == end


def test_bounds_are_exact_where_units_share_decisions():
    space = SMALL["shared"]
    _, flops, params = everything(space)
    assert reachable(cost_table(space)) == ((flops.min(), flops.max()), (params.min(), params.max()))
    assert reachable(cost_table(ATTENTIVE))[0] == (203_389_568, 1_939_335_808)  # its published smallest and largest networks
    check_reachable(ATTENTIVE, Limits(flops=(0, 203_389_568)))
    with pytest.raises(UserError, match="reachable is 203.4M:1.939G"):
        check_reachable(ATTENTIVE, Limits(flops=(0, 203_389_567)))


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_best_within_is_that_of_brute_force(name, data):
    space = SMALL[name]
    indices, flops, params = everything(space)
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    digits = data.draw(st.sampled_from([0, 1, 15]))  # few digits make ties
    rows = {choice.name: [np.round(rng.normal(size=len(allowed)), digits) for allowed in choice.values]
            for choice in space.choices}
    units = {unit.name: np.round(rng.normal(size=len(unit.flops)), digits) for unit in cost_table(space).units[1:3]}
    total = sum(row[indices[:, column]] for column, row in enumerate(row for each in rows.values() for row in each))
    for unit in cost_table(space).units[1:3]:
        total = total + units[unit.name][sum(indices[:, c] * s for c, s in zip(unit.columns, unit.strides, strict=True))]
    quantiles = st.floats(0.01, 1)
    low = data.draw(st.sampled_from([0.0, 0.4]))
    wanted = Limits(flops=(float(np.quantile(flops, low)) if low else 0, float(np.quantile(flops, data.draw(st.floats(low, 1))))),
                    params=(0, float(np.quantile(params, data.draw(quantiles)))) if data.draw(st.booleans()) else ANY)
    inside = wanted.inside(flops, params)
    top = data.draw(st.sampled_from([1, 3, 40]))
    if not inside.any():
        with pytest.raises(UserError, match="no architecture of"):
            best_within(space, {**rows, **units}, wanted, top)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels, "WIDTHS", data.draw(st.sampled_from([(3, 30, 10**6), (10**6,)])))  # few labels need the bounds
        found = best_within(space, {**rows, **units}, wanted, top)
    best = np.sort(total[inside])[::-1][:top]
    assert len(found) == len({scored.arch for scored in found}) == len(best)
    assert np.allclose([scored.score for scored in found], best, atol=1e-9)
    for scored in found:
        assert scored.cost == cost(scored.arch) and wanted.reject(scored.cost) is None
        place = np.nonzero((indices == space.encode(scored.arch)).all(axis=1))[0][0]
        assert scored.score == pytest.approx(total[place])


def random_scores(space, indices, seed, digits):
    """Scores of every decision, rounded to so many digits, and the total of every architecture."""
    rng = np.random.default_rng(seed)
    rows = {choice.name: [np.round(3 * rng.random(len(allowed)) + np.arange(len(allowed)), digits) for allowed in choice.values]
            for choice in space.choices}
    return rows, sum(row[indices[:, column]] for column, row in enumerate(row for each in rows.values() for row in each))


def front_of(flops, total):
    """(FLOPs, score) of the front, by looking at all architectures."""
    highest, found = -np.inf, []
    for place in np.lexsort((-total, flops)):
        if total[place] > highest + 1e-9:
            highest = total[place]
            found.append((int(flops[place]), float(highest)))
    return found


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("digits", [0, 15])
def test_the_front_is_that_of_brute_force(name, digits):
    space = SMALL[name]
    indices, flops, _ = everything(space)
    rows, total = random_scores(space, indices, 3, digits)
    expected = front_of(flops, total)
    found = score_front(space, rows)
    assert [scored.cost.flops for scored in found] == [point[0] for point in expected] and len(expected) > 5
    assert np.allclose([scored.score for scored in found], [point[1] for point in expected])
    cut = (expected[2][0] + 0.0, expected[-2][0] - 1.0)
    assert score_front(space, rows, Limits(flops=cut)) == found[2:-2]
    for scored in found[:: max(1, len(found) // 5)]:
        assert best_within(space, rows, Limits(flops=(0, scored.cost.flops)))[0].score == pytest.approx(scored.score)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("limited", ["params", "flops from", "both", "nothing inside the free front"])
def test_the_front_inside_limits_is_that_of_brute_force(name, limited):
    space = SMALL[name]
    indices, flops, params = everything(space)
    rows, total = random_scores(space, indices, 4, 1)
    low, high = np.quantile(flops, (0.3, 0.8))
    limits = {"params": Limits(params=(0, np.quantile(params, 0.4))), "flops from": Limits(flops=(low, high)),
              "both": Limits(flops=(low, np.inf), params=(np.quantile(params, 0.1), np.quantile(params, 0.5))),
              "nothing inside the free front": Limits(flops=(flops[np.argmin(total)], flops[np.argmin(total)]))}[limited]
    inside = limits.inside(flops, params)
    expected = [(cost, pytest.approx(score)) for cost, score in front_of(flops[inside], total[inside])]
    assert [(scored.cost.flops, scored.score) for scored in score_front(space, rows, limits)] == expected and expected


def test_the_published_space_takes_under_a_second():
    """Scores like those of BN-NAS at its limit, 475 M multiply-adds (LUT rule: 1.727 M more)."""
    rng = np.random.default_rng(0)
    scores = {"op": [np.sort(rng.gamma(4, 0.1, len(allowed))) if len(allowed) > 1 else [0.0]
                     for allowed in BNNAS.choice("op").values]}
    cost_table(BNNAS, "abs-lut")
    start = time.process_time()
    best = best_within(BNNAS, scores, Limits(flops=(0, 475e6), rule="abs-lut"), top=10)
    front = score_front(BNNAS, scores, Limits(rule="abs-lut"))
    assert time.process_time() - start < 1
    assert best[0].cost.flops <= 475e6 and [s.score for s in best] == sorted((s.score for s in best), reverse=True)
    assert max(s.score for s in front if s.cost.flops <= 475e6) == best[0].score
    drawn = sample_within(BNNAS, Limits(flops=(0, 475e6), rule="abs-lut"), np.random.default_rng(0), 2000)
    assert best[0].score >= max(sum(row[i] for row, i in zip(scores["op"], BNNAS.encode(arch), strict=True)) for arch in drawn)


def test_scores_may_name_values_and_decisions_without_cost():
    named = {"op": [{value: float(len(value)) if value != "skip" else 0.0 for value in ("skip", *allowed)}
                    for allowed in BNNAS.choice("op").values]}
    padded = np.full((21, 7), np.nan)
    for row, allowed in zip(padded, BNNAS.choice("op").values, strict=True):
        row[: len(allowed)] = [0.0 if value == "skip" else 4.0 for value in allowed]
    found = best_within(BNNAS, {"op": padded})[0]
    assert isinstance(found, Scored) and found.score == best_within(BNNAS, named)[0].score == 17 * 4
    other = SPOS.restrict({"block": [("shuffle3",)] * 19 + [("shuffle5", "xception")]})
    stretched = replace(other, _units=lambda options: SPOS.units[:3])  # scales of the other blocks cost nothing
    best = best_within(stretched, {"scale": [[*range(10)]] * 20}, Limits(flops=(0, 200e6)))[0]
    assert best.arch.choices["scale"][3:] == (2.0,) * 17


@pytest.mark.parametrize(("scores", "words"), [
    ({}, "must map choices or cost units"), ([1.0], "must map choices or cost units"),
    ({"kernel": [1.0]}, "scores of 'kernel': space 'proxyless_gpu' has the choices"),
    ({"op": [[1.0] * 6] * 20}, "need one row for each of its 21 positions, got 20"),
    ({"op": 3.0}, "need one row for each of its 21 positions"),
    ({"op": [[1.0] * 6] * 21}, r"scores of 'op'\[1\] are 6 numbers, 1 needed"),
    ({"op": [[1.0] * 5] + [[1.0]] * 20}, r"scores of 'op'\[0\] are 5 numbers, 6 needed"),
    ({"op": [[1.0] * 5 + [float("nan")]] + [[1.0]] * 20}, r"scores of 'op'\[0\] are not finite"),
    ({"op": [["a"] * 6] + [[1.0]] * 20}, r"scores of 'op'\[0\] must be numbers"),
    ({"op": [{"k3e3": 1.0}] + [[1.0]] * 20}, r"scores of 'op'\[0\] lack the values \('k3e6'"),
    ({"stage1.block1": [1.0, 2.0]}, "scores of unit 'stage1.block1' are 2 numbers, 6 needed"),
    ({"stage1.block1": [float("inf")] * 6}, "not finite"),
])
def test_bad_scores_are_named(scores, words):
    with pytest.raises(UserError, match=words):
        best_within(BNNAS, scores)


def test_limits_that_cannot_be_met_name_the_minimum():
    scores = {"stage1.block1": np.arange(6.0)}
    with pytest.raises(UserError, match=r"FLOPs in 0:330M; reachable is 391.7M:847.9M, exactly [\d,]+ to [\d,]+ \(rule macs\)"):
        best_within(BNNAS, scores, Limits(flops=(0, 330e6)))
    with pytest.raises(UserError, match="reachable is 391.7M"):
        score_front(BNNAS, scores, Limits(flops=(0, 330e6)))
    with pytest.raises(UserError, match=r"meets FLOPs 0:400M and params 7M:inf: with these params it has at least [\d.]+M FLOPs"):
        best_within(BNNAS, scores, Limits(flops=(0, 400e6), params=(7e6, float("inf"))))
    for top in (0, 10**6):
        with pytest.raises(UserError, match="top must be from 1 to"):
            best_within(BNNAS, scores, top=top)


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=30, deadline=None)
@given(ends=st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_what_is_said_to_be_out_of_reach_is(name, ends):
    """Limits on both costs: whatever the bounds refuse, no architecture meets, and the figure that is named holds."""
    _, flops, params = everything(SMALL[name])
    bounds = [tuple(np.quantile(costs, sorted(pair)).tolist()) for costs, pair in ((flops, ends[:2]), (params, ends[2:]))]
    wanted = Limits(*bounds)
    inside = wanted.inside(flops, params)
    try:
        check_reachable(SMALL[name], wanted)
    except UserError:
        assert not inside.any()
    table = cost_table(SMALL[name])
    for reach in reaches(*limits.resources(table, wanted)):
        own, other, (low, high) = (flops, params, bounds[1]) if reach.name == "flops" else (params, flops, bounds[0])
        left = own[(other >= low) & (other <= high)]
        end = float(reach.of(0, START)[0]) + getattr(table.fixed, reach.name)
        assert not len(left) or (end >= left.max() if reach.sign > 0 else end <= left.min())


def test_limits_that_contradict_each_other_are_refused_at_once():
    scores = {"block": np.random.default_rng(0).random((20, 4))}
    with pytest.raises(UserError, match="FLOPs 290M:330M and params 0:2.15M: with these params it has at most 251.8M FLOPs"):
        best_within(SPOS, scores, Limits((290e6, 330e6), (0, 2.15e6)))
    with pytest.raises(UserError, match="at most 251.8M FLOPs"):
        sample_within(SPOS, Limits((290e6, 330e6), (0, 2.15e6)), np.random.default_rng(0), 1)
    best = best_within(SPOS, scores, Limits((290e6, 330e6), (0, 2.195e6)))[0]  # just possible: bounds, not luck, find it
    assert best.cost.flops >= 290e6 and best.cost.params <= 2.195e6


def test_what_takes_too_much_memory_is_said(monkeypatch):
    monkeypatch.setattr(labels, "WIDTHS", (1,))
    scores = {"block": np.random.default_rng(0).random((20, 4))}
    with pytest.raises(WorkError, match="no proof of the best with 1 partial"):
        best_within(SPOS, scores, Limits(flops=(0, 3e8)))
    with pytest.raises(WorkError, match="the front has more than 1 partial"):
        score_front(SPOS, scores)
    with pytest.raises(WorkError, match="share so many decisions"):
        chain([tuple(range(12)), tuple(range(12))], dict.fromkeys(range(12), 10))


def test_front_of_a_chain_without_scores_is_its_cheapest():
    table = cost_table(BNNAS)
    problem = Problem(table.steps, [np.zeros_like(w) for w in table.weights("flops")],
                      *(resource(table.steps, table.weights(name), 0, float("inf")) for name in ("flops", "params")))
    ways = front_labels(problem)
    assert len(ways) == 1
    assert sum(w[t] for w, t in zip(table.weights("flops"), ways[0], strict=True)) + table.fixed.flops == reachable(table)[0][0]


def test_limits_are_parsed_in_one_place():
    assert parse_limits("290M:330M", None, "mmrazor") == Limits((290e6, 330e6), ANY, "mmrazor")
    assert parse_limits(None, ":4M") == Limits(ANY, (0, 4e6))
    for flops, params, rule, words in (("x", None, "macs", "FLOPs limit 'x'"), (None, "2:1", "macs", "params limit '2:1'"),
                                       (None, None, "x", "unknown cost rule")):
        with pytest.raises(UserError, match=words):
            parse_limits(flops, params, rule)


def test_sums_of_scores_have_no_order():
    """In float64, (1 + t) + t is 1 and (t + t) + 1 is more: equal totals would not be equal."""
    t = 2.0**-53
    scores = Scores({}, {0: np.array([1, t]), 1: np.array([t, t]), 2: np.array([t, 1])})
    step = Step(1, 2, np.zeros(2, np.int64), np.zeros(2, np.int64), (0, 1, 2), np.array([[0, 0, 0], [1, 0, 1]]))
    found = scores.along(SPOS, [step])[0]
    assert found[0] == found[1] == round((1 + 2 * t) * 2.0 ** (BITS - 2))
