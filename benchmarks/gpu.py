"""GPU: every backend, the step and training end to end on one CUDA device, in one record.

    python -m benchmarks.gpu PACKED [--repeats 5]

Loaders deliver batches of 512 that are touched by nothing; the step takes one batch that is there
already; end to end is the loop of `tinyvgg train`. MFU counts the reference's operations.
"""

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.loaders import endless
from benchmarks.measure import Arm, describe_machine, make_bar, measure, print_table, write_record
from benchmarks.train_step import FLOP_PER_IMAGE
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.reporting.bench import Work
from tinyvgg.shards import open_dataset
from tinyvgg.training.config import TrainConfig
from tinyvgg.training.loop import train
from tinyvgg.training.state import Training, open_training

CUDA = torch.device("cuda", 0)
BATCH_SIZE = 512
MODES = ("default", "reduce-overhead")
BACKENDS = ("dali", "torch", "resident")
STEPS = 20  # in one unit of work


def load(packed: str, backend: Any, dtype: str) -> Work:
    """Shuffled, cropped, flipped train batches on the device."""
    config = LoaderConfig(backend=backend, batch_size=BATCH_SIZE)
    dataset = open_dataset(packed)
    batches = endless(
        open_loader(dataset, "train", config, device=CUDA, dtype=getattr(torch, dtype))
    )
    return lambda: sum(next(batches).num_valid for _ in range(STEPS))


def build_training(packed: str, backend: Any, mode: Any) -> Training:
    """Return a new run of recipe `fast` in bf16, whose run folder is gone at once."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            Path(packed), Path(folder) / "run", batch_size=BATCH_SIZE, epochs=10**6,
            amp="bf16", compile="on", compile_mode=mode, backend=backend,
            sizes=(), size_shares=(),
        )  # fmt: skip
        return open_training(config, open_dataset(packed), CUDA, rank=0)


def step_alone(packed: str, mode: str) -> Work:
    """The step on one batch."""
    training = build_training(packed, "resident", mode)
    training.prepare()
    batch = next(iter(training.loader))
    batch = replace(batch, images=batch.images.clone())

    def work() -> int:
        for _ in range(STEPS):
            training.epoch_meter.add(*training.take_step(batch, 1e-4), batch.num_valid)
        return STEPS * batch.num_valid

    return work


def train_loop(packed: str, backend: str, mode: str) -> Work:
    """The loop of `tinyvgg train`."""
    training = build_training(packed, backend, mode)

    def work() -> int:
        step = training.step
        training.config = replace(training.config, limit_steps=step + STEPS)
        for _ in train(training, None, lambda report: None):
            pass
        return (training.step - step) * BATCH_SIZE

    return work


def main() -> None:
    """Measure all arms and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packed", type=os.path.abspath)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    machine = describe_machine()
    if machine["gpu"] is None:
        raise SystemExit("benchmarks.gpu: no CUDA device here; nothing was measured")
    given = {"packed": options.packed}

    def step_name(mode: str) -> str:
        return f"step alone, bf16, compile mode {mode}"

    arms = [
        *(
            Arm(f"load, backend {backend}, {dtype}", "benchmarks.gpu:load",
                {**given, "backend": backend, "dtype": dtype})
            for backend in BACKENDS for dtype in ("bfloat16", "float16")
        ),
        *(
            Arm(step_name(mode), "benchmarks.gpu:step_alone", {**given, "mode": mode},
                window_sec=1.0, flop_per_image=FLOP_PER_IMAGE)
            for mode in MODES
        ),
        *(
            Arm(f"train, backend {backend}, compile mode {mode}", "benchmarks.gpu:train_loop",
                {**given, "backend": backend, "mode": mode}, window_sec=1.0,
                ceiling=step_name(mode), flop_per_image=FLOP_PER_IMAGE)
            for backend in BACKENDS for mode in MODES
        ),
    ]  # fmt: skip
    measured = measure(arms, num_repeats=options.repeats)
    bars = [
        make_bar(measured[arm.name], measured[str(arm.ceiling)], f"{arm.name}, over its step", 0.98)
        for arm in arms
        if arm.ceiling
    ]
    print_table(measured, bars)
    claim = f"one CUDA device, batch {BATCH_SIZE}, crop + flip + normalize, shuffled"
    print(write_record("gpu", claim, machine, measured, bars))


if __name__ == "__main__":
    main()
