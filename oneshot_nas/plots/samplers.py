"""The samplers that can be drawn, by name, without matplotlib: help texts and errors are made from the same list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from oneshot_nas.costs.limits import parse_limits
from oneshot_nas.errors import UserError
from oneshot_nas.sections import Sampler as SamplerConfig

ATTENTIVE = ("bestup", "worstup")  # they choose by the loss of a training step, which a picture does not have
SAMPLERS = tuple(name for name in get_args(SamplerConfig.model_fields["name"].annotation) if name not in ATTENTIVE)
LIMITED = tuple(name for name in SAMPLERS if name != "uniform")
BOUNDED = ("bins", "stroll")  # those that divide the range of FLOPs and so need its ends


def named_sampler(name: str, flops: str | None = None, params: str | None = None, rule: str = "macs") -> SamplerConfig:
    """The settings of a sampler by its name. Raises: UserError with the names there are."""
    if name in ATTENTIVE:
        raise UserError(f"sampler '{name}' chooses by the loss of a training step, so it cannot be drawn; "
                        f"give one of {words(SAMPLERS)}")
    if name not in SAMPLERS:
        raise UserError(f"unknown sampler '{name}'; the samplers are {words(SAMPLERS)}")
    return SamplerConfig.model_validate({"name": name, "flops": flops, "params": params, "rule": rule})


def named_samplers(names: Sequence[str], flops: str | None, params: str | None, rule: str) -> list[SamplerConfig]:
    """The settings of several samplers, each with the limits if it takes any.

    Raises: UserError for an unknown name, limits that none of them takes, or one that lacks limits it needs.
    """
    configs = [named_sampler(name, flops, params, rule) if name in LIMITED else named_sampler(name, rule=rule) for name in names]
    if (flops or params) and not set(names) & set(LIMITED):
        raise UserError(f"--flops and --params are limits of the samplers {words(LIMITED, 'and')}; choose one of them with "
                        "--sampler, or leave the limits out")
    needy = next((name for name in names if name in BOUNDED), None)
    if needy and parse_limits(flops or None, params or None).flops[1] == float("inf"):
        raise UserError(f"sampler '{needy}' needs both FLOPs bounds; give them, such as --flops 290M:360M")
    return configs


def words(names: Sequence[str], last: str = "or") -> str:
    """Names as a sentence has them, such as 'a, b or c'."""
    return f"{', '.join(names[:-1])} {last} {names[-1]}" if len(names) > 1 else names[0]
