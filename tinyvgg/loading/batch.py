"""Batch: what a loader yields, and what happens to pixels on the way into it.

From: a backend, which has uint8 images [n, H, W, 3] on the device, or their addresses.
To:   the model, which gets `dtype` [b, 3, H, W] with channels-last strides.

b images of a batch on one rank, H rows, W columns.

Pixels are cropped, flipped and normalized in one pass: `x * scale + shift` with
`scale = 1 / (255 std)` and `shift = -mean / std`, both computed in float64 and rounded once to
float32. On CUDA that pass is `transform_images` below, compiled; on the CPU it is the kernel of
`host_kernel.py`. A test compares both with a slow obvious one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tinyvgg.loading.plan import EpochPlanner, LoaderState
from tinyvgg.loading.views import scaled_size

DTYPES = (torch.uint8, torch.float32, torch.bfloat16, torch.float16)


@dataclass  # not frozen: Lightning refuses to pass frozen ones on
class Batch:
    """One step's images on one rank; also `images, labels = batch`.

    It stays as it is for as long as it is kept, or a tensor of it, or a view of one; under
    `LoaderConfig.reuse_buffers` it is valid until the next one is asked for.

    Attributes:
        images: [b, 3, H, W] with channels-last strides. float32, bfloat16 or float16: cropped,
            flipped and normalized. uint8: as stored, cropped and flipped if asked for.
        labels: int64 [b]; -100 in padding.
        ids: int64 [b], row of the image in its split; -1 in padding.
        num_valid: real rows; they come first, padding after them.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    num_valid: int

    def __iter__(self) -> Iterator[Tensor]:
        """Give images and labels, as a batch of torch's DataLoader is unpacked."""
        return iter((self.images, self.labels))


class BatchSource(Protocol):
    """A backend: turns the plan of an epoch into batches, one a step, in order."""

    def batches(
        self, plan: EpochPlanner, state: LoaderState, size: tuple[int, int] | None = None
    ) -> Iterator[Batch]:
        """Yield one batch for every step of `plan(state)`, the rest of an epoch.

        A kept batch stays as it is, if the source was not told that buffers may be used again.

        Args:
            plan: of the split.
            state: where to begin.
            size: (H, W) that boxes are scaled to; images that are shown whole come as stored.
        """


def channel_triple(values: Iterable[float]) -> tuple[float, float, float]:
    """Return three values, one a channel, as a tuple."""
    red, green, blue = values
    return red, green, blue


@dataclass(frozen=True)
class Normalization:
    """How stored pixels become model input.

    Attributes:
        mean, std: per channel, on the 0-to-1 scale.
        scale, shift: float32 [3], `x * scale + shift` normalizes a stored pixel.
        fill: uint8 [3], the mean color, which is what a crop sees outside the image.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def scale(self) -> NDArray[np.float32]:
        """1 / (255 std), rounded once."""
        return (1 / (255 * np.array(self.std))).astype(np.float32)

    @property
    def shift(self) -> NDArray[np.float32]:
        """-mean / std, rounded once."""
        shift: NDArray[np.float64] = -np.array(self.mean) / np.array(self.std)
        return shift.astype(np.float32)

    @property
    def fill(self) -> NDArray[np.uint8]:
        """round(255 mean)."""
        fill: NDArray[np.float64] = np.rint(255 * np.array(self.mean))
        return fill.astype(np.uint8)


@dataclass(frozen=True)
class PixelPass:
    """What images are as they are stored, and what a backend makes of them.

    Attributes:
        image_shape: (H, W, 3) of the stored images, or of those of a batch where these differ.
        normalization: of their pixels.
        dtype: of the batches; uint8 leaves out the normalization.
        reuse_buffers: whether a batch is valid only until the next one is asked for.
    """

    image_shape: tuple[int, int, int]
    normalization: Normalization
    dtype: torch.dtype
    reuse_buffers: bool = False


def transform_images(
    stored: Tensor,
    rows: Tensor,
    dy: Tensor,
    dx: Tensor,
    flip: Tensor,
    fill: Tensor,
    scale: Tensor,
    shift: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Gather, crop, flip and normalize on the device that holds the images.

    Written so that inductor makes one kernel of it: an index for every output pixel, one read,
    one write. Nothing here waits for the device.

    Args:
        stored: uint8 [n, H, W, 3].
        rows: int64 [b], which of them.
        dy: int32 [b], rows by which the crop window is moved down.
        dx: int32 [b], columns by which it is moved right.
        flip: bool [b], whether the crop is then mirrored.
        fill: uint8 [3], color outside the image.
        scale: float32 [3].
        shift: float32 [3].
        dtype: of the result; uint8 leaves out the normalization.

    Returns:
        `dtype` [b, 3, H, W] with channels-last strides.
    """
    _, height, width, _ = stored.shape
    y = torch.arange(height, device=stored.device)
    x = torch.arange(width, device=stored.device)
    source_y = y[None, :] + dy[:, None]
    source_x = torch.where(flip[:, None], width - 1 - x[None, :], x[None, :]) + dx[:, None]
    is_inside = ((source_y >= 0) & (source_y < height))[:, :, None] & (
        (source_x >= 0) & (source_x < width)
    )[:, None, :]
    pixels = stored[
        rows[:, None, None],
        source_y.clamp(0, height - 1)[:, :, None],
        source_x.clamp(0, width - 1)[:, None, :],
    ]
    pixels = torch.where(is_inside[..., None], pixels, fill)
    if dtype != torch.uint8:
        pixels = (pixels.float() * scale + shift).to(dtype)
    return pixels.permute(0, 3, 1, 2)


@cache
def resize_matrices(
    size: tuple[int, int], target: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return what rows [H, W * 3] of images are multiplied with, from the left and the right.

    Args:
        size: (H, W) of the images.
        target: (h, w).
        dtype: of the matrices.
        device: likewise.

    Returns:
        [h, H], and [W * 3, w * 3], which leaves channels apart: torch's own bilinear, antialiased
        weights, found by resizing the unit matrix.
    """
    rows, columns = (
        functional.interpolate(
            torch.eye(source)[None, None], (wanted, source), mode="bilinear", antialias=True
        )[0, 0]
        for source, wanted in zip(size, target, strict=True)
    )
    spread = torch.kron(columns, torch.eye(3)).T.contiguous()
    return rows.to(device, dtype), spread.to(device, dtype)


def resize_images(images: Tensor, pixels: int) -> Tensor:
    """Return images whose shorter side is `pixels`, bilinear and antialiased.

    Two matrix products in the layout there is; `functional.interpolate` takes 1.7 times as long in
    float32 on a CPU (benchmarks/LOG.md), and knows no half type there.

    Args:
        images: [b, 3, H, W], channels-last. uint8 are multiplied in float32 and rounded; half types
            in float32 on a CPU, in their own type, rounded once between the products, elsewhere.
        pixels: of the shorter side; images that have it already come back as they are.

    Returns:
        The same dtype, [b, 3, h, w], channels-last, on the same device.
    """
    count, channels, *sides = images.shape
    height, width = sides
    target = scaled_size(height, width, pixels)
    if target == (height, width):
        return images
    dtype = images.dtype
    if dtype == torch.uint8 or (images.device.type == "cpu" and dtype.itemsize < 4):
        dtype = torch.float32
    rows, columns = resize_matrices((height, width), target, dtype, images.device)
    stored = images.permute(0, 2, 3, 1).reshape(count, height, width * channels).to(dtype)
    narrow = torch.bmm(rows.expand(count, -1, -1), stored)  # [b, h, W * 3]
    resized = narrow.view(count * target[0], width * channels) @ columns
    if images.dtype == torch.uint8:
        resized = resized.round_()  # between the smallest and the largest: weights are 0 to 1
    return resized.view(count, *target, channels).permute(0, 3, 1, 2).to(images.dtype)
