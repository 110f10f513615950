"""Which images paths and Python objects name, in which order, and what is said of the rest."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyvgg.errors import DatasetError
from tinyvgg.inference.given_images import GivenImage, find_images, take_images


def read(image: GivenImage) -> bytes:
    assert callable(image.content)
    return image.content()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images, one of them hidden, and files that are none."""
    root = tmp_path / "photos"
    for name in (
        "b.jpg",
        "a/z.PNG",
        "a/é.jpg",
        ".trash/c.jpg",
        "notes.csv",
        "README.md",
        "._b.jpg",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_a_folder_is_walked_to_its_depth_and_sorted_by_bytes(folder: Path) -> None:
    found = list(find_images([str(folder)]))

    assert [image.name for image in found] == [
        f"{folder}/{name}" for name in ("a/z.PNG", "a/é.jpg", "b.jpg")
    ]
    assert read(found[1]) == "a/é.jpg".encode()


def test_what_is_left_out_is_counted_and_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    list(find_images([str(folder)]))

    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: left out: 1 images in hidden folders",
        f"{folder}: left out: 1 files that are no images by their names",
        "  notes.csv",
    ]


def test_a_dash_stands_for_the_lines_and_empty_ones_are_skipped(folder: Path) -> None:
    lines = [os.fsencode(folder / "b.jpg") + b"\n", b"\r\n", b"odd\xff.jpg\r\n", b"last.bin"]

    found = list(find_images(["first.jpg", "-", "end.jpg"], lines))

    expected = ["first.jpg", f"{folder}/b.jpg", "odd\udcff.jpg", "last.bin", "end.jpg"]
    assert [image.name for image in found] == expected
    assert read(found[1]) == b"b.jpg"


def test_a_folder_without_images_is_an_image_that_cannot_be_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()

    empty, missing = find_images([str(tmp_path / "empty"), str(tmp_path / "no.jpg")])

    with pytest.raises(DatasetError, match="no image by its name in it"):
        read(empty)
    with pytest.raises(FileNotFoundError):
        read(missing)


ARRAY = np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("cat.jpg", ["cat.jpg"]),
        (Path("cat.jpg"), ["cat.jpg"]),
        (ARRAY, ["image 0"]),
        (Image.fromarray(ARRAY), ["image 0"]),
        (np.stack([ARRAY, ARRAY]), ["image 0", "image 1"]),
        (iter(["a.jpg", ARRAY]), ["a.jpg", "image 1"]),
        ([], []),
    ],
)
def test_one_image_and_any_iterable_of_them_are_taken(given: object, names: list[str]) -> None:
    assert [image.name for image in take_images(given)] == names


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: ARRAY.astype(np.float32), r"an array float32 \[4, 5, 3\]"),
        (lambda: ARRAY[..., 0], r"an array uint8 \[4, 5\]"),
        (lambda: ARRAY[:0], r"an array uint8 \[0, 5, 3\]"),
        (lambda: 5, "int"),
    ],
)
def test_what_is_no_image_is_named_in_one_line(make: Callable[[], object], found: str) -> None:
    with pytest.raises(TypeError, match=f"image 1: {found}, needed a path, a PIL image or an"):
        list(take_images([ARRAY, make()]))
