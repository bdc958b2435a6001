"""Evaluation of a candidate at 224 (recalibrate, then classify), graph building included: ours against eager full-width masks.

With --memory N also the resident memory over N candidates, which must stay flat.

Example:  OMP_NUM_THREADS=2 python benchmarks/candidate_evaluation.py --images 512 --pairs 5
"""

from __future__ import annotations

import argparse
import random

from common import compare, machine_rate, report, resident


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512, help="for each half")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="watch memory over N candidates, one batch each")
    given = parser.parse_args()
    import mxnet as mx
    from masked import MaskedSupernet
    from mxnet import autograd

    from oneshot_nas import Supernet, cost, get_space
    from oneshot_nas.indicators.accuracy import Evaluator

    space = get_space("spos_shufflenet", input_size=given.size)
    shape = (given.batch, 3, given.size, given.size)
    count = max(given.images // given.batch, 1)
    images = [mx.nd.random.normal(shape=shape) for _ in range(2)]
    labels = mx.nd.zeros(given.batch)
    ours, masked = Supernet(space), MaskedSupernet(space)
    ours.initialize()
    masked.finish(space, (1, *shape[1:]))
    halves = [[images[i % 2] for i in range(count)] for _ in range(2)]
    evaluator = Evaluator(ours, halves[0], {}, validation=halves[1], labels=[labels] * count)
    archs = [space.sample(random.Random(i)) for i in range(given.pairs + 1)]

    def baseline(i: int) -> None:
        for batch in evaluator.calibration:
            with autograd.record():  # running statistics move only in backward on the CPU: what the masked way has to pay
                out = masked(batch, archs[i])
            del out
        for batch in evaluator.validation:
            masked(batch, archs[i]).asnumpy()
        mx.nd.waitall()

    found = compare(lambda i: evaluator(archs[i]), baseline, given.pairs, warmup=1)
    macs = sum(cost(arch).flops for arch in archs[1:]) / given.pairs
    rate = machine_rate()
    figures = {"images": 2 * count * given.batch, "mean_macs": macs, "floor_seconds": 2 * count * given.batch * macs / rate}
    if given.memory:
        small = Evaluator(ours, evaluator.calibration[:1], {}, validation=evaluator.validation[:1], labels=[labels])
        memory = []
        for i in range(given.memory):
            small(space.sample(random.Random(1000 + i)))
            memory.append(resident())
        start = memory[min(20, given.memory - 1)]
        figures |= {"memory_mb": [round(value) for value in memory[:: max(given.memory // 10, 1)]],
                    "memory_growth": memory[-1] / start - 1}
    report("candidate_evaluation", **found, **figures, target_ratio=2.2, goal_ratio=3.5)


if __name__ == "__main__":
    main()
