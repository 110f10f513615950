"""Resize on the host: a box of an image to uint8 pixels of another size, as Pillow's bilinear.

From: `viewed`, which has the memory of an image, mapped or decoded, and the box to show.
To:   the host kernel, which flips and normalizes.

Pillow's arithmetic, bit for bit that of version 12.2 (`src/libImaging/Resample.c`): a triangle
as wide as the reduction, weights in fixed point of 22 bits, columns first, rounded to uint8
between the two passes. So every type of batch holds the same pixels, normalized or not. A box is
cut out first: pixels beside it are not looked at.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from tinyvgg.kernels import compile_kernel

WEIGHT_BITS = 22  # 32 - 8 - 2: of Pillow


@intrinsic  # type: ignore[untyped-decorator]
def _weigh_pixels(typing_context: Any, address: Any, weights: Any, count: Any) -> Any:
    """Return the weighted mean of neighboring pixels as a uint32: R + 2^8 G + 2^16 B + 2^24 any.

    Four bytes are read at each pixel, and four products made at once: numba's loop over three
    channels is not vectorized and takes twice as long. The fourth byte is the next pixel's, so one
    byte behind the last pixel must be readable. `address` is that of the first pixel, `weights`
    that of the first int32 weight, `count` says how many.
    """
    signature = types.uint32(types.int64, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pixel, weight, count = arguments
        byte, number = ir.IntType(8), ir.IntType(32)
        lanes, bytes_4 = ir.VectorType(number, 4), ir.VectorType(byte, 4)
        half = ir.Constant(lanes, [1 << (WEIGHT_BITS - 1)] * 4)
        sums = cgutils.alloca_once_value(builder, half)
        with cgutils.for_range(builder, count, intp=count.type) as loop:
            at = builder.add(pixel, builder.mul(loop.index, ir.Constant(pixel.type, 3)))
            read = builder.load(builder.inttoptr(at, bytes_4.as_pointer()), align=1)
            at = builder.add(weight, builder.mul(loop.index, ir.Constant(weight.type, 4)))
            factor = builder.load(builder.inttoptr(at, number.as_pointer()), align=4)
            factors = builder.insert_element(
                ir.Constant(lanes, ir.Undefined), factor, ir.Constant(number, 0)
            )
            splat = ir.Constant(ir.VectorType(number, 4), [0] * 4)
            factors = builder.shuffle_vector(factors, ir.Constant(lanes, ir.Undefined), splat)
            product = builder.mul(builder.zext(read, lanes), factors)
            builder.store(builder.add(builder.load(sums), product), sums)
        shift = ir.Constant(lanes, [WEIGHT_BITS] * 4)
        rounded = builder.trunc(builder.lshr(builder.load(sums), shift), bytes_4)
        return builder.bitcast(rounded, number)

    return signature, generate


@compile_kernel
def _list_weights(size, target):  # type: ignore[no-untyped-def]
    """Return where the pixels begin that each target pixel is made of, how many, and weights.

    Returns:
        starts int32 [target], counts int32 [target], weights int32 [target, most].
    """
    scale = size / target
    width = max(scale, 1.0)  # of half a triangle
    most = 2 * math.ceil(width) + 1
    starts, counts = np.empty(target, np.int32), np.empty(target, np.int32)
    weights = np.zeros((target, most), np.int32)
    shares = np.empty(most, np.float64)
    for i in range(target):
        center = (i + 0.5) * scale
        first = max(0, int(center - width + 0.5))
        count = min(size, int(center + width + 0.5)) - first
        total = 0.0
        for k in range(count):
            distance = abs((k + first - center + 0.5) * (1.0 / width))
            shares[k] = 1.0 - distance if distance < 1.0 else 0.0
            total += shares[k]
        for k in range(count):
            share = shares[k] * (1.0 / total) if total != 0.0 else shares[k]
            weights[i, k] = int(0.5 + share * (1 << WEIGHT_BITS))
        starts[i], counts[i] = first, count
    return starts, counts, weights


@compile_kernel
def resize_box(address, width, box, out):  # type: ignore[no-untyped-def]
    """Fill `out` uint8 [H, 3 W] with a box of an image, scaled.

    Args:
        address: of the image, uint8 [height, width, 3], and one byte behind it, which must stay
            there meanwhile.
        width: of the image.
        box: int32 [4], top, left, height and width.
        out: C order.
    """
    top, left, box_height, box_width = box[0], box[1], box[2], box[3]
    target_height, target_width = out.shape[0], out.shape[1] // 3
    starts, counts, weights = _list_weights(box_width, target_width)
    narrow = np.empty((box_height, out.shape[1]), np.uint8)
    half = np.int32(1 << (WEIGHT_BITS - 1))
    for y in range(box_height):
        line = address + 3 * ((top + y) * np.int64(width) + left)
        row = narrow[y]
        for x in range(target_width):
            pixel = _weigh_pixels(
                line + 3 * starts[x], weights.ctypes.data + x * weights.strides[0], counts[x]
            )
            row[3 * x] = pixel & 255
            row[3 * x + 1] = (pixel >> 8) & 255
            row[3 * x + 2] = (pixel >> 16) & 255
    starts, counts, weights = _list_weights(box_height, target_height)
    sums = np.empty(out.shape[1], np.int32)
    for y in range(target_height):
        sums[:] = half
        for k in range(counts[y]):
            weight, row = weights[y, k], narrow[starts[y] + k]
            for j in range(sums.size):
                sums[j] += np.int32(row[j]) * weight
        line_out = out[y]
        for j in range(sums.size):
            line_out[j] = sums[j] >> WEIGHT_BITS
