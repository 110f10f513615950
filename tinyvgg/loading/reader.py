"""Reader: rows of a split to uint8 pixels of one size: decoded, and their boxes cut out and scaled.

From: a split, whose rows are JPEG files or stored pixels, and the boxes of `views`.
To:   the host kernel, which crops, flips and normalizes; or the pinned staging of a CUDA copy.

Memory: each thread keeps 16 MiB for the image that it decodes. Larger ones, and what decoding them
takes, are counted over all threads, which wait for each other: 1 GiB in all.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyvgg.errors import ShardError
from tinyvgg.loading.batch import Batch
from tinyvgg.loading.host_kernel import HostKernel, host_batches
from tinyvgg.loading.plan import RankEpoch
from tinyvgg.loading.resize_kernel import resize_box
from tinyvgg.shards.jpeg import decode_jpeg, decoding
from tinyvgg.shards.store import Split

# of pixels that a thread reads before it does anything else: with two threads that ask for the GIL
# every other call takes some 30 µs (256 images of 64 x 64: 50 k images/sec; 32 at a time: 35 k)
PART_BYTES = 6 * 2**20
KEPT_BYTES = 16 * 2**20


def count_part(size: tuple[int, int]) -> int:
    """Return the images of (H, W) that a thread reads at once."""
    return max(1, PART_BYTES // (3 * size[0] * size[1]))


class ImageReader:
    """Reads rows; safe from several threads, and mostly without the GIL.

    Args:
        split: to read from.
        size: (H, W) of the images to make.
    """

    def __init__(self, split: Split, size: tuple[int, int]) -> None:
        self.split = split
        self.size = size
        self.memory = threading.local()

    def take(self, num_images: int) -> NDArray[np.uint8]:
        """Return memory of this thread, uint8 [num_images, H, W, 3], valid until it asks again."""
        if not hasattr(self.memory, "images") or len(self.memory.images) < num_images:
            self.memory.images = np.empty((num_images, *self.size, 3), np.uint8)
        images: NDArray[np.uint8] = self.memory.images[:num_images]
        return images

    def read(
        self, rows: NDArray[np.int64], boxes: NDArray[np.int32] | None, out: NDArray[np.uint8]
    ) -> None:
        """Fill `out` with images.

        Args:
            rows: int64 [n], of the split.
            boxes: int32 [n, 4], to be cut out and scaled; None: whole images, of that size.
            out: uint8 [n, H, W, 3], C order.

        Raises:
            ShardError: a JPEG file is damaged.
        """
        if boxes is None:
            for row, pixels in zip(rows.tolist(), out, strict=True):
                with decoding(self.size[0] * self.size[1]):
                    self._decode(row, pixels)
            return
        sizes = self.split.sizes[rows].tolist()
        target, image_bytes = out.ctypes.data, out.strides[0]
        for row, (height, width), box in zip(rows.tolist(), sizes, boxes.tolist(), strict=True):
            if self._has_byte_behind(row):
                address = int(self.split.row_addresses[row])
                resize_box(address, width, *box, target, *self.size)
            else:
                with decoding(height * width):
                    num_bytes = 3 * height * width
                    whole, address = self._take_whole(num_bytes + 1)
                    self._decode(row, whole[:num_bytes].reshape(height, width, 3))
                    resize_box(address, width, *box, target, *self.size)
                    del whole
            target += image_bytes

    def _has_byte_behind(self, row: int) -> bool:
        """Return whether an image is stored as pixels, and is not the last of its shard."""
        if self.split.is_jpeg:
            return False
        shard, place = self.split.find_row(row)
        return place + 1 < len(shard.images)

    def _take_whole(self, num_bytes: int) -> tuple[NDArray[np.uint8], int]:
        """Return memory for a whole image and its address, of this thread unless it is large."""
        if num_bytes > KEPT_BYTES:
            large = np.empty(num_bytes, np.uint8)
            return large, large.ctypes.data
        kept: tuple[NDArray[np.uint8], int] | None = getattr(self.memory, "whole", None)
        if kept is None or len(kept[0]) < num_bytes:
            whole = np.empty(num_bytes, np.uint8)
            kept = self.memory.whole = whole, whole.ctypes.data
        return kept

    def _decode(self, row: int, pixels: NDArray[np.uint8]) -> None:
        shard, place = self.split.find_row(row)
        stored = shard.view_row(place)
        if shard.offsets is None:
            pixels[:] = stored
            return
        try:
            decode_jpeg(stored.data, pixels)
        except ValueError as error:
            raise ShardError(
                f"{self.split.folder / shard.record.images}: image {row:,} of split "
                f"{self.split.name!r} cannot be decoded ({error}); run 'tinyvgg verify'"
            ) from error


def read_batches(reader: ImageReader, kernel: HostKernel, epoch: RankEpoch) -> Iterator[Batch]:
    """Yield the batches of an epoch on a CPU device, from images that are read one by one.

    Args:
        reader: of images of the kernel's size.
        kernel: crops, flips and normalizes them.
        epoch: the plan.
    """

    def write(step: int, part: slice, out: Tensor) -> None:
        images = reader.take(len(out))
        boxes = None if epoch.boxes is None else epoch.boxes[step, part]
        reader.read(epoch.rows[step, part], boxes, images)
        kernel.write(
            images.ctypes.data + np.arange(len(images)) * images.strides[0],
            epoch.dy[step, part],
            epoch.dx[step, part],
            epoch.flip[step, part],
            out,
            is_augmented=epoch.is_augmented,
        )

    return host_batches(write, kernel, epoch, count_part(kernel.image_shape[:2]))


def read_step(reader: ImageReader, epoch: RankEpoch, step: int, out: NDArray[np.uint8]) -> None:
    """Fill `out` uint8 [b, H, W, 3] with the images of a step, by a thread a core."""
    num_images = count_part(reader.size)

    def read(first: int) -> None:
        part = slice(first, first + num_images)
        boxes = None if epoch.boxes is None else epoch.boxes[step][part]
        reader.read(epoch.rows[step][part], boxes, out[part])

    with ThreadPoolExecutor(torch.get_num_threads(), "tinyvgg-reader") as threads:
        for _ in threads.map(read, range(0, len(out), num_images)):
            pass
