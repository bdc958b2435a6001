"""Bicubic resize as two matrix products, from operators that export: MXNet 1.9.1 has no such operator.

The matrix is computed in the graph, so a network needs no constants of its own. Positions are kept as whole numbers up to the
last division, so the weights are exact to float32 rounding.
"""

from __future__ import annotations

from typing import Any

A = -0.75  # of Keys' kernel, as PyTorch and OpenCV have it


def resize(F: Any, x: Any, source: int, size: int, dtype: str = "float32") -> Any:
    """x (N, C, source, source) of `dtype` resized to (N, C, size, size); at least 3 pixels a side."""
    if source == size:
        return F.identity(x)
    matrix = _matrix(F, source, size)
    if dtype != "float32":
        matrix = F.cast(matrix, dtype)
    across = F.transpose(F.dot(x, matrix), axes=(0, 1, 3, 2))
    return F.transpose(F.dot(across, matrix), axes=(0, 1, 3, 2))


def _matrix(F: Any, source: int, size: int) -> Any:
    """Matrix (source, size): column i holds the weights of the four pixels around (i + 1/2) source / size - 1/2.

    Computed for two more pixels on either side, whose weights go to the border pixels.
    """
    places = F.reshape(F.arange(size) * (2 * source) + (source - size), (1, -1))  # times 2 size
    pixels = F.reshape((F.arange(source + 4) - 2) * (2 * size), (-1, 1))
    weights = _keys(F, F.abs(F.broadcast_sub(places, pixels)) / (2 * size))
    first = F.sum(F.slice_axis(weights, axis=0, begin=0, end=3), axis=0, keepdims=True)
    middle = F.slice_axis(weights, axis=0, begin=3, end=source + 1)
    last = F.sum(F.slice_axis(weights, axis=0, begin=source + 1, end=source + 4), axis=0, keepdims=True)
    return F.concat(first, middle, last, dim=0)


def _keys(F: Any, t: Any) -> Any:
    """Keys' cubic kernel at distances t >= 0, as products: its near piece is 0 at 1, its far piece at 1 and 2.

    No comparison and no number minus an array: ONNX's converters lack the one and print the name of the other.
    """
    near, far = F.clip(t, 0, 1), F.clip(t, 1, 2)
    return (near - 1) * ((A + 2) * near * near - near - 1) + A * (far - 1) * (far - 2) * (far - 2)
