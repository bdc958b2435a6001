"""Evaluation of a BigNAS candidate (recalibrate, then classify), graph building included: ours against eager slices and masks.

Example:  OMP_NUM_THREADS=2 python benchmarks/elastic_evaluation.py --resolution 192 --images 512 --pairs 3
"""

from __future__ import annotations

import argparse
import random

from common import compare, machine_rate, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512, help="for each half")
    parser.add_argument("--resolution", type=int, default=192)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    import mxnet as mx
    import numpy as np
    from eager import EagerSupernet

    from oneshot_nas import Supernet, cost, get_space
    from oneshot_nas.indicators.accuracy import make_evaluator

    space = get_space("attentive_mobilenet", input_size=given.resolution, resolutions=[given.resolution])
    net = Supernet(space)
    net.initialize()
    images = np.random.default_rng(0).normal(size=(given.images, 3, given.resolution, given.resolution)).astype(np.float32)
    evaluator = make_evaluator(net, images, images, np.zeros(given.images, np.float32), mx.cpu(), {})
    archs = [space.sample(random.Random(i)) for i in range(given.pairs + 1)]
    found = {}
    for way in ("masks", "slices"):
        plain = EagerSupernet(space, way)
        found[way] = compare(lambda i: evaluator(archs[i]), lambda i, net=plain: net.evaluate(evaluator, archs[i]),
                             given.pairs, warmup=1)
    macs = sum(cost(arch).flops for arch in archs[1:]) / given.pairs
    report("elastic_evaluation", **found, images=2 * given.images, mean_macs=macs,
           floor_seconds=2 * given.images * macs / machine_rate(), target_ratio={"masks": 2.0, "slices": 1.3})


if __name__ == "__main__":
    main()
