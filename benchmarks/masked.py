"""The baseline of the speed benchmarks: the SPOS supernet in plain Gluon, run eagerly at full width with channel masks.

This is how a supernet with channel selection is usually written for MXNet: every candidate computes its largest width and a
0/1 mask silences the channels that are not chosen. It exists to be compared with; nothing in the package uses it.
"""

from __future__ import annotations

import mxnet as mx
from mxnet.gluon import nn

from oneshot_nas.arch import Arch, Space


class Candidate(nn.Block):
    """One operator of one block at scale 2.0; the middle part is multiplied by a mask after each BatchNorm."""

    def __init__(self, operator: str, inp: int, out: int, mid: int, stride: int) -> None:
        super().__init__()
        with self.name_scope():
            self.body = nn.Sequential()
            kernel = 3 if operator == "xception" else int(operator[-1])
            wide, depthwise, last = (mid, 1, 1, 1, True), (mid, kernel, mid, 1, False), (out, 1, 1, 1, True)
            shapes = ([(inp, kernel, inp, stride, False), wide, depthwise, wide, depthwise, last] if operator == "xception"
                      else [wide, (mid, kernel, mid, stride, False), last])
            for channels, size, groups, step, _ in shapes:
                self.body.add(nn.Conv2D(channels, size, step, size // 2, groups=groups, use_bias=False))
                self.body.add(nn.BatchNorm(momentum=0.9))
            self.active = [active for *_, active in shapes]
            self.masked = [channels == mid and not (operator == "xception" and place == 0)
                           for place, (channels, *_) in enumerate(shapes[:-1])] + [False]

    def forward(self, x, mask):  # type: ignore[no-untyped-def]
        for place, (active, masked) in enumerate(zip(self.active, self.masked, strict=True)):
            x = self.body[2 * place + 1](self.body[2 * place](x))
            if active:
                x = mx.nd.relu(x)
            if masked:
                x = x * mask
        return x


class MaskedBlock(nn.Block):
    """Four candidates and, for stride 2, a projection of each kernel size."""

    def __init__(self, operators: tuple[str, ...], channels: int, out: int, mid: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        inp = channels if stride == 2 else channels // 2
        with self.name_scope():
            self.candidates = nn.Sequential()
            self.projections = nn.Sequential()
            for operator in operators:
                self.candidates.add(Candidate(operator, inp, out - inp, mid, stride))
                projection = nn.Sequential()
                if stride == 2:
                    kernel = 3 if operator == "xception" else int(operator[-1])
                    projection.add(nn.Conv2D(inp, kernel, 2, kernel // 2, groups=inp, use_bias=False), nn.BatchNorm(momentum=0.9),
                                   nn.Conv2D(inp, 1, use_bias=False), nn.BatchNorm(momentum=0.9), nn.Activation("relu"))
                self.projections.add(projection)

    def forward(self, x, choice, mask):  # type: ignore[no-untyped-def]
        if self.stride == 2:
            first, second = self.projections[choice](x), x
        else:
            pairs = x.reshape((0, -4, -1, 2, -2))
            first, second = pairs[:, :, 0], pairs[:, :, 1]
        return mx.nd.concat(first, self.candidates[choice](second, mask), dim=1)


class MaskedSupernet(nn.Block):
    """The supernet of a `spos_shufflenet` space without SE; ``net(x, arch)`` gives logits."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.operators = space.choice("block").values[0]
        layers = space.plan(space.largest()).layers
        stem, head = layers[0].op, layers[-1].op
        with self.name_scope():
            self.stem = nn.Sequential()
            conv = stem.primitives[0]
            self.stem.add(nn.Conv2D(conv.out_channels, 3, conv.stride, 1, use_bias=False), nn.BatchNorm(momentum=0.9),
                          nn.Activation("relu"))
            self.blocks = nn.Sequential()
            self.widths = []
            for layer in layers[1:-1]:
                op = layer.op
                self.widths.append(op.mid_channels)
                self.blocks.add(MaskedBlock(self.operators, op.in_channels, op.out_channels, op.mid_channels, op.stride))
            self.head = nn.Sequential()
            self.head.add(nn.Conv2D(head.primitives[0].out_channels, 1, use_bias=False), nn.BatchNorm(momentum=0.9),
                          nn.Activation("relu"), nn.GlobalAvgPool2D(), nn.Dropout(0.1),
                          nn.Dense(head.primitives[-1].out_features))
        self.masks: dict[tuple[int, int], mx.nd.NDArray] = {}

    def forward(self, x, arch: Arch):  # type: ignore[no-untyped-def]
        x = self.stem(x)
        decided = zip(self.blocks, self.widths, arch.choices["block"], arch.choices["scale"], strict=True)
        for block, width, operator, scale in decided:
            x = block(x, self.operators.index(operator), self.mask(width, width * round(scale * 10) // 20))
        return self.head(x)

    def mask(self, width: int, used: int) -> mx.nd.NDArray:
        """Ones for the channels in use, zeros for the rest, shape (1, width, 1, 1); kept between steps."""
        key = (width, used)
        if key not in self.masks:
            self.masks[key] = (mx.nd.arange(width) < used).reshape((1, -1, 1, 1))
        return self.masks[key]

    def finish(self, space: Space, shape: tuple[int, ...]) -> None:
        """Initialise every parameter by running each operator once on `shape`."""
        self.initialize()
        blocks = len(self.widths)
        for operator in self.operators:
            largest = space.arch({"block": [operator] * blocks, "scale": [2.0] * blocks})
            self(mx.nd.zeros(shape), largest)
