"""FLOPs and parameters of every published architecture, to the unit where the publication is, and rounded where it is rounded.

Numbers come from the repositories named in `oneshot_nas.model_zoo`: the official tables (A: rule macs), the MXNet predecessor's
counter (B: rule oneshot-mxnet, C: oneshot-mxnet-full) and mmrazor's (D: rule mmrazor).
"""

import json
import random

import pytest
from mxnet import nd

from oneshot_nas import UserError, cost, get_model, get_space, list_models
from oneshot_nas.arch import space_of
from oneshot_nas.costs.analytic import layer_costs, micronet
from oneshot_nas.model_zoo import ZOO, published
from oneshot_nas.ops import MBConv
from oneshot_nas.plan import chain_layers

BIAS = {"classifier_bias": True}
EXACT = [  # name, options, rule, FLOPs, params, where these numbers were published or re-computed from
    ("oneshot", {}, "macs", 327_857_920, 3_432_579, "official: 328 M, 3.4 M"),
    ("oneshot", BIAS, "oneshot-mxnet", 327_909_096, 3_433_579, "predecessor's counter: 327.909096 M, 3.433579 M"),
    (
        "oneshot",
        BIAS,
        "oneshot-mxnet-full",
        344_984_616,
        3_433_579,
        "predecessor's counter with BatchNorm and ReLU: 344.984616 M",
    ),
    ("oneshot_plus", {}, "oneshot-mxnet", 297_058_024, 3_742_955, "predecessor: 297 M, 3.7 M"),
    ("oneshot_s_plus", {}, "oneshot-mxnet", 291_475_944, 3_541_829, "predecessor: 291 M, 3.5 M"),
    ("spos_blocks", {}, "macs", 322_918_720, 3_558_464, "official search result: 323 M, 3.5 M (cut, not rounded)"),
    ("spos_mmrazor", {}, "macs", 316_019_520, 3_353_592, "mmrazor: convolutions alone 316.0 M, 3.35 M"),
    ("spos_mmrazor", {}, "mmrazor", 327_544_320, 3_353_592, "mmrazor's counter: 327.5 M"),
    ("dsnas_mmrazor", {}, "mmrazor", 299_135_296, 3_330_600, "mmrazor: 0.299 G, 3.33 M"),
    # no counts published for these: our integers, so that they cannot drift
    ("oneshot_s_plus_mobilenetv3", {}, "oneshot-mxnet", 209_111_882, 3_707_885, "pinned"),
    ("oneshot_early", {}, "oneshot-mxnet", 335_375_912, 3_315_566, "pinned"),
    ("oneshot_reduced", {}, "oneshot-mxnet", 298_027_998, 1_919_655, "pinned; the model of 1.9 M parameters"),
    ("detnas_coco_fpn", {}, "macs", 321_219_008, 3_531_072, "pinned; '300 M' is its family's name"),
    ("detnas_coco_retinanet", {}, "macs", 324_342_464, 3_723_280, "pinned"),
    ("detnas_voc_fpn", {}, "macs", 349_524_544, 3_649_088, "pinned"),
    ("detnas_voc_retinanet", {}, "macs", 360_625_984, 3_477_440, "pinned"),
]
ROUNDED: list = [  # name, options, rule, MFLOPs and M parameters with as many digits as published
    ("oneshot", {}, "macs", "328", "3.4"),
    ("oneshot_plus", {}, "oneshot-mxnet", "297", "3.7"),
    ("oneshot_s_plus", {}, "oneshot-mxnet", "291", "3.5"),
    ("spos_mmrazor", {}, "mmrazor", "327.5", "3.35"),
    ("dsnas_mmrazor", {}, "mmrazor", "299", "3.33"),
    ("oneshot_reduced", {}, "macs", "298", "1.9"),
]


@pytest.mark.parametrize(
    "name,options,rule,flops,params,source", EXACT, ids=lambda value: str(value) if isinstance(value, str) else ""
)
def test_exact_counts(name, options, rule, flops, params, source):
    found = cost(published(name, **options), rule)
    assert (found.flops, found.params) == (flops, params), source


@pytest.mark.parametrize(
    "name,options,rule,flops,params", ROUNDED, ids=lambda value: str(value) if isinstance(value, str) else ""
)
def test_rounded_counts(name, options, rule, flops, params):
    found = cost(published(name, **options), rule)
    for text, value in ((flops, found.flops / 1e6), (params, found.params / 1e6)):
        assert f"{value:.{len(text.partition('.')[2])}f}" == text


def test_every_model_is_in_the_table():
    """Of this space; other spaces' published networks have tests of their own."""
    assert {row[0] for row in EXACT} == {name for name in list_models() if published(name).space == "spos_shufflenet"}


def test_parts_of_the_predecessor_network():
    """Stem and tails as its closed forms give them, in FLOPs and parameters under oneshot-mxnet."""

    def part(place, **options):
        space = get_space("spos_shufflenet", **options)
        found = layer_costs(space.plan(space.smallest()), "oneshot-mxnet")[place][1]
        return found.flops, found.params

    assert part(0) == (5_419_008, 464)
    assert part(-1) == (33_187_816, 1_682_408)
    assert part(-1, se=True) == (26_231_208, 2_601_384)
    assert part(-1, tail="pooled") == (1_712_744, 1_681_384)


def test_the_published_range_of_the_predecessor_space():
    """Its README's 168 M to 841 M: all 3x3 at 0.6 with SE and pooled tail, and all xception at 2.0 without."""

    def uniform(block, scale, **options):
        return (
            cost(
                get_space("spos_shufflenet", **options).arch({"block": [block] * 20, "scale": [scale] * 20}), "oneshot-mxnet"
            ).flops
            / 1e6
        )

    assert round(uniform("shuffle3", 0.6, se=True, tail="pooled"), 2) == 168.06
    assert round(uniform("xception", 2.0), 1) == 841.9


def test_middle_widths_truncate():
    """Widths of stage 1 for scales 0.2 to 2.0 in the two layouts (OneShot and ShuffleNetV2+), as the official code cuts them."""
    from oneshot_nas.spaces.spos_shufflenet import SCALES, middle_width

    assert [middle_width(64, scale) for scale in SCALES] == [6, 12, 19, 25, 32, 38, 44, 51, 57, 64]
    assert [middle_width(48, scale) for scale in SCALES] == [4, 9, 14, 19, 24, 28, 33, 38, 43, 48]
    assert [middle_width(512, scale) for scale in SCALES] == [51, 102, 153, 204, 256, 307, 358, 409, 460, 512]
    for channels in range(2, 700):
        assert [middle_width(channels, scale) for scale in SCALES] == [channels // 2 * (2 + 2 * i) // 10 for i in range(10)]


def test_micronet_score_of_s_plus():
    arch = published("oneshot_s_plus")
    found = micronet(space_of(arch).plan(arch))
    assert (round(found.multiplications / 1e6, 4), round(found.additions / 1e6, 4)) == (299.6207, 288.3226)
    assert round(found.params / 1e6, 6) == 3.652225 and round(found.score, 2) == 1.03


def test_a_shortcut_is_one_addition_per_element():
    def found(shortcut):
        return micronet(chain_layers((32, 28, 28), [("block", MBConv(32, 32, 96, 3, shortcut=shortcut), "", "")]))

    assert found("identity").additions - found("none").additions == 32 * 28 * 28
    assert found("identity").multiplications == found("none").multiplications


def test_zoo_files_name_everything():
    for name in list_models():
        content = json.loads((ZOO / f"{name}.json").read_text())
        assert (content["kind"], content["version"]) == ("architecture", 1)
        assert {key: content[key] for key in ("space", "options", "choices")} == published(name).to_json()


def test_get_model_builds_what_the_plan_says():
    net = get_model("oneshot", classes=10, input_size=32)
    trainable = sum(_size(p.shape) for p in net.collect_params().values() if p.grad_req != "null")
    assert trainable == cost(net.arch).params and net.arch.options["classes"] == 10
    assert set(net._collect_params_with_prefix()) >= {
        "stem.conv.weight",
        "stage1.block1.proj_dw.weight",
        "head.classifier.weight",
    }


def _size(shape):
    size = 1
    for side in shape:
        size *= side
    return size


def test_get_model_pretrained(tmp_path):
    import mxnet as mx
    import numpy as np

    with pytest.raises(
        UserError, match="no weights are shipped for 'oneshot' .*make them with .oneshot-nas train .*oneshot-nas convert --from"
    ):
        get_model("oneshot", pretrained=True, root=str(tmp_path))
    net = get_model("oneshot_reduced", classes=10, input_size=32)
    net.initialize()
    net.save_parameters(str(tmp_path / "oneshot_reduced.params"))
    again = get_model("oneshot_reduced", pretrained=True, ctx=mx.cpu(), root=str(tmp_path), classes=10, input_size=32)
    x = mx.nd.array(np.random.default_rng(0).normal(size=(1, 3, 32, 32)))
    assert (net(x) == again(x)).asnumpy().all()
    with pytest.raises(UserError, match=r"head.classifier.weight \(10, 102\) instead of \(5, 102\)"):
        get_model("oneshot_reduced", pretrained=True, root=str(tmp_path), classes=5)
    (tmp_path / "oneshot_reduced.params").write_bytes((tmp_path / "oneshot_reduced.params").read_bytes()[:5000])
    with pytest.raises(UserError, match="oneshot_reduced.params is "):
        get_model("oneshot_reduced", pretrained=True, root=str(tmp_path), classes=10)


@pytest.mark.parametrize(
    "name,options,message",
    [
        ("oneshott", {}, r"no model 'oneshott'; did you mean \('oneshot'"),
        ("zzz", {}, r"no model 'zzz'; the models are \('a"),
        ("oneshot", {"width": 2}, r"unknown option \('width'\) of space 'spos_shufflenet'; it has \('se', "),
        ("oneshot", {"classes": 1}, "option 'classes' = 1 of space 'spos_shufflenet' is not an integer from 2 to 100000"),
    ],
)
def test_get_model_refuses(name, options, message):
    with pytest.raises(UserError, match=message):
        get_model(name, **options)


def test_supernet_sizes():
    """The predecessor's supernet has 15.94 M trainable parameters, 17.18 M with SE and pooled tail."""
    from oneshot_nas.nets.supernet import supernet_ops

    for options, millions in (({}, 15.94), ({"se": True, "tail": "pooled"}, 17.18)):
        ops = supernet_ops(get_space("spos_shufflenet", **options))
        assert round(sum(_size(shape) for _, op in ops.values() for shape in op.parameters().values()) / 1e6, 2) == millions


def test_random_cost_is_stable():
    arch = get_space("spos_shufflenet").sample(random.Random(0))
    assert cost(arch) == cost(arch) and hash(cost(arch)) == hash(cost(arch))


def test_the_narrowest_gated_tail_is_a_network():
    net = get_model("oneshot", se=True, last_channels=1, classes=2, input_size=32)
    net.initialize()
    assert net(nd.zeros((1, 3, 32, 32))).shape == (1, 2)
