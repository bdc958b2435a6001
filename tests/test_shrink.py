"""Shrinking: operator scores, which operators go, resume after a kill, and the space file that comes out."""

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tiny

from oneshot_nas.arch import get_space
from oneshot_nas.cli.main import run
from oneshot_nas.config import RunFolder, dump_recipe, read_recipe, training_space
from oneshot_nas.costs.analytic import cost
from oneshot_nas.costs.limits import Limits
from oneshot_nas.errors import UserError
from oneshot_nas.files import read_json, write_json
from oneshot_nas.indicators.angle import load_angle
from oneshot_nas.shell import program
from oneshot_nas.spacefile import narrow, read_space, space_json, write_space
from oneshot_nas.train import shrink as module
from oneshot_nas.train.operators import Operator, default_over, draw, draw_pool, operators, scored, skip_values, without, worst
from oneshot_nas.train.runs import open_supernet
from oneshot_nas.train.shrink import Shrinking, shrink

OPTIONS = {"layout": "small", "input_size": 16, "classes": 4}
FULL = get_space("proxyless_gpu", **OPTIONS)
SKIPPING = (1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19)
FEW = [["k3e3"] if place not in (0, 3, 8) else ["k3e3", "k5e3", "skip"][: 2 + (place == 3)] for place in range(21)]
SMALL = FULL.restrict({"op": FEW})  # 2 x 3 x 2 architectures


def quiet(text):
    pass


def test_the_operators_of_the_mobilenet_space():
    assert len(operators(FULL, ("op",))) == 6 * 21 + 15
    assert [column for column, skip in enumerate(skip_values(FULL)) if skip >= 0] == list(SKIPPING)
    mmrazor = get_space("proxyless_gpu", variant="mmrazor", **OPTIONS)
    assert [column for column, skip in enumerate(skip_values(mmrazor)) if skip >= 0] == list(SKIPPING)
    assert len(operators(SMALL, ("op",))) == 7
    assert default_over(FULL) == ("op",)
    assert default_over(get_space("spos_shufflenet")) == ("block",)
    attentive = get_space("attentive_mobilenet")
    assert default_over(attentive) == ("width", "depth", "kernel", "expand")  # a resolution has no weights
    assert (skip_values(attentive) == -1).all()
    for name in ("bignas_mobilenet", "ofa_mobilenet"):
        space = get_space(name)
        several = {choice.name for choice in space.choices if any(len(values) > 1 for values in choice.values)}
        assert set(default_over(space)) == several - {"resolution"}


def test_draws_are_uniform_over_operators_and_over_the_number_of_skips():
    skips, rng = skip_values(FULL), np.random.default_rng(0)
    drawn = draw(FULL, skips, rng, 40_000, (4, 2))
    assert (drawn[:, 4] == 2).all()
    counts = np.bincount((drawn[:, list(SKIPPING)] == skips[list(SKIPPING)]).sum(axis=1), minlength=16) / len(drawn)
    assert np.abs(counts - 1 / 16).max() < 0.006
    chosen = np.bincount(drawn[:, 0]) / len(drawn)
    assert len(chosen) == 6 and np.abs(chosen - 1 / 6).max() < 0.008
    kept = drawn[drawn[:, 1] != skips[1], 1]
    assert np.abs(np.bincount(kept, minlength=7)[1:] / len(kept) - 1 / 6).max() < 0.01
    assert (draw(FULL, skips, rng, 100, (1, int(skips[1])))[:, 1] == skips[1]).all()


def test_a_score_is_the_mean_over_all_architectures_with_the_operator():
    worth = np.random.default_rng(1).random((21, 3))

    def score(indices):
        return worth[np.arange(21), indices].sum(axis=1)

    sizes = [range(len(allowed)) for _, _, allowed in SMALL.positions]
    everything = np.array(list(product(*sizes)))
    for operator in scored(SMALL, ("op",), score, Limits(), 1000, (0, 1)):
        column = operator.position
        mine = everything[everything[:, column] == SMALL.positions[column][2].index(operator.value)]
        assert operator.pool == len(mine)  # all of them, each once
        assert operator.score == pytest.approx(score(mine).mean())


def test_pools_keep_the_limits_and_the_seed():
    costs = [cost(FULL.sample(random.Random(i))).flops for i in range(50)]
    limits, skips = Limits(flops=(0, min(costs))), skip_values(FULL)
    operator = Operator("op", 20, "k7e6")
    pool = draw_pool(FULL, operator, limits, 40, skips, (0, 3))
    assert pool.shape == (40, 21) and len({tuple(row) for row in pool}) == 40
    for row in pool:
        arch = FULL.decode(row.tolist())
        assert arch.choices["op"][20] == "k7e6" and cost(arch).flops <= min(costs)
    assert (draw_pool(FULL, operator, limits, 40, skips, (0, 3)) == pool).all()
    assert (draw_pool(FULL, operator, limits, 40, skips, (0, 4)) != pool).any()


def test_an_operator_that_the_limits_exclude_goes_first():
    least = cost(FULL.restrict({"op": [v[:1] for v in FULL.choices[0].values]}).smallest()).flops
    found = scored(FULL, ("op",), lambda rows: np.ones(len(rows)), Limits(flops=(0, least)), 5, (0, 1))
    excluded = [o for o in found if o.score is None]
    assert len(excluded) == 141 - 21 and {o.score for o in found} == {None, 1.0}
    assert all(operator.score is None for operator in worst(found, 7))


def test_a_limit_that_draws_miss_is_met_all_the_same():
    limits = Limits(flops=(0, cost(SMALL.smallest()).flops))
    pool = draw_pool(SMALL, Operator("op", 3, "skip"), limits, 3, skip_values(SMALL), (0,))
    assert [SMALL.decode(row.tolist()).choices["op"][3] for row in pool] == ["skip"]


def test_the_worst_go_but_never_the_last_of_a_layer():
    found = [Operator("op", 0, name, score) for name, score in (("a", 0.1), ("b", 0.2), ("c", 0.3))]
    found += [Operator("op", 1, name, score) for name, score in (("a", 0.15), ("b", 0.9))]
    assert [(o.position, o.value) for o in worst(found, 2)] == [(0, "a"), (1, "a")]
    assert [(o.position, o.value) for o in worst(found, 9)] == [(0, "a"), (1, "a"), (0, "b")]
    gone = worst(found, 9, lambda dropped: ("op", 0) not in [o.decision for o in dropped])
    assert [(o.position, o.value) for o in gone] == [(1, "a")]
    left = without(SMALL, [Operator("op", 3, "skip"), Operator("op", 0, "k5e3")])
    assert left.choices[0].values[3] == ("k3e3", "k5e3") and left.choices[0].values[0] == ("k3e3",)
    with pytest.raises(UserError, match=r"restriction of 'op'\[1\] must be a non-empty part"):
        without(SMALL, [Operator("op", 1, "k3e3")])


def test_the_published_schedule():
    plan = Shrinking(("op",))
    assert [plan.epochs(step) for step in (1, 2, 20)] == [100, 105, 195]
    assert plan.size(FULL) == 6**6 * 7**15
    assert plan.most_steps(FULL) <= 17  # 120 operators may go
    assert Shrinking(("op",), until=12).most_steps(SMALL) == 0
    assert Shrinking(("op",), until=11, drop=1).most_steps(SMALL) == 1
    assert Shrinking(("op",), until=2, drop=1).most_steps(SMALL) == 3


def test_a_space_file_round_trip_and_what_it_refuses(tmp_path):
    path = tmp_path / "space.json"
    write_space(path, SMALL)
    assert read_space(path) == SMALL
    assert narrow(FULL, path) == SMALL
    content = space_json(SMALL)

    def refused(message, **changes):
        write_json(path, "space", content | changes)
        with pytest.raises(UserError, match=message):
            narrow(FULL, path)

    refused(r"restriction of 'op'\[2\] must be a non-empty part", allowed={"op": [*FEW[:2], [], *FEW[3:]]})
    refused(r"restriction of 'op'\[2\] must be", allowed={"op": [*FEW[:2], ["k9e9"], *FEW[3:]]})
    refused("has 20 positions", allowed={"op": FEW[:20]})
    refused("is no space file", allowed={"op": "k3e3"})
    refused("has no choice 'block'", allowed={"block": FEW})
    refused("is of space 'spos_shufflenet', expected 'proxyless_gpu'", space="spos_shufflenet", options={}, allowed={})
    refused("option 'variant' = 'mmrazor', expected 'full'", options=content["options"] | {"variant": "mmrazor"})
    write_json(path, "architecture", content)
    with pytest.raises(UserError, match="is of kind 'architecture', expected 'space'"):
        read_space(path)


def test_recipes_take_a_space_file_or_lists_by_position(tmp_path):
    write_space(tmp_path / "space.json", SMALL)
    text = "space: proxyless_gpu\noptions: {layout: small, input_size: 16}\ndata: nowhere\n"
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = read_recipe(tmp_path / "recipe.yaml", [f"allowed={tmp_path}/space.json"])
    assert training_space("proxyless_gpu", recipe.options, recipe.allowed).choices == SMALL.choices
    (tmp_path / "config.yaml").write_text(dump_recipe(recipe))
    assert read_recipe(tmp_path / "config.yaml") == recipe
    assert training_space("proxyless_gpu", OPTIONS, {"op": ["k3e3", "skip"]}).choices[0].values[1] == ("skip", "k3e3")
    file = f"allowed={tmp_path}/space.json"
    for words, message in ((["allowed.op=[[k3e3]]"], "has 1 positions"), (["allowed=none.json"], "cannot read"),
                           (["allowed.op=[k3e3, [k5e3]]"], "mixes values and lists"),
                           ([file, "options.layout=gpu"], "option 'layout' = 'small', expected 'gpu'")):
        with pytest.raises(UserError, match=message):
            read_recipe(tmp_path / "recipe.yaml", words)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data"), train=32, val=8)


def recipe(data, **changes):
    own = {"space": "proxyless_gpu", "options": {"layout": "small", "input_size": 16}, "allowed": {"op": FEW}, "epochs": 4,
           "holdout": {"calibration": 0, "validation": 0}}
    return tiny.recipe(data, **(own | changes))


PLAN = Shrinking(drop=1, until=2, first_epochs=2, step_epochs=1, samples=20, refresh=0)


@pytest.fixture(scope="module")
def shrunk(data, tmp_path_factory):
    """The run folder of a shrinking run that nothing disturbed."""
    out = tmp_path_factory.mktemp("shrunk")
    shrink(recipe(data), out, PLAN, quiet)
    return out


def result(out):
    """Everything of a run that must not depend on when it was killed."""
    weights = {path.name: path.read_bytes() for path in sorted((out / "supernet" / "checkpoint").iterdir())}
    base = (out / "base.params").read_bytes()
    return read_json(out / "shrink.json", "shrink"), read_json(out / "space.json", "space"), base, weights


def test_a_run_shrinks_to_the_size_asked_for(shrunk, data):
    steps = read_json(shrunk / "shrink.json", "shrink")["steps"]
    assert [step["epochs"] for step in steps] == [2, 3, 4] and [step["size"] for step in steps] == sorted(
        (step["size"] for step in steps), reverse=True) and steps[-1]["size"] <= 2
    assert [step["base"] for step in steps] == [True, False, False]  # refreshed once
    first = steps[0]["operators"]
    assert all(0 < angle < np.pi for *_, angle, _ in first)
    assert min(first, key=lambda entry: entry[3])[:3] == steps[0]["dropped"][0]
    final = read_space(shrunk / "space.json")
    assert final.size == steps[-1]["size"]
    run_folder = RunFolder(shrunk / "supernet")
    assert (shrunk / "base.params").read_bytes() not in (run_folder.initial.read_bytes(),)
    indicator = load_angle(run_folder.path)
    assert indicator.space.size == SMALL.size and 0 < indicator(SMALL.smallest())["angle"] < np.pi
    assert load_angle(run_folder.path, next(run_folder.checkpoint.glob("*.params")))(SMALL.smallest()) == {"angle": 0.0}


def test_an_elastic_space_shrinks_and_is_resumed(data, tmp_path, monkeypatch):
    """Its options hold a list, which a file gives back as another type."""
    options = {"layout": "small", "input_size": 16, "resolutions": [12, 16]}
    allowed = {"depth": [1], "kernel": [3, 5], "expand": [1, 3]}
    elastic = recipe(data, space="attentive_mobilenet", options=options, allowed=allowed)
    plan = replace(PLAN, until=16, drop=9, first_epochs=1)
    whole = training_space("attentive_mobilenet", {**options, "classes": 4}, elastic.allowed)
    steps = replace(plan, over=default_over(whole)).most_steps(whole)
    elastic = elastic.model_copy(update={"epochs": steps + 1})
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_space", breaking(write_space, after=True))
        for _ in range(2):
            with pytest.raises(Killed):
                shrink(elastic, tmp_path / "run", plan, quiet)
    space = shrink(elastic, tmp_path / "run", plan, quiet)
    assert shrink(elastic, tmp_path / "run", plan, quiet) == space
    assert space.choice("resolution").values == ((12, 16),)
    with pytest.raises(UserError, match="angles do not depend on 'resolution', which changes no weights; --over takes"):
        shrink(elastic, tmp_path / "other", replace(plan, over=("resolution",)), quiet)


@pytest.mark.parametrize("step_epochs", [1, 2])
def test_steps_after_the_last_epoch_score_the_same_weights_and_say_so(data, tmp_path, monkeypatch, step_epochs):
    monkeypatch.setattr(Shrinking, "most_steps", lambda self, space: 1)
    log = []
    shrink(recipe(data, epochs=3), tmp_path, replace(PLAN, step_epochs=step_epochs), log.append)
    assert read_json(tmp_path / "supernet" / "checkpoint" / "latest.json", "checkpoint")["epoch"] == 3
    steps = read_json(tmp_path / "shrink.json", "shrink")["steps"]
    assert [step["epochs"] for step in steps] == [2, 3, 3]
    assert sum("step 3 comes after the last of the 3 epochs: it scores the same weights again" in line for line in log) == 1


def test_untrained_scales_are_no_part_of_the_shrunk_space(data, tmp_path):
    two = tiny.narrow_supernet(data, allowed={"block": ["shuffle3", "shuffle5"]}, epochs=1, epoch_images=8,
                               holdout={"calibration": 0, "validation": 0})
    shrink(two, tmp_path, Shrinking(drop=1, until=2**19, first_epochs=1, step_epochs=1, samples=4), quiet)
    supernet = open_supernet(tmp_path / "supernet").space
    searched = narrow(supernet, tmp_path / "space.json")
    assert searched.choice("scale") == supernet.choice("scale") and searched.size * 2 == supernet.size


class Killed(BaseException):
    """Ends a run at once, as a kill does."""


def test_a_run_that_breaks_at_every_seam_ends_as_an_uninterrupted_one(shrunk, data, tmp_path, monkeypatch):
    breaks = 0
    for name in ("scored", "write_params", "write_json", "write_space", "train"):
        for after in (False, True):
            with monkeypatch.context() as patch:
                patch.setattr(module, name, breaking(getattr(module, name), after))
                try:
                    shrink(recipe(data), tmp_path, PLAN, quiet)
                except Killed:
                    breaks += 1
    shrink(recipe(data), tmp_path, PLAN, quiet)
    assert breaks >= 8
    assert result(tmp_path) == result(shrunk)


def breaking(real, after):
    def broken(*args, **options):
        if after:
            real(*args, **options)
        raise Killed

    return broken


CHILD = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_shrink as test
test.shrink(test.recipe(Path(sys.argv[1])), Path(sys.argv[2]), test.PLAN)
"""


def test_kill_9_changes_nothing(shrunk, data, tmp_path):
    command = [sys.executable, "-c", CHILD.format(tests=str(Path(__file__).parent)), str(data), str(tmp_path)]
    for lines in (6, 0):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            for _ in range(lines):
                process.stderr.readline()
            if lines:
                time.sleep(random.Random(int(time.time())).random() * 0.3)
                process.send_signal(signal.SIGKILL)
            errors = process.communicate()[1]
    assert process.returncode == 0, errors
    assert result(tmp_path) == result(shrunk)


@pytest.mark.parametrize(("changes", "plan", "message"), [
    ({}, {"drop": 0}, "--drop must be at least 1"), ({}, {"until": 0.5}, "--until must be at least 1"),
    ({}, {"samples": 0}, "--samples"), ({}, {"limits": Limits(flops=(0, 1000))}, "reachable is"),
    ({}, {"first_epochs": 3}, "may take 3 steps, hence 5 epochs; the recipe's schedule has 4"),
    ({}, {"over": ("block",)}, "no choice 'block'"), ({"trainable": "scoring-bn"}, {}, "angles need weights that move"),
    ({"sampler": {"operator_warmup": 2}}, {}, "set sampler.operator_warmup=0"),
])
def test_what_cannot_work_is_refused_before_training(changes, plan, message, data, tmp_path):
    with pytest.raises(UserError, match=message):
        shrink(recipe(data, **changes), tmp_path, replace(PLAN, **plan), quiet)
    assert not (tmp_path / "shrink.json").exists()


def test_shrinking_keeps_an_architecture_inside_the_limits(data, tmp_path, monkeypatch):
    """The cheapest operators score worst here, and the limit needs nearly all of them."""
    def cheapest_first(space, over, score, limits, samples, seed):
        return [replace(o, score=float(place), pool=1) for place, o in enumerate(operators(space, over))]

    monkeypatch.setattr("oneshot_nas.train.shrink.scored", cheapest_first)
    limits = Limits(flops=(0, cost(SMALL.smallest()).flops))
    space = shrink(recipe(data), tmp_path / "some", replace(PLAN, limits=limits), quiet)
    assert space.size <= PLAN.until and cost(space.smallest()).flops <= limits.flops[1]
    monkeypatch.setattr(module, "_leaves_some", lambda *_: False)  # as where draws give up
    log = []
    assert shrink(recipe(data), tmp_path / "none", replace(PLAN, limits=limits), log.append).size == SMALL.size
    assert any("no operator can go any more: without any one of the 7 that are left" in line for line in log)


def test_what_the_training_would_draw_from_is_not_dropped():
    """Without an operator of its own a bin could not be trained from then on."""
    arch = {"op": [values[-1] for values in FEW]}
    flops = cost(SMALL.arch(arch)).flops
    narrow = recipe("data", sampler={"name": "bins", "flops": f"{flops - 1}:{flops}", "bins": 1})
    needed = [o for o in operators(SMALL, ("op",)) if o.value == arch["op"][o.position]]
    spare = [o for o in operators(SMALL, ("op",)) if o not in needed]
    assert needed and spare and not any(module._leaves_some(SMALL, Limits(), narrow, [o]) for o in needed[:1])
    assert all(module._leaves_some(SMALL, Limits(), narrow, [o]) for o in spare)


def test_the_folder_of_the_supernet_is_named_when_its_parent_is_given(shrunk, capsys, tmp_path):
    for indicator in ("accuracy", "angle"):
        words = ["search", "--supernet", str(shrunk), "--out", str(tmp_path / "found"), "--indicator", indicator]
        assert run(words) == 2
        assert capsys.readouterr().err == (f"error: {shrunk} is not a supernet run itself, its supernet lies in "
                                           f"{shrunk / 'supernet'} (see shrink); give that folder\n")
    assert run(["search", "--supernet", str(tmp_path), "--out", str(tmp_path / "found")]) == 2
    assert "holds no supernet.json, so it is not a supernet run" in capsys.readouterr().err


def test_another_run_in_the_folder_is_refused(shrunk, data):
    with pytest.raises(UserError, match="another shrinking run.*samples: 20 -> 21"):
        shrink(recipe(data), shrunk, replace(PLAN, samples=21), quiet)
    with pytest.raises(UserError, match="another recipe.*seed: 0 -> 1"):
        shrink(recipe(data, seed=1), shrunk, PLAN, quiet)
    with pytest.raises(UserError, match="recipe of a supernet"):
        shrink(tiny.fixed(data), shrunk, PLAN, quiet)


def test_the_command(shrunk, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(dump_recipe(recipe(data)))
    words = ["shrink", "--recipe", "recipe.yaml", "--out", "found", "--drop", "1", "--until", "2", "--first-epochs", "2",
             "--step-epochs", "1", "--samples", "20", "--refresh", "0", "--json"]
    assert run(words) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {k: v for k, v in read_json(shrunk / "space.json", "space").items() if k in
                                        ("space", "options", "allowed")}
    assert f"next: {program()} train --recipe recipe.yaml --set allowed=found/space.json --out found-supernet" in captured.err
    assert run([*words, "--flops", "x"]) == 2
    assert "FLOPs limit 'x'" in capsys.readouterr().err
