"""Costs of symbol graphs: closed forms for every rule, GluonCV networks against hooks, loud unknowns, bad input."""

import ctypes
import json
import subprocess
import sys
import warnings
from math import prod
from pathlib import Path
from unittest.mock import Mock

import mxnet as mx
import pytest
from gluoncv.model_zoo import get_model
from mxnet.gluon import nn

import calculate_flops
from oneshot_nas import get_space
from oneshot_nas.costs import analytic
from oneshot_nas.errors import UserError
from oneshot_nas.export.symbol_flops import COUNTED, IGNORED, RULES, UnknownOperator, count_symbol
from oneshot_nas.nets.fixed import fixed_network

SCRIPT = calculate_flops.__file__


def data() -> mx.sym.Symbol:
    return mx.sym.var("data")


def counts(symbol, shape, **options) -> dict[str, int]:
    """FLOPs under every rule; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnknownOperator)
        return {rule: count_symbol(symbol, shape, rule, **options).flops for rule in RULES}


def by_rule(macs: int, oneshot: int, full: int, mmrazor: int, lut: int) -> dict[str, int]:
    return dict(zip(RULES, (macs, oneshot, full, mmrazor, lut), strict=True))


def free(macs: int) -> dict[str, int]:
    """Expected counts of something that costs the same under every rule."""
    return by_rule(macs, macs, macs, macs, macs)


def test_rules_are_those_of_the_analytic_counter():
    assert set(RULES) == set(analytic.RULES)


@pytest.mark.parametrize(("symbol", "expected"), [
    # 4 -> 6 channels in 2 groups, 3x3 dilated by 2, stride 2, on 9x11: output 3x4
    (mx.sym.Convolution(data(), kernel=(3, 3), dilate=(2, 2), stride=(2, 2), num_filter=6, num_group=2, no_bias=True),
     free(6 * 3 * 4 * 2 * 9)),
    (mx.sym.Convolution(data(), kernel=(1, 1), num_filter=5),
     by_rule(5 * 99 * 4, 5 * 99 * 5, 5 * 99 * 5, 5 * 99 * 5, 5 * 99 * 4)),
    (mx.sym.Convolution(data(), kernel=(3, 3), pad=(1, 1), num_filter=4, num_group=4, no_bias=True), free(4 * 99 * 9)),
    # each of the 99 * 4 inputs is used by 2x2 taps of 3 of the 6 filters; output 18x22
    (mx.sym.Deconvolution(data(), kernel=(2, 2), stride=(2, 2), num_filter=6, num_group=2), free(4 * 99 * 3 * 4)),
    (mx.sym.Deconvolution(data(), kernel=(2, 2), stride=(2, 2), num_filter=6, no_bias=False),
     by_rule(9504, 9504 + 6 * 18 * 22, 9504 + 6 * 18 * 22, 9504 + 6 * 18 * 22, 9504)),
    (mx.sym.FullyConnected(data(), num_hidden=10), by_rule(3960, 3970, 3970, 3960, (2 * 396 - 1) * 10)),
    (mx.sym.FullyConnected(data(), num_hidden=10, no_bias=True), by_rule(3960, 3960, 3960, 3960, 7910)),
    (mx.sym.FullyConnected(data(), num_hidden=10, flatten=False, no_bias=True), by_rule(3960, 3960, 3960, 3960, 36 * 210)),
    (mx.sym.Pooling(data(), global_pool=True, kernel=(1, 1), pool_type="avg"), by_rule(0, 396, 396, 396, 0)),
    (mx.sym.Pooling(data(), kernel=(2, 2), stride=(2, 2), pool_type="max", pooling_convention="full"), by_rule(0, 0, 0, 396, 0)),
    (mx.sym.Pooling(data(), kernel=(3, 3), pool_type="avg", count_include_pad=False), by_rule(0, 0, 0, 396, 0)),
    (mx.sym.contrib.AdaptiveAvgPooling2D(data(), output_size=1), by_rule(0, 396, 396, 396, 0)),
    (mx.sym.contrib.AdaptiveAvgPooling2D(data(), output_size=2), by_rule(0, 0, 0, 396, 0)),
    (mx.sym.BatchNorm(data(), fix_gamma=False), by_rule(0, 0, 3 * 396, 2 * 396, 0)),
    (mx.sym.BatchNorm(data(), fix_gamma=True), by_rule(0, 0, 3 * 396, 396, 0)),
    (mx.sym.BatchNorm(data()), by_rule(0, 0, 3 * 396, 396, 0)),
    (mx.sym.Activation(data(), act_type="relu"), by_rule(0, 0, 396, 396, 0)),
    (mx.sym.relu(data()), by_rule(0, 0, 396, 396, 0)),
    (mx.sym.clip(data(), 0, 6), by_rule(0, 0, 396, 396, 0)),
    (mx.sym.clip(data(), -1, 1), free(0)),
    (mx.sym.clip(data() + 3, 0, 6) / 6 * data(), free(0)),
    (mx.sym.Activation(data(), act_type="sigmoid") * data(), free(0)),
    (mx.sym.LeakyReLU(data(), act_type="prelu"), free(0)),
    (mx.sym.broadcast_mul(data(), mx.sym.hard_sigmoid(data())), free(0)),
    (mx.sym.Dropout(mx.sym.concat(*mx.sym.split(data(), 2, axis=1))) + mx.sym.transpose(mx.sym.transpose(data())), free(0)),
    (mx.sym.Flatten(mx.sym.reshape_like(mx.sym.reshape(mx.sym.slice_axis(data(), axis=1, begin=0, end=2), (0, 2, -1)),
                                        mx.sym.slice_axis(data(), axis=1, begin=0, end=2))), free(0)),
])  # fmt: skip
def test_closed_forms(symbol, expected):
    assert counts(symbol, (1, 4, 9, 11)) == expected
    assert counts(symbol, (7, 4, 9, 11)) == expected, "totals are for one image"


def test_params_count_arguments_once_and_neither_inputs_nor_statistics_nor_labels():
    weight, kernel = mx.sym.var("shared"), mx.sym.var("wide")
    x = mx.sym.Convolution(data(), weight, kernel=(1, 1), num_filter=3, no_bias=True, name="a")
    x = mx.sym.Convolution(x, weight, kernel=(1, 1), num_filter=3, no_bias=True, name="b")
    x = mx.sym.Convolution(x, mx.sym.var("shared"), kernel=(1, 1), num_filter=3, no_bias=True, name="c")
    sliced = mx.sym.slice(mx.sym.var("wide", shape=(8, 5, 3, 3)), begin=(0, 0, None, None), end=(4, 3, None, None), name="cut")
    x = mx.sym.BatchNorm(mx.sym.Convolution(x, sliced, kernel=(3, 3), num_filter=4, no_bias=True, name="d"), name="bn")
    x = mx.sym.SoftmaxOutput(mx.sym.FullyConnected(x, num_hidden=2, name="fc"), name="softmax")
    cost = count_symbol(x, (1, 3, 5, 5))
    assert kernel.name == "wide"
    assert {row.name: row.params for row in cost.rows if row.params} == {"a": 9, "cut": 360, "bn": 8, "fc": 2 * 36 + 2}
    assert cost.params == 9 + 360 + 8 + 74
    assert cost.flops == 3 * 225 + 4 * 9 * 27 + 72
    row = next(row for row in cost.rows if row.name == "d")
    assert (row.operator, row.input_shape, row.output_shape, row.state) == ("Convolution", (1, 3, 5, 5), (1, 4, 3, 3), "counted")
    assert row.attributes["kernel"] == "(3, 3)"
    assert all(type(number) is int for row in cost.rows for number in (row.flops, row.params))
    json.dumps(cost.rows[0].attributes)


def test_the_input_may_have_another_name():
    symbol = mx.sym.FullyConnected(mx.sym.var("images"), num_hidden=2, no_bias=True)
    assert count_symbol(symbol, (1, 3, 2, 2), data_name="images").flops == 24
    with pytest.raises(UserError, match="no input 'data'; its arguments are images, fullyconnected"):
        count_symbol(symbol, (1, 3, 2, 2))


def test_unknown_operators_are_loud():
    symbol = mx.sym.Flatten(mx.sym.sort(mx.sym.sort(data(), name="first"), name="second"))
    with pytest.warns(UnknownOperator, match="operator 'sort' has no cost rule .*: first, second"):
        cost = count_symbol(symbol, (1, 3, 4, 4))
    assert [(row.name, row.operator, row.flops) for row in cost.unknown] == [("first", "sort", 0), ("second", "sort", 0)]
    assert [row.state for row in cost.rows] == ["unknown", "unknown", "ignored"]


def test_every_operator_of_the_tables_exists_and_has_one_state():
    names = ctypes.POINTER(ctypes.c_char_p)()
    size = ctypes.c_uint()
    mx.base.check_call(mx.base._LIB.MXListAllOpNames(ctypes.byref(size), ctypes.byref(names)))
    existing = {names[index].decode() for index in range(size.value)}
    assert not ({*COUNTED, *IGNORED} - existing)
    assert not COUNTED.keys() & IGNORED.keys()
    assert all(IGNORED.values())


def hooked(net, shape) -> dict[str, int]:
    """Counts of a network of Gluon layers, gathered from the layers themselves while one image runs through."""
    found = dict.fromkeys(("macs", "bias", "global", "pool", "norm", "relu", "lut"), 0)

    def hook(layer, inputs, output):
        given, out = prod(inputs[0].shape), prod(output.shape)
        if isinstance(layer, nn.Conv2D):
            found["macs"] += out * prod(layer._kwargs["kernel"]) * inputs[0].shape[1] // layer._kwargs["num_group"]
            found["bias"] += out if layer.bias is not None else 0
        elif isinstance(layer, nn.Dense):
            found["macs"] += given * out
            found["lut"] += (given - 1) * out
            found["dense bias"] = found.get("dense bias", 0) + (out if layer.bias is not None else 0)
        elif isinstance(layer, nn.GlobalAvgPool2D):
            found["global"] += given
        elif isinstance(layer, nn.MaxPool2D | nn.AvgPool2D):
            found["pool"] += given
        elif isinstance(layer, nn.BatchNorm):
            found["norm"] += given
        elif (isinstance(layer, nn.Activation) and layer._act_type == "relu") or type(layer).__name__ == "ReLU6":
            found["relu"] += out

    net.apply(lambda layer: layer.register_forward_hook(hook))
    net.initialize()
    net(mx.nd.zeros(shape)).wait_to_read()
    oneshot = found["macs"] + found["bias"] + found.get("dense bias", 0) + found["global"]
    return by_rule(found["macs"], oneshot, oneshot + 3 * found["norm"] + found["relu"],
                   found["macs"] + found["bias"] + found["global"] + found["pool"] + 2 * found["norm"] + found["relu"],
                   found["macs"] + found["lut"])


@pytest.mark.parametrize(("name", "size", "relu_layers"), [
    ("resnet18_v1b", 224, True), ("mobilenetv2_0.25", 96, True), ("squeezenet1.1", 224, True), ("densenet121", 224, True),
    ("resnext50_32x4d", 32, False),  # its last ReLU of a block is no layer, so hooks do not see it
])  # fmt: skip
def test_gluoncv_networks_agree_with_their_layers(name, size, relu_layers):
    net = get_model(name)
    shape = (1, 3, size, size)
    symbol = net(data())
    rules = RULES if relu_layers else ("macs", "oneshot-mxnet", "abs-lut")
    expected, found = hooked(net, shape), counts(symbol, shape)
    assert {rule: found[rule] for rule in rules} == {rule: expected[rule] for rule in rules}
    trainable = sum(prod(p.shape) for p in net.collect_params().values() if p.grad_req != "null")
    assert count_symbol(symbol, shape).params == trainable


@pytest.mark.parametrize("name", ["mobilenetv3_small", "shufflenet_v2", "resnest14", "senet_154", "inceptionv3", "xception",
                                  "googlenet", "dla34", "darknet53", "cifar_residualattentionnet56", "nasnet_4_1056"])
def test_gluoncv_networks_have_no_unknown_operators(name):
    output = get_model(name)(data())
    symbol = output[0] if isinstance(output, tuple | list) else output
    size = {"cifar_residualattentionnet56": 32, "inceptionv3": 299}.get(name, 224)
    cost = count_symbol(symbol, (1, 3, size, size))
    assert not cost.unknown
    assert cost.flops > 1e7


def test_fused_quantized_network_costs_what_the_float_network_costs():
    shape = (1, 3, 224, 224)
    fused, plain = get_model("mobilenet1.0_int8")(data()), get_model("mobilenet1.0")(data())
    assert counts(fused, shape) == counts(plain, shape)
    assert count_symbol(fused, shape).params == count_symbol(plain, shape).params


def node(op, name, *inputs, **attrs):
    return {"op": op, "name": name, "attrs": attrs, "inputs": [[*wire, 0] for wire in inputs]}


def graph(*nodes, head=None):
    return json.dumps({"nodes": [node("null", "data"), *nodes], "arg_nodes": [0], "heads": [[head or len(nodes), 0, 0]],
                       "attrs": {"mxnet_version": ["int", 10901]}})


CONV = {"kernel": "(3, 3)", "num_filter": "4", "no_bias": "True"}


@pytest.mark.parametrize(("text", "message"), [
    (b"", "not valid JSON"),
    (b'{"nodes": [', "not valid JSON"),
    (b"\xff\xfe\x00", "not UTF-8"),
    (b"[" * 100000, "not valid JSON"),
    (b"[1, 2]", "no list of nodes"),
    (b'{"nodes": [], "heads": [[0, 0, 0]]}', "no list of nodes"),
    (b'{"nodes": [3], "heads": [[0, 0, 0]]}', "node 0 does not list inputs"),
    (b'{"kind": "architecture", "space": "spos_shufflenet"}', "no list of nodes"),
    (b'{"nodes": [{"inputs": []}], "arg_nodes": [], "heads": [[0, 0, 0]]}', "not a symbol that MXNet can read"),
    (graph(node("Magic", "x", (0, 0))), "Operator Magic is not registered"),
    (graph(node("Convolution", "x", (0, 0), kernel="(oops", num_filter="4")), "Invalid Parameter format for kernel"),
    (graph(node("Flatten", "x", (1, 0))), "node 1 does not list inputs among the nodes before it"),
    (graph(node("Flatten", "x", (9, 0))), "node 1 does not list inputs"),
    (graph(node("Flatten", "x", (0, 5))), "x reads output 5 of data"),
    (graph(node("Flatten", "x", (0, 0)), head=7), "not a symbol"),
    (graph(node("Convolution", "x", (0, 0), **CONV, num_group="0")), "layer 'x' .Convolution. has num_group=0"),
    (graph(node("Reshape", "x", (0, 0), shape="(0, -4, 0, -1, -2)")), "splits an axis into 0 parts"),
    (graph(node("Convolution", "x", (0, 0), **CONV, num_group="2")), "1,3,8,8 does not fit the network: Error in operator x:"),
    (graph(node("null", "y"), node("broadcast_add", "x", (0, 0), (1, 0))), "the shape of 'y' does not follow"),
])  # fmt: skip
def test_files_that_are_no_symbols(tmp_path, text, message):
    path = tmp_path / "bad-symbol.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        count_symbol(path, (1, 3, 8, 8))
    assert "\n" not in str(caught.value)


def test_symbols_in_memory_are_checked_too():
    with pytest.raises(UserError, match="num_group=0"):
        count_symbol(mx.sym.Convolution(data(), kernel=(1, 1), num_filter=4, num_group=0), (1, 3, 8, 8))


@pytest.mark.parametrize("path", ["missing.json", "."])
def test_missing_file_is_named(path):
    with pytest.raises(UserError, match="cannot read symbol file"):
        count_symbol(path)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 0, 8), (1, 3, -8, 8), (1, 3, 8.0, 8), (1, 3, 2**17, 8), "1388",
                                   (True, 3, 8, 8)])
def test_bad_shapes_never_reach_mxnet(shape):
    with pytest.raises(UserError, match="batch,channels,height,width"):
        count_symbol(mx.sym.Flatten(data()), shape)


def test_unknown_rule_is_named():
    with pytest.raises(UserError, match="unknown cost rule 'flops'"):
        count_symbol(mx.sym.Flatten(data()), (1, 3, 8, 8), "flops")


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A small network at the default place of an otherwise empty current directory."""
    monkeypatch.chdir(tmp_path)
    Path("symbols").mkdir()
    x = mx.sym.Convolution(data(), kernel=(3, 3), num_filter=4, name="conv")
    x = mx.sym.relu(mx.sym.BatchNorm(x, fix_gamma=False, name="bn"), name="relu")
    mx.sym.FullyConnected(x, num_hidden=5, name="fc").save("symbols/ShuffleNas_fixArch-symbol.json")
    return Path("symbols/ShuffleNas_fixArch-symbol.json")


SMALL = ["-ds", "1,3,8,8"]
MACS = 4 * 36 * 27 + 5 * 144
PARAMS = 4 * 27 + 4 + 8 + 5 * 144 + 5


@pytest.mark.parametrize(("flags", "flops", "rule"), [
    (["-norelubn"], MACS + 144 + 5, "oneshot-mxnet"),
    ([], MACS + 144 + 5 + 4 * 144, "oneshot-mxnet-full"),
    (["--rule", "macs"], MACS, "macs"),
])  # fmt: skip
def test_script_prints_rows_and_exact_totals(saved, capsys, flags, flops, rule):
    assert calculate_flops.main([*flags, *SMALL]) == 0
    out, err = capsys.readouterr()
    assert f"Total FLOPs: {flops} (" in out
    assert f"Total params: {PARAMS} (" in out
    assert f"Rule: {rule};" in out
    assert err == ""
    conv = next(line.split() for line in out.splitlines() if line.startswith("conv"))
    assert conv[:4] + conv[-1:] == ["conv", "Convolution", "1x3x8x8", "1x4x6x6", "112"]


def test_script_json_is_one_object(saved, capsys):
    assert calculate_flops.main(["--json", "-norelubn", "-ds", "data,2,3,8,8", "-s", str(saved)]) == 0
    out, _ = capsys.readouterr()
    content = json.loads(out)
    assert (content["flops"], content["params"], content["rule"], content["unknown"]) == (MACS + 149, PARAMS, "oneshot-mxnet", [])
    assert sum(layer["flops"] for layer in content["layers"]) == content["flops"]
    assert sum(layer["params"] for layer in content["layers"]) == content["params"]


def test_script_names_unknown_operators_and_succeeds(saved, capsys):
    mx.sym.sort(data(), name="odd").save(str(saved))
    assert calculate_flops.main(SMALL) == 0
    out, err = capsys.readouterr()
    assert err == "warning: operator 'sort' has no cost rule and is missing from the FLOPs: odd\n"
    assert "unknown" in out


@pytest.mark.parametrize("flags", [["-ds", "1,3"], ["-ds", "a,b"], ["-ds", "1,3,0,8"], ["-ds", "1,3,-8,8"], ["-ds", ""],
                                   ["-ds", "x,1,3,8,8"], ["-ds", "1,3,2,2"], ["-ds", "1,3,8,99999999999"], ["-s", "none.json"]])
def test_script_refuses_bad_input_in_one_line(saved, capsys, flags):
    assert calculate_flops.main(flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--rule", "flops"], ["-norelubn", "--rule", "macs"], ["--nonsense"], ["-ds"]])
def test_script_refuses_wrong_use_in_one_line(capsys, flags):
    with pytest.raises(SystemExit) as stopped:
        calculate_flops.main(flags)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interrupted_script_says_so_in_one_line(saved, capsys, monkeypatch):
    data().save(str(saved))
    monkeypatch.setattr("oneshot_nas.export.symbol_flops.count_symbol", Mock(side_effect=KeyboardInterrupt))
    assert calculate_flops.main(SMALL) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_script_runs_from_any_directory(tmp_path):
    result = subprocess.run([sys.executable, SCRIPT, "-norelubn"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert f"python {Path(SCRIPT).parent / 'oneshot_nas' / 'oneshot_nas_network.py'}" in result.stderr
    assert result.stderr.count("\n") == 1
    result = subprocess.run([sys.executable, SCRIPT, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert "Example: python calculate_flops.py -norelubn" in result.stdout


def test_the_default_network_has_the_published_counts():
    """Source: the predecessor's tool on its paper network: 327.909096 M, 3.433579 M; 344.984616 M with BatchNorm and ReLU."""
    space = get_space("spos_shufflenet")
    blocks = [0, 0, 3, 1, 1, 1, 0, 0, 2, 0, 2, 1, 1, 0, 2, 0, 2, 1, 3, 2]
    scales = [6, 5, 3, 5, 2, 6, 3, 4, 2, 5, 7, 5, 4, 6, 7, 4, 4, 5, 4, 3]
    symbol = fixed_network(space.decode(blocks + scales))(data())
    found = counts(symbol, (1, 3, 224, 224))
    assert (found["oneshot-mxnet"], found["oneshot-mxnet-full"]) == (327909096, 344984616)
    assert count_symbol(symbol).params == 3433579
