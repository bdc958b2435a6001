"""The bicubic resize against NumPy in float64 and OpenCV, and networks exported with it inside and outside."""

import json
import logging
import random

import cv2
import mxnet as mx
import numpy as np
import pytest
from mxnet import nd

from oneshot_nas.arch import get_space
from oneshot_nas.blocks.resize import resize
from oneshot_nas.cli.main import run
from oneshot_nas.data.images import Preprocessing
from oneshot_nas.errors import UserError, WorkError
from oneshot_nas.export.deliver import Delivery, deliver, resize_outside
from oneshot_nas.export.onnx import read_onnx
from oneshot_nas.export.symbol import SymbolFiles, read_back_symbol
from oneshot_nas.nets.fixed import fixed_network, without_resize
from oneshot_nas.nets.supernet import Supernet

PAIRS = [(224, 192), (224, 256), (224, 288), (160, 128), (225, 200), (32, 28), (9, 31), (31, 9), (3, 5)]
SPACE = get_space("attentive_mobilenet", layout="small", input_size=32, classes=10)


def keys(t, a):
    """Keys' kernel."""
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def matrix(source, size, a=-0.75):
    """(size, source) in float64, tap by tap: four taps around (i + 1/2) source / size - 1/2, those outside on the border."""
    rows = np.zeros((size, source))
    for i in range(size):
        place = (i + 0.5) * source / size - 0.5
        for tap in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            rows[i, min(max(tap, 0), source - 1)] += keys(place - tap, a)
    return rows


@pytest.mark.parametrize("source,size", PAIRS)
def test_resize_is_the_formula_and_what_opencv_does(source, size):
    x = np.random.default_rng(0).normal(size=(2, 3, source, source)).astype(np.float32)
    rows = matrix(source, size)
    assert np.allclose(rows.sum(axis=1), 1, atol=1e-12)
    found, wanted = resize(nd, nd.array(x), source, size).asnumpy(), rows @ x.astype(np.float64) @ rows.T
    assert found.shape == (2, 3, size, size) and np.abs(found - wanted).max() < 2e-6
    seen = cv2.resize(x[0].transpose(1, 2, 0), (size, size), interpolation=cv2.INTER_CUBIC)
    assert np.abs(found[0] - seen.transpose(2, 0, 1)).max() < 2e-4, "OpenCV keeps its weights in float32"


def test_nothing_is_resized_where_the_sizes_agree():
    x = np.random.default_rng(0).normal(size=(2, 3, 24, 24)).astype(np.float32)
    assert np.array_equal(resize(nd, nd.array(x), 24, 24).asnumpy(), x)


def test_the_other_cubic_is_another_function():
    """a = -0.5 (PIL, TensorFlow) differs by far more than the tolerances above, so they tell the two apart."""
    x = np.random.default_rng(0).normal(size=(1, 1, 32, 32)).astype(np.float32)
    rows = matrix(32, 28, a=-0.5)
    assert np.abs(resize(nd, nd.array(x), 32, 28).asnumpy() - rows @ x @ rows.T).max() > 0.05


def network(resolution, seed=0, space=SPACE):
    arch = space.sample(random.Random(seed))
    net = fixed_network(space.arch({**arch.choices, "resolution": [resolution]}))
    net.initialize()
    return Delivery(net, {"arch": net.arch.to_json()}, Preprocessing(32, 1.0))


@pytest.mark.parametrize("resolution", [24, 28])
def test_export_with_the_resize_inside(resolution, tmp_path, caplog, capsys):
    shipped = network(resolution)
    with caplog.at_level(logging.WARNING):
        results = deliver(shipped, tmp_path, ["symbol", "onnx"], "net")
    assert all(result["max_abs_diff"] <= 1e-4 * result["std"] for result in results)
    assert not [record for record in caplog.records if "dot" in record.getMessage()] and capsys.readouterr().out == ""
    assert read_onnx(tmp_path / "net.onnx").get_inputs()[0].shape == ["N", 3, 32, 32]
    about = json.loads((tmp_path / "net-0000.params.json").read_text())
    assert about["preprocessing"] == Preprocessing(32, 1.0).to_json() and about["arch"] == shipped.identity["arch"]


def test_export_with_the_resize_outside(tmp_path):
    inside = network(28)
    outside = resize_outside(inside)
    x = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    wanted, small = inside.net(nd.array(x)).asnumpy(), resize(nd, nd.array(x), 32, 28)
    assert np.abs(outside.net(small).asnumpy() - wanted).max() < 1e-6 * wanted.std()
    assert outside.net.collect_params().keys() == inside.net.collect_params().keys()
    deliver(outside, tmp_path, ["symbol", "onnx"], "net")
    session = read_onnx(tmp_path / "net.onnx")
    assert session.get_inputs()[0].shape == ["N", 3, 28, 28]
    assert np.abs(session.run(["logits"], {"data": small.asnumpy()})[0] - wanted).max() < 1e-4 * wanted.std()
    files = SymbolFiles(tmp_path / "net-symbol.json", tmp_path / "net-0000.params")
    assert np.abs(read_back_symbol(files)(small).asnumpy() - wanted).max() < 1e-4 * wanted.std()
    about = json.loads((tmp_path / "net-0000.params.json").read_text())
    assert about["input_shape"] == [1, 3, 28, 28] and about["arch"]["options"]["input_size"] == 28
    assert about["preprocessing"]["input_size"] == 32, "the crop is still that of the data"
    assert about["preprocessing"]["resize"] == {
        "size": 28, "interpolation": "bicubic", "a": -0.75, "centres": "half-pixel", "borders": "repeated", "antialias": False,
        "after": "crop and normalisation"}  # fmt: skip
    onnx = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])
    assert onnx["resize"] == about["preprocessing"]["resize"]


def test_images_of_another_size_are_refused_by_name():
    net = fixed_network(get_space("attentive_mobilenet", classes=10, input_size=64, resolutions=[52, 64]).smallest())
    net.initialize()
    with pytest.raises(UserError, match="resizes its images itself, from 64x64; it was given 60x64"):
        net(nd.zeros((1, 3, 60, 64)))


def test_a_supernet_refuses_images_of_another_size_too():
    """Also where the architecture resizes nothing: its pools are planned for one size."""
    space = get_space("attentive_mobilenet", classes=10, layout="small", input_size=32)
    net = Supernet(space)
    net.initialize()
    for arch in (space.smallest(), space.largest()):
        for call in (net, net.calm):
            with pytest.raises(UserError, match="resizes its images itself, from 32x32; it was given 28x28"):
                call(nd.zeros((1, 3, 28, 28)), arch)
    shuffle = get_space("spos_shufflenet", classes=10, layout="small", input_size=32)
    plain = Supernet(shuffle)
    plain.initialize()
    assert plain(nd.zeros((1, 3, 28, 28)), shuffle.smallest()).shape == (1, 10)


def test_a_network_of_the_input_size_resizes_nothing_either_way():
    whole = network(32)
    assert resize_outside(whole).input_shape == whole.input_shape == (1, 3, 32, 32)
    graph = whole.net(mx.sym.var("data")).tojson()
    assert '"dot"' not in graph and '"dot"' in network(28).net(mx.sym.var("data")).tojson()


def test_a_space_without_a_resize_is_refused():
    space = get_space("spos_shufflenet", layout="small", input_size=32, classes=10)
    with pytest.raises(UserError, match="a network of space 'spos_shufflenet' has no resize inside, so none can be put outside"):
        without_resize(fixed_network(space.smallest()))


def test_an_unknown_place_is_refused(capsys, tmp_path):
    assert run(["export", "--run", "nowhere", "--out", str(tmp_path), "--resize", "between"]) == 2
    assert "--resize between is none of inside, outside" in capsys.readouterr().err


def test_an_export_that_fails_its_comparison_replaces_nothing(tmp_path, monkeypatch):
    deliver(network(28), tmp_path, ["symbol", "onnx"], "net")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 4

    def refuse(*_):
        raise WorkError("the file is not the network")

    monkeypatch.setattr("oneshot_nas.export.deliver.verify_onnx", refuse)
    with pytest.raises(WorkError, match="is not the network"):
        deliver(network(28, seed=1), tmp_path, ["symbol", "onnx"], "net")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_every_exported_file_says_its_kind(tmp_path):
    deliver(network(28), tmp_path, ["symbol", "onnx"], "net")
    about = json.loads((tmp_path / "net-0000.params.json").read_text())
    notes = read_onnx(tmp_path / "net.onnx").get_modelmeta().custom_metadata_map
    assert (about["kind"], about["version"]) == ("exported-params", 1)
    assert (json.loads(notes["kind"]), json.loads(notes["version"])) == ("exported-onnx", 1)
    assert json.loads(notes["arch"]) == about["arch"]
