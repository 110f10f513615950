"""Loaders: shuffled, cropped, flipped train batches on the device, touched by nothing."""

import time
from collections.abc import Iterator

import torch

from benchmarks.gpu_arms.plan import Row, Setting
from benchmarks.gpu_arms.rates import measure_unit
from benchmarks.gpu_arms.steps import TINY_BATCH, open_batches
from benchmarks.loaders import endless


def time_loader(setting: Setting, *, backend: str, dtype: str, batch_size: int) -> Iterator[Row]:
    """Measure one backend, its epochs' beginnings included."""
    batch_size = setting.scale(batch_size, TINY_BATCH)
    started = time.perf_counter()
    loader = open_batches(setting, "train", backend, getattr(torch, dtype), batch_size)
    batches = endless(loader)

    def unit(num_steps: int) -> int:
        return sum(next(batches).num_valid for _ in range(num_steps))

    row = measure_unit(setting, unit, batch_size, started)
    yield {"name": f"load, {backend}, {dtype}", **row}
