"""The resize kernel against Pillow's arithmetic in Python, and against Pillow itself."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tinyvgg.loading.resize_kernel import normalize_box, resize_box


def resize(
    pixels: NDArray[np.uint8], box: tuple[int, int, int, int], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Run the kernel on an image with a byte behind it."""
    memory = np.concatenate([pixels.reshape(-1), np.zeros(1, np.uint8)])
    out = np.empty((*size, 3), np.uint8)
    resize_box(memory.ctypes.data, pixels.shape[1], *box, out.ctypes.data, *size)
    return out


def obvious_pass(pixels: NDArray[np.uint8], target: int) -> NDArray[np.uint8]:
    """Resize the first axis as Pillow 12.2 does, with Python's integers and floats."""
    size = len(pixels)
    scale = size / target
    support = max(scale, 1.0)
    rows = []
    for i in range(target):
        center = (i + 0.5) * scale
        first = max(0, int(center - support + 0.5))
        last = min(size, int(center + support + 0.5))
        shares = [max(0.0, 1 - abs((k - center + 0.5) / support)) for k in range(first, last)]
        weights = [int(0.5 + share / sum(shares) * 2**22) for share in shares]
        total = np.full(pixels.shape[1:], 2**21, np.int64)
        for weight, row in zip(weights, pixels[first:last].astype(np.int64), strict=True):
            total += weight * row
        rows.append(total >> 22)
    return np.stack(rows).astype(np.uint8)


SHAPES = [
    ((7, 9), (7, 9)),
    ((30, 41), (11, 13)),
    ((5, 3), (16, 20)),
    ((1, 1), (4, 4)),
    ((90, 13), (8, 8)),
    ((224, 224), (224, 224)),
]


@pytest.mark.parametrize(("size", "target"), SHAPES)
def test_it_equals_pillows_arithmetic_columns_first(
    size: tuple[int, int], target: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)

    found = resize(pixels, (0, 0, *size), target)

    narrow = obvious_pass(pixels.transpose(1, 0, 2), target[1]).transpose(1, 0, 2)
    assert np.array_equal(found, obvious_pass(narrow, target[0]))


def test_a_box_is_cut_out_first_and_nothing_beside_it_is_read() -> None:
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (50, 60, 3), np.uint8)
    other = generator.integers(0, 256, (50, 60, 3), np.uint8)
    other[10:40, 20:55] = pixels[10:40, 20:55]

    found = resize(pixels, (10, 20, 30, 35), (16, 16))

    assert np.array_equal(found, resize(other, (10, 20, 30, 35), (16, 16)))
    assert np.array_equal(found, resize(pixels[10:40, 20:55].copy(), (0, 0, 30, 35), (16, 16)))


def test_it_is_within_a_level_of_pillow_and_a_tenth_on_average() -> None:
    generator = np.random.default_rng(2)
    differences = []
    for _ in range(40):
        height, width = generator.integers(200, 501, 2).tolist()
        noise = generator.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        share = generator.uniform(0.3, 1)
        box = (0, 0, math.ceil(height * share), math.ceil(width * share))

        found = resize(np.asarray(image), box, (224, 224))

        cut = image.crop((0, 0, box[3], box[2]))
        expected = np.asarray(cut.resize((224, 224), Image.Resampling.BILINEAR))
        differences.append(np.abs(found.astype(int) - expected))
    assert max(difference.max() for difference in differences) <= 1
    assert np.mean([difference.mean() for difference in differences]) <= 0.1


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(3, 5, 40, 50), (0, 0, 3, 60), (7, 8, 17, 31), (0, 0, 50, 60)])
def test_one_pass_equals_resizing_then_normalizing(
    box: tuple[int, int, int, int], flip: bool
) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (51, 60, 3), np.uint8)
    scale_row = np.tile(np.array([0.01, 0.02, 0.03], np.float32), 31)
    shift_row = np.tile(np.array([-1.5, 0.25, 2.0], np.float32), 31)
    found = np.empty((17, 3 * 31), np.float32)

    normalize_box(pixels.ctypes.data, 60, *box, found, flip, scale_row, shift_row)

    resized = resize(pixels, box, (17, 31))
    shown = resized[:, ::-1] if flip else resized
    expected = shown.reshape(17, -1).astype(np.float32) * scale_row + shift_row
    assert np.array_equal(found, expected)
