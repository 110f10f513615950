"""Rates: windows of steps on a device, what the host does for them, and what share of the peak.

The device is synchronized at the edges of a window only. A *unit* is many steps in one go.
"""

import statistics
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from benchmarks.gpu_arms.plan import Row, Setting
from benchmarks.measure import describe_gpu
from tinyvgg.bench.windows import Work, time_window

Unit = Callable[[int], int]  # takes that many steps, returns how many images they were
READY_STEPS = 3  # under CUDA graphs: warm up, record, replay
HOST_STEPS = 2  # that no queue of launches can be full after


def synchronize(setting: Setting) -> None:
    """Wait for the device."""
    if setting.device == "cuda":
        torch.cuda.synchronize()


def repeat(setting: Setting, unit: Unit) -> Work:
    """Return one unit as work to be timed."""
    return lambda: unit(setting.num_steps)


def finish_start(setting: Setting, unit: Unit, started: float) -> Row:
    """Take the first steps; return seconds since `started`, compilation and capture included."""
    unit(setting.scale(READY_STEPS, 1))
    synchronize(setting)
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return {"ready_sec": time.perf_counter() - started}


def measure_unit(setting: Setting, unit: Unit, batch_size: int, started: float) -> Row:
    """Return rate, windows, ms, host ms, peak memory and seconds until ready.

    Args:
        setting: window length and number.
        unit: of the arm.
        batch_size: images in a step.
        started: `time.perf_counter()` when the arm began.
    """
    ready = finish_start(setting, unit, started)
    if not setting.is_tiny:
        time_window(repeat(setting, unit), setting.window_sec)
    work = repeat(setting, unit)
    windows = [time_window(work, setting.window_sec) for _ in range(setting.num_windows)]
    return {
        **describe_windows(windows, batch_size),
        "host_ms_per_step": measure_host_ms(setting, unit),
        "peak_memory_gb": peak_memory_gb(setting),
        **ready,
    }


def describe_windows(windows: list[float], batch_size: int) -> Row:
    """Return the median of images/sec, all of them, and what a step took."""
    rate = statistics.median(windows)
    return {
        "images_per_sec": rate,
        "windows": windows,
        "batch_size": batch_size,
        "ms_per_step": 1e3 * batch_size / rate,
    }


def measure_host_ms(setting: Setting, unit: Unit) -> float:
    """Return the median ms that the host takes to launch a step, the device idle before it.

    Over a whole window the host waits in a launch once the queue is full, and would seem as busy
    as the device is.
    """
    times = []
    for _ in range(setting.scale(10, 1)):
        synchronize(setting)
        started = time.perf_counter()
        unit(setting.scale(HOST_STEPS, 1))
        times.append(1e3 * (time.perf_counter() - started) / setting.scale(HOST_STEPS, 1))
    synchronize(setting)
    return statistics.median(times)


def measure_call_ms(setting: Setting, call: Callable[[], Any]) -> float:
    """Return the median ms of a call on the device, from runs of at least 20 ms each."""
    call()
    synchronize(setting)
    num_calls, run_sec = 1, setting.scale(20, 0) / 1e3
    times: list[float] = []
    while len(times) < setting.num_windows:
        started = time.perf_counter()
        for _ in range(num_calls):
            call()
        synchronize(setting)
        elapsed = time.perf_counter() - started
        if elapsed < run_sec:
            num_calls *= 2
        else:
            times.append(1e3 * elapsed / num_calls)
    return statistics.median(times)


def peak_memory_gb(setting: Setting) -> float | None:
    """Return the most memory that tensors held since the arm was ready; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if setting.device == "cuda" else None


@lru_cache
def peak_flop_per_sec() -> float | None:
    """Return the device's dense bf16 peak, where it is known."""
    peak: float | None = describe_gpu()["peak_flop_per_sec"]
    return peak


def share_of_peak(setting: Setting, flop_per_sec: float) -> float | None:
    """Return the share of the dense bf16 peak; None on a CPU or an unknown card."""
    peak = peak_flop_per_sec() if setting.device == "cuda" else None
    return flop_per_sec / peak if peak else None
