"""One-shot neural architecture search on Apache MXNet Gluon.

Names are loaded when first used (PEP 562), so that spaces, costs and search run without importing MXNet.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Arch": "arch", "Space": "arch", "get_space": "arch", "list_spaces": "arch", "read_arch": "arch",
    "Cost": "costs.analytic", "cost": "costs.analytic",
    "Limits": "costs.limits", "sample_within": "costs.limits", "CostTable": "costs.table",
    "Supernet": "nets.supernet", "Network": "nets.fixed", "inherit": "nets.inherit", "recalibrate": "nets.recalibrate",
    "get_model": "model_zoo", "list_models": "model_zoo",
    "UserError": "errors", "WorkError": "errors",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'oneshot_nas' has no attribute '{name}'")
    return getattr(import_module(f"oneshot_nas.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
