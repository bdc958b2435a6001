"""Architectures and their readers under Hypothesis: what is legal round-trips, what is not ends in a UserError, nothing else."""

import json
import pickle
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oneshot_nas.arch import (
    MAX_ARCH_TEXT,
    Arch,
    FrozenDict,
    get_space,
    list_spaces,
    parse_options,
    read_arch,
    read_arch_file,
    read_archs,
    space_of,
)
from oneshot_nas.config import MAX_TEXT, Recipe, dump_recipe, parse_recipe, parse_yaml
from oneshot_nas.costs.limits import Limits, parse_range, sample_within
from oneshot_nas.costs.table import cost_table
from oneshot_nas.errors import UserError
from oneshot_nas.model_zoo import published

FAST = settings(
    deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
SPACE = get_space("spos_shufflenet")
VALID = published("oneshot").to_json()

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**30, 10**40)
    | st.floats(allow_subnormal=False)
    | st.text(max_size=20)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12
)
words = st.sampled_from(
    [*VALID, *VALID["options"], *VALID["choices"], "kind", "version", "name", "self", "shuffle3", "spos_shufflenet", "pooled"]
)


@st.composite
def spoilt(draw, valid):
    """A valid document with a few places replaced by anything, removed or added."""
    document = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(1, 3))):
        place = document
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if draw(st.booleans()) or not isinstance(place[key], dict | list):
                change = draw(st.sampled_from(["replace", "remove", "add"]))
                if change == "remove":
                    del place[key]
                elif change == "add" and isinstance(place, dict):
                    place[draw(words | st.text(max_size=5))] = draw(values | words)
                else:
                    place[key] = draw(values | words)
                break
            place = place[key]
    return document


@st.composite
def archs(draw):
    name = draw(st.sampled_from(list_spaces()))
    options = draw(st.sampled_from([{}, {"se": True}, {"layout": "mmrazor", "classes": 7}])) if name == "spos_shufflenet" else {}
    space = get_space(name, **options)
    return space, space.decode([draw(st.integers(0, len(allowed) - 1)) for _, _, allowed in space.positions])


@FAST
@given(archs())
def test_any_architecture_round_trips(drawn):
    space, arch = drawn
    assert read_arch(json.loads(json.dumps(arch.to_json()))) == arch
    assert pickle.loads(pickle.dumps(arch)) == arch
    assert space.decode(space.encode(arch)) == arch and space_of(arch) == space
    assert space.check(space.canonical(arch)) == space.canonical(arch)
    assert space.from_indices(space.to_indices(arch)) == arch


@FAST
@given(values | spoilt(VALID))
def test_the_architecture_reader_only_raises_user_errors(content):
    try:
        assert isinstance(read_arch(content), Arch)
    except UserError as error:
        assert str(error) and len(str(error)) < 2000


@FAST
@given(
    st.text(max_size=200)
    | st.binary(max_size=200)
    | values.map(lambda value: json.dumps(value, indent=1))
    | st.lists(spoilt(VALID) | st.just(VALID), max_size=3).map(lambda items: "\n".join(map(json.dumps, items)))
)
def test_the_file_readers_only_raise_user_errors(tmp_path, text):
    path = tmp_path / "arch.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    for read in (read_arch_file, lambda name: list(read_archs(name))):
        try:
            read(str(path))
        except UserError as error:
            assert str(path) in str(error)


RECIPE = Recipe.model_validate({"space": "spos_shufflenet"}).model_dump(mode="json")
tokens = st.sampled_from(
    [
        "a: ",
        "b: 1",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "\n",
        "  ",
        "&x ",
        "*x",
        "!!python/object:os.system ",
        "!!bool ",
        "!!timestamp ",
        "!!int ",
        "!!binary ",
        "!foo ",
        "|\n ",
        ">\n",
        "'",
        '"',
        "#",
        "---\n",
        "...",
        "? ",
        "<<: ",
        "~",
        "0x" + "f" * 5000,
        "1" + ":59" * 400 + ".5",
        "2001-99-99",
        "2001-01-01 25:61:61",
        ".inf",
        "space: spos_shufflenet\n",
        "epochs: ",
        "1e999",
        "\t",
        "%YAML 9.9\n",
        "0b_",
        "=",
    ]
)


@FAST
@given(st.text(max_size=100) | st.lists(tokens, max_size=14).map("".join))
def test_the_yaml_reader_only_raises_user_errors(text):
    try:
        parse_recipe(parse_yaml(text, "fuzz.yaml"), [], None, "fuzz.yaml")
    except UserError as error:
        assert "fuzz.yaml" in str(error) and len(str(error).splitlines()) == 1


@FAST
@given(
    values | spoilt(RECIPE) | spoilt({"arch": VALID}),
    st.lists(
        st.text(max_size=10)
        | st.sampled_from(
            ["epochs=1", "optimizer.lr=x", "optimizer=1", "a.b=c", "epochs.x=1", "options.name=1", "=", "data=[", "seed=!!bool x"]
        ),
        max_size=2,
    ),
)
def test_the_recipe_reader_only_raises_user_errors(content, overrides):
    try:
        recipe = parse_recipe(content, overrides, None, "fuzz.yaml")
        assert parse_recipe(parse_yaml(dump_recipe(recipe), "again"), [], None, "again") == recipe
    except UserError as error:
        assert str(error)


@FAST
@given(
    values
    | st.dictionaries(st.sampled_from(["block", "scale", "x"]), values | st.lists(st.integers(-1, 10), min_size=20, max_size=20))
)
def test_published_indices_only_raise_user_errors(indices):
    try:
        assert isinstance(SPACE.from_indices(indices), Arch)
    except UserError as error:
        assert str(error)


@FAST
@given(
    st.text(max_size=20),
    st.lists(st.text(max_size=20) | st.sampled_from(["se=TRUE", "classes=١", "input_size=1e3", "name=1", "se"]), max_size=3),
)
def test_command_line_words_only_raise_user_errors(text, options):
    for read in (
        lambda: parse_range(text, "FLOPs"),
        lambda: get_space("spos_shufflenet", **parse_options("spos_shufflenet", options)),
    ):
        try:
            read()
        except UserError as error:
            assert str(error)


def spoil(**changes):
    document = json.loads(json.dumps(VALID))
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            document[section][name] = value
        else:
            document[section] = value
    return document


@pytest.mark.parametrize(
    "content,message",
    [
        ([], "an architecture is a JSON object, got list"),
        ({}, r"key 'space' must be one of \("),
        (spoil(space="resnet"), r"unknown space 'resnet'; the spaces are \("),
        (spoil(kind="supernet"), "is of kind 'supernet', expected 'architecture'"),
        (spoil(version=2), "has version 2; this release reads version 1"),
        (spoil(weights=1), r"unknown key \('weights'\); allowed are \('space', 'options', 'choices'\)"),
        (spoil(options=[]), "'options' and 'choices' must be JSON objects"),
        (spoil(options__width=1), r"unknown option \('width'\) of space 'spos_shufflenet'; it has \('se', "),
        (spoil(options__name=1), r"unknown option \('name'\)"),
        (spoil(options__se=1), r"option 'se' = 1 of space 'spos_shufflenet' is not one of \(False, True\)"),
        (spoil(options__classes=True), "option 'classes' = True of space 'spos_shufflenet' is not an integer from 2 to 100000"),
        (spoil(options__classes=10.5), "option 'classes' = 10.5"),
        (
            spoil(options__input_size=4096),
            "option 'input_size' = 4096 of space 'spos_shufflenet' is not an integer from 8 to 1024",
        ),
        (spoil(choices__block=["shuffle3"] * 19), "choice 'block' has 19 values, space 'spos_shufflenet' needs 20"),
        (
            spoil(choices__block="shuffle3"),
            "choice 'block' of space 'spos_shufflenet' must be a list of 20 values, got 'shuffle3'",
        ),
        (
            spoil(choices__block=["shuffle3"] * 19 + ["shuffle9"]),
            r"choice 'block'\[19\] = 'shuffle9' is not one of \('shuffle3', .* 'xception'\) in space 'spos_shufflenet'",
        ),
        (spoil(choices__block=[0] * 20), r"choice 'block'\[0\] = 0 is not one of"),
        (spoil(choices__scale=[1.0] * 19 + [0.25]), r"choice 'scale'\[19\] = 0.25 is not one of \(0.2, 0.4, "),
        (spoil(choices__scale=[True] * 20), r"choice 'scale'\[0\] = True"),
        (spoil(choices__depth=[1]), r"space 'spos_shufflenet' has no choice 'depth'; it has \('block', 'scale'\)"),
        (
            spoil(choices={"block": VALID["choices"]["block"]}),
            r"choice 'scale' is missing; space 'spos_shufflenet' needs \('block', 'scale'\)",
        ),
    ],
)
def test_messages_say_what_was_given_and_what_is_allowed(content, message):
    with pytest.raises(UserError, match=message):
        read_arch(content, "a.json")


@pytest.mark.parametrize(
    "indices,message",
    [
        ([], "indices must be an object with the lists"),
        ({"block": [0] * 19}, "choice 'block' of space 'spos_shufflenet' needs a list of 20 indices, got list of length 19"),
        ({"block": [0] * 19 + [4]}, r"index 'block'\[19\] = 4 is not one of \(0, 1, 2, 3\)"),
        ({"block": [0] * 19 + [True]}, r"index 'block'\[19\] = True"),
        ({"scale": [0] * 20}, "index list 'block' is missing; space 'spos_shufflenet' needs 20 indices for it"),
        ({"block": [0] * 20, "kernel": []}, "has no choice 'kernel'"),
    ],
)
def test_messages_about_indices(indices, message):
    with pytest.raises(UserError, match=message):
        SPACE.from_indices(indices)


def test_published_block_lists_mean_scale_one():
    assert SPACE.from_indices({"block": [0] * 20}).choices["scale"] == (1.0,) * 20


def test_files_of_architectures(tmp_path):
    one, many, path = json.dumps(VALID, indent=1), f"{json.dumps(VALID)}\n\n{json.dumps(VALID)}\n", tmp_path / "a.jsonl"
    for text, count in ((one, 1), ("\n" + one + "\n", 1), (many, 2), (json.dumps(VALID), 1)):
        path.write_text(text)
        assert list(read_archs(str(path))) == [read_arch(VALID)] * count
    for text, message in [
        ("", "a.jsonl holds no architecture"),
        (f"{json.dumps(VALID)}\n{{\n", "a.jsonl line 2 is not valid JSON"),
        (f"{json.dumps(VALID)}\n{json.dumps(spoil(space='x'))}\n", "a.jsonl line 2: unknown space 'x'"),
        (one[:-30], "a.jsonl line 1 is not valid JSON.*read as one object, .* line"),
        ("[" * 200_000, "a.jsonl line 1 is not valid JSON"),
        ("9" * 10_000, "a.jsonl line 1 is not valid JSON|an architecture is a JSON object, got int"),
        (" " * (MAX_ARCH_TEXT + 1), "line 1 is longer than 1,048,576 characters"),
        ("{\n" * MAX_ARCH_TEXT, "a.jsonl line 1 is not valid JSON"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            list(read_archs(str(path)))
    with pytest.raises(UserError, match="cannot read architectures from .*: No such file"):
        list(read_archs(str(tmp_path / "none")))


def test_recipe_messages():
    for content, overrides, message in [
        ({"space": "attentive_mobilenet", "options": {"resolutions": ["a"]}, "allowed": {"kernel": [[None]]}}, [],
         r"^recipe [^:]*: 'options.resolutions' = \['a'\]: a word, [^;]* is needed; 'allowed.kernel.0' = [^;]* is needed$"),
        ({"space": "spos_shufflenet", "epoch": 3}, [], r"unknown key 'epoch'; .*; did you mean 'epochs'\?"),
        ({"space": "spos_shufflenet", "optimizer": {"lrr": 1}}, [], r"unknown key 'optimizer.lrr'; allowed are name, lr"),
        ({"space": "spos_shufflenet", "epochs": 0}, [], "'epochs' = '0': Input should be greater than or equal to 1"),
        ({"space": "spos_shufflenet"}, ["epochs"], "--set 'epochs' is not key=value"),
        ({"space": "spos_shufflenet", "options": {"name": 1}}, [], r"unknown option \('name'\)"),
        ({"space": "spos_shufflenet", "options": {"classes": int("f" * 2000, 16)}}, [], "option 'classes'"),
        ({}, [], "exactly one of"),
    ]:
        with pytest.raises(UserError, match=message):
            parse_recipe(content, overrides, None, "r.yaml")
    with pytest.raises(UserError, match="r.yaml is not plain YAML: key 'lr' is given twice, the second time in line 3"):
        parse_yaml("optimizer:\n  lr: 1\n  lr: 2", "r.yaml")
    for text in (
        "a: !!python/object/apply:os.system [id]",
        "a: !!bool x",
        "a: &x [*x]",
        "a: " + "[" * 50,
        "a: 0x" + "f" * 5000,
        "a: !x y",
        "a: 1" + ":59" * 400 + ".5",
        "a: " + "x" * MAX_TEXT,
    ):
        with pytest.raises(UserError, match="r.yaml"):
            parse_yaml(text, "r.yaml")


def test_frozen_dict_is_frozen_and_hashable():
    frozen = FrozenDict(a=1)
    assert frozen == {"a": 1} and hash(frozen) == hash(FrozenDict(a=1))
    for change in (lambda: frozen.update(a=2), lambda: frozen.__setitem__("a", 2), lambda: frozen.pop("a")):
        with pytest.raises(TypeError, match="frozen"):
            change()


def test_restricted_spaces():
    base = SPACE.sample(random.Random(0))
    blocks_only = SPACE.freeze(base, ["block"])
    assert blocks_only.size == 4**20 and blocks_only.sample(random.Random(1)).choices["scale"] == base.choices["scale"]
    with pytest.raises(UserError, match=r"restriction of 'block'\[0\] must be a non-empty part of"):
        SPACE.restrict({"block": [()] * 20})
    with pytest.raises(UserError, match="has no choice 'width'"):
        SPACE.freeze(base, ["width"])


def test_sampling_within_limits_is_inside_uniform_and_reproducible():
    limits = Limits(parse_range("290M:330M", "FLOPs"), parse_range(":3.5M", "params"))
    drawn = sample_within(SPACE, limits, np.random.default_rng(0), 300)
    assert drawn == sample_within(SPACE, limits, np.random.default_rng(0), 300)
    flops, params = cost_table(SPACE)(np.array([SPACE.encode(arch) for arch in drawn]))
    assert ((flops >= 290e6) & (flops <= 330e6) & (params <= 3.5e6)).all()
    everything = sample_within(SPACE, Limits(), np.random.default_rng(0), 4000)
    counts = np.array(
        [np.bincount(column, minlength=10) for column in np.array([SPACE.encode(arch)[20:] for arch in everything]).T]
    )
    assert np.abs(counts - 400).max() < 100  # five standard deviations
    with pytest.raises(UserError, match=r"no architecture of 'spos_shufflenet' has FLOPs in 1M:2M; reachable is 94.96M:880.3M"):
        sample_within(SPACE, Limits(parse_range("1M:2M", "FLOPs")), np.random.default_rng(0), 1)
