"""Make RecordIO data sets, and check them record by record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oneshot_nas import shell
from oneshot_nas.data.folder import SUFFIXES, VAL_RATIO

if TYPE_CHECKING:
    from oneshot_nas.data.datasets import Dataset, Report

HELP = "Make RecordIO data sets and check them.  Example:  oneshot-nas data digits data/digits"
app = typer.Typer(no_args_is_help=True, help=HELP)

SHOWN = 20

Out = Annotated[Path, typer.Argument(help="Folder for train/val .rec and .idx and dataset.json.")]
Seed = Annotated[int, typer.Option(help="Seed of the train/val split.")]
ValRatio = Annotated[float, typer.Option(help="Share of every class that goes to val.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the data set that OUT already holds.")]
Resize = Annotated[
    int | None, typer.Option(help="Shrink images to this short side in pixels; without it they are kept as they are.")
]
Quality = Annotated[int, typer.Option(help="JPEG quality of images that were shrunk, 1 to 100.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that cannot be read, naming each, instead of stopping.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Threads = Annotated[int, typer.Option(min=1, help="Decoding threads.")]


@app.command()
def digits(
    out: Out,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 32,
    val_ratio: ValRatio = 0.2,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Pack scikit-learn's 1797 handwritten digits.

    Example:  oneshot-nas data digits data/digits
    """
    from oneshot_nas.data.packers import pack_digits

    _tell(out, "digits", pack_digits(out, size=size, val_ratio=val_ratio, seed=seed, overwrite=overwrite), as_json)


@app.command()
def folder(
    source: Annotated[Path, typer.Argument(
        help="Folder with one folder of images per class, or with train/ and val/ of these. "
             f"Images are files that end in {' '.join(SUFFIXES)}.")],
    out: Out,
    val_ratio: Annotated[float | None, typer.Option(
        help=f"Share of every class that goes to val (default: {VAL_RATIO}); not with train/ and val/ folders.")] = None,
    resize: Resize = None,
    quality: Quality = 95,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    threads: Threads = 2,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Pack a folder of class folders; the sorted folder names are the classes.

    Example:  oneshot-nas data folder photos data/photos --resize 256
    """
    from oneshot_nas.data.packers import pack_folder

    dataset, skipped, others = pack_folder(
        source, out, val_ratio=val_ratio, resize=resize, quality=quality, seed=seed, skip_bad=skip_bad, threads=threads,
        overwrite=overwrite,
    )  # fmt: skip
    for reason in skipped:
        typer.echo(f"left out: {reason}", err=True)
    if others:
        endings = ", ".join(f"{count} {ending}" for ending, count in others.items())
        files = "1 file" if sum(others.values()) == 1 else f"{sum(others.values())} files"
        typer.echo(f"left out: {files} that are no images ({' '.join(SUFFIXES)}) of a class folder: {endings}", err=True)
    _tell(out, "folder", dataset, as_json, skipped, others)


@app.command()
def cifar10(
    archive: Annotated[Path, typer.Argument(help="The official cifar-10-python.tar.gz, downloaded by you.")],
    out: Out,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Pack the official CIFAR-10 python archive; nothing in it is executed.

    Example:  oneshot-nas data cifar10 cifar-10-python.tar.gz data/cifar10
    """
    from oneshot_nas.data.cifar import pack_cifar10

    _tell(out, "cifar10", pack_cifar10(archive, out, overwrite=overwrite), as_json)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="A data set folder or a single .rec file.")],
    rebuild_index: Annotated[bool, typer.Option("--rebuild-index", help="First write the .idx anew from the .rec.")] = False,
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """Decode every record and name the bad ones; exit code 2 when there are any.

    Example:  oneshot-nas data check data/digits
    """
    from oneshot_nas.data.datasets import check as check_records
    from oneshot_nas.data.datasets import declared_classes, find_recs, load_dataset
    from oneshot_nas.data.recordio import rebuild_index as rebuild
    from oneshot_nas.errors import UserError

    recs = list(find_recs(path).values())
    for rec in recs if rebuild_index else []:
        typer.echo(f"{rec.with_suffix('.idx')}: index of {rebuild(rec)} records written", err=True)
    reports = []
    wrong: UserError | None = None
    try:
        for rec in recs:
            names = declared_classes(rec.parent)
            reports.append(check_records(rec, class_count=len(names) if names else None, threads=threads))
        bad = [f"{record} of {report.rec}: {record.reason}" for report in reports for record in report.bad]
        if bad:
            count = "1 bad record:" if len(bad) == 1 else f"{len(bad)} bad records, the first is"
            raise UserError(f"{count} {bad[0]}; pack the data set again without {'it' if len(bad) == 1 else 'them'}")
        load_dataset(path)  # sound records may not belong together, or to dataset.json
    except UserError as error:
        wrong = error
    if as_json:
        about = {"ok": wrong is None, "files": [asdict(report) for report in reports]}
        typer.echo(json.dumps(about if wrong is None else {**about, "error": str(wrong)}))
    else:
        for report in reports:
            _show(report)
    if wrong is not None:
        raise wrong


def _show(report: Report) -> None:
    """Print what a check found in one file."""
    low, high = ("x".join(map(str, size)) for size in (report.smallest, report.largest))
    labels = f"{len(report.counts)} classes, labels {report.label_range[0]} to {report.label_range[1]}"
    typer.echo(f"{report.rec}: {report.records} records, {labels}, height x width {low} to {high}, {len(report.bad)} bad")
    for record in report.bad[:SHOWN]:
        typer.echo(f"  bad: {record}: {record.reason}")
    if len(report.bad) > SHOWN:
        typer.echo(f"  and {len(report.bad) - SHOWN} more; --json lists all")


def _tell(out: Path, source: str, dataset: Dataset, as_json: bool, skipped: tuple[str, ...] = (),
          others: Mapping[str, int] | None = None) -> None:
    """Print what was written and the command that comes next."""
    counts, size = dataset.counts, dataset.image_size
    if as_json:
        about = {"data": str(out), "classes": dataset.class_count, **counts, "image_size": size, "skipped": skipped}
        typer.echo(json.dumps({**about, "other_files": others or {}, "mean": dataset.mean, "std": dataset.std}))
        return
    sizes = "x".join(map(str, size)) if size else "sizes vary"
    typer.echo(f"{out}: {counts['train']} train and {counts['val']} val images of {dataset.class_count} classes, {sizes}")
    recipe = shell.recipe(f"{source}_supernet")
    typer.echo(f"next: {shell.command('train', '--recipe', recipe, '--set', f'data={out}', '--out', f'runs/{source}')}")
