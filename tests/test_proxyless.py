"""The MobileNet space: published architectures to the unit, legal skips, index orders, supernet shapes, table files, recipes."""

import json
import pickle
import random
import sys
from collections import Counter
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneshot_nas import UserError, cost, get_space
from oneshot_nas.arch import space_of
from oneshot_nas.cli.main import run
from oneshot_nas.config import read_recipe
from oneshot_nas.costs.lut import differences, flops_table, read_table, table_flops, write_table
from oneshot_nas.costs.table import cost_table, random_indices, reachable
from oneshot_nas.model_zoo import list_models, published
from oneshot_nas.nets.supernet import supernet_ops
from oneshot_nas.ops import Chain, MBConv, Skip
from oneshot_nas.primitives import Activation, BatchNorm, Conv, Dropout

ROOT = Path(__file__).resolve().parents[1]
BNNAS = [3, -1, 0, 4, 0, -1, -1, 0, 4, -1, 4, 4, 1, 4, 2, 0, 0, 4, 0, 2, 2]
BNNAS_SPOS = [0, -1, 0, 0, 4, -1, -1, 2, 0, -1, 4, 4, 3, 0, 2, 1, 0, 4, 2, 5, 2]
ABS_SPOS = [2, 2, -1, 0, 0, -1, -1, 0, 5, -1, 4, 4, 0, 0, 4, 2, 3, 4, 4, 4, 3]
ABS_PROXYLESS = [2, 2, -1, -1, 0, 2, 2, -1, 5, -1, 4, 4, 0, 0, 4, 2, 3, 4, 4, 4, 3]
UNLABELLED = [3, -1, 4, 4, 4, -1, -1, 0, 0, -1, 4, 0, 4, 0, 0, 2, 4, 2, 2, 4, 2]
# name: indices, FLOPs under macs, abs-lut, mmrazor, params. All published reproduce: abs-lut 473.5 and 468.8 M (BN-NAS), 472,
# 470 M (ABS, cut, not rounded), mmrazor 0.49 G; params 5.2, 5.8, -, -, 5.94 M.
PUBLISHED = {
    "bnnas": (BNNAS, 471_822_240, 473_549_240, 493_946_720, 5_228_536),
    "bnnas_spos": (BNNAS_SPOS, 467_080_608, 468_807_608, 486_495_584, 5_780_560),
    "abs_spos": (ABS_SPOS, 470_792_064, 472_519_064, 490_136_480, 5_936_776),
    "abs_proxyless": (ABS_PROXYLESS, 468_966_912, 470_693_912, 487_182_368, 5_955_808),
    "proxyless_mmrazor": (ABS_SPOS, 470_792_064, 472_519_064, 490_136_480, 5_936_776),
}
RULES = ("macs", "abs-lut", "mmrazor")
KERNELS, EXPANSIONS = (3, 3, 5, 5, 7, 7), (3, 6, 3, 6, 3, 6)
CHANGING = (0, 4, 8, 12, 16, 20)
LAYERS = (  # inputs, outputs, input side, stride of the 21 layers, as the papers' tables have them
    (24, 32, 112, 2), *[(32, 32, 56, 1)] * 3, (32, 56, 56, 2), *[(56, 56, 28, 1)] * 3, (56, 112, 28, 2), *[(112, 112, 14, 1)] * 3,
    (112, 128, 14, 1), *[(128, 128, 14, 1)] * 3, (128, 256, 14, 2), *[(256, 256, 7, 1)] * 3, (256, 432, 7, 1),
)


def full(**options):
    return get_space("proxyless_gpu", **options)


def by_hand(indices, identity=False):
    """FLOPs under the three rules and params, from the tables alone; `identity` counts a skip that changes the shape as 1x1."""
    # inputs, outputs, kernel, groups, side of the output, ReLU6 or not
    convs = [(3, 40, 3, 1, 112, 6), (40, 40, 3, 40, 112, 6), (40, 24, 1, 1, 112, 0)]
    for code, (inputs, outputs, side, stride) in zip(indices, LAYERS, strict=True):
        if code >= 0:
            mid = inputs * EXPANSIONS[code]
            convs += [(inputs, mid, 1, 1, side, 6), (mid, mid, KERNELS[code], mid, side // stride, 6),
                      (mid, outputs, 1, 1, side // stride, 0)]
        elif identity and (inputs, 1) != (outputs, stride):
            convs += [(inputs, outputs, 1, 1, side // stride, 0)]
    convs += [(432, 1728, 1, 1, 7, 6)]
    weights = [outputs * (inputs // groups) * kernel**2 for inputs, outputs, kernel, groups, *_ in convs]
    macs = sum(count * conv[4] ** 2 for count, conv in zip(weights, convs, strict=True))
    norms = sum((3 if relu else 2) * outputs * side**2 for _, outputs, _, _, side, relu in convs)
    params = sum(weights) + sum(2 * conv[1] for conv in convs) + 1728 * 1000 + 1000
    return macs + 1_728_000, macs + (2 * 1728 - 1) * 1000, macs + 1_728_000 + norms + 1728 * 49, params


# --- published architectures ---


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts_to_the_unit(name):
    indices, *flops, params = PUBLISHED[name]
    arch = published(name)
    assert tuple(cost(arch, rule).flops for rule in RULES) == tuple(flops) and cost(arch).params == params
    assert (*flops, params) == by_hand(indices)
    assert space_of(arch).from_indices({"op": indices}) == arch


def test_every_model_of_the_space_is_pinned():
    assert set(PUBLISHED) == {name for name in list_models() if published(name).space == "proxyless_gpu"}


def test_the_third_architecture_of_the_release_is_legal():
    arch = full(variant="bnnas").from_indices({"op": UNLABELLED})
    assert (*(cost(arch, rule).flops for rule in RULES), cost(arch).params) == by_hand(UNLABELLED)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["full", "bnnas", "mmrazor"]))
def test_any_architecture_counts_as_by_hand(seed, variant):
    space = full(variant=variant)
    arch = space.sample(random.Random(seed))
    counted = (*(cost(arch, rule).flops for rule in RULES), cost(arch).params)
    assert counted == by_hand(space.to_indices(arch)["op"], variant == "mmrazor")
    assert cost(arch, "abs-lut").flops - cost(arch).flops == 1_727_000


def test_range_of_the_spaces():
    """The extremes that the sheet gives for BN-NAS's space (393.4 to 850 M, mean 602 M), and the sizes of the three variants."""
    space = full(variant="bnnas")
    table = cost_table(space, "abs-lut")
    assert reachable(table)[0] == (393_440_120, 849_582_296)
    assert table.fixed.flops + sum(unit.flops.mean() for unit in table.units) == 601_585_064
    flops, _ = table(random_indices(space, np.random.default_rng(0), 20_000))
    assert 0.001 < (flops <= 475e6).mean() < 0.003, "0.2 % meet the published limit"
    assert {variant: full(variant=variant).size for variant in ("full", "bnnas", "mmrazor")} == {
        "full": 221_502_229_807_900_608, "bnnas": 16_926_659_444_736, "mmrazor": 7**21}
    for variant in ("full", "mmrazor"):
        least, most = reachable(cost_table(full(variant=variant)))[0]
        assert (least, most) == (cost(full(variant=variant).smallest()).flops, cost(full(variant=variant).largest()).flops)


def test_costs_of_operators_share_a_divisor():
    for unit in cost_table(full(), "abs-lut").units:
        assert (unit.flops % 4704 == 0).all()


# --- the network ---


@pytest.mark.parametrize("layout", ["gpu", "small"])
def test_where_a_skip_is_legal(layout):
    values = full(layout=layout).choice("op").values
    assert tuple(place for place, allowed in enumerate(values) if "skip" not in allowed) == CHANGING
    assert sum(map(len, values)) == 141, "operators that ABS starts from"
    fixed = full(layout=layout, variant="bnnas").choice("op").values
    assert [place for place, allowed in enumerate(fixed) if allowed == ("skip",)] == [1, 5, 6, 9]
    assert all(len(allowed) == 6 and "skip" not in allowed for place, allowed in enumerate(fixed) if place not in (1, 5, 6, 9))
    assert all(len(allowed) == 7 for allowed in full(layout=layout, variant="mmrazor").choice("op").values)


def test_layers_are_those_of_the_tables():
    space = full()
    layers = space.plan(space.arch({"op": ["k5e6"] * 21})).layers
    assert [layer.name for layer in layers] == [
        "stem", "first", *(f"stage{s}.block{b}" for s in range(1, 6) for b in range(1, 5)), "stage6.block1", "last", "head"]
    for layer, (inputs, outputs, side, stride) in zip(layers[2:23], LAYERS, strict=True):
        assert (layer.in_shape, layer.out_shape) == ((inputs, side, side), (outputs, side // stride, side // stride))
        assert layer.op.shortcut == ("identity" if (inputs, stride) == (outputs, 1) else "none")
        assert (layer.op.kernel, layer.op.mid_channels, layer.op.scoring, layer.unit) == (5, 6 * inputs, "bn3", layer.name)
    assert layers[1].op.shortcut == "none" and not layers[1].candidate
    for layer in layers:
        for primitive in layer.op.chain():
            assert not isinstance(primitive, Conv) or (primitive.init, primitive.bias) == ("he_out", False)
            assert not isinstance(primitive, BatchNorm) or (primitive.eps, primitive.momentum, primitive.gamma) == (1e-5, 0.9, 1)
            assert not isinstance(primitive, Activation) or primitive.kind == "relu6"


def test_skips():
    """Nothing where the shape is kept; mmrazor's is a 1x1 convolution of that stride with BatchNorm where it changes."""
    space = full(variant="mmrazor")
    ops = [layer.op for layer in space.plan(space.smallest()).layers[2:23]]
    for place, (op, (inputs, outputs, _, stride)) in enumerate(zip(ops, LAYERS, strict=True)):
        if place in CHANGING:
            assert op == Chain(inputs, (Conv("conv", inputs, outputs, 1, stride, init="he_out"), BatchNorm("bn", outputs)))
            assert op.scoring == "bn"
        else:
            assert op == Skip(inputs) and op.scoring is None and not op.parameters()


def test_dropout_is_that_of_the_publication():
    rates = {}
    for variant, layout in (("full", "gpu"), ("bnnas", "gpu"), ("mmrazor", "gpu"), ("full", "small")):
        space = full(variant=variant, layout=layout)
        head = space.plan(space.largest()).layers[-1].op
        rates[variant, layout] = [p.rate for p in head.primitives if isinstance(p, Dropout)]
    assert rates == {("full", "gpu"): [0.2], ("bnnas", "gpu"): [0.2], ("mmrazor", "gpu"): [], ("full", "small"): []}


def test_supernet_shapes():
    """126 scoring BatchNorms with 33,216 scalars, 291,760 in all BatchNorms, 27,684,320 in all."""
    def counts(**options):
        ops = supernet_ops(full(**options)).values()
        norms = [(layer, op, norm) for layer, op in ops for norm in op.chain() if isinstance(norm, BatchNorm)]
        scoring = [2 * norm.channels for layer, op, norm in norms if layer.candidate and norm.name == op.scoring]
        everything = sum(prod(shape) for _, op in ops for shape in op.parameters().values())
        return len(scoring), sum(scoring), sum(2 * norm.channels for *_, norm in norms), everything

    assert counts() == (126, 33_216, 291_760, 27_684_320)
    assert counts(variant="bnnas") == (102, 30_144, 261_040, 26_391_008), "the operators that BN-NAS never samples do not exist"
    kinds = Counter(type(op) for layer, op in supernet_ops(full()).values() if layer.candidate)
    assert kinds == {MBConv: 126, Skip: 15}


def test_small_layout_has_nets_of_9_to_15_million():
    for variant in ("full", "bnnas", "mmrazor"):
        space = full(variant=variant, layout="small", input_size=32, classes=10)
        flops, _ = cost_table(space)(random_indices(space, np.random.default_rng(0), 4000))
        low, high = np.quantile(flops, (0.03, 0.97))
        assert 8e6 < low < high < 15.5e6
        assert space.plan(space.largest()).layers[-2].in_shape == (96, 4, 4)


# --- index orders ---


def test_orders_of_indices_by_name():
    """Ids 0 to 5 and -1 of BN-NAS and AngleNAS; mmrazor lists the kernels at expansion 3, then at 6, then identity."""
    space = full(variant="mmrazor")
    for bnnas, mmrazor, value in ((0, 0, "k3e3"), (1, 3, "k3e6"), (2, 1, "k5e3"), (3, 4, "k5e6"), (4, 2, "k7e3"), (5, 5, "k7e6"),
                                  (-1, 6, "skip")):
        arch = space.arch({"op": [value] * 21})
        assert space.from_indices({"op": [bnnas] * 21}) == space.from_indices({"op": [bnnas] * 21}, "bnnas") == arch
        assert space.from_indices({"op": [mmrazor] * 21}, "mmrazor") == arch
        assert space.to_indices(arch) == {"op": [bnnas] * 21} and space.to_indices(arch, "mmrazor") == {"op": [mmrazor] * 21}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["full", "bnnas", "mmrazor"]), st.sampled_from([None, "bnnas", "mmrazor"]))
def test_orders_round_trip(seed, variant, order):
    space = full(variant=variant)
    arch = space.sample(random.Random(seed))
    assert space.from_indices(space.to_indices(arch, order), order) == arch


def test_spaces_without_orders_use_their_own():
    space = get_space("spos_shufflenet")
    arch = space.sample(random.Random(0))
    assert space.from_indices(space.to_indices(arch)) == arch and max(space.to_indices(arch)["block"]) == 3
    with pytest.raises(UserError, match="space 'spos_shufflenet' has no index order 'mmrazor'; it has one only, name none"):
        space.from_indices({}, "mmrazor")


@pytest.mark.parametrize(
    "options,place,code,order,message",
    [
        *[({}, place, -1, None, rf"index 'op'\[{place}\] = -1 is not one of \(0, 1, 2, 3, 4, 5\) in space 'proxyless_gpu'")
          for place in CHANGING],
        ({}, 4, 6, "mmrazor", r"index 'op'\[4\] = 6 is not one of \(0, 1, 2, 3, 4, 5\)"),
        ({}, 1, 6, None, r"index 'op'\[1\] = 6 is not one of \(0, 1, 2, 3, 4, 5, -1\)"),
        ({}, 1, 7, "mmrazor", r"index 'op'\[1\] = 7 is not one of \(0, 1, 2, 3, 4, 5, 6\)"),
        ({}, 1, True, None, r"index 'op'\[1\] = True is not one of"),
        ({"variant": "bnnas"}, 2, -1, None, r"index 'op'\[2\] = -1 is not one of \(0, 1, 2, 3, 4, 5\)"),
        ({"variant": "bnnas"}, 5, 0, None, r"index 'op'\[5\] = 0 is not one of \(-1\)"),
        ({}, 1, 0, "mm", r"space 'proxyless_gpu' has no index order 'mm'; it has \('bnnas', 'mmrazor'\)"),
    ],
)
def test_illegal_indices_are_refused(options, place, code, order, message):
    space = full(**options)
    indices = space.to_indices(space.largest(), order if order == "mmrazor" else None)["op"]
    indices[place] = code
    with pytest.raises(UserError, match=message):
        space.from_indices({"op": indices}, order)


def test_illegal_values_and_options_are_refused():
    operators = ["k3e3"] * 21
    with pytest.raises(UserError, match=r"choice 'op'\[8\] = 'skip' is not one of \('k3e3', 'k3e6', "):
        full().arch({"op": [*operators[:8], "skip", *operators[9:]]})
    with pytest.raises(UserError, match="choice 'op' has 20 values, space 'proxyless_gpu' needs 21"):
        full().arch({"op": operators[1:]})
    with pytest.raises(UserError, match=r"option 'variant' = 'fair' of space 'proxyless_gpu' is not one of \('full', "):
        full(variant="fair")


# --- the FLOPs table file ---


def test_flops_table_is_that_of_the_predecessors():
    table = flops_table(full())
    assert sum(map(len, table.values())) == 68
    assert {name: len(entries) for name, entries in table.items()} == {
        "PreProcessing": 1, "PostProcessing": 1, **{f"mobilenet_{k}x{k}_ratio_{e}": 11 for k in (3, 5, 7) for e in (3, 6)}}
    assert table["mobilenet_3x3_ratio_3"][32, 32, 56, 56, 1] == 21_977_088
    assert table["PreProcessing"] == {(3, 40, 224, 224, 2): 27 * 40 * 112**2 + (9 + 24) * 40 * 112**2}
    assert table["PostProcessing"] == {(432, 1728, 7, 7, 1): 432 * 1728 * 49 + 3_455_000}
    for code, (kernel, expansion) in enumerate(zip(KERNELS, EXPANSIONS, strict=True)):
        for inputs, outputs, side, stride in LAYERS:
            mid, half = inputs * expansion, side // stride
            assert table[f"mobilenet_{kernel}x{kernel}_ratio_{expansion}"][inputs, outputs, side, side, stride] == (
                inputs * mid * side**2 + mid * kernel**2 * half**2 + mid * outputs * half**2), code


@pytest.mark.parametrize("options,rule,entries", [
    ({}, "abs-lut", 68), ({"variant": "bnnas"}, "abs-lut", 68), ({"variant": "mmrazor"}, "mmrazor", 74),
    ({"layout": "small", "input_size": 33, "classes": 10}, "macs", 68),
])
def test_flops_table_files_are_read_as_written(tmp_path, options, rule, entries):
    space = full(**options)
    write_table(tmp_path / "t.json", space, rule)
    again, read_rule, table = read_table(tmp_path / "t.json")
    assert (again, read_rule, table) == (space, rule, flops_table(space, rule)) and sum(map(len, table.values())) == entries
    assert differences(space, rule, table) == []
    rng = random.Random(0)
    for arch in [space.smallest(), *(space.sample(rng) for _ in range(20))]:
        assert table_flops(table, arch) == cost(arch, rule).flops


def test_a_wrong_table_is_noticed(tmp_path, capsys):
    """Such as the predecessors' CPU table, whose PreProcessing counts a convolution that the network does not have."""
    write_table(tmp_path / "t.json", full())
    content = json.loads((tmp_path / "t.json").read_text())
    content["table"]["PreProcessing"]["(3, 40, 224, 224, 2)"] += 12_845_056
    content["table"]["mobilenet_5x5_ratio_3"]["(32, 32, 56, 56, 2)"] = content["table"]["mobilenet_5x5_ratio_3"].pop(
        "(32, 32, 56, 56, 1)")
    (tmp_path / "t.json").write_text(json.dumps(content))
    space, rule, table = read_table(tmp_path / "t.json")
    assert differences(space, rule, table) == [
        "mobilenet_5x5_ratio_3 (32, 32, 56, 56, 1) is missing",
        "mobilenet_5x5_ratio_3 (32, 32, 56, 56, 2) is no layer of the space",
        "PreProcessing (3, 40, 224, 224, 2) is 42,950,656, the network has 30,105,600"]
    with pytest.raises(UserError, match=r"no entry mobilenet_5x5_ratio_3 \(32, 32, 56, 56, 1\), which layer stage1.block2 needs"):
        table_flops(table, published("abs_spos"))
    assert run(["table", "--check", str(tmp_path / "t.json")]) == 2
    assert "3 entries differ: mobilenet_5x5_ratio_3 (32, 32, 56, 56, 1) is missing; " in capsys.readouterr().err


class Bomb:
    def __reduce__(self):
        return sys.exit, ("a pickle was read",)


@pytest.mark.parametrize("protocol,name", [(0, "t.pkl"), (2, "t.json"), (4, "t.pkl")])
def test_pickles_are_refused_unread(tmp_path, protocol, name):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(), protocol))
    with pytest.raises(UserError, match="is a pickle, which may run code when it is read, so it is not; write the table anew"):
        read_table(tmp_path / name)


def test_a_table_is_not_written_under_the_name_of_a_pickle(tmp_path, capsys):
    assert run(["table", "proxyless_gpu", "--out", str(tmp_path / "t.pkl")]) == 2
    assert "named like a pickle, the table is JSON" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("change,message", [
    ({"kind": "architecture"}, "is of kind 'architecture', expected 'flops-table'"),
    ({"version": 2}, "has version 2"),
    ({"space": "spos_shufflenet"}, r"needs the keys space \('proxyless_gpu'\), options, rule and table"),
    ({"options": []}, "needs the keys"),
    ({"options": {"variant": 3}}, "option 'variant' = 3 of space 'proxyless_gpu' is not one of"),
    ({"rule": "flops"}, "unknown cost rule 'flops'"),
    ({"table": [1]}, "needs the keys"),
    ({"table": {"mobilenet_3x3_ratio_3": 5}}, "'mobilenet_3x3_ratio_3' must be an object of "),
    ({"table": {"a": {"(1, 2)": 5}}}, r"'a' has the key '\(1, 2\)'; write \(inputs, outputs, height, width, stride\)"),
    ({"table": {"a": {"(1, 2, 3, 4, 1)": "5"}}}, r"'a' \(1, 2, 3, 4, 1\) = '5' is no count of FLOPs"),
    ({"table": {"a": {"(1, 2, 3, 4, 1)": float("nan")}}}, "= nan is no count of FLOPs"),
    ({"table": {"a": {"(1, 2, 3, 4, 1)": -1}}}, "= -1 is no count of FLOPs"),
    ({"table": {"a": {"(1, 2, 3, 4, 1)": 1.5}}}, "= 1.5 is no count of FLOPs"),
    ({"table": {"a": {"(1, 2, 3, 4, 1)": True}}}, "= True is no count of FLOPs"),
])
def test_bad_table_files_are_refused(tmp_path, change, message):
    write_table(tmp_path / "t.json", full())
    (tmp_path / "t.json").write_text(json.dumps(json.loads((tmp_path / "t.json").read_text()) | change))
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / "t.json")


def test_a_table_of_floats_as_the_predecessors_have_them_is_read(tmp_path):
    write_table(tmp_path / "t.json", full())
    content = json.loads((tmp_path / "t.json").read_text())
    content["table"] = {name: {key: float(flops) for key, flops in entries.items()} for name, entries in content["table"].items()}
    (tmp_path / "t.json").write_text(json.dumps(content))
    assert read_table(tmp_path / "t.json")[2] == flops_table(full())


# --- commands ---


def called(capsys, *arguments):
    code = run([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_arch_reads_and_prints_both_orders(capsys, tmp_path):
    code, out, err = called(capsys, "arch", "bnnas", "--as-indices", "--order", "mmrazor")
    assert (code, err) == (0, "") and json.loads(out)["op"][:5] == [4, 6, 0, 2, 0]
    code, arch, _ = called(capsys, "arch", "proxyless_gpu", "--option", "variant=bnnas", "--order", "mmrazor", "--indices", out)
    assert code == 0 and json.loads(arch) == published("bnnas").to_json()
    (tmp_path / "arch.json").write_text(arch)
    assert json.loads(called(capsys, "arch", tmp_path / "arch.json", "--as-indices")[1]) == {"op": BNNAS}
    assert json.loads(called(capsys, "arch", tmp_path / "arch.json")[1]) == published("bnnas").to_json()


def test_table_command(capsys, tmp_path):
    path = tmp_path / "t.json"
    code, out, err = called(capsys, "table", "proxyless_gpu", "--option", "variant=mmrazor", "--out", path, "--json")
    assert (code, err) == (0, "") and json.loads(out) == {"file": str(path), "entries": 74, "rule": "abs-lut"}
    assert called(capsys, "table", "--check", path)[0] == 0


@pytest.mark.parametrize("arguments,message", [
    (["arch", "bnnas", "--order", "mmrazor"], "give --indices to read index lists or --as-indices to print them"),
    (["arch", "proxyless_gpu", "--indices", "{}", "--as-indices"], "give --indices to read index lists or --as-indices"),
    (["arch", "bnnas", "--as-indices", "--order", "x"], "has no index order 'x'; it has ('bnnas', 'mmrazor')"),
    (["arch", str(ROOT / "oneshot_nas/zoo/bnnas.json"), "--indices", "{}"], "it takes no --indices"),
    (["arch", "proxyless_gpu", "--indices", '{"op": [-1, 0]}'], "'op' of space 'proxyless_gpu' needs a list of 21 indices"),
    (["table"], "give either --out FILE to write a table or --check FILE to check one"),
    (["table", "--check", "none.json"], "cannot read flops-table none.json"),
    (["table", "--check", "none.json", "--rule", "macs"], "leave SPACE, --option and --rule out"),
    (["table", "spos_shufflenet", "--out", "t.json"], "space 'spos_shufflenet' has no FLOPs table of this layout"),
    (["table", "--out", "t.json", "--rule", "x"], "unknown cost rule 'x'"),
])
def test_wrong_use_is_one_line(capsys, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = called(capsys, *arguments)
    assert code == 2 and message in err and len(err.splitlines()) == 1 and not out and not list(tmp_path.iterdir())


# --- recipes ---

RECIPES = {  # name: zoo models whose exact numbers its header states
    "bnnas_supernet": ("bnnas",), "bnnas_spos_supernet": ("bnnas_spos",), "abs_supernet": (),
    "bnnas_retrain": ("bnnas", "bnnas_spos", "abs_spos", "abs_proxyless"),
    "proxyless_mmrazor_supernet": ("proxyless_mmrazor",), "proxyless_mmrazor_retrain": ("proxyless_mmrazor",),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_of_publications(name):
    text = (ROOT / "recipes" / f"{name}.yaml").read_text()
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert f"#   oneshot-nas train --recipe recipes/{name}.yaml --set data=FOLDER" in header
    assert all(part in header for part in ("Source: ", "Published (rule ", "top-1", "Different here: "))
    assert max(map(len, text.splitlines())) <= 130
    for model in RECIPES[name]:
        assert f"{cost(published(model)).params:,}" in header
    recipe = read_recipe(ROOT / "recipes" / f"{name}.yaml")
    images = 1_281_167 - (50_000 if recipe.space and recipe.options.get("variant") != "mmrazor" else 0)
    steps = {"bnnas_supernet": 24_040, "bnnas_spos_supernet": 240_400, "abs_supernet": 240_400, "bnnas_retrain": 300_240}
    assert recipe.epochs * (images // recipe.batch_size) == steps.get(name, 300 * 1251)
    if recipe.space:
        assert recipe.holdout.calibration + recipe.holdout.validation == (7000 if images == 1_281_167 else 50_000)
        assert recipe.trainable == ("scoring-bn" if name == "bnnas_supernet" else "all")


@pytest.mark.parametrize("kind", ["supernet", "standalone", "retrain"])
def test_cifar_recipes_train_as_those_of_the_shuffle_space(kind):
    """The same settings, so that results compare; only the network differs, and its supernet has no warm-up of operators, which
    would decide their angles and gammas."""
    ours, theirs = (read_recipe(ROOT / "recipes" / f"cifar10_{name}{kind}.yaml").model_dump() for name in ("proxyless_", ""))
    for key in ("space", "model", "options", "allowed"):
        ours.pop(key), theirs.pop(key)
    if kind == "supernet":
        assert theirs["sampler"].pop("operator_warmup") > ours["sampler"].pop("operator_warmup") == 0
    assert ours == theirs


def test_cifar_recipe_of_bnnas_has_the_published_optimizer_and_the_space_of_the_other_supernet():
    ours, published, other = (read_recipe(ROOT / "recipes" / f"{name}.yaml") for name in
                              ("cifar10_bnnas_supernet", "bnnas_supernet", "cifar10_proxyless_supernet"))
    for key in ("optimizer", "schedule", "epochs", "trainable", "loss"):
        assert getattr(ours, key) == getattr(published, key), key
    for key in ("space", "options", "batch_size", "augment", "holdout"):
        assert getattr(ours, key) == getattr(other, key), key
