"""Official AttentiveNAS supernet weights: the exact keys, the same function for subnets, and nothing that passes unseen."""

import hashlib
import json
import random
import shlex
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from mxnet import autograd, nd

from oneshot_nas.arch import get_space
from oneshot_nas.cli.main import run
from oneshot_nas.config import read_recipe
from oneshot_nas.data.images import Preprocessing
from oneshot_nas.errors import UserError
from oneshot_nas.export.attentivenas import from_official, official_keys, subnet, to_official
from oneshot_nas.export.convert import check_target, read_network, write_network
from oneshot_nas.export.state import read_state
from oneshot_nas.model_zoo import published
from oneshot_nas.nets.fixed import fixed_network
from oneshot_nas.nets.recalibrate import recalibrate
from oneshot_nas.nets.supernet import Supernet
from oneshot_nas.sections import Distil, Optimizer
from oneshot_nas.train.losses import CrossEntropy, distillation
from oneshot_nas.train.step import accumulate, run_step, targets, trainer_of

# sha256 of the sorted lines "key<TAB>[shape]" of the official dynamic supernet, without num_batches_tracked and bn_tracking
OFFICIAL_KEYS = "f1df60cd2a7df04fd91560bcb03f335936e815d3d84415371e364d4db7a272f3"
SIDE = 64
SPACE = get_space("attentive_mobilenet", input_size=SIDE, resolutions=[52, 64])
DEPTHS, WIDTHS, EXPANDS = (2, 5, 6, 6, 8, 8, 2), (24, 24, 32, 40, 72, 128, 216, 224), (1, 6, 6, 6, 6, 6, 6)
STRIDES, GATED = (1, 2, 2, 2, 1, 2, 1), (False, False, True, False, True, True, True)
FIRST = (0, 2, 7, 13, 19, 27, 35)  # official number of every stage's first block


def div8(value):
    rounded = int((value + 4) // 8) * 8
    return rounded + 8 if rounded < 0.9 * value else rounded


def official_shapes():
    """The official supernet's keys, from its grammar."""
    shapes = {}

    def conv(key, *shape):
        shapes[f"{key}.weight"] = shape

    def norm(key, width):
        for term in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{key}.bn.bn.{term}"] = (width,)

    conv("first_conv.conv.conv", 24, 3, 3, 3)
    norm("first_conv", 24)
    channels, number = 24, 0
    for stage, depth in enumerate(DEPTHS):
        width = WIDTHS[stage + 1]
        for _ in range(depth):
            middle, key = div8(channels * EXPANDS[stage]), f"blocks.{number}.mobile_inverted_conv"
            if stage:
                conv(f"{key}.inverted_bottleneck.conv.conv", middle, channels, 1, 1)
                norm(f"{key}.inverted_bottleneck", middle)
            conv(f"{key}.depth_conv.conv.conv", middle, 1, 5, 5)
            norm(f"{key}.depth_conv", middle)
            if GATED[stage]:
                hidden = div8(middle // 4)
                for name, shape in (("reduce", (hidden, middle)), ("expand", (middle, hidden))):
                    conv(f"{key}.depth_conv.se.fc.{name}", *shape, 1, 1)
                    shapes[f"{key}.depth_conv.se.fc.{name}.bias"] = shape[:1]
            conv(f"{key}.point_linear.conv.conv", width, middle, 1, 1)
            norm(f"{key}.point_linear", width)
            conv(f"blocks.{number}.shortcut.conv.conv", width, channels, 1, 1)
            channels, number = width, number + 1
    conv("last_conv.final_expand_layer.conv.conv", 1344, 224, 1, 1)
    norm("last_conv.final_expand_layer", 1344)
    conv("last_conv.feature_mix_layer.conv.conv", 1984, 1344, 1, 1)
    conv("classifier.linear.linear", 1000, 1984)
    shapes["classifier.linear.linear.bias"] = (1000,)
    return shapes


@pytest.fixture(scope="module")
def state():
    """A random official state dict, as it comes from nn.DataParallel, with everything that is dropped."""
    rng = np.random.default_rng(0)
    made = {}
    for key, shape in official_shapes().items():
        if len(shape) > 1:
            made[key] = rng.standard_normal(shape, dtype=np.float32) * np.float32(np.prod(shape[1:]) ** -0.5)
        elif key.endswith(("running_var", "bn.bn.weight")):
            made[key] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            made[key] = rng.normal(0, 0.3, shape).astype(np.float32)
        if key.endswith("running_var"):
            made[key.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    made["blocks.3.mobile_inverted_conv.depth_conv.bn.bn_tracking.0.weight"] = np.ones(96, np.float32)
    return {f"module.{key}": array for key, array in made.items()}


@pytest.fixture(scope="module")
def params(state):
    return from_official(state, SPACE)


def test_keys_and_shapes_are_the_official_ones(params):
    lines = sorted(f"{key}\t{list(shape)}" for key, shape in official_shapes().items())
    assert len(lines) == 691 and hashlib.sha256("\n".join(lines).encode()).hexdigest() == OFFICIAL_KEYS
    back = to_official(params, SPACE)
    assert {key: array.shape for key, array in back.items() if "num_batches" not in key} == official_shapes()


def test_there_and_back_again(state, params):
    back = to_official(params, SPACE)
    for key, array in back.items():
        idle = "shortcut" in key and int(key.split(".")[1]) not in FIRST
        wanted = np.zeros_like(array) if idle or key.endswith("num_batches_tracked") else state[f"module.{key}"]
        assert np.array_equal(array, wanted), key
    again = from_official(back, SPACE)
    assert again.keys() == params.keys() and all(np.array_equal(again[name], params[name]) for name in params)


# The official network once more, from its state dict, with MXNet's plain operators: nothing here comes from our plan.


class Reference:
    """Logits of a subnet of an official state dict; statistics are the stored ones, those that `calibrate` found, or, where the
    network learns, those of the batch."""

    def __init__(self, state, choices, arrays=None):
        self.state, self.choices = {key.removeprefix("module."): array for key, array in state.items()}, choices
        self.arrays = arrays or {key: nd.array(array) for key, array in self.state.items() if "num_batches" not in key}
        self.statistics, self.batches, self.learns = {}, None, arrays is not None

    def conv(self, x, key, outputs, kernel=1, stride=1, groups=1, bias=False):
        weight = self.arrays[f"{key}.weight"]
        rim = (weight.shape[2] - kernel) // 2
        weight = weight[:outputs, : x.shape[1] // groups, rim : rim + kernel, rim : rim + kernel]
        extra = [self.arrays[f"{key}.bias"][:outputs]] if bias else []
        return nd.Convolution(x, weight, *extra, kernel=(kernel, kernel), stride=(stride, stride), num_filter=outputs,
                              pad=(kernel // 2, kernel // 2), num_group=groups, no_bias=not bias)  # fmt: skip

    def batch_norm(self, x, key):
        gamma, beta = (self.arrays[f"{key}.bn.bn.{term}"][: x.shape[1]].reshape((1, -1, 1, 1)) for term in ("weight", "bias"))
        centred = nd.broadcast_sub(x, nd.mean(x, axis=(0, 2, 3), keepdims=True))
        variance = nd.mean(centred * centred, axis=(0, 2, 3), keepdims=True)
        return nd.broadcast_add(nd.broadcast_mul(nd.broadcast_div(centred, nd.sqrt(variance + 1e-5)), gamma), beta)

    def norm(self, x, key):
        if self.learns:
            return self.batch_norm(x, key)
        gamma, beta, mean, var = (
            self.state[f"{key}.bn.bn.{term}"][: x.shape[1]] for term in ("weight", "bias", "running_mean", "running_var")
        )
        if self.batches is not None:
            values = x.asnumpy().astype(np.float64)
            mean, var = values.mean(axis=(0, 2, 3)), values.var(axis=(0, 2, 3))
            count = x.size // x.shape[1]
            self.batches.setdefault(key, []).append((mean, var * count / (count - 1)))
        elif key in self.statistics:
            mean, var = self.statistics[key]
        scale = gamma / np.sqrt(var + 1e-5)
        scale, shift = (nd.array(part.reshape(1, -1, 1, 1)) for part in (scale, beta - mean * scale))
        return nd.broadcast_add(nd.broadcast_mul(x, scale), shift)

    def calibrate(self, batches):
        """Plain means of the batch means and of the unbiased batch variances."""
        self.batches = {}
        for batch in batches:
            self(batch)
        self.statistics = {key: tuple(np.mean(part, axis=0) for part in zip(*found)) for key, found in self.batches.items()}  # noqa: B905
        self.batches = None

    def gate(self, x, key):
        middle = x.shape[1]
        squeezed = nd.mean(x, axis=(2, 3), keepdims=True)
        inner = nd.relu(self.conv(squeezed, f"{key}.reduce", div8(middle // 4), bias=True))
        outer = self.conv(inner, f"{key}.expand", middle, bias=True)
        return nd.broadcast_mul(x, nd.clip(outer + 3, 0, 6) / 6)

    def shortcut(self, x, key, outputs, stride):
        if stride == 2:
            pad = x.shape[2] % 2
            x = nd.Pooling(x, kernel=(2, 2), stride=(2, 2), pad=(pad, pad), pool_type="avg", count_include_pad=True)
        return x if x.shape[1] == outputs else self.conv(x, f"{key}.shortcut.conv.conv", outputs)

    def block(self, x, number, stage, outputs, stride):
        key, kernel, expand = f"blocks.{number}", self.choices["kernel"][stage], self.choices["expand"][stage]
        inner, main = f"{key}.mobile_inverted_conv", x
        if expand > 1:
            main = self.conv(main, f"{inner}.inverted_bottleneck.conv.conv", div8(x.shape[1] * expand))
            main = swish(self.norm(main, f"{inner}.inverted_bottleneck"))
        middle = main.shape[1]
        main = self.conv(main, f"{inner}.depth_conv.conv.conv", middle, kernel, stride, middle)
        main = swish(self.norm(main, f"{inner}.depth_conv"))
        if GATED[stage]:
            main = self.gate(main, f"{inner}.depth_conv.se.fc")
        main = self.norm(self.conv(main, f"{inner}.point_linear.conv.conv", outputs), f"{inner}.point_linear")
        return main + self.shortcut(x, key, outputs, stride)

    def __call__(self, x):
        size = self.choices["resolution"][0]
        rows = bicubic(x.shape[2], size)
        right = nd.array(rows.T)
        x = nd.dot(nd.transpose(nd.dot(x, right), axes=(0, 1, 3, 2)), right).transpose((0, 1, 3, 2))
        x = swish(self.norm(self.conv(x, "first_conv.conv.conv", self.choices["width"][0], 3, 2), "first_conv"))
        for stage, depth in enumerate(self.choices["depth"]):
            for block in range(depth):
                stride = STRIDES[stage] if block == 0 else 1
                x = self.block(x, FIRST[stage] + block, stage, self.choices["width"][stage + 1], stride)
        x = self.conv(x, "last_conv.final_expand_layer.conv.conv", 6 * x.shape[1])
        x = nd.mean(swish(self.norm(x, "last_conv.final_expand_layer")), axis=(2, 3), keepdims=True)
        x = swish(self.conv(x, "last_conv.feature_mix_layer.conv.conv", self.choices["width"][-1]))[:, :, 0, 0]
        weight, bias = (self.arrays[f"classifier.linear.linear.{term}"] for term in ("weight", "bias"))
        return nd.broadcast_add(nd.dot(x, weight[:, : x.shape[1]].T), bias)


def swish(x):
    return x * nd.sigmoid(x)


def bicubic(source, size, a=-0.75):
    """Matrix (size, source) of Keys' kernel, half-pixel centres, border repeated."""
    if source == size:
        return np.eye(size)
    rows = np.zeros((size, source))
    for i in range(size):
        place = (i + 0.5) * source / size - 0.5
        for tap in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            t = abs(place - tap)
            near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
            rows[i, min(max(tap, 0), source - 1)] += near if t <= 1 else far if t < 2 else 0
    return rows


def images(seed, batch=4):
    return nd.array(np.random.default_rng(seed).normal(size=(batch, 3, SIDE, SIDE)))


def agree(found, wanted):
    wanted = wanted.asnumpy()
    return np.abs(found.asnumpy() - wanted).max() < 1e-4 * wanted.std()


CASES = {  # 52 pixels give maps of 13 and 7
    "min": lambda: {**SPACE.smallest().choices, "resolution": [64]},
    "max": lambda: {**SPACE.largest().choices, "resolution": [52]},
    "random": lambda: {**SPACE.sample(random.Random(1)).choices, "resolution": [52]},
}


@pytest.mark.parametrize("case", CASES)
def test_extracted_subnets_compute_the_official_network(state, params, case, tmp_path):
    """With the stored statistics, and after recalibration with cumulative means on batches of their own."""
    arch = SPACE.arch(CASES[case]())
    write_network(tmp_path / "net.params", subnet(params, SPACE, arch), arch, "attentivenas")
    net, reference = fixed_network(arch), Reference(state, arch.choices)
    net.load_parameters(str(tmp_path / "net.params"))
    assert agree(net(images(0)), reference(images(0)))
    batches = [images(seed, 4) for seed in (1, 2)]
    before = net(images(0)).asnumpy()
    recalibrate(net, batches, "cumulative")
    reference.calibrate(batches)
    after = net(images(0))
    assert agree(after, reference(images(0))) and np.abs(after.asnumpy() - before).max() > 0.1 * before.std()


def test_the_converted_supernet_computes_the_official_network(state, params, tmp_path):
    write_network(tmp_path / "net.params", params, SPACE, "attentivenas")
    net = Supernet(SPACE)
    net.load_parameters(str(tmp_path / "net.params"))
    for case in ("min", "random"):
        arch = SPACE.arch(CASES[case]())
        assert agree(net(images(0), arch), Reference(state, arch.choices)(images(0)))
    about = json.loads((tmp_path / "net.params.json").read_text())
    assert (about["kind"], about["space"], about["preprocessing"]["mean"]) == (
        "network", "attentive_mobilenet", [123.675, 116.28, 103.53])  # fmt: skip


def test_a_sandwich_step_has_the_losses_and_the_summed_gradients_of_the_official_network(state, params, tmp_path):
    """The largest by the labels, then a random and the smallest one by what the largest says, on the same images."""
    archs = [SPACE.arch({**arch.choices, "resolution": [side]}) for arch, side in
             ((SPACE.largest(), 64), (SPACE.sample(random.Random(1)), 52), (SPACE.smallest(), 52))]
    x, target = images(5), targets(nd.arange(4), 1000, 0.1)
    arrays = {key.removeprefix("module."): nd.array(array) for key, array in state.items() if "num_batches" not in key}
    trained = {key: array for key, array in arrays.items() if "running" not in key and "bn_tracking" not in key}
    for array in trained.values():
        array.attach_grad("add")
    wanted, taught = [], target
    for arch in archs:
        with autograd.record():
            logits = Reference(state, arch.choices, arrays)(x)
            loss = -(taught * nd.log_softmax(logits)).sum(axis=1).mean()
        loss.backward()
        wanted.append(loss.asscalar())
        taught = nd.softmax(logits).detach() if taught is target else taught
    write_network(tmp_path / "net.params", params, SPACE, "attentivenas")
    net = Supernet(SPACE)
    net.load_parameters(str(tmp_path / "net.params"))
    trainer = trainer_of(net.collect_params(), Optimizer(lr=0.1, momentum=0, wd=0))
    accumulate(net.collect_params())
    found = []

    def refuse(losses):
        found.extend(float(each.mean().asscalar()) for each in losses)
        return False  # the gradients stay as they are

    run_step(partial(calm, net, archs[0]), [(x, target)], CrossEntropy(), trainer, 4, accept=refuse,
             students=[partial(calm, net, arch) for arch in archs[1:]], distil=distillation(Distil()))
    assert found == pytest.approx(wanted, rel=1e-3)
    named = net._collect_params_with_prefix()
    whole = np.sqrt(sum((array.grad.asnumpy().astype(float) ** 2).sum() for array in trained.values()))
    gaps = {}
    for key, (name, _) in official_keys(SPACE).items():
        if "running" not in key:
            gaps[key] = np.linalg.norm(trained[key].grad.asnumpy() - named[name].grad().asnumpy() / 4)
    assert np.sqrt(sum(gap**2 for gap in gaps.values())) < 1e-3 * whole
    for key, gap in gaps.items():  # the gradients of biases before a BatchNorm are rounding alone
        assert gap < 1e-3 * max(np.linalg.norm(trained[key].grad.asnumpy()), 1e-4 * whole), key


def calm(net, arch, x):
    return net.calm(x, arch)


def test_weights_that_do_not_fit(state):
    key = "module.blocks.8.mobile_inverted_conv.depth_conv.se.fc.reduce.bias"
    idle, shortcut = (f"module.blocks.{number}.shortcut.conv.conv.weight" for number in (3, 2))

    def refused(changes, message):
        with pytest.raises(UserError, match=message):
            from_official({key: array for key, array in {**state, **changes}.items() if array is not None}, SPACE)

    name = key.removeprefix("module.").replace(".", r"\.")
    refused({key: None}, rf"not the weights of this attentivenas supernet: 1 missing: {name} \(64,\)$")
    refused({key: np.zeros(60, np.float32)}, rf"1 wrong: {name} is \(60,\) instead of \(64,\)$")
    refused({"module.blocks.37.x": np.zeros(3)}, r"1 unknown: blocks.37.x \(3,\)$")
    refused({idle: np.zeros((1, 1), np.float32)}, r"1 wrong: blocks.3.shortcut.conv.conv.weight is \(1, 1\) instead of \(32, 32")
    refused({shortcut: None}, r"1 missing: blocks.2.shortcut.conv.conv.weight \(32, 24, 1, 1\)")
    refused({key: None, shortcut: None, "module.y": np.zeros(1)}, r"2 missing: .*reduce.bias \(64,\).*; 1 unknown: y \(1,\)")
    refused({key: np.full(64, np.inf, np.float32)}, "holds NaN or infinity")
    assert from_official({key: array for key, array in state.items() if key != idle}, SPACE)


@pytest.mark.parametrize("name,options,message", [
    ("attentive_mobilenet", {"layout": "small"}, "with layout 'attentive', not of 'attentive_mobilenet' with layout 'small'"),
    ("spos_shufflenet", {}, "are of space 'attentive_mobilenet' with layout 'attentive', not of 'spos_shufflenet'$"),
])  # fmt: skip
def test_other_spaces_are_refused(state, name, options, message):
    with pytest.raises(UserError, match=message):
        from_official(state, get_space(name, **options))


def test_targets():
    space, arch = SPACE, SPACE.smallest()
    for given, message in (
        (("attentivenas", None, None), "holds a whole supernet; give its space with --space NAME, or --arch FILE for one"),
        (("attentivenas", space, arch), "give --space for the whole supernet or --arch for one subnet of it, not both"),
        (("megvii-spos", space, None), "megvii-spos holds one fixed network; give its architecture with --arch FILE"),
    ):
        with pytest.raises(UserError, match=message):
            check_target(*given)


def test_the_command_line(state, params, tmp_path, capsys):
    """A supernet there and back, a subnet taken out, and what is refused."""
    source, supernet, fixed = tmp_path / "in.npz", tmp_path / "supernet.params", tmp_path / "a0.params"
    np.savez(source, **state)
    (tmp_path / "a0.json").write_text(json.dumps(published("attentive_a0").to_json()))
    common = ["convert", str(source), "--from", "attentivenas", "--json"]
    assert run([*common, "--space", "attentive_mobilenet", "--out", str(supernet)]) == 0
    assert json.loads(capsys.readouterr().out)["arrays"] == len(params)
    assert run([*common, "--arch", str(tmp_path / "a0.json"), "--out", str(fixed)]) == 0
    assert "recalibrate" in json.loads(capsys.readouterr().out)["note"]
    a0 = SPACE.arch({**published("attentive_a0").choices, "resolution": [52]})
    wanted = subnet(params, SPACE, a0)
    found = read_network(fixed)
    assert found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)
    back = ["convert", str(supernet), "--to", "attentivenas", "--out", str(tmp_path / "back.npz")]
    assert run([*back, "--space", "attentive_mobilenet"]) == 0
    again = read_state(tmp_path / "back.npz")
    assert all(np.array_equal(again[key], state[f"module.{key}"]) for key in official_shapes() if "shortcut" not in key)
    capsys.readouterr()
    assert run([*back, "--arch", str(tmp_path / "a0.json")]) == 2 and "one subnet cannot fill" in capsys.readouterr().err
    assert run([*common, "--out", str(fixed)]) == 2 and "give its space with --space NAME" in capsys.readouterr().err
    told = [*common[:-1], "--space", "attentive_mobilenet", "--out", str(supernet)]
    assert run(told) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[1].removeprefix("next: "), comments=True)
    recipe = read_recipe(words[3], [word for before, word in pairwise(words) if before == "--set"])
    assert (recipe.start.weights, recipe.start.epoch) == (str(supernet), recipe.epochs)
    prepared = Preprocessing(224, 0.875, recipe.mean, recipe.std, "linear", recipe.channels)
    assert prepared == Preprocessing.from_json(json.loads(Path(f"{supernet}.json").read_text())["preprocessing"])
    stray = ["--arch", str(tmp_path / "a0.json"), "--option", "classes=10", "--out", str(fixed)]
    assert run([*common, *stray]) == 2 and "--option belongs to --space" in capsys.readouterr().err
