"""Backend `resident`: the whole split in device memory, uploaded once.

From: mapped shards, copied at the start; 1.23 GB for the 100,000 training images.
To:   batches. On an accelerator a step moves nothing over the bus and the host does nothing
      but launch one kernel; on a CPU device it is the `torch` backend without the page cache.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from tinyvgg.loading.batch import Batch, PixelPass
from tinyvgg.loading.host_kernel import HostKernel, stored_batches
from tinyvgg.loading.pinned import AcceleratorRuntime, DevicePixels, DevicePlan
from tinyvgg.loading.plan import EpochPlanner, LoaderState, RankEpoch
from tinyvgg.loading.reader import ImageReader, count_part
from tinyvgg.shards.store import Split


class ResidentSource:
    """Backend `resident`.

    Args:
        split: mapped; copied to the device here.
        pixel_pass: from stored images to those of a batch.
        device: of the batches.
    """

    def __init__(
        self,
        split: Split,
        pixel_pass: PixelPass,
        device: torch.device,
    ) -> None:
        self.device = device
        shape = (split.num_images, *pixel_pass.image_shape)
        self.stored = torch.empty(shape, dtype=torch.uint8, device=device)
        if split.is_jpeg:
            _decode_all(split, self.stored)
        else:
            first = 0
            for shard in split.shards:
                last = first + len(shard.images)
                self.stored[first:last] = torch.from_numpy(shard.images.copy())
                first = last
        if device.type == "cpu":
            self.kernel = HostKernel(pixel_pass)
        else:
            self.pixels = DevicePixels(pixel_pass, device)

    def batches(
        self, plan: EpochPlanner, state: LoaderState, size: tuple[int, int] | None = None
    ) -> Iterator[Batch]:
        """Yield one batch for every step of `plan(state)`, the rest of an epoch."""
        epoch = plan(state)
        if self.device.type == "cpu":
            rows = torch.arange(len(self.stored)) * self.stored.stride(0)
            addresses = (rows + self.stored.data_ptr()).numpy()
            # a generator, so that it keeps `self` and with it what is at these addresses
            yield from stored_batches(self.kernel, addresses, epoch)
        else:
            yield from self._device_batches(epoch)

    def _device_batches(self, epoch: RankEpoch) -> Iterator[Batch]:
        plan = DevicePlan(epoch, AcceleratorRuntime(self.device))
        for step in range(len(epoch)):
            tensors = plan.step(step)
            images = self.pixels(self.stored, tensors["rows"], tensors)
            yield Batch(images, tensors["labels"], tensors["ids"], int(epoch.num_valid[step]))


def _decode_all(split: Split, stored: Tensor) -> None:
    """Fill `stored` uint8 [N, H, W, 3] with the pixels of JPEG files, by a thread a core."""
    reader = ImageReader(split, (stored.shape[1], stored.shape[2]))
    num_images = count_part(reader.size)

    def decode(first: int) -> None:
        rows = np.arange(first, min(first + num_images, split.num_images))
        images = reader.take(len(rows))
        reader.read(rows, None, images)
        stored[first : first + len(rows)] = torch.from_numpy(images)

    with ThreadPoolExecutor(torch.get_num_threads(), "tinyvgg-reader") as threads:
        for _ in threads.map(decode, range(0, split.num_images, num_images)):
            pass
