"""What every search space must keep, for each of its important option variants. A new space is covered by its file name alone."""

import json
import random
from functools import partial

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd

from oneshot_nas.arch import get_space, list_spaces, read_arch, space_of
from oneshot_nas.blocks import block, tracer
from oneshot_nas.costs.analytic import RULES, cost, plan_cost
from oneshot_nas.costs.table import cost_table, reachable
from oneshot_nas.errors import UserError
from oneshot_nas.export.symbol import export_symbol, read_back_symbol
from oneshot_nas.export.symbol_flops import count_symbol
from oneshot_nas.files import write_json
from oneshot_nas.indicators.additive import Weights
from oneshot_nas.indicators.angle import check_alike
from oneshot_nas.nets.fixed import fixed_network
from oneshot_nas.nets.inherit import corner, inherit
from oneshot_nas.nets.supernet import Supernet
from oneshot_nas.sections import Distil, Guard, Optimizer
from oneshot_nas.train.guard import Watch
from oneshot_nas.train.losses import CrossEntropy, distillation
from oneshot_nas.train.runs import SupernetFiles
from oneshot_nas.train.step import accumulate, run_step, trainer_of

VARIANTS: dict = {
    "attentive_mobilenet": [{"resolutions": (48, 64)}, {"layout": "small", "resolutions": (56, 64)}],
    "bignas_mobilenet": [{"resolutions": (40, 64)}],
    "ofa_mobilenet": [{"resolutions": (40, 64)}],
    "proxyless_gpu": [{}, {"variant": "bnnas", "layout": "small"}, {"variant": "mmrazor", "layout": "small"}],
    "spos_shufflenet": [
        {},
        {"se": True, "layout": "shufflenetv2+"},
        {"layout": "mmrazor", "tail": "pooled"},
        {"se": True, "tail": "pooled", "layout": "small", "stem_stride": 1, "last_channels": 102, "classifier_bias": False},
    ],
}
SIDE = 64
SMALL = {"input_size": SIDE, "classes": 10}
CASES = [
    pytest.param((name, options), id="-".join([name, *map(str, options.values())]))
    for name in list_spaces()
    for options in VARIANTS.get(name, [{}])
]
BATCH = 8
TOLERANCE = 1e-5  # of the outputs' standard deviation


def randomise(net, seed=0):
    """Weights and BatchNorm arrays of a trained kind: nothing is left at its initial value.

    The activations are mostly open (beta about 1.5), so that training mode is well conditioned: with closed ones rounding
    errors grow two thousandfold over the 60 BatchNorms, whatever computes them.
    """
    rng = np.random.default_rng(seed)
    for name, parameter in sorted(net.collect_params().items()):
        shape = parameter.shape
        if name.endswith(("7to5", "5to3")):
            continue  # kernel transformations stay identities, so that gradients can be compared corner by corner
        if name.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("gamma"):
            value = rng.uniform(0.5, 1.0, shape)
        elif name.endswith("beta"):
            value = rng.normal(1.5, 0.5, shape)
        elif name.endswith(("running_mean", "bias")):
            value = rng.normal(0, 0.2, shape)
        else:
            value = rng.standard_normal(shape, dtype=np.float32) * np.prod(shape[1:]) ** -0.5
        parameter.set_data(nd.array(value))


def archs_of(space, count, seed=0):
    rng = random.Random(seed)
    return [space.sample(rng) for _ in range(count)]


def images():
    return nd.array(np.random.default_rng(0).normal(size=(BATCH, 3, SIDE, SIDE)))


def distance(first, second):
    """Largest difference in standard deviations of the second."""
    first, second = first.asnumpy(), second.asnumpy()
    return np.abs(first - second).max() / second.std()


@pytest.fixture(params=CASES)
def space(request):
    name, options = request.param
    return get_space(name, **SMALL, **options)


@pytest.fixture(scope="module", params=CASES)
def supernet(request):
    """A randomised supernet of every case. Dropout and drop connect are left out: their noise would differ from call to call."""
    name, options = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracer.Tracer, "drop", lambda run, x, rate, axes: x)
        net = Supernet(get_space(name, **SMALL, **options))
        net.initialize()
        randomise(net)
        yield net


def test_json_round_trip(space):
    for arch in archs_of(space, 20):
        again = read_arch(json.loads(json.dumps(arch.to_json())))
        assert again == arch and hash(again) == hash(arch) and again.key == arch.key
        assert space_of(again) == space


def test_angles_are_measured_from_weights_whose_description_names_the_same_options(supernet, tmp_path):
    supernet.save_parameters(str(tmp_path / "base.params"))
    run = SupernetFiles(tmp_path, supernet.space, None, {}, tmp_path / "base.params")
    base, options = Weights(run.weights), dict(supernet.space.options)
    write_json(tmp_path / "base.params.json", "network", {"space": supernet.space.name, "options": options})
    check_alike(base, base, run)
    write_json(tmp_path / "base.params.json", "network", {"space": supernet.space.name, "options": {**options, "classes": 11}})
    with pytest.raises(UserError, match=r"\(1 differences: classes 11 instead of 10\)"):
        check_alike(base, base, run)


def test_encode_is_the_inverse_of_decode(space):
    for arch in archs_of(space, 20):
        assert space.decode(space.encode(arch)) == arch
    sizes = [len(allowed) for _, _, allowed in space.positions]
    assert space.encode(space.largest()) == tuple(size - 1 for size in sizes)
    assert np.prod([float(size) for size in sizes]) == pytest.approx(space.size)


def test_canonical_is_idempotent_and_keeps_the_network(space):
    for arch in archs_of(space, 20):
        canonical = space.canonical(arch)
        assert space.canonical(canonical) == canonical
        assert space.plan(canonical) == space.plan(arch)


def test_mutation_and_crossover_stay_in_the_space(space):
    rng = random.Random(0)
    first, second = archs_of(space, 2)
    for _ in range(20):
        for child in (space.mutate(first, rng, 0.5), space.crossover(first, second, rng)):
            assert space.check(child) == child
    assert space.mutate(first, rng, 0.0) == first
    assert space.crossover(first, second, rng, 0.0) == first and space.crossover(first, second, rng, 1.0) == second


def test_ordered_choices_order_the_cost(space):
    ordered = {choice.name: choice.values for choice in space.choices if choice.ordered}
    low, high = reachable(cost_table(space))[0]
    for arch in archs_of(space, 10):
        least = space.arch({**arch.choices, **{name: [v[0] for v in values] for name, values in ordered.items()}})
        most = space.arch({**arch.choices, **{name: [v[-1] for v in values] for name, values in ordered.items()}})
        assert low <= cost(least).flops <= cost(arch).flops <= cost(most).flops <= high
        assert cost(least).params <= cost(arch).params <= cost(most).params


def test_three_ways_of_counting_agree_to_the_unit(space):
    side = 40  # halves to odd sizes, which round up
    space = get_space(space.name, **{**space.options, "input_size": side})
    archs = [space.smallest(), space.largest(), *archs_of(space, 2, seed=side)]
    indices = np.array([space.encode(arch) for arch in archs])
    tables = {rule: cost_table(space, rule)(indices) for rule in RULES}
    for place, arch in enumerate(archs):
        graph = fixed_network(arch)(mx.sym.var("data"))
        for rule in RULES if place == len(archs) - 1 else list(RULES)[place : place + 1]:
            analytic, symbol = plan_cost(space.plan(arch), rule), count_symbol(graph, (1, 3, side, side), rule)
            assert analytic == cost(arch, rule)
            assert (tables[rule][0][place], tables[rule][1][place]) == (analytic.flops, analytic.params)
            assert (symbol.flops, symbol.params) == (analytic.flops, analytic.params), rule
            assert not symbol.unknown


def test_supernet_computes_the_inherited_network(supernet):
    x = images()
    for arch in [supernet.space.smallest(), supernet.space.largest(), *archs_of(supernet.space, 1)]:
        fixed = inherit(supernet, arch)
        for mode in (autograd.predict_mode, autograd.train_mode):
            with mode():
                assert distance(supernet(x, arch), fixed(x)) < TOLERANCE


def test_view_computes_the_inherited_network(supernet, monkeypatch):
    x, arch = images(), archs_of(supernet.space, 1, seed=1)[0]
    fixed, view = inherit(supernet, arch), supernet.view(arch)
    view.hybridize(static_alloc=True, static_shape=True)
    monkeypatch.setattr(block, "PAD", 1)
    unpadded = supernet.view(arch)
    for mode in (autograd.predict_mode, autograd.train_mode):
        with mode():
            wanted = fixed(x)
            assert distance(view(x), wanted) < TOLERANCE
            assert distance(unpadded(x), wanted) == 0, "at the nominal widths it is the same arithmetic"


def test_gradients_reach_exactly_the_path_and_the_slice(supernet, monkeypatch):
    """Outside: untouched (other operators) or exactly zero (other rows). Inside: those of the inherited network.

    With smooth activations that keep 0, as padding needs: rounding decides on which side of a kink an input is, and one such flip
    is 1 % of a gradient.
    """
    space, x, arch = supernet.space, images(), archs_of(supernet.space, 1, seed=2)[0]
    smooth = {"hsigmoid": "sigmoid"}
    for compiled_kinds in ("ACTIVATIONS", "FUSED"):
        monkeypatch.setattr(tracer.compiled, compiled_kinds, ())
    monkeypatch.setattr(tracer, "activate", lambda F, x, kind: F.Activation(x, act_type=smooth.get(kind, "tanh")))
    supernet._store.views.clear()
    for parameter in supernet.collect_params().values():
        if parameter.grad_req != "null":
            parameter.grad()[:] = 7.0
            parameter.data()._fresh_grad = False
    fixed = inherit(supernet, arch)
    for net, arguments in ((supernet, (x, arch)), (fixed, (x,))):
        with autograd.record():
            loss = (net(*arguments) ** 2).sum()
        loss.backward()
    used = {layer.weights: block for layer, (_, block) in zip(space.plan(arch).layers, fixed.blocks(), strict=True)}
    scale = max(float(p.grad().abs().max().asscalar()) for p in fixed.collect_params().values() if p.grad_req != "null")
    for weights, owner in supernet._store.owners.items():
        for key in owner.op.parameters():
            stored, array = owner.parameter(key), owner.parameter(key).grad().asnumpy()
            if weights not in used or key not in used[weights].op.parameters():
                assert (array == 7.0).all() and not stored.data()._fresh_grad, f"{weights}.{key} got a gradient"
                continue
            wanted = used[weights].parameter(key).grad().asnumpy()
            inside = np.zeros(array.shape, bool)
            inside[corner(array.shape, wanted.shape)] = True
            assert (array[~inside] == 0).all(), f"{weights}.{key} got a gradient outside its slice"
            assert wanted.any(), f"{weights}.{key} got no gradient"
            # a beta before a linear convolution and a BatchNorm has gradient 0 but for rounding, hence the scale of the whole net
            error = np.abs(array[inside] - wanted.ravel()).max()
            assert error < 1e-4 * np.abs(wanted).max() + 1e-6 * scale, f"{weights}.{key} has another gradient"
    supernet._store.views.clear()


@pytest.mark.parametrize("name", list_spaces())
def test_a_guarded_step_trains_the_whole_space(name):
    """As its recipes do: the largest network and what it teaches, at the layout of the paper, with the collapse guard."""
    sizes = {"resolutions": (32,)} if "resolutions" in get_space(name).options else {}
    space = get_space(name, input_size=32, classes=10, **sizes)
    net = Supernet(space)
    net.initialize()
    trainer = trainer_of(net.collect_params(), Optimizer(lr=0.01, clip=1.0))
    accumulate(net.collect_params())
    watch = Watch(Guard(), trainer, lambda text: None)
    before = net.owner("stem").parameters()[0].data().copy()
    shards = [(nd.random.normal(shape=(2, 3, 32, 32)), nd.one_hot(nd.arange(2), 10))]
    losses, _ = run_step(partial(call, net, space.largest()), shards, CrossEntropy(), trainer, 2, distil=distillation(Distil()),
                         students=[partial(call, net, space.smallest())], accept=watch.accept)
    assert np.isfinite(losses[0].asnumpy()).all() and watch.skipped == 0
    assert np.abs((net.owner("stem").parameters()[0].data() - before).asnumpy()).max() > 0


def call(net, arch, images):
    return net(images, arch)


def test_export_and_reload_give_the_same_output(supernet, tmp_path):
    arch = archs_of(supernet.space, 1, seed=3)[0]
    net, x = inherit(supernet, arch), images()
    again = read_back_symbol(export_symbol(net, tmp_path, "net", x.shape))
    assert distance(again(x), net(x)) < TOLERANCE


def test_float16_reaches_every_operator_but_the_arrays_of_batch_norm(space):
    """MXNet has no half-precision convolution on the CPU, but its type inference says what a GPU would be given."""
    net = fixed_network(space.sample(random.Random(5)))
    net.initialize()
    randomise(net)
    kept = {name: array.data().asnumpy() for name, array in net.collect_params().items() if array.dtype == np.float32}
    net.cast("float16")
    graph = net(mx.sym.var("data"))
    inputs, outputs, statistics = graph.infer_type(data="float16")
    types = dict(zip(graph.list_arguments(), inputs, strict=True))
    assert outputs == [np.float16] and set(statistics) == {np.float32}
    assert {name for name, kind in types.items() if kind == np.float32} == {
        name for name in types if name.endswith(("gamma", "beta"))}
    net.cast("float32")
    for name, parameter in net.collect_params().items():
        if name.endswith(("gamma", "beta", "mean", "var")):
            assert np.array_equal(parameter.data().asnumpy(), kept[name]), name
