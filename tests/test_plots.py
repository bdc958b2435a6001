"""Pictures: the right data appear, files are whole PNGs, runs that cannot be drawn say why."""

import json
import math
import random
import shutil
import struct
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from oneshot_nas.arch import get_space, list_spaces, space_of
from oneshot_nas.cli.main import run as cli
from oneshot_nas.config import RunFolder, parse_recipe
from oneshot_nas.costs.analytic import cost, layer_costs
from oneshot_nas.costs.limits import Limits
from oneshot_nas.errors import UserError
from oneshot_nas.files import write_json
from oneshot_nas.model_zoo import published
from oneshot_nas.plots.architecture import architecture, draw_plan, middle_width, operators_of
from oneshot_nas.plots.curves import read_metrics, training_curves
from oneshot_nas.plots.distribution import EPOCHS, compared, distribution, named_sampler, sampler_costs, uniform_costs
from oneshot_nas.plots.ranking import ranking
from oneshot_nas.plots.runs import limits_of, plot_run
from oneshot_nas.plots.samplers import ATTENTIVE, SAMPLERS
from oneshot_nas.plots.scores import scores_against_flops
from oneshot_nas.plots.search import best_of, search_progress, search_scatter
from oneshot_nas.plots.style import COLOURS, PALE, save
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.history import start_history
from oneshot_nas.search.loop import run_search
from oneshot_nas.search.pareto import pareto_front
from oneshot_nas.search.record import save_record
from oneshot_nas.search.storage import sqlite_url
from oneshot_nas.search.task import OBJECTIVES, Screening, SearchTask, limits_json
from oneshot_nas.sections import Sampler

SMALL = {"layout": "small", "input_size": 32, "last_channels": 64, "classes": 10}


@pytest.fixture(scope="module")
def space():
    return get_space("spos_shufflenet", **SMALL)


@pytest.fixture(scope="module")
def candidates(space):
    rng = random.Random(0)
    archs = [space.sample(rng) for _ in range(60)]
    return [Candidate(number, arch, cost(arch), {"top1": fake_top1(arch)}, error="Error: broken" if number == 7 else None)
            for number, arch in enumerate(archs)]


def fake_top1(arch):
    return 0.5 + 0.1 * math.tanh(cost(arch).flops / 4e6) + 0.05 * random.Random(arch.key).random()


def metrics_lines(epochs, validate_every=1):
    lines = []
    for epoch in range(1, epochs + 1):
        line = {"epoch": epoch, "loss": 2 / epoch, "train_top1": 1 - 1 / (epoch + 1), "lr": 0.1 / epoch}
        if epoch % validate_every == 0:
            line |= {"val_top1": 0.9 - abs(epoch - 6) / 20, "val_top5": 1.0}
        lines.append(line)
    return lines


def write_metrics(path, lines, tail=""):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    return struct.unpack(">II", data[16:24])


def lines_of(axes):
    return {line.get_label(): line for line in axes.lines}


def offsets(points):
    """Coordinates of the points of a scatter, shape (n, 2)."""
    return np.asarray(points.get_offsets())


def corners(patch):
    """Left, right, bottom and top of a rectangle in data coordinates."""
    x, y = patch.get_patch_transform().transform(patch.get_path().vertices).T
    return [x.min(), x.max(), y.min(), y.max()]


# training curves

def test_curves_hold_every_epoch_and_the_best_validation():
    figure = training_curves(metrics_lines(30, validate_every=3))
    loss, accuracy, rate = figure.axes
    assert lines_of(loss)["training"].get_xydata().tolist() == [[e, 2 / e] for e in range(1, 31)]
    assert lines_of(accuracy)["validation"].get_xdata().tolist() == list(range(3, 31, 3))
    assert lines_of(accuracy)["validation"].get_marker() == "s"
    best = lines_of(accuracy)["best: 90.00 % (epoch 6)"]
    assert best.get_xydata().tolist() == [[6, pytest.approx(90)]]
    assert rate.get_ylim()[0] == 0 and rate.get_xlabel() == "epoch"


def test_one_epoch_is_a_visible_marker_and_a_run_without_validation_is_drawn():
    figure = training_curves([{"epoch": 1, "loss": 2.0, "train_top1": 0.1, "lr": 0.1}])
    assert all(line.get_marker() == "o" for axes in figure.axes for line in axes.lines)
    assert figure.axes[2].get_xticks().tolist() == [1]
    assert list(lines_of(figure.axes[1])) == ["training"]


def test_many_epochs_have_no_markers_and_values_that_are_not_finite_are_left_out():
    lines = metrics_lines(100)
    lines[40]["loss"] = math.nan
    line = lines_of(training_curves(lines).axes[0])["training"]
    assert line.get_marker() == "" and len(line.get_xdata()) == 99


def test_metrics_a_half_written_last_line_is_ignored_and_a_repeated_epoch_counts_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, [*metrics_lines(3), {"epoch": 2, "loss": 9.0}], tail='{"epoch": 4, "lo')
    found = read_metrics(path)
    assert [line["epoch"] for line in found] == [1, 2, 3] and found[1]["loss"] == 9.0


@pytest.mark.parametrize("content, message", [
    ("", "no finished epoch yet"),
    ('{"epoch": 1', "no finished epoch yet"),
    ('{"epo\n{"epoch": 2}\n', "line 1 is not valid JSON"),
    ('[1]\n', "line 1 is no line of metrics"),
    ('{"loss": 1}\n', "line 1 is no line of metrics"),
])
def test_metrics_that_cannot_be_drawn(tmp_path, content, message):
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_metrics(path)


# search

def test_scatter_holds_candidates_front_best_and_limits(candidates):
    usable = [c for c in candidates if c.ok]
    middle = float(np.median([c.cost.flops for c in usable]))
    figure = search_scatter(candidates, 20, Limits((0, middle), rule="macs"))
    flops, params = figure.axes[:2]
    for axes, name in ((flops, "flops"), (params, "params")):
        points, star = axes.collections[:2]
        assert len(offsets(points)) == 59
        assert set(np.asarray(points.get_array()).tolist()) == {1, 2, 3}  # generations
        front = pareto_front(usable, OBJECTIVES["top1"].fitness, (name,))
        steps = lines_of(axes)["Pareto front"]
        expected = sorted([getattr(c.cost, name) / 1e6, 100 * c.scores["top1"]] for c in front)
        assert np.allclose(steps.get_xydata(), expected) and steps.get_drawstyle() == "steps-post"
        assert (np.diff(steps.get_ydata()) > 0).all()
        best = best_of(candidates)
        assert np.allclose(offsets(star), [[getattr(best.cost, name) / 1e6, 100 * best.scores["top1"]]])
    assert [corners(patch)[0] for patch in flops.patches] == [pytest.approx(middle / 1e6)]
    assert not params.patches
    assert "59 candidates (1 failed)" in figure.get_suptitle()
    assert figure.axes[2].get_ylabel() == "generation (20 candidates each)"
    far = search_scatter(candidates, 20, Limits((0, 1e12), rule="macs"))  # nothing is shaded, so the key names no shade
    for drawn, shaded in ((figure, True), (far, False)):
        key = [text.get_text() for text in drawn.legends[0].get_texts()]
        assert any(text.startswith("outside the limits") for text in key) == shaded and "best" in key


def test_scatter_of_one_candidate_and_of_none(candidates):
    figure = search_scatter(candidates[:1], 50)
    assert len(figure.axes) == 2 and "1 candidate, best" in figure.get_suptitle()
    for nothing in ([], [candidates[7]]):
        with pytest.raises(UserError, match="no evaluated candidate yet"):
            search_scatter(nothing)


def test_other_objectives_are_not_percent(candidates):
    scored = [Candidate(c.index, c.arch, c.cost, {"top1": 0.5, "micronet": 0.1 + c.index / 100}) for c in candidates[:5]]
    figure = search_scatter(scored, 50, objective=OBJECTIVES["micronet"])
    assert figure.axes[0].get_ylabel() == "objective 'micronet'" and "best 0.49 at" in figure.get_suptitle()


def test_progress_is_the_running_best_with_medians_of_generations(candidates):
    axes = search_progress({"evolution": candidates}, 20).axes[0]
    best = lines_of(axes)["best so far"]
    usable = [c for c in candidates if c.ok]
    assert best.get_xdata().tolist() == [c.index + 1 for c in usable]
    assert np.allclose(best.get_ydata(), 100 * np.maximum.accumulate([c.scores["top1"] for c in usable]))
    medians = lines_of(axes)["median of a generation (20)"]
    assert medians.get_xdata().tolist() == [10, 30, 50]
    assert medians.get_ydata()[2] == pytest.approx(100 * np.median([c.scores["top1"] for c in usable if c.index >= 40]))


def test_progress_compares_searches(candidates):
    axes = search_progress({"a": candidates, "b": candidates[:10]}, 20).axes[0]
    assert list(lines_of(axes)) == ["a: best so far", "b: best so far"]
    assert len({to_hex(line.get_color()) for line in axes.lines}) == 2


# architecture

@pytest.mark.parametrize("name", list_spaces())
def test_a_drawing_has_a_row_per_layer_in_every_space(name, tmp_path):
    space = get_space(name)
    for arch in (space.smallest(), space.sample(random.Random(1)), space.largest()):
        plan = space.plan(arch)
        figure = architecture(arch)
        table, widths, shares = figure.axes
        texts = {text.get_text() for text in table.texts}
        assert {layer.name for layer in plan.layers} <= texts
        assert len(shares.containers[0]) == len(plan.layers)
        bars = [container[0].get_width() for container in widths.containers]
        assert bars == [middle_width(layer.op) or layer.out_shape[0] for layer in plan.layers]
        total = cost(arch).flops
        assert [bar.get_width() for bar in shares.containers[0]] == pytest.approx(
            [100 * found.flops / total for _, found in layer_costs(plan)])
    width, height = png_size(save(figure, tmp_path / "arch.png"))
    assert 1000 < width < 2500 and 600 < height < 4000


def test_a_drawing_tells_operators_widths_strides_gates_and_totals():
    arch = published("oneshot_s_plus")
    figure = architecture(arch, "S+", "macs")
    table, widths, _ = figure.axes
    texts = [text.get_text() for text in table.texts]
    assert texts.count("SE") == 1 + sum(getattr(layer.op, "se", False) for layer in space_of(arch).plan(arch).layers)
    assert texts.count("2") == 5  # stem and four stages
    assert {"shuffle3", "shuffle5", "shuffle7", "xception", "conv 3×3", "16 × 112 × 112", "pool, conv 1×1, dense"} <= set(texts)
    title = figure.texts[0].get_text()
    assert title == "S+: 291.1 M multiply-adds, 3.542 M parameters"
    assert "se true, tail pooled" in figure.texts[1].get_text()
    colours = {to_hex(container[0].get_facecolor()) for container in widths.containers}
    assert colours == {c.lower() for c in (*COLOURS[:4], PALE)}


def test_an_operator_has_one_colour_in_all_drawings_of_a_space(space):
    assert operators_of(space) == ("shuffle3", "shuffle5", "shuffle7", "xception")
    arch = space.arch({"block": ["xception"] * 20, "scale": [1.0] * 20})
    alone = architecture(arch).axes[1].containers[1][0]
    assert to_hex(alone.get_facecolor()) == COLOURS[3].lower()
    unknown = draw_plan(space.plan(arch)).axes[1].containers[1][0]
    assert to_hex(unknown.get_facecolor()) == COLOURS[0].lower()


def test_texts_of_a_drawing_do_not_overlap():
    figure = architecture(published("oneshot_s_plus_mobilenetv3"))
    FigureCanvasAgg(figure).draw()
    table = figure.axes[0]
    boxes = [text.get_window_extent() for text in table.texts if text.get_text()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box.x1 <= table.get_window_extent().x1 + 1 for box in boxes)


# distributions

def test_distribution_holds_every_architecture_and_the_limits(space):
    uniform = uniform_costs(space, 200)
    boxed = sampler_costs(space, named_sampler("box", "3M:4M"), 100, epochs=3)
    assert ((boxed.flops >= 3e6) & (boxed.flops <= 4e6)).all()
    figure = distribution({"uniform": uniform, "box": boxed}, "title")
    main = next(axes for axes in figure.axes if axes.get_xlabel() == "multiply-adds (M)")
    assert [len(offsets(points)) for points in main.collections] == [200, 100]
    assert np.allclose(offsets(main.collections[1]), np.column_stack([boxed.flops, boxed.params]) / 1e6)
    (limits,) = main.patches
    assert corners(limits)[:2] == [pytest.approx(3), pytest.approx(4)]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["uniform (200)", "box (100)", "FLOPs 3M:4M"]


def test_no_bin_of_a_histogram_lies_on_both_sides_of_a_limit(space):
    boxed = sampler_costs(space, named_sampler("box", "3M:4M"), 100, epochs=3)
    figure = distribution({"uniform": uniform_costs(space, 200), "box": boxed})
    top = next(axes for axes in figure.axes if axes.get_ylabel() == "share (%)")
    for drawn in top.patches:
        edges = sorted(set(drawn.get_path().vertices[:, 0]))
        assert len(edges) == 61 and {3.0, 4.0} <= set(edges)


def test_sampler_costs_spread_over_the_training_and_agree_with_the_counter(space):
    config = named_sampler("uniform").model_copy(update={"first_channel_epoch": 50})
    found = sampler_costs(space, config, 64, epochs=100)
    largest_scales = {cost(space.arch({"block": [op] * 20, "scale": [2.0] * 20})).flops for op in ("shuffle3", "shuffle7")}
    early = 64 // EPOCHS * (EPOCHS // 2)
    assert (found.flops[:early] >= min(largest_scales)).all() and found.flops[early:].max() < found.flops[:early].min()
    assert sampler_costs(space, config, 64, epochs=100).flops.tolist() == found.flops.tolist()


def test_a_sampler_is_compared_with_uniform_where_it_differs(space):
    assert list(compared(space, named_sampler("uniform"), 5)) == ["uniform"]
    assert list(compared(space, named_sampler("bins", "3M:4M"), 5)) == ["whole space", "bins"]


def test_distributions_that_cannot_be_drawn(space):
    with pytest.raises(UserError, match="at least one architecture"):
        distribution({})
    with pytest.raises(UserError, match="different rules"):
        distribution({"a": uniform_costs(space, 5), "b": uniform_costs(space, 5, rule="mmrazor")})
    with pytest.raises(UserError, match="unknown sampler 'sobol'; the samplers are"):
        named_sampler("sobol")


def test_a_space_of_one_cost_is_drawn(space):
    one = space.freeze(space.smallest(), ())
    figure = distribution({"one": uniform_costs(one, 3)})
    assert len(figure.axes) == 3


# ranking

def test_ranking_has_a_point_per_architecture_and_tau_in_the_title():
    figure = ranking([1, 2, 3, 4], [10, 20, 40, 30], "bn-gamma", "top-1 (%)")
    axes = figure.axes[0]
    assert offsets(axes.collections[0]).tolist() == [[1, 10], [2, 20], [3, 40], [4, 30]]
    assert figure.get_suptitle() == "Kendall's τ = 0.667, n = 4"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("bn-gamma", "top-1 (%)")
    assert "undefined" in ranking([1, 1], [1, 2]).get_suptitle()


@pytest.mark.parametrize("first, second, message", [
    ([1, 2], [1], "got 2 and 1"), ([1], [1], "at least 2"), ([1, math.nan], [1, 2], "finite"),
])
def test_rankings_that_cannot_be_drawn(first, second, message):
    with pytest.raises(UserError, match=message):
        ranking(first, second)


# scores

def test_scores_are_joined_by_rising_flops():
    axes = scores_against_flops({"elastic": [(4_000_000, 80.0), (2_000_000, 75.0)], "winner": [(3_000_000, 84.0)]}).axes[0]
    assert [line.get_xydata().tolist() for line in axes.get_lines()] == [[[2, 75], [4, 80]], [[3, 84]]]
    assert [line.get_label() for line in axes.get_lines()] == ["elastic", "winner"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("multiply-adds (M)", "top-1 accuracy (%)")


def test_the_command_draws_scores_of_files(tmp_path, candidates, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr("oneshot_nas.plots.scores.scores_against_flops", lambda *given: drawn.append(given) or Figure())
    lines, out = tmp_path / "some.jsonl", tmp_path / "x.png"
    lines.write_text("".join(json.dumps(candidate.to_json()) + "\n" for candidate in candidates))
    for words, scale, label in (([], 100, "top1 (%)"), (["--rule", "mmrazor", "--score", "top1"], 100, "top1 (%)")):
        assert cli(["plot", "--scores", str(lines), "--out", str(out), *words]) == 0
        rule = "mmrazor" if words else "macs"
        shown = [c for c in candidates if c.ok]
        assert drawn.pop() == ({"some": [(cost(c.arch, rule).flops, scale * c.scores["top1"]) for c in shown]}, label, rule)
    capsys.readouterr()
    for text, words, message in (("0.5\n", [], "line 1 has no architecture"), (None, ["--scores", str(lines)], "must differ"),
                                 (None, ["--score", "angle"], "no finite number 'angle'")):
        if text:
            (tmp_path / "bad.jsonl").write_text(text)
        path = tmp_path / "bad.jsonl" if text else lines
        assert cli(["plot", "--scores", str(path), "--out", str(out), *words]) == 2
        assert message in capsys.readouterr().err


# runs and the command

bounds = st.tuples(st.integers(0, 10**9), st.one_of(st.integers(1, 10**9), st.just(math.inf))).map(sorted).map(tuple)


@given(bounds, bounds, st.sampled_from(["macs", "mmrazor"]))
def test_a_picture_shows_the_limits_of_the_search(flops, params, rule):
    limits = Limits(flops, params, rule)
    assert limits_of(json.loads(json.dumps(limits_json(limits)))) == limits


@pytest.fixture(scope="module")
def searches(tmp_path_factory, space):
    """A search of six candidates, the same one elsewhere, and one for another objective that has none."""
    parent = tmp_path_factory.mktemp("searches")
    for name, objective in (("done", "top1"), ("none", "micronet")):
        task = SearchTask(space, Limits((1e6, 5e6)), "evolution", OBJECTIVES[objective], budget=6, population=3)
        (parent / name).mkdir()
        history = start_history(task, sqlite_url(parent / name / "study.db"))
        if name == "done":
            run_search(task, lambda arch: {"top1": fake_top1(arch)}, history, progress=False)
    shutil.copytree(parent / "done", parent / "copy")
    return parent


@pytest.fixture
def supernet_run(tmp_path, space):
    folder = tmp_path / "supernet"
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps({"space": "spos_shufflenet", "epochs": 4, "options": SMALL,
                                                    "sampler": {"name": "box", "flops": "2M:4M"}}))
    write_json(folder / "supernet.json", "supernet", {"space": "spos_shufflenet", "options": dict(space.options)})
    write_metrics(folder / "metrics.jsonl", metrics_lines(2))
    return folder


def test_a_supernet_run_gives_curves_and_the_distribution_of_its_sampler(supernet_run, capsys):
    assert cli(["plot", str(supernet_run), "-n", "50"]) == 0
    assert capsys.readouterr().out.split() == [str(supernet_run / "plots" / f"{name}.png") for name in ("curves", "distribution")]
    for name in ("curves", "distribution"):
        width, height = png_size(supernet_run / "plots" / f"{name}.png")
        assert 900 < width < 1600 and 700 < height < 1600


def test_a_run_that_chooses_by_losses_is_drawn_by_what_it_chooses_from(supernet_run):
    (supernet_run / "config.yaml").write_text(json.dumps({"space": "spos_shufflenet", "epochs": 4, "options": SMALL,
                                                          "sampler": {"name": "bestup", "bins": 3}}))
    assert [path.name for path in plot_run(supernet_run, count=50)] == ["curves.png", "distribution.png"]


def test_a_fixed_run_gives_curves_and_its_architecture(tmp_path, space):
    write_json(tmp_path / "arch.json", "architecture", space.largest().to_json())
    write_metrics(tmp_path / "metrics.jsonl", metrics_lines(3))
    assert [path.name for path in plot_run(tmp_path)] == ["curves.png", "architecture.png"]


def test_a_gluoncv_model_gives_curves(tmp_path):
    (tmp_path / "config.yaml").write_text("model: resnet18_v1b\n")
    write_metrics(tmp_path / "metrics.jsonl", metrics_lines(3))
    assert [path.name for path in plot_run(tmp_path)] == ["curves.png"]
    before = (tmp_path / "plots" / "curves.png").read_bytes()
    write_metrics(tmp_path / "metrics.jsonl", metrics_lines(3))
    plot_run(tmp_path)  # replaces the picture by the same one
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["curves.png"]
    assert (tmp_path / "plots" / "curves.png").read_bytes() == before


def test_a_search_gives_scatter_progress_and_best_architecture(searches, capsys):
    run = searches / "done"
    assert cli(["plot", str(run), "--compare", str(searches / "copy"), "--json"]) == 0
    files = [json.loads(line)["file"] for line in capsys.readouterr().out.splitlines()]
    assert files == [str(run / "plots" / f"{name}.png") for name in ("search", "progress", "architecture")]
    assert all(min(png_size(run / "plots" / f"{name}.png")) > 500 for name in ("search", "progress", "architecture"))



def test_a_search_with_a_predictor_says_so(tmp_path, space, monkeypatch):
    figures = []
    monkeypatch.setattr("oneshot_nas.plots.runs.save", lambda figure, path: figures.append(figure))
    screen = Screening(lambda *known: None, {"predictor": "fitted"}, children=10)
    task = SearchTask(space, Limits((1e6, 5e6)), budget=4, population=2, screen=screen)
    (run := tmp_path / "run").mkdir()
    run_search(task, lambda arch: {"top1": fake_top1(arch)}, start_history(task, sqlite_url(run / "study.db")), progress=False)
    plot_run(run)
    assert figures[1].get_suptitle() == "evolution with a predictor"
    assert figures[0].get_suptitle().startswith("evolution with a predictor: 4 candidates")
    shutil.copytree(run, tmp_path / "other")
    plot_run(run, [str(tmp_path / "other")])
    assert "evolution with a predictor (other): best so far" in lines_of(figures[4].axes[0])


def test_a_search_kept_elsewhere_is_found(tmp_path, searches, capsys):
    url = sqlite_url(searches / "copy" / "study.db")
    assert cli(["plot", str(tmp_path), "--storage", url, "--study", "other"]) == 2
    assert "holds no study 'other'" in capsys.readouterr().err
    save_record(RunFolder(tmp_path), {"storage": url, "study": "search"})  # an --out beside a shared history
    assert cli(["plot", str(tmp_path)]) == 0
    assert (tmp_path / "plots" / "search.png").exists()


def test_runs_that_cannot_be_drawn_say_why_and_write_nothing(tmp_path, supernet_run, searches):
    def refused(message, *arguments):
        with pytest.raises(UserError, match=message):
            plot_run(*arguments)

    refused("no run folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused("holds no run of this program", tmp_path / "empty")
    (tmp_path / "space.json").write_text("{}")  # beside the folder of the supernet
    refused(f"is a run of oneshot-nas shrink, whose .* in {supernet_run}; plot that one: .* plot {supernet_run}$", tmp_path)
    assert len(plot_run(supernet_run, count=10)) == 2
    shutil.rmtree(supernet_run / "plots")
    (supernet_run / "metrics.jsonl").unlink()
    refused("no finished epoch yet", supernet_run)
    assert not (supernet_run / "plots").exists()
    refused("--compare and --study say nothing", supernet_run, ["x"])
    (supernet_run / "supernet.json").write_text('{"kind": "supernet", "version": 1, "space": "spos_shufflenet"}')
    refused("lacks 'options'", supernet_run)
    refused("no evaluated candidate yet", searches / "none")
    refused("has another objective", searches / "copy", [str(searches / "none")])
    refused("there is no run folder", searches / "copy", [str(tmp_path / "nowhere")])
    assert not (searches / "copy" / "plots").exists()


def test_the_command_draws_an_architecture_samplers_and_a_ranking(tmp_path, space, candidates, capsys):
    arch, out = tmp_path / "arch.json", tmp_path / "sub" / "out.png"
    arch.write_text(json.dumps(space.smallest().to_json()))
    assert cli(["plot", "--arch", str(arch), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    png_size(out)
    recipe = tmp_path / "recipe.yaml"
    sampler = {"name": "stroll", "flops": "2M:4M"}
    recipe.write_text(json.dumps({"space": "spos_shufflenet", "options": SMALL, "epochs": 1, "sampler": sampler}))
    words = ["plot", "--out", str(tmp_path / "d.png"), "-n", "20", "--distribution"]
    assert cli([*words, "spos_shufflenet", "--sampler", "uniform", "--sampler", "bins", "--flops", "300M:360M"]) == 0
    assert cli([*words, str(recipe), "--distribution", "spos_shufflenet", "--option", "layout=small"]) == 0
    png_size(tmp_path / "d.png")
    lines = tmp_path / "scores.jsonl"
    lines.write_text("".join(json.dumps(c.to_json()) + "\n" for c in candidates))
    assert cli(["plot", "--ranking", str(lines), str(lines), "--out", str(tmp_path / "r.png")]) == 0
    png_size(tmp_path / "r.png")


@pytest.mark.parametrize("words, message", [
    ([], "give exactly one of RUN"),
    (["run", "--arch", "a.json"], "got RUN and --arch"),
    (["run", "--out", "x.png"], "the pictures of a run go to RUN/plots"),
    (["--arch", "a.json"], "--arch needs --out FILE.png, got none"),
    (["--arch", "a.json", "--out", "x.pdf"], "got x.pdf"),
    (["--arch", "nowhere.json", "--out", "x.png"], "cannot read architectures from nowhere.json"),
    (["--arch", "a.json", "--compare", "run", "--out", "x.png"], "--compare goes with RUN, not with --arch; leave it out"),
    (["run", "--sampler", "box"], "--sampler goes with --distribution, not with RUN"),
    (["run", "--seed", "0"], "--seed goes with --distribution, not with RUN"),
    (["run", "--rule", "macs"], "--rule goes with --arch, --distribution or --scores, not with RUN"),
    (["run", "--option", "a=1"], "--option goes with --distribution, not with RUN"),
    (["--arch", "a.json", "-n", "1000", "--out", "x.png"], "--count goes with RUN or --distribution, not with --arch"),
    (["--ranking", "a", "b", "--params", ":4M", "--out", "x.png"], "--params goes with --distribution, not with --ranking"),
    (["--distribution", "spos_shufflenet", "--score", "top1", "--out", "x.png"], "--score goes with --ranking or --scores"),
    (["--distribution", "spos_shufflenet", "--flops", "290M:330M", "--out", "x.png"],
     "limits of the samplers bins, box, stroll and flops; choose one of them with --sampler"),
    (["--distribution", "spos_shufflenet", "--sampler", "uniform", "--params", ":4M", "--out", "x.png"], "choose one of them"),
    (["--distribution", "nowhere.yaml", "--seed", "0", "--out", "x.png"], "--seed go with a space"),
    (["--distribution", "spos_shufflenet", "--sampler", "warm", "--out", "x.png"], "unknown sampler 'warm'"),
    (["--distribution", "spos_shufflenet", "--sampler", "bins", "--out", "x.png"],
     "sampler 'bins' needs both FLOPs bounds; give them, such as --flops 290M:360M"),
    (["--distribution", "nowhere.yaml", "--out", "x.png"], "cannot read recipe nowhere.yaml"),
    (["--distribution", "nowhere.yaml", "--sampler", "box", "--out", "x.png"], "go with a space"),
    (["--distribution", "spos_shufflenet", "--rule", "x", "--out", "x.png"], "unknown cost rule 'x'"),
])
def test_wrong_use_of_the_command_is_one_line(words, message, capsys):
    assert cli(["plot", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_help_and_errors_name_the_samplers_that_can_be_drawn(space, tmp_path, capsys):
    assert cli(["plot", "--help"]) == 0
    named = "uniform, bins, box, stroll or flops"
    assert f"Sampler of a SPACE: {named} (default" in " ".join(capsys.readouterr().out.split())
    assert {*SAMPLERS, *ATTENTIVE} == set(get_args(Sampler.model_fields["name"].annotation))
    for name in ("warm", *ATTENTIVE):
        with pytest.raises(UserError, match=f"'{name}'.* {named}$"):
            named_sampler(name)
    for name in SAMPLERS:
        assert len(sampler_costs(space, named_sampler(name, *([] if name == "uniform" else ["2M:4M"])), 2).flops) == 2


def test_a_ranking_has_a_score_of_its_own_for_each_file(tmp_path, candidates, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr("oneshot_nas.plots.ranking.ranking", lambda *sides: drawn.append(sides) or Figure())
    found = {name: tmp_path / f"{name}.jsonl" for name in ("angles", "alone", "both")}
    archs = [candidate.arch.to_json() for candidate in candidates[:5]]

    def write(name, numbers, scores):
        found[name].write_text("".join(json.dumps({"arch": archs[i], "scores": scores(i)}) + "\n" for i in numbers))

    def plot(*words):
        drawn.clear()
        assert cli(["plot", "--out", str(tmp_path / "x.png"), "--ranking", *map(str, words)]) == 0
        return drawn[0][2:], capsys.readouterr().err

    write("angles", range(4), lambda i: {"angle": i / 2})
    write("alone", range(1, 5), lambda i: {"top1": i / 10, "top5": 1})
    write("both", range(1, 3), lambda i: {"top1": i / 10, "angle": i})
    labels, told = plot(found["angles"], found["alone"], "--score", "angle")
    assert labels == ("angles: angle", "alone: top1 (%)")
    assert drawn[0][:2] == ([0.5, 1, 1.5], pytest.approx([10, 20, 30]))
    assert told == f"compared are 3 architectures; without a partner are 1 of {found['angles']} and 1 of {found['alone']}\n"
    assert plot(found["alone"], found["alone"]) == (("alone: top1 (%)",) * 2, "")
    assert plot(found["both"], found["alone"], "--score", "top1")[0] == ("both: top1 (%)", "alone: top1 (%)")
    assert plot(found["both"], found["angles"], "--score", "angle")[0] == ("both: angle", "angles: angle")
    assert plot(found["both"], found["both"], "--score", "angle")[0] == ("both: angle", "both: top1 (%)")
    assert plot(found["both"], found["alone"], "--standalone-score", "top5")[0] == ("both: top1 (%)", "alone: top5 (%)")
    assert cli(["plot", "--out", "x.png", "--ranking", str(found["alone"]), str(found["angles"]), "--score", "top5"]) == 2
    assert f"{found['angles']} line 1 has no finite number 'top1'" in capsys.readouterr().err


def test_more_than_one_architecture_and_a_fixed_recipe_are_refused(tmp_path, space, capsys):
    archs = tmp_path / "archs.jsonl"
    archs.write_text(f"{json.dumps(space.smallest().to_json())}\n" * 2)
    assert cli(["plot", "--arch", str(archs), "--out", "x.png"]) == 2
    assert "more than one architecture" in capsys.readouterr().err
    (tmp_path / "fixed.yaml").write_text("model: oneshot\n")
    assert cli(["plot", "--distribution", str(tmp_path / "fixed.yaml"), "--out", "x.png"]) == 2
    assert "trains a fixed network" in capsys.readouterr().err


def test_pyplot_and_mxnet_are_not_needed_and_settings_are_left_alone(tmp_path):
    code = ("import sys, matplotlib; before = dict(matplotlib.rcParams)\n"
            "from oneshot_nas.plots import runs\n"
            "from oneshot_nas.plots.ranking import ranking\n"
            f"runs.save(ranking([1, 2], [1, 2]), {str(tmp_path / 'x.png')!r})\n"
            "assert 'matplotlib.pyplot' not in sys.modules and 'mxnet' not in sys.modules and 'optuna' not in sys.modules\n"
            "assert {k: v for k, v in matplotlib.rcParams.items()} == before")
    subprocess.run([sys.executable, "-c", code], check=True)
    assert isinstance(ranking([1, 2], [1, 2]), Figure)
    assert parse_recipe({"space": "spos_shufflenet"}, (), None, "x").epochs == 120
