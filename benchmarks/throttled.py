"""Throttled: images/sec of raw and of JPEG shards from storage of a given speed, nothing cached.

    python -m benchmarks.throttled RAW JPEG [--repeats 3]

RAW and JPEG are one set of images, packed both ways. Needs root and cgroup v1's blkio controller
(`blkio.throttle.read_bps_device`), which throttles buffered reads. Before a round the set's pages
are dropped; images are read in stored order, so that the kernel reads ahead: what a sequential
reader of that storage would get, not random rows.
"""

import argparse
import os
from pathlib import Path

from benchmarks.measure import Arm, Measurement, compare, run_benchmark
from tinyvgg.bench.windows import Work
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.shards import open_dataset

BLKIO = Path("/sys/fs/cgroup/blkio")
MEGABYTES_PER_SEC = (100, 200, 400, 800, 1600)
BATCH_SIZE, NUM_BATCHES = 256, 60


def throttle(folder: Path, megabytes_per_sec: int) -> None:
    """Let this process read the device of a folder at most that fast, until it ends."""
    group = BLKIO / f"tinyvgg-{megabytes_per_sec}"
    group.mkdir(exist_ok=True)
    device = folder.stat().st_dev
    limit = f"{os.major(device)}:{os.minor(device)} {megabytes_per_sec * 10**6}"
    (group / "blkio.throttle.read_bps_device").write_text(limit)
    (group / "cgroup.procs").write_text(str(os.getpid()))


def drop_pages(folder: Path) -> None:
    """Drop all files below a folder from the page cache; none may be mapped, or to be written."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_throttled(packed: str, megabytes_per_sec: int) -> Work:
    """Cropped, flipped, normalized float32 batches of the first images, from the device."""
    folder = Path(packed)
    throttle(folder, megabytes_per_sec)
    config = LoaderConfig(backend="torch", batch_size=BATCH_SIZE, shuffle=False, reuse_buffers=True)

    def work() -> int:
        drop_pages(folder)
        with open_loader(open_dataset(folder), "train", config) as loader:
            batches = loader.epoch(0)
            num_valid = sum(next(batches).num_valid for _ in range(NUM_BATCHES))
            batches.close()  # type: ignore[attr-defined]
        return num_valid

    return work


def main() -> None:
    """Measure both at every speed and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("raw", type=os.path.abspath)
    parser.add_argument("jpeg", type=os.path.abspath)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not (BLKIO / "blkio.throttle.read_bps_device").parent.is_dir() or os.geteuid() != 0:
        parser.error(f"needs root and cgroup v1's blkio controller at {BLKIO}")

    arms = [
        Arm(
            f"{kind} shards, {speed} MB/s",
            "benchmarks.throttled:read_throttled",
            {"packed": packed, "megabytes_per_sec": speed},
            window_sec=0.1,
            num_windows=1,
        )
        for speed in MEGABYTES_PER_SEC
        for kind, packed in (("raw", options.raw), ("JPEG", options.jpeg))
    ]

    def judge(measured: dict[str, Measurement]) -> list[dict[str, object]]:
        for speed in MEGABYTES_PER_SEC:
            pair = (measured[f"{kind} shards, {speed} MB/s"] for kind in ("raw", "JPEG"))
            print(f"raw over JPEG at {speed:5d} MB/s: {compare(*pair)}")
        return []

    claim = "64 x 64: raw and JPEG shards from throttled storage, crop + flip + normalize, float32"
    run_benchmark("throttled", claim, arms, judge, options.repeats)


if __name__ == "__main__":
    main()
