"""A recipe (YAML) as typed, strict values, and the run folder that a command works in."""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from oneshot_nas.arch import Space, get_space, read_arch
from oneshot_nas.errors import UserError
from oneshot_nas.files import LOCK, VERSION, check_kind, held, read_text, write_text
from oneshot_nas.later import check_later, later
from oneshot_nas.sections import (
    AugmentConfig,
    Guard,
    HoldoutConfig,
    Loss,
    Optimizer,
    Progressive,
    Records,
    Sampler,
    Schedule,
    Section,
    Start,
    Values,
)
from oneshot_nas.spacefile import FREE, check_options, read_space, space_json
from oneshot_nas.values import Value, same_kind, shorten, show

SAVED = "state saved, the same command resumes"  # what an interruption of work in a run folder says
KIND = "recipe"  # of the config.yaml of a training run
SUPERNETS = ("space", "allowed", "sampler", "holdout", "bn_momentum")  # keys that mean nothing for a fixed network
MAX_TEXT = 250_000  # characters of a file; PyYAML reads some 100,000 a second
MAX_SCALAR = 3000  # characters of one value; longer whole numbers than that cannot even be printed


class Recipe(Section):
    """Everything a training run depends on. `space` trains a supernet, `arch` or `model` a fixed network."""

    space: str | None = None
    options: Values = Field(default={}, description="of the space, or of the model")
    allowed: dict[str, tuple[Value | tuple[Value, ...], ...]] = Field(
        default={}, description="of a supernet: choice -> the values trained, and later searched, at every position where legal, "
                                "or one list per position; or the path of a space file (oneshot-nas shrink)")
    arch: dict[str, Any] | None = None
    model: str | None = None
    start: Start | None = None
    trainable: Literal["all", "bn", "scoring-bn"] = Field(
        default="all", description="what moves: everything; gamma and beta; those of each candidate's last BatchNorm (BN-NAS)")
    depthwise_init: Literal["space", "fan_in"] = Field(
        default="space", description="how depthwise kernels start: as the space says (SPOS: std 1), or at std 1 / kernel^2")
    bn_momentum: float | None = Field(
        default=None, ge=0, le=1, description="share of the running statistics that a step keeps; none: the space's (0.9)")
    ema: float | None = Field(default=None, gt=0, lt=1, description="decay of averaged weights, which are validated, delivered")
    guard: Guard | None = Field(default=None, description="none: a loss that is no number ends the run")
    data: str | None = Field(default=None, description="folder with train.rec and val.rec, or of images in train/ and val/")
    records: Records | None = None
    epochs: int = Field(default=120, ge=1, le=1_000_000)
    batch_size: int = Field(default=128, ge=1, description="images of one step, over all contexts")
    seed: int = Field(default=0, ge=0, lt=2**31)
    contexts: int = Field(default=1, ge=1, le=64, description="CPU contexts or GPUs")
    device: Literal["cpu", "gpu"] = "cpu"
    dtype: Literal["float32", "float16"] = "float32"
    input_threads: int = Field(default=2, ge=1)
    crop_ratio: float | None = Field(default=None, gt=0, le=1, description="none: 0.875, or 1 for images of the input size")
    channels: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] | None = Field(default=None, description="in 0..255, in that order; none: the data set's")
    std: tuple[float, float, float] | None = None
    epoch_images: int | None = Field(default=None, ge=1, description="most images of an epoch; none: all")
    epoch_share: float = Field(default=1.0, gt=0, le=1, description="share of its steps that an epoch has")
    validate_every: int = Field(default=1, ge=1, description="epochs between validations")
    save_every: int = Field(default=1, ge=1, description="epochs between checkpoints; the last epoch is always saved")
    keep_initial: bool = Field(default=True, description="a supernet's run keeps initial.params, from which angles are measured")
    log_every: int | None = Field(default=None, ge=1, description="steps between progress lines; none: half a minute")
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    loss: Loss = Loss()
    sampler: Sampler = Sampler()
    augment: AugmentConfig = AugmentConfig()
    progressive: Progressive | None = Field(default=None, description="none: images of the input size from the first epoch on")
    holdout: HoldoutConfig = HoldoutConfig()

    @field_validator("dtype", mode="before")
    @classmethod
    def _dtype_there(cls, value: Any) -> Any:
        check_later(str(value), "dtypes are float32 and float16")
        return value

    @model_validator(mode="after")
    def _one_network(self) -> Recipe:
        if sum(value is not None for value in (self.space, self.arch, self.model)) != 1:
            raise ValueError("a recipe names exactly one of 'space' (supernet), 'arch' and 'model' (fixed network)")
        if self.space is not None:
            training_space(self.space, self.options, self.allowed)
        elif self.allowed:
            raise ValueError("'allowed' narrows the space of a supernet; a fixed network has no choices left")
        if self.arch is not None:
            read_arch(self.arch)
            if self.options:
                raise ValueError("'options' are of a space or a model; an architecture has its own, inside 'arch'")
        if self.model is not None:
            for name in ("classes", "input_size"):
                value = self.options.get(name, 1)
                if type(value) is not int or value < 1:
                    raise ValueError(f"'options.{name}' = {value!r}: a whole number above 0 is needed")
        if self.dtype == "float16" and self.device == "cpu":
            raise ValueError("dtype float16 needs device gpu: MXNet has no half-precision convolution on the CPU")
        if self.dtype == "float16" and self.space is not None:
            raise ValueError("dtype float16 is for a fixed network (--arch ARCH.json, or 'model'); a supernet trains in float32")
        if self.data and self.records is not None:
            raise ValueError("'data' and 'records' both name the images; give one, such as --set records=null beside data")
        if self.epoch_images is not None and self.epoch_images < self.batch_size:
            raise ValueError(f"'epoch_images' {self.epoch_images} are less than one step's 'batch_size' {self.batch_size}")
        if self.batch_size % self.contexts:
            raise ValueError(f"batch_size {self.batch_size} cannot be shared evenly by {self.contexts} contexts")
        if self.start is not None and self.start.epoch > self.epochs:
            raise ValueError(f"'start.epoch' {self.start.epoch} is beyond the recipe's {self.epochs} epochs; {self.epochs} takes "
                             "finished weights over")
        if self.start is not None and self.start.supernet is not None and self.arch is None:
            raise ValueError("'start.supernet' is for a network with 'arch' (--arch ARCH.json)")
        if self.sampler.sandwich is not None and self.loss.teacher is not None:
            raise ValueError("a sandwich step has a teacher of its own, the largest network; leave out 'loss.teacher'")
        if self.sampler.operator_warmup and self.trainable == "scoring-bn":
            raise ValueError("trainable 'scoring-bn' compares operators by how their gammas move, which needs equal training: "
                             "leave out 'sampler.operator_warmup'")
        if self.space is None and self.trainable == "scoring-bn":
            raise ValueError("trainable 'scoring-bn' is for a supernet; a fixed network has no candidates, take 'bn' or 'all'")
        if self.depthwise_init != "space" and self.options.get("pretrained"):
            raise ValueError("'depthwise_init' is for random weights; leave it out with options.pretrained")
        if self.space is not None and self.progressive is not None:
            raise ValueError("'progressive' is for a fixed network; a supernet's images keep their size")
        if self.progressive is not None and self.progressive.epochs >= self.epochs:
            raise ValueError(f"'progressive.epochs' {self.progressive.epochs} leaves none of {self.epochs} epochs to full-size "
                             "images")
        if self.space is None and self.sampler != Sampler():
            raise ValueError("'sampler' is for a supernet ('space'); a fixed network has nothing to draw")
        if self.space is None and self.holdout != HoldoutConfig():
            raise ValueError("'holdout' is for a supernet; a fixed network is trained on all training images")
        if self.space is None and self.bn_momentum is not None:
            raise ValueError("'bn_momentum' is for a supernet; a fixed network keeps the momentum of its space")
        return self


def training_space(name: str, options: Mapping[str, Any], allowed: Mapping[str, Sequence[Any]]) -> Space:
    """Return the space that a supernet is trained and searched in: choices named in `allowed` keep those values only.

    `allowed[choice]` is one list for every position, or one list per position.
    Raises: UserError for an unknown space, option or choice, a value that no position takes, or a position left empty.
    """
    space = get_space(name, **options)
    kept: dict[str, Sequence[Sequence[Any]]] = {}
    for choice_name, wanted in allowed.items():
        choice = space.choice(choice_name)
        if any(isinstance(each, list | tuple) for each in wanted):
            if not all(isinstance(each, list | tuple) for each in wanted):
                raise UserError(f"allowed.{choice_name} mixes values and lists; give values, or one list per position")
            kept[choice_name] = wanted
            continue
        known = {value for values in choice.values for value in values}
        for value in wanted:
            if not any(same_kind(value, other) for other in known):
                raise UserError(f"allowed.{choice_name} has {value!r}, which is not one of {show(sorted(known, key=str))} "
                                f"in space '{name}'")
        kept[choice_name] = [[v for v in values if any(same_kind(w, v) for w in wanted)] for values in choice.values]
    return space.restrict(kept)


def read_recipe(path: str | os.PathLike, overrides: Iterable[str] = (), arch: dict[str, Any] | None = None) -> Recipe:
    """Return the recipe of a YAML file with ``key.sub=value`` overrides; `arch` makes it the recipe of a fixed network.

    Raises: UserError that names the key, what was given and what is allowed.
    """
    return parse_recipe(parse_yaml(read_text(path, "recipe"), str(path)), overrides, arch, str(path))


def parse_recipe(content: Any, overrides: Iterable[str], arch: dict[str, Any] | None, source: str) -> Recipe:
    """The recipe of parsed YAML; see `read_recipe`."""
    if not isinstance(content, dict):
        raise UserError(f"recipe {source} must be a mapping of keys to values")
    if "kind" in content:  # every file of a run says what it is; a recipe written by hand need not
        check_kind(content, source, KIND)
        content = {key: value for key, value in content.items() if key not in ("kind", "version")}
    if arch is not None and content.get("space") is not None:  # a supernet's own start and trained part are not its networks'
        content = {key: value for key, value in content.items() if key not in ("trainable", "start")}
    for override in overrides:
        _override(content, override)
    if arch is not None:
        for key in (override.partition("=")[0] for override in overrides):
            section = key.partition(".")[0]
            if section in SUPERNETS:
                raise UserError(f"--set {key} is about a supernet; with an architecture its own network is trained, leave it out")
            if section in ("options", "model"):
                raise UserError(f"--set {key} would change the network, which the architecture fixes; leave it out, or make "
                                "another architecture: oneshot-nas arch FILE --option NAME=VALUE")
        content = {key: value for key, value in content.items() if key not in ("options", "model", *SUPERNETS)}
        content["arch"] = arch
    if isinstance(content.get("allowed"), str):
        content = _with_space_file(content, content["allowed"])
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"recipe {source}: {'; '.join(_sentences(error.errors()))}") from None


def _with_space_file(content: dict[str, Any], path: str) -> dict[str, Any]:
    """The recipe with the values of a space file in place of its path."""
    space, options = read_space(path), content.get("options") or {}
    if not isinstance(options, dict):
        raise UserError("'options' must be a mapping")
    check_options(space, str(content.get("space")), options.items(), path)
    return {**content, "options": {**{k: v for k, v in space.options.items() if k not in FREE}, **options},
            "allowed": space_json(space)["allowed"]}


def _differences(key: str, before: Any, after: Any, unset: bool) -> list[str]:
    """What differs between two values of a recipe, by key of the innermost section; with `unset` a None after fits everything."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [text for part in {**before, **after} for text in
                _differences(f"{key}.{part}", before.get(part), after.get(part), unset)]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [text for place, pair in enumerate(zip(before, after, strict=True)) for text in
                _differences(f"{key}[{place}]", *pair, unset)]
    return [] if before == after or (unset and after is None) else [f"{key}: {shorten(before)} -> {shorten(after)}"]


def _sentences(errors: Iterable[Any]) -> Iterator[str]:
    """One sentence per value: where several types are allowed, pydantic tells one error per type."""
    told: set[tuple] = set()
    for error in errors:
        place = tuple(takewhile(lambda part: part not in PLAIN and not str(part).startswith("tuple["), error["loc"]))
        if place == error["loc"] or error["type"] == "extra_forbidden":
            yield _sentence(error)
        elif place not in told:
            told.add(place)
            given = f"'{'.'.join(map(str, place))}' = {shorten(error['input'])}"
            yield f"{given}: a word, a number, true, false or a list of them is needed"


def _sentence(error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        section: Any = Recipe
        for part in error["loc"][:-1]:
            kind = section.model_fields[part].annotation
            section = next(each for each in (kind, *get_args(kind)) if hasattr(each, "model_fields"))
        meant = difflib.get_close_matches(str(error["loc"][-1]), section.model_fields, n=1)
        hint = f"; did you mean '{meant[0]}'?" if meant else ""
        allowed = f"allowed are {', '.join(section.model_fields)}{hint}"
        return later(str(error["loc"][-1]), allowed) or f"unknown key '{key}'; {allowed}"
    message = WANTED.get(error["type"], error["msg"].removeprefix("Value error, "))
    given = error.get("input")
    return message if not key else f"'{key}' = {str(given)[:60]!r}: {message}"


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r} is not key=value, such as epochs=10 or optimizer.lr=0.1")
    *sections, last = key.split(".")
    target = content
    for section in sections:
        if target.get(section) is None:
            target[section] = {}
        target = target[section]
        if not isinstance(target, dict):
            raise UserError(f"--set {override!r}: '{section}' is not a section of the recipe")
    target[last] = parse_yaml(value, f"--set {key}") if last not in ("data", "flops", "params", "supernet") else value


def parse_yaml(text: str, source: str) -> Any:
    """Return plain YAML data; tags, aliases that multiply, deep nesting and endless texts are refused. Raises: UserError."""
    if len(text) > MAX_TEXT:
        raise UserError(f"{source} has {len(text):,} characters; YAML of more than {MAX_TEXT:,} is refused")
    try:
        depth = 0
        for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > 20 or count > 100_000 or isinstance(event, yaml.AliasEvent):
                raise UserError(f"{source}: YAML nested deeper than 20, with aliases, or longer than 100,000 items is refused")
            if getattr(event, "tag", None) is not None or len(getattr(event, "value", "")) > MAX_SCALAR:
                raise UserError(f"{source}: YAML with tags (!...) or a value of more than {MAX_SCALAR:,} characters is refused")
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, ValueError, ArithmeticError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source} is not plain YAML: {' '.join(str(error).split())[:200]}") from None


class _Loader(yaml.SafeLoader):
    """Plain data only, and no key twice: YAML's own readers let the last one win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.YAMLError(f"key '{name}' is given twice, the second time in line {key.start_mark.line + 1}")
            seen.add(name)
        return super().construct_mapping(node, deep)


def dump_recipe(recipe: Recipe) -> str:
    """YAML text of the whole recipe, defaults included; reading it gives the same recipe."""
    content = {"kind": KIND, "version": VERSION, **recipe.model_dump(mode="json")}
    return yaml.safe_dump(content, sort_keys=False, width=120)


PLAIN = ("bool", "int", "float", "str")  # how pydantic names the types that a decision or an option may have
# What pydantic calls the wrong type, in the words of a recipe.
WANTED = {"tuple_type": "a list is needed, such as [1, 2]", "list_type": "a list is needed, such as [1, 2]",
          "dict_type": "a section of keys is needed, such as {key: value}",
          "model_type": "a section of keys is needed, such as {key: value}",
          "model_attributes_type": "a section of keys is needed, such as {key: value}"}
INERT = ("input_threads", "save_every", "keep_initial", "log_every")  # keys of a recipe that decide no number


class RunFolder:
    """The files of one run, by their fixed names (see interface of the command line)."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)

    def __getattr__(self, name: str) -> Path:
        names = {"config": "config.yaml", "log": "log.txt", "metrics": "metrics.jsonl", "checkpoint": "checkpoint",
                 "initial": "initial.params", "arch": "arch.json", "supernet": "supernet.json", "study": "study.db",
                 "result": "result.json", "plots": "plots"}
        if name not in names:
            raise AttributeError(name)
        return self.path / names[name]

    def save_recipe(self, recipe: Recipe) -> None:
        """Write config.yaml, of a recipe that `check_recipe` has passed."""
        write_text(self.config, dump_recipe(recipe))

    def check_recipe(self, recipe: Recipe, unset: bool = False) -> None:
        """Raise UserError when the folder holds a checkpoint of another recipe; what decides no number may differ.

        With `unset` what the recipe leaves to the data and to defaults may be anything, as before it is resolved.
        """
        if not self.config.exists():
            return
        before, after = read_recipe(self.config).model_dump(), recipe.model_dump()
        inert = set(INERT) - ({"save_every"} if recipe.guard is not None else set())  # it decides where a guard goes back to
        changed = [text for key in after if key not in inert for text in _differences(key, before[key], after[key], unset)]
        if changed and (self.checkpoint / "latest.json").exists():
            told = "; ".join(changed[:5] + ["..."] * (len(changed) > 5))
            raise UserError(f"{self.path} holds a run with another recipe ({told}); give the same recipe to resume it, or "
                            "another folder")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process; the lock goes with the process, also after a kill.

        Raises: UserError when another process works in it, or when the folder cannot be made.
        """
        made = not self.path.exists()
        with held(self.path, f"another process is working in {self.path}; wait for it, or give another folder"):
            for path in self.path.glob(".*.tmp"):  # of a process that was killed
                path.unlink(missing_ok=True)
            try:
                yield
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt(*(stop.args or (SAVED,))) from None
            except UserError:
                if made:
                    self._remove_unused()
                raise

    def forget(self) -> None:
        """Remove what a first try left that did not come to a checkpoint: it may have been of another kind of network."""
        for path in (self.supernet, self.arch, self.result, self.initial, Path(f"{self.initial}.json")):
            path.unlink(missing_ok=True)

    def _remove_unused(self) -> None:
        """Remove the folder if nothing but the lock and an empty log came to be in it."""
        if all(path.name == LOCK or (path == self.log and not path.stat().st_size) for path in self.path.iterdir()):
            shutil.rmtree(self.path)
