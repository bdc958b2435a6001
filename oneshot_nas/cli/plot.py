"""`oneshot-nas plot`: pictures of a run, an architecture, samplers or a ranking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oneshot_nas.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from oneshot_nas.plots.distribution import Costs


def command(
    run: Annotated[str | None, typer.Argument(help="Run folder; its pictures go to RUN/plots.", metavar="RUN")] = None,
    compare: Annotated[list[str] | None, typer.Option(
        metavar="RUN", help="Another search, to compare the progress of RUN with; may be repeated.")] = None,
    storage: Annotated[str | None, typer.Option(metavar="URL", help="Database URL, when RUN does not tell it.")] = None,
    study: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the history in the storage.")] = None,
    arch: Annotated[str | None, typer.Option(help="Draw this architecture; - is standard input.", metavar="ARCH.json|-")] = None,
    distribution: Annotated[list[str] | None, typer.Option(
        metavar="SPACE|RECIPE", help="Draw FLOPs and parameters of what a sampler gives; may be repeated.")] = None,
    ranking: Annotated[tuple[str, str] | None, typer.Option(
        metavar="A.jsonl B.jsonl", help="Draw the indicator scores of A against the stand-alone scores of B.")] = None,
    out: Annotated[str | None, typer.Option(help="The picture to write; with all but RUN.", metavar="FILE.png")] = None,
    sampler: Annotated[list[str] | None, typer.Option(
        metavar="NAME", help="Sampler of a SPACE: uniform, bins, box or stroll; may be repeated.")] = None,
    flops: Annotated[str | None, typer.Option(metavar="LO:HI", help="FLOPs limits of --sampler, such as 290M:360M.")] = None,
    params: Annotated[str | None, typer.Option(metavar="LO:HI", help="Parameter limits of --sampler.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A space option; may be repeated.")] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Architectures of each sampler.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of --sampler.")] = 0,
    rule: Annotated[str, typer.Option(metavar="RULE", help="How FLOPs are counted.")] = "macs",
    score: Annotated[str, typer.Option(help="The score that --ranking compares.")] = "top1",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per picture.")] = False,
) -> None:
    """Draw a run (supernet, fixed network or search), or one picture of something else, and print the files.

    Example:  oneshot-nas plot runs/search --compare runs/random

    Example:  oneshot-nas plot --arch arch.json --out arch.png

    Example:  oneshot-nas plot --distribution spos_shufflenet --sampler uniform --sampler bins --flops 290M:360M --out x.png
    """
    what = {"RUN": run, "--arch": arch, "--distribution": distribution, "--ranking": ranking}
    given = [name for name, value in what.items() if value]
    if len(given) != 1:
        raise UserError(f"give exactly one of {', '.join(what)}; got {' and '.join(given) or 'none'}")
    if run and out:
        raise UserError("the pictures of a run go to RUN/plots; --out goes with --arch, --distribution or --ranking")
    if (compare or storage or study) and not run:
        raise UserError("--compare, --storage and --study go with the RUN of a search")
    if not run and (out is None or not out.endswith(".png")):
        raise UserError(f"{given[0]} needs --out FILE.png, got {out or 'none'}")
    if (sampler or flops or params) and not distribution:
        raise UserError("--sampler, --flops and --params go with --distribution SPACE")

    from oneshot_nas.plots.runs import plot_run
    from oneshot_nas.plots.style import save

    if run:
        files = plot_run(run, compare or (), count, storage, study)
    elif arch:
        files = [save(draw_arch(arch, rule), str(out))]
    elif ranking:
        files = [save(draw_ranking(*ranking, score), str(out))]
    else:
        from oneshot_nas.plots.distribution import distribution as draw_samples

        samples = samples_of(distribution or [], sampler or [], flops, params, option or [], count, seed, rule)
        files = [save(draw_samples(samples), str(out))]
    for path in files:
        typer.echo(json.dumps({"file": str(path)}) if as_json else str(path))


def draw_arch(path: str, rule: str) -> Figure:
    """The drawing of the one architecture in a file. Raises: UserError."""
    from oneshot_nas.arch import read_archs
    from oneshot_nas.plots.architecture import architecture

    archs = read_archs(path)
    arch = next(archs)
    if next(archs, None) is not None:
        raise UserError(f"{path} holds more than one architecture; --arch draws one, give a file with one line")
    return architecture(arch, "" if path == "-" else Path(path).stem, rule)


def draw_ranking(first: str, second: str, score: str) -> Figure:
    """The scores of two JSON Lines files against each other; accuracies in percent. Raises: UserError."""
    from oneshot_nas.indicators.ranking import paired, read_scores
    from oneshot_nas.plots.ranking import ranking

    scale, unit = (100, " (%)") if score in ("top1", "top5") else (1, "")
    indicator, standalone = paired(read_scores(first, score), read_scores(second, score), (first, second))
    labels = [f"{Path(path).stem}: {score}{unit}" for path in (first, second)]
    return ranking([scale * value for value in indicator], [scale * value for value in standalone], *labels)


def samples_of(sources: list[str], samplers: list[str], flops: str | None, params: str | None, options: list[str], count: int,
               seed: int, rule: str) -> dict[str, Costs]:
    """Costs of every named sampler (default: uniform) of every space, and of the samplers of recipes. Raises: UserError."""
    from oneshot_nas.arch import get_space, list_spaces, parse_options
    from oneshot_nas.config import Recipe, read_recipe, training_space
    from oneshot_nas.plots.distribution import named_sampler, sampler_costs

    samples: dict[str, Costs] = {}
    for source in sources:
        if source in list_spaces():
            space = get_space(source, **parse_options(source, options))
            epochs = int(Recipe.model_fields["epochs"].default)
            for name in samplers or ["uniform"]:
                config = named_sampler(name, *((None, None) if name == "uniform" else (flops, params)), rule)
                samples[f"{source}, {name}"] = sampler_costs(space, config, count, epochs, seed)
        elif samplers or flops or params:
            raise UserError(f"--sampler, --flops and --params go with a space, '{source}' is none of {', '.join(list_spaces())}")
        else:
            recipe = read_recipe(source)
            if recipe.space is None:
                raise UserError(f"recipe {source} trains a fixed network, which has no sampler; give one with 'space'")
            space = training_space(recipe.space, {**recipe.options, **parse_options(recipe.space, options)}, recipe.allowed)
            name = f"{Path(source).stem} ({recipe.sampler.name})"
            samples[name] = sampler_costs(space, recipe.sampler, count, recipe.epochs, recipe.seed)
    return samples
