"""A sandwich step of four networks against four separate steps; changing against grouped order; memory over many networks.

Example:  OMP_NUM_THREADS=2 python benchmarks/sandwich_step.py --layout small --batch 64 --pairs 8 --subnets 300
"""

from __future__ import annotations

import argparse
import random

from common import compare, report, resident


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layout", default="small", choices=["small", "attentive"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--archs", type=int, default=30, help="architectures of the comparison of orders")
    parser.add_argument("--subnets", type=int, default=300, help="different networks over which memory is watched")
    given = parser.parse_args()
    import mxnet as mx

    from oneshot_nas import Supernet, get_space
    from oneshot_nas.sections import Distil, Optimizer
    from oneshot_nas.train.losses import CrossEntropy, distillation
    from oneshot_nas.train.step import accumulate, run_step, targets, trainer_of

    size = 32 if given.layout == "small" else 224
    space = get_space("attentive_mobilenet", layout=given.layout, input_size=size, classes=10)
    x = mx.nd.random.normal(shape=(given.batch, 3, size, size))
    y = targets(mx.nd.arange(given.batch) % 10, 10, 0.1)
    loss, distil = CrossEntropy(), distillation(Distil())
    loss.hybridize()
    net = Supernet(space)
    net.initialize()
    accumulate(net.collect_params())
    trainer = trainer_of(net.collect_params(), Optimizer(lr=0.01, clip=1.0))
    plain = Supernet(space)
    plain.initialize()
    single = trainer_of(plain.collect_params(), Optimizer(lr=0.01, clip=1.0))
    fours = [[space.largest(), *(space.sample(random.Random(2 * i + n)) for n in (0, 1)), space.smallest()] for i in range(4)]

    def sandwich(i: int) -> None:
        first, *others = fours[i % len(fours)]
        run_step(lambda images: net(images, first), [(x, y)], loss, trainer, given.batch,
                 students=[lambda images, arch=arch: net.calm(images, arch) for arch in others], distil=distil)
        mx.nd.waitall()

    def train(arch) -> None:  # type: ignore[no-untyped-def]
        run_step(lambda images: plain(images, arch), [(x, y)], loss, single, given.batch)
        mx.nd.waitall()

    def separate(i: int) -> None:
        for arch in fours[i % len(fours)]:
            train(arch)

    steps = compare(sandwich, separate, given.pairs, warmup=len(fours))
    archs = [space.sample(random.Random(100 + i)) for i in range(given.archs)]
    order = archs * 2
    random.Random(0).shuffle(order)

    def changing(_: int) -> None:
        for arch in order:
            train(arch)

    def grouped(_: int) -> None:
        for arch in archs:
            train(arch)
            train(arch)

    orders = compare(grouped, changing, max(3, given.pairs // 3), warmup=1)
    memory = []
    for i in range(given.subnets):
        train(space.sample(random.Random(1000 + i)))
        if (i + 1) % max(1, given.subnets // 6) == 0:
            memory.append(round(resident()))
    report("sandwich_step", layout=given.layout, batch=given.batch, sandwich=steps, sandwich_over_separate=1 / steps["ratio"],
           target_sandwich_over_separate=1.15, orders=orders, changing_over_grouped=orders["ratio"],
           target_changing_over_grouped=1.05, views=len(plain._store.views), resident_megabytes=memory)


if __name__ == "__main__":
    main()
