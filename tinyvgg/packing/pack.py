"""Pack: class folders or a zip to a folder of uint8 shards, each image decoded once.

From: `folders` (sorted paths and labels) and `decode` (pixels).
To:   `shards.store`, which writes the files; `loading` opens them.

    one thread      hands out blocks of 256 images, in order, as buffers come free
    decode threads  read, decode and sum up a block          (without the GIL, save a few µs)
    write threads   hash, checksum, write and fsync a shard, block by block, in order

Promises: the bytes depend on the images alone, not on the number of threads; memory is 32 MiB
of buffers, or an image for each decode thread and two more where that is more, besides what
decoding takes (`decode`); OUT appears by one rename, complete, or not at all.

Bad images are found on the first pass over a split. With `--on-bad skip` the split is then
packed again without them: they are rare, and a second pass is simpler than rows that move. A
fault of the machine while an image is read (EIO, EMFILE, …) says nothing of that image: it ends
the pack, also under `--on-bad skip`.
"""

import contextlib
import errno
import functools
import logging
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event

import numpy as np
from numpy.typing import NDArray

from tinyvgg.errors import DatasetError, bad_files_text
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.csv_list import CsvList
from tinyvgg.packing.decode import decode_image
from tinyvgg.packing.equal_files import NotingTree
from tinyvgg.packing.folders import ImageSource, SourceImage, list_images, show_path
from tinyvgg.packing.holdout import Holdout
from tinyvgg.packing.interrupts import run_interruptible
from tinyvgg.packing.locking import hold_lock
from tinyvgg.packing.out_folder import (
    check_beside,
    check_out,
    name_partial,
    name_written,
    publish,
    resolve_out,
)
from tinyvgg.packing.sizes import find_image_format, read_image
from tinyvgg.shards.manifest import (
    BLOCK_ROWS,
    SPLITS,
    ClassRecord,
    ImageFormat,
    Manifest,
    ShardRecord,
    SkippedFile,
    SourceRecord,
    SplitRecord,
    Splits,
)
from tinyvgg.shards.store import write_manifest, write_shard

BUFFER_BYTES = 32 * 2**20  # 10 blocks of 64 x 64 images: they stay in the L3 cache
TILE_ROWS, TILE_COLUMNS = 256, 768  # of `sum_channels`
TILE_VALUES = TILE_ROWS * TILE_COLUMNS
NUM_WRITERS = 2  # one hashes and writes while the other waits for fsync

logger = logging.getLogger("tinyvgg")


@dataclass(frozen=True)
class _Block:
    """Decoded images in a borrowed buffer, part of 256 rows, and what was learned on the way."""

    images: NDArray[np.uint8]
    buffer: NDArray[np.uint8]
    sums: NDArray[np.int64]  # [2, 3]: of x and of x * x, per channel
    bad_files: list[tuple[SourceImage, str]]


@dataclass(frozen=True)
class _Shard:
    """Images that belong into one shard, and its blocks as they are handed out; None ends them."""

    split: str
    index: int
    images: list[SourceImage]
    blocks: "SimpleQueue[Future[_Block] | None]"


@dataclass(frozen=True)
class _WrittenShard:
    record: ShardRecord
    sums: NDArray[np.int64]
    bad_files: list[tuple[SourceImage, str]]


def pack_images(
    config: PackConfig, start_split: Callable[[str, int], Callable[[int], None]]
) -> Manifest:
    """Pack a source into a new folder and return the manifest.

    Args:
        config: what to pack, where to and how.
        start_split: called with the name of a split and its number of images; returns what is
            then called, from several threads, with numbers of images done.

    Returns:
        The manifest that was written into OUT.

    Raises:
        DatasetError: the source or OUT cannot be used as they are; nothing is left behind.
        OSError: the disk cannot be written; nothing is left behind.
    """
    out = resolve_out(config.out)
    check_beside(config.out, out)
    with hold_lock(out, "tinyvgg pack"), contextlib.ExitStack() as stack:
        check_out(config.out, out, overwrite=config.overwrite)
        partial = name_partial(out)
        if partial.exists():  # of a killed run: nobody else holds the lock
            shutil.rmtree(partial)
        # Pillow warns of odd EXIF or palettes; only the pixels matter. Here, once, because
        # filters belong to the process and decode threads would restore each other's.
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        source = _list_source(config, out)
        stack.callback(source.tree.close)
        noting = NotingTree(source.tree, (image.path for image in source.splits["val"]))
        image = find_image_format(source, config.resize, config.workers or _num_cores())
        _check_space(out, source, image)
        try:
            partial.mkdir(parents=True)
            noted = replace(source, tree=noting)
            splits = _Packer(config, noted, image, partial, start_split).pack()
            bad_files = [
                (file.path, file.reason) for split in SPLITS for file in splits[split].skipped
            ]
            if bad_files and config.on_bad == "fail":
                remedy = "mend or remove them, or leave them out with --on-bad skip"
                raise DatasetError(bad_files_text(source.name, bad_files, remedy))
            classes = [
                ClassRecord(folder=show_path(folder), words=words)
                for folder, words in zip(source.class_folders, source.class_words, strict=True)
            ]
            manifest = Manifest(
                image=image,
                classes=classes,
                splits=Splits(**splits),
                source=_record_source(config, source),
            )
            manifest = write_manifest(partial, manifest)
            publish(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _warn_of_equal(source.name, noting.list_equal(), splits["val"])
    return manifest


@dataclass(frozen=True)
class _Packer:
    """Packs all splits into `folder`, one after the other through one set of threads."""

    config: PackConfig
    source: ImageSource
    image: ImageFormat
    folder: Path
    start_split: Callable[[str, int], Callable[[int], None]]

    def pack(self) -> dict[str, SplitRecord]:
        """Return the records of the splits; under `--on-bad fail` they only list what is bad."""
        todo = self.source.splits
        skipped: dict[str, list[SkippedFile]] = {split: [] for split in SPLITS}
        records = {}
        while todo:
            written = run_interruptible(functools.partial(self._write_shards, todo))
            again = {}
            for split, shards in written.items():
                bad = [item for shard in shards for item in shard.bad_files]
                skipped[split] += [
                    SkippedFile(path=show_path(image.path), reason=reason) for image, reason in bad
                ]
                if bad and self.config.on_bad == "skip":
                    again[split] = self._drop_images(split, todo[split], bad)
                else:
                    records[split] = self._make_record(shards, skipped[split])
            todo = again
        return records

    def _drop_images(
        self, split: str, images: list[SourceImage], bad: list[tuple[SourceImage, str]]
    ) -> list[SourceImage]:
        """Return the images without the bad ones, and remove what was written of the split."""
        dropped = {image.path for image, _ in bad}
        left = [image for image in images if image.path not in dropped]
        reasons = [(show_path(image.path), reason) for image, reason in bad]
        without = {image.label for image in images} - {image.label for image in left}
        if split == "train" and without:
            names = ", ".join(show_path(self.source.class_folders[n]) for n in sorted(without)[:3])
            title = f"{self.source.name}: every train image of {len(without):,} classes is bad"
            raise DatasetError(
                bad_files_text(f"{title} ({names})", reasons, "mend them, or remove the classes")
            )
        if len(left) < len(bad):
            title = f"{self.source.name}: {len(bad):,} of {len(images):,} {split} images are bad"
            raise DatasetError(
                bad_files_text(title, reasons, "so many are not skipped, mend or remove them")
            )
        for path in self.folder.glob(f"{split}-*.npy"):
            path.unlink()
        return left

    def _make_record(self, shards: list[_WrittenShard], skipped: list[SkippedFile]) -> SplitRecord:
        num_images = sum(shard.record.num_images for shard in shards)
        num_pixels = num_images * self.image.height * self.image.width
        mean, std = _mean_std(np.sum([shard.sums for shard in shards], axis=0), num_pixels)
        records = [shard.record for shard in shards]
        return SplitRecord(
            num_images=num_images, mean=mean, std=std, shards=records, skipped=skipped
        )

    def _write_shards(
        self, splits: dict[str, list[SourceImage]], stop: Event
    ) -> dict[str, list[_WrittenShard]]:
        """Write all shards of some splits; rows of bad images hold anything."""
        num_decoders = self.config.workers or _num_cores()
        num_rows = _count_rows(self.image.num_bytes, num_decoders)
        block_shape = (num_rows, self.image.height, self.image.width, 3)
        free: SimpleQueue[NDArray[np.uint8] | None] = SimpleQueue()
        num_buffers = BUFFER_BYTES // (num_rows * self.image.num_bytes)
        for _ in range(max(num_decoders + 2, num_buffers)):
            free.put(np.empty(block_shape, np.uint8))
        with ThreadPoolExecutor(num_decoders) as decoders, ThreadPoolExecutor(NUM_WRITERS) as pool:
            writing: dict[str, list[Future[_WrittenShard]]] = {split: [] for split in splits}
            try:
                for split, index, rows in self._list_shards(splits):
                    if index == 0:
                        advance = self.start_split(split, len(splits[split]))
                    blocks: SimpleQueue[Future[_Block] | None] = SimpleQueue()
                    shard = _Shard(split, index, rows, blocks)
                    writing[split].append(pool.submit(self._write_shard, shard, free, advance))
                    try:
                        for start in range(0, len(rows), num_rows):
                            buffer = free.get()  # waits here: this bounds the memory
                            if stop.is_set():
                                return {}
                            if buffer is None:  # a writer gave up, result() says why
                                return _results(writing)
                            part = rows[start : start + num_rows]
                            blocks.put(decoders.submit(self._decode_block, part, buffer))
                    finally:
                        blocks.put(None)
            except BaseException:
                decoders.shutdown(cancel_futures=True)
                raise
            return _results(writing)

    def _list_shards(
        self, splits: dict[str, list[SourceImage]]
    ) -> Iterator[tuple[str, int, list[SourceImage]]]:
        """Yield (split, index, images) of every shard, in order."""
        size = self.config.shard_size
        for split, images in splits.items():
            for index, first in enumerate(range(0, len(images), size)):
                yield split, index, images[first : first + size]

    def _decode_block(self, rows: list[SourceImage], buffer: NDArray[np.uint8]) -> _Block:
        """Decode images into the first rows of a buffer; runs in a decode thread."""
        bad_files = []
        resize = self.config.resize is not None
        for pixels, image in zip(buffer, rows, strict=False):
            try:
                decode_image(read_image(self.source, image), pixels, resize=resize)
            except DatasetError as error:
                bad_files.append((image, str(error)))
            except OSError as error:
                error.filename = error.filename or show_path(image.path)
                raise
            except MemoryError as error:
                raise OSError(errno.ENOMEM, "out of memory", show_path(image.path)) from error
        images = buffer[: len(rows)]
        return _Block(images, buffer, sum_channels(images), bad_files)

    def _write_shard(
        self,
        shard: _Shard,
        free: "SimpleQueue[NDArray[np.uint8] | None]",
        advance: Callable[[int], None],
    ) -> _WrittenShard:
        """Write one shard from its blocks as they come; runs in a write thread."""
        sums = np.zeros((2, 3), np.int64)
        bad_files: list[tuple[SourceImage, str]] = []

        def receive_images() -> Iterator[NDArray[np.uint8]]:
            while (decoding := shard.blocks.get()) is not None:
                block = decoding.result()
                yield block.images
                sums[:] += block.sums
                bad_files.extend(block.bad_files)
                free.put(block.buffer)
                advance(len(block.images))

        labels = np.array([image.label for image in shard.images], np.int64)
        shape = (self.image.height, self.image.width, self.image.channels)
        try:
            record = write_shard(
                self.folder, shard.split, shard.index, shape, receive_images(), labels
            )
        except BaseException:
            free.put(None)
            raise
        return _WrittenShard(record, sums, bad_files)


def _count_rows(image_bytes: int, num_decoders: int) -> int:
    """Return the images of a buffer, a power of two up to 256, so that parts make up blocks."""
    num_rows = BLOCK_ROWS
    while num_rows > 1 and num_rows * image_bytes * (num_decoders + 2) > BUFFER_BYTES:
        num_rows //= 2
    return num_rows


def _list_source(config: PackConfig, out: Path) -> ImageSource:
    holdout = None if config.val_share is None else Holdout(config.val_share, config.seed)
    csv_list = None
    if config.csv is not None:
        columns = config.csv_path_column, config.csv_label_column, config.csv_split_column
        csv_list = CsvList(config.csv, *columns)
    return list_images(config.source, holdout, csv_list, name_written(out))


def _warn_of_equal(name: str, val_paths: list[str], val: SplitRecord) -> None:
    """Count the packed val images whose files are those of train images, byte for byte."""
    skipped = {file.path for file in val.skipped}
    paths = [path for path in val_paths if show_path(path) not in skipped]
    if paths:
        logger.warning(
            "%s: %s of %s val images are in train too, byte for byte (%s), so scores are not of "
            "new images; remove them from one of the two",
            name,
            f"{len(paths):,}",
            f"{val.num_images:,}",
            ", ".join(map(show_path, paths[:3])) + (", …" if len(paths) > 3 else ""),
        )


def _record_source(config: PackConfig, source: ImageSource) -> SourceRecord | None:
    """Return what the manifest says of the source; None where it is plain."""
    if config.val_share is None and not source.unpacked:
        return None
    return SourceRecord(
        val_share=config.val_share,
        val_seed=None if config.val_share is None else config.seed,
        unpacked=source.unpacked or None,
    )


def _results(writing: dict[str, list[Future[_WrittenShard]]]) -> dict[str, list[_WrittenShard]]:
    return {split: [job.result() for job in jobs] for split, jobs in writing.items()}


def sum_channels(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return exact sums of pixel values and of their squares.

    Args:
        images: uint8 [n, H, W, 3].

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


def _mean_std(sums: NDArray[np.int64], num_pixels: int) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel on the 0-to-1 scale, from exact sums."""
    mean, std = [], []
    for total, squares in zip(*sums.tolist(), strict=True):
        mean.append(total / (255 * num_pixels))
        variance = num_pixels * squares - total * total  # of integers: no cancellation
        std.append(math.sqrt(variance) / (255 * num_pixels))
    return mean, std


def _check_space(out: Path, source: ImageSource, image: ImageFormat) -> None:
    needed = sum(len(images) for images in source.splits.values()) * (image.num_bytes + 8)
    parent = next(folder for folder in out.parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise DatasetError(
            f"{parent}: {free:,} bytes free, packing needs {needed:,}; free some or pack elsewhere"
        )


def _num_cores() -> int:
    """Return the CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
