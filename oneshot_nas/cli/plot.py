"""`oneshot-nas plot`: pictures of a run, an architecture, samplers, a ranking or scores."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oneshot_nas.errors import UserError
from oneshot_nas.plots.samplers import LIMITED, SAMPLERS, named_samplers, words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from oneshot_nas.plots.distribution import Costs

USED = {  # what is drawn, and the arguments of `command` that say how
    "RUN": ("run", "compare", "storage", "study", "count", "as_json"),
    "--arch": ("arch", "out", "rule", "as_json"),
    "--distribution": ("distribution", "out", "sampler", "flops", "params", "option", "count", "seed", "rule", "as_json"),
    "--ranking": ("ranking", "out", "score", "standalone_score", "as_json"),
    "--scores": ("scores", "out", "score", "rule", "as_json"),
}


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
        metavar="A.jsonl B.jsonl", help="Draw the scores of A against stand-alone ones of B (evaluate --json).")] = None,
    scores: Annotated[list[str] | None, typer.Option(
        metavar="FILE.jsonl", help="Draw scores (evaluate --json) against FLOPs; may be repeated, a line each.")] = None,
    out: Annotated[str | None, typer.Option(help="The picture to write; with all but RUN.", metavar="FILE.png")] = None,
    sampler: Annotated[list[str] | None, typer.Option(
        metavar="NAME", help=f"Sampler of a SPACE: {words(SAMPLERS)} (default: uniform); may be repeated.")] = None,
    flops: Annotated[str | None, typer.Option(
        metavar="LO:HI", help=f"FLOPs limits of the samplers {words(LIMITED, 'and')}, such as 290M:360M.")] = None,
    params: Annotated[str | None, typer.Option(metavar="LO:HI", help="Their parameter limits.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A space option; may be repeated.")] = None,
    count: Annotated[int | None, typer.Option(
        "-n", "--count", min=1, help="Architectures of each sampler (default: 1000).")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the samplers of a SPACE (default: 0).")] = None,
    rule: Annotated[str | None, typer.Option(
        metavar="RULE", help="How FLOPs are counted; see cost --help (default: macs).")] = None,
    score: Annotated[str | None, typer.Option(
        metavar="NAME", help="The score of --scores, or of A in --ranking, such as bn-gamma (default: top1).")] = None,
    standalone_score: Annotated[str | None, typer.Option(
        metavar="NAME", help="The score of B (default: top1, or that of --score where B has no top1).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per picture.")] = False,
) -> None:
    """Draw a run (supernet, fixed network or search), or one picture of something else, and print the files.

    Example:  oneshot-nas plot runs/search --compare runs/random

    Example:  oneshot-nas plot --arch arch.json --out arch.png

    Example:  oneshot-nas plot --distribution spos_shufflenet --sampler uniform --sampler bins --flops 290M:360M --out x.png

    Example:  oneshot-nas plot --ranking scores.jsonl standalone.jsonl --score bn-gamma --out ranking.png

    Example:  oneshot-nas plot --scores elastic.jsonl --scores standalone.jsonl --out elastic.png
    """
    arguments = [name for name, value in locals().items() if value is not None and value != []]
    what = {"RUN": run, "--arch": arch, "--distribution": distribution, "--ranking": ranking,
            "--scores": scores}
    given = [name for name, value in what.items() if value]
    if len(given) != 1:
        raise UserError(f"give exactly one of {', '.join(what)}; got {' and '.join(given) or 'none'}")
    if run and out:
        raise UserError("the pictures of a run go to RUN/plots; --out goes with --arch, --distribution, --ranking or --scores")
    check_used(given[0], arguments)
    if not run and (out is None or not out.endswith(".png")):
        raise UserError(f"{given[0]} needs --out FILE.png, got {out or 'none'}")

    from oneshot_nas.plots.runs import COUNT, plot_run
    from oneshot_nas.plots.style import save

    if run:
        files = plot_run(run, compare or (), count or COUNT, storage, study)
    elif arch:
        files = [save(draw_arch(arch, rule or "macs"), str(out))]
    elif ranking:
        files = [save(draw_ranking(*ranking, score or "top1", standalone_score), str(out))]
    elif scores:
        files = [save(draw_scores(scores, score or "top1", rule or "macs"), str(out))]
    else:
        from oneshot_nas.plots.distribution import distribution as draw_samples

        samples = samples_of(distribution or [], sampler or [], flops, params, option or [], count or COUNT, seed, rule)
        files = [save(draw_samples(samples), str(out))]
    for path in files:
        typer.echo(json.dumps({"file": str(path)}) if as_json else str(path))


def check_used(what: str, arguments: list[str]) -> None:
    """Raise UserError for an argument that says nothing about what is drawn."""
    for name in arguments:
        if name not in USED[what]:
            users = words([other for other in USED if name in USED[other]])
            raise UserError(f"--{name.replace('_', '-')} goes with {users}, not with {what}; leave it out")


def draw_arch(path: str, rule: str) -> Figure:
    """The drawing of the one architecture in a file. Raises: UserError."""
    from oneshot_nas.arch import read_archs
    from oneshot_nas.plots.architecture import architecture

    archs = read_archs(path)
    arch = next(archs)
    if next(archs, None) is not None:
        raise UserError(f"{path} holds more than one architecture; --arch draws one, give a file with one line")
    return architecture(arch, "" if path == "-" else Path(path).stem, rule)


def draw_ranking(first: str, second: str, score: str, standalone_score: str | None) -> Figure:
    """The scores of two JSON Lines files against each other; accuracies in percent.

    Without a name, the second score is 'top1', or the first one where the second file has no 'top1'. Raises: UserError.
    """
    from oneshot_nas.indicators.ranking import paired, read_scores
    from oneshot_nas.plots.ranking import ranking

    found = read_scores(first, score)
    name, alone = standalone(second, [standalone_score] if standalone_score else ["top1", score])
    indicator, reached = paired(found, alone, (first, second))
    lonely = [f"{len(scores) - len(indicator)} of {path}" for path, scores in ((first, found), (second, alone))
              if len(scores) > len(indicator)]
    if lonely:
        typer.echo(f"compared are {len(indicator)} architectures; without a partner are {' and '.join(lonely)}", err=True)
    x, x_label = percent(first, score, indicator)
    y, y_label = percent(second, name, reached)
    return ranking(x, y, x_label, y_label)


def draw_scores(paths: list[str], score: str, rule: str) -> Figure:
    """The scores of JSON Lines files against FLOPs; accuracies in percent. Raises: UserError."""
    from oneshot_nas.costs.analytic import cost
    from oneshot_nas.indicators.ranking import scored_archs
    from oneshot_nas.plots.scores import scores_against_flops

    scale, unit = unit_of(score)
    series = {Path(path).stem: [(cost(arch, rule).flops, scale * value) for arch, value in scored_archs(path, score)]
              for path in paths}
    if len(series) < len(paths):
        raise UserError(f"the names of the files tell the lines apart, so they must differ; got {', '.join(paths)}")
    return scores_against_flops(series, f"{score}{unit}", rule)


def standalone(path: str, names: list[str]) -> tuple[str, dict[str, float]]:
    """The first of the names that is in the file, and its scores. Raises: UserError about the first name when none is."""
    from oneshot_nas.indicators.ranking import read_scores

    for name in names:
        with suppress(UserError):
            return name, read_scores(path, name)
    return names[0], read_scores(path, names[0])


def percent(path: str, score: str, values: list[float]) -> tuple[list[float], str]:
    """Values as a picture has them, accuracies in percent, and what they are."""
    scale, unit = unit_of(score)
    return [scale * value for value in values], f"{Path(path).stem}: {score}{unit}"


def unit_of(score: str) -> tuple[int, str]:
    """What a score is multiplied by for a picture, and its unit: accuracies are in percent."""
    return (100, " (%)") if score in ("top1", "top5") else (1, "")


def samples_of(sources: list[str], samplers: list[str], flops: str | None, params: str | None, options: list[str], count: int,
               seed: int | None, rule: str | None) -> dict[str, Costs]:
    """Costs of every named sampler (default: uniform) of every space, and of the samplers of recipes. Raises: UserError."""
    from oneshot_nas.arch import get_space, list_spaces, parse_options
    from oneshot_nas.config import Recipe, read_recipe, training_space
    from oneshot_nas.plots.distribution import sampler_costs

    if set(sources) & set(list_spaces()):
        configs = named_samplers(samplers or ["uniform"], flops, params, rule or "macs")
    elif samplers or flops or params or rule or seed is not None:
        raise UserError(f"--sampler, --flops, --params, --rule and --seed go with a space, '{sources[0]}' is none of "
                        f"{', '.join(list_spaces())}; a recipe says its own, leave them out")
    samples: dict[str, Costs] = {}
    for source in sources:
        if source in list_spaces():
            space = get_space(source, **parse_options(source, options))
            epochs = int(Recipe.model_fields["epochs"].default)
            for config in configs:
                samples[f"{source}, {config.name}"] = sampler_costs(space, config, count, epochs, seed or 0)
        else:
            recipe = read_recipe(source)
            if recipe.space is None:
                raise UserError(f"recipe {source} trains a fixed network, which has no sampler; give one with 'space'")
            space = training_space(recipe.space, {**recipe.options, **parse_options(recipe.space, options)}, recipe.allowed)
            name = f"{Path(source).stem} ({recipe.sampler.name})"
            samples[name] = sampler_costs(space, recipe.sampler, count, recipe.epochs, recipe.seed)
    return samples
