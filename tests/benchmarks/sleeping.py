"""An arm whose rate is known: ten images in at least five milliseconds."""

import time
from collections.abc import Callable


def ten_images() -> Callable[[], int]:
    """Return work that sleeps."""

    def work() -> int:
        time.sleep(0.005)
        return 10

    return work
