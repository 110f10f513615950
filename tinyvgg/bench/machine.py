"""Machine: what figures were measured on, and whether something else kept it busy.

From: the operating system.
To:   results of `tinyvgg bench`, and records of benchmarks/. No torch until a function needs it,
      no host name and no path.
"""

import os
import platform
import time
from pathlib import Path
from typing import Any

from tinyvgg import __version__

BUSY_SHARE = 0.1  # of the cores' time, above which other work disturbs the figures


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, GPU, versions, and the share of the cores that is busy now."""
    import torch

    return {
        "cpu": name_cpu(),
        "num_cores": count_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "busy_share": round(measure_busy_share(), 3),
        "tinyvgg": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def name_cpu() -> str:
    """Return the processor's model name."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def count_cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def measure_busy_share(window_sec: float = 1.0) -> float:
    """Return the share of all cores' time that was spent, 0 to 1; 0 where it cannot be told."""
    before = _read_core_ticks()
    time.sleep(window_sec)
    total, idle = (b - a for a, b in zip(before, _read_core_ticks(), strict=True))
    return 1 - idle / total if total else 0.0


def _read_core_ticks() -> tuple[int, int]:
    """Return the ticks of all cores since boot: all of them, and the idle ones (proc(5))."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0, 0
    ticks = [int(word) for word in stat.read_text().partition("\n")[0].split()[1:9]]
    return sum(ticks), ticks[3] + ticks[4]  # idle, and waiting for a disk
