"""Training after a large array was copied, with copies by one thread (as the commands set it) against MXNet's default.

A copy by several threads starts a second team of threads; where both teams are more than the cores, GNU OpenMP lets none of them
spin any longer. Every measurement is a process of its own: a team stays.

Example:  OMP_NUM_THREADS=2 python benchmarks/thread_teams.py --pairs 3
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from common import report, spread

if TYPE_CHECKING:
    from oneshot_nas.arch import Arch

DEFAULT = 200_000  # MXNet's MXNET_CPU_PARALLEL_SIZE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--measure", action="store_true", help="print images/s before and after a copy, in this process")
    given = parser.parse_args()
    if given.measure:
        print(*measured(given.batch, given.steps))
        return
    command = [sys.executable, __file__, "--measure", "--batch", str(given.batch), "--steps", str(given.steps)]
    found: dict[str, list[tuple[float, ...]]] = {"ours": [], "baseline": []}
    for _ in range(given.pairs):
        for way, changes in (("ours", {}), ("baseline", {"MXNET_CPU_PARALLEL_SIZE": str(DEFAULT)})):
            done = subprocess.run(command, env={**os.environ, **changes}, stdout=subprocess.PIPE, text=True, check=True)
            found[way].append(tuple(map(float, done.stdout.split())))
    ratios = [ours / baseline for (_, ours), (_, baseline) in zip(found["ours"], found["baseline"], strict=True)]
    speeds = {f"{way}_images_per_second_{when}_the_copy": statistics.median(each[place] for each in found[way])
              for way in found for place, when in enumerate(("before", "after"))}
    report("thread_teams", **speeds, **spread(ratios))


def measured(batch: int, steps: int) -> tuple[float, float]:
    """Images/s that a small supernet trains at before and after a large array was copied."""
    import mxnet as mx
    import numpy as np

    from oneshot_nas import Supernet, get_space
    from oneshot_nas.sections import Optimizer
    from oneshot_nas.train.losses import CrossEntropy
    from oneshot_nas.train.step import run_step, targets, trainer_of

    space = get_space("spos_shufflenet", layout="small", stem_stride=1, input_size=32, classes=10)
    net, loss = Supernet(space), CrossEntropy()
    net.initialize()
    trainer = trainer_of(net.collect_params(), Optimizer(lr=0.01))
    x = mx.nd.random.normal(shape=(batch, 3, 32, 32))
    y = targets(mx.nd.arange(batch) % 10, 10, 0.0)
    archs = [space.sample(random.Random(i)) for i in range(8)]

    def forward(arch: Arch, shard: mx.nd.NDArray) -> mx.nd.NDArray:
        return net(shard, arch)

    def speed(count: int) -> float:
        start = time.perf_counter()
        for i in range(count):
            run_step(partial(forward, archs[i % len(archs)]), [(x, y)], loss, trainer, batch)
        mx.nd.waitall()
        return count * batch / (time.perf_counter() - start)

    speed(2 * len(archs))
    before = speed(steps)
    mx.nd.array(np.zeros(2 * DEFAULT, "float32")).wait_to_read()
    return before, speed(steps)


if __name__ == "__main__":
    main()
