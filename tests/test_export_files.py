"""Exported files: round trips of a network of all exportable operators, honest verification, broken and foreign files."""

import errno
import hashlib
import json
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import onnx
import pytest
import tiny
from mxnet.gluon import HybridBlock, SymbolBlock, nn

from oneshot_nas.arch import get_space
from oneshot_nas.errors import UserError, WorkError
from oneshot_nas.export.onnx import export_onnx, read_onnx
from oneshot_nas.export.symbol import SymbolFiles, export_symbol, load_symbol, read_back_symbol
from oneshot_nas.export.verify import (
    compare,
    onnx_reader,
    random_images,
    randomised,
    symbol_reader,
    verify_onnx,
    verify_symbol,
)
from oneshot_nas.nets.fixed import fixed_network

SHAPE = (1, 3, 16, 16)
PREPROCESSING = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size": 16}


class Everything(HybridBlock):
    """One of each operator that our networks use: stem, shuffle by reshape_like, even/odd split, SE, h-swish, dense."""

    def __init__(self, **kwargs):
        super().__init__(prefix="net_", **kwargs)
        with self.name_scope():
            self.stem = nn.Conv2D(8, 3, 2, 1, use_bias=False)
            self.norm = nn.BatchNorm()
            self.depthwise = nn.Conv2D(4, 5, 1, 2, groups=4, in_channels=4, use_bias=False)
            self.plain_norm = nn.BatchNorm(scale=False)
            self.grouped = nn.Conv2D(4, 3, 1, 1, groups=2, in_channels=4)
            self.squeeze = nn.Conv2D(4, 1)
            self.excite = nn.Conv2D(8, 1)
            self.dropout = nn.Dropout(0.1)
            self.hidden = self.params.get("hidden", shape=(12, 8))
            self.classifier = nn.Dense(5)

    def hybrid_forward(self, F, x, hidden):
        x = F.Activation(self.norm(self.stem(x)), act_type="relu")
        pairs = F.reshape(x, (0, 4, 2, -1))
        template = F.slice_axis(x, axis=1, begin=4, end=None)
        even, odd = (F.reshape_like(F.slice_axis(pairs, axis=2, begin=g, end=g + 1), template) for g in (0, 1))
        even = F.concat(*F.split(even, 2, axis=1), dim=1)
        x = F.concat(even, self.grouped(F.clip(self.plain_norm(self.depthwise(odd)), 0, 6)), dim=1)
        x = F.reshape_like(F.transpose(F.reshape(x, (0, 2, 4, -1)), (0, 2, 1, 3)), x)
        gate = F.Pooling(x, kernel=(1, 1), global_pool=True, pool_type="avg")
        x = F.broadcast_mul(x, F.hard_sigmoid(self.excite(F.relu(self.squeeze(gate))), alpha=1 / 6))
        x = x * F.clip(x + 3, 0, 6) / 6
        x = sum(F.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type=kind) for kind in ("max", "avg"))
        x = F.Flatten(self.dropout(F.Pooling(x, kernel=(1, 1), global_pool=True, pool_type="avg")))
        return self.classifier(F.FullyConnected(x, hidden, num_hidden=12, no_bias=True))


class Function(HybridBlock):
    """A dense layer after a function of one's choice; `flatten` is left to MXNet's default."""

    def __init__(self, function, prefix="net_"):
        super().__init__(prefix=prefix)
        self.function = function
        with self.name_scope():
            self.weight = self.params.get("weight", shape=(4, 768))

    def hybrid_forward(self, F, x, weight):
        return F.FullyConnected(self.function(F, x), weight, num_hidden=4, no_bias=True)


def ready(net: HybridBlock) -> HybridBlock:
    mx.random.seed(7)
    net.initialize(mx.init.Xavier())
    return net


@pytest.fixture
def net() -> HybridBlock:
    return ready(Everything())


def digest(net: HybridBlock) -> str:
    arrays = [parameter.data().asnumpy().tobytes() for parameter in net.collect_params().values()]
    return hashlib.sha256(b"".join(arrays)).hexdigest()


def images(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, *SHAPE[1:]), dtype=np.float32)


@pytest.mark.parametrize("hybrid", [False, True])
def test_symbol_round_trip(net, tmp_path, hybrid):
    net.hybridize(hybrid)
    files = export_symbol(net, tmp_path / "out", "small", SHAPE, {"preprocessing": PREPROCESSING})
    assert files == SymbolFiles(tmp_path / "out/small-symbol.json", tmp_path / "out/small-0000.params")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "small-0000.params", "small-0000.params.json", "small-symbol.json"]
    about = json.loads((tmp_path / "out/small-0000.params.json").read_text())
    assert (about["kind"], about["input_shape"], about["preprocessing"]) == ("exported-params", [1, 3, 16, 16], PREPROCESSING)

    x = mx.nd.array(images(3))
    with pytest.warns(UserWarning, match="Cannot decide type"):  # MXNet's own, for every symbol file
        plain = SymbolBlock.imports(str(files.symbol), ["data"], str(files.params))
    assert np.array_equal(plain(x).asnumpy(), net(x).asnumpy())
    assert np.array_equal(read_back_symbol(files)(x).asnumpy(), net(x).asnumpy())
    for name, parameter in net.collect_params().items():
        assert np.array_equal(plain.collect_params()[name].data().asnumpy(), parameter.data().asnumpy()), name


def test_the_same_weights_give_the_same_bytes_and_the_network_is_left_alone(net, tmp_path):
    net(mx.nd.zeros(SHAPE)).wait_to_read()
    before = digest(net)
    for folder in ("a", "b"):
        export_symbol(net, tmp_path / folder, "small", SHAPE)
        export_onnx(net, tmp_path / folder / "small.onnx", SHAPE, notes={"arch": {"space": "x"}})
    assert len(list((tmp_path / "a").iterdir())) == 4
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert digest(net) == before


def test_onnx_file_runs_any_batch_and_records_its_origin(net, tmp_path):
    path = export_onnx(net, tmp_path / "small.onnx", SHAPE, notes={"preprocessing": PREPROCESSING, "arch": {"space": "toy"}})
    session = read_onnx(path)
    for batch in (1, 2, 5):
        found = session.run(["logits"], {"data": images(batch)})[0]
        assert np.abs(found - net(mx.nd.array(images(batch))).asnumpy()).max() < 1e-6
    model = onnx.load(str(path))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]
    assert model.ir_version == 8
    assert {prop.key: json.loads(prop.value) for prop in model.metadata_props} == {
        "preprocessing": PREPROCESSING, "arch": {"space": "toy"}}

    def dims(value):
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    assert [(value.name, dims(value)) for value in model.graph.input] == [("data", ["N", 3, 16, 16])]
    assert [(value.name, dims(value)) for value in model.graph.output] == [("logits", ["N", 5])]


def test_onnx_from_symbol_files_is_the_same_file(net, tmp_path):
    files = export_symbol(net, tmp_path, "small", SHAPE)
    export_onnx(files, tmp_path / "a.onnx", SHAPE)
    export_onnx(net, tmp_path / "b.onnx", SHAPE)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_layer_called_logits_is_not_confused_with_the_output(tmp_path):
    net = ready(Function(lambda F, x: F.relu(F.sigmoid(x, name="logits")), prefix=""))
    path = export_onnx(net, tmp_path / "x.onnx", SHAPE)
    verify_onnx(net, path, SHAPE)
    assert "logits" in load_symbol(export_symbol(net, tmp_path, "x", SHAPE).symbol).get_internals()["logits_output"].name


def test_names_do_not_depend_on_what_was_traced_before(tmp_path):
    net = ready(Function(lambda F, x: F.relu(F.sigmoid(x)), prefix=""))
    for name in ("a", "b"):
        export_symbol(net, tmp_path, name, SHAPE)
    assert (tmp_path / "a-symbol.json").read_bytes() == (tmp_path / "b-symbol.json").read_bytes()


def test_verification_measures_real_and_randomised_weights(net, tmp_path):
    files = export_symbol(net, tmp_path, "small", SHAPE)
    path = export_onnx(net, tmp_path / "small.onnx", SHAPE)
    before = digest(net)
    found = [*verify_symbol(net, files, SHAPE), *verify_onnx(net, path, SHAPE)]
    assert digest(net) == before
    assert [(d.file, d.weights, d.batch) for d in found] == [
        (file, weights, batch) for file in ("small-symbol.json", "small.onnx") for weights in ("real", "randomised")
        for batch in (1, 3)]
    for difference in found:
        assert difference.max_abs_diff <= 1e-5 * difference.std
        assert difference.weights == "real" or difference.std > 0.1
        assert f"max abs diff {difference.max_abs_diff:.3g}" in str(difference)
    assert read_onnx(path).run(["logits"], {"data": images(1)})[0].shape == (1, 5)


def test_randomised_reaches_every_parameter_and_restores_it_after_a_failure(net):
    net(mx.nd.zeros(SHAPE)).wait_to_read()
    before = {name: p.data().asnumpy() for name, p in net.collect_params().items()}
    with pytest.raises(ZeroDivisionError), randomised(net, SHAPE, seed=1):
        for name, parameter in net.collect_params().items():
            values = parameter.data().asnumpy()
            if name != "net_batchnorm1_gamma":  # fixed at 1
                assert not np.isin(values, before[name]).any(), name
            assert "var" not in name or values.min() > 0
        raise ZeroDivisionError
    for name, parameter in net.collect_params().items():
        assert np.array_equal(parameter.data().asnumpy(), before[name]), name


def test_randomised_weights_do_not_blow_rounding_up_in_deep_networks():
    """Else a correct file of such a network is refused: 37 blocks with swish and squeeze-and-excite."""
    space = get_space("attentive_mobilenet", classes=10, input_size=96, resolutions=[96])
    deep = ready(fixed_network(space.largest()))
    shape = (3, 3, 96, 96)
    deep(mx.nd.zeros(shape)).wait_to_read()
    batch = random_images(shape, 0)
    with randomised(deep, (1, *shape[1:])):
        outputs = deep(mx.nd.array(batch)).asnumpy()
        others = deep(mx.nd.array(np.nextafter(batch, np.float32(9)))).asnumpy()
        assert 0 < np.abs(outputs - others).max() < 2e-5 * outputs.std()


def tamper(path: Path, change) -> None:
    model = onnx.load(str(path))
    change(model.graph)
    onnx.save(model, str(path))


def test_verification_refuses_a_file_that_is_not_the_network(net, tmp_path):
    path = export_onnx(net, tmp_path / "small.onnx", SHAPE)
    tamper(path, lambda graph: next(n for n in graph.node if n.op_type == "BatchNormalization").attribute[0].CopyFrom(
        onnx.helper.make_attribute("epsilon", 2e-3)))
    with pytest.raises(WorkError, match=r"small.onnx, real weights, batch 1: max abs diff .* is not the network"):
        verify_onnx(net, path, SHAPE)
    tamper(path, lambda graph: graph.output[0].type.tensor_type.shape.dim[1].ClearField("dim_value"))
    tamper(path, lambda graph: graph.initializer.remove(graph.initializer[0]))
    with pytest.raises(UserError, match="small.onnx is not a model that onnxruntime can run"):
        verify_onnx(net, path, SHAPE)


def test_verification_refuses_symbol_files_of_other_weights(net, tmp_path):
    files = export_symbol(net, tmp_path, "small", SHAPE)
    with randomised(net, SHAPE), pytest.raises(WorkError, match="small-symbol.json, real weights"):
        verify_symbol(net, files, SHAPE)


def test_a_file_that_does_not_run_is_a_work_error(net, tmp_path):
    path = export_onnx(net, tmp_path / "x.onnx", SHAPE)
    tamper(path, lambda graph: graph.input[0].type.tensor_type.shape.dim[0].CopyFrom(
        onnx.TensorShapeProto.Dimension(dim_value=1)))
    assert compare(net, onnx_reader(path), SHAPE, 0).max_abs_diff < 1e-5
    with pytest.raises(WorkError, match=r"x.onnx does not run on images of shape \(3, 3, 16, 16\)"):
        verify_onnx(net, path, SHAPE)


def test_a_batch_size_that_is_baked_in_is_refused(tmp_path):
    net = ready(Function(lambda F, x: F.reshape(x, (1, 3, 256))))
    for export in (lambda: export_symbol(net, tmp_path, "x", SHAPE), lambda: export_onnx(net, tmp_path / "x.onnx", SHAPE)):
        with pytest.raises(UserError, match=r"3 images give outputs of shape \(1, 4\), expected one row for each image"):
            export()


def test_verification_refuses_to_prove_nothing(tmp_path):
    net = ready(Function(lambda F, x: F.zeros_like(x)))
    with pytest.raises(WorkError, match="hardly depend on the image"):
        verify_symbol(net, export_symbol(net, tmp_path, "x", SHAPE), SHAPE)


@pytest.mark.parametrize("steepness", [1.0, 1000.0])
def test_weights_that_blow_rounding_up_are_allowed_what_rounding_does_and_no_more(steepness):
    net = ready(Function(lambda F, x: F.sin(steepness * x)))

    def off_by(share):
        def reader(images):
            outputs = net(mx.nd.array(images)).asnumpy()
            return outputs + np.float32(share * outputs.std())
        return reader

    assert compare(net, off_by(5e-5), SHAPE, 0).unit == 0
    if steepness > 1:
        found = compare(net, off_by(1e-3), SHAPE, 0)
        assert found.unit > 0 and "one unit in the last place of the images moves them" in str(found)
    else:
        with pytest.raises(WorkError, match="the file is not the network"):
            compare(net, off_by(1e-3), SHAPE, 0)
    with pytest.raises(WorkError, match="the file is not the network"):
        compare(net, off_by(0.02), SHAPE, 0)
    with pytest.raises(WorkError, match="the file is not the network"):  # random weights are chosen not to blow it up
        compare(net, off_by(1e-3), SHAPE, 0, weights="randomised")


def test_not_a_number_is_no_agreement(net, tmp_path):
    with pytest.raises(WorkError, match="max abs diff nan"):
        compare(net, lambda batch: np.full((1, 5), np.nan, np.float32), SHAPE, 0, "x.onnx")


def test_operators_without_a_converter_are_listed_by_layer_before_anything_is_written(tmp_path):
    net = ready(Function(lambda F, x: F.sort(F.sort(F.arcsinh(x, name="strange"), name="first"), name="second")))
    with pytest.raises(UserError, match=r"'arcsinh' \(layers net_strange\).*'sort' \(layers net_first, net_second\)"):
        export_onnx(net, tmp_path / "x.onnx", SHAPE)
    assert not list(tmp_path.iterdir())


def test_reshape_codes_are_named_and_the_exporters_surroundings_restored(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"previous")
    version, mapping = onnx.defs.onnx_opset_version, onnx.mapping
    net = ready(Function(lambda F, x: F.reshape(x, (0, -4, 3, -1, -2), name="fold")))
    with pytest.raises(UserError, match=r"use reshape_like \(layers net_fold shape=\(0, -4, 3, -1, -2\)\)"):
        export_onnx(net, tmp_path / "x.onnx", SHAPE)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"previous"]
    assert (onnx.defs.onnx_opset_version, onnx.mapping) == (version, mapping)


def test_exporter_sees_opset_13_during_the_call_only(net, tmp_path, monkeypatch):
    seen, export = [], mx.onnx.export_model

    def spy(*args, **options):
        seen.append(onnx.defs.onnx_opset_version())
        return export(*args, **options)

    monkeypatch.setattr(mx.onnx, "export_model", spy)
    export_onnx(net, tmp_path / "a.onnx", SHAPE)
    assert seen == [13]
    assert onnx.defs.onnx_opset_version() > 13


def test_newer_onnx_without_mapping_works_and_stays_without(net, tmp_path, monkeypatch):
    export_onnx(net, tmp_path / "a.onnx", SHAPE)
    monkeypatch.delattr(onnx, "mapping")
    monkeypatch.setitem(sys.modules, "onnx.mapping", None)
    export_onnx(net, tmp_path / "b.onnx", SHAPE)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert not hasattr(onnx, "mapping")
    assert sys.modules["onnx.mapping"] is None


@pytest.mark.parametrize("module", ["onnx", "onnxruntime"])
def test_missing_extra_says_what_to_install(net, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"'{module}', which is not installed; pip install .* -e '.\[onnx\]' in the checkout"):
        read_onnx(export_onnx(net, tmp_path / "x.onnx", SHAPE))


def test_gamma_that_is_held_at_one_is_one_in_onnx(tmp_path):
    net = nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(nn.BatchNorm(scale=False, gamma_initializer=mx.init.Constant(3), in_channels=3), nn.Dense(3, in_units=768))
    ready(net)  # its first forward pass will write 1 into gamma, so it must be exported before
    found = verify_onnx(net, export_onnx(net, tmp_path / "x.onnx", SHAPE), SHAPE)
    assert found and all(difference.max_abs_diff <= 1e-5 * difference.std for difference in found)


@pytest.mark.parametrize(("net", "message"), [
    (nn.Dense(3), "cannot be exported: .*not been initialized"),
    (nn.Sequential(), "only a HybridBlock"),
])  # fmt: skip
def test_networks_that_cannot_be_exported(net, message, tmp_path):
    with pytest.raises(UserError, match=message):
        export_symbol(net, tmp_path, "x", SHAPE)


def test_networks_of_several_outputs_and_bad_shapes_are_refused(net, tmp_path):
    class Two(HybridBlock):
        def hybrid_forward(self, F, x):
            return x, x

    with pytest.raises(UserError, match="exactly one output"):
        export_symbol(Two(), tmp_path, "x", SHAPE)
    with pytest.raises(UserError, match="batch,channels,height,width"):
        export_symbol(net, tmp_path, "x", (3, 16, 16))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cannot be exported|does not"):
        export_symbol(ready(nn.Conv2D(4, 3, in_channels=5, prefix="c_")), tmp_path, "x", (1, 3, 2, 2))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_a_work_error_and_keeps_the_previous_files(net, tmp_path, monkeypatch):
    export_onnx(net, tmp_path / "x.onnx", SHAPE)
    export_symbol(net, tmp_path, "x", SHAPE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    net.collect_params()["net_dense0_bias"].set_data(mx.nd.ones(5))
    monkeypatch.setattr("os.replace", full)
    for export in (lambda: export_symbol(net, tmp_path, "x", SHAPE), lambda: export_onnx(net, tmp_path / "x.onnx", SHAPE)):
        with pytest.raises(WorkError, match="cannot write .*No space left"):
            export()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_disk_that_takes_all_but_the_last_byte_keeps_the_previous_files(net, tmp_path):
    """MXNet takes no notice of it: the file is read back before it takes its place."""
    export_symbol(net, tmp_path, "x", SHAPE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    net.collect_params()["net_dense0_bias"].set_data(mx.nd.ones(5))
    with tiny.files_of_at_most(len(before["x-0000.params"]) - 1), pytest.raises(WorkError, match="cannot write .*x-0000.params"):
        export_symbol(net, tmp_path, "x", SHAPE)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("name", "content", "message"), [
    ("small-symbol.json", None, "cannot read symbol file"),
    ("small-symbol.json", b"{}", "no list of nodes"),
    ("small-0000.params", None, "no parameter file"),
    ("small-0000.params", b"", "does not hold the parameters"),
    ("small-0000.params", b"garbage" * 40, "does not hold the parameters"),
    ("small-0000.params", "truncate", "does not hold the parameters"),
    ("small-0000.params", "foreign", "does not hold the parameters"),
    ("small-0000.params.json", b'{"kind": "supernet", "version": 1}', "is of kind 'supernet', expected 'exported-params'"),
])  # fmt: skip
def test_broken_symbol_files(net, tmp_path, name, content, message):
    files = export_symbol(net, tmp_path, "small", SHAPE)
    path = tmp_path / name
    if content is None:
        path.unlink()
    elif content == "truncate":
        path.write_bytes(path.read_bytes()[:-100])
    elif content == "foreign":
        mx.nd.save(str(path), {"arg:other_weight": mx.nd.ones((3, 4))})
    else:
        path.write_bytes(content)
    for read in (read_back_symbol, lambda files: export_onnx(files, tmp_path / "x.onnx", SHAPE)):
        with pytest.raises(UserError, match=message) as caught:
            read(files)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 40, "truncate"])
def test_broken_onnx_files(net, tmp_path, content):
    path = export_onnx(net, tmp_path / "x.onnx", SHAPE)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-300] if content == "truncate" else content)
    with pytest.raises(UserError, match=r"x.onnx") as caught:
        read_onnx(path)
    assert "\n" not in str(caught.value)


def test_files_of_gluon_itself_are_read(net, tmp_path):
    net.hybridize()
    x = mx.nd.array(images(2))
    expected = net(x).asnumpy()
    net.export(str(tmp_path / "plain"))
    files = SymbolFiles(tmp_path / "plain-symbol.json", tmp_path / "plain-0000.params")
    assert np.array_equal(symbol_reader(files)(images(2)), expected)
    assert load_symbol(files.symbol).list_arguments()[0] == "data"
