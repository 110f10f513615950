"""JPEG: what a stored JPEG file may be, and its pixels, uint8 [H, W, 3] RGB.

From: `packing`, which stores only what passes `read_plain_size` and `check_scans` and decodes.
To:   `store` and `loading`, which decode the same bytes with the same decoder, as strictly.

simplejpeg (libjpeg-turbo) gives Pillow's pixels bit for bit and lets go of the GIL. A warning of
libjpeg is an error: Pillow forgives a bad code and fills the rest with gray. EXIF rotation is
ignored, as in ImageFolder.
"""

from contextlib import AbstractContextManager

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from tinyvgg.shards.memory import MemoryBudget

MAX_PIXELS = 89_478_485  # a quarter of a GiB as RGB: where Pillow begins to warn of bombs
MAX_SIDE = 65_535  # of a JPEG, and of a shard's image
MEMORY_BYTES = 2**30
WORKING_BYTES = 11  # a pixel: RGB, and the coefficients of a progressive file
JPEG_START = b"\xff\xd8"
PLAIN_COLORS = ("YCbCr", "Gray")
MAX_SCANS = 100  # a progressive file of libjpeg has 10, of mozjpeg some 12; 600 take 35 x as long
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}  # markers: TEM, RST0 to RST7, SOI

decode_memory = MemoryBudget(MEMORY_BYTES)


def read_plain_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Return (height, width) of a JPEG whose pixels simplejpeg gives, or None.

    None: no JPEG, one of other colors than YCbCr and gray, or one whose subsampling simplejpeg has
    no name for.
    """
    if bytes(data[:2]) != JPEG_START:
        return None
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # KeyError: 4:4:1
        return None
    return (height, width) if color_space in PLAIN_COLORS else None


def decoding(num_pixels: int) -> AbstractContextManager[None]:
    """Wait for the memory that decoding so many pixels takes, and hold it in a `with` block."""
    return decode_memory.taken(num_pixels, WORKING_BYTES)


def decode_jpeg(data: bytes | memoryview, pixels: NDArray[np.uint8]) -> None:
    """Decode a JPEG into `pixels`, without the GIL; inside `decoding`, if it may be large.

    Args:
        data: a file that `read_plain_size` knows.
        pixels: uint8 [H, W, 3], C order, of the file's size; filled with RGB.

    Raises:
        ValueError: the file is damaged, or of another size.
    """
    found = simplejpeg.decode_jpeg(data, "RGB", buffer=pixels)
    if found.shape != pixels.shape:
        height, width, _ = pixels.shape
        raise ValueError(f"{found.shape[1]}x{found.shape[0]} pixels, expected {width}x{height}")


def count_scans(data: bytes) -> int:
    """Return the scans of a JPEG file, by its markers; entropy-coded bytes hold no 0xFF marker."""
    scans, position = 0, 2
    while (position := data.find(b"\xff", position)) >= 0 and position + 1 < len(data):
        marker = data[position + 1]
        if marker == END_OF_IMAGE:
            break
        if marker in (0x00, 0xFF) or marker in WITHOUT_LENGTH:
            position += 1 if marker == 0xFF else 2
            continue
        scans += marker == START_OF_SCAN
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        position += 2 + max(length, 2)
    return scans
