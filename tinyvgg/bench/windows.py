"""Windows: work repeated for some seconds, as images/sec.

From: `stages`, and every file of benchmarks/.
To:   their results. The device is synchronized at the edges of a window only: a wait inside would
      hide what overlaps.
"""

import time
from collections.abc import Callable

import torch

Work = Callable[[], int]  # does one unit, returns how many images it was


def time_window(work: Work, window_sec: float) -> float:
    """Repeat `work` for at least `window_sec` and return its images/sec."""
    num_images = 0
    _synchronize()
    started = time.perf_counter()
    while True:
        num_images += work()
        if time.perf_counter() - started >= window_sec:
            _synchronize()
            return num_images / (time.perf_counter() - started)


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
