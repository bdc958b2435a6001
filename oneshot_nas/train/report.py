"""What a training run tells: log.txt, progress on stderr, metrics.jsonl and TensorBoard scalars."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from oneshot_nas.config import Recipe
from oneshot_nas.files import write_text
from oneshot_nas.progress import QUIET_SECONDS
from oneshot_nas.shell import command

Log = Callable[[str], None]
Scalars = Callable[[Mapping[str, Any], int], None]


@contextmanager
def logging(path: Path, say: Log | None) -> Iterator[Log]:
    """Yield a function that writes a line to the file `path` and to `say` (default: stderr)."""
    with open(path, "a", encoding="utf-8") as handle:
        def log(text: str) -> None:
            (say or to_stderr)(text)
            handle.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
            handle.flush()
        yield log


def to_stderr(text: str) -> None:
    """Print a line on stderr, above a progress bar when there is one."""
    tqdm.write(text, file=sys.stderr)


def kept_metrics(path: Path, epochs: int) -> list[dict[str, Any]]:
    """Return the lines of the first `epochs` epochs; those of epochs that will run again are removed from the file."""
    if not path.exists():
        return []
    lines = map(_parsed, path.read_text(encoding="utf-8").splitlines())
    kept = [line for line in lines if line.get("epoch", epochs + 1) <= epochs]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


def _parsed(line: str) -> dict[str, Any]:
    """The object of one line, {} for one that a kill has cut off."""
    try:
        return json.loads(line)
    except ValueError:
        return {}


def append_metrics(path: Path, line: Mapping[str, Any]) -> None:
    """Add one line to metrics.jsonl."""
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(line) + "\n")


def next_command(recipe: Recipe, out: str | os.PathLike) -> str:
    """The command that makes use of a finished run."""
    out = Path(out)  # without a slash at its end
    if recipe.space is not None and 0 in (recipe.holdout.calibration, recipe.holdout.validation):
        return command("search", "--supernet", out, "--out", f"{out}-search", "--indicator", "bn-gamma", "--algorithm", "exact")
    if recipe.space is not None:
        return command("search", "--supernet", out, "--out", f"{out}-search", "--algorithm", "evolution", "--budget", 200,
                       "--population", 50)
    return command("export", "--run", out, "--format", "symbol,onnx", "--out", f"{out}/export")


@contextmanager
def tensorboard(folder: Path, epoch: int) -> Iterator[Scalars]:
    """Yield a function (name -> number, epoch) that writes TensorBoard scalars to `folder`; later epochs there are hidden.

    Written at once and in this thread, so that a full disk is an error here and not one of a thread that nobody sees.
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar

    folder.mkdir(parents=True, exist_ok=True)
    with closing(EventsWriter(str(folder / "events"), f".{epoch}")) as writer:
        writer.write_event(Event(step=epoch + 1, session_log=SessionLog(status=SessionLog.START)))

        def scalars(values: Mapping[str, Any], step: int) -> None:
            for name, value in values.items():
                if isinstance(value, float):
                    writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            writer.flush()

        yield scalars


@dataclass
class Tally:
    """Sums over the steps of an epoch, kept on the device until they are read."""

    loss: Any = 0.0
    right: Any = 0.0
    images: int = 0

    def add(self, losses: list, outputs: list, labels: list) -> None:
        """Count the losses (n,), logits (n, K) and labels (n,) of every shard of a step."""
        home = losses[0].context
        for loss, logits, label in zip(losses, outputs, labels, strict=True):
            self.loss = self.loss + loss.astype("float32").sum().as_in_context(home)
            hits = (logits.argmax(axis=1).astype("float32") == label.as_in_context(logits.context)).sum()
            self.right = self.right + hits.as_in_context(home)
            self.images += len(label)

    def read(self) -> tuple[float, float]:
        """(mean loss, share of right answers) so far."""
        return float(self.loss.asscalar()) / self.images, float(self.right.asscalar()) / self.images


def speed(images: int, seconds: float) -> str:
    """Images per second, in whole ones from ten on: '503 images/s', '0.63 images/s'."""
    rate = images / seconds
    return f"{rate:.{0 if rate >= 10 else 2}f} images/s"


class Bar:
    """A tqdm bar on a terminal, a line now and then elsewhere: images/s, share of data waiting, loss, remaining time."""

    def __init__(self, epoch: int, epochs: int, steps: int) -> None:
        self.what, self.steps, self.left = f"epoch {epoch + 1}/{epochs}", steps, epochs - epoch - 1
        quiet = not sys.stderr.isatty()
        self.bar = tqdm(total=steps, desc=self.what, unit="step", leave=False, dynamic_ncols=True, disable=quiet)
        self.start = self.told = time.monotonic()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()

    def show(self, done: int, images: int, wait: float, loss: float, top1: float, log: Log | None) -> None:
        """Show that `done` steps of this epoch are done, in the log too when it is given."""
        now = time.monotonic()
        remaining = (now - self.start) / done * (self.steps * (self.left + 1) - done)
        clock = f"{int(remaining // 3600)}:{int(remaining // 60 % 60):02d}:{int(remaining % 60):02d}"
        text = (f"{speed(images, now - self.start)}, data wait {wait:.0%}, loss {loss:.3f}, top1 {top1:.3f}, "
                f"whole run done in {clock}")
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(done - self.bar.n)
        quiet = self.bar.disable and now - self.told > QUIET_SECONDS
        if log or quiet:
            self.told = now
            (log or to_stderr)(f"{self.what}: step {done} of {self.steps}, {text}")
