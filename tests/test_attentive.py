"""AttentiveNAS' space: the published networks' costs from a count of our own, and why published tables differ from them."""

import numpy as np
import pytest

from oneshot_nas.arch import get_space
from oneshot_nas.costs.analytic import cost
from oneshot_nas.model_zoo import list_models, published
from oneshot_nas.nets.supernet import supernet_ops

SPACE = get_space("attentive_mobilenet")
STRIDES, GATED = (1, 2, 2, 2, 1, 2, 1), (False, False, True, False, True, True, True)


def row(resolution, width, depth, kernel, expand):
    """A row of the published table as choices; depths, kernels and expansions are one digit a stage."""
    digits = {"depth": depth, "kernel": kernel, "expand": expand}
    lists = {name: [int(digit) for digit in text] for name, text in digits.items()}
    return {"resolution": [resolution], "width": [int(word) for word in width.split()], **lists}


# configs/eval_attentive_nas_models.yml: resolution, widths (stem, seven stages, last), depths, kernels, expansions
TABLE = {
    "a0": row(192, "16 16 24 32 64 112 192 216 1792", "1333331", "3333333", "1444466"),
    "a1": row(224, "16 16 24 32 64 112 192 216 1984", "1333331", "3335353", "1444466"),
    "a2": row(224, "16 16 24 32 64 112 200 224 1984", "1333341", "3333353", "1454466"),
    "a3": row(224, "16 16 24 32 64 112 208 224 1984", "2334351", "3335333", "1444466"),
    "a4": row(256, "16 16 24 32 64 112 192 216 1984", "1334351", "3335353", "1445466"),
    "a5": row(256, "16 16 24 32 72 112 192 216 1792", "1333461", "3335333", "1454466"),
    "a6": row(288, "16 16 24 32 64 112 216 224 1984", "1334461", "3333353", "1465466"),
    "max": row(288, "24 24 32 40 72 128 216 224 1984", "2566882", "5555555", "1666666"),
}
TABLE["min"] = TABLE["a0"]
PUBLISHED = {  # MFLOPs and M parameters of the official release; its multiply-adds leave biases, BatchNorm and pools out
    "a0": (203, "8.95"), "a1": (279, "9.45"), "a2": (317, "11.15"), "a3": (357, "12.78"), "a4": (444, "11.81"),
    "a5": (491, "12.60"), "a6": (709, "15.15"), "min": (203, "8.95"), "max": (1939, "23.40"),
}  # fmt: skip
EXACT = {  # multiply-adds, mmrazor's count, parameters
    "a0": (203_389_568, 212_097_920, 8_954_184), "a1": (279_238_816, 291_088_800, 9_452_872),
    "a2": (316_730_080, 329_399_176, 11_149_824), "a3": (356_518_400, 370_136_560, 12_784_928),
    "a4": (443_530_752, 460_369_024, 11_809_640), "a5": (490_520_064, 508_528_280, 12_597_464),
    "a6": (709_007_232, 733_514_960, 15_154_792), "min": (203_389_568, 212_097_920, 8_954_184),
    "max": (1_939_335_808, 2_001_319_424, 23_404_080),
}  # fmt: skip


def div8(value):
    """A multiple of 8, half rounded up, never under nine tenths of the value."""
    rounded = int((value + 4) // 8) * 8
    return rounded + 8 if rounded < 0.9 * value else rounded


class Count:
    """One image: multiply-adds, what mmrazor adds (the shortcuts' pools apart), parameters and BatchNorm's among them."""

    def __init__(self):
        self.macs = self.extra = self.params = self.norms = self.pools = 0

    def conv(self, inputs, outputs, kernel, side, groups=1, bias=False):
        weights = inputs // groups * outputs * kernel**2
        self.macs += weights * side**2
        self.params += weights + bias * outputs
        self.extra += bias * outputs * side**2

    def norm(self, channels, side):
        self.params += 2 * channels
        self.norms += 2 * channels
        self.extra += 2 * channels * side**2


def count(choices):
    """A whole network, straight from the facts of the paper: nothing here comes from our plan."""
    total, side, channels = Count(), -(-choices["resolution"][0] // 2), choices["width"][0]
    total.conv(3, channels, 3, side)
    total.norm(channels, side)
    for stage, stride in enumerate(STRIDES):
        width, kernel, expand = choices["width"][stage + 1], choices["kernel"][stage], choices["expand"][stage]
        for block in range(choices["depth"][stage]):
            middle, step = div8(channels * expand), stride if block == 0 else 1
            after = -(-side // step)
            if expand > 1:
                total.conv(channels, middle, 1, side)
                total.norm(middle, side)
            total.conv(middle, middle, kernel, after, groups=middle)
            total.norm(middle, after)
            if GATED[stage]:
                hidden = div8(middle // 4)
                total.extra += middle * after**2 + hidden  # the pool and the ReLU
                total.conv(middle, hidden, 1, 1, bias=True)
                total.conv(hidden, middle, 1, 1, bias=True)
            total.conv(middle, width, 1, after)
            total.norm(width, after)
            if step == 2:
                total.pools += channels * side**2
            if channels != width:
                total.conv(channels, width, 1, after)
            channels, side = width, after
    total.conv(channels, 6 * channels, 1, side)
    total.norm(6 * channels, side)
    total.extra += 6 * channels * side**2
    total.conv(6 * channels, choices["width"][-1], 1, 1)
    total.macs += choices["width"][-1] * 1000
    total.params += choices["width"][-1] * 1000 + 1000
    return total


@pytest.mark.parametrize("name", TABLE)
def test_published_networks_to_the_unit(name):
    arch, mine = published(f"attentive_{name}"), count(TABLE[name])
    assert arch == SPACE.arch(TABLE[name])
    macs, razor = cost(arch), cost(arch, "mmrazor")
    assert (macs.flops, razor.flops, macs.params) == (mine.macs, mine.macs + mine.extra + mine.pools, mine.params) == EXACT[name]
    assert razor.params == macs.params
    assert (round(macs.flops / 1e6), f"{macs.params / 1e6:.2f}") == PUBLISHED[name]


def test_every_published_network_is_here():
    assert {f"attentive_{name}" for name in TABLE} == {name for name in list_models() if name.startswith("attentive_")}


@pytest.mark.parametrize("seed", range(4))
def test_random_networks_at_odd_sizes(seed):
    """208 and 200 halve to odd maps, which every stride and pool rounds up."""
    rng = np.random.default_rng(seed)
    choices = SPACE.decode([int(rng.integers(len(allowed))) for _, _, allowed in SPACE.positions]).choices
    for resolution in (200, 208, 225):
        space = get_space("attentive_mobilenet", resolutions=[resolution])
        arch = space.arch({**choices, "resolution": [resolution]})
        mine = count(arch.choices)
        assert (cost(arch).flops, cost(arch, "mmrazor").flops, cost(arch).params) == (
            mine.macs, mine.macs + mine.extra + mine.pools, mine.params)  # fmt: skip


def test_size_of_the_space_and_its_ends():
    assert SPACE.size == 4 * 1536 * 6912 * 128 * 81 == 440_301_256_704
    assert SPACE.smallest() == published("attentive_min") == published("attentive_a0")
    assert SPACE.largest() == published("attentive_max")


# Why published tables differ: each of their numbers is the exact cost of another network, or of another way of counting.


def mixed(depth_of):
    """Only resolution and depth of a network, everything else at its largest."""
    return {**TABLE["max"], "resolution": TABLE[depth_of]["resolution"], "depth": TABLE[depth_of]["depth"]}


@pytest.mark.parametrize("name,mflops,params", [("a0", "414.0", "11.559"), ("a6", "1161.5", "16.476")])
def test_the_table_with_a0_at_414_applied_depth_and_resolution_only(name, mflops, params):
    """Its parameters leave BatchNorm out, to the last digit; its A6 row says 1163 M, 0.13 % more than this network has."""
    found, mine = cost(SPACE.arch(mixed(name))), count(mixed(name))
    assert (found.flops, found.params) == (mine.macs, mine.params)
    assert f"{found.flops / 1e6:.1f}" == mflops and f"{(found.params - mine.norms) / 1e6:.3f}" == params


def test_the_ends_of_that_table_are_right_without_batch_norm():
    """Its rows min 203 M / 8.9 M and max 1939 M / 23.3 M contradict its own A0 row."""
    for name, mflops, params in (("min", 203, "8.92"), ("max", 1939, "23.30")):
        mine = count(TABLE[name])
        assert round(mine.macs / 1e6) == mflops and f"{(mine.params - mine.norms) / 1e6:.2f}" == params


def test_mmrazors_rows():
    """A0 is 212 M under its rule, 8.954 M parameters (it prints 8.854); A6's 927 M are those of a file with other widths.

    Its hooks see modules only, hence not the pools of the shortcuts, which the rule counts as pools: 0.76 M in A6.
    """
    a0 = cost(published("attentive_a0"), "mmrazor")
    assert round(a0.flops / 1e6) == round((a0.flops - count(TABLE["a0"]).pools) / 1e6) == 212
    assert f"{a0.params / 1e6:.3f}" == "8.954"
    wrong = {**TABLE["a6"], "width": [16, 24, 32, 40, 72, 128, 216, 224, 1984]}
    found = cost(SPACE.arch(wrong), "mmrazor")
    assert (round((found.flops - count(wrong).pools) / 1e6), f"{found.params / 1e6:.3f}") == (927, "15.594")
    assert round(found.flops / 1e6) == 928
    assert round(cost(SPACE.arch(wrong)).flops / 1e6) == 897
    assert round(cost(published("attentive_a6"), "mmrazor").flops / 1e6) == 734


def test_mmrazors_a3_and_a5_are_other_networks():
    """A3's file swaps two kernels, A5's has two widths of neighbours: as many blocks, other costs than the official rows."""
    a3 = {**TABLE["a3"], "kernel": [3, 3, 3, 3, 5, 3, 3]}
    a5 = {**TABLE["a5"], "width": [16, 16, 24, 32, 64, 112, 192, 224, 1792]}
    for name, changed, macs, params in (("a3", a3, 357_321_216, 12_789_024), ("a5", a5, 485_108_736, 12_676_880)):
        found, mine = cost(SPACE.arch(changed)), count(changed)
        assert (found.flops, found.params) == (mine.macs, mine.params) == (macs, params)
        assert found != cost(published(f"attentive_{name}"))


def test_idle_shortcuts_of_the_official_supernet():
    """It has a 1x1 in all 37 blocks: 0.53 M numbers in the largest network that nothing can use; ours has seven."""
    table, largest = TABLE["max"], cost(published("attentive_max")).params
    idle = sum(width**2 * (depth - 1) for width, depth in zip(table["width"][1:8], table["depth"], strict=True))
    equal = 24**2  # the first block of the first stage, whose widths are equal in the largest network
    assert f"{(largest + idle + equal) / 1e6:.2f}" == "23.93"
    shortcuts = [name for name, (_, op) in supernet_ops(SPACE).items() if getattr(op, "project", False)]
    assert shortcuts == [f"stage{stage}.block1" for stage in range(1, 8)]
