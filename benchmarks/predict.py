"""Predict: images/sec of `tinyvgg predict` on real files, beside its network alone.

    python -m benchmarks.predict CHECKPOINT FOLDER [--images 10000] [--repeats 5]

The network alone takes one batch that is there already, normalized, again and again, in the same
mode, precision and batch size: what predict loses against it is what reading, decoding, scaling,
normalizing and naming cost. FOLDER holds image files at any depth; an end-to-end arm runs the whole
command, start and load included, on so many of them.
"""

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Arm, Measurement, make_bar, run_benchmark
from tinyvgg.bench.windows import Work
from tinyvgg.inference.given_images import GivenImage, find_images
from tinyvgg.inference.predict import Predictor
from tinyvgg.inference.trained import TrainedNetwork
from tinyvgg.runs.networks import load
from tinyvgg.training.amp import AMP_DTYPES

PREDICT = "tinyvgg predict, from files"
NETWORK = "its network alone"
BATCH_SIZE = 64  # so that a window holds several; both arms take it


def open_trained(checkpoint: str) -> TrainedNetwork:
    """Return the network, on the CPU."""
    return load(checkpoint, device="cpu")


def list_images(folder: str, num_images: int) -> list[GivenImage]:
    """Return the first images of a folder."""
    images = list(itertools.islice(find_images([folder]), num_images))
    if len(images) < num_images:
        raise SystemExit(f"{folder}: {len(images):,} images, needed {num_images:,}; pass --images")
    return images


def predict_files(checkpoint: str, folder: str, num_images: int) -> Work:
    """Files to named classes, one batch a unit, without an end."""
    images = list_images(folder, num_images)
    predictor = Predictor(open_trained(checkpoint), batch_size=BATCH_SIZE)
    predictions = predictor.predict(itertools.cycle(images))

    def work() -> int:
        batch = list(itertools.islice(predictions, BATCH_SIZE))
        assert all(prediction.guesses for prediction in batch)
        return len(batch)

    return work


def network_alone(checkpoint: str, folder: str, num_images: int) -> Work:
    """The network on one normalized batch of the same images."""
    trained = open_trained(checkpoint)
    given: Iterator[GivenImage] = iter(list_images(folder, num_images)[:BATCH_SIZE])
    predictor = Predictor(trained, batch_size=BATCH_SIZE)
    images = predictor.read_batch(list(given)).permute(0, 3, 1, 2)
    amp = predictor.amp

    def work() -> int:
        with torch.no_grad(), torch.autocast("cpu", AMP_DTYPES[amp], enabled=amp != "off"):
            return len(trained(images))

    return work


def whole_command(checkpoint: str, folder: str, num_images: int) -> Work:
    """The command as a user types it, CSV to a file that is thrown away."""
    names = "\n".join(image.name for image in list_images(folder, num_images))

    def work() -> int:
        command = [sys.executable, "-m", "tinyvgg.cli", "predict", checkpoint, "-", "--csv"]
        options = {"text": True, "check": True, "stdout": subprocess.DEVNULL}
        subprocess.run(command, input=names, stderr=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
        return num_images

    return work


def main() -> None:
    """Measure all arms and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=os.path.abspath)
    parser.add_argument("folder", type=os.path.abspath)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--whole", action="store_true", help="time the whole command, too")
    options = parser.parse_args()
    given = {
        "checkpoint": options.checkpoint,
        "folder": options.folder,
        "num_images": options.images,
    }
    steady: dict[str, Any] = {"window_sec": 4.0, "num_windows": 3, "min_warm_windows": 1}
    arms = [
        Arm(PREDICT, "benchmarks.predict:predict_files", given, ceiling=NETWORK, **steady),
        Arm(NETWORK, "benchmarks.predict:network_alone", given, **steady),
    ]
    if options.whole:
        arms.append(
            Arm("the whole command", "benchmarks.predict:whole_command", given,
                window_sec=0.1, num_windows=1, min_warm_windows=0, ceiling=NETWORK)
        )  # fmt: skip

    def judge(measured: dict[str, Measurement]) -> list[dict[str, Any]]:
        predict, network, *whole = measured.values()
        bars = [make_bar(predict, network, "predict over its network alone", 0.9)]
        bars += [make_bar(arm, network, "command over its network alone", 0.9) for arm in whole]
        return bars

    trained = open_trained(options.checkpoint)
    claim = (
        f"predict on real files on a CPU, {trained.arch}, {trained.preprocessing.pixels} pixels, "
        f"amp {trained.preprocessing.amp}, {options.images:,} images of {Path(options.folder).name}"
    )
    run_benchmark("predict", claim, arms, judge, options.repeats)


if __name__ == "__main__":
    main()
