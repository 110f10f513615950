"""Records: what the manifest says of finished shards, from exact integer sums.

From: `partial`, which has each shard's part of it, from this run or from the journal.
To:   `pack`, which writes it last.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.folders import ImageSource, show_path
from tinyvgg.packing.partial import PartialPack
from tinyvgg.packing.tasks import ShardTask, WrittenShard
from tinyvgg.shards.manifest import (
    SPLITS,
    ClassRecord,
    JpegFormat,
    Manifest,
    RecodedFile,
    SkippedFile,
    SourceRecord,
    SplitRecord,
    Splits,
)


def make_manifest(pack: PartialPack, tasks: Sequence[ShardTask]) -> Manifest:
    """Return the manifest, unsealed.

    Args:
        pack: with what was written of every shard.
        tasks: of all shards, in order.
    """
    config, source = pack.config, pack.source
    shards = {split: [pack.written[t.name] for t in tasks if t.split == split] for split in SPLITS}
    classes = [
        ClassRecord(folder=show_path(folder), words=words)
        for folder, words in zip(source.class_folders, source.class_words, strict=True)
    ]
    sizes = {size for written in shards.values() for shard in written for size in shard.sizes}
    image = pack.image
    if isinstance(image, JpegFormat) and len(sizes) == 1:
        ((height, width),) = sizes
        image = JpegFormat(height=height, width=width)
    records = {split: _make_record(shards[split], pack.list_bad(split)) for split in SPLITS}
    return Manifest(
        format=1 if config.encoding == "raw" else 2,
        image=image,
        classes=classes,
        splits=Splits(**records),
        source=_record_source(config, source),
    )


def _make_record(shards: list[WrittenShard], skipped: list[tuple[str, str]]) -> SplitRecord:
    sums = np.sum([shard.sums for shard in shards], axis=0)
    mean, std = _mean_std(sums, sum(shard.num_pixels for shard in shards))
    records = [shard.record for shard in shards if shard.record is not None]
    recoded = [
        RecodedFile(path=path, reason=reason) for shard in shards for path, reason in shard.recoded
    ]
    return SplitRecord(
        num_images=sum(record.num_images for record in records),
        mean=mean,
        std=std,
        shards=records,
        skipped=[SkippedFile(path=path, reason=reason) for path, reason in skipped],
        recoded=recoded or None,
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


def _mean_std(sums: NDArray[np.int64], num_pixels: int) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel on the 0-to-1 scale, from exact sums."""
    mean, std = [], []
    for total, squares in zip(*sums.tolist(), strict=True):
        mean.append(total / (255 * num_pixels))
        variance = num_pixels * squares - total * total  # of integers: no cancellation
        std.append(math.sqrt(variance) / (255 * num_pixels))
    return mean, std
