"""Process: what must be set before Python starts, for training on a CPU. No torch here.

Fresh memory for every activation is the largest waste of a CPU step after the convolutions:
glibc hands large blocks back to the kernel, which then clears them page by page, again and again.
"""

import os
import sys
from collections.abc import Sequence

# torch backs large tensors by 2 MiB pages; glibc keeps what was freed (thresholds in bytes)
TRAIN_ENVIRONMENT = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
}


def restart_for_training(argv: Sequence[str]) -> None:
    """Start this process again with `TRAIN_ENVIRONMENT`, unless it is set or means nothing here.

    A variable that the user has set stays as it is. Returns only if nothing had to be done.
    """
    missing = {key: value for key, value in TRAIN_ENVIRONMENT.items() if key not in os.environ}
    if not missing or not sys.platform.startswith("linux"):
        return
    command = [sys.executable, "-m", "tinyvgg.cli", *argv]
    os.execve(sys.executable, command, {**os.environ, **missing})
