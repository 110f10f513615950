"""The pixel pass of a CPU device: gather, crop, flip and normalize, row by row, in one go.

From: `pinned` and `resident`, which know the memory address of every image.
To:   a buffer that becomes `Batch.images`, or the pinned staging of a CUDA copy.

Compiled by numba, without the GIL, one batch a thread: an image row of 192
bytes is cropped and flipped in the L1 cache and leaves it normalized, so memory is read once
and written once. numba has no half types: bfloat16 is rounded by integer arithmetic on float32
bits, float16 is looked up in a table of 256 values a channel, made by torch.
"""

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
from tinyvgg.loading.batch import Normalization, PixelPass

PAGE_BYTES = 4096


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


def _half_table(normalization: Normalization, dtype: torch.dtype) -> NDArray[np.uint16]:
    """Return the bits of every normalized value in float16, uint16 [3, 256]."""
    if dtype != torch.float16:
        return np.zeros((3, 256), np.uint16)
    pixels = np.arange(256, dtype=np.float32)
    values = pixels * normalization.scale[:, None] + normalization.shift[:, None]
    return torch.from_numpy(values).to(dtype).view(torch.uint16).numpy()
