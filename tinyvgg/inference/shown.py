"""Shown: any image as a run's evaluation view shows it, uint8 pixels of one size.

From: `given_images`: bytes of a file, a PIL image or an array.
To:   `predict`, which normalizes them.

The same pixels as those of `pack` and a loader, for the same file:

  * a run on images of several sizes: the central square of `center_share`, scaled by the loader's
    own kernel;
  * a run on images of one square size: an image of that size as it is, another one as
    `pack --resize` makes it: scaled to the shorter side, the center cut out;
  * a run on images of one size that is no square: the largest box of that shape in the middle,
    scaled by the loader's kernel.
"""

import threading

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyvgg.inference.given_images import GivenImage
from tinyvgg.inference.trained import Preprocessing
from tinyvgg.loading.resize_kernel import resize_box
from tinyvgg.loading.views import View
from tinyvgg.packing.decode import Refusing, cut_square, decode_image, read_image_size
from tinyvgg.shards.jpeg import read_plain_size

KEPT_BYTES = 16 * 2**20  # of a decoded image, by each thread


class EvaluationView:
    """Makes what a network is shown; safe from several threads, and mostly without the GIL.

    Args:
        preprocessing: of the network.

    Attributes:
        size: (H, W) of what it makes.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.is_center = preprocessing.is_center
        self.view = View("center", (1, 1), (1, 1), preprocessing.center_share)
        self.size = find_view_size(preprocessing)
        self.memory = threading.local()

    def show(self, image: GivenImage, out: NDArray[np.uint8]) -> None:
        """Fill `out`, uint8 [H, W, 3], C order, with an image.

        Raises:
            DatasetError: it cannot be decoded.
            OSError, MemoryError: it cannot be read, or the machine cannot decode it now.
        """
        content = image.content
        if isinstance(content, np.ndarray):
            self._show_pixels(content, out)
        elif isinstance(content, Image.Image):
            with Refusing("cannot be converted to RGB"):  # Pillow reads a file that late
                pixels = np.asarray(content.convert("RGB"))
            self._show_pixels(pixels, out)
        else:
            self._show_file(content(), out)

    def _show_file(self, data: bytes, out: NDArray[np.uint8]) -> None:
        size = read_plain_size(data) or read_image_size(data)
        if self.is_center or (size != self.size and self.size[0] != self.size[1]):
            whole = self._take(*size)
            decode_image(data, whole)
            self._cut(whole, out)
        else:
            decode_image(data, out, resize=size != self.size)

    def _show_pixels(self, pixels: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        height, width, _ = pixels.shape
        if not self.is_center and (height, width) == self.size:
            out[:] = pixels
        elif not self.is_center and self.size[0] == self.size[1]:
            out[:] = np.asarray(cut_square(Image.fromarray(pixels), self.size[0]))
        else:
            whole = self._take(height, width)
            whole[:] = pixels
            self._cut(whole, out)

    def _take(self, height: int, width: int) -> NDArray[np.uint8]:
        """Return memory for an image, and one byte behind it; of this thread unless it is large."""
        num_bytes = 3 * height * width
        kept: NDArray[np.uint8] | None = getattr(self.memory, "kept", None)
        if kept is None or len(kept) <= num_bytes:
            kept = np.empty(num_bytes + 1, np.uint8)
            if num_bytes < KEPT_BYTES:
                self.memory.kept = kept
        return kept[:num_bytes].reshape(height, width, 3)

    def _cut(self, whole: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Scale the box that is shown of an image from `_take` into `out`."""
        height, width, _ = whole.shape
        if self.is_center:
            sizes, words = np.array([[height, width]], np.int32), np.zeros(1, np.uint64)
            box = self.view.boxes(words, sizes)[0].tolist()
        else:
            box = find_largest_box((height, width), self.size)
        resize_box(whole.ctypes.data, width, *box, out.ctypes.data, *self.size)


def find_view_size(preprocessing: Preprocessing) -> tuple[int, int]:
    """Return (H, W) of what a network is shown, before it is scaled to `pixels`.

    Raises:
        ValueError: nobody noted it.
    """
    if preprocessing.stored_size is not None and not preprocessing.is_center:
        return preprocessing.stored_size
    if preprocessing.pixels is None:
        raise ValueError(
            "preprocessing must have pixels or stored_size, to show an image of any size"
        )
    return preprocessing.pixels, preprocessing.pixels


def find_largest_box(size: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the largest box of a shape in the middle of an image.

    Args:
        size: (H, W) of the image.
        shape: (h, w), of which only the ratio counts.

    Returns:
        top, left, height, width.
    """
    height, width = size
    share = min(height / shape[0], width / shape[1])
    box_height = min(max(1, round(shape[0] * share)), height)
    box_width = min(max(1, round(shape[1] * share)), width)
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
