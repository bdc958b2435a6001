"""The angle indicator against a plain loop over the arrays of two inherited fixed networks, and its bad inputs."""

import random
import time
from functools import cache

import numpy as np
import pytest
from mxnet import nd

from oneshot_nas.arch import get_space
from oneshot_nas.costs.table import random_indices
from oneshot_nas.errors import UserError
from oneshot_nas.files import write_json
from oneshot_nas.indicators.additive import Weights
from oneshot_nas.indicators.angle import angle_sums, angles, check_alike
from oneshot_nas.nets.inherit import inherit
from oneshot_nas.nets.supernet import Supernet
from oneshot_nas.train.runs import SupernetFiles

SMALL = {"classes": 4, "input_size": 16, "layout": "small"}
OFA = get_space("ofa_mobilenet", classes=4, input_size=32, resolutions=[32])
SPACES = {
    "shuffle": get_space("spos_shufflenet", last_channels=16, **SMALL),
    "proxyless": get_space("proxyless_gpu", **SMALL),
    "elastic": get_space("attentive_mobilenet", **SMALL),
    "transformed": OFA.restrict({"depth": [(2,)] * 5, "expand": [(3,)] * 20}),
}


@cache
def supernets(name):
    """Two supernets of the space of that name: one, and the same with everything moved a little, biases and BatchNorm a lot."""
    nets = []
    for moved in (False, True):
        net = Supernet(SPACES[name])
        net.initialize()
        for number, (key, parameter) in enumerate(net._collect_params_with_prefix().items()):
            rng = np.random.default_rng(number)
            value = rng.normal(size=parameter.shape)
            matrix = key.endswith(("7to5", "5to3"))
            if matrix:
                value = np.eye(*parameter.shape) + 0.1 * value
            change = rng.normal(size=parameter.shape) * (0.02 if matrix else 0.2 if key.endswith("weight") else 9)
            parameter.set_data(nd.array(value + moved * change))
        nets.append(net)
    return nets


@pytest.fixture(scope="module", params=SPACES)
def moved(request, tmp_path_factory):
    """(space, (first and second supernet), (their files))."""
    nets = supernets(request.param)
    folder = tmp_path_factory.mktemp("weights")
    paths = [folder / name for name in ("base.params", "now.params")]
    for net, path in zip(nets, paths, strict=True):
        net.save_parameters(str(path))
    return nets[0].space, nets, paths


def vector(net):
    """All weights of convolutions and dense layers of a fixed network, one after the other."""
    arrays = [p.data().asnumpy().ravel() for name, p in net._collect_params_with_prefix().items() if name.endswith(".weight")]
    return np.concatenate(arrays).astype(np.float64)


def score(sums, *archs, space):
    return angles(sums(np.array([space.encode(arch) for arch in archs])))


def test_the_angle_is_that_of_the_two_networks_weights(moved):
    space, (first, second), paths = moved
    sums = angle_sums(space, *map(Weights, paths))
    archs = [space.smallest(), space.largest(), *(space.sample(random.Random(i)) for i in range(3))]
    for arch, found in zip(archs, score(sums, *archs, space=space), strict=True):
        a, b = vector(inherit(first, arch)), vector(inherit(second, arch))
        assert found == pytest.approx(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), rel=1e-9)
        assert 0.1 < found < 0.3


def test_identical_weights_have_an_angle_of_exactly_zero(moved):
    space, _, (path, _) = moved
    sums = angle_sums(space, Weights(path), Weights(path))
    assert (angles(sums(random_indices(space, np.random.default_rng(0), 20_000))) == 0).all()


def test_scaled_weights_have_no_angle_and_opposite_ones_pi():
    assert angles(np.array([[6.0], [3.0], [12.0]])) == 0
    assert angles(np.array([[-6.0], [3.0], [12.0]])) == pytest.approx(np.pi)
    assert angles(np.array([[1.0000000000000002], [1.0], [1.0]])) == 0  # rounded above 1


def test_a_skip_adds_nothing(tmp_path):
    space = SPACES["proxyless"]
    net = supernets("proxyless")[0]
    net.save_parameters(str(tmp_path / "net.params"))
    sums = angle_sums(space, Weights(tmp_path / "net.params"), Weights(tmp_path / "net.params"))
    skips = [unit.values[:, values.index("skip")] for unit, (_, _, values) in zip(sums.units, space.positions, strict=True)
             if "skip" in values]
    assert len(skips) == 15 and not np.any(skips)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(("change", "message"), [
    (lambda array: array * np.nan, "is not finite"), (lambda array: array * 0, "is zero everywhere"),
    (lambda array: array[:3], r"has shape \(3, 8, 1, 1\)"), (lambda array: None, "has no 'stage1.block1.k3e3.expand.weight'"),
])
def test_weights_that_have_no_angle_are_named(which, change, message, tmp_path):
    space = SPACES["proxyless"]
    paths = [tmp_path / "base.params", tmp_path / "now.params"]
    for number, (net, path) in enumerate(zip(supernets("proxyless"), paths, strict=True)):
        arrays = {name: p.data() for name, p in net._collect_params_with_prefix().items()}
        if number == which:
            array = change(arrays.pop("stage1.block1.k3e3.expand.weight"))
            arrays |= {} if array is None else {"stage1.block1.k3e3.expand.weight": array}
        nd.save(str(path), arrays)
    with pytest.raises(UserError, match=f"{paths[which].name}.*{message}|{message}.*{paths[which].name}"):
        angle_sums(space, *map(Weights, paths))


def test_base_weights_of_another_space_are_refused(tmp_path):
    for name in ("proxyless", "elastic"):
        supernets(name)[0].save_parameters(str(tmp_path / f"{name}.params"))
    with pytest.raises(UserError, match="elastic.params.*give the weights of a supernet of this space"):
        angle_sums(SPACES["proxyless"], Weights(tmp_path / "elastic.params"), Weights(tmp_path / "proxyless.params"))


def test_base_weights_must_have_the_arrays_of_the_supernet(tmp_path):
    """A file that holds all that is needed and more, or larger arrays, would be cut to fit and measure noise."""
    space = get_space("proxyless_gpu", layout="small", input_size=32, classes=4)
    run = SupernetFiles(tmp_path, space, None, {}, tmp_path / "now.params")

    def write(name, space):
        net = Supernet(space)
        net.initialize()
        net.save_parameters(str(tmp_path / name))
        return Weights(tmp_path / name)

    current = write("now.params", space)
    check_alike(write("base.params", space), current, run)
    for changes, words in (({"variant": "mmrazor"}, "instead of nothing"), ({"classes": 5}, r"\(5, \d+\) instead of \(4, ")):
        other = write("other.params", get_space("proxyless_gpu", **{**space.options, **changes}))
        with pytest.raises(UserError, match=f"other.params holds no weights of this supernet's space .*{words}"):
            check_alike(other, current, run)
    about = {"space": space.name, "options": {**space.options, "variant": "mmrazor"}}
    write_json(tmp_path / "base.params.json", "network", about)
    with pytest.raises(UserError, match="variant 'mmrazor' instead of 'full'"):
        check_alike(Weights(tmp_path / "base.params"), current, run)


def test_a_hundred_thousand_architectures_take_less_than_a_second(moved):
    space, _, paths = moved
    sums = angle_sums(space, *map(Weights, paths))
    indices = random_indices(space, np.random.default_rng(0), 50_000)
    start = time.process_time()
    angles(sums(indices))
    assert time.process_time() - start < 0.5
