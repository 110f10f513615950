"""Decode: one encoded image to uint8 [H, W, 3] RGB, the same pixels as Pillow's.

From: `folders`, which gives the bytes of a file.
To:   `pack`, which gives the row of a shard to fill.

A plain JPEG goes through simplejpeg (libjpeg-turbo): 1.4 times torchvision and 5 times Pillow
on two threads, and it lets go of the GIL; a test holds its pixels equal to Pillow's. Anything
else is Pillow's: what Pillow reads is packed, what it does not read is bad, whatever the suffix
says. EXIF rotation is ignored, as in ImageFolder.

Promises, whatever the bytes are:
  * only the decoders of `FORMATS` see them. Pillow knows some forty more, one of which starts
    Ghostscript on what looks like PostScript; no decoder here starts a program;
  * damage is never forgiven. Pillow overlooks what libjpeg warns of (a bad code, bytes too many
    or too few) and fills the rest with gray; so a JPEG with a warning is bad, though Pillow
    would read it, and so is a TIFF with an error (`tiff_errors`). Only of a JPEG whose
    subsampling TurboJPEG has no name for (3 to 1, say) are no warnings known: there Pillow's
    word has to do;
  * the size stands in the header, and over `MAX_PIXELS` or `MAX_SIDE` an image is refused before
    memory is taken for it. All threads together take at most what `decode_memory` has, or what one
    image alone needs, `WORKING_BYTES` a pixel: under 2.2 GB (0.9 GB were measured);
  * a file that cannot be decoded is a `DatasetError`, whatever its decoder raised. Only what the
    machine lacks (memory, open files) stays an error of the machine.
"""

import errno
import io
import logging
from contextlib import suppress
from functools import cache
from importlib import import_module

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from tinyvgg.errors import DatasetError
from tinyvgg.packing.tiff_errors import tiff_errors_raised
from tinyvgg.shards.jpeg import (
    JPEG_START,
    MAX_PIXELS,
    MAX_SIDE,
    decode_jpeg,
    decode_memory,
    decoding,
    read_plain_size,
)

# Pillow's names, and its modules, which are imported for the first image that is no plain JPEG:
# asked for a decoder that is not there, Pillow would import all it has.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF")
PLUGINS = ("Jpeg", "Mpo", "Png", "Bmp", "Gif", "Ppm", "Tiff", "WebP", "Avif")  # Mpo: two JPEGs
NEEDED_SIZE = f"expected 1 to {MAX_PIXELS:,}, {MAX_SIDE:,} a side; scale it down or drop it"
WORKING_BYTES = 24  # a pixel, at the worst: an animated WebP's canvases, then RGBA, RGB, an array
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of a TIFF
UNNAMED_SUBSAMPLING = "Could not determine subsampling"


logging.getLogger("PIL").addHandler(logging.NullHandler())  # it logs odd TIFF tags, to stderr


def read_image_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) in pixels, from the header alone.

    Raises:
        DatasetError: not an image, or one that is too large.
    """
    if data.startswith(JPEG_START):
        with suppress(ValueError, KeyError):
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            check_size(width, height)
            return height, width
    with _open_image(data) as image:
        return image.height, image.width


def decode_image(
    data: bytes, pixels: NDArray[np.uint8], *, resize: bool = False, is_plain_only: bool = False
) -> None:
    """Decode an image into `pixels`.

    Args:
        data: the bytes of a JPEG, PNG, BMP, WebP, AVIF, GIF (its first frame), TIFF or PNM file.
        pixels: uint8 [H, W, 3], C order, filled with RGB.
        resize: scale the shorter side to H = W and cut out the center, as torchvision's
            Resize and CenterCrop do on a Pillow image.
        is_plain_only: refuse what is no plain JPEG of the size of `pixels`.

    Raises:
        DatasetError: not an image, damaged, too large, or of another size than H x W. The text
            says what was found; the caller knows the path.
        OSError, MemoryError: the machine cannot decode anything now.
    """
    height, width, _ = pixels.shape
    found = read_plain_size(data)
    if found == (height, width) and not resize:
        with decoding(height * width):
            decode_plain_jpeg(data, pixels)
        return
    if is_plain_only:
        raise DatasetError(f"no plain JPEG of {width}x{height} pixels")
    with _open_image(data) as image:
        if not resize and (image.height, image.width) != (height, width):
            raise DatasetError(
                f"{image.width}x{image.height} pixels, expected {width}x{height}; "
                "drop it, or pack with --resize"
            )
        with decode_memory.taken(_count_pixels(image), WORKING_BYTES):
            with Refusing("cannot be decoded"):
                if found is not None:
                    rgb = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB"))
                else:
                    if data.startswith(JPEG_START):
                        _refuse_damaged_jpeg(data)
                    with tiff_errors_raised():
                        rgb = image.convert("RGB")
            pixels[:] = np.asarray(cut_square(rgb, height) if resize else rgb)


def decode_plain_jpeg(data: bytes, pixels: NDArray[np.uint8]) -> None:
    """Decode a JPEG whose size `read_plain_size` gave into `pixels`, uint8 [H, W, 3] of that size.

    To be called inside `decoding`.

    Raises:
        DatasetError: it is damaged.
        MemoryError: the machine cannot decode it now.
    """
    with Refusing("cannot be decoded"):
        decode_jpeg(data, pixels)


def name_kind(data: bytes) -> str:
    """Return format and color mode of an image, "PNG image, RGBA", as Pillow names them.

    Raises:
        DatasetError: it is none.
    """
    with _open_image(data) as image:
        return f"{image.format} image, {image.mode}"


def _refuse_damaged_jpeg(data: bytes) -> None:
    """Raise ValueError if libjpeg warns of a JPEG; decodes it, since Pillow does not tell."""
    try:
        color_space = simplejpeg.decode_jpeg_header(data)[2]
    except KeyError:
        color_space = ""
    except ValueError as error:
        if UNNAMED_SUBSAMPLING in str(error):
            return
        raise
    simplejpeg.decode_jpeg(data, "CMYK" if color_space in ("CMYK", "YCCK") else "RGB")


def _open_image(data: bytes) -> Image.Image:
    """Read the header of an image, which must be of a known format and not too large."""
    if not data:
        raise DatasetError("0 bytes, expected an image")
    with Refusing(f"{len(data):,} bytes that are not an image", is_reason_told=False):
        _import_plugins()
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError:  # twice as many
            raise DatasetError(f"over {MAX_PIXELS:,} pixels, {NEEDED_SIZE}") from None
    check_size(image.width, image.height)
    if _count_pixels(image) > MAX_PIXELS:
        raise DatasetError(f"tiles of {_count_pixels(image):,} pixels, {NEEDED_SIZE}")
    return image


def check_size(width: int, height: int) -> None:
    """Refuse an image that is too large.

    Raises:
        DatasetError: it is.
    """
    if not 0 < width * height <= MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise DatasetError(f"{width:,}x{height:,} pixels, {NEEDED_SIZE}")


@cache
def _import_plugins() -> None:
    try:
        for name in PLUGINS:
            import_module(f"PIL.{name}ImagePlugin")
    except ImportError as error:  # no files left to open, say: the images are not to blame
        raise OSError(errno.EIO, f"Pillow's decoders cannot be loaded ({error})") from error


def _count_pixels(image: Image.Image) -> int:
    """Return the pixels that memory is taken for: a TIFF's tile may be larger than the TIFF."""
    tags = getattr(image, "tag_v2", {})
    sides = [tags.get(number) for number in (TILE_WIDTH, TILE_LENGTH)]
    width, height = (side if isinstance(side, int) else 0 for side in sides)
    return max(image.width * image.height, width * height)


class Refusing:
    """Turns what a decoder raises into a `DatasetError`, save what is the machine's fault.

    A class, as two generators would take a tenth of what decoding a 64 x 64 JPEG does.
    """

    __slots__ = ("is_reason_told", "what")

    def __init__(self, what: str, *, is_reason_told: bool = True) -> None:
        self.what = what
        self.is_reason_told = is_reason_told

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, (DatasetError, MemoryError)):
            return
        if isinstance(error, OSError) and error.errno is not None:
            return  # of the system; the decoders' own have no number
        reason = f" ({error or type(error).__name__})" if self.is_reason_told else ""
        raise DatasetError(self.what + reason) from error


def cut_square(image: Image.Image, side: int) -> Image.Image:
    """Scale the shorter side of an RGB image to `side` and cut out the center square."""
    size = [int(side * n / min(image.size)) for n in image.size]  # rounded as torchvision does
    if size[0] * size[1] > MAX_PIXELS:  # a strip of 1 x 65,535 pixels
        raise DatasetError(
            f"scaled to {size[0]:,}x{size[1]:,} pixels, expected at most {MAX_PIXELS:,}; drop it"
        )
    image = image.resize((size[0], size[1]), Image.Resampling.BILINEAR)
    left, top = (round((n - side) / 2) for n in size)
    return image.crop((left, top, left + side, top + side))
