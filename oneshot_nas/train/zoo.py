"""Networks by the name of a model: ours first, then GluonCV's, initialised and checked before the first step."""

from __future__ import annotations

import difflib
import io
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import mxnet as mx
from mxnet import nd
from mxnet.gluon import Block, nn
from mxnet.ndarray import NDArray

from oneshot_nas.arch import Arch, show
from oneshot_nas.errors import UserError
from oneshot_nas.later import check_task
from oneshot_nas.model_zoo import get_model, list_models
from oneshot_nas.sections import Loss
from oneshot_nas.train.checkpoint import load_weights, shapes_differ
from oneshot_nas.train.step import Forward

# Options of GluonCV models beyond classes and input_size; each exists for some of its families only.
GLUONCV_OPTIONS = ("pretrained", "last_gamma", "batch_norm", "use_gn")
USUAL_SIZE = 224
IMAGENET_CLASSES = 1000  # of GluonCV's pretrained weights
GROUPS = 32  # of GroupNorm (Wu and He, ECCV 2018)


def zoo_network(name: str, classes: int, options: Mapping[str, Any], contexts: list) -> tuple[Block, Arch | None, int]:
    """(initialised network, its architecture if it is one of ours, input size) of a model name.

    Raises: UserError for an unknown name or option, and for a model that does not turn images of this size into (N, classes).
    """
    options = {key: value for key, value in options.items() if key != "classes"}
    pretrained = bool(options.pop("pretrained", False))
    if name in list_models():
        net = get_model(name, pretrained=pretrained, ctx=contexts, classes=classes, **options)
        if not pretrained:
            net.initialize(ctx=contexts)
        return net, net.arch, int(net.arch.options["input_size"])
    size = int(options.pop("input_size", USUAL_SIZE))
    other = _gluoncv(*_classifier(name, classes, _arguments(name, options)))
    _fit_heads(other)
    check_output(other, name, classes, size)
    other.infer_shape(nd.zeros((1, 3, size, size)))  # of all weights, now: averages and depthwise_init need them before a step
    other.initialize(mx.init.MSRAPrelu(), ctx=contexts)
    if pretrained:
        _copy_common(_gluoncv(name, {**_arguments(name, options), "pretrained": True}), other, contexts)
    return other, None, size


def make_teacher(loss: Loss, classes: int, input_size: int, contexts: list, dtype: str) -> Forward | None:
    """The function from images to logits of a recipe's teacher, None when it has none. Raises: UserError."""
    if loss.teacher is None:
        return None
    if loss.teacher_params is None and classes != IMAGENET_CLASSES:
        raise UserError(f"teacher '{loss.teacher}' needs weights for {classes} classes: give them as loss.teacher_params "
                        "(--teacher-params FILE.params)")
    options = {"input_size": input_size, "pretrained": loss.teacher_params is None}
    net, _, _ = zoo_network(loss.teacher, classes, options, contexts)
    if loss.teacher_params is not None:
        load_weights(net, loss.teacher_params, contexts)
    if dtype != "float32":
        net.cast(dtype)
    net.hybridize(static_alloc=True)

    def forward(images: NDArray) -> NDArray:
        with mx.autograd.pause(train_mode=False):
            return net(images)

    return forward


def _arguments(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """GluonCV's keyword arguments for these options."""
    unknown = [key for key in options if key not in GLUONCV_OPTIONS]
    if unknown:
        raise UserError(f"model '{name}' is GluonCV's and has no option '{unknown[0]}'; allowed are "
                        f"{show(('classes', 'input_size', *GLUONCV_OPTIONS))}")
    arguments = {key: value for key, value in options.items() if value}
    if arguments.pop("use_gn", False):
        arguments["norm_layer"] = _group_norm
    return arguments


def _classifier(name: str, classes: int, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and keyword arguments by which GluonCV builds `name` as a network of one output, of so many classes."""
    key = name.lower()
    if key.startswith("hrnet"):
        return name, {**arguments, "num_classes": classes}  # 'classes' has no effect there
    if key.startswith("nasnet"):
        arguments = {**arguments, "use_aux": False}
    if key.endswith("_gn"):
        name, arguments = name[:-len("_gn")], {**arguments, "norm_layer": _group_norm}
    return name, {**arguments, "classes": classes}


def _fit_heads(net: Block) -> None:
    """Give dense layers as many weights as they have units: GluonCV's pruned networks declare those of 1,000 classes."""
    def fit(layer: Block) -> None:
        if isinstance(layer, nn.Dense) and layer.weight.shape[0] != layer._units:
            layer.weight._shape = (layer._units, *layer.weight.shape[1:])
            layer.bias._shape = (layer._units,)

    net.apply(fit)


def _group_norm(in_channels: int = 0, **options: Any) -> nn.GroupNorm:
    """MXNet's GroupNorm with the signature that GluonCV's models expect; GluonCV's own cannot be hybridized with MXNet 1.9."""
    return nn.GroupNorm(GROUPS, **options)


def _gluoncv(name: str, arguments: dict[str, Any]) -> Block:
    from gluoncv.model_zoo import get_model as build
    from gluoncv.model_zoo import get_model_list

    check_task(name)
    known = list(get_model_list())
    if name.lower() not in known:
        near = difflib.get_close_matches(name, [*list_models(), *known], n=5)
        raise UserError(f"no model '{name}' in our zoo or GluonCV's; "
                        + (f"did you mean {show(near)}" if near else f"ours are {show(list_models())}"))
    try:
        with redirect_stdout(sys.stderr):  # GluonCV prints its downloads
            return build(name, **arguments)
    except OSError as error:
        raise UserError(f"model '{name}' needs weights that cannot be downloaded here ({' '.join(str(error).split())[:80]}); "
                        "put them into ~/.mxnet/models, or train without them") from None
    except Exception as error:  # whatever a constructor of 300 models may raise
        given = show(key for key in arguments if key != "classes")
        raise UserError(f"GluonCV cannot build '{name}' as a classifier with the options {given}: "
                        f"{type(error).__name__} {' '.join(str(error).split())[:120]}") from None


def check_output(net: Block, name: str, classes: int, size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights by name, inferred from images (N, 3, size, size); nothing is computed.

    Raises: UserError unless such images become logits (N, classes).
    """
    try:
        with redirect_stdout(io.StringIO()):  # MXNet prints the arguments when the shapes do not fit
            output = net(mx.sym.var("data"))
            outputs = len(output) if isinstance(output, list | tuple) else len(output.list_outputs())
            weights, shape = [], None
            if outputs == 1:
                weights, (shape,), _ = mx.sym.Group([output]).infer_shape(data=(2, 3, size, size))
    except Exception as error:
        reason = str(error).strip().splitlines()[-1].rpartition(": ")[2][:100]
        raise UserError(f"model '{name}' cannot take images of {size}x{size} pixels ({reason}); give another input size, "
                        "299 for the Inception family") from None
    if outputs != 1:
        raise UserError(f"model '{name}' has {outputs} outputs; what can be trained here has one, of shape (images, classes)")
    if shape != (2, classes):
        raise UserError(f"model '{name}' is no classifier: for 2 images of {size}x{size} it gives {shape}, not (2, {classes})")
    return {key: shape for key, shape in zip(output.list_arguments(), weights, strict=True) if key != "data"}


def _copy_common(source: Block, target: Block, contexts: list) -> None:
    """Copy every array of `source` that fits; what depends on the number of classes stays as initialised."""
    given = source._collect_params_with_prefix()
    for name, parameter in target._collect_params_with_prefix().items():
        if name in given and not shapes_differ(parameter.shape, given[name].shape):
            parameter._load_init(given[name].data(), contexts)


__all__ = ["GLUONCV_OPTIONS", "check_output", "make_teacher", "zoo_network"]
