"""Official PyTorch weights: the exact keys, the same function, and readers that trust nothing."""

import hashlib
import json
import pickle
import random
import sys
import zipfile

import numpy as np
import pytest
from mxnet import nd

from oneshot_nas.arch import get_space, space_of
from oneshot_nas.data.images import Preprocessing
from oneshot_nas.errors import UserError
from oneshot_nas.export import state as state_module
from oneshot_nas.export.convert import check_format, read_network, write_network
from oneshot_nas.export.megvii import from_megvii, megvii_keys, to_megvii
from oneshot_nas.export.state import read_state, write_state
from oneshot_nas.model_zoo import get_model, published
from oneshot_nas.nets.fixed import fixed_network
from oneshot_nas.values import MAX_LISTED

SPACE = get_space("spos_shufflenet", classes=10, input_size=32, classifier_bias=False)
# sha256 of the sorted lines "key<TAB>[shape]" of the official network's state dict for the paper's architecture
OFFICIAL_KEYS = "da8f2473aa71291e7c45f7542c3e47a2fd295e0c632237fe7e3b65d6fbf1f478"


def state_of(arch, seed=0):
    """A random official state dict."""
    rng = np.random.default_rng(seed)
    state = {}
    for key, (_, shape) in megvii_keys(arch).items():
        if key.endswith("running_var"):
            state[key] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        elif len(shape) == 1:
            state[key] = rng.normal(0.3, 0.5, shape).astype(np.float32)
        else:
            state[key] = (rng.normal(size=shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)
    return state


# The official network once more, from its state dict, in float64 NumPy: nothing here comes from our plan.


def convolve(x, weight, stride=1):
    images, channels = x.shape[:2]
    out, inner, k, _ = weight.shape
    groups, pad = channels // inner, k // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (1, 1, k, k))[:, :, :, :, 0, 0][:, :, ::stride, ::stride]
    windows = windows.reshape(images, groups, inner, *windows.shape[2:])
    weight = weight.astype(np.float64).reshape(groups, out // groups, inner, k, k)
    result = np.einsum("ngihwab,goiab->ngohw", windows, weight, optimize=True)
    return result.reshape(images, out, *result.shape[3:])


def norm(x, state, key):
    gamma, beta, mean, var = (
        state[f"{key}.{name}"].astype(np.float64)[:, None, None] for name in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * gamma + beta


def sequential(x, state, prefix, pattern, stride):
    """A torch Sequential: c conv, d strided depthwise conv (the first 'd' has the stride), b BatchNorm, r ReLU, by position."""
    for index, letter in enumerate(pattern):
        key = f"{prefix}.{index}"
        if letter in "cd":
            x = convolve(x, state[f"{key}.weight"], stride if letter == "d" else 1)
            stride = 1 if letter == "d" else stride
        else:
            x = norm(x, state, key) if letter == "b" else np.maximum(x, 0)
    return x


def channel_shuffle(x):
    """Verbatim from the official blocks.py: reshape (N C/2, 2, HW), permute (1, 0, 2), reshape (2, N, C/2, H, W)."""
    images, channels, height, width = x.shape
    assert channels % 4 == 0
    x = x.reshape(images * channels // 2, 2, height * width).transpose(1, 0, 2)
    x = x.reshape(2, -1, channels // 2, height, width)
    return x[0], x[1]


def official(x, state, blocks):
    x = np.maximum(norm(convolve(x, state["first_conv.0.weight"], 2), state, "first_conv.1"), 0)
    for index, block in enumerate(blocks):
        stride = 2 if index in (0, 4, 8, 16) else 1
        project, main = channel_shuffle(x) if stride == 1 else (x, x)
        if stride == 2:
            project = sequential(project, state, f"features.{index}.branch_proj", "dbcbr", 2)
        pattern = "dbcbrdbcbrdbcbr" if block == "xception" else "cbrdbcbr"
        x = np.concatenate([project, sequential(main, state, f"features.{index}.branch_main", pattern, stride)], axis=1)
    x = np.maximum(norm(convolve(x, state["conv_last.0.weight"]), state, "conv_last.1"), 0)
    return x.mean(axis=(2, 3)) @ state["classifier.0.weight"].astype(np.float64).T


@pytest.mark.parametrize("case", ["paper", "xception first", "random"])
def test_converted_weights_compute_the_official_network(case, tmp_path):
    arch = SPACE.arch(published("oneshot").choices) if case == "paper" else SPACE.sample(random.Random(1))
    if case == "xception first":  # at stride 2 as well as at stride 1
        arch = SPACE.arch({**arch.choices, "block": ["xception"] * 20})
    state = state_of(arch)
    path = tmp_path / "net.params"
    write_network(path, from_megvii(state, arch), arch, "megvii-spos")
    net = fixed_network(arch)
    net.load_parameters(str(path))
    x = np.random.default_rng(1).normal(size=(2, 3, 32, 32)).astype(np.float32)
    wanted = official(x.astype(np.float64), state, arch.choices["block"])
    assert np.abs(net(nd.array(x)).asnumpy() - wanted).max() < 1e-4 * wanted.std()


def test_keys_and_shapes_are_the_official_ones():
    arch = published("oneshot")
    state = to_megvii({ours: np.zeros(shape, np.float32) for ours, shape in megvii_keys(arch).values()}, arch)
    lines = sorted(f"{key}\t{list(array.shape)}" for key, array in state.items())
    for line in (
        "first_conv.0.weight\t[16, 3, 3, 3]",
        "features.2.branch_main.12.weight\t[32, 25, 1, 1]",
        "features.16.branch_proj.3.num_batches_tracked\t[]",
        "conv_last.0.weight\t[1024, 640, 1, 1]",
        "classifier.0.weight\t[1000, 1024]",
    ):
        assert line in lines
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == OFFICIAL_KEYS


def test_there_and_back_again(tmp_path):
    arch = SPACE.sample(random.Random(2))
    state = state_of(arch)
    for suffix in (".npz", ".safetensors"):
        counted = to_megvii(from_megvii(state, arch), arch)
        write_state(tmp_path / f"w{suffix}", counted)
        again = read_state(tmp_path / f"w{suffix}")
        assert set(again) == set(counted) and all(np.array_equal(again[key], counted[key]) for key in counted)
        assert all(np.array_equal(again[key], state[key]) for key in state)
        write_network(tmp_path / "n.params", from_megvii(again, arch), arch, "megvii-spos")
        back = to_megvii(read_network(tmp_path / "n.params"), arch)
        assert all(np.array_equal(back[key], state[key]) for key in state)
    about = json.loads((tmp_path / "n.params.json").read_text())
    assert about["kind"] == "network" and about["arch"] == arch.to_json()
    wanted = Preprocessing(224, 0.875, (0, 0, 0), (1, 1, 1), channels="BGR")  # one that the loaders understand
    assert Preprocessing.from_json(about["preprocessing"]) == wanted


def test_other_forms_of_the_same_weights():
    arch = SPACE.sample(random.Random(3))
    state = state_of(arch)
    wanted = from_megvii(state, arch)
    for same in (
        {f"module.{key}": array for key, array in state.items()},
        {key: array.astype(np.float64) for key, array in state.items()},
        {**state, "first_conv.1.num_batches_tracked": np.int64(7)},
    ):
        assert all(np.array_equal(array, wanted[name]) for name, array in from_megvii(same, arch).items())


def test_weights_that_do_not_fit():
    arch = SPACE.sample(random.Random(4))
    state = state_of(arch)
    first = "first_conv.0.weight"

    def refused(changes, message):
        changed = {key: array for key, array in {**state, **changes}.items() if array is not None}
        with pytest.raises(UserError, match=message):
            from_megvii(changed, arch)

    refused({first: None}, r"1 missing: first_conv.0.weight \(16, 3, 3, 3\)$")
    refused({"fc.weight": np.zeros((2, 2))}, r"1 unknown: fc.weight \(2, 2\)")
    refused({first: np.zeros((16, 3, 5, 5))}, r"1 wrong: first_conv.0.weight is \(16, 3, 5, 5\) instead of \(16, 3, 3, 3\)")
    refused({first: np.full((16, 3, 3, 3), np.nan)}, "first_conv.0.weight holds NaN or infinity")
    refused(
        {first: np.zeros((16, 3, 3, 3), np.int32)}, "first_conv.0.weight does not hold floating-point numbers but int32"
    )
    refused(dict.fromkeys(state), rf"{len(state)} missing: .* and {len(state) - MAX_LISTED} more$")
    with pytest.raises(UserError, match=r"missing: .*unknown: .*wrong: "):
        other = SPACE.arch(
            {**arch.choices, "block": ["shuffle7" if b == "xception" else "xception" for b in arch.choices["block"]]}
        )
        from_megvii(state, other)


@pytest.mark.parametrize(
    "options,message",
    [
        (
            {"classifier_bias": True},
            "option 'classifier_bias' = True, the official network has false; .* --option classifier_bias=false",
        ),
        ({"se": True}, "option 'se' = True, the official network has false"),
        ({"layout": "mmrazor"}, "option 'layout' = mmrazor, the official network has oneshot or shufflenetv2+"),
        ({"tail": "pooled"}, "option 'tail' = pooled, the official network has conv"),
    ],
)
def test_architectures_that_the_official_code_has_not(options, message):
    with pytest.raises(UserError, match=message):
        megvii_keys(published("oneshot", **options))


def test_unknown_format():
    with pytest.raises(UserError, match=r"format 'detnas' cannot be converted .yet.; the formats are \('megvii-spos', "):
        check_format("detnas")


def test_broken_files(tmp_path, monkeypatch):
    def refused(name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_state(tmp_path / name)

    np.savez(tmp_path / "whole.npz", **state_of(SPACE.smallest()))
    whole = (tmp_path / "whole.npz").read_bytes()
    refused("cut.npz", whole[:1000], "cut.npz is not an .npz file of plain arrays")
    refused("flipped.npz", whole[:2000] + bytes(50) + whole[2050:], "flipped.npz is not an .npz file of plain arrays")
    refused("text.npz", b"hello", "text.npz is not an .npz file")
    refused("empty.npz", b"", "empty.npz is not an .npz file")
    refused("cut.safetensors", b"\xff" * 100, "cut.safetensors is not a safetensors file")
    refused("weights.bin", b"", "weights.bin is none of .npz, .safetensors, .pth.tar, .pth, .pt")
    with pytest.raises(UserError, match="no weights at .*none.npz"):
        read_state(tmp_path / "none.npz")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="objects.npz is not an .npz file of plain arrays: Object arrays cannot be loaded"):
        read_state(tmp_path / "objects.npz")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(2**20))
    monkeypatch.setattr(state_module, "MAX_BYTES", 2**20 - 1)
    with pytest.raises(UserError, match="bomb.npz unpacks to more than"):
        read_state(tmp_path / "bomb.npz")
    with pytest.raises(UserError, match="must end in .npz or .safetensors"):
        write_state(tmp_path / "x.pth", {})


def test_torch_files_are_never_unpickled_here(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pth.tar").write_bytes(pickle.dumps({}))
    with pytest.raises(
        UserError, match="torch is not installed here; where it is, run python -c .*weights_only=True.*numpy.savez"
    ):
        read_state(tmp_path / "w.pth.tar")


def test_torch_files_through_torch(tmp_path, monkeypatch):
    """With torch, its weights-only loading is asked; a stand-in is enough to see what is asked for."""
    state, asked = state_of(SPACE.smallest()), {}

    class Tensor:
        def __init__(self, array):
            self.array = array

        def numpy(self):
            return self.array

    class Torch:
        @staticmethod
        def load(path, **arguments):
            asked.update(arguments)
            return {"state_dict": {f"module.{key}": Tensor(array) for key, array in state.items()}}

    monkeypatch.setitem(sys.modules, "torch", Torch)
    (tmp_path / "w.pth").write_bytes(b"")
    again = from_megvii(read_state(tmp_path / "w.pth"), SPACE.smallest())
    assert asked == {"map_location": "cpu", "weights_only": True}
    assert all(np.array_equal(array, again[name]) for name, array in from_megvii(state, SPACE.smallest()).items())


def test_params_of_another_kind_are_refused(tmp_path):
    arch = SPACE.smallest()
    write_network(tmp_path / "n.params", from_megvii(state_of(arch), arch), arch, "megvii-spos")
    about = tmp_path / "n.params.json"
    about.write_text(about.read_text().replace('"network"', '"supernet"'))
    with pytest.raises(UserError, match="is of kind 'supernet', expected 'network'"):
        read_network(tmp_path / "n.params")
    with pytest.raises(UserError, match="no parameter file at"):
        read_network(tmp_path / "none.params")


def test_get_model_takes_what_convert_wrote(tmp_path):
    arch = published("oneshot", classes=10)
    write_network(tmp_path / "oneshot.params", from_megvii(state_of(arch), arch), arch, "megvii-spos")
    net = get_model("oneshot", pretrained=True, root=str(tmp_path), classes=10)
    assert space_of(net.arch).check(arch) == arch
    assert np.array_equal(net.blocks()[0][1].parameter("conv.weight").data().asnumpy(), state_of(arch)["first_conv.0.weight"])
