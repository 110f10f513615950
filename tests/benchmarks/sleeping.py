"""Arms whose behavior is known: ten images in at least five milliseconds, and some that fail."""

import os
import signal
import time
from collections.abc import Callable, Iterator

from benchmarks.gpu_arms.plan import Row, Setting


def ten_images() -> Callable[[], int]:
    """Return work that sleeps."""

    def work() -> int:
        time.sleep(0.005)
        return 10

    return work


def arm_that_measures(setting: Setting) -> Iterator[Row]:
    """Yield one row."""
    yield {"name": "step", "images_per_sec": 10.0, "windows": [10.0] * 5, "mfu": None}


def arm_that_raises(setting: Setting) -> Iterator[Row]:
    """Yield one row, then fail."""
    yield {"name": "first", "ms": 1.0}
    raise RuntimeError("out of order\nsecond line")


def arm_that_hangs(setting: Setting) -> Iterator[Row]:
    """Yield one row, then nothing for an hour."""
    yield {"name": "first", "ms": 1.0}
    time.sleep(3600)


def arm_that_dies(setting: Setting) -> Iterator[Row]:
    """Yield one row, then die as native code does."""
    yield {"name": "first", "ms": 1.0}
    os.kill(os.getpid(), signal.SIGSEGV)


def arm_that_cannot(setting: Setting) -> Iterator[Row]:
    """Need what no CPU has."""
    setting.require_cuda()
    yield {"name": "never"}
