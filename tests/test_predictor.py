"""The predictor: ranks unseen candidates, ignores idle decisions, is stored as plain arrays, screens, refuses what is foreign."""

import json
import random
import sys
import types
import zipfile
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from optuna.storages import InMemoryStorage

from oneshot_nas.arch import get_space
from oneshot_nas.cli.main import run as cli
from oneshot_nas.costs.analytic import cost
from oneshot_nas.costs.limits import Limits
from oneshot_nas.costs.table import random_indices
from oneshot_nas.errors import UserError
from oneshot_nas.files import read_json
from oneshot_nas.indicators import predictor
from oneshot_nas.indicators.predictor import LEAST, effective, encode, features, fit, held_out_tau, load, resettable, save
from oneshot_nas.indicators.ranking import kendall_tau
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.family import members, parse_targets
from oneshot_nas.search.history import History
from oneshot_nas.search.loop import run_search
from oneshot_nas.search.searchers import SEARCHERS
from oneshot_nas.search.storage import claim_study
from oneshot_nas.search.task import OBJECTIVES, Screening, SearchTask
from oneshot_nas.shell import program

ELASTIC = get_space("attentive_mobilenet", layout="small", input_size=32, classes=10)
SHUFFLE = get_space("spos_shufflenet", layout="small", input_size=32, classes=10)
LIMITS = Limits(flops=(3e6, 6e6))
SCREEN = Screening(fit, {"predictor": "fitted"}, 300)


def top1(arch):
    """Single decisions and pairs of neighbours matter, and a little noise that the architecture decides."""
    space = ELASTIC if arch.space == ELASTIC.name else SHUFFLE
    last = [max(len(allowed) - 1, 1) for _, _, allowed in space.positions]
    places = [index / most for index, most in zip(space.encode(arch), last, strict=True)]
    single = sum(((column % 5) - 2) * place for column, place in enumerate(places))
    pairs = sum(((column % 3) - 1) * a * b for column, (a, b) in enumerate(pairwise(places)))
    return 0.5 + (single + pairs) / 100 + random.Random(arch.key).gauss(0, 0.002)


def fitness(candidate):
    return candidate.scores["top1"]


def sampled(space, count, seed=0):
    rng = random.Random(seed)
    archs = [space.sample(rng) for _ in range(count)]
    return [Candidate(i, arch, cost(arch), {"top1": top1(arch)}) for i, arch in enumerate(archs)]


def fitted(space=ELASTIC, count=100):
    found = fit(space, sampled(space, count), fitness)
    assert found is not None
    return found


def stored(path, space=ELASTIC, **about):
    save(path, fitted(space), {"objective": {"name": "top1", "score": "top1", "micronet_weight": 0.0}, **about})
    return path


@pytest.mark.parametrize(("space", "least"), [(ELASTIC, 0.75), (SHUFFLE, 0.5)], ids=["elastic", "shuffle"])
def test_unseen_candidates_are_ranked(space, least):
    found, fresh = fitted(space, 150), sampled(space, 100, seed=1)
    scores = found(space, np.array([space.encode(c.arch) for c in fresh]))
    tau = kendall_tau(scores.tolist(), [fitness(c) for c in fresh])
    assert tau > least
    assert held_out_tau(space, sampled(space, 150), fitness) == pytest.approx(tau, abs=0.15)


def test_noise_is_not_learned():
    rng = random.Random(0)
    candidates = [replace(c, scores={"top1": rng.random()}) for c in sampled(ELASTIC, 100)]
    assert abs(held_out_tau(ELASTIC, candidates, fitness)) < 0.2
    constant = [replace(c, scores={"top1": 0.5}) for c in candidates]
    assert held_out_tau(ELASTIC, constant, fitness) == 0
    found = fit(ELASTIC, constant, fitness)
    assert found is not None
    assert np.allclose(found(ELASTIC, random_indices(ELASTIC, np.random.default_rng(0), 5)), 0.5)


def test_the_held_out_split_is_fixed():
    candidates = sampled(ELASTIC, 60)
    assert held_out_tau(ELASTIC, candidates, fitness) == held_out_tau(ELASTIC, candidates, fitness)
    assert held_out_tau(ELASTIC, candidates, fitness, seed=1) != held_out_tau(ELASTIC, candidates, fitness)


def test_a_fit_is_a_function_of_the_candidates_with_scores():
    candidates = sampled(ELASTIC, LEAST + 5)
    rows = random_indices(ELASTIC, np.random.default_rng(1), 50)
    with_failed = [*candidates, Candidate(99, ELASTIC.smallest(), cost(ELASTIC.smallest()), error="no")]
    first, second = fit(ELASTIC, candidates, fitness), fit(ELASTIC, with_failed, fitness)
    assert first is not None and second is not None
    assert (first(ELASTIC, rows) == second(ELASTIC, rows)).all()
    assert first.about["digest"] == second.about["digest"] != fitted().about["digest"]
    assert (first(ELASTIC, rows)[7:8] == first(ELASTIC, rows[7:8])).all()
    assert fit(ELASTIC, candidates[: LEAST - 1], fitness) is None
    with pytest.raises(UserError, match="at least 20 candidates with scores, got 19"):
        held_out_tau(ELASTIC, candidates[: LEAST - 1], fitness)


def test_features_are_one_hot_or_in_steps():
    rows = random_indices(SHUFFLE, np.random.default_rng(0), 20)
    found = encode(SHUFFLE, rows)
    assert found.shape == (20, len(features(SHUFFLE))) == (20, 20 * 4 + 20 * 2 * 9)
    assert np.allclose(np.square(found).sum(axis=1), 40)
    names = features(SHUFFLE)
    for row, index in zip(found, rows, strict=True):
        arch = SHUFFLE.decode(index.tolist())
        assert row[names.index(f"block[3]={arch.choices['block'][3]}")] == 1
        assert (row[names.index("scale[2]>=1.0")] > 0) == (arch.choices["scale"][2] >= 1.0)
        assert (row[names.index("scale[2]<1.0")] > 0) == (arch.choices["scale"][2] < 1.0)
    frozen = SHUFFLE.freeze(SHUFFLE.smallest(), ["scale"])
    assert len(features(frozen)) == 360 and encode(frozen, np.zeros((1, 40), np.int64)).shape == (1, 360)


def idle(space):
    """As if the scale of block i + 1 had no effect where block i is an xception."""
    def canonical(options, choices):
        scales = (*choices["scale"][:1], *(2.0 if block == "xception" else scale
                                           for block, scale in zip(choices["block"], choices["scale"][1:], strict=False)))
        return {**choices, "scale": scales}

    return replace(space, _canonical=canonical)


def test_parts_of_a_space_may_lack_the_values_that_idle_decisions_are_reset_to():
    whole = get_space("ofa_mobilenet")
    part = whole.restrict({"kernel": [[5, 7]] * len(whole.choice("kernel").values)})
    rows = random_indices(part, np.random.default_rng(0), 40)
    archs = [part.decode(row.tolist()) for row in rows]
    assert (effective(part, rows) == effective(whole, np.array([whole.encode(arch) for arch in archs]))).all()
    assert not effective(part, rows).all()
    found = fit(part, [Candidate(i, arch, cost(arch), {"top1": float(i)}) for i, arch in enumerate(archs)], fitness)
    assert found is not None and kendall_tau(found(part, rows).tolist(), list(range(40))) > 0.5
    outside = Candidate(40, whole.smallest(), cost(whole.smallest()), {"top1": 0.0})  # has kernel 3, so the part does not know it
    assert fit(part, [outside], fitness) is None


def test_a_screened_nsga2_goes_on_from_its_candidates():
    task, history = SearchTask(ELASTIC, algorithm="nsga2", population=20, screen=SCREEN, against=("flops",)), []
    for _ in range(8):
        history += [Candidate(len(history) + i, p.arch, cost(p.arch), {"top1": top1(p.arch)}, p.parents)
                    for i, p in enumerate(task.propose(history, len(history)))]
    assert sum(not candidate.parents for candidate in history[20:]) <= 2  # uniform draws join the children; few are best


def test_decisions_without_effect_are_zeroed():
    resettable.cache_clear()  # spaces of equal choices are taken for equal
    space = idle(SHUFFLE)
    rows = random_indices(space, np.random.default_rng(0), 30)
    mask = effective(space, rows)
    for row, effect in zip(rows, mask, strict=True):
        blocks = space.decode(row.tolist()).choices["block"]
        assert effect[:20].all() and effect[20]
        assert effect[21:].tolist() == [block != "xception" for block in blocks[:-1]]
    changed = np.where(mask, rows, (rows + 1) % np.array([len(allowed) for _, _, allowed in space.positions]))
    assert (changed != rows).any()
    assert (encode(space, changed) == encode(space, rows)).all()
    assert np.allclose(np.square(encode(space, rows)).sum(axis=1), mask.sum(axis=1))
    resettable.cache_clear()
    assert effective(SHUFFLE, rows).all()


# files


def test_a_stored_predictor_gives_the_same_scores(tmp_path):
    path, found = stored(tmp_path / "p.npz", held_out_tau=0.5), fitted()
    rows = random_indices(ELASTIC, np.random.default_rng(0), 100)
    again = load(path)
    assert (again(ELASTIC, rows) == found(ELASTIC, rows)).all()
    assert again.about["held_out_tau"] == 0.5 and again.about["candidates"] == 100 and again.about["kind"] == "predictor"
    with np.load(path, allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].tobytes())
    assert about["space"] == "attentive_mobilenet" and about["options"]["layout"] == "small" and about["version"] == 1
    assert about["features"] == list(features(ELASTIC)) and about["digest"] == found.about["digest"]


def test_a_part_of_the_space_is_scored_alike(tmp_path):
    found = load(stored(tmp_path / "p.npz"))
    part = ELASTIC.restrict({"resolution": [(28, 32)], "depth": [c[-1:] for c in ELASTIC.choice("depth").values]})
    rows = random_indices(part, np.random.default_rng(0), 20)
    whole = np.array([ELASTIC.encode(part.decode(row)) for row in rows.tolist()])
    assert (found(part, rows) == found(ELASTIC, whole)).all()


@pytest.mark.parametrize(("space", "message"), [
    (SHUFFLE, "is of space 'attentive_mobilenet', this is 'spos_shufflenet'"),
    (get_space("attentive_mobilenet", layout="small", input_size=32, classes=100), "option 'classes' = 10, here it is 100"),
    (get_space("attentive_mobilenet", layout="small", input_size=32, classes=10, resolutions=(24, 40)), "option 'resolutions'"),
])
def test_a_predictor_of_another_space_is_refused(tmp_path, space, message):
    with pytest.raises(UserError, match=message):
        load(stored(tmp_path / "p.npz"))(space, np.zeros((1, len(space.positions)), np.int64))


def test_values_it_does_not_know_are_named(tmp_path):
    part = ELASTIC.restrict({"resolution": [(24, 28)]})
    found = fit(part, sampled(part, 30), fitness)
    assert found is not None
    save(tmp_path / "p.npz", found, {})
    with pytest.raises(UserError, match=r"does not know 'resolution'\[0\] = \(32\), it was fitted to \(24, 28\)"):
        load(tmp_path / "p.npz")(ELASTIC, np.zeros((1, len(ELASTIC.positions)), np.int64))


def test_every_truncation_is_refused(tmp_path):
    whole = stored(tmp_path / "p.npz").read_bytes()
    broken = tmp_path / "broken.npz"
    for length in [*range(0, len(whole), len(whole) // 25), len(whole) - 1]:
        broken.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is no predictor or a damaged one"):
            load(broken)


def test_a_changed_byte_is_refused_or_harmless(tmp_path):
    whole, expected = stored(tmp_path / "p.npz").read_bytes(), None
    rows, rng = random_indices(ELASTIC, np.random.default_rng(0), 5), random.Random(0)
    expected = load(tmp_path / "p.npz")(ELASTIC, rows)
    broken = tmp_path / "broken.npz"
    for _ in range(40):
        place = rng.randrange(len(whole))
        broken.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        try:
            found = load(broken)
        except UserError:
            continue
        assert (found(ELASTIC, rows) == expected).all()


@pytest.mark.parametrize(("changes", "message"), [
    ({"kind": "supernet"}, "is of kind 'supernet', expected 'predictor'"), ({"version": 9}, "has version 9"),
    ({"space": "x"}, "unknown space"), ({"space": None}, "p.npz"), ({"options": []}, "damaged"),
    ({"choices": {"x": []}}, "no choice"), ({"offset": "much"}, "damaged"), ({"quantum": 0}, "do not fit"),
    ({"arrays": "0"}, "do not fit"), ({"offset": float("nan")}, "do not fit"),
])
def test_descriptions_that_do_not_fit_are_refused(tmp_path, changes, message):
    with np.load(stored(tmp_path / "q.npz")) as found:
        arrays = dict(found)
    about = {**json.loads(arrays["about"].tobytes()), **changes}
    np.savez(tmp_path / "p.npz", **{**arrays, "about": np.frombuffer(json.dumps(about).encode(), np.uint8)})
    with pytest.raises(UserError, match=message):
        load(tmp_path / "p.npz")


def test_a_single_weight_is_no_list_of_them(tmp_path):
    with np.load(stored(tmp_path / "q.npz")) as found:
        np.savez(tmp_path / "p.npz", **{**found, "weights": np.float64(1.0)})
    with pytest.raises(UserError, match="do not fit"):
        load(tmp_path / "p.npz")


def test_foreign_files_are_refused_and_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("unpickled",)

    np.savez(tmp_path / "evil.npz", about=np.array([Evil()], dtype=object), rows=np.zeros(1), weights=np.zeros(1))
    (tmp_path / "text.npz").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("about.npy", bytes(predictor.MAX_JSON_BYTES + 1))
    np.savez(tmp_path / "other.npz", rows=np.zeros(3))
    for name in ("evil", "text", "bomb", "other"):
        with pytest.raises(UserError, match="is no predictor or a damaged one"):
            load(tmp_path / f"{name}.npz")
    for path in (tmp_path, tmp_path / "none.npz"):
        with pytest.raises(UserError, match="cannot read predictor"):
            load(path)


# screening


def history_of(task, storage=None, stop=None):
    storage = storage or InMemoryStorage()
    number = claim_study(storage, "search", "memory", task.fingerprint(), task.directions())
    history, calls = History(storage, number, task.space, {}, "memory", stale_seconds=0), []

    def evaluate(arch):
        calls.append(arch)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return {"top1": top1(arch)}

    run_search(task, evaluate, history, progress=False)
    return history.candidates


def lasting(candidates):
    return [(c.index, c.arch, c.scores, c.parents) for c in candidates]


@pytest.mark.parametrize("algorithm", SEARCHERS)
def test_screening_finds_better_candidates(algorithm):
    task = SearchTask(ELASTIC, LIMITS, algorithm, population=20, budget=100, grid=40)
    plain, screened = history_of(task), history_of(replace(task, screen=SCREEN))
    assert lasting(plain[:20]) == lasting(screened[:20])  # too few candidates for a predictor
    assert max(map(fitness, screened)) > max(map(fitness, plain))
    assert len({c.arch for c in screened}) == 100 and all(LIMITS.reject(c.cost) is None for c in screened)


def test_screening_works_over_unordered_spaces_stages_and_families():
    plain = SearchTask(SHUFFLE, LIMITS, population=20, budget=120)
    assert max(map(fitness, history_of(replace(plain, screen=SCREEN)))) > max(map(fitness, history_of(plain)))
    staged = replace(plain, limits=Limits(), stages=(("block",), ("scale",)), screen=SCREEN)
    assert {c.arch.choices["scale"] for c in history_of(staged)[:60]} == {(1.0,) * 20}
    task = SearchTask(ELASTIC, population=20, budget=120)
    task = task.for_targets(parse_targets("4", ELASTIC, Limits()))
    best = {}
    for screen in (None, SCREEN):
        found = members(history_of(replace(task, screen=screen)), task.objective.order, task.targets, task.limits)
        best[bool(screen)] = sum(fitness(m.best) for m in found if m.best)
    assert best[True] > best[False]


def test_a_screened_search_resumes_to_the_same_history():
    task = SearchTask(ELASTIC, LIMITS, population=12, budget=48, screen=SCREEN)
    storage = InMemoryStorage()
    for stop in (5, 22, 9):
        with pytest.raises(KeyboardInterrupt):
            history_of(task, storage, stop)
    assert lasting(history_of(task, storage)) == lasting(history_of(task))
    assert task.fingerprint()["screen"] == {"predictor": "fitted", "children": 300}
    with pytest.raises(UserError, match="screen"):
        history_of(replace(task, screen=None), storage)
    for children in (11, 2_000_000):
        with pytest.raises(UserError, match=f"{children} children are no choice for a population of 12"):
            replace(task, screen=replace(SCREEN, children=children)).check()


# commands


@pytest.fixture
def supernet(monkeypatch, tmp_path):
    class Fake:
        space = ELASTIC

        @property
        def about(self):
            return {"supernet": "runs/supernet", "weights": "abc"}

        def __call__(self, arch):
            return {"top1": top1(arch)}

    module = types.ModuleType("oneshot_nas.indicators.accuracy")
    vars(module)["load_evaluator"] = lambda run, calib_images=None, val_images=None, seed=0: Fake()
    monkeypatch.setitem(sys.modules, "oneshot_nas.indicators.accuracy", module)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


def search(out, *more, budget=45):
    words = ["search", "--supernet", "super", "--out", out, "--budget", str(budget), "--population", "15", "--repeats", "0"]
    return cli([*words, *more])


def test_a_search_is_screened_and_its_predictor_stored_and_used(supernet, capsys):
    assert search("a", "--indicator", "predictor", "--children", "200", "--targets", "3") == 0
    out, err = capsys.readouterr()
    assert "predictor   Kendall's tau" in out and out.count("family      up to ") == 3
    assert f"next: {program()} evaluate --supernet super --arch a/family.jsonl --json" in err
    result = read_json("a/result.json", "search-result")
    assert result["screen"]["children"] == 200 and -1 <= result["screen"]["held_out_tau"] <= 1 and len(result["family"]) == 3
    with open("a/family.jsonl", encoding="utf-8") as lines:
        assert [json.loads(line)["choices"] for line in lines] == [m["best"]["arch"]["choices"] for m in result["family"]]
    assert cli(["plot", "a"]) == 0
    capsys.readouterr()
    assert cli(["predictor", "--run", "a", "--out", "p.npz"]) == 0
    assert "p.npz: attentive_mobilenet, 45 candidates, Kendall's tau 0." in capsys.readouterr().out
    assert cli(["predictor", "--run", "a", "--out", "p.npz", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["held_out_tau"] == load("p.npz").about["held_out_tau"] == result["screen"]["held_out_tau"]
    words = ("--indicator", "predictor", "--predictor", "p.npz", "--children", "200")
    assert search("b", *words, budget=15) == 0
    assert search("c", budget=15) == 0
    first, plain = (read_json(f"{name}/result.json", "search-result")["best"]["fitness"] for name in "bc")
    assert first > plain  # screened from the first generation on
    for about, message in (({"objective": {}}, "predicts {}, this search maximises"), ({}, "screen.predictor: ")):
        stored("p.npz", **about)
        capsys.readouterr()
        assert search("b", *words, budget=15) == 2
        assert message in capsys.readouterr().err


def test_wrong_predictors_are_one_line(supernet, capsys):
    stored("other.npz", SHUFFLE)
    words = ("--indicator", "predictor", "--predictor")
    assert search("a", *words, "other.npz") == 2
    assert "predictor other.npz is of space 'spos_shufflenet', this is 'attentive_mobilenet'" in capsys.readouterr().err
    assert search("few", budget=15) == 0
    capsys.readouterr()
    for arguments, message in ((["--run", "few", "--out", "p.npz"], "at least 20 candidates with scores, got 15"),
                               (["--run", "few", "--out", "p.json"], "--out must end in .npz"),
                               (["--run", "none", "--out", "p.npz"], "no run folder none")):
        assert cli(["predictor", *arguments]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and len(error.splitlines()) == 1
    assert cli(["predictor", "--help"]) == 0
    assert "Example:" in capsys.readouterr().out


def test_objectives_of_a_predictor_are_those_of_its_search():
    micronet = OBJECTIVES["micronet"]
    candidates = [replace(c, scores={**c.scores, **micronet.extra(ELASTIC, c.arch)}) for c in sampled(ELASTIC, 60)]
    found = fit(ELASTIC, candidates, micronet.fitness)
    assert found is not None
    rows = np.array([ELASTIC.encode(c.arch) for c in candidates])
    assert kendall_tau(found(ELASTIC, rows).tolist(), [micronet.fitness(c) for c in candidates]) > 0.8
