"""NPY files of shards: written so that they survive a power cut, and checked without being parsed.

From: `store` and `jpeg_shards`, which know shape and type of every file.
To:   the same. A header is a function of shape and dtype, so it is compared byte for byte: any
      flipped byte, other version, Fortran order or pickle is found.
"""

import hashlib
import io
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyvgg.errors import ShardError, naming
from tinyvgg.shards.manifest import HEAD_BYTES, MANIFEST_NAME


def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """Return the NPY version 1 header of a C-order array, as numpy writes it.

    Args:
        shape: of the array.
        dtype: numpy's `descr`, "|u1" for uint8 and "<i8" for int64.
    """
    buffer = io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


class WrittenFile(NamedTuple):
    """Size of a file and its checksums: of all, and of the first 4 KiB."""

    num_bytes: int
    sha256: str
    head_crc32: int


def write_npy(
    path: Path, header: bytes, blocks: Iterable[NDArray[np.uint8]], block_bytes: int
) -> WrittenFile:
    """Write header and blocks, the latter `block_bytes` in all, durably.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    digest = hashlib.sha256(header)
    head = header
    with naming(path, len(header) + block_bytes), path.open("wb") as file:
        file.write(header)
        for block in blocks:
            if len(head) < HEAD_BYTES:
                head += block.reshape(-1)[: HEAD_BYTES - len(head)].tobytes()
            digest.update(block.data)
            file.write(block.data)
        file.flush()
        os.fsync(file.fileno())
        return WrittenFile(file.tell(), digest.hexdigest(), zlib.crc32(head))


def check_npy(
    path: Path, header: bytes, expected: int, given_bytes: int, head_crc32: int | None
) -> int:
    """Return the length of the header.

    Raises:
        ShardError: the file has another header, size or beginning, or the manifest another size.
    """
    if given_bytes != expected:
        raise ShardError(
            f"{path.with_name(MANIFEST_NAME)}: {path.name} is given {given_bytes:,} bytes, its "
            f"shape needs {expected:,}; pack the images again"
        )
    try:
        num_bytes = path.stat().st_size
        if num_bytes != expected:
            raise ShardError(
                f"{path}: {num_bytes:,} bytes, manifest says {expected:,}; "
                "the copy was cut short or is another file's, copy or pack it again"
            )
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; copy or pack it again") from error
    if not head.startswith(header):
        raise ShardError(f"{path}: its npy header is damaged; copy or pack it again")
    if head_crc32 not in (None, zlib.crc32(head)):
        raise ShardError(
            f"{path}: its first {HEAD_BYTES:,} bytes are not those that were packed: damaged, or "
            "another shard's file; copy or pack it again"
        )
    return len(header)
