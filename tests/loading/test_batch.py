import copy
import dataclasses
import shutil
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from tinyvgg.loading.batch import Batch, Normalization, transform_images

MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2764, 0.2689, 0.2816)
FILL = (122, 114, 101)  # round(255 mean)
DTYPES = [torch.uint8, torch.float32, torch.bfloat16, torch.float16]
SIZES = [(5, 7), (1, 1), (2, 3), (64, 48)]
ALL_CROPS = list(product(range(-8, 9), range(-8, 9), (False, True)))


def draw_images(height: int, width: int) -> np.ndarray:
    shape = (6, height, width, 3)
    return np.random.default_rng(height * width).integers(0, 256, shape).astype(np.uint8)


def test_a_batch_can_be_rebuilt_as_lightning_moves_it_to_a_device() -> None:
    tensors = (torch.zeros(2, 3, 4, 4), torch.zeros(2), torch.zeros(2))
    batch = Batch(*tensors, 2)

    moved = copy.copy(batch)
    for field in dataclasses.fields(batch):
        setattr(moved, field.name, getattr(batch, field.name))

    images, labels = moved
    assert images is tensors[0]
    assert labels is tensors[1]


def crop_pixel_by_pixel(image: np.ndarray, dy: int, dx: int, flip: bool) -> np.ndarray:
    """Return the crop, asking for every pixel where it comes from."""
    height, width, _ = image.shape
    cropped = np.empty_like(image)
    for y, x in product(range(height), range(width)):
        source_y, source_x = y + dy, x + dx
        is_inside = 0 <= source_y < height and 0 <= source_x < width
        color = image[source_y, source_x] if is_inside else FILL
        cropped[y, width - 1 - x if flip else x] = color
    return cropped


def normalize_in_float32(pixels: np.ndarray) -> Tensor:
    scale = np.array([1 / (255 * std) for std in STD]).astype(np.float32)
    shift = np.array([-mean / std for mean, std in zip(MEAN, STD, strict=True)]).astype(np.float32)
    scaled = pixels.astype(np.float32) * scale
    return torch.from_numpy(scaled + shift)


def transform(
    images: np.ndarray,
    rows: list[int],
    crops: list[tuple[int, int, bool]],
    dtype: torch.dtype,
    function: Callable[..., Tensor] = transform_images,
) -> Tensor:
    normalization = Normalization(MEAN, STD)
    constants = (normalization.fill, normalization.scale, normalization.shift)
    dy, dx, flip = zip(*crops, strict=True)
    return function(
        torch.from_numpy(images),
        torch.tensor(rows),
        torch.tensor(dy, dtype=torch.int32),
        torch.tensor(dx, dtype=torch.int32),
        torch.tensor(flip),
        *(torch.from_numpy(values) for values in constants),
        dtype,
    )


def assert_near(images: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Check DESIGN.md's bound: 1e-6, or one unit in the last place at max(1, |x|)."""
    assert images.dtype == dtype
    if dtype == torch.float32:
        assert (images - exact).abs().max() <= 1e-6
        return
    expected = exact.to(dtype).float()
    exponent = torch.floor(torch.log2(expected.abs().clamp(min=1)))
    unit = torch.finfo(dtype).eps * 2**exponent
    assert ((images.float() - expected).abs() <= unit).all()


@pytest.mark.parametrize("std", [STD, (1.0, 1.0, 1.0), (0.001, 0.5, 0.2)])
def test_constants_are_rounded_once(std: tuple[float, float, float]) -> None:
    normalization = Normalization(MEAN, std)

    for c in range(3):
        assert normalization.scale[c] == np.float32(1 / (255 * std[c]))
        assert normalization.shift[c] == np.float32(-MEAN[c] / std[c])
    assert normalization.scale.dtype == normalization.shift.dtype == np.float32


def test_the_color_outside_is_the_rounded_mean() -> None:
    assert Normalization(MEAN, STD).fill.tolist() == list(FILL)
    assert Normalization((0.0, 1.0, 127.4 / 255), STD).fill.tolist() == [0, 255, 127]
    assert Normalization(MEAN, STD).fill.dtype == np.uint8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_device_pass_equals_the_slow_reference(
    size: tuple[int, int], dtype: torch.dtype
) -> None:
    images = draw_images(*size)
    crops = ALL_CROPS if size[0] < 10 else ALL_CROPS[::11]
    rows = [5 * k % 6 for k in range(len(crops))]

    transformed = transform(images, rows, crops, dtype).permute(0, 2, 3, 1)

    cropped = [crop_pixel_by_pixel(images[r], *crop) for r, crop in zip(rows, crops, strict=True)]
    if dtype == torch.uint8:
        assert np.array_equal(transformed.numpy(), np.stack(cropped))
    else:
        assert_near(transformed, normalize_in_float32(np.stack(cropped)), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transformed_images_have_channels_last_strides(dtype: torch.dtype) -> None:
    transformed = transform(draw_images(5, 7), [3, 0], [(1, 2, True), (0, 0, False)], dtype)

    assert transformed.shape == (2, 3, 5, 7)
    assert transformed.stride() == (3 * 5 * 7, 1, 3 * 7, 3)
    assert transformed.is_contiguous(memory_format=torch.channels_last)


def test_a_row_may_be_asked_for_twice() -> None:
    transformed = transform(draw_images(5, 7), [2, 2], [(0, 0, False)] * 2, torch.uint8)

    assert torch.equal(transformed[0], transformed[1])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="NOT RUN: no g++ for inductor")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16], ids=str)
def test_the_compiled_device_pass_equals_the_slow_reference(dtype: torch.dtype) -> None:
    images = draw_images(64, 48)
    crops = ALL_CROPS[::11]
    rows = [k % 6 for k in range(len(crops))]

    compiled = torch.compile(transform_images, dynamic=False, fullgraph=True)
    transformed = transform(images, rows, crops, dtype, compiled)

    assert transformed.is_contiguous(memory_format=torch.channels_last)
    cropped = [crop_pixel_by_pixel(images[r], *crop) for r, crop in zip(rows, crops, strict=True)]
    pixels = transformed.permute(0, 2, 3, 1)
    if dtype == torch.uint8:
        assert np.array_equal(pixels.numpy(), np.stack(cropped))
    else:
        assert_near(pixels, normalize_in_float32(np.stack(cropped)), dtype)
