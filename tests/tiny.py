"""A tiny data set, tiny recipes that train in seconds, and a tiny disk, for the tests of training."""

import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from oneshot_nas.config import Recipe, parse_recipe
from oneshot_nas.data.images import encode
from oneshot_nas.data.recordio import write_records

SIZE, CLASSES = 16, 4
SPACE = {"layout": "small", "input_size": SIZE, "last_channels": 16}
BLOCKS = ("shuffle3", "xception", "shuffle5", "shuffle7") * 5


def write_data(folder: Path, train: int = 48, val: int = 16, random_labels: bool = False) -> Path:
    """Write train.rec and val.rec of 4 classes: a bright square whose corner is the class, on noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        records = []
        for number in range(count):
            label = number % CLASSES
            image = rng.integers(0, 120, (SIZE, SIZE, 3), np.uint8)
            top, left = divmod(label, 2)
            image[top * 8 : top * 8 + 8, left * 8 : left * 8 + 8] += 120
            records.append((int(rng.integers(CLASSES)) if random_labels else label, encode(image, ".png")))
        write_records(folder / f"{part}.rec", records)
    return folder


def recipe(data: Path, **changes) -> Recipe:
    """A recipe on such data: 2 epochs of batches of 8."""
    content = {
        "data": str(data), "epochs": 2, "batch_size": 8, "augment": {"kind": "digits"}, "input_threads": 1,
        "optimizer": {"name": "nag", "lr": 0.05}, "schedule": {"mode": "cosine", "warmup_epochs": 0.5},
    }
    return parse_recipe(content | changes, (), None, "of a test")


def supernet(data: Path, **changes) -> Recipe:
    """A supernet's recipe."""
    own = {"space": "spos_shufflenet", "options": SPACE, "holdout": {"calibration": 8, "validation": 8}}
    return recipe(data, **(own | changes))


def narrow_supernet(data: Path, **changes) -> Recipe:
    """A supernet with one operator and few widths, which builds and trains quickly."""
    return supernet(data, **{"allowed": {"block": ["shuffle3"]}, "sampler": {"least_scale": 1.6}, **changes})


def fixed(data: Path, **changes) -> Recipe:
    """A fixed network's recipe; its head has dropout."""
    arch = {"space": "spos_shufflenet", "options": SPACE, "choices": {"block": list(BLOCKS), "scale": [0.6] * 20}}
    return recipe(data, arch=arch | {"options": SPACE | {"classes": CLASSES}}, **changes)


def gluoncv(data: Path, **changes) -> Recipe:
    """The recipe of a GluonCV model, the quickest of all."""
    return recipe(data, **({"model": "cifar_resnet20_v1", "options": {"input_size": SIZE}} | changes))


def sandwich(data: Path, **changes) -> Recipe:
    """The recipe of sandwich training on a part of the elastic space; `students` are the keys of sampler.sandwich."""
    options = {"layout": "small", "input_size": SIZE, "resolutions": [12, SIZE]}
    own = {"space": "attentive_mobilenet", "options": options, "holdout": {"calibration": 8, "validation": 8},
           "allowed": {"depth": [1], "kernel": [3, 5], "expand": [1, 3]}, "optimizer": {"name": "nag", "lr": 0.02},
           "sampler": {"name": "flops", "bins": 3, "sandwich": {"random": 1}}}
    return recipe(data, **(own | changes))


@contextmanager
def files_of_at_most(size):
    """As on a full disk, no file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
