"""Memory: how much of it decoding may take at once, over all threads of the process."""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

SMALL_PIXELS = 2**20  # below this, memory is not counted
NOTHING_TAKEN: AbstractContextManager[None] = nullcontext()


class MemoryBudget:
    """Bytes that may be taken at once; who wants more than all of them waits to be alone."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._start()
        if hasattr(os, "register_at_fork"):  # a child has none of the threads that hold some
            os.register_at_fork(after_in_child=self._start)

    def _start(self) -> None:
        self.free_bytes = self.num_bytes
        self.changed = threading.Condition()

    def taken(self, num_pixels: int, bytes_per_pixel: int) -> AbstractContextManager[None]:
        """Wait for memory, and hold it for the length of a `with` block."""
        if num_pixels <= SMALL_PIXELS:
            return NOTHING_TAKEN
        return self._taken(min(num_pixels * bytes_per_pixel, self.num_bytes))

    @contextmanager
    def _taken(self, wanted: int) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: self.free_bytes >= wanted)
            self.free_bytes -= wanted
        try:
            yield
        finally:
            with self.changed:
                self.free_bytes += wanted
                self.changed.notify_all()
