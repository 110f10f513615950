"""Grid: a contact sheet of a packed data set, to see that images and labels belong together.

From: `shards`, an opened data set.
To:   `tinyvgg inspect --grid FILE.png`.
"""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from tinyvgg.errors import naming, printable
from tinyvgg.shards.store import PackedDataset

IMAGES_PER_CLASS = 4
MARGIN_PIXELS = 4
THUMBNAIL_PIXELS = 64
TEXT_PIXELS = 16


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
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for label, record in enumerate(classes):
        left = label % per_line * cell_width + MARGIN_PIXELS
        top = label // per_line * cell_height + MARGIN_PIXELS
        words = printable(f"{label} {record.folder} {record.words}".strip())
        while pen.textlength(words, font) > cell_width - 2 * MARGIN_PIXELS:
            words = words.removesuffix("…")[:-1] + "…"
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
