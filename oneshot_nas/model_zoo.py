"""Published architectures by name, in the style of GluonCV's model zoo.

An architecture is a file ``zoo/NAME.json``; `get_model` builds its network. Sources:

| names | source |
|---|---|
| oneshot | Guo et al., Single Path One-Shot, ECCV 2020 (megvii-model/ShuffleNet-Series, OneShot) |
| oneshot_plus, oneshot_s_plus, oneshot_s_plus_mobilenetv3, oneshot_early | CanyonWind/Single-Path-One-Shot-NAS-MXNet |
| oneshot_reduced | the paper's choices with 102 instead of 1024 channels before the classifier |
| spos_blocks | the block search result of megvii-model/SinglePathOneShot |
| spos_mmrazor, dsnas_mmrazor | open-mmlab/mmrazor, SPOS and DSNAS configurations |
| detnas_{coco,voc}_{fpn,retinanet} | DetNAS, 300 M backbones of megvii-model/ShuffleNet-Series |
| attentive_a0 ... attentive_a6, attentive_{min,max} | AttentiveNAS, CVPR 2021 (facebookresearch/AttentiveNAS); min is a0 |
| bnnas, bnnas_spos | BN-NAS, ICCV 2021 (bychen515/BNNAS): its search result and its SPOS baseline's |
| abs_spos, abs_proxyless | ABS, ECCV 2020 (megvii-model/AngleNAS): SPOS and ProxylessNAS in the shrunk space |
| proxyless_mmrazor | open-mmlab/mmrazor, SPOS on the MobileNet space: the layers of abs_spos |
"""

from __future__ import annotations

import difflib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneshot_nas.arch import Arch, get_space, read_arch_file, show
from oneshot_nas.errors import UserError

if TYPE_CHECKING:
    import mxnet as mx

    from oneshot_nas.nets.fixed import Network

ZOO = Path(__file__).parent / "zoo"


@lru_cache(maxsize=1)
def list_models() -> tuple[str, ...]:
    """Names of all published architectures, sorted."""
    return tuple(sorted(path.stem for path in ZOO.glob("*.json")))


def published(name: str, /, **options: Any) -> Arch:
    """Return the published architecture of that name; `options` replace its own, such as classes or input_size.

    Raises: UserError with the nearest names for an unknown one, and for an option that its space does not have.
    """
    if name not in list_models():
        near = difflib.get_close_matches(name, list_models(), n=5, cutoff=0.5)
        raise UserError(f"no model '{name}'; {f'did you mean {show(near)}' if near else f'the models are {show(list_models())}'}")
    arch = read_arch_file(str(ZOO / f"{name}.json"))
    return get_space(arch.space, **{**arch.options, **options}).arch(arch.choices)


def get_model(name: str, pretrained: bool = False, ctx: mx.Context | list[mx.Context] | None = None,
              root: str = "~/.mxnet/models", **kwargs: Any) -> Network:
    """Return the network of a published architecture, not initialised unless `pretrained`.

    `kwargs` are options of its space, such as ``classes=10`` or ``input_size=32``. With `pretrained` the weights are those of
    ``root/NAME.params`` on `ctx` (default: the CPU); none are shipped.

    Raises: UserError for an unknown name or option, and for weights that are missing or of another network.

    Example: ``net = get_model("oneshot", classes=1000); net.initialize(); net.hybridize()``
    """
    from oneshot_nas.nets.fixed import fixed_network

    net = fixed_network(published(name, **kwargs))
    if pretrained:
        import mxnet as mx

        from oneshot_nas.files import read_params_about
        from oneshot_nas.train.checkpoint import load_weights

        path = Path(root).expanduser() / f"{name}.params"
        if not path.is_file():
            raise UserError(
                f"no weights are shipped for '{name}' and there are none at {path}; make them with `oneshot-nas train --recipe "
                f"FILE.yaml --arch FILE --out RUN`, or with `oneshot-nas convert --from FORMAT IN --arch FILE --out {path}`")
        read_params_about(path, "network")
        load_weights(net, path, ctx if isinstance(ctx, list) else [ctx or mx.cpu()])
    return net
