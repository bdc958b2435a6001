"""The bn-gamma indicator against a plain loop over the arrays of the inherited fixed network, and its bad inputs."""

import random
import time
from functools import cache

import numpy as np
import pytest
from mxnet import nd

from oneshot_nas.arch import get_space, space_of
from oneshot_nas.costs.table import random_indices
from oneshot_nas.errors import UserError
from oneshot_nas.indicators.additive import Weights
from oneshot_nas.indicators.bn_gamma import bn_gamma_sums, is_candidate
from oneshot_nas.nets.inherit import inherit
from oneshot_nas.nets.supernet import Supernet
from oneshot_nas.primitives import BatchNorm

SMALL = {"classes": 4, "input_size": 16, "layout": "small"}
SPACES = {
    "shuffle": get_space("spos_shufflenet", last_channels=16, **SMALL),
    "proxyless": get_space("proxyless_gpu", **SMALL),
    "mmrazor": get_space("proxyless_gpu", variant="mmrazor", **SMALL),
    "elastic": get_space("attentive_mobilenet", **SMALL),
}


@cache
def supernet(name):
    """A supernet of the space of that name whose gammas are random and of both signs."""
    net = Supernet(SPACES[name])
    net.initialize()
    for number, (key, parameter) in enumerate(net._collect_params_with_prefix().items()):
        if key.endswith("gamma"):
            parameter.set_data(nd.array(np.random.default_rng(number).normal(size=parameter.shape)))
    return net


@pytest.fixture(scope="module", params=SPACES)
def trained(request, tmp_path_factory):
    """(space, supernet, its file)."""
    net = supernet(request.param)
    path = tmp_path_factory.mktemp("weights") / "net.params"
    net.save_parameters(str(path))
    return net.space, net, path


def last_gammas(net):
    """Layer name -> gamma of the last BatchNorm of the main branch, for every searched block of a fixed network."""
    found = {}
    for layer, (name, block) in zip(space_of(net.arch).plan(net.arch).layers, net.blocks(), strict=True):
        main = next(branch.chain for branch in block.op.branches() if branch.name == "main")
        norms = [primitive.name for primitive in main if isinstance(primitive, BatchNorm)]
        if is_candidate(layer) and norms:
            found[name] = block.parameter(f"{norms[-1]}.gamma").data().asnumpy()
    return found


def test_the_score_is_the_sum_of_mean_absolute_gammas(trained):
    space, net, path = trained
    sums = bn_gamma_sums(space, Weights(path))
    archs = [space.smallest(), space.largest(), *(space.sample(random.Random(i)) for i in range(3))]
    scores = sums(np.array([space.encode(arch) for arch in archs]))[0]
    for arch, score in zip(archs, scores, strict=True):
        expected = 0.0
        for gamma in last_gammas(inherit(net, arch)).values():
            expected += sum(abs(float(g)) for g in gamma) / len(gamma)
        assert expected > 0 and score == pytest.approx(expected, rel=1e-6)


def test_only_searched_blocks_count():
    layers = SPACES["proxyless"].plan(SPACES["proxyless"].largest()).layers
    assert [layer.name for layer in layers if not is_candidate(layer)] == ["stem", "first", "last", "head"]
    layers = SPACES["elastic"].plan(SPACES["elastic"].smallest()).layers
    assert [layer.name for layer in layers if not is_candidate(layer)] == ["resize", "stem", "last", "head"]


def test_skip_scores_nothing_and_mmrazors_identity_does(tmp_path):
    for name, expected in (("proxyless", 0), ("mmrazor", 6)):
        space = SPACES[name]
        supernet(name).save_parameters(str(tmp_path / "net.params"))
        sums = bn_gamma_sums(space, Weights(tmp_path / "net.params"))
        skips = [unit.values[0][values.index("skip")] for unit, (_, _, values) in zip(sums.units, space.positions, strict=True)
                 if "skip" in values]
        assert sum(value > 0 for value in skips) == expected and len(skips) == (15 if name == "proxyless" else 21)


def test_many_at_once_equal_one_by_one(trained):
    space, _, path = trained
    sums = bn_gamma_sums(space, Weights(path))
    indices = random_indices(space, np.random.default_rng(0), 9000)  # more than one chunk
    together = sums(indices)[0]
    for row in (0, 1, 8191, 8192, 8999):
        assert sums(indices[row : row + 1])[0, 0] == together[row]
        by_unit = [unit.values[0][sum(indices[row][c] * s for c, s in zip(unit.columns, unit.strides, strict=True))]
                   for unit in sums.units]
        assert together[row] == pytest.approx(sum(by_unit) + sums.fixed[0])


@pytest.mark.parametrize(("change", "message"), [
    (lambda arrays, key: arrays.pop(key), "has no 'stage1.block2.k5e3.bn3.gamma', the scoring BatchNorm"),
    (lambda arrays, key: arrays.update({key: arrays[key] * np.nan}), "is not finite: 16 of 16"),
    (lambda arrays, key: arrays.update({key: arrays[key] * 0}), "is zero everywhere"),
    (lambda arrays, key: arrays.update({key: arrays[key][:5]}), r"has shape \(5,\), the space needs \(16,\)"),
])
def test_weights_that_cannot_be_scored_are_named(change, message, tmp_path):
    space = SPACES["proxyless"]
    arrays = {name: p.data() for name, p in supernet("proxyless")._collect_params_with_prefix().items()}
    change(arrays, "stage1.block2.k5e3.bn3.gamma")
    nd.save(str(tmp_path / "net.params"), arrays)
    with pytest.raises(UserError, match=message):
        bn_gamma_sums(space, Weights(tmp_path / "net.params"))


def test_weights_of_another_space_are_refused(tmp_path):
    supernet("elastic").save_parameters(str(tmp_path / "net.params"))
    with pytest.raises(UserError, match="give the weights of a supernet of this space"):
        bn_gamma_sums(SPACES["proxyless"], Weights(tmp_path / "net.params"))
    (tmp_path / "net.params").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="not an MXNet array file"):
        Weights(tmp_path / "net.params")
    with pytest.raises(UserError, match="cannot read"):
        Weights(tmp_path / "none.params")


def test_a_million_architectures_take_less_than_a_second(trained):
    space, _, path = trained
    sums = bn_gamma_sums(space, Weights(path))
    indices = random_indices(space, np.random.default_rng(0), 200_000)
    times = []
    for _ in range(3):
        start = time.process_time()
        sums(indices)
        times.append(time.process_time() - start)
    assert min(times) < 0.2
