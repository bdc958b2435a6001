"""Kendall's tau and top-k regret against numbers found by hand."""

import json
import math
import random
from itertools import combinations

import pytest

from oneshot_nas.arch import get_space
from oneshot_nas.errors import UserError
from oneshot_nas.indicators import ranking


def test_tau_without_ties_is_concordant_minus_discordant_pairs():
    # pairs of (1,2,3,4) against (1,3,2,4): only (2,3) is turned round: (5 - 1) / 6
    assert ranking.kendall_tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)
    assert ranking.kendall_tau([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert ranking.kendall_tau([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


def test_tau_b_with_ties_by_the_closed_form():
    rng = random.Random(0)
    for _ in range(20):
        a, b = ([rng.randrange(4) for _ in range(9)] for _ in range(2))
        score = ties_a = ties_b = pairs = 0
        for i, j in combinations(range(9), 2):
            x, y = a[i] - a[j], b[i] - b[j]
            score += (x * y > 0) - (x * y < 0)
            ties_a, ties_b, pairs = ties_a + (x == 0), ties_b + (y == 0), pairs + 1
        if ties_a < pairs and ties_b < pairs:
            assert ranking.kendall_tau(a, b) == pytest.approx(score / math.sqrt((pairs - ties_a) * (pairs - ties_b)))


def test_tau_of_equal_scores_is_undefined():
    assert math.isnan(ranking.kendall_tau([1, 1, 1], [1, 2, 3]))
    assert ranking.compare([1, 1, 1], [1, 2, 3]).kendall_tau is None


def test_regret_is_what_the_best_k_miss():
    indicator, standalone = [0.9, 0.8, 0.7, 0.6], [0.70, 0.74, 0.76, 0.71]
    assert ranking.top_k_regret(indicator, standalone, 1) == pytest.approx(0.06)
    assert ranking.top_k_regret(indicator, standalone, 2) == pytest.approx(0.02)
    assert ranking.top_k_regret(indicator, standalone, 3) == 0


def test_regret_assumes_the_worst_order_of_equal_scores():
    assert ranking.top_k_regret([1, 1, 1], [0.5, 0.9, 0.7], 1) == pytest.approx(0.4)
    assert ranking.top_k_regret([1, 1, 1], [0.5, 0.9, 0.7], 2) == pytest.approx(0.2)


@pytest.mark.parametrize(("a", "b", "message"), [
    ([1, 2], [1], "got 2 and 1"), ([1], [1], "at least 2"), ([1, math.nan], [1, 2], "finite"),
])
def test_bad_lists_are_refused(a, b, message):
    with pytest.raises(UserError, match=message):
        ranking.kendall_tau(a, b)


@pytest.mark.parametrize("k", [0, 3])
def test_bad_k_is_refused(k):
    with pytest.raises(UserError, match="from 1 to 2"):
        ranking.top_k_regret([1, 2], [1, 2], k)


@pytest.fixture
def archs():
    space, rng = get_space("spos_shufflenet", classes=10, input_size=32, layout="small"), random.Random(0)
    return [space.sample(rng).to_json() for _ in range(4)]


def test_files_are_joined_by_architecture(tmp_path, archs, capsys):
    history, standalone = tmp_path / "history.jsonl", tmp_path / "alone.jsonl"
    scores = [0.1, 0.4, 0.3, 0.2]
    lines = [{"arch": arch, "scores": {"top1": score, "top5": 1.0}} for arch, score in zip(archs, scores, strict=True)]
    history.write_text("\n".join(map(json.dumps, [*lines, {"arch": archs[3], "scores": {}, "error": "no"}])) + "\n")
    alone = [{"arch": a, "score": s} for a, s in zip(archs[:3], [0.7, 0.8, 0.9], strict=True)]
    standalone.write_text("\n".join(map(json.dumps, reversed(alone))))
    found = ranking.compare_files(str(history), str(standalone), "top1")
    assert found.count == 3
    assert found.kendall_tau == pytest.approx(1 / 3)
    assert found.regret == {1: pytest.approx(0.1), 3: 0}
    assert ranking.main([str(history), str(standalone)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"count": 3, "kendall_tau": pytest.approx(1 / 3), "regret": {"1": pytest.approx(0.1), "3": 0}}


def test_lines_of_evaluate_need_no_name_of_a_score(tmp_path, archs):
    for name, scores in (("a", (0.1, 0.2, 0.3)), ("b", (0.5, 0.4, 0.9))):
        lines = [{"arch": arch, "top1": score, "top5": 1.0} for arch, score in zip(archs, scores, strict=False)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = ranking.compare_files(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    assert found.count == 3 and found.kendall_tau == pytest.approx(1 / 3)


def test_scores_without_architectures_go_line_by_line(tmp_path):
    first, second, short = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    first.write_text("0.5\n0.7\n")
    second.write_text('{"top1": 0.1}\n{"scores": {"top1": 0.2, "top5": 1}}\n')
    short.write_text("0.5\n")
    scores = [ranking.read_scores(str(path), "top1") for path in (first, second, short)]
    assert ranking.paired(*scores[:2]) == ([0.5, 0.7], [0.1, 0.2])
    with pytest.raises(UserError, match="line by line; they have 2 and 1"):
        ranking.paired(scores[0], scores[2])


def test_architectures_that_are_the_same_network_are_matched(tmp_path):
    """Options that are left out take their defaults."""
    space = get_space("spos_shufflenet")
    whole = space.sample(random.Random(1)).to_json()
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    other = space.sample(random.Random(2)).to_json()
    first.write_text("\n".join(json.dumps({"arch": arch, "score": score}) for arch, score in ((whole, 0.1), (other, 0.2))))
    second.write_text("\n".join(json.dumps({"arch": {**arch, "options": {}}, "score": score})
                                for arch, score in ((other, 4), (whole, 3))))
    assert ranking.paired(ranking.read_scores(str(first)), ranking.read_scores(str(second))) == ([0.1, 0.2], [3.0, 4.0])


def test_bad_files_are_named(tmp_path, archs, capsys):
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for text, message in (('{"top5": 1}', "line 1 has no finite number 'score'"), ("{", "line 1 is not valid JSON"),
                          ("NaN", "no finite number"), ('"much"', "no finite number"), ("\n", "holds no scores"),
                          (json.dumps({"arch": archs[0], "score": True}), "no finite number"),
                          (json.dumps({"arch": {"space": "x"}, "score": 1}), "line 1")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            ranking.read_scores(str(path))
    path.write_text(json.dumps({"arch": archs[0], "score": 1}))
    other.write_text(json.dumps({"arch": archs[1], "score": 1}))
    with pytest.raises(UserError, match="at least two in common"):
        ranking.compare_files(str(path), str(other))
    assert ranking.main([str(path), str(other)]) == 2
    assert "at least two" in capsys.readouterr().err
    assert ranking.main([]) == 2
