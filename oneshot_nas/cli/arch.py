"""`oneshot-nas arch`: the architecture of published index lists, or of the model zoo, as arch.json."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from oneshot_nas.arch import get_space, list_spaces, parse_options, shorten
from oneshot_nas.errors import UserError
from oneshot_nas.files import parse_json
from oneshot_nas.model_zoo import list_models, published


def command(
    space: Annotated[str, typer.Argument(help="A search space, or the name of a published architecture.", metavar="SPACE")],
    indices: Annotated[str | None, typer.Option(help='Index lists as JSON, such as {"block": [0, 0, 3, ...]}.')] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A space option; may be repeated.")] = None,
) -> None:
    """Print an architecture as arch.json: from published index lists, or one of the model zoo.

    Example:  oneshot-nas arch oneshot --option classes=10 > arch.json

    Example:  oneshot-nas arch spos_shufflenet --option se=true --indices '{"block": [0, 0, 3, 1, 1, 1, 0, 0, 2, 0, 2, 1, 1, 0, 2,
    0, 2, 1, 3, 2], "scale": [6, 5, 3, 5, 2, 6, 3, 4, 2, 5, 7, 5, 4, 6, 7, 4, 4, 5, 4, 3]}'
    """
    words = option or []
    if space in list_models():
        if indices is not None:
            raise UserError(f"'{space}' is a published architecture, it takes no --indices; leave them out or give a space")
        arch = published(space, **parse_options(published(space).space, words))
    elif space in list_spaces():
        if indices is None:
            raise UserError(f"space '{space}' needs --indices; oneshot-nas spaces shows its choices")
        arch = get_space(space, **parse_options(space, words)).from_indices(parse_json(indices, f"--indices {shorten(indices)}"))
    else:
        raise UserError(f"{shorten(space)} is neither a space ({', '.join(list_spaces())}) "
                        f"nor a published architecture ({', '.join(list_models())})")
    typer.echo(json.dumps(arch.to_json()))
