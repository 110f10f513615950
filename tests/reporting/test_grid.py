from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from tinyvgg.reporting.grid import count_per_line, draw_grid, load_font
from tinyvgg.shards.store import PackedDataset


def test_the_sheet_shows_the_first_images_of_every_class_as_they_are_stored(
    packed: PackedDataset, tmp_path: Path
) -> None:
    draw_grid(packed, tmp_path / "grid.png")

    with Image.open(tmp_path / "grid.png") as image:
        sheet = np.asarray(image)
    first = packed.train.read_images(np.array([0, 1, 2]))  # labels 0, 1, 2
    assert np.array_equal(sheet[20:84, 4:68], first[0])
    assert np.array_equal(sheet[108:172, 4:68], first[1])
    assert np.array_equal(sheet[196:260, 4:68], first[2])


def test_long_words_do_not_run_into_the_next_class(
    pack_arrays: Callable[..., PackedDataset], tmp_path: Path
) -> None:
    images = np.full((3, 64, 64, 3), 255, np.uint8)
    dataset = pack_arrays("white", images, np.arange(3), images, np.arange(3))
    record = dataset.manifest.classes[0].model_copy(update={"words": "long words " * 40})
    object.__setattr__(dataset.manifest, "classes", [record, *dataset.manifest.classes[1:]])

    draw_grid(dataset, tmp_path / "grid.png")

    with Image.open(tmp_path / "grid.png") as image:
        sheet = np.asarray(image.convert("L"))
    assert (sheet[:20, -4:] == 255).all()


def test_letters_that_the_usual_font_lacks_are_drawn_with_another() -> None:
    usual, other = load_font(["cat"]), load_font(["café", "дом"])

    assert isinstance(other, ImageFont.FreeTypeFont)
    assert other.getname() != usual.getname()  # type: ignore[union-attr]
    assert bytes(other.getmask("д")) != bytes(other.getmask("\U0010ffff"))  # the box of none


def test_a_sheet_of_many_classes_is_about_as_high_as_wide() -> None:
    for num_classes in (10, 100, 200):
        per_line = count_per_line(num_classes, 276, 88)
        lines = -(-num_classes // per_line)
        assert 0.7 < per_line * 276 / (lines * 88) < 1.5
