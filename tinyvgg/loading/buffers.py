"""Buffers: host memory of batches, taken again only when nobody holds a tensor of it.

From: the host kernel, which fills a buffer for every step.
To:   batches. A batch that is kept stays as it is; a loop that keeps none goes through a few
      buffers again and again, which stay in the cache.

A buffer is a numpy array; the tensor over it holds a reference to the array for as long as it, a
view of it or a slice of that lives, and no longer. So the array's reference count says whether the
buffer is free.
"""

import itertools
import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CACHE_LINE_BYTES = 64  # where torch's own memory begins, too


class BufferPool:
    """Buffers of one shape and type.

    Args:
        shape: of each.
        dtype: of the tensors.
        max_kept: buffers that are kept; more are allocated where more are held, and freed with
            their tensors.
        is_reused: whether buffers are given out in turn, held or not: who takes `max_kept` more of
            them has let go of the first.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, max_kept: int, *, is_reused: bool = False
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.max_kept = max_kept
        self.arrays: list[NDArray[np.uint8]] = [self._allocate()]
        self.turns: Iterator[Tensor] | None = None
        if is_reused:
            more = [self._allocate() for _ in range(max_kept - 1)]
            self.turns = itertools.cycle([self._view(array) for array in self.arrays + more])
        self.num_references = self._count_references(0)  # of a buffer that nobody else holds

    def take(self) -> Tensor:
        """Return an uninitialized tensor, whose memory no other tensor that is alive shares.

        Under `is_reused` it is one that was given out before.
        """
        if self.turns is not None:
            return next(self.turns)
        for index in range(len(self.arrays) - 1, -1, -1):
            if self._count_references(index) == self.num_references:
                array = self.arrays.pop(index)
                self.arrays.append(array)  # the last one that was taken is in the cache
                return self._view(array)
        array = self._allocate()
        if len(self.arrays) < self.max_kept:
            self.arrays.append(array)
        return self._view(array)

    def _count_references(self, index: int) -> int:
        return sys.getrefcount(self.arrays[index])

    def _allocate(self) -> NDArray[np.uint8]:
        shape = (*self.shape[:-1], self.shape[-1] * self.dtype.itemsize)
        num_bytes = math.prod(shape)
        memory = np.empty(num_bytes + CACHE_LINE_BYTES, np.uint8)
        first = -memory.ctypes.data % CACHE_LINE_BYTES
        return memory[first : first + num_bytes].reshape(shape)

    def _view(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).view(self.dtype)
