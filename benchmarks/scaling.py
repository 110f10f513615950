"""Scaling: cost of an image as the data set and the batch grow; flat is what it should be.

    python -m benchmarks.scaling PACKED [--repeats 5]

Data sets of 1,000 to 1,000,000 images are the mapped shards of PACKED, cut short or repeated, so
the largest one does not need more disk or memory than PACKED. A window spans at least one epoch:
planning the next epoch is part of the cost.
"""

import argparse
import os
from dataclasses import replace

import numpy as np
import torch

from benchmarks.loaders import endless
from benchmarks.measure import Arm, run_benchmark
from tinyvgg.bench.windows import Work
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.shards import open_dataset
from tinyvgg.shards.store import Split

COUNTS = (1_000, 10_000, 100_000, 1_000_000)
BATCH_SIZES = (16, 64, 256, 1024)


def repeat_split(split: Split, num_images: int) -> Split:
    """Return a split of `num_images`, from the mapped shards of another one."""
    size = min(split.shard_size, num_images)
    full = [shard for shard in split.shards if len(shard.labels) >= size]
    shards = [
        replace(
            full[index % len(full)],
            record=full[index % len(full)].record.model_copy(update={"num_images": size}),
            images=full[index % len(full)].images[:size],
            labels=full[index % len(full)].labels[:size],
        )
        for index in range(num_images // size)
    ]
    record = split.record.model_copy(update={"num_images": num_images})
    labels = np.concatenate([shard.labels for shard in shards])
    return replace(split, record=record, shards=shards, labels=labels)


def load_scaled(packed: str, num_images: int, batch_size: int) -> Work:
    """Cropped, flipped, normalized float32 batches of a data set of any size."""
    dataset = open_dataset(packed)
    dataset = replace(dataset, train=repeat_split(dataset.train, num_images))
    config = LoaderConfig(backend="torch", batch_size=batch_size)
    batches = endless(open_loader(dataset, "train", config, dtype=torch.float32))

    def work() -> int:
        num_valid = 0
        while num_valid < min(num_images, 4096):
            num_valid += next(batches).num_valid
        return num_valid

    return work


def main() -> None:
    """Measure all sizes and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packed", type=os.path.abspath)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    def arm(name: str, num_images: int, batch_size: int) -> Arm:
        given = {"packed": options.packed, "num_images": num_images, "batch_size": batch_size}
        window_sec = max(1.0, num_images / 100_000)
        return Arm(name, "benchmarks.scaling:load_scaled", given, window_sec, num_windows=3)

    arms = [
        *(arm(f"{count:,} images, batch 256", count, 256) for count in COUNTS),
        *(arm(f"batch {size}, 50,000 images", 50_000, size) for size in BATCH_SIZES),
    ]
    claim = "backend torch, crop + flip + normalize, float32, on a CPU device, by size"
    run_benchmark("scaling", claim, arms, lambda measured: [], options.repeats)


if __name__ == "__main__":
    main()
