"""Scaling: cost of an image as one thing grows: images, batch, pixels, threads, ranks, memory.

    python -m benchmarks.scaling PACKED [--photographs FOLDER] [--repeats 3]

Cropped, flipped, normalized float32 batches of backend torch. Data sets of 1,000 to 1,000,000
images are the mapped shards of PACKED, cut short or repeated, so the largest one does not need
more disk or memory than PACKED. A window spans at least one epoch: planning the next epoch is part
of the cost. Photographs, which are packed at several sizes, are what `benchmarks.jpeg` makes.

Memory: PACKED from the page cache; PACKED after its pages were dropped; PACKED by a process that
may hold no more than half of its size and 128 MiB for batches and plans (cgroup v1, root), rows
shuffled over all of it: as the loader reads it then, image by image ahead, and by what the system
reads around missing pages, which is a setting of the disk.
"""

import argparse
import os
import tempfile
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loaders import endless
from benchmarks.measure import Arm, run_benchmark
from benchmarks.pack import pin
from benchmarks.ranks import run_on
from benchmarks.throttled import drop_pages
from tinyvgg.bench.machine import count_cores
from tinyvgg.bench.windows import Work
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images
from tinyvgg.ranks import find_rank
from tinyvgg.shards import open_dataset
from tinyvgg.shards.store import Split

COUNTS = (1_000, 10_000, 100_000, 1_000_000)
BATCH_SIZES = (16, 64, 256, 1024)
PIXELS = (32, 64, 128, 224)
MEMORY, MEMORY_SHARE = Path("/sys/fs/cgroup/memory"), 0.5
BUFFER_BYTES = 128 * 2**20  # of batches and plans


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


def load_on_threads(packed: str, num_threads: int) -> Work:
    """The same on so many threads, each with a core."""
    pin(num_threads)
    torch.set_num_threads(num_threads)
    return load_scaled(packed, 50_000, 256)


def load_in(pipe: Connection, packed: str) -> None:
    """Load an epoch of this rank for every word from a pipe; say how many images it was."""
    config = LoaderConfig(backend="torch", batch_size=256 * find_rank()[1])
    loader = open_loader(packed, "train", config, dtype=torch.float32)
    while pipe.recv():
        pipe.send(sum(batch.num_valid for batch in loader))


def load_on_ranks(packed: str, world_size: int) -> Work:
    """An epoch shared by ranks, a process and a core each; 256 images a rank and batch."""
    cores = sorted(os.sched_getaffinity(0))[:world_size]
    return run_on(load_in, [[core] for core in cores], True, packed)


def load_cold(packed: str) -> Work:
    """Whole epochs, the pages of the set dropped before each."""
    config = LoaderConfig(backend="torch", batch_size=256)

    def work() -> int:
        drop_pages(Path(packed))
        with open_loader(packed, "train", config, dtype=torch.float32) as loader:
            return sum(batch.num_valid for batch in loader)

    return work


def find_limit(packed: str) -> int:
    """Return the bytes that a process may hold which cannot keep the set in the page cache."""
    return int(MEMORY_SHARE * open_dataset(packed).train.mapped_bytes) + BUFFER_BYTES


def find_readahead_kib(packed: str) -> int:
    """Return what the system reads around a missing page of a file, KiB; 0 where it says none."""
    device = Path(packed).stat().st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    settings = (folder / "queue" / "read_ahead_kb" for folder in (block, block.parent))
    return next((int(path.read_text()) for path in settings if path.exists()), 0)


def load_in_little_memory(packed: str, is_ahead: bool) -> Work:
    """Batches in a process whose page cache holds a part of the set."""
    group = MEMORY / "tinyvgg-scaling"
    group.mkdir(exist_ok=True)
    limit = find_limit(packed)
    drop_pages(Path(packed))
    (group / "cgroup.procs").write_text(str(os.getpid()))  # what it has by now stays uncounted
    (group / "memory.limit_in_bytes").write_text(str(limit))
    loader = open_loader(packed, "train", LoaderConfig(backend="torch", batch_size=256))
    assert loader.readahead is not None
    if not is_ahead:
        loader.readahead = None
    batches = endless(loader)

    def work() -> int:
        return sum(next(batches).num_valid for _ in range(16))

    return work


def main() -> None:
    """Measure all sizes and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packed", type=os.path.abspath)
    parser.add_argument("--photographs", type=os.path.abspath, help="adds the growth with pixels")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    def arm(name: str, function: str, window_sec: float = 1.0, **given: Any) -> Arm:
        given = {"packed": options.packed, **given}
        return Arm(name, f"benchmarks.scaling:{function}", given, window_sec, num_windows=3,
                   max_warm_sec=4)  # fmt: skip

    def sized(name: str, num_images: int, batch_size: int) -> Arm:
        given = {"num_images": num_images, "batch_size": batch_size}
        return arm(name, "load_scaled", max(1.0, num_images / 300_000), **given)

    with tempfile.TemporaryDirectory() as scratch:
        arms = [
            *(sized(f"{count:,} images, batch 256", count, 256) for count in COUNTS),
            *(sized(f"batch {size}, 50,000 images", 50_000, size) for size in BATCH_SIZES),
        ]
        for pixels in PIXELS if options.photographs else ():
            packed = f"{scratch}/{pixels}"
            config = PackConfig(Path(options.photographs), Path(packed), resize=pixels)
            pack_images(config, lambda split, num_images: lambda num_done: None)
            name = f"{pixels} x {pixels} pixels, batch 64"
            arms.append(arm(name, "load_scaled", packed=packed, num_images=10_000, batch_size=64))
        for count in range(1, count_cores() + 1):
            arms.append(arm(f"threads: {count}", "load_on_threads", num_threads=count))
            arms.append(arm(f"ranks: {count}, a thread each", "load_on_ranks", world_size=count))
        arms.append(arm("memory: page cache", "load_scaled", num_images=50_000, batch_size=256))
        arms.append(arm("memory: dropped before each epoch", "load_cold", 0.1))
        if os.geteuid() == 0 and (MEMORY / "memory.limit_in_bytes").exists():
            held = f"of {MEMORY_SHARE} of the set and {BUFFER_BYTES >> 20} MiB"
            around = f"around missing pages ({find_readahead_kib(options.packed):,} KiB)"
            for is_ahead, how in ((True, "image by image, ahead"), (False, around)):
                name = f"memory: {held}, read {how}"
                arms.append(arm(name, "load_in_little_memory", is_ahead=is_ahead))
        claim = "backend torch, crop + flip + normalize, float32, on a CPU device, by size"
        run_benchmark("scaling", claim, arms, lambda measured: [], options.repeats)


if __name__ == "__main__":
    main()
