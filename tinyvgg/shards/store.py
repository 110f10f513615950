"""Shards: a packed dataset on disk, and the only module that knows its file names.

    manifest.json           read first, written last; a folder without one is not a dataset
    train-00000.npy         uint8 [n, H, W, 3], RGB, NPY version 1, C order, one image per row
    train-00000.labels.npy  int64 [n]; row i names the class of image i of the shard

or, in format 2, JPEG files instead of images; see `jpeg_shards`.

From: `pack`, which hands over decoded images in sorted path order.
To:   `loading`, which gets a data set from `open_dataset` and maps the rest.

Promises to the next stage, checked when the folder is opened, in time proportional to the
number of shards: every file has exactly the size and exactly the header that the manifest
implies, and the first 4 KiB that were packed, so that exchanged shards are found unless both
begin alike; labels, which opening reads, are those that were packed.

Channels come last on disk on purpose. A batch read as [B, H, W, C] and viewed as [B, C, H, W]
already has channels-last strides, so the first convolution takes it without a copy.
"""

import hashlib
import math
import operator
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from tinyvgg.durable import replace_file
from tinyvgg.errors import ShardError
from tinyvgg.regular import read_regular_file
from tinyvgg.shards.jpeg import decode_jpeg, decoding
from tinyvgg.shards.jpeg_shards import check_jpeg_bytes, read_offsets, read_sizes
from tinyvgg.shards.manifest import (
    BLOCK_ROWS,
    MANIFEST_NAME,
    SPLITS,
    AnyFormat,
    HeadChecksums,
    ImageFormat,
    JpegFormat,
    Manifest,
    ShardRecord,
    SplitRecord,
    parse_manifest,
    render_manifest,
    seal_manifest,
    shard_file_names,
)
from tinyvgg.shards.npy import check_npy, npy_header, write_npy

MANIFEST_MAX_BYTES = 256 * 2**20  # a manifest for 10^9 images is smaller; more is not one


def is_system_file(name: str) -> bool:
    """Tell whether a file manager or a file system put a file there: no part of a data set."""
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


def write_shard(
    folder: Path,
    split: str,
    index: int,
    image_shape: tuple[int, int, int],
    blocks: Iterable[NDArray[np.uint8]],
    labels: NDArray[np.int64],
) -> ShardRecord:
    """Write one shard so that it survives a power cut, and return its manifest entry.

    Args:
        folder: where the two files go.
        split: "train" or "val".
        index: number of the shard in its split, from 0.
        image_shape: (H, W, 3).
        blocks: the images, uint8 [k, H, W, 3], C order, with k a divisor of 256, the last one
            possibly shorter.
        labels: int64 [n].

    Returns:
        What the manifest says of it; both files are on disk.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    images_name, labels_name = shard_file_names(split, index)
    block_crc32: list[int] = []

    def checked_blocks() -> Iterator[NDArray[np.uint8]]:
        num_rows = 0
        for block in blocks:
            if num_rows % BLOCK_ROWS == 0:
                block_crc32.append(0)
            block_crc32[-1] = zlib.crc32(block.data, block_crc32[-1])
            num_rows += len(block)
            yield block

    num_images = len(labels)
    header = npy_header((num_images, *image_shape), "|u1")
    num_bytes = num_images * math.prod(image_shape)
    images = write_npy(folder / images_name, header, checked_blocks(), num_bytes)
    header = npy_header((num_images,), "<i8")
    labels_block = labels.astype("<i8").view(np.uint8)
    written = write_npy(folder / labels_name, header, [labels_block], labels_block.nbytes)
    return ShardRecord(
        images=images_name,
        labels=labels_name,
        num_images=num_images,
        image_bytes=images.num_bytes,
        label_bytes=written.num_bytes,
        images_sha256=images.sha256,
        labels_sha256=written.sha256,
        block_crc32=block_crc32,
        head_crc32=HeadChecksums(images=images.head_crc32, labels=written.head_crc32),
    )


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Seal a manifest, write `manifest.json` durably, which makes the folder a dataset; return it.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    sealed = seal_manifest(manifest)
    replace_file(folder / MANIFEST_NAME, render_manifest(sealed))
    return sealed


@dataclass(frozen=True)
class Shard:
    """One opened shard: mapped images and its labels.

    Attributes:
        images: uint8 [n, H, W, 3], mapped read-only; pages are shared by all processes. Of JPEG
            files uint8 [bytes].
        labels: int64 [n], in memory.
        offsets: of JPEG files, where in `images` each begins, int64 [n + 1].
        sizes: of JPEG files, height and width of each, int32 [n, 2].
    """

    record: ShardRecord
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    offsets: NDArray[np.int64] | None = None
    sizes: NDArray[np.int32] | None = None

    def view_row(self, row: int) -> NDArray[np.uint8]:
        """Return a row as it is stored, mapped: uint8 [H, W, 3], or a JPEG file, uint8 [bytes]."""
        if self.offsets is None:
            image: NDArray[np.uint8] = self.images[row]
            return image
        return self.images[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def read_image(self, row: int) -> NDArray[np.uint8]:
        """Return a copy of an image, uint8 [H, W, 3], RGB.

        Raises:
            ShardError: the JPEG file is damaged.
        """
        if self.sizes is None:
            return self.view_row(row).copy()
        pixels = np.empty((*self.sizes[row], 3), np.uint8)
        try:
            with decoding(pixels.size // 3):
                decode_jpeg(self.view_row(row).data, pixels)
        except ValueError as error:
            raise ShardError(
                f"{self.record.images}: image {row:,} of the shard cannot be decoded ({error}); "
                "run 'tinyvgg verify'"
            ) from error
        return pixels


@dataclass(frozen=True)
class Split:
    """One split of an opened dataset. Pickled, copied or sent to a process it is opened again.

    It is a map-style dataset, too: `len(split)`, `split[i]`, torch's `DataLoader(split)`.

    Attributes:
        folder: of the dataset.
        manifest_sha256: of the manifest's bytes.
        name: "train" or "val".
        record: its manifest entry.
        shards: its shards in order; row r of the split is row r mod shard_size of
            shard r // shard_size.
        labels: int64 [num_images].
    """

    folder: Path
    manifest_sha256: str
    name: str
    record: SplitRecord
    shards: list[Shard]
    labels: NDArray[np.int64]

    def __repr__(self) -> str:
        """Return one line: where it is, which one, images."""
        return f"<Split {self.name!r} of {str(self.folder)!r}: {self.num_images:,} images>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as a path: neither pixels nor addresses of this process are of use elsewhere."""
        return _reopen_split, (self.folder.absolute(), self.manifest_sha256, self.name)

    @property
    def num_images(self) -> int:
        """Images in the split."""
        return self.record.num_images

    @property
    def shard_size(self) -> int:
        """Images in every shard but the last."""
        return self.shards[0].record.num_images if self.shards else 1

    @property
    def is_jpeg(self) -> bool:
        """Whether its rows are JPEG files."""
        return bool(self.shards) and self.shards[0].offsets is not None

    @cached_property
    def row_addresses(self) -> NDArray[np.int64]:
        """Memory address of every row, int64 [num_images]; valid while the split is referenced."""
        addresses = [
            shard.images.ctypes.data
            + (
                np.arange(len(shard.images)) * shard.images.strides[0]
                if shard.offsets is None
                else shard.offsets[:-1]
            )
            for shard in self.shards
        ]
        return np.concatenate(addresses) if addresses else np.zeros(0, np.int64)

    @cached_property
    def row_bytes(self) -> NDArray[np.int64]:
        """Bytes of every row as it is stored, int64 [num_images]."""
        num_bytes = [
            np.full(len(shard.images), shard.images.strides[0])
            if shard.offsets is None
            else np.diff(shard.offsets)
            for shard in self.shards
        ]
        return np.concatenate(num_bytes) if num_bytes else np.zeros(0, np.int64)

    @property
    def mapped_bytes(self) -> int:
        """Bytes of all its rows; what is mapped once counts once."""
        return sum({s.images.ctypes.data: s.images.nbytes for s in self.shards}.values())

    @cached_property
    def sizes(self) -> NDArray[np.int32]:
        """Height and width of every image, int32 [num_images, 2]."""
        sizes = [
            np.broadcast_to(np.array(shard.images.shape[1:3], np.int32), (len(shard.images), 2))
            if shard.sizes is None
            else shard.sizes
            for shard in self.shards
        ]
        return np.concatenate(sizes) if sizes else np.zeros((0, 2), np.int32)

    def view_row(self, row: int) -> NDArray[np.uint8]:
        """Return a row as it is stored; see `Shard.view_row`."""
        shard, place = self.find_row(row)
        return shard.view_row(place)

    def find_row(self, row: int) -> tuple[Shard, int]:
        """Return the shard of a row of the split, and the row in that."""
        index, row_in_shard = divmod(row, self.shard_size)
        return self.shards[index], row_in_shard

    def __len__(self) -> int:
        """Return the images in the split."""
        return self.num_images

    def __getitem__(self, row: SupportsIndex) -> tuple[NDArray[np.uint8], int]:
        """Return a copy of an image, uint8 [H, W, 3], RGB, as stored, and its label.

        Args:
            row: of the split; negative ones count from its end.

        Raises:
            IndexError: there is no such row.
        """
        index = operator.index(row)
        if not -self.num_images <= index < self.num_images:
            raise IndexError(f"row must be under {self.num_images:,}, got {index:,}")
        shard, row_in_shard = self.find_row(index % self.num_images)
        return shard.read_image(row_in_shard), int(self.labels[index])

    def read_images(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return copies of rows of one size, uint8 [len(rows), H, W, 3]; the obvious slow way."""
        return np.stack([self[row][0] for row in rows.tolist()])


@dataclass(frozen=True)
class PackedDataset:
    """A packed folder that passed every check of `open_dataset`.

    Pickled, copied or sent to a process it travels as its path, and is opened again there.

    Attributes:
        folder: where it is.
        manifest: its manifest.
        manifest_sha256: of the manifest's bytes; names the data set in loader states.
        train: the train split.
        val: the val split.
    """

    folder: Path
    manifest: Manifest
    manifest_sha256: str
    train: Split
    val: Split

    def __repr__(self) -> str:
        """Return one line: where it is, images, classes."""
        return (
            f"<PackedDataset {str(self.folder)!r}: {self.train.num_images:,} train and "
            f"{self.val.num_images:,} val images of {self.manifest.image}, "
            f"{len(self.class_names):,} classes>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as a path."""
        return _reopen_dataset, (self.folder.absolute(), self.manifest_sha256)

    @property
    def class_names(self) -> list[str]:
        """Class folders in label order."""
        return [record.folder for record in self.manifest.classes]

    @property
    def class_words(self) -> list[str]:
        """What the classes are called, in label order; "" where the source does not say."""
        return [record.words for record in self.manifest.classes]

    def split(self, name: str) -> Split:
        """Return split "train" or "val".

        Raises:
            ValueError: there is no such split.
        """
        self.manifest.split(name)
        split: Split = getattr(self, name)
        return split


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """Return the manifest of a packed folder and the SHA-256 of its bytes.

    Raises:
        ShardError: there is none, or it is not one.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise ShardError(f"{folder}: no such folder; run 'tinyvgg pack SOURCE {folder}'")
    try:
        data = read_regular_file(path, MANIFEST_MAX_BYTES)
    except FileNotFoundError as error:
        raise ShardError(
            f"{folder}: no {MANIFEST_NAME}, so packing was never finished or this is not a "
            "packed folder; run 'tinyvgg pack'"
        ) from error
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; check the disk and the permissions") from error
    return parse_manifest(data, str(path)), hashlib.sha256(data).hexdigest()


def open_dataset(folder: str | os.PathLike[str]) -> PackedDataset:
    """Open a packed folder, checking everything that needs no pixel to be read.

    Args:
        folder: what `tinyvgg pack` wrote.

    Returns:
        The data set. Shards are mapped when they are first read; arrays and addresses of them are
        valid as long as the split is referenced. It pickles as its path.

    Raises:
        ShardError: a file is missing, or has another size, header or label than the manifest
            implies.
    """
    folder = Path(folder)
    manifest, manifest_sha256 = read_manifest(folder)
    train, val = (_open_split(folder, manifest, manifest_sha256, name) for name in SPLITS)
    return PackedDataset(folder, manifest, manifest_sha256, train, val)


def _reopen_dataset(folder: Path, manifest_sha256: str) -> PackedDataset:
    """Open the data set that was pickled.

    Raises:
        ShardError: another one has taken its place since, or as in `open_dataset`.
    """
    dataset = open_dataset(folder)
    if dataset.manifest_sha256 != manifest_sha256:
        raise ShardError(
            f"{folder}: manifest {dataset.manifest_sha256[:12]}…, {manifest_sha256[:12]}… was "
            "pickled; it was packed again since, open it again"
        )
    return dataset


def _reopen_split(folder: Path, manifest_sha256: str, name: str) -> Split:
    return _reopen_dataset(folder, manifest_sha256).split(name)


def _open_split(folder: Path, manifest: Manifest, manifest_sha256: str, name: str) -> Split:
    record = manifest.split(name)
    shards = [open_shard(folder, manifest, shard) for shard in record.shards]
    labels = np.concatenate([shard.labels for shard in shards] or [np.zeros(0, np.int64)])
    labels.setflags(write=False)
    return Split(folder, manifest_sha256, name, record, shards, labels)


def open_shard(folder: Path, manifest: Manifest, record: ShardRecord) -> Shard:
    """Map the images of a shard and read its labels.

    Returns:
        The shard; its arrays cannot be written.

    Raises:
        ShardError: a file is not what the manifest says, as far as `open_dataset` looks.
    """
    offsets = sizes = None
    offset = check_images(folder, manifest.image, record)
    if isinstance(manifest.image, ImageFormat):
        shape: tuple[int, ...] = (record.num_images, *manifest.image.size, manifest.image.channels)
    else:
        offsets, sizes = read_offsets(folder, record), read_sizes(folder, record)
        _check_one_size(folder / record.sizes, sizes, manifest.image)
        shape = (int(offsets[-1]),)
    images = np.memmap(folder / record.images, np.uint8, "r", offset=offset, shape=shape)
    path = folder / record.labels
    offset = check_labels(folder, record)
    label_file = path.read_bytes()
    labels = np.frombuffer(label_file, "<i8", offset=offset)
    if labels.min() < 0 or labels.max() >= len(manifest.classes):
        raise ShardError(
            f"{path}: labels {labels.min()} to {labels.max()}, expected 0 to "
            f"{len(manifest.classes) - 1}; run 'tinyvgg verify {folder}'"
        )
    if hashlib.sha256(label_file).hexdigest() != record.labels_sha256:
        raise ShardError(f"{path}: its labels are damaged; copy or pack them again")
    labels = labels.astype(np.int64, copy=False)
    return Shard(record, np.asarray(images), labels, offsets, sizes)


def _check_one_size(path: Path, sizes: NDArray[np.int32], image: JpegFormat) -> None:
    if image.size is not None and (sizes != np.array(image.size)).any():
        raise ShardError(
            f"{path}: sizes other than {image.width}x{image.height}, which the manifest says; "
            "pack the images again"
        )


def check_shard_files(folder: Path, record: ShardRecord, image: AnyFormat) -> None:
    """Check the files of a shard as opening it does: all but the bytes of its images.

    Raises:
        ShardError: a file is not what the record says.
        OSError: it cannot be read.
    """
    check_images(folder, image, record)
    if record.is_jpeg:
        read_offsets(folder, record)
        read_sizes(folder, record)
    check_labels(folder, record)
    if hashlib.sha256((folder / record.labels).read_bytes()).hexdigest() != record.labels_sha256:
        raise ShardError(f"{folder / record.labels}: its labels are damaged; pack them again")


def check_images(folder: Path, image: AnyFormat, record: ShardRecord) -> int:
    """Check size and header of an image file, and return where the images begin."""
    if isinstance(image, JpegFormat):
        return check_jpeg_bytes(folder, record)
    shape = (record.num_images, *image.size, image.channels)
    header = npy_header(shape, "|u1")
    num_bytes = len(header) + record.num_images * image.num_bytes
    head_crc32 = None if record.head_crc32 is None else record.head_crc32.images
    return check_npy(folder / record.images, header, num_bytes, record.image_bytes, head_crc32)


def check_labels(folder: Path, record: ShardRecord) -> int:
    """Check size and header of a label file, and return where the labels begin."""
    header = npy_header((record.num_images,), "<i8")
    num_bytes = len(header) + record.num_images * 8
    head_crc32 = None if record.head_crc32 is None else record.head_crc32.labels
    return check_npy(folder / record.labels, header, num_bytes, record.label_bytes, head_crc32)
