"""Readahead: where a split exceeds the memory for it, images are asked for some batches ahead.

From: the rows of the plan.
To:   the page cache; backends read the mapped shards as ever, and find there what they need.

Reading a missing page of a mapped file, the system reads what lies around it, too: as much as the
disk's `read_ahead_kb` says, from 128 KiB to some MiB. That pays where all of it is used before it
is dropped, which is not so for shuffled images of a set that does not fit: each drives others out.
There nothing is read but the images themselves, many at a time and before they are due (madvise(2):
MADV_RANDOM, MADV_WILLNEED).
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
from tinyvgg.loading.host_batches import TASK_BYTES
from tinyvgg.loading.host_memory import find_free_memory
from tinyvgg.shards.store import Split

logger = logging.getLogger("tinyvgg")

# of what is free, for the pages of a split: the rest is for the network and what comes later
MEMORY_SHARE = 0.5
AHEAD_BYTES = 8 * 2**20  # asked for ahead; 64 MiB had pages dropped again before they were due
DALI_BATCHES = 6  # that its graph may hold and its threads may read
PIECE_BYTES = 128 * 2**10  # one call reads what the disk takes at once; this every disk does
PAGE_BYTES = mmap.PAGESIZE

Item = TypeVar("Item")

madvise = types.ExternalFunction("madvise", types.intc(types.intp, types.intp, types.intc))


@compile_kernel
def advise(
    addresses: NDArray[np.int64], num_bytes: NDArray[np.int64], advice: int, piece_bytes: int
) -> None:
    """Tell the system what will be done with parts of mapped memory; whole pages are meant.

    Args:
        addresses: int64 [n], where each begins.
        num_bytes: int64 [n], of each.
        advice: of `mmap`.
        piece_bytes: of one call at most; whole pages.
    """
    for place in range(len(addresses)):
        end = addresses[place] + num_bytes[place]
        for first in range(addresses[place] // PAGE_BYTES * PAGE_BYTES, end, piece_bytes):
            madvise(first, min(piece_bytes, end - first), advice)


def open_readahead(split: Split) -> "Readahead | None":
    """Return what asks for the images of a shuffled split, None where it stays in memory."""
    if not hasattr(mmap, "MADV_RANDOM"):  # Windows
        return None
    needed, free = split.mapped_bytes, find_free_memory()
    if needed <= MEMORY_SHARE * free:
        return None
    logger.info(
        "split %s: its %s exceed half of the %s of host memory that is free, so images are read "
        "one by one, shortly before they are due",
        split.name,
        _mebibytes(needed),
        _mebibytes(free),
    )
    return Readahead(split)


class Readahead:
    """Asks for the images of the next steps while a loader goes through an epoch.

    Args:
        split: whose mapped shards are read.
    """

    def __init__(self, split: Split) -> None:
        self.split = split

    def follow(self, rows: NDArray[np.int64], batches: Iterator[Item]) -> Iterator[Item]:
        """Yield batches, and before each is due ask for its images.

        Meanwhile nothing but images that are asked for, or missed, is read of the split.

        Args:
            rows: int64 [steps, b], of the split.
            batches: one a step, prepared ahead as `host_batches` or DALI's graphs do.
        """
        num_ahead = self.count_ahead(rows.shape[1])
        self._expect(mmap.MADV_RANDOM)
        try:
            self.ask(rows[:num_ahead])
            for step, batch in enumerate(batches):
                self.ask(rows[step + num_ahead : step + num_ahead + 1])
                yield batch
        finally:
            self._expect(mmap.MADV_NORMAL)

    def count_ahead(self, batch_size: int) -> int:
        """Return the steps that are asked for ahead: more than a backend prepares ahead."""
        step_bytes = max(1, int(batch_size * self.split.row_bytes.mean()))
        tasks = max(torch.get_num_threads() + 2, DALI_BATCHES)
        return max(AHEAD_BYTES // step_bytes, tasks * max(1, TASK_BYTES // step_bytes))

    def ask(self, rows: NDArray[np.int64]) -> None:
        """Let the system begin to read rows int64 […] of the split; do not wait for it."""
        rows = rows.reshape(-1)
        addresses, num_bytes = self.split.row_addresses[rows], self.split.row_bytes[rows]
        advise(addresses, num_bytes, mmap.MADV_WILLNEED, PIECE_BYTES)

    def _expect(self, advice: int) -> None:
        """Tell the system how all shards will be read."""
        images = [shard.images for shard in self.split.shards]
        advise(
            np.array([mapped.ctypes.data for mapped in images]),
            np.array([mapped.nbytes for mapped in images]),
            advice,
            2**62,
        )


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
