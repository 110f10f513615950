"""Forks: processes that read and decode blocks of plain JPEG files for the threads of `pack`.

From: `partial`, with the encoder of a set that is large enough to pay for them.
To:   `threads`, an encoder that gives the same blocks.

A thread lets go of the GIL and asks for it again ten times an image, so two take 33 µs an image
where one takes 43. A process has a GIL of its own: each decode thread has its blocks encoded by
one, into memory that they share, and waits for it.

Promises: a process decodes plain JPEG files of at most `SMALL_PIXELS` and nothing else. A block
with any other file, a bad one or a fault of the machine is encoded again by the thread, which
words errors and counts memory; so is the block of a process that was killed. No signal disturbs a
process, and it ends when `pack` does, however that ends.
"""

import gc
import logging
import mmap
import os
import pickle
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tinyvgg.packing.encoders import Block, Encoder, JpegEncoder, RawEncoder
from tinyvgg.packing.folders import SourceImage
from tinyvgg.packing.interrupts import signals_held
from tinyvgg.shards.manifest import ShardRecord

MIN_IMAGES = 4096  # of which processes save more than the 20 ms that starting them takes
MAX_LEFT = 8  # blocks that a process may leave, until the set is taken for one of other files
OwnEncoder = RawEncoder | JpegEncoder
NO_BUFFER = np.empty(0, np.uint8)

logger = logging.getLogger("tinyvgg")


@contextmanager
def forking(encoder: OwnEncoder, num_processes: int, num_images: int) -> Iterator[Encoder]:
    """Yield an encoder that has blocks encoded in processes, where that pays; else the given one.

    Args:
        encoder: that the processes are copies of.
        num_processes: as many as threads that ask for blocks.
        num_images: that it will be asked for.
    """
    # elsewhere a process with threads may not be forked, and a spawned one takes 0.4 s to start
    if sys.platform != "linux" or num_images < MIN_IMAGES or not encoder.has_plain_images:
        yield encoder
        return
    with ExitStack() as stack:
        yield ForkedEncoder(encoder, num_processes, stack)


class ForkedEncoder:
    """Has blocks encoded in processes.

    Args:
        encoder: what they are encoded by.
        num_processes: that are forked.
        stack: ends them when it is left.
    """

    def __init__(self, encoder: OwnEncoder, num_processes: int, stack: ExitStack) -> None:
        self.encoder = encoder
        self.num_rows, self.num_buffers = encoder.num_rows, encoder.num_buffers
        like = encoder.new_buffer()
        shared = mmap.mmap(-1, self.num_buffers * like.nbytes)
        shape = self.num_buffers, *like.shape
        self.memory: NDArray[np.uint8] = np.frombuffer(shared, np.uint8).reshape(shape)
        self.unused: list[NDArray[np.uint8]] = list(self.memory)
        self.idle: SimpleQueue[_Process] = SimpleQueue()
        for _ in range(num_processes):
            process = _Process(encoder, self.memory)
            stack.callback(process.close)
            self.idle.put(process)

    def new_buffer(self) -> NDArray[np.uint8]:
        """Return a buffer for one block, at most `num_buffers` times."""
        return self.unused.pop()

    def encode(self, rows: list[SourceImage], buffer: NDArray[np.uint8]) -> Block:
        """Have the images of a block read and decoded."""
        block = None
        with suppress(Empty):
            process = self.idle.get_nowait()
            place = (buffer.ctypes.data - self.memory.ctypes.data) // buffer.nbytes
            try:
                block = process.encode(rows, place)
            except (OSError, EOFError, pickle.UnpicklingError):
                logger.warning("a decoding process of pack was ended; a thread does its work")
            else:
                process.num_left += block is None
                if process.num_left < MAX_LEFT:
                    self.idle.put(process)
        if block is None:
            return self.encoder.encode(rows, buffer)
        block.buffer = buffer
        return block

    def write(
        self,
        folder: Path,
        split: str,
        index: int,
        blocks: Iterable[Block],
        labels: NDArray[np.int64],
    ) -> ShardRecord:
        """Write a shard from its blocks as they come."""
        return self.encoder.write(folder, split, index, blocks, labels)


class _Process:
    """A copy of this process that encodes one block after the other.

    Args:
        encoder: that it encodes by.
        memory: of all buffers, shared.

    Attributes:
        num_left: blocks that it has left to the threads.
    """

    def __init__(self, encoder: OwnEncoder, memory: NDArray[np.uint8]) -> None:
        self.num_left = 0
        their_requests, requests = os.pipe()
        replies, their_replies = os.pipe()
        with signals_held():  # in the process they are held for good
            self.pid = os.fork()
            if self.pid == 0:
                try:
                    _close_others({their_requests, their_replies, *encoder.source.tree.descriptors})
                    with (
                        os.fdopen(their_requests, "rb") as asked,
                        os.fdopen(their_replies, "wb") as said,
                    ):
                        _serve(encoder, memory, asked, said)
                finally:
                    os._exit(0)
        os.close(their_requests)
        os.close(their_replies)
        self.requests: BinaryIO = os.fdopen(requests, "wb")
        self.replies: BinaryIO = os.fdopen(replies, "rb")

    def encode(self, rows: Sequence[SourceImage], place: int) -> Block | None:
        """Return a block whose pixels are in a buffer; None: a thread has to encode it.

        Raises:
            OSError, EOFError, UnpicklingError: the process has ended.
        """
        pickle.dump((rows, place), self.requests)
        self.requests.flush()
        block: Block | None = pickle.load(self.replies)
        return block

    def close(self) -> None:
        """Let the process end, and wait for that."""
        for pipe in (self.requests, self.replies):
            with suppress(OSError):  # what was not yet written to one that has ended
                pipe.close()
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _close_others(kept: set[int]) -> None:
    """Close all files but some and the standard ones: locks, and the pipes of other processes."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - a Path for each is no use
        if int(name) > 2 and int(name) not in kept:
            with suppress(OSError):  # the listing itself
                os.close(int(name))


def _serve(
    encoder: OwnEncoder, memory: NDArray[np.uint8], requests: BinaryIO, replies: BinaryIO
) -> None:
    """Answer requests until `pack` closes the pipe or ends."""
    gc.freeze()  # the listing is not walked again and again, nor copied for that
    encoder.is_plain_only = True
    with suppress(EOFError):
        while True:
            rows, place = pickle.load(requests)
            block: Block | None = None
            with suppress(OSError):
                block = encoder.encode(rows, memory[place])
                block = None if block.bad_files else replace(block, buffer=NO_BUFFER)
            pickle.dump(block, replies)
            replies.flush()
