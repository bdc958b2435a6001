"""A training step that moves the scoring BatchNorms only (BN-NAS) against a full one, of the same architectures.

Example:  OMP_NUM_THREADS=2 python benchmarks/bn_only_step.py --batch 32 --size 224 --pairs 8
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from pathlib import Path

from common import compare, report

WAYS = ("all", "bn", "scoring-bn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="proxyless_gpu", choices=["proxyless_gpu", "spos_shufflenet"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--way", default="scoring-bn", choices=WAYS[1:])
    parser.add_argument("--memory-of", choices=WAYS, help="print the most memory, in megabytes, of a few steps of one way")
    given = parser.parse_args()
    import mxnet as mx

    from oneshot_nas import Supernet, get_space
    from oneshot_nas.sections import Optimizer
    from oneshot_nas.train.losses import CrossEntropy
    from oneshot_nas.train.step import run_step, targets, trainer_of
    from oneshot_nas.train.trainable import freeze

    space = get_space(given.space, input_size=given.size, classes=100)
    x = mx.nd.random.normal(shape=(given.batch, 3, given.size, given.size))
    y = targets(mx.nd.arange(given.batch) % 100, 100, 0.1)
    loss = CrossEntropy()
    loss.hybridize()
    archs = [space.sample(random.Random(i)) for i in range(4)]

    def made(way: str):  # type: ignore[no-untyped-def]
        net = Supernet(space)
        net.initialize()
        if way != "all":
            freeze(net, way)
        trainer = trainer_of(net.collect_params(), Optimizer(lr=0.01))

        def step(i: int) -> None:
            run_step(lambda shard: net(shard, archs[i % len(archs)]), [(x, y)], loss, trainer, given.batch)
            mx.nd.waitall()
        return step

    if given.memory_of:
        step = made(given.memory_of)
        for i in range(2):
            step(i)
        status = Path("/proc/self/status").read_text()
        print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
        return
    found = compare(made(given.way), made("all"), given.pairs, warmup=len(archs))
    command = [sys.executable, __file__, "--space", given.space, "--batch", str(given.batch), "--size", str(given.size)]
    memory = {way: float(subprocess.run([*command, "--memory-of", way], capture_output=True, text=True, check=True).stdout)
              for way in ("all", given.way)}
    report("bn_only_step", space=given.space, way=given.way, **found, images_per_second=given.batch / found["seconds"],
           baseline_images_per_second=given.batch / found["baseline_seconds"], most_megabytes=memory, target_ratio=1.3)


if __name__ == "__main__":
    main()
