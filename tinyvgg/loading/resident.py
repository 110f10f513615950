"""Backend `resident`: the pixels of the whole split in device memory, uploaded once.

From: mapped shards, copied or decoded at the start; 1.23 GB for the 100,000 training images.
To:   batches. On an accelerator a step moves nothing over the bus, and for images that are shown
      whole the host does nothing but launch one kernel; on a CPU device it is the `torch` backend
      without the page cache, and without decoding.

JPEG files are not kept: decoders take them from host memory, where the page cache has them.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyvgg.loading.batch import Batch, PixelPass
from tinyvgg.loading.device_decoder import scale_box
from tinyvgg.loading.host_batches import stored_batches
from tinyvgg.loading.host_kernel import HostKernel
from tinyvgg.loading.pinned import AcceleratorRuntime, DevicePixels, DevicePlan
from tinyvgg.loading.plan import EpochPlanner, LoaderState, RankEpoch
from tinyvgg.loading.reader import PART_BYTES, ImageReader, read_batches
from tinyvgg.shards.store import Split


class ResidentSource:
    """Backend `resident`.

    Args:
        split: mapped; copied to the device here.
        pixel_pass: from stored images, or boxes of them, to those of a batch.
        device: of the batches.

    Raises:
        ShardError: a JPEG file is damaged.
    """

    def __init__(
        self,
        split: Split,
        pixel_pass: PixelPass,
        device: torch.device,
    ) -> None:
        self.split = split
        self.pixel_pass = pixel_pass
        self.device = device
        self.sizes = split.sizes
        ends = 3 * self.sizes.astype(np.int64).prod(axis=1).cumsum()
        self.starts = np.concatenate([np.zeros(1, np.int64), ends])  # of images, in `stored`
        # one byte more: the resize kernel reads behind the last pixel
        self.stored = torch.empty(int(self.starts[-1]) + 1, dtype=torch.uint8, device=device)
        self._fill()
        if device.type == "cpu":
            self.kernel = HostKernel(pixel_pass)
        else:
            self.pixels = DevicePixels(pixel_pass, device)

    def _fill(self) -> None:
        """Copy or decode every image into `stored`, by a thread a core."""

        def fill(rows: NDArray[np.int64]) -> None:
            first, end = self.starts[rows[0]], self.starts[rows[-1] + 1]
            part = np.concatenate([self.split[row][0].reshape(-1) for row in rows.tolist()])
            self.stored[first:end] = torch.from_numpy(part)

        num_parts = max(1, len(self.stored) // PART_BYTES)
        bounds = np.arange(1, num_parts) * PART_BYTES
        rows = np.arange(self.split.num_images)
        parts = np.split(rows, np.unique(np.searchsorted(self.starts[:-1], bounds)))
        with ThreadPoolExecutor(torch.get_num_threads(), "tinyvgg-reader") as threads:
            for _ in threads.map(fill, [part for part in parts if len(part)]):
                pass

    def batches(
        self, plan: EpochPlanner, state: LoaderState, size: tuple[int, int] | None = None
    ) -> Iterator[Batch]:
        """Yield one batch for every step of `plan(state)`, the rest of an epoch."""
        epoch = plan(state)
        if self.device.type != "cpu":
            yield from self._device_batches(epoch, size or self.pixel_pass.image_shape[:2])
            return
        # generators, so that they keep `self` and with it what is at these addresses
        addresses = self.starts[:-1] + self.stored.data_ptr()
        if epoch.boxes is None:
            yield from stored_batches(self.kernel, addresses, epoch)
            return
        kernel = self.kernel
        if size is not None and size != kernel.image_shape[:2]:
            kernel = HostKernel(replace(self.pixel_pass, image_shape=(*size, 3)))
        reader = ImageReader(self.split, kernel.image_shape[:2], addresses)
        yield from read_batches(reader, kernel, epoch)

    def _device_batches(self, epoch: RankEpoch, size: tuple[int, int]) -> Iterator[Batch]:
        plan = DevicePlan(epoch, AcceleratorRuntime(self.device))
        in_order = torch.arange(epoch.rows.shape[1], device=self.device)
        for step in range(len(epoch)):
            tensors = plan.step(step)
            if epoch.boxes is None:
                images = self.pixels(self.view_images(), tensors["rows"], tensors)
            else:
                shown = self.cut_boxes(epoch.rows[step], epoch.boxes[step], size)
                images = self.pixels(shown, in_order, tensors)
            yield Batch(images, tensors["labels"], tensors["ids"], int(epoch.num_valid[step]))

    def view_images(self) -> Tensor:
        """Return the images of a split of one size, uint8 [N, H, W, 3] on the device."""
        return self.stored[:-1].view(len(self.sizes), *self.sizes[0].tolist(), 3)

    def cut_boxes(
        self, rows: NDArray[np.int64], boxes: NDArray[np.int32], size: tuple[int, int]
    ) -> Tensor:
        """Return boxes of images, scaled to one size.

        Args:
            rows: int64 [n], of the split.
            boxes: int32 [n, 4], inside the images.
            size: (H, W) of the result.

        Returns:
            uint8 [n, H, W, 3] on the device.
        """
        shown = torch.empty((len(rows), *size, 3), dtype=torch.uint8, device=self.device)
        for row, box, target in zip(rows.tolist(), boxes.tolist(), shown, strict=True):
            pixels = self.stored[self.starts[row] : self.starts[row + 1]]
            image = pixels.view(*self.sizes[row].tolist(), 3).permute(2, 0, 1)
            scale_box(image, box, target)
        return shown
