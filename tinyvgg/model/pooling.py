"""Max-pool and ReLU: one pass forward, one pass back, and one byte an output in between.

From: `model`, at the end of each group of convolutions.
To:   the same place, for a third of the time on a CPU.

torch fills the gradient of a max-pool with zeros and then scatters into it, with an int64 index for
each output: 13 % of a training step on two cores with AMX; compiled for CUDA it leaves
channels-last and is copied back. Here the forward pass keeps which of the four values an output
was, in a byte, and the backward pass writes every value once, in the layout there is. Two forms:

    pool_relu       kernels for a CPU, called in eager mode
    PlacedPoolRelu  pointwise operations, of which torch.compile makes one kernel each way

In the first, bits of a positive float, read as a signed integer, are in the order of the floats;
those of a negative one are negative. So `max(0, ...)` of integers is ReLU and max-pool at once, in
bfloat16 and float32 alike. A NaN with its sign set counts as negative there; training looks at its
weights, too.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tinyvgg.kernels import compile_kernel

BITS_TYPES = {
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
NOWHERE = 4  # place of an output that is no input: all four were negative


@compile_kernel
def _pool(images, out, places, first, last):  # type: ignore[no-untyped-def]
    """Write outputs and their places (0 to 3, or NOWHERE) for images `first` to `last`."""
    _, rows, columns, channels = out.shape
    for image in range(first, last):
        for y in range(rows):
            for x in range(columns):
                a, b = images[image, 2 * y, 2 * x], images[image, 2 * y, 2 * x + 1]
                c, d = images[image, 2 * y + 1, 2 * x], images[image, 2 * y + 1, 2 * x + 1]
                pooled, place = out[image, y, x], places[image, y, x]
                for k in range(channels):
                    upper, lower = max(a[k], b[k]), max(c[k], d[k])
                    # of equal ones the first is taken, as torch does
                    upper_place = np.uint8(0) if a[k] >= b[k] else np.uint8(1)
                    lower_place = np.uint8(2) if c[k] >= d[k] else np.uint8(3)
                    best = max(upper, lower)
                    best_place = upper_place if upper >= lower else lower_place
                    pooled[k] = max(best, 0)
                    place[k] = best_place if best > 0 else np.uint8(NOWHERE)


@compile_kernel
def _unpool(gradient, places, out, zero, first, last):  # type: ignore[no-untyped-def]
    """Write the gradient of every input of images `first` to `last`: an output's, or zero."""
    _, rows, columns, channels = gradient.shape
    for image in range(first, last):
        for y in range(rows):
            for x in range(columns):
                given, place = gradient[image, y, x], places[image, y, x]
                # a loop for each of the four: one that writes four arrays is not vectorized
                for position in range(4):
                    target = out[image, 2 * y + position // 2, 2 * x + position % 2]
                    wanted = np.uint8(position)
                    for k in range(channels):
                        target[k] = given[k] if place[k] == wanted else zero


def max_pool_relu(images: Tensor) -> Tensor:
    """Return ReLU of the maximum of every 2 x 2 window; of equal values the first has the gradient.

    Args:
        images: floating [B, C, H, W]; the last row or column of an odd side is left out.

    Returns:
        [B, C, H // 2, W // 2] of the same dtype, bit-equal to torch's, gradient included;
        channels-last if `images` is.
    """
    if torch.compiler.is_compiling():
        pooled: Tensor = PlacedPoolRelu.apply(images)[0]
        return pooled
    if can_pool(images):
        return pool_relu(images)
    return functional.relu(functional.max_pool2d(images, 2), inplace=True)


class PlacedPoolRelu(torch.autograd.Function):
    """Outputs and their places, uint8; back, every input's gradient by comparing with its place."""

    @staticmethod
    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs, and which of its window each was: 0 to 3, or NOWHERE."""
        height, width = (size // 2 * 2 for size in images.shape[2:])
        rows = [images[:, :, row:height:2] for row in range(2)]
        (a, b), (c, d) = ([part[..., column:width:2] for column in range(2)] for part in rows)
        is_a, is_c = _comes_first(a, b), _comes_first(c, d)
        upper, lower = torch.where(is_a, a, b), torch.where(is_c, c, d)
        is_upper = _comes_first(upper, lower)
        best = torch.where(is_upper, upper, lower)
        places = torch.where(is_upper, torch.where(is_a, 0, 1), torch.where(is_c, 2, 3))
        places = torch.where(best <= 0, NOWHERE, places).to(torch.uint8)
        return functional.relu(best), places

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        """Keep the places."""
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.odd = [size % 2 for size in inputs[0].shape[2:]]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        """Return the gradient of the images."""
        (places,) = ctx.saved_tensors
        count, channels, height, width = gradient.shape
        # [B, h, 1, w, 1, C] against the places in a window [1, 1, 2, 1, 2, 1]: channels stay last
        given, chosen = (
            tensor.permute(0, 2, 3, 1)[:, :, None, :, None, :] for tensor in (gradient, places)
        )
        window = torch.arange(4, device=gradient.device, dtype=torch.uint8).view(1, 1, 2, 1, 2, 1)
        spread = torch.where(chosen == window, given, 0.0)
        spread = spread.reshape(count, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)
        odd_rows, odd_columns = ctx.odd
        if odd_rows or odd_columns:
            spread = functional.pad(spread, (0, odd_columns, 0, odd_rows))
        return spread


def _comes_first(one: Tensor, other: Tensor) -> Tensor:
    """Return where `one` is the maximum; a NaN is, as in torch's max-pool."""
    return (one >= other) | one.isnan()


def can_pool(images: Tensor) -> bool:
    """Return whether `pool_relu` takes these images: on a CPU, channels-last, of even sides."""
    return (
        images.device.type == "cpu"
        and images.dtype in BITS_TYPES
        and images.shape[2] % 2 == images.shape[3] % 2 == 0
        and images.is_contiguous(memory_format=torch.channels_last)
        and not torch.compiler.is_compiling()
    )


def pool_relu(images: Tensor) -> Tensor:
    """Return ReLU of the maximum of every 2 x 2 window.

    Args:
        images: float32, bfloat16 or float16 [B, C, H, W] that `can_pool`.

    Returns:
        [B, C, H / 2, W / 2], channels-last, of the same dtype.
    """
    pooled: Tensor = _PoolRelu.apply(images)
    return pooled


class _PoolRelu(torch.autograd.Function):
    """`_pool` forward, `_unpool` backward; nothing but one byte an output is kept."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        """Return the outputs."""
        count, channels, height, width = images.shape
        out = _empty_like((count, channels, height // 2, width // 2), images)
        places = torch.empty_like(out, dtype=torch.uint8)
        _on_all_cores(_pool, count, _bits(images), _bits(out), _bits(places))
        ctx.save_for_backward(places)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient of the images."""
        (places,) = ctx.saved_tensors
        count, channels, height, width = gradient.shape
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        out = _empty_like((count, channels, 2 * height, 2 * width), gradient)
        bits = _bits(gradient)
        zero = bits.dtype.type(0)  # a plain 0 would make every value 64 bits wide: 3 x slower
        _on_all_cores(_unpool, count, bits, _bits(places), _bits(out), zero)
        return out


def _empty_like(shape: tuple[int, ...], images: Tensor) -> Tensor:
    return torch.empty(shape, dtype=images.dtype, memory_format=torch.channels_last)


def _bits(images: Tensor) -> Any:
    """Return a tensor [B, C, H, W], channels-last, as an array of integers [B, H, W, C]."""
    images = images.detach().permute(0, 2, 3, 1)
    return images.view(BITS_TYPES.get(images.dtype, images.dtype)).numpy()


@cache
def _pool_of_threads(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, "tinyvgg-pooling")


def _on_all_cores(kernel: Any, count: int, *arrays: Any) -> None:
    """Run a kernel over `count` images, a share of them on each of torch's number of threads."""
    num_threads = min(torch.get_num_threads(), count)
    edges = [count * part // num_threads for part in range(num_threads + 1)]
    if num_threads == 1:
        kernel(*arrays, 0, count)
        return
    threads = _pool_of_threads(num_threads - 1)
    others = [
        threads.submit(partial(kernel, *arrays, first, last)) for first, last in pairwise(edges[1:])
    ]
    kernel(*arrays, edges[0], edges[1])
    for other in others:
        other.result()
