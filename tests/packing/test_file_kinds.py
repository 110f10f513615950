"""File kinds: names alone decide, in either case."""

import pytest
from torchvision.datasets.folder import IMG_EXTENSIONS

from tinyvgg.packing.file_kinds import (
    IMAGE_SUFFIXES,
    count_suffixes,
    find_suffix,
    is_hidden,
    is_image,
    is_metadata,
)


def test_every_suffix_of_image_folder_is_one_of_ours() -> None:
    assert set(IMG_EXTENSIONS) <= set(IMAGE_SUFFIXES)


@pytest.mark.parametrize("name", ["a.JPG", "a.b.png", "x.TiFF", "é.avif", "0.gif"])
def test_images_are_known_by_suffix(name: str) -> None:
    assert is_image(name)


@pytest.mark.parametrize("name", ["png", "a.png.txt", "a.png~", "noext", "a.jfif"])
def test_other_names_are_no_images(name: str) -> None:
    assert not is_image(name)


@pytest.mark.parametrize(
    "name", [".x.png", "._x.JPEG", ".ipynb_checkpoints", "@eaDir", "__MACOSX", "Thumbs.DB"]
)
def test_hidden_names_are_hidden(name: str) -> None:
    assert is_hidden(name)


@pytest.mark.parametrize("name", ["ant", "@ea", "_x.png", "lost", "desktop.png"])
def test_ordinary_names_are_not_hidden(name: str) -> None:
    assert not is_hidden(name)


@pytest.mark.parametrize(
    "name",
    ["n01_boxes.txt", "wnids.txt", "words.txt", "val_annotations.txt", "README", "LICENSE.md"],
)
def test_what_describes_a_data_set_is_metadata(name: str) -> None:
    assert is_metadata(name)


@pytest.mark.parametrize("name", ["notes.txt", "readme.png", "labels.csv", "license.zip", "boxes"])
def test_other_files_are_no_metadata(name: str) -> None:
    assert not is_metadata(name)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.TXT", ".txt"),
        ("noext", ""),
        (".bashrc", ""),
        ("a.b c", ""),
        ("a.", ""),
        ("a.\udcff", ""),
    ],
)
def test_a_suffix_is_the_last_one_in_lower_case(name: str, suffix: str) -> None:
    assert find_suffix(name) == suffix


def test_files_are_counted_by_suffix_and_numbered_ones_together() -> None:
    names = ["a.xml", "b.XML", "c", *(f"frame.{number:05d}" for number in range(200))]

    counts = count_suffixes(names)

    assert (counts[".xml"], counts[""], counts["other"]) == (2, 1, 152)
    assert len(counts) == 51
    assert sum(counts.values()) == len(names)
