"""Pack: the whole command, beside its two ceilings and a Pillow loop, and its growth with cores.

    python -m benchmarks.pack SOURCE [--scratch FOLDER] [--repeats 5]

SOURCE is a folder or zip of real images. Each window is one whole run over all of them, in a
fresh process. The ceilings use the same functions on the same files: reading, decoding and
SHA-256 on two threads without writing; writing and syncing the same bytes into the same folder.

Growth: the command pinned to one core, and its start and listing there alone. The model of N cores
is `start + (one core - start) / N`; the record holds what two cores do over what it says of two.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Arm, Measurement, make_bar, run_benchmark
from tinyvgg.bench.windows import Work
from tinyvgg.packing.decode import decode_image
from tinyvgg.packing.folders import SourceImage, list_images
from tinyvgg.packing.holdout import Holdout

PIXELS = 64
WRITE = "ceiling: write + fsync"
ONE_CORE = "tinyvgg pack, one core"
START = "its start and listing, one core"


def count_images(source: str) -> int:
    """Return the number of images in all splits of a source."""
    return sum(len(images) for images in list_images(Path(source)).splits.values())


def pin(num_cores: int | None) -> None:
    """Let this process, and those it starts, run on the first so many cores; None: on all."""
    if num_cores is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_cores])


def pack_command(source: str, scratch: str, num_cores: int | None = None) -> Work:
    """`tinyvgg pack SOURCE OUT` as a user types it, start of Python included."""
    num_images = count_images(source)
    pin(num_cores)

    def work() -> int:
        out = Path(scratch) / "packed"
        shutil.rmtree(out, ignore_errors=True)
        words = [sys.executable, "-m", "tinyvgg.cli", "pack", source, str(out)]
        subprocess.run(words, check=True, capture_output=True)
        return num_images

    return work


def start_and_list(source: str, scratch: str, num_cores: int | None = None) -> Work:
    """The same command until its first image: `--finish`, which lists, and finds no parts."""
    num_images = count_images(source)
    pin(num_cores)

    def work() -> int:
        out = str(Path(scratch) / "never")
        words = [sys.executable, "-m", "tinyvgg.cli", "pack", source, out, "--finish"]
        done = subprocess.run(words, capture_output=True, text=True)
        assert "pack the parts first" in done.stderr, done.stderr
        return num_images

    return work


def predict(one_core: Measurement, start: Measurement, num_cores: int) -> Measurement:
    """Return what `start + (one core - start) / N` says of more cores, repeat by repeat."""
    windows = [
        [1 / (1 / listed + (1 / packed - 1 / listed) / num_cores)]
        for packed, listed in zip(one_core.repeats, start.repeats, strict=True)
    ]
    return Measurement(Arm(f"model of {num_cores} cores", ""), windows)


def read_decode_hash(source: str, val_share: float | None = None) -> Work:
    """Ceiling: read, decode and hash on two threads; nothing is written."""
    holdout = None if val_share is None else Holdout(val_share, 0)
    opened = list_images(Path(source), holdout)
    images = [image for split in opened.splits.values() for image in split]
    parts = [images[start : start + 256] for start in range(0, len(images), 256)]

    def decode_part(part: list[SourceImage]) -> None:
        pixels = np.empty((len(part), PIXELS, PIXELS, 3), np.uint8)
        for image, row in zip(part, pixels, strict=True):
            decode_image(opened.tree.read_file(image.path), row)
        hashlib.sha256(pixels.data)

    def work() -> int:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(decode_part, parts))
        return len(images)

    return work


def write_sync(source: str, scratch: str) -> Work:
    """Ceiling: write and fsync the same bytes, in files of 5,000 images, one after the other."""
    num_images = count_images(source)
    shard = np.random.default_rng(0).integers(0, 256, (5000, PIXELS, PIXELS, 3)).astype(np.uint8)
    folder = Path(scratch) / "written"

    def work() -> int:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for index in range(num_images // 5000):
            with (folder / f"{index}.npy").open("wb", buffering=0) as file:
                file.write(shard.data)
                os.fsync(file.fileno())
        return num_images

    return work


def pillow_loop(source: str, scratch: str) -> Work:
    """What people write first: Pillow, one list, one array, one numpy.save."""
    import io

    from PIL import Image

    opened = list_images(Path(source))
    images = [image for split in opened.splits.values() for image in split]

    def work() -> int:
        arrays = []
        for image in images:
            with Image.open(io.BytesIO(opened.tree.read_file(image.path))) as decoded:
                arrays.append(np.asarray(decoded.convert("RGB")))
        np.save(Path(scratch) / "pillow.npy", np.stack(arrays))
        return len(images)

    return work


def main() -> None:
    """Measure all arms and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=os.path.abspath)
    parser.add_argument("--scratch", default=None, help="folder to write in; a temporary one")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        given = {"source": options.source}
        both = {**given, "scratch": scratch}
        whole: dict[str, Any] = {"window_sec": 0.0, "num_windows": 2, "min_warm_windows": 0}
        arms = [
            Arm("tinyvgg pack", "benchmarks.pack:pack_command", both, **whole, ceiling=WRITE),
            Arm("ceiling: read + decode + SHA-256, 2 threads", "benchmarks.pack:read_decode_hash",
                given, **whole),
            Arm(WRITE, "benchmarks.pack:write_sync", both, **whole),
            Arm(ONE_CORE, "benchmarks.pack:pack_command", {**both, "num_cores": 1}, **whole),
            Arm(START, "benchmarks.pack:start_and_list", {**both, "num_cores": 1}, **whole),
            Arm("Pillow loop, one array", "benchmarks.pack:pillow_loop", both,
                window_sec=0.0, num_windows=1, min_warm_windows=0, ceiling=WRITE),
        ]  # fmt: skip

        def judge(measured: dict[str, Measurement]) -> list[dict[str, Any]]:
            command, decode, write, one_core, start, pillow = measured.values()
            slower = min(decode, write, key=lambda measurement: measurement.images_per_sec)
            return [
                make_bar(command, slower, f"pack over the slower ceiling ({slower.arm.name})", 0.7),
                make_bar(command, decode, "pack over read + decode + SHA-256", 0.75),
                make_bar(command, pillow, "pack over the Pillow loop", 2),
                make_bar(command, predict(one_core, start, 2),
                         "two cores over start + (one core - start) / 2", 0.9),
            ]  # fmt: skip

        claim = "packing real images, the whole command, page cache warm"
        run_benchmark("pack", claim, arms, judge, options.repeats)


if __name__ == "__main__":
    main()
