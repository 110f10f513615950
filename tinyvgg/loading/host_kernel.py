"""The pixel pass of a CPU device: gather, crop, flip and normalize, row by row, in one go.

From: `pinned` and `resident`, which know the memory address of every image.
To:   a buffer that becomes `Batch.images`, or the pinned staging of a CUDA copy.

Compiled by numba, without the GIL, one batch a thread: an image row of 192
bytes is cropped and flipped in the L1 cache and leaves it normalized, so memory is read once
and written once. numba has no half types: bfloat16 is rounded by integer arithmetic on float32
bits, float16 is looked up in a table of 256 values a channel, made by torch.
"""

import ctypes
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from tinyvgg.kernels import compile_kernel
from tinyvgg.loading.batch import Batch, Normalization, PixelPass
from tinyvgg.loading.buffers import BufferPool
from tinyvgg.loading.plan import RankEpoch

PAGE_BYTES = 4096
LOADED_BY = os.getpid()  # torch's threads do not come along into a forked process: it would hang
STEPS_AT_ONCE = 256
TASK_BYTES = 3 * 2**20  # of batches that a thread prepares before it hands over


@intrinsic  # type: ignore[untyped-decorator]
def as_pointer(typing_context: Any, address: Any) -> Any:
    """Turn an integer address into a uint8 pointer."""
    signature = types.CPointer(types.uint8)(types.int64)  # type: ignore[attr-defined]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch(typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address that will be read; never faults."""
    signature = types.void(types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte_pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [byte_pointer, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte_pointer], function_type)
        options = [ir.Constant(number, value) for value in (0, 3, 1)]  # read, keep, data
        builder.call(prefetch, [builder.inttoptr(arguments[0], byte_pointer), *options])
        return context.get_dummy_value()

    return signature, generate


@compile_kernel
def _prefetch_next(addresses, i, num_bytes):  # type: ignore[no-untyped-def]
    """Ask for the pages of the image after the i-th, which lies anywhere in the shards.

    The processor follows a stream of reads up to the end of a page; without this every page of
    an image begins with a miss in the TLB and the cache. Copying 256 images takes 295 instead
    of 347 µs on one thread, 189 instead of 244 on two.
    """
    if i + 1 < addresses.size:
        for offset in range(0, num_bytes, PAGE_BYTES):
            _prefetch(addresses[i + 1] + offset)


@compile_kernel
def _copy_images(addresses, out):  # type: ignore[no-untyped-def]
    """Fill `out` uint8 [b, bytes] with whole images, as stored."""
    for i in range(addresses.size):
        _prefetch_next(addresses, i, out.shape[1])
        image, copy = numba.carray(as_pointer(addresses[i]), out.shape[1]), out[i]
        for k in range(out.shape[1]):  # a slice assignment is 4 x slower
            copy[k] = image[k]


@compile_kernel
def _copy_inside(addresses, margin, out):  # type: ignore[no-untyped-def]
    """Fill the inside of `out` uint8 [b, H + 2 margin, 3 (W + 2 margin)] with whole images."""
    height, row_bytes = out.shape[1] - 2 * margin, out.shape[2] - 6 * margin
    for i in range(addresses.size):
        _prefetch_next(addresses, i, height * row_bytes)
        for y in range(height):
            line = numba.carray(as_pointer(addresses[i] + y * row_bytes), row_bytes)
            row = out[i, y + margin, 3 * margin : 3 * margin + row_bytes]
            for k in range(row_bytes):
                row[k] = line[k]


@compile_kernel
def _crop_row(address, height, y, dy, dx, flip, fill, row):  # type: ignore[no-untyped-def]
    """Fill `row` uint8 [3 W] with row y of the crop of the image at `address`, mirrored or not.

    Loops run from 0 over arrays that begin where they should: numba checks every other index
    for being negative, and a loop with such a check is not vectorized (4 x slower).
    """
    width = row.size // 3
    source_y = y + dy
    first = max(0, -dx)  # columns first to last of the crop are inside the image
    last = max(first, min(width, width - dx))
    if source_y < 0 or source_y >= height:
        first = last = 0
    count = last - first
    line = numba.carray(as_pointer(address + 3 * (source_y * width + first + dx)), 3 * count)
    if flip:
        mirrored = row[3 * (width - last) : 3 * (width - first)]
        for x in range(count):
            to = np.uintp(3 * (count - 1 - x))
            mirrored[to] = line[3 * x]
            mirrored[to + np.uintp(1)] = line[3 * x + 1]
            mirrored[to + np.uintp(2)] = line[3 * x + 2]
    else:
        inside = row[3 * first : 3 * last]
        for k in range(3 * count):
            inside[k] = line[k]
    for x in range(width - count):  # the columns left and right of them
        column = x if x < first else x + count
        for c in range(3):
            row[3 * (width - 1 - column if flip else column) + c] = fill[c]


@compile_kernel
def _crop_images(addresses, dy, dx, flip, fill, out):  # type: ignore[no-untyped-def]
    """Fill `out` uint8 [b, H, 3 W]: cropped and flipped."""
    for i in range(addresses.size):
        _prefetch_next(addresses, i, out.shape[1] * out.shape[2])
        for y in range(out.shape[1]):
            _crop_row(addresses[i], out.shape[1], y, dy[i], dx[i], flip[i], fill, out[i, y])


@compile_kernel
def _normalize_images(  # type: ignore[no-untyped-def]
    addresses, dy, dx, flip, fill, scale_row, shift_row, out
):
    """Fill `out` float32 [b, H, 3 W]: cropped, flipped and normalized."""
    values = out.shape[2]
    row = np.empty(values, np.uint8)
    for i in range(addresses.size):
        _prefetch_next(addresses, i, out.shape[1] * out.shape[2])
        for y in range(out.shape[1]):
            _crop_row(addresses[i], out.shape[1], y, dy[i], dx[i], flip[i], fill, row)
            line = out[i, y]
            for k in range(values):
                line[k] = np.float32(row[k]) * scale_row[k] + shift_row[k]


@compile_kernel
def _round_images(  # type: ignore[no-untyped-def]
    addresses, dy, dx, flip, fill, scale_row, shift_row, out
):
    """Fill `out` uint16 [b, H, 3 W] with bfloat16 bits: normalized, rounded to nearest even."""
    values = out.shape[2]
    row = np.empty(values, np.uint8)
    normalized = np.empty(values, np.float32)
    bits = normalized.view(np.uint32)
    for i in range(addresses.size):
        _prefetch_next(addresses, i, out.shape[1] * out.shape[2])
        for y in range(out.shape[1]):
            _crop_row(addresses[i], out.shape[1], y, dy[i], dx[i], flip[i], fill, row)
            line = out[i, y]
            for k in range(values):
                normalized[k] = np.float32(row[k]) * scale_row[k] + shift_row[k]
            for k in range(values):
                odd = (bits[k] >> np.uint32(16)) & np.uint32(1)
                line[k] = (bits[k] + np.uint32(0x7FFF) + odd) >> np.uint32(16)


@compile_kernel
def _look_up_images(  # type: ignore[no-untyped-def]
    addresses, dy, dx, flip, fill, table, out
):
    """Fill `out` uint16 [b, H, 3 W]: cropped, flipped, looked up in `table` uint16 [3, 256]."""
    values = out.shape[2]
    row = np.empty(values, np.uint8)
    for i in range(addresses.size):
        _prefetch_next(addresses, i, out.shape[1] * out.shape[2])
        for y in range(out.shape[1]):
            _crop_row(addresses[i], out.shape[1], y, dy[i], dx[i], flip[i], fill, row)
            line = out[i, y]
            for k in range(0, values, 3):
                line[k] = table[0, row[k]]
                line[k + 1] = table[1, row[k + 1]]
                line[k + 2] = table[2, row[k + 2]]


class HostKernel:
    """Writes batches of one size and type; safe from several threads, and without the GIL.

    Args:
        pixel_pass: from stored images to those of a batch.
    """

    def __init__(self, pixel_pass: PixelPass) -> None:
        self.image_shape, self.dtype = pixel_pass.image_shape, pixel_pass.dtype
        self.reuse_buffers = pixel_pass.reuse_buffers
        normalization = pixel_pass.normalization
        self.fill = normalization.fill
        width = self.image_shape[1]
        self.scale_row = np.tile(normalization.scale, width)
        self.shift_row = np.tile(normalization.shift, width)
        self.table = _half_table(normalization, self.dtype)

    def empty(self, num_images: int) -> Tensor:
        """Return an uninitialized output, `dtype` [n, H, W, 3]."""
        return torch.empty((num_images, *self.image_shape), dtype=self.dtype)

    def write(
        self,
        addresses: NDArray[np.int64],
        dy: NDArray[np.int32],
        dx: NDArray[np.int32],
        flip: NDArray[np.bool_],
        out: Tensor,
        *,
        is_augmented: bool,
    ) -> None:
        """Fill `out` with the images at the given addresses.

        Args:
            addresses: int64 [n], of uint8 images of `image_shape`; they must stay mapped.
            dy: int32 [n], crop offset down.
            dx: int32 [n], crop offset right.
            flip: bool [n].
            out: `dtype` [n, H, W, 3], contiguous.
            is_augmented: False promises that dy, dx and flip are all zero.
        """
        height, width, channels = self.image_shape
        rows_out = out.view(len(out), height, width * channels)
        crops = (addresses, dy, dx, flip, self.fill)
        if self.dtype == torch.uint8 and not is_augmented:
            _copy_images(addresses, out.view(len(out), -1).numpy())
        elif self.dtype == torch.uint8:
            _crop_images(*crops, rows_out.numpy())
        elif self.dtype == torch.float32:
            _normalize_images(*crops, self.scale_row, self.shift_row, rows_out.numpy())
        elif self.dtype == torch.bfloat16:
            bits = rows_out.view(torch.uint16).numpy()
            _round_images(*crops, self.scale_row, self.shift_row, bits)
        else:
            _look_up_images(*crops, self.table, rows_out.view(torch.uint16).numpy())


def copy_inside(addresses: NDArray[np.int64], margin: int, out: Tensor) -> None:
    """Copy whole images into the inside of larger ones; the margin stays as it is.

    Args:
        addresses: int64 [n], of uint8 images [H, W, 3]; they must stay mapped.
        margin: pixels on every side.
        out: uint8 [n, H + 2 margin, W + 2 margin, 3], contiguous, on the CPU.
    """
    _copy_inside(addresses, margin, out.view(*out.shape[:2], -1).numpy())


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


def _half_table(normalization: Normalization, dtype: torch.dtype) -> NDArray[np.uint16]:
    """Return the bits of every normalized value in float16, uint16 [3, 256]."""
    if dtype != torch.float16:
        return np.zeros((3, 256), np.uint16)
    pixels = np.arange(256, dtype=np.float32)
    values = pixels * normalization.scale[:, None] + normalization.shift[:, None]
    return torch.from_numpy(values).to(dtype).view(torch.uint16).numpy()
