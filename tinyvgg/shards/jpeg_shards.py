"""Shards of JPEG files: format 2 on disk.

    train-00000.jpeg.npy     uint8 [bytes]: untouched JPEG files, one after the other
    train-00000.offsets.npy  int64 [n + 1]: where each file begins; the last one, where it ends
    train-00000.sizes.npy    int32 [n, 2]: height and width of each

From: `pack`, which hands over files that it has decoded.
To:   `store`, which maps the files and reads offsets and sizes. These decide what memory is read,
      so their digests are compared whenever a shard is opened.
"""

import hashlib
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyvgg.errors import ShardError, naming
from tinyvgg.shards.jpeg import MAX_PIXELS, MAX_SIDE
from tinyvgg.shards.manifest import (
    BLOCK_ROWS,
    HEAD_BYTES,
    HeadChecksums,
    ShardRecord,
    shard_file_names,
)
from tinyvgg.shards.npy import WrittenFile, check_npy, npy_header, write_npy


class JpegFile(NamedTuple):
    """A JPEG file and the (height, width) of its image."""

    data: bytes
    size: tuple[int, int]


def write_jpeg_shard(
    folder: Path, split: str, index: int, files: Iterable[JpegFile], labels: NDArray[np.int64]
) -> ShardRecord:
    """Write one shard of JPEG files so that it survives a power cut; return its manifest entry.

    Args:
        folder: where the four files go.
        split: "train" or "val".
        index: number of the shard in its split, from 0.
        files: as many as labels.
        labels: int64 [n].

    Returns:
        What the manifest says of it; all files are on disk.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    images_name, labels_name = shard_file_names(split, index, is_jpeg=True)
    block_crc32: list[int] = []
    lengths: list[int] = []
    sizes: list[tuple[int, int]] = []

    def checked_files() -> Iterable[bytes]:
        for row, (data, size) in enumerate(files):
            if row % BLOCK_ROWS == 0:
                block_crc32.append(0)
            block_crc32[-1] = zlib.crc32(data, block_crc32[-1])
            lengths.append(len(data))
            sizes.append(size)
            yield data

    images = _write_flat_npy(folder / images_name, checked_files())
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    record = ShardRecord(
        images=images_name,
        labels=labels_name,
        num_images=len(labels),
        image_bytes=images.num_bytes,
        label_bytes=0,
        images_sha256=images.sha256,
        labels_sha256=images.sha256,
        block_crc32=block_crc32,
    )
    written = {
        name: _write_array(folder / file, array)
        for name, file, array in (
            ("labels", labels_name, labels.astype("<i8")),
            ("offsets", record.offsets, offsets.astype("<i8")),
            ("sizes", record.sizes, np.array(sizes, "<i4").reshape(-1, 2)),
        )
    }
    return record.model_copy(
        update={
            "label_bytes": written["labels"].num_bytes,
            **{f"{name}_sha256": file.sha256 for name, file in written.items()},
            "head_crc32": HeadChecksums(
                images=images.head_crc32, labels=written["labels"].head_crc32
            ),
        }
    )


def _write_array(path: Path, array: NDArray[np.int32 | np.int64]) -> WrittenFile:
    header = npy_header(array.shape, array.dtype.str)
    return write_npy(path, header, [array.reshape(-1).view(np.uint8)], array.nbytes)


def _write_flat_npy(path: Path, parts: Iterable[bytes]) -> WrittenFile:
    """Write uint8 [bytes] durably; how many becomes known at the end."""
    with naming(path, 0), path.open("w+b") as file:
        num_header_bytes = len(npy_header((0,), "|u1"))  # numpy leaves room for 21 digits
        file.write(bytes(num_header_bytes))
        for part in parts:
            file.write(part)
        num_bytes = file.tell()
        file.seek(0)
        file.write(npy_header((num_bytes - num_header_bytes,), "|u1"))
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        head_crc32 = zlib.crc32(file.read(HEAD_BYTES))
        file.seek(0)
        return WrittenFile(num_bytes, hashlib.file_digest(file, "sha256").hexdigest(), head_crc32)


def check_jpeg_bytes(folder: Path, record: ShardRecord) -> int:
    """Check size and header of a shard's JPEG bytes, and return where they begin.

    Raises:
        ShardError: the file is not what the manifest says.
    """
    num_header_bytes = len(npy_header((0,), "|u1"))
    header = npy_header((max(record.image_bytes - num_header_bytes, 0),), "|u1")
    head_crc32 = None if record.head_crc32 is None else record.head_crc32.images
    num_bytes = max(record.image_bytes, num_header_bytes)
    return check_npy(folder / record.images, header, num_bytes, record.image_bytes, head_crc32)


def read_offsets(folder: Path, record: ShardRecord) -> NDArray[np.int64]:
    """Return where the files of a shard begin, and where the last one ends, int64 [n + 1].

    Raises:
        ShardError: the offsets are not those that were packed.
    """
    path = folder / record.offsets
    offsets = _read_array(path, (record.num_images + 1,), "<i8", record.offsets_sha256)
    num_bytes = record.image_bytes - len(npy_header((0,), "|u1"))
    if offsets[0] or offsets[-1] != num_bytes or (offsets[1:] <= offsets[:-1]).any():
        raise ShardError(f"{path}: its offsets are no files of {num_bytes:,} bytes; pack it again")
    return offsets.astype(np.int64, copy=False)


def read_sizes(folder: Path, record: ShardRecord) -> NDArray[np.int32]:
    """Return height and width of the images of a shard, int32 [n, 2].

    Raises:
        ShardError: the sizes are not those that were packed.
    """
    path = folder / record.sizes
    sizes = _read_array(path, (record.num_images, 2), "<i4", record.sizes_sha256)
    most = int(sizes.astype(np.int64).prod(axis=1).max())
    if sizes.min() < 1 or sizes.max() > MAX_SIDE or most > MAX_PIXELS:
        raise ShardError(
            f"{path}: sides of {sizes.min():,} to {sizes.max():,} and up to {most:,} pixels, "
            f"expected sides of 1 to {MAX_SIDE:,} and {MAX_PIXELS:,} pixels; pack it again"
        )
    return sizes.astype(np.int32, copy=False)


def _read_array(
    path: Path, shape: tuple[int, ...], dtype: str, sha256: str | None
) -> NDArray[np.int32 | np.int64]:
    header = npy_header(shape, dtype)
    num_bytes = len(header) + int(np.prod(shape)) * np.dtype(dtype).itemsize
    offset = check_npy(path, header, num_bytes, num_bytes, None)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ShardError(f"{path}: its bytes are not those that were packed; copy or pack it again")
    return np.frombuffer(data, dtype, offset=offset).reshape(shape)
