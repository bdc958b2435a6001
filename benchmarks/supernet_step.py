"""Training step of the supernet at 224, random blocks and all ten scales: ours against eager full-width masks.

Example:  OMP_NUM_THREADS=2 python benchmarks/supernet_step.py --batch 32 --pairs 12
"""

from __future__ import annotations

import argparse
import random

from common import compare, machine_rate, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--pairs", type=int, default=12)
    given = parser.parse_args()
    import mxnet as mx
    from masked import MaskedSupernet

    from oneshot_nas import Supernet, cost, get_space
    from oneshot_nas.train.losses import CrossEntropy
    from oneshot_nas.train.step import make_trainer, run_step, targets

    space = get_space("spos_shufflenet", input_size=given.size)
    shape = (given.batch, 3, given.size, given.size)
    x, y = mx.nd.random.normal(shape=shape), targets(mx.nd.arange(given.batch), 1000, 0.1)
    loss = CrossEntropy()
    loss.hybridize()
    archs = [space.sample(random.Random(i)) for i in range(given.pairs + 2)]
    ours, masked = Supernet(space), MaskedSupernet(space)
    ours.initialize()
    masked.finish(space, (1, *shape[1:]))
    settings = {"learning_rate": 0.01, "momentum": 0.9, "wd": 4e-5}
    trainers = {id(net): make_trainer(net.collect_params(), "sgd", settings) for net in (ours, masked)}

    def step(net):  # type: ignore[no-untyped-def]
        def run(i: int) -> None:
            run_step(lambda images: net(images, archs[i]), [(x, y)], loss, trainers[id(net)], given.batch)
            mx.nd.waitall()
        return run

    found = compare(step(ours), step(masked), given.pairs)
    macs = sum(cost(arch).flops for arch in archs[2:]) / given.pairs
    rate = machine_rate()
    report("supernet_step", **found, images_per_second=given.batch / found["seconds"],
           baseline_images_per_second=given.batch / found["baseline_seconds"], mean_macs=macs,
           floor_images_per_second=rate / (3 * macs), machine_macs_per_second=rate, target_ratio=2.5, goal_ratio=4.0)


if __name__ == "__main__":
    main()
