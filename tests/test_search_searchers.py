"""Proposals: pure, legal, new, bounded; evolution as published; stages; the objective; limits out of reach."""

import random
from dataclasses import replace

import pytest

from oneshot_nas.arch import get_space
from oneshot_nas.costs.analytic import cost, micronet
from oneshot_nas.costs.limits import Limits
from oneshot_nas.errors import UserError
from oneshot_nas.search.batch import Rules, countable
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.searchers import SEARCHERS, evolution, nsga2, random_search
from oneshot_nas.search.task import OBJECTIVES, Objective, SearchTask, parse_over

UNORDERED = ("random", "evolution", "nsga2")  # for spaces with unordered choices, too
SPACE = get_space("spos_shufflenet", classes=10, input_size=32, layout="small")
LIMITS = Limits(flops=(4e6, 5e6), params=(0, 0.9e6))
PUBLISHED = {"block": ("shuffle3",) * 20, "scale": (1.0,) * 20}


def fitness(candidate):
    return candidate.scores["top1"]


def score(arch):
    """Larger where blocks are xception and scales are even: something evolution can climb."""
    even = sum(scale in (0.4, 0.8, 1.2) for scale in arch.choices["scale"])
    return arch.choices["block"].count("xception") / 20 + even / 40


def tiny(blocks=2, scales=2):
    """A space of blocks ** 2 * scales ** 2 architectures: all but two positions are fixed."""
    smallest = SPACE.smallest()
    allowed: dict[str, list] = {name: [(value,) for value in values] for name, values in smallest.choices.items()}
    for name, count in (("block", blocks), ("scale", scales)):
        allowed[name][3:5] = [choice[:count] for choice in SPACE.choice(name).values[3:5]]
    return SPACE.restrict(allowed)


def listed(space, limits):
    found = countable(space, limits)
    assert found is not None
    return found


def run(task, count, failing=()):
    """The history of `count` candidates, batch by batch."""
    history: list[Candidate] = []
    while len(history) < count:
        batch = task.propose(history, len(history))
        for proposal in batch:
            index = len(history)
            arch, parents = proposal
            scores = {"top1": score(arch), **task.objective.extra(task.space, arch)}
            failed = index in failing
            history.append(Candidate(index, arch, cost(arch), {} if failed else scores, parents, error="no" if failed else None))
        if len(batch) < task.population:
            break
    return history


@pytest.mark.parametrize("algorithm", UNORDERED)
def test_proposals_are_legal_new_and_repeatable(algorithm):
    task = SearchTask(SPACE, LIMITS, algorithm, population=20, seed=3)
    history = run(task, 100, failing={5, 21})
    assert len({c.arch for c in history}) == 100
    assert all(LIMITS.reject(c.cost) is None for c in history)
    assert run(task, 100, failing={5, 21}) == history
    assert [c.arch for c in run(replace(task, seed=4), 20)] != [c.arch for c in history[:20]]
    for candidate in history:
        first = candidate.index - candidate.index % 20
        assert all(parent < first and history[parent].ok for parent in candidate.parents)
    assert any(c.parents for c in history) == (algorithm != "random")


@pytest.mark.parametrize("algorithm", UNORDERED)
def test_a_batch_depends_only_on_what_came_before_it(algorithm):
    task = SearchTask(SPACE, LIMITS, algorithm, population=10)
    history = run(task, 40)
    assert task.propose(history, 20) == task.propose(history[:20], 20) == task.propose(history[:33], 20)


def test_evolution_is_that_of_the_paper():
    task = SearchTask(SPACE, LIMITS, population=50)
    history = run(task, 100)
    best = {c.index for c in sorted(history[:50], key=lambda c: -fitness(c))[:10]}
    mutated, crossed = history[50:75], history[75:]
    assert all(len(c.parents) == 1 and set(c.parents) <= best for c in mutated)
    assert all(len(c.parents) == 2 and set(c.parents) <= best for c in crossed)
    for child in mutated:
        parent = history[child.parents[0]].arch
        changed = sum(a != b for a, b in zip(SPACE.encode(child.arch), SPACE.encode(parent), strict=True))
        assert 1 <= changed <= 16  # 40 decisions, each redrawn with probability 0.1
    for child in crossed:
        a, b = (history[parent].arch for parent in child.parents)
        for name in a.choices:
            assert all(x in pair for x, *pair in zip(child.arch.choices[name], a.choices[name], b.choices[name], strict=True))


def test_evolution_and_nsga2_climb_higher_than_random():
    best = {name: max(map(fitness, run(SearchTask(SPACE, LIMITS, name, population=25), 300))) for name in UNORDERED}
    assert best["evolution"] > best["random"] + 0.1
    assert best["nsga2"] > best["random"]


def test_nsga2_spreads_over_costs():
    limits = Limits(flops=(2.5e6, 9e6))
    cheap = {}
    for name in UNORDERED:
        history = run(SearchTask(SPACE, limits, name, population=25, against=("flops",)), 300)
        cheap[name] = sum(c.cost.flops < 3.65e6 for c in history)
    assert cheap["nsga2"] > 60 > 30 > max(cheap["random"], cheap["evolution"]), cheap


def test_first_batch_is_uniform_for_every_algorithm():
    batches = [SearchTask(SPACE, LIMITS, name).propose([], 0) for name in UNORDERED]
    assert batches[0] == batches[1] == batches[2]
    assert not any(proposal.parents for proposal in batches[0])


@pytest.mark.parametrize("algorithm", UNORDERED)
def test_a_small_space_is_searched_to_its_end(algorithm):
    space = tiny()
    history = run(SearchTask(space, algorithm=algorithm, population=6), 100)
    assert len({c.arch for c in history}) == len(history) == space.size == 16
    rules = Rules(Limits(), fitness)
    assert SEARCHERS[algorithm](space, history, random.Random(0), 3, rules) == []


def test_countable_lists_what_is_inside_the_limits():
    space = tiny(4, 10)
    costs = sorted(cost(arch).flops for _, arch in listed(space, Limits()))
    assert len(costs) == space.size == 1600
    middle = Limits(flops=(costs[400], costs[800]))
    assert len(listed(space, middle)) == sum(costs[400] <= c <= costs[800] for c in costs)
    assert countable(SPACE, Limits()) is None


def test_equal_networks_are_proposed_once():
    def canonical(options, choices):  # as if the last scale had no effect
        return {**choices, "scale": (*choices["scale"][:4], 0.2, *choices["scale"][5:])}

    space = replace(tiny(), _canonical=canonical)
    countable.cache_clear()
    history = run(SearchTask(space, algorithm="random", population=3), 100)
    assert len(history) == len({space.canonical(c.arch) for c in history}) == 8
    countable.cache_clear()


def test_an_empty_history_with_hopeless_limits_is_an_error():
    with pytest.raises(UserError, match="reachable is"):
        SearchTask(SPACE, Limits(flops=(1e12, 2e12))).check()
    with pytest.raises(UserError, match="population of 17 is larger than the 16"):
        SearchTask(tiny(), population=17).check()
    costs = sorted({cost(arch).flops for _, arch in listed(tiny(), Limits())})
    with pytest.raises(UserError, match="no architecture"):
        SearchTask(tiny(), Limits(flops=(costs[0] + 1, costs[1] - 1))).check()


def test_narrow_limits_end_a_search_of_a_large_space(monkeypatch):
    import oneshot_nas.costs.limits as limits
    import oneshot_nas.search.batch as batch

    monkeypatch.setattr(limits, "DRAWS", 3 * limits.BATCH)
    monkeypatch.setattr(batch, "COUNTABLE", 1)
    countable.cache_clear()
    space = tiny(4, 2)
    history = run(SearchTask(space, algorithm="random", population=50), 1000)
    assert len({c.arch for c in history}) == len(history) == space.size == 64
    countable.cache_clear()


@pytest.mark.parametrize(("changes", "message"), [
    ({"algorithm": "anneal"}, "'random', 'evolution', 'nsga2'"), ({"budget": 0}, "budget must be at least 1"),
    ({"population": 0}, "population must be"), ({"top_k": 0}, "top-k must be"), ({"mutation": 0.0}, "mutation probability"),
    ({"against": ("latency",)}, "flops"), ({"stages": (("block",), ("scale",)), "budget": 50}, "at least 2 populations"),
])
def test_bad_settings_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        replace(SearchTask(SPACE, LIMITS), **changes).check()


def test_over_words():
    assert parse_over(None, SPACE) == parse_over("block,scale", SPACE) == parse_over("scale, block", SPACE) == ()
    assert parse_over("block", SPACE) == (("block",),)
    assert parse_over("block+scale", SPACE) == (("block",), ("scale",))
    for text, message in (("width", "no choice '.*width"), ("block+block", "twice"), ("", "no choice")):
        with pytest.raises(UserError, match=message):
            parse_over(text, SPACE)


def test_search_over_blocks_keeps_the_default_scale():
    history = run(SearchTask(SPACE, stages=(("block",),), population=10), 40)
    assert {c.arch.choices["scale"] for c in history} == {(1.0,) * 20}
    assert len({c.arch.choices["block"] for c in history}) == 40


def test_search_over_scales_fixes_the_blocks():
    task = SearchTask(SPACE, stages=(("scale",),), population=10)
    assert {c.arch.choices["block"] for c in run(task, 30)} == {("shuffle3",) * 20}
    history = run(replace(task, base=SPACE.arch(PUBLISHED)), 30)
    assert {c.arch.choices["block"] for c in history} == {PUBLISHED["block"]}
    other = get_space("spos_shufflenet").arch(PUBLISHED)
    with pytest.raises(UserError, match="option"):
        replace(task, base=other).check()


def test_two_stages_fix_the_best_blocks_before_the_scales():
    task = SearchTask(SPACE, stages=(("block",), ("scale",)), population=10, budget=60)
    history = run(task, 60)
    first, second = history[:30], history[30:]
    assert {c.arch.choices["scale"] for c in first} == {(1.0,) * 20}
    best = max(first, key=lambda c: (fitness(c), -c.index))
    assert {c.arch.choices["block"] for c in second} == {best.arch.choices["block"]}
    assert len({c.arch for c in history}) == 60
    assert any(best.index in c.parents for c in second)
    assert max(map(fitness, second)) > fitness(best)


def test_an_exhausted_stage_hands_over_to_the_next():
    space = tiny()  # 4 blocks, 4 scales; 0.2 is not the default scale, so a base is given
    task = SearchTask(space, stages=(("block",), ("scale",)), population=6, budget=12, base=space.smallest())
    history = run(task, 12)
    assert len({c.arch for c in history}) == len(history) == 4 + 3  # all blocks, then the other scales of the best
    assert history == run(task, 12)


def test_micronet_objective_trades_accuracy_for_cost():
    arch = SPACE.arch(PUBLISHED)
    objective = OBJECTIVES["micronet"]
    found = objective.extra(SPACE, arch)
    assert found == {"micronet": micronet(SPACE.plan(arch)).score}
    assert objective.of({"top1": 0.7, **found}) == 0.7 - 0.1 * found["micronet"]
    assert OBJECTIVES["top1"].extra(SPACE, arch) == {}
    assert OBJECTIVES["top1"].of({"top1": 0.7}) == 0.7
    heavy = run(SearchTask(SPACE, population=20), 120)
    light = run(SearchTask(SPACE, population=20, objective=Objective("micronet", micronet_weight=20)), 120)
    assert min(c.cost.flops for c in light) < 0.8 * min(c.cost.flops for c in heavy)


def test_a_missing_score_is_named():
    with pytest.raises(UserError, match="needs the score 'top1', the indicator gives \\('bn-gamma'\\)"):
        OBJECTIVES["top1"].of({"bn-gamma": 1})


def test_fingerprint_is_json_and_holds_what_decides():
    task = SearchTask(SPACE, LIMITS)
    assert task.fingerprint() == replace(task, budget=7).fingerprint()
    for changes in ({"seed": 1}, {"limits": Limits()}, {"population": 9}, {"algorithm": "random"},
                    {"objective": OBJECTIVES["micronet"]}, {"stages": (("block",),)}, {"about": {"epoch": 3}}, {"space": tiny()},
                    {"mutation": 0.2}, {"top_k": 5}):
        assert replace(task, **changes).fingerprint() != task.fingerprint(), changes
    staged = replace(task, stages=(("block",), ("scale",)))
    assert staged.fingerprint() != replace(staged, budget=200).fingerprint()


def test_every_searcher_takes_the_same_arguments():
    for searcher in (random_search, evolution, nsga2):
        assert len(searcher(SPACE, [], random.Random(0), 2, Rules(LIMITS, fitness))) == 2
