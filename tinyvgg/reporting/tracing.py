"""Tracing: a few steps under torch's profiler, as a file and as a table of operations.

From: `run_lines`, after each step.
To:   RUN/trace.json, for chrome://tracing or ui.perfetto.dev, and stdout.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

SKIPPED_STEPS = 3  # the first ones allocate, choose kernels, and start the profiler itself
TOP_OPERATIONS = 20


@contextmanager
def traced_steps(
    num_steps: int | None, folder: Path, show: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each step; trace steps 4 to 3 + `num_steps`.

    Args:
        num_steps: to trace; None traces nothing.
        folder: for trace.json.
        show: called with the table of operations, and with where the file is.
    """
    if num_steps is None:
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    sort_by = f"self_{activities[-1].name.lower()}_time_total"

    def write(profiler: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        show(profiler.key_averages().table(sort_by=sort_by, row_limit=TOP_OPERATIONS))
        show(f"{folder / 'trace.json'}: {num_steps} steps; open it in ui.perfetto.dev")

    steps = schedule(wait=SKIPPED_STEPS - 1, warmup=1, active=num_steps, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=write) as profiler:
        yield profiler.step
    if profiler.step_num < SKIPPED_STEPS + num_steps:
        show(f"profile: {profiler.step_num} steps taken, {SKIPPED_STEPS + num_steps} needed")
