"""What a loader can be told. No torch here, so that `--help` is instant."""

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex

from tinyvgg.options import BACKENDS, Backend

ViewName = Literal["crop", "resized-crop", "center"]
VIEWS = ("crop", "resized-crop", "center")
CENTER_SHARE = 224 / 256  # torchvision's evaluation: 256 pixels, of which 224 are cut out
CROP_PIXELS, MAX_CROP_PIXELS = 4, 8  # by default, and at most
MAX_SIZE = 65_535  # pixels of a side, as of a JPEG
BOUNDS = {"mean": "3 values from 0 to 1", "std": "3 values above 0"}


@dataclass(frozen=True)
class LoaderConfig:
    """How shards become batches; the same for every backend."""

    backend: Backend = "auto"
    """auto, dali (NVIDIA DALI), torch (mapped shards) or resident (the split in device memory)."""
    batch_size: int = 128
    """Images in a global batch; divisible by the world size."""
    seed: int = 0
    """With the epoch number, the only source of order, crops and flips."""
    shuffle: bool | None = None
    """Whether to shuffle; by default train is shuffled and val is not."""
    augment: bool | None = None
    """Whether to crop and flip at all; by default train is and val is not."""
    crop_pixels: int = CROP_PIXELS
    """Pixels a crop is off at most, 0 to 8, in images that are augmented; 0: no crops."""
    flip: bool = True
    """Whether every other image is mirrored, of those that are augmented."""
    drop_last: bool | None = None
    """Whether images beyond the last full batch sit out; by default so in train only."""
    mean: Iterable[float] | None = None
    """Mean per channel on the 0-to-1 scale, instead of the train split's; becomes a tuple."""
    std: Iterable[float] | None = None
    """Standard deviation per channel on that scale, instead of the train split's; a tuple, too."""
    size: int | None = None
    """Pixels of the images' shorter side, to which they are scaled; None: as stored. A view that
    cuts a box out gives squares of it, and images of several sizes need it."""
    view: ViewName | None = None
    """What an augmented image shows: crop (moved by crop_pixels), resized-crop (a box drawn by area
    and aspect) or center; None: crop of images of one size of at most 1,048,576 pixels, else
    resized-crop. Images that are not augmented are shown whole; of several sizes, their central
    square."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Least and most of a resized-crop's area, as a share of the image's."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and most of a resized-crop's width by its height."""
    center_share: float = CENTER_SHARE
    """Side of the central square, as a share of the image's shorter side."""
    reuse_buffers: bool = False
    """Whether a batch is valid only until the next is asked for; saves `dali` a copy of each."""

    def __post_init__(self) -> None:
        """Refuse what no loader can do."""
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be at least 0 and under 2^64, got {self.seed}")
        object.__setattr__(self, "size", read_size(self.size))
        self._check_view()
        mean, std = (_read_triple(name, getattr(self, name)) for name in ("mean", "std"))
        if mean is not None and not all(0 <= value <= 1 for value in mean):
            raise ValueError(f"mean must be {BOUNDS['mean']}, got {mean}")
        if std is not None and not all(0 < value < math.inf for value in std):
            raise ValueError(f"std must be {BOUNDS['std']}, got {std}")
        object.__setattr__(self, "crop_pixels", read_crop_pixels(self.crop_pixels))
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)

    def _check_view(self) -> None:
        """Refuse a view that shows nothing."""
        if self.view is not None and self.view not in VIEWS:
            raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {self.view!r}")
        object.__setattr__(self, "crop_area", read_range("crop_area", self.crop_area, 1))
        object.__setattr__(self, "crop_aspect", read_range("crop_aspect", self.crop_aspect, 100))
        if not 0 < self.center_share <= 1:
            raise ValueError(f"center_share must be above 0 and at most 1, got {self.center_share}")


def read_range(name: str, values: Any, most: float) -> tuple[float, float]:
    """Return a range, of a list, an array or any other two numbers, as a tuple of floats.

    Raises:
        ValueError: it is not two numbers above 0, the second not under the first, nor over `most`.
    """
    try:
        least, greatest = map(float, values)
        if not 0 < least <= greatest <= most:
            raise ValueError(f"{name} is out of range")
    except (TypeError, ValueError) as error:
        found = " ".join(str(values).split())
        raise ValueError(
            f"{name} must be two numbers above 0 and up to {most:g}, smaller first, got {found}"
        ) from error
    return least, greatest


def read_size(size: SupportsIndex | None) -> int | None:
    """Return the pixels of a side, of whatever integer type.

    Raises:
        ValueError: no image has that size.
    """
    if size is None:
        return None
    try:
        pixels = operator.index(size)
        if not 1 <= pixels <= MAX_SIZE:
            raise ValueError(f"{pixels} is out of range")
    except (TypeError, ValueError) as error:
        message = f"size must be a whole number from 1 to {MAX_SIZE:,} pixels, got {size}"
        raise ValueError(message) from error
    return pixels


def read_crop_pixels(value: SupportsIndex) -> int:
    """Return the pixels that crops may be off by, of whatever integer type.

    Raises:
        ValueError: it is not a whole number from 0 to 8.
    """
    try:
        crop_pixels = operator.index(value)
        if not 0 <= crop_pixels <= MAX_CROP_PIXELS:
            raise ValueError(f"{crop_pixels} is out of range")
    except (TypeError, ValueError) as error:
        message = f"crop_pixels must be a whole number from 0 to {MAX_CROP_PIXELS}, got {value}"
        raise ValueError(message) from error
    return crop_pixels


def _read_triple(name: str, values: Any) -> tuple[float, float, float] | None:
    """Return an array, a list, a tensor or any other three numbers as a tuple of floats."""
    if values is None:
        return None
    try:
        if getattr(values, "ndim", 1) != 1:  # numpy would take [[1.0]] for a number
            raise TypeError(f"{name} has {values.ndim} dimensions")
        red, green, blue = map(float, values)
    except (TypeError, ValueError) as error:
        found = " ".join(str(values).split())
        raise ValueError(f"{name} must be {BOUNDS[name]}, got {found}") from error
    return red, green, blue
