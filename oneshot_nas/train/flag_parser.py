"""The command line of train_imagenet.py: GluonCV's flags and those of the MXNet predecessor of SPOS.

Flags keep GluonCV's names, meanings and defaults, except: --save-dir is a run folder (default runs/MODEL) that resumes by itself,
--save-frequency is 1, the log is in the run folder, and --warmup-lr is honoured. The defaults of the data paths are GluonCV's.
"""

from __future__ import annotations

import argparse
import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from oneshot_nas import shell

PROGRAM = "train_imagenet.py"
SUPERNET, FIXED = "ShuffleNas", "ShuffleNas_fixArch"
PAPER = "oneshot"  # the zoo's name of the paper's architecture
LAYOUTS = {"OneShot": "oneshot", "ShuffleNetV2+": "shufflenetv2+", "mmrazor": "mmrazor", "small": "small"}
SMOOTHING = 0.1  # of --label-smoothing, as in GluonCV
BACKENDS = ("mxnet", "dali-gpu", "dali-cpu")  # GluonCV's; the first is there
IMAGENET = "~/.mxnet/datasets/imagenet"  # where GluonCV keeps it
EXAMPLE = """examples:
  %(prog)s --model oneshot --use-rec --rec-train train.rec --rec-val val.rec --batch-size 128 --num-gpus 8 \\
      --num-epochs 240 --lr 0.5 --lr-mode linear --optimizer sgd --wd 4e-5 --no-wd --label-smoothing --save-dir runs/oneshot
  %(prog)s --model ShuffleNas --use-rec --rec-train data/digits/train.rec --rec-val data/digits/val.rec --input-size 32 \\
      --channels-layout small --augment digits --batch-size 64 --num-epochs 10 --epoch-start-cs -1 --save-dir runs/supernet
The same command again resumes after the last saved epoch."""


class Parser(shell.Parser):
    """Takes --use_se for --use-se."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, with underscores in flag names read as hyphens."""
        words = sys.argv[1:] if args is None else args
        spelled = [re.sub(r"^--[\w-]+", lambda match: match[0].replace("_", "-"), word) for word in words]
        return super().parse_known_args(spelled, namespace)


def parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog=PROGRAM, usage="%(prog)s --model NAME [flags]", allow_abbrev=False, epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a classifier, or the Single Path One-Shot supernet, with GluonCV's flags.")

    def group(title: str) -> Any:
        section = parser.add_argument_group(title)

        def add(*names: str, default: Any = None, help: str, switch: bool = False, **options: Any) -> None:
            if switch:
                section.add_argument(*names, action="store_true", help=help)
                return
            shown = "" if default is None else f" (default: {default})"
            section.add_argument(*names, default=default, help=help.replace("%", "%%") + shown, **options)

        return add

    add = group("model")
    add("--model", required=True, metavar="NAME",
        help=f"{SUPERNET} (the supernet), {FIXED} (its network with --block-choices and --channel-choices), "
             f"a name of our model zoo such as {PAPER}, or a GluonCV classifier such as resnet18_v1b")
    add("--mode", choices=("hybrid", "imperative", "symbolic", "none"),
        help="accepted and without effect: fixed networks run as one hybridized graph, the supernet as hybridized blocks")
    add("--num-classes", type=int, help="number of classes; without it the data set says it")
    add("--use-pretrained", switch=True,
        help="start from the zoo's weights: GluonCV's without their classifier where the classes differ, our own as a whole")
    add("--batch-norm", switch=True, help="batch normalisation in GluonCV's vgg")
    add("--use-gn", switch=True, help="group normalisation in GluonCV models that take a norm_layer")
    add("--last-gamma", switch=True, help="gamma 0 in the last BatchNorm of each residual block of GluonCV's resnets")
    add("--use-se", switch=True,
        help=f"squeeze-excite in {SUPERNET} and {FIXED}; GluonCV's gated networks have own names, such as se_resnext50_32x4d")
    add("--last-conv-after-pooling", switch=True, help=f"MobileNetV3 tail of {SUPERNET} and {FIXED}")
    add("--channels-layout", choices=tuple(LAYOUTS),
        help=f"stage widths of {SUPERNET} and {FIXED}; OneShot unless given, small is for 32x32")
    add("--depthwise-init", choices=("space", "fan_in"), default="space",
        help="start of depthwise kernels: as the space says, or fan_in, by kernel area; short trainings learn faster")
    add("--block-choices", metavar="0,0,3,...",
        help=f"the 20 operators of {FIXED}: 0-2 shuffle 3x3, 5x5, 7x7, 3 xception; the paper's unless given")
    add("--channel-choices", metavar="6,5,3,...",
        help=f"the 20 channel scales of {FIXED}: 0-9 for 0.2 to 2.0; the paper's unless given")

    add = group("data")
    add("--data-dir", default=IMAGENET, metavar="DIR", help="folder with train/ and val/, each with a folder per class")
    add("--use-rec", switch=True, help="read RecordIO files")
    for part in ("train", "val"):
        add(f"--rec-{part}", default=None, metavar="FILE.rec", help=f"{part} images (default: {IMAGENET}/rec/{part}.rec)")
        add(f"--rec-{part}-idx", default=None, metavar="FILE.idx", help="its index; the same name with .idx unless given")
    add("--batch-size", type=int, default=32, help="images of a step on each device")
    add("-j", "--num-data-workers", type=int, default=4, help="decoding threads")
    add("--input-size", type=int, default=224, help="pixels")
    add("--crop-ratio", type=float, help="of validation; 0.875 unless given, or 1 when the images have the input size")
    add("--augment", choices=("imagenet", "small", "digits", "none"), default="imagenet",
        help="training augmentation; imagenet is GluonCV's")
    add("--rgb-mean", metavar="R,G,B", help="in 0..255; ImageNet's unless given")
    add("--rgb-std", metavar="R,G,B", help="in 0..255")
    add("--data-backend", choices=BACKENDS, default=BACKENDS[0],
        help=f"who decodes images; {BACKENDS[0]} is our own loader, the others are not there")
    add("--num-training-samples", type=int, help="images of an epoch at most; without it all that there are")
    add("--reduced-dataset-scale", type=float, default=1, help="an epoch has 1/N of its steps")
    add("--calibration-images", type=int,
        help="training images kept to recalibrate BatchNorm of the supernet's candidates; 2000, at most 1/20, unless given")
    add("--plain-calibration", action="store_true",
        help="prepare the former as for validation, as the predecessor does, in place of varying them as in training")
    add("--search-images", type=int,
        help="training images kept to compare the supernet's candidates; 5000, at most 1/10, unless given")

    add = group("optimisation")
    add("--num-gpus", type=int, default=0, help="number of GPUs; 0 is the CPU")
    add("--num-cpus", type=int, default=1, help="number of CPU contexts that share the work, when there are no GPUs")
    add("--dtype", metavar="float32|float16", default="float32", help="float16 needs GPUs")
    add("--num-epochs", type=int, default=3, help="epochs")
    add("--optimizer", choices=("nag", "sgd"), default="nag", help="nag is GluonCV's, sgd that of the paper")
    add("--lr", type=float, default=0.1, help="learning rate at its peak")
    add("--momentum", type=float, default=0.9, help="momentum")
    add("--wd", type=float, default=0.0001, help="weight decay")
    add("--no-wd", switch=True, help="no weight decay on biases, gamma and beta")
    add("--lr-mode", choices=("step", "poly", "cosine", "linear", "constant"), default="step",
        help="how the learning rate falls; poly has power 2")
    add("--lr-decay", type=float, default=0.1, help="factor of --lr-mode step")
    add("--lr-decay-period", type=int, default=0, help="epochs between decays; 0 takes --lr-decay-epoch")
    add("--lr-decay-epoch", default="40,60", help="epochs of the decays")
    add("--warmup-lr", type=float, default=0.0, help="learning rate at the first step of the warm-up")
    add("--warmup-epochs", type=int, default=0, help="epochs of linear warm-up")
    add("--label-smoothing", switch=True, help=f"smooth labels by {SMOOTHING}")
    add("--mixup", switch=True, help="mix pairs of images")
    add("--mixup-alpha", type=float, default=0.2, help="of the beta distribution of --mixup")
    add("--mixup-off-epoch", type=int, default=0, help="last epochs without mixup")
    add("--teacher", metavar="NAME", help="model that teaches by its outputs")
    add("--teacher-params", metavar="FILE", help="the teacher's weights; GluonCV's pretrained ones unless given")
    add("--temperature", type=float, default=20.0, help="of the distillation")
    add("--hard-weight", type=float, default=0.5, help="weight of the true labels in distillation")
    add("--seed", type=int, default=0, help="of everything random")

    add = group(f"supernet ({SUPERNET})")
    add("--use-all-blocks", switch=True, help="average the four operators instead of choosing one")
    add("--use-all-channels", switch=True, help="every scale at its largest in all epochs")
    add("--epoch-start-cs", type=int, default=60,
        help="first epoch, counted from 0, in which channels are chosen; before it every scale is the largest; -1 is the start")
    add("--cs-warm-up", switch=True, help="smaller scales join epoch by epoch from then on")
    add("--operator-warmup", type=int, default=0, metavar="EPOCHS",
        help="epochs over which the other operators join the first one of a layer; short trainings learn better")
    add("--ignore-first-two-cs", switch=True, help="never the scales 0.2 and 0.4")
    add("--train-constraint-method", choices=("", "random", "evolution"), default="",
        help="how to keep the limits: random (the usual one) is rejection, evolution strolls through them evenly; both begin "
             "when all scales are open")
    add("--train-upper-constraints", default="", metavar="flops-330-params-5.0", help="upper limits in millions, 0 for none")
    add("--train-bottom-constraints", default="", metavar="flops-190-params-2.8", help="lower limits in millions, 0 for none")
    add("--flop-param-method", choices=("lookup_table", "symbol"), default="lookup_table",
        help="accepted: both give the same exact numbers here, those of the table")

    add = group("run folder")
    add("--save-dir", metavar="RUN", help="run folder; runs/MODEL unless given")
    add("--save-frequency", type=int, default=1, help="epochs between checkpoints; 0 saves the last epoch only")
    add("--resume-params", metavar="FILE",
        help="weights to start from; a run folder that has a checkpoint resumes from that instead")
    add("--resume-states", metavar="FILE",
        help="optimizer state to start from: optimizer-NNNN.arrays of a run folder; .states pickles are refused")
    add("--resume-epoch", type=int, default=0, help="epochs that --resume-params has behind it")
    add("--log-interval", type=int, default=50, help="steps between progress lines; 0 for one every half minute")
    add("--logging-file", metavar="FILE", help="a second copy of the log; the first is log.txt in the run folder")
    return parser


def arguments(words: Sequence[str] | None = None) -> Namespace:
    """The parsed flags of a command line; wrong use ends the process with exit code 2."""
    return parser().parse_args(words)
