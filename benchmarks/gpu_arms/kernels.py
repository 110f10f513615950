"""Kernels: 20 steps under torch's profiler: what runs, how often, for how long.

On a CPU the rows are operators instead of kernels.
"""

import time
from collections.abc import Iterator
from typing import Any

from torch.profiler import ProfilerActivity
from torch.profiler import profile as trace

from benchmarks.gpu_arms.plan import Row, Setting
from benchmarks.gpu_arms.rates import synchronize
from benchmarks.gpu_arms.steps import LEARNING_RATE, TINY_BATCH, build_training

TOP = 25
# first match wins, so layout before convolutions: cuDNN's own copies bear both words
GROUPS = {
    "layout copies": ("nchwToNhwc", "nhwcToNchw", "AddPadding"),
    "memory copies": ("Memcpy", "Memset"),
    "optimizer": ("multi_tensor", "adam", "foreach"),
    "triton": ("triton_",),
    "DALI": ("dali",),
    "convolutions and matrix products": (
        "gemm", "conv", "xmma", "cutlass", "nvjet", "cudnn", "implicit", "wgrad", "dgrad",
        "fprop", "sm90_", "sm80_", "cublas",
    ),
}  # fmt: skip
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch")


def name_group(kernel: str) -> str:
    """Return the kind of a kernel."""
    for group, words in GROUPS.items():
        if any(word.lower() in kernel.lower() for word in words):
            return group
    return "other"


def profile_steps(setting: Setting, *, backend: str, mode: str, batch_size: int) -> Iterator[Row]:
    """Yield a summary, then the kernels that take most, microseconds and calls a step."""
    batch_size = setting.scale(batch_size, TINY_BATCH)
    num_steps = setting.scale(20, 1)
    training = build_training(setting, batch_size=batch_size, mode=mode, backend=backend)

    def batches() -> Iterator[Any]:
        while True:
            yield from training.loader

    supply = batches()

    def take(count: int) -> None:
        for _ in range(count):
            batch = next(supply)
            loss, hits = training.take_step(batch, LEARNING_RATE)
            training.epoch_meter.add(loss, hits, batch.num_valid)
            training.update_average()
        synchronize(setting)

    take(setting.scale(5, 1))
    is_cuda = setting.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with trace(activities=activities) as profiler:
        started = time.perf_counter()
        take(num_steps)
        whole_us = 1e6 * (time.perf_counter() - started)
    averages = list(profiler.key_averages())
    launches = sum(row.count for row in averages if row.key.startswith(LAUNCHES))
    yield from describe_kernels(
        [
            (row.key, row.self_device_time_total if is_cuda else row.self_cpu_time_total, row.count)
            for row in averages
            if not is_cuda or str(row.device_type).endswith("CUDA")
        ],
        num_steps,
        launches,
        whole_us,
    )


def describe_kernels(
    kernels: list[tuple[str, float, int]], num_steps: int, num_launches: int, whole_us: float
) -> Iterator[Row]:
    """Yield the summary of kernels, then the top ones.

    Args:
        kernels: name, microseconds in all, calls in all.
        num_steps: that they are of.
        num_launches: calls into the driver that launch a kernel or a graph.
        whole_us: wall time of all steps, with the profiler.
    """
    kernels = sorted((one for one in kernels if one[1] > 0), key=lambda one: -one[1])
    total_us = sum(us for _, us, _ in kernels)
    groups: dict[str, dict[str, float]] = {}
    for name, us, count in kernels:
        group = groups.setdefault(name_group(name), {"us_per_step": 0.0, "calls_per_step": 0.0})
        group["us_per_step"] += us / num_steps
        group["calls_per_step"] += count / num_steps

    def calls(group: str) -> float:
        return groups.get(group, {}).get("calls_per_step", 0.0)

    yield {
        "name": "summary of the profile",
        "wall_us_per_step": whole_us / num_steps,
        "kernel_us_per_step": total_us / num_steps,
        "kernels_per_step": sum(count for _, _, count in kernels) / num_steps,
        "launches_per_step": num_launches / num_steps,
        "layout_copies_per_step": calls("layout copies"),
        "memory_copies_per_step": calls("memory copies"),
        "groups": groups,
    }
    for name, us, count in kernels[:TOP]:
        yield {
            "name": f"kernel {name[:150]}",
            "us_per_step": us / num_steps,
            "calls_per_step": count / num_steps,
            "share": us / total_us,
            "group": name_group(name),
        }
