"""The flags of train_imagenet.py as a recipe of our own engine, and their run."""

from __future__ import annotations

import re
from argparse import Namespace
from typing import Any

from oneshot_nas.arch import get_space
from oneshot_nas.config import Recipe, parse_recipe
from oneshot_nas.errors import UserError
from oneshot_nas.model_zoo import list_models, published
from oneshot_nas.train.flag_parser import BACKENDS, FIXED, IMAGENET, LAYOUTS, PAPER, SMOOTHING, SUPERNET, parser

SPACE = "spos_shufflenet"
LEAST_SCALE = 0.6  # of --ignore-first-two-cs: the first two of the ten scales are 0.2 and 0.4
LIMITS = re.compile(r"flops-(\d+(?:\.\d+)?)-params-(\d+(?:\.\d+)?)")  # millions; 0 is no limit


def run(args: Namespace) -> None:
    """Train what the flags say, then print the run folder and the next command. Raises: UserError, WorkError."""
    recipe = recipe_of(args)
    if args.logging_file:
        _check_log(args.logging_file)

    from oneshot_nas.train.loop import train
    from oneshot_nas.train.report import next_command, to_stderr

    def say(text: str) -> None:
        to_stderr(text)
        if args.logging_file:
            with open(args.logging_file, "a", encoding="utf-8") as handle:
                handle.write(f"{text}\n")

    out = save_dir(args)
    train(recipe, out, say)
    print(f"run folder: {out}\nnext: {next_command(recipe, out)}")


def _check_log(path: str) -> None:
    """Raise UserError when no line can be added to a log."""
    try:
        open(path, "a", encoding="utf-8").close()
    except OSError as error:
        raise UserError(f"cannot write --logging-file {path}: {error.strerror or error}") from None


def recipe_of(args: Namespace) -> Recipe:
    """The recipe that the flags describe. Raises: UserError for a value that is not allowed or flags that do not go together."""
    _check_flags(args)
    content = {**_model(args), **_data(args), **_training(args), **_run(args)}
    return parse_recipe(content, (), None, "of these flags")


def save_dir(args: Namespace) -> str:
    """The run folder."""
    return args.save_dir or f"runs/{args.model}"


# flags that mean something for some models only
ONLY: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("supernet", ("use_all_blocks", "use_all_channels", "cs_warm_up", "operator_warmup", "ignore_first_two_cs", "epoch_start_cs",
                  "train_constraint_method", "train_upper_constraints", "train_bottom_constraints", "calibration_images",
                  "plain_calibration", "search_images")),
    ("arch", ("block_choices", "channel_choices")),
    ("supernet or arch", ("channels_layout", "last_conv_after_pooling", "use_se")),
    ("zoo or gluoncv", ("use_pretrained",)),
    ("gluoncv", ("batch_norm", "use_gn", "last_gamma")),
)
# flags that mean something beside another one only
BESIDE = {"mixup_alpha": "mixup", "mixup_off_epoch": "mixup", "warmup_lr": "warmup_epochs", "teacher_params": "teacher",
          "temperature": "teacher", "hard_weight": "teacher", "resume_states": "resume_params", "resume_epoch": "resume_params",
          **dict.fromkeys(("rec_train", "rec_train_idx", "rec_val", "rec_val_idx"), "use_rec")}
WORDS = {"supernet": SUPERNET, "arch": FIXED, "zoo": "the networks of our zoo", "gluoncv": "GluonCV's models"}


def _kind(model: str) -> str:
    ours = {SUPERNET.lower(): "supernet", FIXED.lower(): "arch"}
    return ours.get(model.lower(), "zoo" if model in list_models() else "gluoncv")


def _check_flags(args: Namespace) -> None:
    """Raise UserError for a flag that would be passed over in silence."""
    kind, usual = _kind(args.model), parser()

    def given(name: str) -> bool:
        return getattr(args, name) not in ("", usual.get_default(name))

    for kinds, names in ONLY:
        for name in names:
            if kind not in kinds.split(" or ") and given(name):
                allowed = " and ".join(WORDS[each] for each in kinds.split(" or "))
                raise UserError(f"--{name.replace('_', '-')} is for {allowed}, not for --model {args.model}; leave it out")
    if args.data_backend != BACKENDS[0]:
        raise UserError(f"--data-backend {args.data_backend} is not there; leave it out: our loader decodes on the CPU with "
                        "--num-data-workers threads")
    for name, other in BESIDE.items():
        if given(name) and not getattr(args, other):
            flag, needed = (f"--{word.replace('_', '-')}" for word in (name, other))
            raise UserError(f"{flag} means nothing without {needed}; give {needed} as well, or leave it out")
    if args.num_gpus and args.num_cpus != 1:
        raise UserError("--num-cpus divides the work when there are no GPUs; give either --num-gpus or --num-cpus")
    for name in ("num_gpus", "save_frequency", "log_interval", "lr_decay_period", "resume_epoch"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)} must be 0 or more")
    if args.reduced_dataset_scale < 1:
        raise UserError(f"--reduced-dataset-scale {args.reduced_dataset_scale:g} must be 1 or more: N leaves 1/N of the steps")


def _model(args: Namespace) -> dict[str, Any]:
    kind = _kind(args.model)
    options: dict[str, Any] = {"input_size": args.input_size}
    if args.num_classes is not None:
        options["classes"] = args.num_classes
    if kind in ("zoo", "gluoncv"):
        switches = {"pretrained": args.use_pretrained, "batch_norm": args.batch_norm, "use_gn": args.use_gn,
                    "last_gamma": args.last_gamma}
        return {"model": args.model, "options": options | {name: True for name, on in switches.items() if on}}
    options |= {"se": args.use_se, "tail": "pooled" if args.last_conv_after_pooling else "conv",
                "layout": LAYOUTS[args.channels_layout or "OneShot"], "classifier_bias": True}
    if kind == "arch":
        return {"arch": _arch(args, options)}
    holdout = {"calibration": args.calibration_images, "validation": args.search_images, "augment": not args.plain_calibration}
    return {"space": SPACE, "options": options, "sampler": _sampler(args), "holdout": holdout}


def _arch(args: Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """The architecture of --block-choices and --channel-choices; without a class count it takes that of the data set."""
    space = get_space(SPACE, **options)
    paper = published(PAPER).choices
    given = {"block": args.block_choices, "scale": args.channel_choices}
    choices = {name: space.choice(name).decode(_numbers(text, f"--{flag}-choices", int), SPACE) if text else paper[name]
               for (name, text), flag in zip(given.items(), ("block", "channel"), strict=True)}
    arch = space.arch(choices)
    return {"space": SPACE, "options": options, "choices": {name: list(values) for name, values in arch.choices.items()}}


def _sampler(args: Namespace) -> dict[str, Any]:
    sampler: dict[str, Any] = {
        "name": {"": "uniform", "random": "box", "evolution": "stroll"}[args.train_constraint_method],
        "average_blocks": args.use_all_blocks,
        "operator_warmup": args.operator_warmup,
        "first_channel_epoch": args.num_epochs if args.use_all_channels else max(args.epoch_start_cs, 0),
    }
    if args.cs_warm_up:
        sampler["warmup"] = "shufflenetv2+" if args.channels_layout == "ShuffleNetV2+" else "oneshot"
    if args.ignore_first_two_cs:
        sampler["least_scale"] = LEAST_SCALE
    upper = _limits(args.train_upper_constraints, "--train-upper-constraints")
    bottom = _limits(args.train_bottom_constraints, "--train-bottom-constraints")
    limited = any((*upper, *bottom))
    if args.train_constraint_method and not limited:
        raise UserError(f"--train-constraint-method {args.train_constraint_method} needs --train-upper-constraints or "
                        "--train-bottom-constraints, such as flops-330-params-5.0")
    if limited and not args.train_constraint_method:
        sampler["name"] = "box"  # the predecessor's published script names no method
    for name, low, high in zip(("flops", "params"), bottom, upper, strict=True):
        if low or high:
            sampler[name] = ":".join(f"{limit}M" if limit else "" for limit in (low, high))
    return sampler | ({"rule": "oneshot-mxnet"} if limited else {})  # the predecessor's way to count


def _limits(text: str, flag: str) -> tuple[str, str]:
    """(FLOPs, params) in millions as text, '' for no limit, of text like flops-330-params-5.0; an empty text has no limits."""
    if not text.strip():
        return "", ""
    match = LIMITS.fullmatch(text.strip())
    if match is None:
        raise UserError(f"{flag} '{text}' is not flops-NUMBER-params-NUMBER in millions, such as flops-330-params-5.0; "
                        "0 is no limit")
    return match[1] if float(match[1]) else "", match[2] if float(match[2]) else ""


def _data(args: Namespace) -> dict[str, Any]:
    records = {"train": args.rec_train or f"{IMAGENET}/rec/train.rec", "train_idx": args.rec_train_idx,
               "val": args.rec_val or f"{IMAGENET}/rec/val.rec", "val_idx": args.rec_val_idx}
    return {
        **({"records": records} if args.use_rec else {"data": args.data_dir}),
        "input_threads": args.num_data_workers,
        "crop_ratio": args.crop_ratio or None,  # GluonCV's 0 is the usual one
        "augment": {"kind": args.augment},
        "mean": _triple(args.rgb_mean, "--rgb-mean"),
        "std": _triple(args.rgb_std, "--rgb-std"),
        "epoch_images": args.num_training_samples,
        "epoch_share": 1 / args.reduced_dataset_scale,
    }


def _training(args: Namespace) -> dict[str, Any]:
    devices = args.num_gpus or args.num_cpus
    period = args.lr_decay_period
    decays = list(range(period, args.num_epochs, period)) if period else _numbers(args.lr_decay_epoch, "--lr-decay-epoch", int)
    falls = {"decay": args.lr_decay, "decay_epochs": decays} if args.lr_mode == "step" and decays else {}
    mode = args.lr_mode if args.lr_mode != "step" or decays else "constant"  # no step comes before the end
    return {
        "epochs": args.num_epochs, "batch_size": args.batch_size * devices, "seed": args.seed, "dtype": args.dtype,
        "depthwise_init": args.depthwise_init,
        "device": "gpu" if args.num_gpus else "cpu", "contexts": devices,
        "optimizer": {"name": args.optimizer, "lr": args.lr, "momentum": args.momentum, "wd": args.wd, "no_wd": args.no_wd},
        "schedule": {"mode": mode, "warmup_epochs": args.warmup_epochs, "warmup_lr": args.warmup_lr, **falls},
        "loss": {"label_smoothing": SMOOTHING if args.label_smoothing else 0.0,
                 "mixup_alpha": args.mixup_alpha if args.mixup else 0.0, "mixup_off_epochs": args.mixup_off_epoch,
                 "teacher": args.teacher, "teacher_params": args.teacher_params or None,
                 "temperature": args.temperature, "hard_weight": args.hard_weight},
    }


def _run(args: Namespace) -> dict[str, Any]:
    start = {"weights": args.resume_params, "optimizer": args.resume_states, "epoch": args.resume_epoch}
    return {"save_every": args.save_frequency or max(args.num_epochs, 1), "log_every": args.log_interval or None,
            "start": start if args.resume_params else None}


def _triple(text: str | None, flag: str) -> list[float] | None:
    """The three numbers of a comma list, none for an empty one. Raises: UserError."""
    found = _numbers(text, flag, float)
    if len(found) not in (0, 3):
        raise UserError(f"{flag} '{text}' is not three numbers with commas, one a channel, such as 123.68,116.78,103.94")
    return found or None


def _numbers(text: str | None, flag: str, kind: type) -> list[Any]:
    """The numbers of a comma list, [] for an empty one. Raises: UserError."""
    try:
        return [kind(word) for word in (text or "").strip(" []").split(",") if word.strip()]
    except ValueError:
        raise UserError(f"{flag} '{text}' is not a list of {'whole ' if kind is int else ''}numbers with commas") from None
