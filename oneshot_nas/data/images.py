"""Images as arrays: decoding, and the preprocessing of evaluation.

It equals MXNet's ImageRecordIter bit by bit, as both are OpenCV with the same integer arithmetic (a test holds them together);
cubic interpolation alone may differ by one grey level between OpenCV versions.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np

from oneshot_nas.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (123.68, 116.779, 103.939)
IMAGENET_STD: Triple = (58.393, 57.12, 57.375)
CHANNELS = {"RGB": (0, 1, 2), "BGR": (2, 1, 0)}  # channel of the network -> channel of the decoded image, which is RGB
INTERPOLATIONS = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}


class Images(Protocol):
    """A part of a data set: encoded images with labels, by position."""

    @property
    def labels(self) -> np.ndarray:
        """Return the label of every position."""

    def __len__(self) -> int: ...

    def read(self, position: int) -> bytes:
        """Return the encoded image. Raises: UserError naming it."""

    def name(self, position: int) -> str:
        """Return words that lead a person to this image."""


@dataclass(frozen=True)
class Preprocessing:
    """What a network is fed: the short side resized to ceil(input_size / crop_ratio), centre crop, (x - mean) / std.

    `channels` is their order, "RGB" or "BGR" as OpenCV reads them; mean and std are in 0..255, in that order. crop_ratio 1
    leaves images of exactly the input size as they are.
    """

    input_size: int
    crop_ratio: float = 0.875
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    interpolation: str = "linear"
    channels: str = "RGB"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if type(self.input_size) is not int or self.input_size < 1:
            raise UserError(f"input_size {self.input_size!r} is not a whole number of pixels, for example 224")
        if not 0 < self.crop_ratio <= 1:
            raise UserError(f"crop_ratio {self.crop_ratio} is not in (0, 1]; 0.875 resizes to 256 for an input of 224")
        finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or not all(value > 0 for value in self.std):
            raise UserError(
                f"mean {self.mean} and std {self.std} must be three numbers each, in the order of the channels, std above 0"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(f"interpolation '{self.interpolation}' is not one of {tuple(INTERPOLATIONS)}")
        if self.channels not in CHANNELS:
            raise UserError(f"channel order {self.channels!r} is not one of {tuple(CHANNELS)}")

    @property
    def resize(self) -> int:
        """Length of the short side before the crop, in pixels."""
        return math.ceil(round(self.input_size / self.crop_ratio, 6))

    def reordered(self, channels: str) -> Preprocessing:
        """Return the same preprocessing for a network that wants its channels in another order; mean and std go with them."""
        if channels == self.channels:
            return self
        return replace(self, channels=channels, mean=self.mean[::-1], std=self.std[::-1])

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `from_json` reads."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @staticmethod
    def from_json(content: Any) -> Preprocessing:
        """Return the preprocessing of a JSON object written by `to_json`. Raises: UserError."""
        names = [field.name for field in fields(Preprocessing)]
        if not isinstance(content, dict) or sorted(content) != sorted(names):
            raise UserError(f"a preprocessing is a JSON object with exactly the keys {names}")
        try:
            return Preprocessing(**content)
        except TypeError as error:
            raise UserError(f"preprocessing {content} has a value of the wrong type: {error}") from error


def decode(encoded: bytes) -> np.ndarray:
    """Return the image as uint8 RGB, height x width x 3, EXIF rotation ignored as MXNet does. Raises: ValueError."""
    if not encoded:
        raise ValueError("cannot be decoded as an image (empty file)")
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ValueError(f"cannot be decoded as an image ({str(error).strip()})") from error
    if image is None:
        raise ValueError(f"cannot be decoded as an image ({len(encoded)} bytes, starting {encoded[:8].hex(' ')})")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_image(images: Images, position: int) -> np.ndarray:
    """Return the decoded image at `position`. Raises: UserError naming it when it cannot be read or decoded."""
    try:
        return decode(images.read(position))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{images.name(position)} {error}") from error


def encode(image: np.ndarray, kind: str, quality: int = 95) -> bytes:
    """Return uint8 RGB `image` as ".png" (lossless) or ".jpg" bytes."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if kind == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 9]
    return cv2.imencode(kind, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def resize_short(image: np.ndarray, length: int, interpolation: str = "linear") -> np.ndarray:
    """Return `image` with its short side resized to `length`, the long side truncated to whole pixels."""
    rows, columns = image.shape[:2]
    size = (length, length * rows // columns) if rows > columns else (length * columns // rows, length)
    return cv2.resize(image, size, interpolation=INTERPOLATIONS[interpolation])


def fit(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Return the centre crop of the resized image: uint8, input_size x input_size x 3."""
    image = resize_short(image, preprocessing.resize, preprocessing.interpolation)
    size = preprocessing.input_size
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def normaliser(preprocessing: Preprocessing) -> Callable[[np.ndarray, np.ndarray], None]:
    """Return a function (image, out) that writes a uint8 RGB image into `out`, float32 3 x height x width, for the network.

    The channels are put into its order and normalised by looking up (value - mean) / std of the values 0..255.
    """
    scale = np.float32(1) / np.array(preprocessing.std, np.float32)
    lookup = ((np.arange(256, dtype=np.float32)[:, None] - np.array(preprocessing.mean, np.float32)) * scale).T.copy()
    order = CHANNELS[preprocessing.channels]

    def normalise(image: np.ndarray, out: np.ndarray) -> None:
        if image.shape[:2] != out.shape[1:]:
            raise ValueError(f"image of {image.shape} where {out.shape} is wanted")
        planes = cv2.split(image)
        for channel, table, target in zip(order, lookup, out, strict=True):
            cv2.LUT(planes[channel], table, dst=target)

    return normalise


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int) -> Iterator[Result]:
    """Yield function(item) in the order of `items`, at most `ahead` of them computed in advance by `threads` threads."""
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
