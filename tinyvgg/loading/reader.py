"""Reader: rows of a split to uint8 pixels of one size: decoded, and their boxes cut out and scaled.

From: a split, whose rows are JPEG files or stored pixels, and the boxes of `views`.
To:   the host kernel, which crops, flips and normalizes; or the pinned staging of a CUDA copy.

Memory: each thread keeps 16 MiB for the image that it decodes. Larger ones, and what decoding them
takes, are counted over all threads, which wait for each other: 1 GiB in all.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyvgg.errors import ShardError
from tinyvgg.loading.batch import Batch
from tinyvgg.loading.host_batches import host_batches
from tinyvgg.loading.host_kernel import HostKernel
from tinyvgg.loading.plan import RankEpoch
from tinyvgg.loading.resize_kernel import normalize_box, resize_box
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
        addresses: int64 [N], where the pixels of every image are in memory, which stays, and one
            byte behind each; None: images are read from the shards.
    """

    def __init__(
        self,
        split: Split,
        size: tuple[int, int],
        addresses: NDArray[np.int64] | None = None,
    ) -> None:
        self.split = split
        self.size = size
        self.addresses = split.row_addresses if addresses is None else addresses
        self.is_in_memory = addresses is not None
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
        target, image_bytes = out.ctypes.data, out.strides[0]

        def scale(place: int, *box: int) -> None:
            resize_box(*box, target + place * image_bytes, *self.size)

        self._read_boxes(rows, boxes, scale)

    def read_normalized(
        self,
        rows: NDArray[np.int64],
        boxes: NDArray[np.int32],
        flip: NDArray[np.bool_],
        kernel: HostKernel,
        out: NDArray[np.float32],
    ) -> None:
        """Fill `out` with boxes, scaled, mirrored and normalized in one pass.

        Args:
            rows: int64 [n], of the split.
            boxes: int32 [n, 4].
            flip: bool [n].
            kernel: normalizes.
            out: float32 [n, H, 3 W], C order.

        Raises:
            ShardError: a JPEG file is damaged.
        """
        flips = flip.tolist()

        def scale(place: int, *box: int) -> None:
            normalize_box(*box, out[place], flips[place], kernel.scale_row, kernel.shift_row)

        self._read_boxes(rows, boxes, scale)

    def _read_boxes(
        self, rows: NDArray[np.int64], boxes: NDArray[np.int32], scale: Callable[..., None]
    ) -> None:
        """Call `scale` for each row: its place, the address and width of its image, its box."""
        sizes = self.split.sizes[rows].tolist()
        for place, (row, (height, width), box) in enumerate(
            zip(rows.tolist(), sizes, boxes.tolist(), strict=True)
        ):
            if self._has_byte_behind(row):
                scale(place, int(self.addresses[row]), width, *box)
                continue
            with decoding(height * width):
                num_bytes = 3 * height * width
                whole, address = self._take_whole(num_bytes + 1)
                self._decode(row, whole[:num_bytes].reshape(height, width, 3))
                scale(place, address, width, *box)
                del whole

    def _has_byte_behind(self, row: int) -> bool:
        """Return whether an image's pixels are there, and not the last bytes of a shard."""
        if self.is_in_memory:
            return True
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
            raise name_damage(self.split, row, str(error)) from error


def name_damage(split: Split, row: int, reason: str) -> ShardError:
    """Say which image of a split cannot be decoded, and why."""
    shard, _ = split.find_row(row)
    return ShardError(
        f"{split.folder / shard.record.images}: image {row:,} of split {split.name!r} cannot be "
        f"decoded ({reason}); run 'tinyvgg verify'"
    )


def read_batches(reader: ImageReader, kernel: HostKernel, epoch: RankEpoch) -> Iterator[Batch]:
    """Yield the batches of an epoch on a CPU device, from images that are read one by one.

    Args:
        reader: of images of the kernel's size.
        kernel: crops, flips and normalizes them.
        epoch: the plan.
    """

    def write(step: int, part: slice, out: Tensor) -> None:
        rows, flip = epoch.rows[step, part], epoch.flip[step, part]
        boxes = None if epoch.boxes is None else epoch.boxes[step, part]
        if boxes is not None and out.dtype == torch.float32:
            lines = out.view(*out.shape[:2], -1).numpy()
            reader.read_normalized(rows, boxes, flip, kernel, lines)
            return
        images = reader.take(len(out))
        reader.read(rows, boxes, images)
        kernel.write(
            images.ctypes.data + np.arange(len(images)) * images.strides[0],
            epoch.dy[step, part],
            epoch.dx[step, part],
            flip,
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
