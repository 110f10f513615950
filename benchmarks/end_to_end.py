"""End to end: `tinyvgg train`'s own loop on real images, beside its step alone.

    python -m benchmarks.end_to_end PACKED FOLDERS [--repeats 5]

The step alone takes one batch of the same data set again and again: what the loop loses against
it is what loading, metering and bookkeeping cost. The reference is ImageFolder + DataLoader with
2 workers feeding the reference step. PACKED is what `tinyvgg pack` made of FOLDERS.
"""

import argparse
import os
from dataclasses import replace
from typing import Any, cast

import torch

from benchmarks.loaders import endless, image_folder_loader
from benchmarks.measure import Arm, Measurement, make_bar, run_benchmark
from benchmarks.train_step import reference_step
from tinyvgg.bench.windows import Work
from tinyvgg.options import Amp
from tinyvgg.shards import open_dataset
from tinyvgg.training.amp import choose_amp
from tinyvgg.training.build import build_trainer
from tinyvgg.training.config import Recipe
from tinyvgg.training.process import TRAIN_ENVIRONMENT
from tinyvgg.training.trainer import Trainer

STEP = "its step alone"
STEPS = 2  # of the loop in one unit of work


def open_trainer(packed: str, amp: str) -> Trainer:
    """Return a trainer of recipe `fast`, that never comes to its end."""
    recipe = Recipe(amp=cast(Amp, amp), sizes=(), size_shares=(), epochs=10**6)
    return build_trainer(recipe, open_dataset(packed), torch.device("cpu"))


def train_loop(packed: str, amp: str) -> Work:
    """The loop of `tinyvgg train`, 2 steps a unit."""
    trainer = open_trainer(packed, amp)

    def work() -> int:
        return sum(trainer.loader.batch_size for _ in trainer.train_steps(STEPS))

    return work


def step_alone(packed: str, amp: str) -> Work:
    """The same step on one batch that is there already."""
    trainer = open_trainer(packed, amp)
    batch = next(iter(trainer.loader))
    batch = replace(batch, images=batch.images.clone())
    trainer.model.train()

    def work() -> int:
        for _ in range(STEPS):
            trainer.epoch_meter.add(*trainer.take_step(batch, 1e-4), batch.num_valid)
        return STEPS * batch.num_valid

    return work


def reference_loop(folders: str, num_workers: int) -> Work:
    """The reference pipeline: ImageFolder + DataLoader and its step, batch 50."""
    batches = endless(image_folder_loader(folders, num_workers, batch_size=50, flip=False))
    take_step = reference_step()

    def work() -> int:
        images, labels = next(batches)
        return take_step(images, labels)

    return work


def main() -> None:
    """Measure all arms and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packed", type=os.path.abspath)
    parser.add_argument("folders", type=os.path.abspath, help="the same images for ImageFolder")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    amp, _ = choose_amp(torch.device("cpu"))
    steady: dict[str, Any] = {"window_sec": 2.0, "num_windows": 2, "min_warm_windows": 1}
    given = {"packed": options.packed, "amp": amp}
    arms = [
        Arm("tinyvgg train, loop", "benchmarks.end_to_end:train_loop", given,
            environment=TRAIN_ENVIRONMENT, **steady),
        Arm(STEP, "benchmarks.end_to_end:step_alone", given,
            environment=TRAIN_ENVIRONMENT, **steady),
        Arm("reference loop, 2 workers", "benchmarks.end_to_end:reference_loop",
            {"folders": options.folders, "num_workers": 2}, **steady),
    ]  # fmt: skip

    def judge(measured: dict[str, Measurement]) -> list[dict[str, Any]]:
        loop, step, reference = measured.values()
        return [
            make_bar(loop, step, "loop over its step alone", 0.98),
            make_bar(loop, reference, "loop over the reference loop", 3.0),
        ]

    claim = f"training on real images on a CPU, 64 x 64, autocast {amp}"
    run_benchmark("end_to_end", claim, arms, judge, options.repeats)


if __name__ == "__main__":
    main()
