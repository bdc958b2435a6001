"""A sandwich step: its gradient is the sum of separate ones, students learn from constants, only the largest drops anything."""

import random

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd

from oneshot_nas.arch import get_space
from oneshot_nas.nets.supernet import Supernet
from oneshot_nas.ops import MBConv
from oneshot_nas.sections import Distil, Optimizer
from oneshot_nas.train.losses import AlphaDivergence, CrossEntropy, Distillation, distillation
from oneshot_nas.train.step import accumulate, run_step, targets, trainer_of

SPACE = get_space("attentive_mobilenet", layout="small", input_size=32, classes=10)
ARCHS = [SPACE.largest(), *(SPACE.sample(random.Random(i)) for i in (1, 2)), SPACE.smallest()]
DEVICES = {"one": [mx.cpu(0)], "two": [mx.cpu(0), mx.cpu(1)]}


def made(contexts):
    mx.random.seed(0)
    net = Supernet(SPACE)
    net.initialize(ctx=contexts)
    rng = np.random.default_rng(0)
    for name, parameter in sorted(net.collect_params().items()):
        if name.endswith("gamma"):  # the last ones of a block start at zero, where gradients would not reach the branches
            parameter.set_data(nd.array(rng.uniform(0.5, 1.0, parameter.shape)))
    return net


def shards_of(contexts, batch=8, seed=0):
    rng = np.random.default_rng(seed)
    x, y = nd.array(rng.normal(size=(batch, 3, 32, 32))), targets(nd.array(rng.integers(0, 10, batch)), 10, 0.1)
    return list(zip(mx.gluon.utils.split_and_load(x, contexts), mx.gluon.utils.split_and_load(y, contexts), strict=True))


def gradients(net):
    named = net._collect_params_with_prefix()
    return {name: [g.asnumpy() for g in p.list_grad()] for name, p in named.items() if p.grad_req != "null"}


def separate(net, shards, distil):
    """The sum, in numpy, of the gradients of the networks, each alone; the teacher's logits are taken once, as constants."""
    total, logits = None, None
    for place, arch in enumerate(ARCHS):
        with autograd.record():
            outputs = [net.calm(images, arch) for images, _ in shards]
            losses = ([CrossEntropy()(out, target) for out, (_, target) in zip(outputs, shards, strict=True)] if not place
                      else [distil(out, taught) for out, taught in zip(outputs, logits, strict=True)])
        autograd.backward(losses)
        logits = logits or [out.detach() for out in outputs]
        found = {name: [a if p.list_data()[i]._fresh_grad else np.zeros_like(a) for i, a in enumerate(gradients(net)[name])]
                 for name, p in net._collect_params_with_prefix().items() if p.grad_req != "null"}
        for p in net.collect_params().values():
            for data in p.list_data() if p.grad_req != "null" else ():
                data._fresh_grad = False
        total = found if total is None else {n: [a + b for a, b in zip(total[n], found[n], strict=True)] for n in found}
    return total


def students(net):
    return [lambda images, arch=arch: net.calm(images, arch) for arch in ARCHS[1:]]


def sandwich(net, shards, distil, accept=None, **settings):
    trainer = trainer_of(net.collect_params(), Optimizer(**({"lr": 0.1, "momentum": 0, "wd": 0} | settings)))
    accumulate(net.collect_params())
    return run_step(lambda images: net.calm(images, ARCHS[0]), shards, CrossEntropy(), trainer, 1,
                    students=students(net), distil=distil, accept=accept)


@pytest.mark.parametrize(("devices", "batch", "kind"), [("one", 8, "soft"), ("one", 1, "alpha"), ("two", 4, "soft")])
def test_the_gradient_is_the_sum_of_separate_ones(devices, batch, kind):
    contexts, distil = DEVICES[devices], distillation(Distil(kind=kind))
    expected = separate(made(contexts), shards_of(contexts, batch), distil)
    net = made(contexts)
    seen = []
    sandwich(net, shards_of(contexts, batch), distil, accept=lambda losses: bool(seen.append(gradients(net))))
    scale = max(np.abs(a).max() for arrays in expected.values() for a in arrays)
    for name, arrays in expected.items():
        for found, wanted in zip(seen[0][name], arrays, strict=True):
            error = np.linalg.norm(found - wanted)
            assert error < 1e-4 * np.linalg.norm(wanted) + 1e-6 * scale, (name, error, np.linalg.norm(wanted))


def test_the_largest_teaches_and_its_logits_are_constants():
    """With a student loss that pushes on the teacher alone nothing may move but what the labels move."""
    net, alone = made([mx.cpu()]), made([mx.cpu()])
    sandwich(net, shards_of([mx.cpu()]), lambda logits, teacher: (teacher * 1e3 + logits * 0).sum(axis=1))
    trainer = trainer_of(alone.collect_params(), Optimizer(lr=0.1, momentum=0, wd=0))
    run_step(lambda images: alone.calm(images, ARCHS[0]), shards_of([mx.cpu()]), CrossEntropy(), trainer, 1)
    for name, parameter in alone._collect_params_with_prefix().items():
        if parameter.grad_req != "null":
            found = net._collect_params_with_prefix()[name].data().asnumpy()
            assert np.allclose(found, parameter.data().asnumpy(), rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("devices", DEVICES)
def test_steps_do_not_remember_the_gradients_of_steps_before(devices):
    contexts, distil = DEVICES[devices], distillation(Distil())
    net, fresh = made(contexts), made(contexts)
    seen = []
    for _ in range(2):
        sandwich(net, shards_of(contexts), distil, accept=lambda losses: bool(seen.append(gradients(net))))
    assert all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for n in seen[0] for a, b in zip(seen[0][n], seen[1][n], strict=True))
    for name, parameter in fresh._collect_params_with_prefix().items():  # both were refused, so nothing moved
        if parameter.grad_req != "null":
            assert np.array_equal(parameter.data().asnumpy(), net._collect_params_with_prefix()[name].data().asnumpy()), name
    assert not any(data._fresh_grad for p in net.collect_params().values() for data in p.list_data() if p.grad_req != "null")


def test_only_the_largest_drops_anything():
    rates = [layer.op.drop_connect for layer in SPACE.plan(ARCHS[0]).layers if isinstance(layer.op, MBConv)]
    assert max(rates) > 0.1
    net, (images, _) = made([mx.cpu()]), shards_of([mx.cpu()])[0]
    with autograd.train_mode():
        loud, calm = ([run(images, ARCHS[0]).asnumpy() for _ in range(2)] for run in (net, net.calm))
    assert not np.allclose(loud[0], loud[1]) and np.array_equal(calm[0], calm[1])
    assert np.allclose(net(images, ARCHS[0]).asnumpy(), net.calm(images, ARCHS[0]).asnumpy(), atol=1e-5)


def test_bn_momentum_is_the_share_of_the_statistics_that_is_kept():
    images, target = shards_of([mx.cpu()])[0]
    means = {}
    for momentum in (None, 0.5, 1.0):
        mx.random.seed(0)
        net = Supernet(SPACE, momentum)
        net.initialize()
        trainer = trainer_of(net.collect_params(), Optimizer(lr=1e-9, wd=0))
        run_step(lambda x, net=net: net.calm(x, ARCHS[0]), [(images, target)], CrossEntropy(), trainer, 8)
        means[momentum] = net.owner("stem").parameter("bn.running_mean").data().asnumpy()
    assert means[None].any() and not means[1.0].any()
    assert means[0.5] == pytest.approx(5 * means[None], rel=1e-3)  # 0.5 against 0.1 of the batch's mean


# --- what students learn: closed forms in float64, gradients by the formula of each divergence ---


def softmax(logits):
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def drawn(spread=2.0):
    rng = np.random.default_rng(3)
    return rng.normal(size=(6, 7)) * spread, rng.normal(size=(6, 7)) * spread


def value_and_gradient(loss, student, teacher):
    logits = nd.array(student)
    logits.attach_grad()
    with autograd.record():
        out = loss(logits, nd.array(teacher))
    out.backward()
    return out.asnumpy(), logits.grad.asnumpy()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_cross_entropy_and_kl(temperature):
    student, teacher = drawn()
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    cross, entropy = -(p * np.log(q)).sum(axis=1), -(p * np.log(p)).sum(axis=1)
    for kl in (False, True):
        value, gradient = value_and_gradient(Distillation(temperature, kl), student, teacher)
        assert value == pytest.approx(temperature**2 * (cross - (entropy if kl else 0)), rel=1e-4, abs=1e-4)
        assert gradient == pytest.approx(temperature * (q - p), abs=1e-4)


def divergence(alpha, clip, p, q):
    """(value, gradient for the student's logits) of one alpha, straight from the definition."""
    ratio = p / q
    if alpha == 1:
        value, rho = (p * np.log(ratio)).sum(axis=1), ratio
    elif alpha == 0:
        value, rho = -(q * np.log(ratio)).sum(axis=1), np.log(ratio) - 1
    else:
        power = np.minimum(ratio**alpha, clip)
        value, rho = (q * (power - 1)).sum(axis=1) / (alpha * (alpha - 1)), power / alpha
    weight = q * rho
    return value, -(weight - q * weight.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(("alphas", "clip", "spread"), [((-1, 1), 5.0, 1.0), ((-1, 1), 1e6, 0.5), ((0, 0.5), 5.0, 2.0)])
def test_alpha_divergence_takes_the_larger_one_of_every_image(alphas, clip, spread):
    student, teacher = drawn(spread)
    value, gradient = value_and_gradient(AlphaDivergence(*alphas, clip), student, teacher)
    (low, grad_low), (high, grad_high) = (divergence(alpha, clip, softmax(teacher), softmax(student)) for alpha in alphas)
    assert value == pytest.approx(np.maximum(low, high), rel=1e-3, abs=1e-5)
    assert gradient == pytest.approx(np.where((low > high)[:, None], grad_low, grad_high), rel=1e-3, abs=1e-4)
    if (alphas, clip) == ((-1, 1), 5.0):
        assert 0 < (low > high).sum() < len(low) and (softmax(student) / softmax(teacher)).max() > clip


def test_an_unclipped_alpha_divergence_has_the_gradient_of_its_value():
    student, teacher = drawn(0.5)
    loss = AlphaDivergence(-1.0, 2.0, 1e6)
    _, gradient = value_and_gradient(loss, student, teacher)
    step = 1e-5

    def exact(logits):
        return max(divergence(alpha, 1e6, softmax(teacher), softmax(logits))[0][0] for alpha in (-1.0, 2.0))

    for column in range(student.shape[1]):
        moved = [student.copy(), student.copy()]
        moved[0][0, column] += step
        moved[1][0, column] -= step
        assert gradient[0, column] == pytest.approx((exact(moved[0]) - exact(moved[1])) / (2 * step), rel=1e-3, abs=1e-5)


def test_alpha_divergence_stays_finite_where_probabilities_vanish():
    student = np.array([[60.0, -60.0, 0.0]])
    value, gradient = value_and_gradient(AlphaDivergence(), student, -student)
    assert np.isfinite(value).all() and np.isfinite(gradient).all()


def test_clip_norm_shortens_all_gradients_together():
    """Two arrays with gradient norms 3 and 4, so 5 together."""
    params = mx.gluon.ParameterDict()
    arrays = [params.get(name, shape=(1,), init="zeros") for name in ("a", "b")]
    params.initialize()
    for limit, expected in ((None, (3, 4)), (2.5, (1.5, 2)), (10.0, (3, 4))):
        for array in arrays:
            array.set_data(nd.zeros(1))
        trainer = trainer_of(params, Optimizer(lr=1, momentum=0, wd=0))

        def forward(images):
            return (arrays[0].data() * 6 + arrays[1].data() * 8).reshape((1, 1))

        run_step(forward, [(nd.zeros((1, 1)), nd.zeros((1, 1)))], lambda logits, target: logits.sum(axis=1), trainer, 2,
                 clip_norm=limit)
        assert [float(-array.data().asscalar()) for array in arrays] == pytest.approx(expected, rel=1e-5)
