"""Threads: shard tasks done in this process.

    one thread      hands out blocks of 256 images, in order, as buffers come free
    decode threads  read, decode and sum up a block, or have a process do it (`forks`)
    write threads   hash, checksum, write and fsync a shard, block by block, in order

From: `pack`, with the tasks that are to be done; a worker of `ray_tasks`, with one.
To:   files in a folder, and a report of each shard, from the thread that wrote it.

Promises: the bytes depend on the images alone, not on the number of threads; memory is 32 MiB
of buffers, or an image for each decode thread and two more where that is more, besides what
decoding takes (`decode`).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event

import numpy as np
from numpy.typing import NDArray

from tinyvgg.packing.encoders import Block, Encoder
from tinyvgg.packing.tasks import ShardTask, WrittenShard

NUM_WRITERS = 2  # one hashes and writes while the other waits for fsync

Advance = Callable[[int], None]
OpenBar = Callable[[str], Advance]
Report = Callable[[ShardTask, WrittenShard, Path], None]


@dataclass(frozen=True)
class _Handout:
    """A task, and its blocks as they are handed out; None ends them."""

    task: ShardTask
    blocks: "SimpleQueue[Future[Block] | None]"
    advance: Advance


@dataclass(frozen=True)
class Threads:
    """Does tasks with threads of this process.

    Attributes:
        encoder: what images become.
        num_threads: that decode.
        folder: where files go until they are reported; it is there.
    """

    encoder: Encoder
    num_threads: int
    folder: Path

    def write_shards(
        self, tasks: Sequence[ShardTask], open_bar: OpenBar, report: Report, stop: Event
    ) -> None:
        """Write the shards of all tasks.

        Args:
            tasks: in order of their splits.
            open_bar: called once a split; what it returns, with numbers of images done.
            report: called for each shard when its files are on disk in the folder.
            stop: ends it early: shards that are half done are not reported.

        Raises:
            DatasetError: a file changed meanwhile.
            OSError: the machine cannot read an image, or write a shard.
        """
        encoder = self.encoder
        free: SimpleQueue[NDArray[np.uint8] | None] = SimpleQueue()
        for _ in range(encoder.num_buffers):
            free.put(encoder.new_buffer())
        with (
            ThreadPoolExecutor(self.num_threads) as decoders,
            ThreadPoolExecutor(NUM_WRITERS) as pool,
        ):
            writing: list[Future[None]] = []
            try:
                for task, advance in _open_bars(tasks, open_bar):
                    handout = _Handout(task, SimpleQueue(), advance)
                    writing.append(pool.submit(self._write_shard, handout, free, report))
                    if not self._hand_out(handout, decoders, free, stop):
                        break
            except BaseException:
                decoders.shutdown(cancel_futures=True)
                raise
            for job in writing:
                job.result()

    def _hand_out(
        self,
        handout: _Handout,
        decoders: ThreadPoolExecutor,
        free: "SimpleQueue[NDArray[np.uint8] | None]",
        stop: Event,
    ) -> bool:
        """Hand out the blocks of a task as buffers come free; False if that must end early."""
        images, num_rows = handout.task.images, self.encoder.num_rows
        try:
            for start in range(0, len(images), num_rows):
                buffer = free.get()  # waits here: this bounds the memory
                if stop.is_set() or buffer is None:  # None: a writer gave up
                    return False
                part = images[start : start + num_rows]
                handout.blocks.put(decoders.submit(self.encoder.encode, part, buffer))
            return True
        finally:
            handout.blocks.put(None)

    def _write_shard(
        self, handout: _Handout, free: "SimpleQueue[NDArray[np.uint8] | None]", report: Report
    ) -> None:
        """Write one shard from its blocks as they come; runs in a write thread."""
        task, written, num_images = handout.task, WrittenShard(), 0

        def receive_blocks() -> Iterator[Block]:
            nonlocal num_images
            while (encoding := handout.blocks.get()) is not None:
                block = encoding.result()
                yield block
                num_images += block.num_images
                written.add(block)
                free.put(block.buffer)
                handout.advance(block.num_images)

        labels = np.array([image.label for image in task.images], np.int64)
        try:
            written.record = self.encoder.write(
                self.folder, task.split, task.index, receive_blocks(), labels
            )
            if num_images == len(task.images):  # else it was told to stop
                report(task, written, self.folder)
        except BaseException:
            free.put(None)
            raise


def _open_bars(
    tasks: Sequence[ShardTask], open_bar: OpenBar
) -> Iterator[tuple[ShardTask, Advance]]:
    split = ""
    for task in tasks:
        if task.split != split:
            split, advance = task.split, open_bar(task.split)
        yield task, advance
