"""Grid: contact sheets: of a packed data set, of images and what a network says of them.

From: `shards`, an opened data set; `inference`, predictions.
To:   `tinyvgg inspect --grid FILE.png` and `tinyvgg predict --grid FILE.png`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from tinyvgg.errors import naming, printable
from tinyvgg.shards.store import PackedDataset

if TYPE_CHECKING:  # `inspect` works without torch
    from tinyvgg.inference.predict import Prediction

IMAGES_PER_CLASS = 4
MARGIN_PIXELS = 4
THUMBNAIL_PIXELS = 64
FONT_PIXELS = 12
TEXT_PIXELS = 16
ANSWER_PIXELS = 128  # of a predicted image, at least, so that its answer has room


def count_per_line(num_classes: int, width: int, height: int) -> int:
    """Return the classes of a line of cells, so that the sheet is about as high as wide."""

    def stretch(per_line: int) -> float:
        lines = -(-num_classes // per_line)
        return abs(math.log(per_line * width / (lines * height)))

    return min(range(1, num_classes + 1), key=stretch, default=1)


def draw_grid(dataset: PackedDataset, path: Path) -> None:
    """Write the first train images of every class, with the class's words, as one PNG.

    Args:
        dataset: opened.
        path: of the PNG.
    """
    size = dataset.manifest.image.size or (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)
    scale = max(1, THUMBNAIL_PIXELS // max(size))  # thumbnails stay readable
    height, width = scale * size[0], scale * size[1]
    cell_width = IMAGES_PER_CLASS * (width + MARGIN_PIXELS) + MARGIN_PIXELS
    cell_height = height + TEXT_PIXELS + 2 * MARGIN_PIXELS
    classes = dataset.manifest.classes
    per_line = count_per_line(len(classes), cell_width, cell_height)
    num_lines = -(-len(classes) // per_line)
    sheet = Image.new("RGB", (per_line * cell_width, num_lines * cell_height), "white")
    pen = ImageDraw.Draw(sheet)
    font = load_font([printable(record.folder + record.words) for record in classes])
    for label, record in enumerate(classes):
        left = label % per_line * cell_width + MARGIN_PIXELS
        top = label // per_line * cell_height + MARGIN_PIXELS
        words = printable(f"{label} {record.folder} {record.words}".strip())
        words = shorten(words, pen, font, cell_width - 2 * MARGIN_PIXELS)
        pen.text((left, top), words, "black", font)
        rows = np.flatnonzero(dataset.train.labels == label)[:IMAGES_PER_CLASS]
        for position, row in enumerate(rows):
            image = Image.fromarray(dataset.train[row][0])
            is_stored = dataset.manifest.image.size is not None
            thumbnail = (
                image.resize((width, height), Image.Resampling.NEAREST)
                if is_stored
                else ImageOps.fit(image, (width, height))
            )
            sheet.paste(thumbnail, (left + position * (width + MARGIN_PIXELS), top + TEXT_PIXELS))
    with naming(path):
        sheet.save(path, "PNG")


def draw_predictions(predictions: Sequence["Prediction"], path: Path) -> None:
    """Write images and their answers as one PNG, about as high as it is wide.

    Args:
        predictions: with `shown`, at least one.
        path: of the PNG.
    """
    sides = [pixels.shape[:2] for found in predictions if (pixels := found.shown) is not None]
    scale = max(1, -(-ANSWER_PIXELS // max(map(max, sides))))
    height, width = (scale * max(side) for side in zip(*sides, strict=True))
    cell_height = height + 2 * TEXT_PIXELS + 2 * MARGIN_PIXELS
    cell_width = width + 2 * MARGIN_PIXELS
    num_columns = math.ceil(math.sqrt(len(predictions) * cell_height / cell_width))
    num_columns = min(num_columns, len(predictions))
    num_lines = -(-len(predictions) // num_columns)
    sheet = Image.new("RGB", (num_columns * cell_width, num_lines * cell_height), "white")
    pen = ImageDraw.Draw(sheet)
    font = load_font([printable(found.name + found.best.title) for found in predictions])
    for place, found in enumerate(predictions):
        left = place % num_columns * cell_width + MARGIN_PIXELS
        top = place // num_columns * cell_height + MARGIN_PIXELS
        if found.shown is not None:
            image = Image.fromarray(found.shown)
            size = (scale * image.width, scale * image.height)
            sheet.paste(image.resize(size, Image.Resampling.NEAREST), (left, top))
        best = found.best
        lines = (found.name.rpartition("/")[2], f"{best.probability:.0%} {best.title}")
        for number, text in enumerate(lines):
            text = shorten(printable(text), pen, font, width)
            color = "gray" if number == 0 else "black"
            pen.text((left, top + height + number * TEXT_PIXELS), text, color, font)
    with naming(path):
        sheet.save(path, "PNG")


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def load_font(texts: Sequence[str]) -> Font:
    """Return Pillow's own font, or where it lacks letters the installed one that has most."""
    if all(text.isascii() for text in texts):
        return ImageFont.load_default(FONT_PIXELS)
    from tinyvgg.reporting.fonts import find_font_file  # here: it takes matplotlib

    return ImageFont.truetype(find_font_file(texts), FONT_PIXELS)


def shorten(
    text: str,
    pen: ImageDraw.ImageDraw,
    font: Font,
    width: int,
) -> str:
    """Return a text cut off so that it is not wider than so many pixels."""
    while text not in ("", "…") and pen.textlength(text, font) > width:
        text = text.removesuffix("…")[:-1] + "…"
    return text
