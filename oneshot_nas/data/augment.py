"""How training images vary: crops, mirroring and colours, as pure functions of (seed, epoch, position).

Every image gets uniform numbers of its own from `seeds.keys`; nothing else is random, so neither the batch size nor the
number of threads nor the other images matter. Pixels are uint8 throughout, rounded and clipped once after all colour changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import cv2
import numpy as np

from oneshot_nas.data.images import INTERPOLATIONS, Preprocessing, fit, resize_short
from oneshot_nas.data.policy import MOST_LAYERS, POLICY_DRAWS, auto_augment, rand_augment
from oneshot_nas.data.seeds import derive_seed, keys
from oneshot_nas.errors import UserError

TRIES = 10  # of a random crop that fits, then the centre, as in GluonCV and torchvision
CROP_DRAWS = 8  # draws 0 to 7 are for mirror, colours and noise
DRAWS = CROP_DRAWS + 4 * TRIES
CUTOUT_DRAWS = 2
ALL_DRAWS = DRAWS + POLICY_DRAWS + CUTOUT_DRAWS
GRAY = np.array([0.299, 0.587, 0.114])
# Principal components of ImageNet's colours, RGB in 0..255 (Krizhevsky et al. 2012, section 4.1; the values of mxnet.image)
PCA_VALUES = np.array([55.46, 4.794, 1.148])
PCA_VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


@dataclass(frozen=True)
class Augment:
    """How training images vary. `crop`: "resized" (random area and ratio), "padded" (pad, then random crop) or "centre".

    area and ratio (width / height) are the ranges of "resized"; pad is in pixels and filled with the grey value `fill`;
    brightness, contrast and saturation are the largest relative changes; pca_noise is the standard deviation of the colour noise.
    policy "auto" is AutoAugment, "rand" RandAugment with `layers` operators of level `magnitude`, 0 to 10; see `data.policy`.
    cutout is the side in pixels of a square that is blanked last, with the mean colour of `Preprocessing` (0 once normalised),
    around a pixel drawn uniformly, so that part of it may lie outside; 0 for none (DeVries and Taylor 2017, arXiv 1708.04552:
    16 on CIFAR-10).
    """

    crop: str = "centre"
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 0
    fill: int = 0
    mirror: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    pca_noise: float = 0.0
    policy: str = "none"
    layers: int = 2
    magnitude: float = 9.0
    cutout: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "area", tuple(self.area))
        object.__setattr__(self, "ratio", tuple(self.ratio))
        if self.crop not in ("resized", "padded", "centre"):
            raise UserError(f"augmentation crop '{self.crop}' is not one of ('resized', 'padded', 'centre')")
        if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
            raise UserError(f"augmentation area {self.area} is not a range within (0, 1], for example (0.08, 1)")
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"augmentation ratio {self.ratio} is not a range above 0, for example (0.75, 1.3333)")
        if self.pad < 0 or self.pad != int(self.pad) or not 0 <= self.fill <= 255:
            raise UserError(f"augmentation pad {self.pad} must be a whole number of pixels from 0, fill {self.fill} a grey value "
                            "in 0..255")
        object.__setattr__(self, "pad", int(self.pad))
        if min(self.brightness, self.contrast, self.saturation, self.pca_noise) < 0:
            raise UserError("augmentation brightness, contrast, saturation and pca_noise must be 0 or more")
        if self.policy not in ("none", "auto", "rand"):
            raise UserError(f"augmentation policy '{self.policy}' is not one of ('none', 'auto', 'rand')")
        if not 1 <= self.layers <= MOST_LAYERS or self.layers != int(self.layers) or not 0 <= self.magnitude <= 10:
            raise UserError(f"augmentation layers {self.layers} must be a whole number from 1 to {MOST_LAYERS}, magnitude "
                            f"{self.magnitude} a level from 0 to 10")
        if self.cutout < 0 or self.cutout != int(self.cutout):
            raise UserError(f"augmentation cutout {self.cutout} must be a whole number of pixels from 0")
        object.__setattr__(self, "cutout", int(self.cutout))


AUGMENTS = {
    "imagenet": Augment("resized", mirror=True, brightness=0.4, contrast=0.4, saturation=0.4, pca_noise=0.1),
    "small": Augment("padded", pad=4, mirror=True),
    "digits": Augment("padded", pad=2),
    "none": Augment("centre"),
}


def make_augment(kind: str, changes: Mapping[str, Any] | None = None) -> Augment:
    """Return the named augmentation ("imagenet", "small", "digits", "none") with some fields replaced. Raises: UserError."""
    if kind not in AUGMENTS:
        raise UserError(f"augmentation '{kind}' is not one of {tuple(AUGMENTS)}")
    known = [field.name for field in fields(Augment)]
    unknown = sorted(set(changes or {}) - set(known))
    if unknown:
        raise UserError(f"augmentation '{kind}' has no field '{unknown[0]}'; it has {known}")
    try:
        return replace(AUGMENTS[kind], **(changes or {}))
    except TypeError as error:
        raise UserError(f"augmentation '{kind}': a value of {dict(changes or {})} has the wrong type ({error})") from error


def draw(seed: int, epoch: int, positions: np.ndarray) -> np.ndarray:
    """Return the uniform numbers in [0, 1) of the images at `positions`: float64 (len(positions), ALL_DRAWS)."""
    def numbers(count: int, stream: int) -> np.ndarray:
        counters = np.asarray(positions, np.int64)[:, None] * count + np.arange(count)
        return (keys(counters, derive_seed(seed, epoch, stream)) >> np.uint64(11)) * 2.0**-53

    return np.concatenate([numbers(DRAWS, 1), numbers(POLICY_DRAWS, 2), numbers(CUTOUT_DRAWS, 3)], axis=1)


def augment_image(image: np.ndarray, augment: Augment, preprocessing: Preprocessing, draws: Sequence[float]) -> np.ndarray:
    """Return a variation of a uint8 RGB image, input_size x input_size x 3, fixed by its numbers of `draw`."""
    image = CROPS[augment.crop](image, augment, preprocessing, draws[CROP_DRAWS:DRAWS])
    if augment.mirror and draws[0] < 0.5:
        image = cv2.flip(image, 1)
    if augment.policy == "auto":
        image = auto_augment(image, draws[DRAWS:])
    elif augment.policy == "rand":
        image = rand_augment(image, int(augment.layers), augment.magnitude, draws[DRAWS:])
    image = _recolour(image, augment, draws)
    return _cut_out(image, augment.cutout, preprocessing, draws[-CUTOUT_DRAWS:]) if augment.cutout else image


def _resized_crop(image: np.ndarray, augment: Augment, preprocessing: Preprocessing, draws: Sequence[float]) -> np.ndarray:
    rows, columns = image.shape[:2]
    low, high = (math.log(ratio) for ratio in augment.ratio)
    for first in range(0, 4 * TRIES, 4):
        area = rows * columns * (augment.area[0] + draws[first] * (augment.area[1] - augment.area[0]))
        ratio = math.exp(low + draws[first + 1] * (high - low))
        height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < height <= rows and 0 < width <= columns:
            crop = _window(image, height, width, draws[first + 2 : first + 4])
            size = (preprocessing.input_size, preprocessing.input_size)
            return cv2.resize(crop, size, interpolation=INTERPOLATIONS[preprocessing.interpolation])
    return fit(image, preprocessing)


def _padded_crop(image: np.ndarray, augment: Augment, preprocessing: Preprocessing, draws: Sequence[float]) -> np.ndarray:
    size, pad = preprocessing.input_size, augment.pad
    image = resize_short(image, size, preprocessing.interpolation)
    image = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=(augment.fill,) * 3)
    return _window(image, size, size, draws[:2])


def _centre_crop(image: np.ndarray, augment: Augment, preprocessing: Preprocessing, draws: Sequence[float]) -> np.ndarray:
    return fit(image, preprocessing)


CROPS = {"resized": _resized_crop, "padded": _padded_crop, "centre": _centre_crop}


def _window(image: np.ndarray, height: int, width: int, draws: Sequence[float]) -> np.ndarray:
    """Return the window whose corner is drawn uniformly from all places where it fits."""
    top, left = int(draws[0] * (image.shape[0] - height + 1)), int(draws[1] * (image.shape[1] - width + 1))
    return image[top : top + height, left : left + width]


def _recolour(image: np.ndarray, augment: Augment, draws: Sequence[float]) -> np.ndarray:
    """Return the image with random brightness, contrast, saturation and colour noise.

    All four are linear in the pixels, so they are one 3 x 4 matrix; with g the grey of a pixel and m the mean grey of the image:
    x -> b x -> c x + (1 - c) m -> s x + (1 - s) g -> x + noise.
    """
    if not (augment.brightness or augment.contrast or augment.saturation or augment.pca_noise):
        return image
    limits = (augment.brightness, augment.contrast, augment.saturation)
    bright, contrast, saturation = (1 + (2 * value - 1) * limit for value, limit in zip(draws[1:4], limits, strict=True))
    grey = bright * float(GRAY @ cv2.mean(image)[:3])
    radius = [math.sqrt(-2 * math.log(1 - value)) for value in draws[4:6]]  # Box and Muller: two draws, two normal numbers
    normal = [
        radius[0] * math.cos(2 * math.pi * draws[6]),
        radius[0] * math.sin(2 * math.pi * draws[6]),
        radius[1] * math.cos(2 * math.pi * draws[7]),
    ]
    noise = PCA_VECTORS @ (augment.pca_noise * np.array(normal) * PCA_VALUES)
    matrix = bright * contrast * (saturation * np.eye(3) + (1 - saturation) * GRAY)
    return cv2.transform(image, np.column_stack([matrix, (1 - contrast) * grey + noise]))


def _cut_out(image: np.ndarray, side: int, preprocessing: Preprocessing, draws: Sequence[float]) -> np.ndarray:
    rows, columns = image.shape[:2]
    top, left = int(draws[0] * rows) - side // 2, int(draws[1] * columns) - side // 2
    image = image.copy()  # a crop may be a view of the caller's image
    colour = np.clip(np.rint(preprocessing.reordered("RGB").mean), 0, 255)
    image[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = colour
    return image
