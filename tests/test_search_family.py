"""Families: targets, even bins, the ends, dominated members; and coarse-to-fine: its grid, its steps, its limits."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage

from oneshot_nas.arch import get_space, read_archs
from oneshot_nas.costs.analytic import cost
from oneshot_nas.costs.limits import Limits
from oneshot_nas.costs.table import cost_table, reachable
from oneshot_nas.errors import UserError
from oneshot_nas.plots.search import search_scatter
from oneshot_nas.search.batch import Batch, Rules, countable
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.coarse import coarse_grid
from oneshot_nas.search.family import MOST_TARGETS, bin_of, bins, members, parse_targets, shares
from oneshot_nas.search.history import History
from oneshot_nas.search.loop import run_search
from oneshot_nas.search.pool import NOBODY, Pool, Rows, extreme, take
from oneshot_nas.search.result import result_content
from oneshot_nas.search.storage import claim_study
from oneshot_nas.search.task import SearchTask

ELASTIC = get_space("attentive_mobilenet", layout="small", input_size=32, classes=10)
SHUFFLE = get_space("spos_shufflenet", layout="small", input_size=32, classes=10)


def top1(arch):
    """Grows with cost, less so above, and more for some decisions than for others."""
    space = ELASTIC if arch.space == ELASTIC.name else SHUFFLE
    extra = sum(index * ((column % 3) - 1) for column, index in enumerate(space.encode(arch)))
    return 1 - 2e6 / cost(arch).flops + extra / 200


def run(task, count=None):
    """The history of a checked task, batch by batch."""
    task.check()
    history: list[Candidate] = []
    while len(history) < (count or task.budget):
        batch = task.propose(history, len(history))
        for arch, parents in batch:
            history.append(Candidate(len(history), arch, cost(arch), {"top1": top1(arch)}, parents))
        if len(batch) < task.population:
            break
    return history


def family(space, targets, limits=None, **settings):
    limits = limits or Limits()
    task = SearchTask(space, limits, **{"population": 16, "budget": 160, **settings})
    return task.for_targets(parse_targets(targets, space, limits))


@pytest.mark.parametrize("space", [ELASTIC, SHUFFLE], ids=lambda space: space.name)
def test_a_family_fills_all_bins_evenly_and_starts_with_the_ends(space):
    task = family(space, "8")
    history = run(task)
    least, most = reachable(cost_table(space))[0]
    assert [history[0].cost.flops, history[1].cost.flops] == [least, most]
    counts = np.bincount(bin_of(np.array([c.cost.flops for c in history]), task.targets), minlength=8)
    assert counts.tolist() == [20] * 8
    assert len({space.canonical(c.arch) for c in history}) == 160
    kinds = [len(c.parents) for c in history]
    assert min(kinds.count(1), kinds.count(2)) > 40
    assert run(task) == history
    assert task.propose(history, 32) == task.propose(history[:32], 32)


def test_parents_are_the_best_of_each_bin():
    task = family(ELASTIC, "4")
    history = run(task, 160)
    for first in range(16, 160, 16):
        best = {m.best.index for m in members(history[:first], task.objective.order, task.targets, task.limits) if m.best}
        assert {parent for c in history[first : first + 16] for parent in c.parents} <= best


def test_a_family_beats_random_draws_in_every_bin():
    found = {}
    for algorithm in ("random", "evolution"):
        task = family(ELASTIC, "6", algorithm=algorithm, budget=480)
        best = [m.best for m in members(run(task), task.objective.order, task.targets, task.limits)]
        found[algorithm] = [c.scores["top1"] for c in best if c]
    assert len(found["random"]) == len(found["evolution"]) == 6
    assert sum(a > b for a, b in zip(found["evolution"], found["random"], strict=True)) >= 5, found


def test_ends_outside_the_limits_are_left_out():
    task = family(ELASTIC, "3", Limits(flops=(3e6, 9e6), params=(0, 0.6e6)))
    history = run(task, 64)
    assert all(task.limits.reject(c.cost) is None for c in history)
    assert task.targets == (5e6, 7e6, 9e6) and task.limits.flops == (3e6, 9e6)
    assert not {history[0].arch, history[1].arch} & {ELASTIC.smallest(), ELASTIC.largest()}


def test_targets_that_are_listed():
    assert parse_targets("4M, 6M,8.5M", ELASTIC, Limits()) == (4e6, 6e6, 8.5e6)
    assert parse_targets("8M", ELASTIC, Limits()) == (8e6,)
    task = family(ELASTIC, "4M,6M")
    assert task.limits.flops == (0, 6e6) and bins(task.targets, task.limits) == [(0, 4e6), (4000001, 6e6)]
    history = run(task, 32)
    assert history[0].arch == ELASTIC.smallest() and max(c.cost.flops for c in history) <= 6e6
    most = reachable(cost_table(ELASTIC))[0][1]
    assert parse_targets("8", ELASTIC, Limits())[-1] == most
    assert parse_targets("1", ELASTIC, Limits()) == (most,)


@pytest.mark.parametrize(("text", "limits", "message"), [
    ("1M", Limits(), "FLOPs target 1M is outside the reachable range 1.904M:14.95M of 'attentive_mobilenet'"),
    ("4M,20M,30M", Limits(), "FLOPs target 20M, 30M is outside"), ("4M,9M", Limits(flops=(3e6, 8e6)), "9M .* 3M:8M"),
    ("6M,4M", Limits(), "growing"), ("4M,4M", Limits(), "growing"), ("4M,,6M", Limits(), "neither a number"),
    ("4M:6M", Limits(), "neither a number"), ("-3", Limits(), "neither a number"), ("", Limits(), "neither a number"),
    ("0", Limits(), "1 to 100"), (str(MOST_TARGETS + 1), Limits(), "1 to 100"), ("4", Limits(flops=(4e6, 4e6)), "do not fit"),
    ("8", Limits(flops=(20e6, 30e6)), "reachable is"), ("1e3", Limits(), "outside"),
])
def test_targets_out_of_reach_are_named(text, limits, message):
    with pytest.raises(UserError, match=message):
        parse_targets(text, ELASTIC, limits)


def test_tasks_with_wrong_targets_are_refused():
    with pytest.raises(UserError, match="algorithm 'nsga2'"):
        family(ELASTIC, "4", algorithm="nsga2").check()
    with pytest.raises(UserError, match="for_targets"):
        replace(family(ELASTIC, "4M,6M"), limits=Limits()).check()
    with pytest.raises(UserError, match="outside"):
        replace(family(ELASTIC, "4M,6M"), targets=(1.0, 6e6)).check()


def test_a_small_space_ends_with_every_network():
    small = SHUFFLE.restrict({
        "block": [(v,) for v in SHUFFLE.smallest().choices["block"][:18]] + [SHUFFLE.choice("block").values[0][:2]] * 2,
        "scale": [(v,) for v in SHUFFLE.smallest().choices["scale"][:18]] + [SHUFFLE.choice("scale").values[0][:2]] * 2})
    for targets in ("2", "100"):
        history = run(family(small, targets, population=6, budget=50))
        assert len({c.arch for c in history}) == len(history) == small.size == 16
    countable.cache_clear()


def candidate(index, flops, top1):
    arch = ELASTIC.smallest()
    return Candidate(index, arch, replace(cost(arch), flops=flops), {"top1": top1})


def test_taking_some_of_a_shared_order_leaves_the_others_to_the_next():
    space = ELASTIC
    batch = Batch(space, [], random.Random(0), 6, Rules(Limits(), lambda candidate: 0.0))
    rows = np.array([space.encode(space.sample(random.Random(i))) for i in range(4)])
    pool = Pool(Rows(rows, np.full((4, 2), NOBODY)), *batch.table(rows))
    order = iter(range(4))
    assert [take(batch, pool, order, 1), take(batch, pool, order, 2), take(batch, pool, order, 9)] == [1, 2, 1]
    assert [space.encode(proposal.arch) for proposal in batch.proposals] == [tuple(row) for row in rows.tolist()]


def test_dominated_members_are_marked_and_empty_bins_said():
    given = [candidate(0, 3, 0.5), candidate(1, 14, 0.6), candidate(2, 25, 0.6), candidate(3, 45, 0.61), candidate(4, 24, 0.59),
             candidate(5, 99, 0.9), Candidate(6, ELASTIC.smallest(), candidate(6, 1, 0).cost, error="no")]
    found = members(given, SearchTask(ELASTIC).objective.order, (10, 20, 30, 40, 50), Limits(flops=(0, 50)))
    assert [m.best and m.best.index for m in found] == [0, 1, 2, None, 3]
    assert [m.dominated_by and m.dominated_by.index for m in found] == [None, None, 1, None, None]
    assert [(m.above, m.target) for m in found] == [(0, 10), (10, 20), (20, 30), (30, 40), (40, 50)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=8), st.integers(0, 40))
def test_shares_level_the_bins(counted, wanted):
    counts = np.array([count for count, _ in counted])
    share = shares(counts, [flag for _, flag in counted], range(len(counted)), wanted)
    assert share.sum() == wanted and (share >= 0).all()
    level = counts + share
    assert all(level[b] <= level.min() + 1 for b in range(len(counted)) if share[b])


@pytest.mark.parametrize("rule", ["macs", "oneshot-mxnet-full"])
@pytest.mark.parametrize("space", [ELASTIC, SHUFFLE], ids=lambda space: space.name)
def test_extremes_are_exact(space, rule):
    found = tuple(cost(extreme(space, rule, largest), rule).flops for largest in (False, True))
    assert found == reachable(cost_table(space, rule))[0]
    assert extreme(ELASTIC, rule, False) == ELASTIC.smallest() and extreme(ELASTIC, rule, True) == ELASTIC.largest()


@pytest.mark.parametrize("task", [family(ELASTIC, "4", population=6, budget=24),
                                  SearchTask(ELASTIC, algorithm="coarse-to-fine", grid=8, population=5, budget=20)],
                         ids=["family", "coarse-to-fine"])
def test_an_interrupted_search_resumes_to_the_same_history(task):
    def work(storage, stop):
        number = claim_study(storage, "search", "memory", task.fingerprint(), task.directions())
        history, calls = History(storage, number, task.space, {}, "memory", stale_seconds=0), []

        def evaluate(arch):
            calls.append(arch)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return {"top1": top1(arch)}

        try:
            run_search(task, evaluate, history, progress=False)
        except KeyboardInterrupt:
            return None
        return [(c.index, c.arch, c.scores, c.parents) for c in history.candidates]

    whole, storage = work(InMemoryStorage(), 0), InMemoryStorage()
    for stop in (3, 8):
        assert work(storage, stop) is None
    assert work(storage, 0) == whole
    json.dumps(task.fingerprint())


def test_the_result_lists_the_family_and_the_picture_marks_it():
    task = family(ELASTIC, "5")
    history = run(task, 80)
    result = result_content(task, history, "done", None, [])
    assert [entry["target"] for entry in result["family"]] == list(task.targets)
    front = {entry["index"] for entry in result["front"]}
    for entry in result["family"]:
        assert entry["above"] < entry["best"]["cost"]["flops"] <= entry["target"]
        better = entry["dominated_by"]
        if better is not None:
            assert history[better].cost.flops <= entry["above"] and history[better].scores["top1"] >= entry["best"]["fitness"]
            assert entry["best"]["index"] not in front
    json.dumps(result)
    assert "family" not in result_content(replace(task, targets=()), history, "done", None, [])
    figure = search_scatter(history, 16, task.limits, targets=task.targets)
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert "family" in labels
    assert len(figure.axes[0].lines) == len(search_scatter(history, 16, task.limits).axes[0].lines) + len(task.targets)


# coarse to fine


def test_the_grid_stands_at_equal_relative_positions():
    grid = coarse_grid(ELASTIC, Limits(), 160)
    assert 100 < len(grid) <= 160 and len(set(grid)) == len(grid)
    assert grid[0] == ELASTIC.smallest() and grid[-1] == ELASTIC.largest()
    for arch in grid:
        for choice in ELASTIC.choices:
            places = [allowed.index(value) / (len(allowed) - 1)
                      for value, allowed in zip(arch.choices[choice.name], choice.values, strict=True) if len(allowed) > 1]
            assert max(places) - min(places) <= 0.5
    assert [cost(arch).flops for arch in grid] == sorted(cost(arch).flops for arch in grid)


def test_the_grid_is_finer_inside_narrow_limits_and_never_too_large():
    narrow = Limits(flops=(5e6, 6e6))
    inside = coarse_grid(ELASTIC, narrow, 160)
    assert len(inside) > sum(narrow.reject(cost(arch)) is None for arch in coarse_grid(ELASTIC, Limits(), 160))
    assert all(narrow.reject(cost(arch)) is None for arch in inside)
    assert 1 <= len(coarse_grid(ELASTIC, Limits(), 7)) <= 7
    large = coarse_grid(get_space("attentive_mobilenet"), Limits(), 160)
    assert {arch.choices["resolution"][0] for arch in large} == {192, 224, 256, 288}
    assert len({arch.choices["depth"] for arch in large}) == 3 and 130 < len(large) <= 160


def test_coarse_to_fine_tries_the_grid_then_neighbours_of_the_best():
    task = SearchTask(ELASTIC, Limits(flops=(4e6, 8e6)), "coarse-to-fine", population=20, budget=160, grid=40)
    history, grid = run(task), coarse_grid(ELASTIC, task.limits, 40)
    assert [c.arch for c in history[: len(grid)]] == list(grid)
    start = -(-len(grid) // 20) * 20
    for first in range(start, 160, 20):
        best = min(history[:first], key=task.objective.order)
        for c in history[first : first + 20]:
            assert c.parents == (best.index,)
            moves = np.abs(np.subtract(ELASTIC.encode(c.arch), ELASTIC.encode(best.arch)))
            assert moves.sum() >= 1 and moves.max() <= 2
    assert len({c.arch for c in history}) == 160
    assert max(c.scores["top1"] for c in history) > max(c.scores["top1"] for c in history[: len(grid)])


def test_coarse_to_fine_gives_a_family_too():
    task = family(ELASTIC, "4", algorithm="coarse-to-fine", grid=32, budget=160)
    found = members(run(task), task.objective.order, task.targets, task.limits)
    assert all(member.best for member in found) and sum(bool(m.best and m.best.parents) for m in found) >= 2


def test_coarse_to_fine_needs_order_and_a_budget():
    with pytest.raises(UserError, match=r"ordered; \('block'\) of 'spos_shufflenet' are not: search --over scale --base"):
        SearchTask(SHUFFLE, algorithm="coarse-to-fine").check()
    with pytest.raises(UserError, match=r"ordered; \('block'\) of 'spos_shufflenet' are not"):  # not only after the first stage
        SearchTask(SHUFFLE, algorithm="coarse-to-fine", stages=(("scale",), ("block",)), budget=400, grid=50).check()
    with pytest.raises(UserError, match="the coarse grid has .* architectures, a budget of 50 leaves nothing to refine"):
        SearchTask(ELASTIC, algorithm="coarse-to-fine", budget=50).check()
    with pytest.raises(UserError, match="grid must be at least 1"):
        SearchTask(ELASTIC, algorithm="coarse-to-fine", grid=0).check()
    history = run(SearchTask(SHUFFLE, algorithm="coarse-to-fine", stages=(("scale",),), base=SHUFFLE.largest(), population=5,
                             budget=30))
    assert len(history) == 30 and {c.arch.choices["block"] for c in history} == {SHUFFLE.largest().choices["block"]}
    assert history[0].arch.choices["scale"] == (0.2,) * 20


def test_what_decides_is_in_the_fingerprint():
    plain = SearchTask(ELASTIC)
    assert not {"targets", "grid", "screen"} & set(plain.fingerprint())
    assert family(ELASTIC, "4").fingerprint()["targets"] != family(ELASTIC, "5").fingerprint()["targets"]
    coarse = SearchTask(ELASTIC, algorithm="coarse-to-fine")
    assert coarse.fingerprint() != replace(coarse, grid=9).fingerprint()


def test_family_files_can_be_read_back(tmp_path):
    path = tmp_path / "family.jsonl"
    history = run(family(ELASTIC, "4"), 16)
    path.write_text("".join(json.dumps(c.arch.to_json()) + "\n" for c in history))
    assert list(read_archs(str(path))) == [c.arch for c in history]
