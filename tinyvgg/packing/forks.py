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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from tinyvgg.packing.encoders import Block, Encoder, JpegEncoder, RawEncoder
from tinyvgg.packing.folders import SourceImage
from tinyvgg.packing.interrupts import signals_held

IMAGES_EACH = 2048  # 44 ms of encoding; starting and ending a process takes 4 to 5
MAX_PROCESSES = 64  # each keeps two files open
MAX_LEFT = 8  # blocks in a row that a process leaves, until the set is taken for one of other files
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
    num_processes = min(num_processes, MAX_PROCESSES, num_images // IMAGES_EACH)
    # elsewhere a process with threads may not be forked, and a spawned one takes 0.4 s to start
    if sys.platform != "linux" or num_processes == 0 or not encoder.has_plain_images:
        yield encoder
        return
    with ExitStack() as stack:
        chosen: Encoder = encoder
        with suppress(OSError):  # no memory to share
            chosen = ForkedEncoder(encoder, num_processes, stack)
        yield chosen


class ForkedEncoder:
    """Has blocks encoded in processes, or by the thread that asks where none is idle.

    Args:
        encoder: what they are encoded by.
        num_processes: that are forked, or fewer if the system has no more.
        stack: ends them when it is left.

    Raises:
        OSError: there is no memory to share.
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
        self.write = encoder.write
        # what ends a process is registered before a signal is raised; in the process none ever is
        with signals_held(), suppress(OSError, RuntimeError):  # RuntimeError: filelock's, of a fork
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
                logger.warning(
                    "a decoding process of pack ended with status %d; a thread does its work",
                    process.close(),
                )
            else:
                process.num_left = process.num_left + 1 if block is None else 0
                if process.num_left < MAX_LEFT:
                    self.idle.put(process)
        if block is None:
            return self.encoder.encode(rows, buffer)
        block.buffer = buffer
        return block


class _Process:
    """A copy of this process that encodes one block after the other; made with signals held.

    Args:
        encoder: that it encodes by.
        memory: of all buffers, shared.

    Attributes:
        num_left: blocks in a row that it has left to the threads.

    Raises:
        OSError, RuntimeError: no other process can be started now.
    """

    def __init__(self, encoder: OwnEncoder, memory: NDArray[np.uint8]) -> None:
        self.num_left = 0
        with ExitStack() as opened:  # closed if no process comes of it
            requests, replies = (_open_pipe(opened) for _ in range(2))
            self.pid = os.fork()
            if self.pid == 0:
                _run_process(encoder, memory, requests, replies)
            opened.pop_all()
        os.close(requests.reader)
        os.close(replies.writer)
        self.requests: BinaryIO = os.fdopen(requests.writer, "wb")
        self.replies: BinaryIO = os.fdopen(replies.reader, "rb")

    def encode(self, rows: Sequence[SourceImage], place: int) -> Block | None:
        """Return a block whose pixels are in a buffer; None: a thread has to encode it.

        Raises:
            OSError, EOFError, UnpicklingError: the process has ended.
        """
        pickle.dump((rows, place), self.requests)
        self.requests.flush()
        block: Block | None = pickle.load(self.replies)
        return block

    def close(self) -> int:
        """Let the process end, and wait for that; return its status, of a signal with a minus."""
        with suppress(OSError, ValueError):  # it has ended; it was told before
            pickle.dump(None, self.requests)
        for pipe in (self.requests, self.replies):
            with suppress(OSError):  # what was not yet written to one that has ended
                pipe.close()
        with suppress(ChildProcessError):  # another one has waited for it
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return 0


class _Pipe(NamedTuple):
    """The descriptors of a pipe's ends."""

    reader: int
    writer: int


def _open_pipe(opened: ExitStack) -> _Pipe:
    pipe = _Pipe(*os.pipe())
    for end in pipe:
        opened.callback(os.close, end)
    return pipe


def _run_process(
    encoder: OwnEncoder, memory: NDArray[np.uint8], requests: _Pipe, replies: _Pipe
) -> NoReturn:
    """Be a process, and end it."""
    status = 1
    try:
        sys.stderr = sys.stdout = None  # what they stand for may be locked by a thread of `pack`
        os.close(requests.writer)
        os.close(replies.reader)
        _close_others({requests.reader, replies.writer, *encoder.source.tree.descriptors})
        with os.fdopen(requests.reader, "rb") as asked, os.fdopen(replies.writer, "wb") as said:
            _serve(encoder, memory, asked, said)
        status = 0
    finally:
        os._exit(status)


def _close_others(kept: set[int]) -> None:
    """Close all files but some and the standard ones: locks, and the pipes of other processes."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - a Path for each is no use
        if int(name) > 2 and int(name) not in kept:
            with suppress(OSError):  # the listing itself
                os.close(int(name))


def _serve(
    encoder: OwnEncoder, memory: NDArray[np.uint8], requests: BinaryIO, replies: BinaryIO
) -> None:
    """Answer requests until the one for the end, or until `pack` ends."""
    gc.freeze()  # the listing is not walked again and again, nor copied for that
    encoder.is_plain_only = True
    with suppress(EOFError):
        while (request := pickle.load(requests)) is not None:
            rows, place = request
            block: Block | None = None
            with suppress(OSError):
                block = encoder.encode(rows, memory[place])
                block = None if block.bad_files else replace(block, buffer=NO_BUFFER)
            pickle.dump(block, replies)
            replies.flush()
            del block, request, rows  # not held while it waits
