"""Resize on the host: a box of an image to uint8 pixels of another size, as Pillow's bilinear.

From: `reader`, which has the memory of an image, mapped or decoded, and the box to show.
To:   the host kernel, which flips and normalizes.

Pillow's arithmetic, bit for bit that of version 12.2 (`src/libImaging/Resample.c`): a triangle
as wide as the reduction, weights in fixed point of 22 bits, columns first, rounded to uint8
between the two passes. So every type of batch holds the same pixels, normalized or not. A box is
cut out first: pixels beside it are not looked at.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from tinyvgg.kernels import compile_kernel
from tinyvgg.loading.host_kernel import as_pointer

WEIGHT_BITS = 22  # 32 - 8 - 2: of Pillow
NUM_LINES = 4  # that are narrowed at once


@intrinsic  # type: ignore[untyped-decorator]
def _weigh_pixels(
    typing_context: Any,
    address: Any,
    stride: Any,
    weights: Any,
    count: Any,
    target: Any,
    target_stride: Any,
) -> Any:
    """Store the weighted means of neighboring pixels of four lines: R, G, B and a byte of anything.

    Four bytes are read at each pixel, and sixteen products made at once: numba's loop over three
    channels is not vectorized and takes three times as long. The fourth byte is the next pixel's,
    so one byte behind the last pixel must be readable, and one behind each target writable. All
    arguments are int64: where the first line's first pixel is, how far it is to the next line's;
    where the int32 weights are, and how many; the same two for what is stored.
    """
    signature = types.void(*[types.int64] * 6)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pixel, stride, weight, count, target, target_stride = arguments
        byte, number, place = ir.IntType(8), ir.IntType(32), pixel.type
        bytes_4, lanes = ir.VectorType(byte, 4), ir.VectorType(number, 4 * NUM_LINES)

        def concatenate(parts: list[Any]) -> Any:
            while len(parts) > 1:
                width = 2 * parts[0].type.count
                order = ir.Constant(ir.VectorType(number, width), list(range(width)))
                pairs = zip(parts[::2], parts[1::2], strict=True)
                parts = [builder.shuffle_vector(one, other, order) for one, other in pairs]
            return parts[0]

        half = ir.Constant(lanes, [1 << (WEIGHT_BITS - 1)] * lanes.count)
        sums = cgutils.alloca_once_value(builder, half)
        with cgutils.for_range(builder, count, intp=place) as loop:
            at = builder.add(pixel, builder.mul(loop.index, ir.Constant(place, 3)))
            read = []
            for _ in range(NUM_LINES):
                pointer = builder.inttoptr(at, bytes_4.as_pointer())
                read.append(builder.load(pointer, align=1))
                at = builder.add(at, stride)
            at = builder.add(weight, builder.mul(loop.index, ir.Constant(place, 4)))
            factor = builder.load(builder.inttoptr(at, number.as_pointer()), align=4)
            nothing = ir.Constant(lanes, ir.Undefined)
            first = builder.insert_element(nothing, factor, ir.Constant(number, 0))
            zeros = ir.Constant(ir.VectorType(number, lanes.count), [0] * lanes.count)
            factors = builder.shuffle_vector(first, nothing, zeros)
            product = builder.mul(builder.zext(concatenate(read), lanes), factors)
            builder.store(builder.add(builder.load(sums), product), sums)
        shift = ir.Constant(lanes, [WEIGHT_BITS] * lanes.count)
        shifted = builder.lshr(builder.load(sums), shift)
        rounded = builder.trunc(shifted, ir.VectorType(byte, lanes.count))
        for line in range(NUM_LINES):
            places = list(range(4 * line, 4 * line + 4))
            order = ir.Constant(ir.VectorType(number, 4), places)
            part = builder.shuffle_vector(rounded, rounded, order)
            builder.store(part, builder.inttoptr(target, bytes_4.as_pointer()), align=1)
            target = builder.add(target, target_stride)
        return context.get_dummy_value()

    return signature, generate


@compile_kernel
def _list_weights(size, target):  # type: ignore[no-untyped-def]
    """Return where the pixels begin that each target pixel is made of, and their weights.

    Each is made of the same number of pixels, some with a weight of 0: the processor predicts the
    end of a loop of one length.

    Returns:
        starts int32 [target], weights int32 [target, count].
    """
    scale = size / target
    width = max(scale, 1.0)  # of half a triangle
    starts, counts = np.empty(target, np.int32), np.empty(target, np.int32)
    for i in range(target):
        center = (i + 0.5) * scale
        starts[i] = max(0, int(center - width + 0.5))
        counts[i] = min(size, int(center + width + 0.5)) - starts[i]
    count = counts.max()
    weights = np.zeros((target, count), np.int32)
    shares = np.empty(count, np.float64)
    for i in range(target):
        center = (i + 0.5) * scale
        total = 0.0
        for k in range(counts[i]):
            distance = abs((k + starts[i] - center + 0.5) * (1.0 / width))
            shares[k] = 1.0 - distance if distance < 1.0 else 0.0
            total += shares[k]
        moved = max(0, starts[i] + count - size)  # so that no pixel lies outside
        starts[i] -= moved
        for k in range(counts[i]):
            share = shares[k] * (1.0 / total) if total != 0.0 else shares[k]
            weights[i, k + moved] = int(0.5 + share * (1 << WEIGHT_BITS))
    return starts, weights


@compile_kernel
def _narrow_box(  # type: ignore[no-untyped-def]
    address, width, top, left, box_height, box_width, target_width
):
    """Return a box with its lines scaled, uint8 [box_height, 3 target_width + 4]."""
    starts, weights = _list_weights(box_width, target_width)
    row_bytes, count = 3 * target_width, weights.shape[1]
    narrow = np.empty((box_height, row_bytes + 4), np.uint8)  # room for a last fourth byte
    has_lines = box_height >= NUM_LINES
    stride = 3 * np.int64(width) if has_lines else np.int64(0)
    narrow_stride = np.int64(row_bytes + 4) if has_lines else np.int64(0)
    for y in range(0, box_height, NUM_LINES if has_lines else 1):
        if has_lines:
            y = min(y, box_height - NUM_LINES)
        line = address + 3 * ((top + y) * np.int64(width) + left)
        first = narrow.ctypes.data + y * (row_bytes + 4)
        for x in range(target_width):
            row_of_weights = weights.ctypes.data + 4 * count * x
            _weigh_pixels(
                line + 3 * starts[x], stride, row_of_weights, count, first + 3 * x, narrow_stride
            )
    return narrow


@compile_kernel
def _weigh_lines(narrow, start, weights, sums):  # type: ignore[no-untyped-def]
    """Fill `sums` int32 [values] with weighted sums of neighboring lines, to be shifted."""
    sums[:] = np.int32(1 << (WEIGHT_BITS - 1))
    for k in range(weights.size):
        weight, row = weights[k], narrow[start + k]
        for j in range(sums.size):
            sums[j] += np.int32(row[j]) * weight


@compile_kernel
def resize_box(  # type: ignore[no-untyped-def]
    address, width, top, left, box_height, box_width, target, target_height, target_width
):
    """Scale a box of an image into other memory. All arguments are int64.

    Args:
        address: of the image, uint8 [height, width, 3], and one byte behind it, which must stay
            there meanwhile.
        width: of the image.
        top: of the box, inside the image.
        left: likewise.
        box_height: likewise.
        box_width: likewise.
        target: address of the result, uint8 [target_height, target_width, 3].
        target_height: of the result.
        target_width: likewise.
    """
    out = numba.carray(as_pointer(target), (target_height, 3 * target_width))
    narrow = _narrow_box(address, width, top, left, box_height, box_width, target_width)
    starts, weights = _list_weights(box_height, target_height)
    sums = np.empty(out.shape[1], np.int32)
    for y in range(target_height):
        _weigh_lines(narrow, starts[y], weights[y], sums)
        line = out[y]
        for j in range(sums.size):
            line[j] = sums[j] >> WEIGHT_BITS


@compile_kernel
def normalize_box(  # type: ignore[no-untyped-def]
    address, width, top, left, box_height, box_width, out, flip, scale_row, shift_row
):
    """Scale a box of an image, mirror it or not, and normalize it, line by line in the cache.

    Args:
        address: as in `resize_box`, int64, as are all up to `box_width`.
        width: likewise.
        top: likewise.
        left: likewise.
        box_height: likewise.
        box_width: likewise.
        out: float32 [H, 3 W], filled with what `resize_box` and then the host kernel would give.
        flip: whether the result is mirrored.
        scale_row: float32 [3 W].
        shift_row: float32 [3 W].
    """
    target_width = out.shape[1] // 3
    narrow = _narrow_box(address, width, top, left, box_height, box_width, target_width)
    starts, weights = _list_weights(box_height, out.shape[0])
    sums = np.empty(out.shape[1], np.int32)
    mirrored = np.empty(out.shape[1], np.int32)
    for y in range(out.shape[0]):
        _weigh_lines(narrow, starts[y], weights[y], sums)
        line = out[y]
        if flip:
            for x in range(target_width):
                to = np.uintp(3 * (target_width - 1 - x))
                mirrored[to] = sums[3 * x]
                mirrored[to + np.uintp(1)] = sums[3 * x + 1]
                mirrored[to + np.uintp(2)] = sums[3 * x + 2]
            for k in range(mirrored.size):
                line[k] = np.float32(mirrored[k] >> WEIGHT_BITS) * scale_row[k] + shift_row[k]
        else:
            for k in range(sums.size):
                line[k] = np.float32(sums[k] >> WEIGHT_BITS) * scale_row[k] + shift_row[k]
