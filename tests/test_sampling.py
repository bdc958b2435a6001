"""Samplers: pure in (seed, epoch, step), inside their limits, and distributed as they say."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneshot_nas.arch import get_space
from oneshot_nas.config import Sampler
from oneshot_nas.costs.analytic import cost
from oneshot_nas.costs.limits import Limits
from oneshot_nas.costs.table import cost_table, reachable
from oneshot_nas.errors import UserError
from oneshot_nas.sections import Sandwich
from oneshot_nas.train import elastic
from oneshot_nas.train.elastic import bin_table
from oneshot_nas.train.sampling import at_least, describe, make_sampler

SPACE = get_space("spos_shufflenet")
SE_SPACE = get_space("spos_shufflenet", se=True, tail="pooled")  # the one whose box the predecessor strolled through
BOX: dict[str, Any] = {"flops": "190M:330M", "params": "2.8M:5M", "rule": "oneshot-mxnet"}
SAMPLERS = {
    "uniform": Sampler(),
    "late channels": Sampler(first_channel_epoch=3),
    "warm-up": Sampler(warmup="oneshot", first_channel_epoch=1),
    "floor": Sampler(least_scale=0.6),
    "bins": Sampler(name="bins", flops="290M:360M"),
    "box": Sampler(name="box", **BOX),
    "stroll": Sampler(name="stroll", **BOX),
    "stroll after the warm-up": Sampler(name="stroll", **BOX, warmup="oneshot", least_scale=0.6),
}


def draws(sampler, epochs, steps):
    return [sampler(epoch, step)[0] for epoch in range(epochs) for step in range(steps)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_is_a_pure_function_of_seed_epoch_and_step(name):
    ours, theirs = (make_sampler(SE_SPACE, SAMPLERS[name], seed=5) for _ in range(2))
    places = list(itertools.product((0, 1, 2, 11), (0, 1, 7, 300)))
    forward = [ours(*place)[0].key for place in places]
    backward = [theirs(*place)[0].key for place in reversed(places)]  # other order, other caches, a resumed run
    assert forward == backward[::-1]
    assert [ours(*place)[0].key for place in places] == forward
    assert len(set(forward)) == len(places)
    other = make_sampler(SE_SPACE, SAMPLERS[name], seed=6)
    assert all(other(*place)[0].key != key for place, key in zip(places, forward, strict=True))


def test_uniform_draws_every_value_of_every_decision_equally_often():
    archs = draws(make_sampler(SPACE, Sampler(), 0), 2, 1000)
    for choice in SPACE.choices:
        for position, allowed in enumerate(choice.values):
            counts = Counter(arch.choices[choice.name][position] for arch in archs)
            expected = len(archs) / len(allowed)
            assert set(counts) == set(allowed)
            assert sum((counts[value] - expected) ** 2 / expected for value in allowed) < 40  # chi-square, 9 degrees of freedom


# reference sheet, section 4.2: the smallest scale by epochs since channel selection began
TABLES = {
    "oneshot": [1.8, 1.6, 1.4, 1.2, 1.0, 1.0, 0.8, 0.8, 0.8, *[0.6] * 4, *[0.4] * 5, *[0.2] * 6, 0.2, 0.2],
    "shufflenetv2+": [1.8, 1.6, 1.6, *[1.4] * 3, *[1.2] * 4, *[1.0] * 5, *[0.8] * 6, *[0.6] * 15, 0.4, 0.2, 0.2],
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("floor", [None, 0.6])
def test_the_warm_up_tables_entry_by_entry(table, floor):
    first = 60
    sampler = make_sampler(SPACE, Sampler(warmup=table, first_channel_epoch=first, least_scale=floor), 0)
    for epoch in (0, 1, first - 1):
        assert {scale for step in range(8) for scale in sampler(epoch, step)[0].choices["scale"]} == {2.0}
    for since, smallest in enumerate(TABLES[table]):
        seen = {scale for step in range(20) for scale in sampler(first + since, step)[0].choices["scale"]}
        smallest = max(smallest, floor or 0)
        assert seen == {scale / 10 for scale in range(round(smallest * 10), 21, 2)}, since
    assert len(TABLES["oneshot"]) >= 24 and len(TABLES["shufflenetv2+"]) >= 37


def test_operators_join_the_first_one_over_the_warm_up():
    sampler, plain = (make_sampler(SPACE, Sampler(operator_warmup=epochs), 0) for epochs in (4, 0))
    shares = []
    for epoch in range(5):
        archs = [sampler(epoch, step)[0] for step in range(200)]
        assert len({scale for arch in archs for scale in arch.choices["scale"]}) == len(SPACE.choice("scale").values[0])
        for position, allowed in enumerate(SPACE.choice("block").values) if epoch else ():
            assert {arch.choices["block"][position] for arch in archs} == set(allowed)
        shares.append(np.mean([[block == "shuffle3" for block in arch.choices["block"]] for arch in archs]))
    assert shares == pytest.approx([1, 0.8125, 0.625, 0.4375, 0.25], abs=0.02)
    assert [sampler(4, step) for step in range(9)] == [plain(4, step) for step in range(9)]
    config = Sampler(name="box", flops="200M:330M", operator_warmup=4)
    assert "from epoch 5 on" in describe(SPACE, config, 9)
    assert set(make_sampler(SPACE, config, 0)(0, 0)[0].choices["block"]) == {"shuffle3"}


def test_blocks_are_drawn_freely_while_all_channels_are_at_their_largest():
    sampler = make_sampler(SPACE, Sampler(first_channel_epoch=4), 0)
    archs = draws(sampler, 4, 25)
    assert {scale for arch in archs for scale in arch.choices["scale"]} == {2.0}
    for position, allowed in enumerate(SPACE.choice("block").values):
        assert {arch.choices["block"][position] for arch in archs} == set(allowed)
    assert len(set(sampler(4, 0)[0].choices["scale"])) > 1


@pytest.mark.parametrize("name", ["box", "stroll"])
def test_limits_hold_for_every_draw(name):
    limits = Limits((190e6, 330e6), (2.8e6, 5e6), "oneshot-mxnet")
    for arch in draws(make_sampler(SE_SPACE, SAMPLERS[name], 1), 3, 60):
        assert limits.reject(cost(arch, "oneshot-mxnet")) is None


def test_limits_begin_when_all_scales_are_open():
    config = SAMPLERS["stroll after the warm-up"]  # its smallest scale, 0.6, joins 9 epochs after the start
    sampler = make_sampler(SE_SPACE, config, 0)
    early = [cost(sampler(epoch, 0)[0], "oneshot-mxnet").flops for epoch in range(2)]
    late = [cost(sampler(epoch, step)[0], "oneshot-mxnet").flops for epoch in (9, 30) for step in range(5)]
    assert min(early) > 330e6 and max(late) <= 330e6
    assert "from epoch 10 on, which 5 epochs do not reach" in describe(SE_SPACE, config, 5)
    assert "do not reach" not in describe(SE_SPACE, config, 50)


def test_bins_are_hit_uniformly_though_uniform_draws_are_not():
    sampler = make_sampler(SPACE, SAMPLERS["bins"], 0)
    flops = np.array([cost(arch).flops for arch in draws(sampler, 2, 350)])
    counts, _ = np.histogram(flops, bins=7, range=(290e6, 360e6))
    assert counts.sum() == len(flops)  # none outside
    assert ((counts - 100) ** 2 / 100).sum() < 22.5  # chi-square, 6 degrees of freedom, 0.1 %
    blocks = get_space("spos_shufflenet").restrict({"scale": [(1.0,)] * 20})  # official SPOS: blocks only, edge bins are rare
    found = {}
    for name in ("uniform", "bins"):
        costs = [cost(arch).flops for arch in draws(make_sampler(blocks, SAMPLERS[name], 0), 1, 350)]
        found[name], _ = np.histogram(costs, bins=7, range=(290e6, 360e6))
    assert found["uniform"][0] < 5 and found["uniform"][-1] < 10
    assert found["bins"].sum() == 350 and found["bins"].min() > 25


def test_an_empty_bin_is_an_error():
    narrow = SPACE.restrict({"scale": [(1.0,)] * 20, "block": [("shuffle3", "shuffle5")] * 20})
    assert cost(narrow.largest()).flops < 450e6
    with pytest.raises(UserError, match=r"sampler 'bins' with FLOPs 300M:600M and 2 bins: .*FLOPs in 450M:600M; reachable"):
        make_sampler(narrow, Sampler(name="bins", flops="300M:600M", bins=2), 0)


@pytest.mark.parametrize("variant", ["full", "mmrazor", "bnnas"])
def test_the_operator_that_warms_up_alone_is_no_skip(variant):
    space = get_space("proxyless_gpu", variant=variant)
    first = make_sampler(space, Sampler(operator_warmup=3), 0)(0, 5)[0]
    free = [value for value, (_, _, allowed) in zip(first.choices["op"], space.positions, strict=True) if len(allowed) > 1]
    assert set(free) == {"k3e3"} and len(free) == (17 if variant == "bnnas" else 21)


def small_space():
    """72 architectures: two blocks and one scale free."""
    blocks: list[tuple] = [("shuffle3",)] * 20
    scales: list[tuple] = [(1.0,)] * 20
    blocks[0], blocks[9] = ("shuffle3", "shuffle7", "xception"), ("shuffle3", "shuffle5", "xception")
    scales[5] = (0.2, 0.4, 0.6, 0.8, 1.0, 1.4, 1.6, 2.0)
    return SPACE.restrict({"block": blocks, "scale": scales})


def test_the_box_is_sampled_without_bias():
    space = small_space()
    every = [space.decode(indices) for indices in itertools.product(*(range(len(allowed)) for _, _, allowed in space.positions))]
    assert len(every) == 72
    flops = sorted(cost(arch).flops for arch in every)
    low, high = flops[20], flops[50]
    inside = {arch.key for arch in every if low <= cost(arch).flops <= high}
    sampler = make_sampler(space, Sampler(name="box", flops=f"{low}:{high}"), 0)
    counts = Counter(arch.key for arch in draws(sampler, 4, 40 * len(inside)))
    assert set(counts) == inside and len(inside) >= 31
    assert sum((count - 160) ** 2 / 160 for count in counts.values()) < 62  # chi-square, 30 degrees of freedom, 0.05 %


def test_strolling_covers_the_box_more_evenly_than_rejection():
    table = cost_table(SE_SPACE, "oneshot-mxnet")
    cells = {}
    for name in ("stroll", "box"):
        archs = draws(make_sampler(SE_SPACE, SAMPLERS[name], 0), 3, 448)  # whole rounds
        flops, params = table(np.array([SE_SPACE.encode(arch) for arch in archs]))
        cells[name], _, _ = np.histogram2d(flops, params, bins=(7, 8), range=((190e6, 330e6), (2.8e6, 5e6)))
    shares = {name: counts[counts > 0] / counts.sum() for name, counts in cells.items()}
    effective = {name: float(np.exp(-(share * np.log(share)).sum())) for name, share in shares.items()}
    assert effective["stroll"] > 1.6 * effective["box"]  # number of cells that would be as even; about 37 against 18
    rows = cells["stroll"].sum(axis=1)
    assert rows.min() > 0.4 * rows.max()  # every FLOPs band often
    assert cells["box"].sum(axis=1)[0] < 0.02 * cells["box"].sum()


def test_strolling_without_a_lower_bound_starts_at_the_smallest_network():
    """Cuts below it would all be walked by the smallest networks."""
    table = cost_table(SE_SPACE, "oneshot-mxnet")
    least = reachable(table)[0][0]
    config = SAMPLERS["stroll"].model_copy(update={"flops": ":330M"})
    archs = draws(make_sampler(SE_SPACE, config, 0), 3, 448)
    flops, _ = table(np.array([SE_SPACE.encode(arch) for arch in archs]))
    counts, _ = np.histogram(flops, bins=7, range=(least, 330e6))
    assert counts.min() > 0.4 * counts.max()


def test_strolling_visits_the_whole_walk_in_short_epochs_too():
    sampler = make_sampler(SE_SPACE, SAMPLERS["stroll"], 0)
    flops = np.array([cost(sampler(epoch, step)[0], "oneshot-mxnet").flops for epoch in range(60) for step in (0, 1)])
    counts, _ = np.histogram(flops, bins=7, range=(190e6, 330e6))
    assert counts.min() > 4


@pytest.mark.parametrize(("config", "words"), [
    (Sampler(flops="290M:330M"), "sampler 'uniform' keeps no limits"),
    (Sampler(name="box", flops="1M:2M"), "reachable is"),
    (Sampler(name="box", params="50M:"), "reachable is"),
    (Sampler(name="bins"), "needs both FLOPs bounds"),
    (Sampler(name="stroll", flops="290M:"), "needs both FLOPs bounds"),
    (Sampler(name="box", flops="330M:290M"), "LO <= HI"),
    (Sampler(least_scale=2.5), "leaves no scale"),
])
def test_what_cannot_be_sampled_is_said_before_training(config, words):
    with pytest.raises(UserError, match=words):
        make_sampler(SPACE, config, 0)


@pytest.mark.parametrize(("space", "config", "words"), [
    ("proxyless_gpu", Sampler(first_channel_epoch=5), "first_channel_epoch 5 holds every scale .*'proxyless_gpu' has no scales"),
    ("attentive_mobilenet", Sampler(operator_warmup=5), "operator_warmup 5 lets operators join; .* has sizes only"),
])
def test_warm_ups_of_what_a_space_does_not_have_are_refused(space, config, words):
    with pytest.raises(UserError, match=words):
        make_sampler(get_space(space), config, 0)


def test_only_operators_called_block_are_averaged():
    with pytest.raises(UserError, match="average_blocks averages the operators of choice .block.; space .proxyless_gpu. has"):
        make_sampler(get_space("proxyless_gpu"), Sampler(average_blocks=True), 0)


@given(least=st.floats(0.2, 2.0), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 500), step=st.integers(0, 10**6))
def test_no_scale_below_the_least_is_ever_drawn(least, seed, epoch, step):
    config = Sampler(least_scale=least, warmup="oneshot")
    arch = make_sampler(SPACE, config, seed)(epoch, step)[0]
    assert min(arch.choices["scale"]) >= least
    assert SPACE.check(arch) == arch
    assert at_least(SPACE, least).check(arch) == arch


# --- elastic spaces ---

ELASTIC = get_space("attentive_mobilenet")
SANDWICHES = {
    "flops": Sampler(name="flops", bins=20, sandwich=Sandwich(random=2)),
    "bestup": Sampler(name="bestup", bins=20, flops="203M:1000M", sandwich=Sandwich(random=2, smallest=False)),
    "worstup": Sampler(name="worstup", bins=20, sandwich=Sandwich(random=1)),
    "uniform": Sampler(sandwich=Sandwich(random=3)),
    "box": Sampler(name="box", flops="500M:600M", sandwich=Sandwich(random=2)),
}


def flops_of(arch):
    return cost(arch).flops


@pytest.mark.parametrize("name", SANDWICHES)
def test_a_sandwich_is_the_largest_then_draws_then_the_smallest_and_pure(name):
    config = SANDWICHES[name]
    assert config.sandwich
    ours, theirs = (make_sampler(ELASTIC, config, seed=5) for _ in range(2))
    places = list(itertools.product((0, 1, 11), (0, 1, 300)))
    steps = {place: ours(*place, flops_of) for place in places}
    assert steps == {place: theirs(*place, flops_of) for place in reversed(places)}
    for archs in steps.values():
        assert archs[0] == ELASTIC.largest() and (archs[-1] == ELASTIC.smallest()) == config.sandwich.smallest
        assert len(archs) == 1 + config.sandwich.random + config.sandwich.smallest
    drawn = [arch for archs in steps.values() for arch in archs[1 : 1 + config.sandwich.random]]
    assert len(set(drawn)) == len(drawn)


def test_flops_conditioned_sampling_covers_the_whole_range_and_every_draw_is_in_its_bin():
    """Uniform draws: only 4.7 % have 400 M or less, 0.1 % have 300 M or less (reference sheet, section 1.3)."""
    table = bin_table(ELASTIC, Limits(), 70, 0)
    assert table.edges[0] == cost(ELASTIC.smallest()).flops and table.edges[-1] == cost(ELASTIC.largest()).flops
    assert len(table.numbers) >= 69
    rng = np.random.default_rng(0)
    for place in range(len(table.numbers)):
        number = table.numbers[place]
        for _ in range(3):
            flops = flops_of(table.draw(place, rng))
            assert table.edges[number] <= flops <= table.edges[number + 1]
    archs = draws(make_sampler(ELASTIC, Sampler(name="flops", bins=7), 0), 1, 700)
    counts = np.histogram([flops_of(arch) for arch in archs], np.linspace(table.edges[0], table.edges[-1], 8))[0]
    assert ((counts - 100) ** 2 / 100).sum() < 22  # chi-square, 6 degrees of freedom


def test_a_bin_that_independent_draws_miss_gives_what_the_table_has(monkeypatch):
    monkeypatch.setattr(elastic, "ROUNDS", 0)
    table = bin_table(ELASTIC, Limits(), 70, 0)
    archs = [table.draw(0, np.random.default_rng(i)) for i in range(5)]
    assert all(table.edges[0] <= flops_of(arch) <= table.edges[1] for arch in archs) and len(set(archs)) > 1


def test_limits_hold_and_those_that_nothing_meets_are_an_error():
    inside = Sampler(name="flops", bins=5, flops="300M:400M", params=":12M")
    for arch in draws(make_sampler(ELASTIC, inside, 3), 1, 50):
        assert 300e6 <= flops_of(arch) <= 400e6 and cost(arch).params <= 12e6
    with pytest.raises(UserError, match="meets FLOPs 1.8G:1.9G and params 0:9.5M: with these params it has at most 1.115G FLOPs"):
        make_sampler(ELASTIC, Sampler(name="flops", flops="1800M:1900M", params=":9.5M"), 0)


def test_best_up_and_worst_up_choose_among_networks_of_one_bin():
    for best in (True, False):
        config = Sampler(name="bestup" if best else "worstup", bins=20, candidates=4)
        seen: list = []

        def score(arch, seen=seen):
            seen.append(arch)
            return float(sum(arch.choices["depth"]))

        for step in range(5):
            seen.clear()
            (arch,) = make_sampler(ELASTIC, config, 0)(0, step, score)
            depths = [sum(each.choices["depth"]) for each in seen]
            assert len(seen) == 4 and sum(arch.choices["depth"]) == (min if best else max)(depths)
            edges = bin_table(ELASTIC, Limits(), 20, 0).edges
            assert len({int(np.searchsorted(edges, flops_of(each))) for each in seen}) == 1


@pytest.mark.parametrize("name", ["bestup", "worstup"])
def test_a_score_that_is_no_number_loses_and_without_scores_there_is_no_choice(name):
    sampler = make_sampler(ELASTIC, Sampler(name=name, bins=5), 0)
    scores = iter([float("nan"), 3.0, float("nan")])
    seen: list = []
    (arch,) = sampler(0, 0, lambda arch: (seen.append(arch), next(scores))[1])
    assert arch == seen[1]
    with pytest.raises(UserError, match=f"sampler '{name}' chooses by the loss of a training step"):
        sampler(0, 0)
    sampler(0, 0, lambda arch: float("nan"))


def test_a_sandwich_of_a_space_without_a_largest_network_is_refused_and_of_one_operator_is_fine():
    config = Sampler(sandwich=Sandwich())
    with pytest.raises(UserError, match=r"but the values of \('block'\) in space 'spos_shufflenet' are not ordered"):
        make_sampler(SPACE, config, 0)
    assert len(make_sampler(SPACE.restrict({"block": [["shuffle3"]] * 20}), config, 0)(0, 0)) == 4
    assert describe(ELASTIC, config, 3).startswith("every step the largest network, 2 sampled ones and the smallest network")
