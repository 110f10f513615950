"""Verify: every byte of a packed folder compared with its manifest.

From: `store`, which knows the files, and checks what opening checks.
To:   a line for each damage, which names the images.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinyvgg.errors import ShardError
from tinyvgg.shards.jpeg_shards import read_offsets, read_sizes
from tinyvgg.shards.manifest import (
    BLOCK_ROWS,
    MANIFEST_NAME,
    SPLITS,
    ImageFormat,
    Manifest,
    ShardRecord,
)
from tinyvgg.shards.store import (
    check_images,
    check_labels,
    is_system_file,
    open_shard,
    read_manifest,
)

READ_BYTES = 16 * 2**20  # at once: a block of 256 images of 12 megapixels has 9 GB


def verify_dataset(
    folder: str | os.PathLike[str], advance: Callable[[int], Any] = lambda num_images: None
) -> list[str]:
    """Compare every byte of a packed folder with its manifest.

    Args:
        folder: what `tinyvgg pack` wrote.
        advance: called with the number of images checked, shard by shard.

    Returns:
        One line per damaged, missing or surplus file, naming the damaged image range; empty if
        all is well. Hidden files and those of file managers are nobody's damage.

    Raises:
        ShardError: the manifest itself cannot be used.
    """
    folder = Path(folder)
    manifest, _ = read_manifest(folder)
    damages: list[str] = []
    expected_names = {MANIFEST_NAME}
    for split in SPLITS:
        first_row = 0
        for record in manifest.split(split).shards:
            expected_names |= {*record.file_names}
            damages.extend(_verify_shard(folder, manifest, record, first_row))
            first_row += record.num_images
            advance(record.num_images)
    surplus = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name not in expected_names and not is_system_file(entry.name)
    )
    damages.extend(f"{folder / name}: not in the manifest; remove it" for name in surplus)
    return damages


def _verify_shard(
    folder: Path, manifest: Manifest, record: ShardRecord, first_row: int
) -> Iterator[str]:
    """Yield a line for each damage of one shard whose first image is `first_row` of the split."""
    whole = record.model_copy(update={"head_crc32": None})  # a block's checksum says more
    damages = [
        *_verify_images(folder, manifest, whole, first_row),
        *_verify_labels(folder, whole, first_row),
        *_verify_sizes(folder, whole),
    ]
    yield from damages
    if not damages:
        try:
            open_shard(folder, manifest, record)
        except ShardError as error:  # labels beyond the classes, another head_crc32
            yield str(error)


def _verify_images(
    folder: Path, manifest: Manifest, record: ShardRecord, first_row: int
) -> Iterator[str]:
    path = folder / record.images
    try:
        header_bytes = check_images(folder, manifest.image, record)
        block_bytes = _list_block_bytes(folder, manifest, record)
        sha256, block_crc32 = _read_checksums(path, header_bytes, block_bytes)
    except ShardError as error:
        yield str(error)
        return
    bad_blocks = [
        block
        for block, (found, given) in enumerate(zip(block_crc32, record.block_crc32, strict=False))
        if found != given
    ]
    if (sha256 == record.images_sha256) != (not bad_blocks):
        yield (
            f"{path}: its SHA-256 and its CRC-32 in the manifest contradict each other; "
            "the manifest is damaged, pack the images again"
        )
        return
    for block in bad_blocks:
        last = min((block + 1) * BLOCK_ROWS, record.num_images) - 1
        yield (
            f"{path}: images {first_row + block * BLOCK_ROWS:,} to "
            f"{first_row + last:,} of the split are damaged; copy or pack them again"
        )


def _verify_labels(folder: Path, record: ShardRecord, first_row: int) -> Iterator[str]:
    path = folder / record.labels
    try:
        header_bytes = check_labels(folder, record)
        sha256, _ = _read_checksums(path, header_bytes, [record.num_images * 8])
    except ShardError as error:
        yield str(error)
        return
    if sha256 != record.labels_sha256:
        yield (
            f"{path}: labels of images {first_row:,} to {first_row + record.num_images - 1:,} of "
            "the split are damaged; copy or pack them again"
        )


def _verify_sizes(folder: Path, record: ShardRecord) -> Iterator[str]:
    try:
        if record.is_jpeg:
            read_sizes(folder, record)
    except ShardError as error:
        yield str(error)


def _list_block_bytes(folder: Path, manifest: Manifest, record: ShardRecord) -> list[int]:
    """Return the bytes of each block of 256 images.

    Raises:
        ShardError: the offsets of JPEG files are damaged, so no block is known.
    """
    firsts = np.append(np.arange(0, record.num_images, BLOCK_ROWS), record.num_images)
    if isinstance(manifest.image, ImageFormat):
        starts = firsts * manifest.image.num_bytes
    else:
        starts = read_offsets(folder, record)[firsts]
    block_bytes: list[int] = np.diff(starts).tolist()
    return block_bytes


def _read_checksums(path: Path, header_bytes: int, block_bytes: list[int]) -> tuple[str, list[int]]:
    """Return the SHA-256 of a file, and the CRC-32 of each block behind its header."""
    block_crc32 = []
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256(file.read(header_bytes))
            for left in block_bytes:
                block_crc32.append(0)
                while part := file.read(min(left, READ_BYTES)):
                    digest.update(part)
                    block_crc32[-1] = zlib.crc32(part, block_crc32[-1])
                    left -= len(part)
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; copy or pack it again") from error
    return digest.hexdigest(), block_crc32
