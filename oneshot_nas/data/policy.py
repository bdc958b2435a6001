"""AutoAugment and RandAugment on uint8 RGB images: published operators, levels and policies, from drawn numbers alone.

Levels go from 0 to 10 and mean what they mean in the TensorFlow code of both papers (Cubuk et al., "AutoAugment", CVPR 2019,
and "RandAugment", NeurIPS 2020), but for translations, which are a share of the side here: pixels of 250 there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

GREY = (128, 128, 128)  # fills what a shear, shift or turn uncovers
MOST_LAYERS = 8
POLICY_DRAWS = 3 * MOST_LAYERS
SHIFT = 0.45  # share of the side at level 10
LUMA = (0.299, 0.587, 0.114)


def _warp(image: np.ndarray, matrix: Sequence[Sequence[float]]) -> np.ndarray:
    rows, columns = image.shape[:2]
    return cv2.warpAffine(image, np.array(matrix, np.float64), (columns, rows), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
                          borderMode=cv2.BORDER_CONSTANT, borderValue=GREY)


def _rotate(image: np.ndarray, level: float, sign: float) -> np.ndarray:
    rows, columns = image.shape[:2]
    turn = cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), sign * level * 3, 1.0)
    return cv2.warpAffine(image, turn, (columns, rows), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=GREY)


def _blend(image: np.ndarray, other: np.ndarray | float, level: float) -> np.ndarray:
    """`other` at factor 0, `image` at 1, further away from `other` beyond; the factor is 0.1 at level 0 and 1.9 at level 10."""
    factor = level * 0.18 + 0.1
    mixed = np.asarray(other, np.float32) * (1 - factor) + image.astype(np.float32) * factor
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _grey(image: np.ndarray) -> np.ndarray:
    return (image @ np.array(LUMA, np.float32)).astype(np.float32)


def _sharpness(image: np.ndarray, level: float, sign: float) -> np.ndarray:
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, kernel)[1:-1, 1:-1]
    return _blend(image, smooth, level)


def _autocontrast(image: np.ndarray, level: float, sign: float) -> np.ndarray:
    low, high = image.min(axis=(0, 1)).astype(np.float32), image.max(axis=(0, 1)).astype(np.float32)
    flat = high <= low
    scale = np.where(flat, 1, 255 / np.where(flat, 1, high - low))
    return np.clip(np.rint((image - np.where(flat, 0, low)) * scale), 0, 255).astype(np.uint8)


def _equalize(image: np.ndarray, level: float, sign: float) -> np.ndarray:
    return np.dstack([cv2.equalizeHist(np.ascontiguousarray(image[:, :, channel])) for channel in range(3)])


def _solarize(image: np.ndarray, level: float, sign: float) -> np.ndarray:
    return np.where(image < int(level * 25.6), image, 255 - image).astype(np.uint8)


def _solarize_add(image: np.ndarray, level: float, sign: float) -> np.ndarray:
    return np.where(image < 128, np.minimum(image.astype(np.int16) + int(level * 11), 255), image).astype(np.uint8)


def _posterize(image: np.ndarray, level: float, sign: float) -> np.ndarray:
    """Keeps int(0.4 level) bits of every number, at least one."""
    return image & np.uint8(256 - (1 << (8 - max(int(level * 0.4), 1))))


OPERATORS: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": lambda image, level, sign: 255 - image,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "color": lambda image, level, sign: _blend(image, _grey(image)[:, :, None], level),
    "contrast": lambda image, level, sign: _blend(image, float(np.rint(_grey(image).mean())), level),
    "brightness": lambda image, level, sign: _blend(image, 0.0, level),
    "sharpness": _sharpness,
    "shear_x": lambda image, level, sign: _warp(image, [[1, sign * level * 0.03, 0], [0, 1, 0]]),
    "shear_y": lambda image, level, sign: _warp(image, [[1, 0, 0], [sign * level * 0.03, 1, 0]]),
    "translate_x": lambda image, level, sign: _warp(image, [[1, 0, sign * level / 10 * SHIFT * image.shape[1]], [0, 1, 0]]),
    "translate_y": lambda image, level, sign: _warp(image, [[1, 0, 0], [0, 1, sign * level / 10 * SHIFT * image.shape[0]]]),
    "solarize_add": _solarize_add,
}

# AutoAugment's policy "v0" for ImageNet of the TensorFlow code: 25 pairs of (operator, probability, level)
AUTO = (
    (("equalize", 0.8, 1), ("shear_y", 0.8, 4)), (("color", 0.4, 9), ("equalize", 0.6, 3)),
    (("color", 0.4, 1), ("rotate", 0.6, 8)), (("solarize", 0.8, 3), ("equalize", 0.4, 7)),
    (("solarize", 0.4, 2), ("solarize", 0.6, 2)), (("color", 0.2, 0), ("equalize", 0.8, 8)),
    (("equalize", 0.4, 8), ("solarize_add", 0.8, 3)), (("shear_x", 0.2, 9), ("rotate", 0.6, 8)),
    (("color", 0.6, 1), ("equalize", 1.0, 2)), (("invert", 0.4, 9), ("rotate", 0.6, 0)),
    (("equalize", 1.0, 9), ("shear_y", 0.6, 3)), (("color", 0.4, 7), ("equalize", 0.6, 0)),
    (("posterize", 0.4, 6), ("autocontrast", 0.4, 7)), (("solarize", 0.6, 8), ("color", 0.6, 9)),
    (("solarize", 0.2, 4), ("rotate", 0.8, 9)), (("rotate", 1.0, 7), ("translate_y", 0.8, 9)),
    (("shear_x", 0.0, 0), ("solarize", 0.8, 4)), (("shear_y", 0.8, 0), ("color", 0.6, 4)),
    (("color", 1.0, 0), ("rotate", 0.6, 2)), (("equalize", 0.8, 4), ("equalize", 0.0, 8)),
    (("equalize", 1.0, 4), ("autocontrast", 0.6, 2)), (("shear_y", 0.4, 7), ("solarize_add", 0.6, 7)),
    (("posterize", 0.8, 2), ("solarize", 0.6, 10)), (("solarize", 0.6, 8), ("equalize", 0.6, 1)),
    (("color", 0.8, 6), ("rotate", 0.4, 5)),
)


def auto_augment(image: np.ndarray, draws: Sequence[float]) -> np.ndarray:
    """One of AutoAugment's pairs, uniformly; each of its two operators with its probability."""
    pair = AUTO[int(draws[0] * len(AUTO))]
    for (name, probability, level), chance, side in zip(pair, draws[1:3], draws[3:5], strict=True):
        if chance < probability:
            image = OPERATORS[name](image, level, -1.0 if side < 0.5 else 1.0)
    return image


def rand_augment(image: np.ndarray, layers: int, magnitude: float, draws: Sequence[float]) -> np.ndarray:
    """`layers` operators, each uniform among `OPERATORS`, all at level `magnitude`."""
    names = tuple(OPERATORS)
    for choice, side in zip(draws[:layers], draws[layers : 2 * layers], strict=True):
        image = OPERATORS[names[int(choice * len(names))]](image, magnitude, -1.0 if side < 0.5 else 1.0)
    return image
