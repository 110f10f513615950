"""Decode: one encoded image to uint8 [H, W, 3] RGB, the same pixels as Pillow's.

From: `folders`, which gives the bytes of a file.
To:   `pack`, which gives the row of a shard to fill.

A plain JPEG goes through simplejpeg (libjpeg-turbo): 1.4 times torchvision and 5 times Pillow
on two threads, and it lets go of the GIL; a test holds its pixels equal to Pillow's. Anything
else, and any JPEG that simplejpeg finds odd, is Pillow's: what Pillow reads is packed, what it
does not read is bad, whatever the suffix says. EXIF rotation is ignored, as in ImageFolder.
"""

import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from tinyvgg.errors import DatasetError


def read_image_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) in pixels, from the header alone.

    Raises:
        DatasetError: not an image.
    """
    with _open_image(data) as image:
        return image.height, image.width


def decode_image(data: bytes, pixels: NDArray[np.uint8], *, resize: bool = False) -> None:
    """Decode an image into `pixels`.

    Args:
        data: the bytes of a JPEG, PNG, BMP or WebP file.
        pixels: uint8 [H, W, 3], C order, filled with RGB.
        resize: scale the shorter side to H = W and cut out the center, as torchvision's
            Resize and CenterCrop do on a Pillow image.

    Raises:
        DatasetError: not an image, damaged, or of another size than H x W. The text says what
            was found; the caller knows the path.
    """
    height, width, _ = pixels.shape
    if data[:2] == b"\xff\xd8":
        try:
            found_height, found_width, color_space, _ = simplejpeg.decode_jpeg_header(data)
            if (found_height, found_width) == (height, width) and color_space in ("YCbCr", "Gray"):
                simplejpeg.decode_jpeg(data, "RGB", buffer=pixels)
                return
        except (ValueError, KeyError):  # KeyError: 4:4:1, which simplejpeg has no name for
            pass  # Pillow has the last word, and the better error
    with _open_image(data) as image:
        if not resize and (image.height, image.width) != (height, width):
            raise DatasetError(
                f"{image.width}x{image.height} pixels, expected {width}x{height}; "
                "drop it, or pack with --resize"
            )
        try:
            rgb = image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DatasetError(f"cannot be decoded ({error})") from error
    pixels[:] = np.asarray(_cut_square(rgb, height) if resize else rgb)


def _open_image(data: bytes) -> Image.Image:
    if not data:
        raise DatasetError("0 bytes, expected an image")
    try:
        return Image.open(io.BytesIO(data))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{len(data):,} bytes that are not an image") from error


def _cut_square(image: Image.Image, side: int) -> Image.Image:
    """Scale the shorter side of an RGB image to `side` and cut out the center square."""
    size = [int(side * n / min(image.size)) for n in image.size]  # rounded as torchvision does
    image = image.resize((size[0], size[1]), Image.Resampling.BILINEAR)
    left, top = (round((n - side) / 2) for n in size)
    return image.crop((left, top, left + side, top + side))
