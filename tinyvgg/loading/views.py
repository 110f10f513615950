"""Views: which box of an image a batch shows, from the plan's word and the image's size alone.

From: `plan`, which has a word for every image, and the stored sizes.
To:   backends, which cut the box out and scale it to the batch's size.

`resized-crop` is torchvision's RandomResizedCrop with draws of its own: the k-th number of an image
is splitmix64 of `word + k * GOLDEN` (which adds GOLDEN first), 4 numbers a try: area, aspect, top,
left. Scalar code, since the exponential of a vector unit may differ by a bit between processors;
golden values hold it.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tinyvgg.kernels import compile_kernel
from tinyvgg.loading.config import LoaderConfig

NUM_TRIES = 10  # then the largest box of an allowed aspect, in the middle; as torchvision
LARGE_PIXELS = 2**20  # images of more are scaled before they are normalized, not after
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # of splitmix64 (Steele, Lea, Flood 2014)


Kind = Literal["resized-crop", "center", "whole"]


@dataclass(frozen=True)
class View:
    """How boxes are chosen.

    Attributes:
        kind: "resized-crop", drawn; "center", the central square; "whole", the image.
        area: of a drawn box, least and most, as a share of the image's.
        aspect: width by height of a drawn box, least and most.
        center_share: side of the central square, as a share of the image's shorter side.
    """

    kind: Kind
    area: tuple[float, float]
    aspect: tuple[float, float]
    center_share: float

    def boxes(self, words: NDArray[np.uint64], sizes: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the box of every image.

        Args:
            words: uint64 [n], the plan's.
            sizes: int32 [n, 2], height and width.

        Returns:
            int32 [n, 4]: top, left, height and width, in pixels, inside the image.
        """
        boxes = np.empty((len(sizes), 4), np.int32)
        if self.kind == "center":
            shorter = sizes.min(axis=1)
            side = np.maximum(np.rint(shorter * self.center_share), 1).astype(np.int32)
            boxes[:, 2:] = side[:, None]
            boxes[:, :2] = (sizes - side[:, None]) // 2
        elif self.kind == "whole":
            boxes[:, :2], boxes[:, 2:] = 0, sizes
        else:
            log_aspect = math.log(self.aspect[0]), math.log(self.aspect[1])
            _draw_boxes(words, sizes, self.area, self.aspect, log_aspect, boxes)
        return boxes


def choose_view(
    config: LoaderConfig, stored: tuple[int, int] | None, *, is_augmented: bool
) -> View | None:
    """Return the view of a loader; None where stored pixels are shown, cropped by pixels or not.

    Args:
        config: may ask for a view, which holds for images that are augmented.
        stored: (H, W) of the stored images; None if they have several sizes.
        is_augmented: whether the images are.

    Raises:
        ValueError: images of several sizes, or large ones, are to be cropped by pixels.
    """
    is_large = stored is not None and stored[0] * stored[1] > LARGE_PIXELS
    kind: Kind | None = None
    if stored is None or config.view == "center":
        kind = "center"
    elif is_large:
        kind = "whole"
    if is_augmented and config.view == "crop":
        if stored is None or is_large:
            found = "images of several sizes" if stored is None else f"{stored[1]}x{stored[0]}"
            raise ValueError(f"view must be resized-crop or center for {found}, got 'crop'")
        kind = None
    elif is_augmented and config.view != "center":
        is_drawn = config.view == "resized-crop" or stored is None or is_large
        kind = "resized-crop" if is_drawn else None
    if kind is None:
        return None
    return View(kind, config.crop_area, config.crop_aspect, config.center_share)


def scaled_size(height: int, width: int, pixels: int) -> tuple[int, int]:
    """Return height and width scaled so that the shorter of them is `pixels`."""
    shorter = min(height, width)
    return round(height * pixels / shorter), round(width * pixels / shorter)


def find_shown_size(
    stored: tuple[int, int] | None, size: int | None, view: View | None
) -> tuple[int, int]:
    """Return (H, W) of the images of a batch.

    Args:
        stored: (H, W) of the stored ones; None if they have several sizes.
        size: pixels of the shorter side; None: as stored.
        view: cuts squares out, unless it is "whole"; None: stored pixels are shown.

    Raises:
        ValueError: the images have several sizes, and no size is given.
    """
    if stored is None and size is None:
        raise ValueError("size must be given for images of several sizes, 224 for example")
    if stored is None or (view is not None and view.kind != "whole"):
        side = size if size is not None else min(stored or (1, 1))
        return side, side
    return stored if size is None else scaled_size(*stored, size)


@compile_kernel
def _draw(word, k):  # type: ignore[no-untyped-def]
    """Return the k-th number of a word, uint64."""
    z = word + np.uint64(k + 1) * GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compile_kernel
def _draw_share(word, k):  # type: ignore[no-untyped-def]
    """Return the k-th number of a word as float64 in [0, 1)."""
    return np.float64(_draw(word, k) >> np.uint64(11)) * 2.0**-53


@compile_kernel
def _draw_below(word, k, count):  # type: ignore[no-untyped-def]
    """Return the k-th number of a word as a whole number from 0 to count - 1."""
    return np.int32(((_draw(word, k) >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32))


@compile_kernel
def _draw_boxes(words, sizes, area, aspect, log_aspect, boxes):  # type: ignore[no-untyped-def]
    for i in range(words.size):
        word, height, width = words[i], sizes[i, 0], sizes[i, 1]
        top, left = -1, 0
        box_height, box_width = np.int64(0), np.int64(0)
        for k in range(0, 4 * NUM_TRIES, 4):
            pixels = height * width * (area[0] + (area[1] - area[0]) * _draw_share(word, k))
            share = _draw_share(word, k + 1)
            ratio = math.exp(log_aspect[0] + (log_aspect[1] - log_aspect[0]) * share)
            box_width = np.int64(np.rint(math.sqrt(pixels * ratio)))
            box_height = np.int64(np.rint(math.sqrt(pixels / ratio)))
            if 0 < box_width <= width and 0 < box_height <= height:
                top = _draw_below(word, k + 2, height - box_height + 1)
                left = _draw_below(word, k + 3, width - box_width + 1)
                break
        if top < 0:
            box_height, box_width = np.int64(height), np.int64(width)
            if width < aspect[0] * height:
                box_height = np.int64(max(1.0, np.rint(width / aspect[0])))
            elif width > aspect[1] * height:
                box_width = np.int64(max(1.0, np.rint(height * aspect[1])))
            top, left = (height - box_height) // 2, (width - box_width) // 2
        boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3] = top, left, box_height, box_width
