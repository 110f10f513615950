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
import functools
import logging
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event

import numpy as np
from numpy.typing import NDArray

from tinyvgg.errors import DatasetError, bad_files_text
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.csv_list import CsvList
from tinyvgg.packing.encoders import Block, Encoder, JpegEncoder, RawEncoder
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
from tinyvgg.packing.sizes import find_image_format
from tinyvgg.shards.manifest import (
    SPLITS,
    ClassRecord,
    ImageFormat,
    JpegFormat,
    Manifest,
    RecodedFile,
    ShardRecord,
    SkippedFile,
    SourceRecord,
    SplitRecord,
    Splits,
)
from tinyvgg.shards.store import write_manifest

NUM_WRITERS = 2  # one hashes and writes while the other waits for fsync

logger = logging.getLogger("tinyvgg")


@dataclass(frozen=True)
class _Shard:
    """Images that belong into one shard, and its blocks as they are handed out; None ends them."""

    split: str
    index: int
    images: list[SourceImage]
    blocks: "SimpleQueue[Future[Block] | None]"


@dataclass
class _WrittenShard:
    """What the blocks of a shard add up to; `record` is there when it is written."""

    sums: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 3), np.int64))
    num_pixels: int = 0
    sizes: set[tuple[int, int]] = field(default_factory=set)
    bad_files: list[tuple[SourceImage, str]] = field(default_factory=list)
    recoded: list[tuple[SourceImage, str]] = field(default_factory=list)
    record: ShardRecord | None = None

    def add(self, block: Block) -> None:
        """Add what was learned of a block."""
        self.sums += block.sums
        self.num_pixels += block.num_pixels
        if len(self.sizes) < 2:
            self.sizes |= block.sizes
        self.bad_files += block.bad_files
        self.recoded += block.recoded


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
        num_threads = config.workers or _num_cores()
        noted = replace(source, tree=noting)
        encoder: Encoder
        if config.encoding == "raw":
            image = find_image_format(source, config.resize, num_threads)
            _check_space(out, source, image)
            encoder = RawEncoder(noted, image, num_threads, resize=config.resize is not None)
        else:
            encoder = JpegEncoder(noted, num_threads, config.recode)
        try:
            partial.mkdir(parents=True)
            packer = _Packer(config, noted, encoder, num_threads, partial, start_split)
            splits = packer.pack()
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
                format=1 if config.encoding == "raw" else 2,
                image=image if config.encoding == "raw" else packer.find_jpeg_format(),
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
    encoder: Encoder
    num_threads: int
    folder: Path
    start_split: Callable[[str, int], Callable[[int], None]]
    sizes: set[tuple[int, int]] = field(default_factory=set)  # of packed images; two of many

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

    def find_jpeg_format(self) -> JpegFormat:
        """Return the format of the files that were packed: with their size if all have one."""
        if len(self.sizes) != 1:
            return JpegFormat()
        ((height, width),) = self.sizes
        return JpegFormat(height=height, width=width)

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
        num_pixels = max(1, sum(shard.num_pixels for shard in shards))  # 0: all are bad
        mean, std = _mean_std(np.sum([shard.sums for shard in shards], axis=0), num_pixels)
        records = [shard.record for shard in shards if shard.record is not None]
        recoded = [
            RecodedFile(path=show_path(image.path), reason=reason)
            for shard in shards
            for image, reason in shard.recoded
        ]
        self.sizes.update(*(shard.sizes for shard in shards))
        return SplitRecord(
            num_images=sum(record.num_images for record in records),
            mean=mean,
            std=std,
            shards=records,
            skipped=skipped,
            recoded=recoded or None,
        )

    def _write_shards(
        self, splits: dict[str, list[SourceImage]], stop: Event
    ) -> dict[str, list[_WrittenShard]]:
        """Write all shards of some splits; rows of bad images hold anything."""
        encoder = self.encoder
        free: SimpleQueue[NDArray[np.uint8] | None] = SimpleQueue()
        for _ in range(encoder.num_buffers):
            free.put(encoder.new_buffer())
        with (
            ThreadPoolExecutor(self.num_threads) as decoders,
            ThreadPoolExecutor(NUM_WRITERS) as pool,
        ):
            writing: dict[str, list[Future[_WrittenShard]]] = {split: [] for split in splits}
            try:
                for split, index, rows in self._list_shards(splits):
                    if index == 0:
                        advance = self.start_split(split, len(splits[split]))
                    blocks: SimpleQueue[Future[Block] | None] = SimpleQueue()
                    shard = _Shard(split, index, rows, blocks)
                    writing[split].append(pool.submit(self._write_shard, shard, free, advance))
                    try:
                        for start in range(0, len(rows), encoder.num_rows):
                            buffer = free.get()  # waits here: this bounds the memory
                            if stop.is_set():
                                return {}
                            if buffer is None:  # a writer gave up, result() says why
                                return _results(writing)
                            part = rows[start : start + encoder.num_rows]
                            blocks.put(decoders.submit(encoder.encode, part, buffer))
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

    def _write_shard(
        self,
        shard: _Shard,
        free: "SimpleQueue[NDArray[np.uint8] | None]",
        advance: Callable[[int], None],
    ) -> _WrittenShard:
        """Write one shard from its blocks as they come; runs in a write thread."""
        written = _WrittenShard()

        def receive_blocks() -> Iterator[Block]:
            while (encoding := shard.blocks.get()) is not None:
                block = encoding.result()
                yield block
                written.add(block)
                free.put(block.buffer)
                advance(block.num_images)

        labels = np.array([image.label for image in shard.images], np.int64)
        try:
            written.record = self.encoder.write(
                self.folder, shard.split, shard.index, receive_blocks(), labels
            )
        except BaseException:
            free.put(None)
            raise
        return written


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
