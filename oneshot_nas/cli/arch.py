"""`oneshot-nas arch`: the architecture of published index lists, or of the model zoo, as arch.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from oneshot_nas.arch import Arch, get_space, list_spaces, parse_options, read_archs, shorten, space_of
from oneshot_nas.errors import UserError
from oneshot_nas.files import parse_json
from oneshot_nas.model_zoo import list_models, published


def command(
    space: Annotated[str, typer.Argument(help="A search space, the name of a published architecture, or an arch.json.",
                                         metavar="SPACE")],
    indices: Annotated[str | None, typer.Option(help='Index lists as JSON, such as {"block": [0, 0, 3, ...]}.')] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A space option; may be repeated.")] = None,
    order: Annotated[str | None, typer.Option(help="What the indices mean where a space has several published orders of "
                                              "operators: bnnas (the default) or mmrazor in proxyless_gpu.")] = None,
    as_indices: Annotated[bool, typer.Option("--as-indices", help="Print the index lists instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, as it does anyhow.")] = False,
) -> None:
    """Print an architecture as arch.json, or as index lists: from published index lists, the model zoo or a file.

    A file with an architecture a line, such as family.jsonl, gives a line each.

    Example:  oneshot-nas arch oneshot --option classes=10 > arch.json

    Example:  oneshot-nas arch spos_shufflenet --option se=true --indices '{"block": [0, 0, 3, 1, 1, 1, 0, 0, 2, 0, 2, 1, 1, 0, 2,
    0, 2, 1, 3, 2], "scale": [6, 5, 3, 5, 2, 6, 3, 4, 2, 5, 7, 5, 4, 6, 7, 4, 4, 5, 4, 3]}'

    Example:  oneshot-nas arch bnnas --as-indices --order mmrazor
    """
    words = option or []
    if (indices is not None and as_indices) or (order is not None and indices is None and not as_indices):
        raise UserError("give --indices to read index lists or --as-indices to print them, and --order with either")
    if space in list_models():
        if indices is not None:
            raise UserError(f"'{space}' is a published architecture, it takes no --indices; leave them out or give a space")
        archs = iter([published(space, **parse_options(published(space).space, words))])
    elif space in list_spaces():
        if indices is None:
            raise UserError(f"space '{space}' needs --indices; oneshot-nas spaces shows its choices")
        archs = iter([get_space(space, **parse_options(space, words)).from_indices(
            parse_json(indices, f"--indices {shorten(indices)}"), order)])
    elif space == "-" or Path(space).is_file():
        if indices is not None:
            raise UserError(f"{shorten(space)} is an architecture already; it takes no --indices")
        archs = (_moved(arch, words) for arch in read_archs(space))
    else:
        raise UserError(f"{shorten(space)} is neither a space ({', '.join(list_spaces())}) nor a file "
                        f"nor a published architecture ({', '.join(list_models())})")
    for arch in archs:
        typer.echo(json.dumps(space_of(arch).to_indices(arch, order) if as_indices else arch.to_json()))


def _moved(arch: Arch, words: list[str]) -> Arch:
    """The same choices in its space with some options changed. Raises: UserError."""
    return get_space(arch.space, **{**arch.options, **parse_options(arch.space, words)}).arch(arch.choices) if words else arch
