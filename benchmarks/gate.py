"""Gate: ratios to ceilings measured in the same seconds, with floors; never absolute times.

    python -m benchmarks.gate

A seeded set of 2,048 random images of 64 x 64 is packed and read in turns with its ceilings, in
this process: another job slows both alike. The best of all rounds counts on both sides; a ratio
under its floor is measured again, up to three times, before it fails. Exit status 1 if one does.

The floors are well under the least seen on two cores, fifty runs beside a whole test suite among
them (0.63, 0.22, 0.31 in 65 runs): they catch what becomes a few times as slow, and nothing finer.
"""

import hashlib
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tinyvgg.bench.windows import Work, time_window
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.decode import decode_image
from tinyvgg.packing.folders import list_images
from tinyvgg.packing.pack import pack_images
from tinyvgg.shards import open_dataset

FLOORS = {  # of a ceiling
    "loader, uint8 over index_select": 0.25,
    "loader, float32 over index_select and a conversion": 0.15,
    "pack over read + decode + SHA-256": 0.25,
}
BATCH, ROUNDS, TRIES, WINDOW_SEC = 256, 5, 4, 0.1
NUM_CLASSES, PER_CLASS, VAL_PER_CLASS = 8, 256, 8


def write_images(folder: Path) -> None:
    """Write class folders of JPEG files of smooth noise; the same ones every time."""
    generator = np.random.default_rng(0)
    for split, label in itertools.product(("train", "val"), range(NUM_CLASSES)):
        place = folder / split / f"{label:02d}"
        place.mkdir(parents=True)
        for number in range(PER_CLASS if split == "train" else VAL_PER_CLASS):
            small = Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8))
            small.resize((64, 64), Image.Resampling.BICUBIC).save(place / f"{number:03d}.jpg")


def loader_work(packed: Path, dtype: torch.dtype) -> Work:
    """Shuffled batches of backend `torch`, as a user of the library gets them."""
    is_float = dtype == torch.float32
    config = LoaderConfig(backend="torch", batch_size=BATCH, augment=is_float, reuse_buffers=True)
    loader = open_loader(packed, "train", config, device="cpu", dtype=dtype)

    def work() -> int:
        return sum(batch.num_valid for batch in loader)

    return work


def select_work(packed: Path, dtype: torch.dtype) -> Work:
    """Ceiling: rows gathered into reused memory and, of float32, converted there."""
    split = open_dataset(packed).train
    source = torch.from_numpy(np.concatenate([shard.images for shard in split.shards]))
    picked = torch.empty((BATCH, *source.shape[1:]), dtype=torch.uint8)
    made = torch.empty(picked.shape, dtype=torch.float32)

    def work() -> int:
        parts = torch.randperm(len(source)).split(BATCH)
        for rows in parts:
            if len(rows) == BATCH:
                torch.index_select(source, 0, rows, out=picked)
                if dtype == torch.float32:
                    made.copy_(picked)
        return len(source) // BATCH * BATCH

    return work


def pack_work(source: Path, out: Path) -> Work:
    """One conversion in this process, hashed and synced."""

    def work() -> int:
        config = PackConfig(source, out, overwrite=True)
        pack_images(config, lambda split, num: lambda done: None)
        return NUM_CLASSES * (PER_CLASS + VAL_PER_CLASS)

    return work


def decode_work(source: Path) -> Work:
    """Ceiling: read, decode and hash on two threads; nothing is written."""
    opened = list_images(source)
    images = [image for split in opened.splits.values() for image in split]

    def decode_part(start: int) -> None:
        part = images[start : start + BATCH]
        pixels = np.empty((len(part), 64, 64, 3), np.uint8)
        for image, row in zip(part, pixels, strict=True):
            decode_image(opened.tree.read_file(image.path), row)
        hashlib.sha256(pixels.data)

    def work() -> int:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(decode_part, range(0, len(images), BATCH)))
        return len(images)

    return work


def measure_ratio(work: Work, ceiling: Work) -> float:
    """Return the best rate of some rounds over the best of the ceiling's, in turns."""
    rates = [
        (time_window(work, WINDOW_SEC), time_window(ceiling, WINDOW_SEC)) for _ in range(ROUNDS)
    ]
    ours, bounds = zip(*rates, strict=True)
    ratio: float = max(ours) / max(bounds)
    return ratio


def judge(name: str, measure: Callable[[], float]) -> bool:
    """Measure until a floor is reached, a few times; say what was found."""
    found = 0.0
    for _ in range(TRIES):
        found = max(found, measure())
        if found >= FLOORS[name]:
            break
    is_met = found >= FLOORS[name]
    print(f"{name}: {found:.2f}, floor {FLOORS[name]:.2f}: {'met' if is_met else 'NOT MET'}")
    return is_met


def main() -> int:
    """Check every floor."""
    started = time.monotonic()
    torch.set_num_threads(1)  # threads that wait for each other are what another job disturbs most
    with tempfile.TemporaryDirectory() as place:
        source, packed = Path(place) / "images", Path(place) / "packed"
        write_images(source)
        pack_images(PackConfig(source, packed), lambda split, num: lambda done: None)
        uint8, float32, pack = FLOORS
        pairs: dict[str, tuple[Work, Work]] = {
            uint8: (loader_work(packed, torch.uint8), select_work(packed, torch.uint8)),
            float32: (loader_work(packed, torch.float32), select_work(packed, torch.float32)),
            pack: (pack_work(source, Path(place) / "again"), decode_work(source)),
        }
        for works in pairs.values():
            for work in works:
                work()  # compiles, maps
        verdicts = [judge(name, lambda w=works: measure_ratio(*w)) for name, works in pairs.items()]  # type: ignore[misc]
    print(f"gate: {time.monotonic() - started:.1f} s", file=sys.stderr)
    return int(not all(verdicts))


if __name__ == "__main__":
    raise SystemExit(main())
