"""Decode: one encoded image to uint8 [H, W, 3] RGB, the same pixels as Pillow's.

From: `folders`, which gives the bytes of a file.
To:   `pack`, which gives the row of a shard to fill.

A plain JPEG goes through simplejpeg (libjpeg-turbo): 1.4 times torchvision and 5 times Pillow
on two threads, and it lets go of the GIL; a test holds its pixels equal to Pillow's. Anything
else, and any JPEG that simplejpeg finds odd, is Pillow's. EXIF rotation is ignored, as in
ImageFolder.

Promises:
* The bytes say what an image is, whatever its suffix; Pillow's decoders are those of `FORMATS` and
  no others, because some of the others start programs (EPS: Ghostscript) or read other files.
* Whatever a decoder raises means a bad image. So does what libjpeg warns of as corrupt: Pillow
  would decode such an image, to pixels that nobody meant.
* Headers are read first: an image of more than `MAX_PIXELS` is refused before memory is taken, so
  that a decoding thread needs under 1 GiB, and 10 bytes a pixel, whatever a file claims.
"""

import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from tinyvgg.errors import DatasetError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "AVIF", "GIF", "TIFF", "PPM")
MAX_PIXELS = 89_478_485  # Pillow's own bound, 256 MiB of RGB, from which on it warns
CORRUPT = ("Corrupt JPEG data", "Premature end of JPEG")  # of libjpeg's warnings; others are mild


def read_image_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) in pixels, from the header alone.

    Raises:
        DatasetError: not an image, or larger than `MAX_PIXELS`.
    """
    with _open_image(data) as image:
        return image.height, image.width


def decode_image(data: bytes, pixels: NDArray[np.uint8], *, resize: bool = False) -> None:
    """Decode an image into `pixels`; of an animation, its first frame.

    Args:
        data: the bytes of a JPEG, PNG, BMP, WebP, AVIF, GIF, TIFF, PPM or PGM file.
        pixels: uint8 [H, W, 3], C order, filled with RGB.
        resize: scale the shorter side to H = W and cut out the center, as torchvision's
            Resize and CenterCrop do on a Pillow image.

    Raises:
        DatasetError: not an image, damaged, or of another size than H x W. The text says what
            was found; the caller knows the path.
        MemoryError: the machine has too little of it for an image that may be good.
    """
    if data[:2] == b"\xff\xd8" and _decode_plain_jpeg(data, pixels, resize=resize):
        return
    with _open_image(data) as image:
        if not resize:
            _check_size((image.height, image.width), pixels)
        try:
            rgb = image.convert("RGB")
        except MemoryError:
            raise
        except Exception as error:  # whatever the decoder of a format has met
            raise DatasetError(f"cannot be decoded ({error})") from error
    pixels[:] = np.asarray(_cut_square(rgb, len(pixels)) if resize else rgb)


def _decode_plain_jpeg(data: bytes, pixels: NDArray[np.uint8], *, resize: bool) -> bool:
    """Decode a JPEG into `pixels`, or return False where Pillow has to, for it is odd.

    Raises:
        DatasetError: damaged, too large, or of another size.
    """
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # KeyError: 4:4:1, which simplejpeg has no name for
        return False  # Pillow has the last word, and the better error
    _check_num_pixels(height, width)
    if not resize:
        _check_size((height, width), pixels)
    is_plain = color_space in ("YCbCr", "Gray")
    try:
        if is_plain and not resize:
            simplejpeg.decode_jpeg(data, "RGB", buffer=pixels)
            return True
        # what is odd is decoded here for libjpeg's warnings alone, which Pillow does not look at
        decoded = simplejpeg.decode_jpeg(data, "CMYK" if "K" in (color_space or "") else "RGB")
    except (ValueError, KeyError) as error:
        if any(words in str(error) for words in CORRUPT):
            raise DatasetError(f"cannot be decoded ({error})") from error
        return False
    if is_plain:
        pixels[:] = np.asarray(_cut_square(Image.fromarray(decoded), len(pixels)))
    return is_plain


def _open_image(data: bytes) -> Image.Image:
    if not data:
        raise DatasetError("0 bytes, expected an image")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:  # over twice the bound
        raise DatasetError(f"over {MAX_PIXELS:,} pixels; drop it, or make it smaller") from error
    except Exception as error:  # plugins raise what their parsers meet, SyntaxError to struct.error
        raise DatasetError(f"{len(data):,} bytes that are not an image") from error
    _check_num_pixels(image.height, image.width)
    return image


def _check_num_pixels(height: int, width: int, what: str = "") -> None:
    if height * width > MAX_PIXELS:
        raise DatasetError(
            f"{what}{width}x{height} pixels, expected at most {MAX_PIXELS:,} of them; drop it, or "
            "make it smaller"
        )


def _check_size(found: tuple[int, int], pixels: NDArray[np.uint8]) -> None:
    height, width, _ = pixels.shape
    if found != (height, width):
        raise DatasetError(
            f"{found[1]}x{found[0]} pixels, expected {width}x{height}; "
            "drop it, or pack with --resize"
        )


def _cut_square(image: Image.Image, side: int) -> Image.Image:
    """Scale the shorter side of an RGB image to `side` and cut out the center square."""
    size = [int(side * n / min(image.size)) for n in image.size]  # rounded as torchvision does
    _check_num_pixels(size[1], size[0], "scaled to ")  # a strip of 1 x 65,535 pixels
    image = image.resize((size[0], size[1]), Image.Resampling.BILINEAR)
    left, top = (round((n - side) / 2) for n in size)
    return image.crop((left, top, left + side, top + side))
