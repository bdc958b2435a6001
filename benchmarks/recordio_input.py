"""Prints JSON: input speed at 224 pixels, our loader against mx.io.ImageRecordIter, and how long training waits for either.

Usage: python benchmarks/recordio_input.py --data FOLDER [--pairs 5] [--steps 12] [--compute-rate 26]

FOLDER holds train.rec (or only val.rec) with its .idx. Both readers make the same kind of crops, mirroring and colour
changes. The two ways alternate pair by pair in one process; a ratio is the median of the pair ratios. The waiting share is of
real training steps of a small Gluon net on the same cores, a harder case than the supernet: its steps are shorter. The floor of
input beside a training of `--compute-rate` images/s is compute rate / input rate of the time of the decoding threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import mxnet as mx

from oneshot_nas.data.augment import make_augment
from oneshot_nas.data.datasets import Dataset, dataset_from_files, find_recs
from oneshot_nas.data.loader import DataWait, train_loader

AUGMENT = make_augment("imagenet")


def open_records(folder: str) -> Dataset:
    """Return the training part of `folder`, or its validation part in its place."""
    recs = find_recs(folder)
    return dataset_from_files(train_rec=recs.get("train", recs.get("val")))


def ours(dataset: Dataset, options: argparse.Namespace, epoch: int) -> Iterator[tuple[Any, Any]]:
    """Yield the batches of one epoch of our loader."""
    return iter(
        train_loader(
            dataset, batch_size=options.batch_size, preprocessing=dataset.preprocessing(options.size), augment=AUGMENT, seed=0,
            epoch=epoch, threads=options.threads,
        )
    )  # fmt: skip


def theirs(dataset: Dataset, options: argparse.Namespace, epoch: int) -> Iterator[tuple[Any, Any]]:
    """Yield the batches of one epoch of MXNet's own reader with the same settings."""
    preprocessing = dataset.preprocessing(options.size)
    numbers = {f"{name}_{channel}": value for name in ("mean", "std")
               for channel, value in zip("rgb", getattr(preprocessing, name), strict=True)}  # fmt: skip
    reader = mx.io.ImageRecordIter(
        path_imgrec=str(dataset.train_rec), path_imgidx=str(dataset.train_idx), data_shape=(3, options.size, options.size),
        batch_size=options.batch_size, preprocess_threads=options.threads, shuffle=True, seed=epoch, seed_aug=epoch,
        random_resized_crop=True, min_random_area=AUGMENT.area[0], max_random_area=AUGMENT.area[1],
        min_aspect_ratio=AUGMENT.ratio[0], max_aspect_ratio=AUGMENT.ratio[1], rand_mirror=AUGMENT.mirror,
        brightness=AUGMENT.brightness, contrast=AUGMENT.contrast, saturation=AUGMENT.saturation, pca_noise=AUGMENT.pca_noise,
        round_batch=False, verbose=False, device_id=-1, **numbers,
    )  # fmt: skip
    for batch in reader:
        yield batch.data[0], batch.label[0]


def rate(batches: Iterator[tuple[Any, Any]], batch_size: int, limit: int) -> float:
    """Return images per second of up to `limit` batches when nothing else is done."""
    begin, count = time.perf_counter(), 0
    for data, _ in islice(batches, limit):
        data.wait_to_read()
        count += batch_size
    return count / (time.perf_counter() - begin)


def waiting(batches: Iterator[tuple[Any, Any]], options: argparse.Namespace) -> tuple[float, float]:
    """Return (share of the time spent waiting for data, images per second) of real training steps."""
    net = mx.gluon.model_zoo.vision.get_model(options.model, classes=10)
    net.initialize(mx.init.Xavier())
    net.hybridize()
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.01})
    loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()

    def step(data: Any, label: Any) -> None:
        with mx.autograd.record():
            loss = loss_of(net(data), label % 10)
        loss.backward()
        trainer.step(len(label))
        loss.wait_to_read()

    step(*next(batches))  # builds the graph
    watched = DataWait(islice(batches, options.steps))
    begin, count = time.perf_counter(), 0
    for data, label in watched:
        step(data, label)
        count += len(label)
    return watched.share, count / (time.perf_counter() - begin)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train.rec or val.rec")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--limit", type=int, default=20, help="batches per measurement of a pair")
    parser.add_argument("--steps", type=int, default=12, help="training steps for the waiting share")
    parser.add_argument("--model", default="mobilenet0.25", help="Gluon model that stands for the computation")
    parser.add_argument("--compute-rate", type=float, default=26.0, help="images/s of the training that must not wait")
    options = parser.parse_args()
    dataset = open_records(options.data)
    rate(ours(dataset, options, 0), options.batch_size, 2)  # fills the disk cache
    alone, beside = [], []
    for k in range(options.pairs):
        alone.append([rate(way(dataset, options, k), options.batch_size, options.limit) for way in (ours, theirs)])
        beside.append([waiting(way(dataset, options, k), options) for way in (ours, theirs)])
    rates = [statistics.median(values) for values in zip(*alone, strict=True)]
    shares = [statistics.median(share for share, _ in values) for values in zip(*beside, strict=True)]
    trained = [statistics.median(speed for _, speed in values) for values in zip(*beside, strict=True)]
    result = {
        "benchmark": "recordio_input",
        "settings": {key: getattr(options, key) for key in ("size", "batch_size", "threads", "pairs", "steps", "model")},
        "input_images_per_second": {"ours": round(rates[0], 1), "image_record_iter": round(rates[1], 1)},
        "input_ratio": round(statistics.median(first / second for first, second in alone), 3),
        "training_images_per_second": {"ours": round(trained[0], 1), "image_record_iter": round(trained[1], 1)},
        "training_ratio": round(statistics.median(first[1] / second[1] for first, second in beside), 3),
        "data_wait_share": {"ours": round(shares[0], 4), "image_record_iter": round(shares[1], 4), "goal": 0.05},
        "floor": {"compute_rate": options.compute_rate, "input_share": round(options.compute_rate / rates[0], 4)},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
