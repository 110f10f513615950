"""Max-pool and ReLU that a CPU can afford: one pass forward, one pass back.

From: `model`, at the end of each group of convolutions.
To:   the same place, for a third of the time.

torch fills the gradient of a max-pool with zeros and then scatters into it, with an int64 index for
each output: 13 % of a training step on two cores with AMX. Here the forward pass keeps one byte an
output, which of the four values it was, and the backward pass writes every value once.

Bits of a positive float, read as a signed integer, are in the order of the floats; those of a
negative one are negative. So `max(0, ...)` of integers is ReLU and max-pool at once, in bfloat16
and float32 alike. A NaN with its sign set counts as negative; training looks at its weights, too.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinyvgg.compiled import compile_kernel

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
