"""Views: boxes against a slow obvious drawing, torchvision's distribution, and golden ones."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms import RandomResizedCrop

from tinyvgg.loading.config import LoaderConfig
from tinyvgg.loading.views import View, choose_view, find_shown_size

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
DRAWN = View("resized-crop", AREA, ASPECT, 0.875)
CENTER = View("center", AREA, ASPECT, 0.875)
WHOLE = View("whole", AREA, ASPECT, 0.875)
SMALL, LARGE = (64, 64), (3000, 4000)
MASK = 2**64 - 1
# (height, width) and word; two shapes that no drawn box fits
GOLDEN = [
    ((300, 400), 0),
    ((300, 400), 1),
    ((300, 400), 2**63),
    ((375, 500), 0x0123456789ABCDEF),
    ((1000, 10), 5),
    ((10, 1000), 5),
    ((1, 1), 7),
]


def draw(word: int, k: int) -> int:
    """Return the k-th number of a word: splitmix64, in Python's integers."""
    z = (word + (k + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def obvious_box(word: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return top, left, height and width as torchvision chooses them, from numbers of the word."""
    low, high = map(math.log, ASPECT)
    for k in range(0, 40, 4):
        share, ratio = ((draw(word, k + i) >> 11) / 2**53 for i in (0, 1))
        area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * share)
        aspect = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = (
                (draw(word, k + i) >> 32) * room >> 32
                for i, room in ((2, height - h + 1), (3, width - w + 1))
            )
            return top, left, h, w
    h, w = height, width
    if width / height < ASPECT[0]:
        h = max(1, round(width / ASPECT[0]))
    elif width / height > ASPECT[1]:
        w = max(1, round(height * ASPECT[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def boxes_of(view: View, words: list[int], sizes: list[tuple[int, int]]) -> list[list[int]]:
    boxes: list[list[int]] = view.boxes(
        np.array(words, np.uint64), np.array(sizes, np.int32)
    ).tolist()
    return boxes


def test_golden_boxes() -> None:
    sizes, words = zip(*GOLDEN, strict=True)

    assert boxes_of(DRAWN, list(words), list(sizes)) == [
        [25, 202, 154, 139],
        [49, 50, 250, 288],
        [43, 63, 187, 218],
        [40, 198, 156, 189],
        [493, 0, 13, 10],
        [0, 493, 10, 13],
        [0, 0, 1, 1],
    ]


def test_drawn_boxes_are_those_of_an_obvious_loop() -> None:
    generator = np.random.default_rng(0)
    words = generator.integers(0, 2**64, 5_000, np.uint64).tolist()
    sizes = generator.integers(1, 600, (5_000, 2)).tolist()

    assert boxes_of(DRAWN, words, sizes) == [
        list(obvious_box(word, *size)) for word, size in zip(words, sizes, strict=True)
    ]


@pytest.mark.parametrize("size", [(300, 400), (500, 200)])
def test_drawn_boxes_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    count = 20_000
    words = np.random.default_rng(1).integers(0, 2**64, count, np.uint64)
    ours = DRAWN.boxes(words, np.broadcast_to(np.array(size, np.int32), (count, 2)))
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(AREA), list(ASPECT)) for _ in range(count)]
    )

    for figure in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 2] / b[:, 3], *COLUMNS):
        assert distance(figure(ours), figure(theirs)) < 1.63 * math.sqrt(2 / count)  # 1 % level


COLUMNS: list[Any] = [lambda boxes, column=column: boxes[:, column] for column in range(4)]


def distance(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Return the largest distance of two empirical distributions (Kolmogorov and Smirnov)."""
    values = np.concatenate([ours, theirs])
    values.sort()
    left, right = (
        np.searchsorted(np.sort(sample), values, "right") / len(sample) for sample in (ours, theirs)
    )
    return float(np.abs(left - right).max())


def test_the_center_is_a_square_of_a_share_of_the_shorter_side() -> None:
    sizes = [(300, 400), (401, 256), (1, 5), (8, 8)]

    assert boxes_of(CENTER, [0] * 4, sizes) == [
        [19, 69, 262, 262],
        [88, 16, 224, 224],
        [0, 2, 1, 1],
        [0, 0, 7, 7],
    ]


@pytest.mark.parametrize(
    ("view", "stored", "is_augmented", "expected"),
    [
        (None, SMALL, True, None),
        (None, SMALL, False, None),
        (None, None, True, "resized-crop"),
        (None, None, False, "center"),
        (None, LARGE, True, "resized-crop"),
        (None, LARGE, False, "whole"),
        ("crop", SMALL, True, None),
        ("crop", LARGE, False, "whole"),
        ("resized-crop", SMALL, True, "resized-crop"),
        ("resized-crop", SMALL, False, None),
        ("resized-crop", None, False, "center"),
        ("center", SMALL, True, "center"),
        ("center", SMALL, False, "center"),
        ("center", LARGE, True, "center"),
    ],
)
def test_the_view_of_a_loader(
    view: Any, stored: tuple[int, int] | None, is_augmented: bool, expected: str | None
) -> None:
    chosen = choose_view(LoaderConfig(view=view), stored, is_augmented=is_augmented)

    assert (chosen and chosen.kind) == expected


def test_images_of_several_sizes_and_large_ones_are_not_cropped_by_pixels() -> None:
    with pytest.raises(ValueError, match="view must be resized-crop or center for images of sev"):
        choose_view(LoaderConfig(view="crop"), None, is_augmented=True)
    with pytest.raises(ValueError, match="resized-crop or center for 4000x3000, got 'crop'"):
        choose_view(LoaderConfig(view="crop"), LARGE, is_augmented=True)
    with pytest.raises(ValueError, match="size must be given for images of several sizes, 224"):
        find_shown_size(None, None, CENTER)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"view": "square"}, "view must be one of crop, resized-crop, center, got 'square'"),
        ({"crop_area": (0, 1)}, r"crop_area must be two numbers above 0 and up to 1, .*\(0, 1\)"),
        ({"crop_area": (0.5, 0.2)}, "crop_area must be two numbers above 0 and up to 1, smaller"),
        ({"crop_aspect": (1, 200)}, "crop_aspect must be two numbers above 0 and up to 100"),
        ({"crop_area": (0.1, 0.2, 0.3)}, "crop_area must be two numbers above 0 and up to 1"),
        ({"crop_aspect": 1.0}, "crop_aspect must be two numbers above 0 and up to 100"),
        ({"crop_aspect": ("a", "b")}, "crop_aspect must be two numbers above 0 and up to 100"),
        ({"size": 2.5}, "size must be a whole number from 1 to 65,535 pixels, got 2.5"),
        ({"size": 10**9}, "size must be a whole number from 1 to 65,535 pixels, got 1000000000"),
        ({"size": 0}, "size must be a whole number from 1 to 65,535 pixels, got 0"),
        ({"center_share": 1.5}, "center_share must be above 0 and at most 1, got 1.5"),
    ],
)
def test_a_view_that_shows_nothing_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoaderConfig(**fields)


def test_ranges_and_sizes_of_any_kind_become_tuples_and_integers() -> None:
    given: dict[str, Any] = {"crop_area": [0.5, 1], "crop_aspect": np.array([1, 2])}
    config = LoaderConfig(**given, size=np.int64(32))  # type: ignore[arg-type]

    assert (config.crop_area, config.crop_aspect, config.size) == ((0.5, 1.0), (1.0, 2.0), 32)
    assert isinstance(config.size, int)


def test_a_whole_view_is_the_image() -> None:
    assert boxes_of(WHOLE, [1, 2], [(300, 400), (5, 7)]) == [[0, 0, 300, 400], [0, 0, 5, 7]]


@pytest.mark.parametrize(
    ("stored", "size", "view", "expected"),
    [
        ((64, 48), None, None, (64, 48)),
        ((64, 48), 24, None, (32, 24)),
        ((64, 48), None, CENTER, (48, 48)),
        ((64, 48), 224, DRAWN, (224, 224)),
        (None, 224, CENTER, (224, 224)),
        ((3000, 4000), None, WHOLE, (3000, 4000)),
        ((3000, 4000), 224, WHOLE, (224, 299)),
    ],
)
def test_the_size_of_what_is_shown(
    stored: tuple[int, int] | None, size: int | None, view: View | None, expected: tuple[int, int]
) -> None:
    assert find_shown_size(stored, size, view) == expected
