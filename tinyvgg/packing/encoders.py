"""Encoders: blocks of source images to the content of a shard, uint8 pixels or JPEG files.

From: `pack`, which hands out images in order, and buffers as they come free.
To:   `shards`, which writes the content; and sums of pixels, bad and recoded files.

Both decode every image once, strictly. Of a JPEG shard no pixel is kept: the file is stored as it
is, and what is no plain JPEG is bad, or stored as another JPEG under `--recode`.
"""

import errno
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from tinyvgg.errors import DatasetError
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.decode import (
    check_size,
    decode_image,
    decode_plain_jpeg,
    name_kind,
    read_image_size,
)
from tinyvgg.packing.folders import ImageSource, SourceImage, show_path
from tinyvgg.packing.sizes import read_stamped_image
from tinyvgg.packing.trees import Stamp
from tinyvgg.shards.jpeg import JPEG_START, MAX_SCANS, count_scans, decoding, read_plain_size
from tinyvgg.shards.jpeg_shards import JpegFile, write_jpeg_shard
from tinyvgg.shards.manifest import BLOCK_ROWS, AnyFormat, ImageFormat, ShardRecord
from tinyvgg.shards.memory import SMALL_PIXELS
from tinyvgg.shards.store import write_shard

BUFFER_BYTES = 32 * 2**20  # 10 blocks of 64 x 64 images: they stay in the L3 cache
TILE_ROWS, TILE_COLUMNS = 256, 768  # of `sum_channels`
TILE_VALUES = TILE_ROWS * TILE_COLUMNS
JPEG_ROWS = 64  # files of a block
PIXEL_BYTES = 16 * TILE_VALUES  # 3 MiB, of decoded pixels that are summed up at once
KEPT_BYTES = 128 * 2**20  # JPEG files of all blocks under way; what is beyond is read again


@dataclass
class Block:
    """Images of a block as they will be stored, and what was learned on the way.

    Attributes:
        num_images: in it, bad ones included.
        buffer: borrowed, to be given back when the block was written; the pixels of a raw shard are
            in its first rows.
        files: of a JPEG shard.
        sums: int64 [2, 3]: of x and of x * x, per channel, over all pixels.
        num_pixels: behind the sums.
        sizes: (height, width) of its images; two of them if there are more.
        bad_files: and why they cannot be packed.
        recoded: and why they could not be stored as they are.
        stamps: of the files that were read, size and time of one after the other.
        digests: of the files that were read, 64 bits each: CRC-32 and size.
    """

    num_images: int
    buffer: NDArray[np.uint8]
    files: list["StoredFile"] = field(default_factory=list)
    sums: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 3), np.int64))
    num_pixels: int = 0
    sizes: set[tuple[int, int]] = field(default_factory=set)
    bad_files: list[tuple[SourceImage, str]] = field(default_factory=list)
    recoded: list[tuple[SourceImage, str]] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)

    def note_file(self, stamp: Stamp, num_bytes: int, crc32: int) -> None:
        """Note what tells a file from its later self, and from other files."""
        self.stamps += stamp
        self.digests.append(crc32 << 32 | num_bytes & 0xFFFF_FFFF)


class Encoder(Protocol):
    """What `pack` makes of images; safe from several threads.

    Attributes:
        num_rows: images of a block.
        num_buffers: that blocks are encoded into by turns.
    """

    num_rows: int
    num_buffers: int

    def new_buffer(self) -> NDArray[np.uint8]:
        """Return a buffer for one block."""

    def encode(self, rows: list[SourceImage], buffer: NDArray[np.uint8]) -> Block:
        """Read and decode the images of a block."""

    def write(
        self,
        folder: Path,
        split: str,
        index: int,
        blocks: Iterable[Block],
        labels: NDArray[np.int64],
    ) -> ShardRecord:
        """Write a shard from its blocks as they come."""


class RawEncoder:
    """Pixels of one size.

    Args:
        source: that the images are read from.
        image: their size.
        num_threads: that encode at once.
        resize: whether images are scaled to that size.

    Attributes:
        is_plain_only: whether what is no plain JPEG file of at most `SMALL_PIXELS` is bad, and ends
            its block.
        has_plain_images: whether there can be any of those.
    """

    def __init__(
        self, source: ImageSource, image: ImageFormat, num_threads: int, *, resize: bool
    ) -> None:
        self.source, self.image, self.resize = source, image, resize
        self.is_plain_only = False
        self.has_plain_images = not resize and image.height * image.width <= SMALL_PIXELS
        self.num_rows = _count_rows(image.num_bytes, num_threads)
        num_buffers = BUFFER_BYTES // (self.num_rows * image.num_bytes)
        self.num_buffers = max(num_threads + 2, num_buffers)

    def new_buffer(self) -> NDArray[np.uint8]:
        """Return a buffer for one block."""
        return np.empty((self.num_rows, *self.image.size, 3), np.uint8)

    def encode(self, rows: list[SourceImage], buffer: NDArray[np.uint8]) -> Block:
        """Decode images into the first rows of a buffer; rows of bad images hold anything."""
        images = buffer[: len(rows)]
        block = Block(len(rows), buffer, num_pixels=images[..., 0].size)

        for pixels, image in zip(images, rows, strict=True):
            try:
                data, stamp = read_stamped_image(self.source, image)
                block.note_file(stamp, len(data), zlib.crc32(data))
                decode_image(data, pixels, resize=self.resize, is_plain_only=self.is_plain_only)
            except (DatasetError, OSError, MemoryError) as error:
                _note(block, image, error)
                if self.is_plain_only:
                    return block
        block.sums = sum_channels(images)
        return block

    def write(
        self,
        folder: Path,
        split: str,
        index: int,
        blocks: Iterable[Block],
        labels: NDArray[np.int64],
    ) -> ShardRecord:
        """Write a shard from its blocks as they come."""
        shape = (*self.image.size, self.image.channels)
        images = (block.buffer[: block.num_images] for block in blocks)
        return write_shard(folder, split, index, shape, images, labels)


@dataclass(frozen=True)
class StoredFile:
    """A JPEG file of a block; `data` is None where it is read again when it is written."""

    image: SourceImage
    size: tuple[int, int]
    data: bytes | None
    crc32: int


class JpegEncoder:
    """JPEG files, as they are.

    Memory: `KEPT_BYTES` of files over all blocks, 3 MiB of pixels a block, one more file of at most
    `trees.MAX_FILE_BYTES` a thread and a writer, and `decode_memory` for large images. A block that
    a process hands over (`forks`) is there twice meanwhile.

    Args:
        source: that the files are read from.
        num_threads: that encode at once.
        recode: quality of the JPEG that is stored instead of what is no plain one; None: bad.

    Attributes:
        is_plain_only, has_plain_images: as of `RawEncoder`.
    """

    def __init__(self, source: ImageSource, num_threads: int, recode: int | None) -> None:
        self.source, self.recode = source, recode
        self.is_plain_only, self.has_plain_images = False, True
        self.recoding = threading.Lock()  # large images one after the other, for their memory
        self.num_rows = JPEG_ROWS
        self.num_buffers = num_threads + 2
        self.kept_bytes = KEPT_BYTES // self.num_buffers

    def new_buffer(self) -> NDArray[np.uint8]:
        """Return a buffer for the decoded pixels of a block."""
        return np.empty(PIXEL_BYTES, np.uint8)

    def encode(self, rows: list[SourceImage], buffer: NDArray[np.uint8]) -> Block:
        """Read and decode files; of bad ones nothing is stored."""
        block = Block(len(rows), buffer)
        pixels = _PixelSums(buffer, block)
        kept_bytes = 0

        for image in rows:
            try:
                file, stamp = read_stamped_image(self.source, image)
                data, size, reason = self._make_jpeg(file)
                pixels.add(data, size)
            except (DatasetError, OSError, MemoryError) as error:
                _note(block, image, error)
                if self.is_plain_only:
                    return block
                continue
            if reason:
                block.recoded.append((image, reason))
            if len(block.sizes) < 2:
                block.sizes.add(size)
            is_kept = kept_bytes + len(data) <= self.kept_bytes
            kept_bytes += len(data) if is_kept else 0
            crc32 = zlib.crc32(data)
            block.files.append(StoredFile(image, size, data if is_kept else None, crc32))
            block.note_file(stamp, len(file), zlib.crc32(file) if reason else crc32)
        pixels.close()
        return block

    def write(
        self,
        folder: Path,
        split: str,
        index: int,
        blocks: Iterable[Block],
        labels: NDArray[np.int64],
    ) -> ShardRecord:
        """Write a shard from its blocks as they come."""

        def list_files() -> Iterator[JpegFile]:
            for block in blocks:
                for file in block.files:
                    yield JpegFile(self._load(file), file.size)

        return write_jpeg_shard(folder, split, index, list_files(), labels)

    def _load(self, file: StoredFile) -> bytes:
        if file.data is not None:
            return file.data
        try:
            data, _, _ = self._make_jpeg(read_stamped_image(self.source, file.image)[0])
        except OSError as error:
            error.filename = error.filename or show_path(file.image.path)
            raise
        if zlib.crc32(data) != file.crc32:
            raise DatasetError(
                f"{show_path(file.image.path)}: changed while it was packed; pack again"
            )
        return data

    def _make_jpeg(self, data: bytes) -> tuple[bytes, tuple[int, int], str]:
        """Return a plain JPEG, its size, and why it is another file than that of the source.

        Raises:
            DatasetError: there is none that can be stored.
        """
        reason = ""
        num_scans = count_scans(data) if data.startswith(JPEG_START) else 0
        if num_scans > MAX_SCANS:  # which Pillow would decode, too
            raise DatasetError(
                f"{num_scans:,} scans, expected at most {MAX_SCANS}; store it with fewer"
            )
        size = read_plain_size(data)
        if self.is_plain_only and (size is None or size[0] * size[1] > SMALL_PIXELS):
            raise DatasetError("no small plain JPEG file")
        if size is None:
            size = read_image_size(data)  # raises if it is no image
            reason = name_kind(data)
            if data.startswith(JPEG_START) and reason.endswith((", RGB", ", L")):
                reason += f" ({_name_obstacle(data)})"
            if self.recode is None:
                raise DatasetError(
                    f"{reason}, expected a JPEG in YCbCr or gray; convert it, or store it as "
                    "another JPEG with --recode 95"
                )
            with self.recoding if size[0] * size[1] > SMALL_PIXELS else nullcontext():
                pixels = np.empty((*size, 3), np.uint8)
                decode_image(data, pixels)
                data = simplejpeg.encode_jpeg(pixels, self.recode, colorsubsampling="420")
                del pixels
        check_size(*size[::-1])
        return data, size, reason


def _name_obstacle(data: bytes) -> str:
    """Return what libjpeg finds in the header of a JPEG that is no plain one."""
    try:
        return f"stored as {simplejpeg.decode_jpeg_header(data)[2]}"
    except ValueError as error:
        return str(error)
    except KeyError:
        return "subsampling 4:4:1"


def make_encoder(
    config: PackConfig, source: ImageSource, image: AnyFormat, num_threads: int
) -> RawEncoder | JpegEncoder:
    """Return what makes shards of images."""
    if isinstance(image, ImageFormat):
        return RawEncoder(source, image, num_threads, resize=config.resize is not None)
    return JpegEncoder(source, num_threads, config.recode)


class _PixelSums:
    """Adds up the pixels of JPEG files, many at once: a sum of one small image is slow."""

    def __init__(self, buffer: NDArray[np.uint8], block: Block) -> None:
        self.buffer, self.block, self.used = buffer, block, 0

    def add(self, data: bytes, size: tuple[int, int]) -> None:
        """Decode a file into the buffer, or into memory of its own if it is too large."""
        num_bytes = 3 * size[0] * size[1]
        if self.used + num_bytes > len(self.buffer):
            self.close()
        num_pixels = size[0] * size[1]
        with decoding(num_pixels):
            is_large = num_bytes > len(self.buffer)
            place = np.empty(num_bytes, np.uint8) if is_large else self.buffer[self.used :]
            decode_plain_jpeg(data, place[:num_bytes].reshape(*size, 3))
            if is_large:
                self.block.sums += sum_channels(place)
            else:
                self.used += num_bytes
            del place
        self.block.num_pixels += num_pixels

    def close(self) -> None:
        """Add up what the buffer holds."""
        self.block.sums += sum_channels(self.buffer[: self.used])
        self.used = 0


def _note(block: Block, image: SourceImage, error: Exception) -> None:
    """Note an image that is bad; raise what is the machine's fault, with the image's name.

    Raises:
        OSError: the machine could not read or decode the image.
    """
    if isinstance(error, DatasetError):
        block.bad_files.append((image, str(error)))
        return
    if isinstance(error, OSError):
        error.filename = error.filename or show_path(image.path)
        raise error
    raise OSError(errno.ENOMEM, "out of memory", show_path(image.path)) from error


def _count_rows(image_bytes: int, num_decoders: int) -> int:
    """Return the images of a buffer, a power of two up to 256, so that parts make up blocks."""
    num_rows = BLOCK_ROWS
    while num_rows > 1 and num_rows * image_bytes * (num_decoders + 2) > BUFFER_BYTES:
        num_rows //= 2
    return num_rows


def sum_channels(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return exact sums of pixel values and of their squares.

    Args:
        images: uint8 [n, H, W, 3], or any other shape of which the channel varies fastest.

    Returns:
        int64 [2, 3]: sums of x, then of x * x, per channel.

    The images are cut into tiles of 256 rows of 768 values (16 images of 64 x 64). A column of
    values is at most 256 * 255 = 65,280 < 2^16, so uint16 adds it up; one of squares is at most
    256 * 255^2 = 16,646,400 < 2^24, so float32 does, exactly and in any order: 7 us an image,
    where float32 alone takes 14 and numpy's integer reductions 15, and without BLAS, which would
    start threads of its own among the decoders.
    """
    flat = images.reshape(-1)
    end = flat.size - flat.size % TILE_VALUES
    columns = np.zeros((2, TILE_COLUMNS), np.int64)
    values = np.empty((TILE_ROWS, TILE_COLUMNS), np.uint16)  # 384 KiB: stays in the cache
    squares = np.empty(values.shape, np.float32)
    for start in range(0, end, TILE_VALUES):
        values[:] = flat[start : start + TILE_VALUES].reshape(values.shape)
        columns[0] += values.sum(axis=0, dtype=np.uint16)
        np.multiply(values, values, out=values)
        squares[:] = values
        columns[1] += squares.sum(axis=0).astype(np.int64)
    sums: NDArray[np.int64] = columns.reshape(2, -1, 3).sum(axis=1)
    rest = flat[end:].reshape(-1, 3).astype(np.int64)
    sums[0] += rest.sum(axis=0)
    sums[1] += (rest * rest).sum(axis=0)
    return sums
