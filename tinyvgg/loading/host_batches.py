"""The batches of an epoch on a CPU device: copied in the loop's own thread, or prepared ahead.

From: `pinned` and `resident`, which know the memory address of every image, and `reader`.
To:   the loader. The host kernel writes the pixels into buffers that are used again.
"""

import ctypes
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyvgg.loading.batch import Batch
from tinyvgg.loading.buffers import BufferPool
from tinyvgg.loading.host_kernel import HostKernel
from tinyvgg.loading.plan import RankEpoch

LOADED_BY = os.getpid()  # torch's threads do not come along into a forked process: it would hang
STEPS_AT_ONCE = 256
TASK_BYTES = 3 * 2**20  # of batches that a thread prepares before it hands over


def stored_batches(
    kernel: HostKernel, addresses: NDArray[np.int64], epoch: RankEpoch
) -> Iterator[Batch]:
    """Yield the batches of an epoch of images in memory; see `host_batches`.

    Args:
        kernel: writes the pixels.
        addresses: int64 [N], of every image of the split; they stay mapped meanwhile.
        epoch: the plan.
    """
    is_copy = kernel.dtype == torch.uint8 and not epoch.is_augmented
    if is_copy and os.getpid() == LOADED_BY:
        memory = view_memory(addresses, math.prod(kernel.image_shape))
        if memory is not None:
            yield from selected_batches(kernel, memory, addresses - addresses.min(), epoch)
            return
    planned_addresses = addresses[epoch.rows]

    def write(step: int, part: slice, out: Tensor) -> None:
        kernel.write(
            planned_addresses[step],
            epoch.dy[step],
            epoch.dx[step],
            epoch.flip[step],
            out,
            is_augmented=epoch.is_augmented,
        )

    yield from host_batches(write, kernel, epoch)


def view_memory(addresses: NDArray[np.int64], image_bytes: int) -> Tensor | None:
    """Return the memory from the first image to the last as overlapping rows, one at each byte.

    Args:
        addresses: int64 [N], of images that stay mapped.
        image_bytes: of each.

    Returns:
        uint8 [span, image_bytes], strides (1, 1): row k begins k bytes behind the first image. What
        lies between the images may not be mapped, and none of it may be written. None where a
        tensor of so many elements cannot be.
    """
    first = int(addresses.min())
    span = int(addresses.max()) - first + 1
    if span * image_bytes >= 2**62:
        return None
    memory = (ctypes.c_uint8 * (span + image_bytes - 1)).from_address(first)
    return torch.from_numpy(np.ctypeslib.as_array(memory)).as_strided((span, image_bytes), (1, 1))


def selected_batches(
    kernel: HostKernel, memory: Tensor, offsets: NDArray[np.int64], epoch: RankEpoch
) -> Iterator[Batch]:
    """Yield the batches of an epoch of images as they are stored, copied in the loop's own thread.

    Nothing is computed on a pixel, so a thread ahead has nothing to save: torch's threads are
    awake from whatever came before, a batch goes into the buffer that is in the cache, and there
    is no hand-over. Two threads ahead reach 0.6 to 0.9 of this.

    Args:
        kernel: knows the shape.
        memory: of `view_memory`.
        offsets: int64 [N], row of it for every image of the split.
        epoch: the plan.
    """
    local, (height, width, channels) = epoch.rows.shape[1], kernel.image_shape
    row_bytes, image_bytes = width * channels, height * width * channels
    channels_last = (local, channels, height, width), (image_bytes, 1, row_bytes, channels)
    num_kept = 1 if kernel.reuse_buffers else 3  # that the loop has, that it had, and the next one
    shape = (local, image_bytes)
    pool = BufferPool(shape, torch.uint8, num_kept, is_reused=kernel.reuse_buffers)
    planned = (torch.from_numpy(array) for array in (offsets[epoch.rows], epoch.labels, epoch.ids))
    steps = zip(_unbind(*planned), epoch.num_valid.tolist(), strict=True)
    for (rows, labels, ids), num_valid in steps:
        images = pool.take()
        torch.index_select(memory, 0, rows, out=images)
        images = images.as_strided(*channels_last)  # and what the pool gave is not held here
        yield Batch(images, labels, ids, num_valid)


def _unbind(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the first rows of some tensors, the second ones, …: some at once cost a third."""
    for first in range(0, len(tensors[0]), STEPS_AT_ONCE):
        yield from zip(*(t[first : first + STEPS_AT_ONCE].unbind() for t in tensors), strict=True)


def host_batches(
    write: Callable[[int, slice, Tensor], None],
    kernel: HostKernel,
    epoch: RankEpoch,
    part_images: int | None = None,
) -> Iterator[Batch]:
    """Yield the batches of an epoch on a CPU device, prepared ahead by a thread a core.

    A task is one batch, or several small ones: cutting one batch up costs a thread's wake-up for
    each part, which takes as long as half of its work (batch 256, uint8); a task of 3 MiB or more
    gains nothing either, because the buffers leave the cache. Where an image is decoded first, a
    batch is cut up: it is there sooner, and fewer of them are held.

    Args:
        write: fills images of a step, `dtype` [n, H, W, 3]: given the step and which of its images.
        kernel: knows shape and dtype.
        epoch: the plan.
        part_images: of a batch that a thread writes at once; None: all of them.
    """
    num_threads, num_steps = torch.get_num_threads(), len(epoch)
    local = epoch.rows.shape[1]
    shape = (local, *kernel.image_shape)
    per_task = max(1, TASK_BYTES // (math.prod(shape) * kernel.dtype.itemsize))
    parts, num_ahead = [slice(0, local)], num_threads + 1
    if part_images is not None:
        parts = _cut(local, part_images)
        per_task, num_ahead = 1, 1 + -(-num_threads // len(parts))
    starts = range(0, num_steps, per_task)
    tasks = [range(first, min(first + per_task, num_steps)) for first in starts]
    # two more: the batch that the loop has, and the one it had, until it has the next
    num_buffers = max(1, min(num_ahead * per_task, num_steps)) + 2 * (not kernel.reuse_buffers)
    pool = BufferPool(shape, kernel.dtype, num_buffers, is_reused=kernel.reuse_buffers)
    labels, ids = torch.from_numpy(epoch.labels), torch.from_numpy(epoch.ids)

    def prepare(task: range, buffers: deque[Tensor], part: slice) -> None:
        for step, buffer in zip(task, buffers, strict=True):
            write(step, part, buffer[part])

    threads = ThreadPoolExecutor(num_threads, "tinyvgg-host-kernel")
    prepared: deque[tuple[deque[Tensor], list[Future[None]]]] = deque()

    def begin(task: range) -> None:
        buffers = deque(pool.take() for _ in task)
        jobs = [threads.submit(prepare, task, buffers, part) for part in parts]
        prepared.append((buffers, jobs))

    try:
        for task in tasks[:num_ahead]:
            begin(task)
        for number, task in enumerate(tasks):
            images, jobs = prepared.popleft()
            for job in jobs:
                job.result()
            for step in task:  # nothing here holds what was yielded
                yield Batch(
                    images.popleft().permute(0, 3, 1, 2),
                    labels[step],
                    ids[step],
                    int(epoch.num_valid[step]),
                )
            if number + num_ahead < len(tasks):
                begin(tasks[number + num_ahead])
    finally:
        threads.shutdown(cancel_futures=True)


def _cut(num_images: int, most: int) -> list[slice]:
    """Return equal parts of a batch, of `most` images or fewer."""
    equal = -(-num_images // -(-num_images // most))
    return [slice(i, min(i + equal, num_images)) for i in range(0, num_images, equal)]
