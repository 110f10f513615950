"""Readahead: where a split exceeds the memory for it, images are asked for some batches ahead.

From: the rows of the plan.
To:   the page cache; backends read the mapped shards as ever, and find there what they need.

Reading a missing page of a mapped file, the system reads what lies around it, too: 128 KiB or more.
That pays where all of it is used before it is dropped, which is not so for shuffled images of a set
that does not fit: each drives others out. There nothing is read but the images themselves, many
at a time and before they are due (madvise(2): MADV_RANDOM, MADV_WILLNEED).
"""

import logging
import mmap
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch
from numba import types
from numpy.typing import NDArray

from tinyvgg.kernels import compile_kernel
from tinyvgg.loading.host_memory import find_free_memory
from tinyvgg.shards.store import Split

logger = logging.getLogger("tinyvgg")

# of what is free, for the pages of a split: the rest is for the network and what comes later
MEMORY_SHARE = 0.5
AHEAD_BYTES = 8 * 2**20  # asked for ahead; 64 MiB had pages dropped again before they were due
PAGE_BYTES = mmap.PAGESIZE

Item = TypeVar("Item")

madvise = types.ExternalFunction("madvise", types.intc(types.intp, types.intp, types.intc))


@compile_kernel
def advise(addresses: NDArray[np.int64], num_bytes: NDArray[np.int64], advice: int) -> None:
    """Tell the system what will be done with pieces of mapped memory; whole pages are meant.

    Args:
        addresses: int64 [n], where each begins.
        num_bytes: int64 [n], of each.
        advice: of `mmap`.
    """
    for place in range(len(addresses)):
        first = addresses[place] // PAGE_BYTES * PAGE_BYTES
        madvise(first, addresses[place] + num_bytes[place] - first, advice)


def open_readahead(split: Split) -> "Readahead | None":
    """Return what asks for the images of a shuffled split, None where it stays in memory."""
    if not hasattr(mmap, "MADV_RANDOM"):  # Windows
        return None
    needed, free = split.mapped_bytes, find_free_memory()
    if needed <= MEMORY_SHARE * free:
        return None
    logger.info(
        "split %s: %.2f GiB of images, %.2f GiB of memory is free: each is read by itself, ahead",
        split.name,
        needed / 2**30,
        free / 2**30,
    )
    return Readahead(split)


class Readahead:
    """Asks for the images of the next steps while a loader goes through an epoch.

    Args:
        split: from whose mapped shards no more than what is asked for is read from now on.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        images = [shard.images for shard in split.shards]
        advise(
            np.array([mapped.ctypes.data for mapped in images]),
            np.array([mapped.nbytes for mapped in images]),
            mmap.MADV_RANDOM,
        )

    def follow(self, rows: NDArray[np.int64], batches: Iterator[Item]) -> Iterator[Item]:
        """Yield batches, and before each is due ask for its images.

        Args:
            rows: int64 [steps, b], of the split.
            batches: one a step. Backends prepare some ahead, up to one on each thread.
        """
        step_bytes = int(self.split.row_bytes[rows[0]].sum())
        num_ahead = max(AHEAD_BYTES // step_bytes, torch.get_num_threads() + 2)
        self.ask(rows[:num_ahead])
        for step, batch in enumerate(batches):
            self.ask(rows[step + num_ahead : step + num_ahead + 1])
            yield batch

    def ask(self, rows: NDArray[np.int64]) -> None:
        """Let the system begin to read rows int64 […] of the split; do not wait for it."""
        rows = rows.reshape(-1)
        addresses, num_bytes = self.split.row_addresses[rows], self.split.row_bytes[rows]
        advise(addresses, num_bytes, mmap.MADV_WILLNEED)
