"""OUT.partial: its shards, which of them are finished, and packing those that are not.

From: `pack` and `parts`, which hold the lock.
To:   the same, with what was written of every shard, now or by a run before.

A bad image is noted in the journal and its shard is not finished. With `--on-bad skip` the shards
from that image on are planned again without it: they are rare, and packing some shards twice is
simpler than rows that move. A fault of the machine while an image is read (EIO, EMFILE, …) says
nothing of that image: it ends the pack, also under `--on-bad skip`.
"""

import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Protocol

import PIL
import simplejpeg

from tinyvgg.errors import BackendUnavailable
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.encoders import make_encoder
from tinyvgg.packing.folders import ImageSource, SourceImage, show_path
from tinyvgg.packing.forks import forking
from tinyvgg.packing.interrupts import run_interruptible
from tinyvgg.packing.journal import WRITING, Header, Journal
from tinyvgg.packing.ray_tasks import open_ray
from tinyvgg.packing.tasks import ShardTask, WrittenShard, hash_listing, plan_shards
from tinyvgg.packing.threads import Advance, OpenBar, Report, Threads
from tinyvgg.shards.manifest import AnyFormat, ImageFormat

NUM_STATS = 16  # threads that look up sizes and times of files: on a network each takes a while

BadFiles = dict[str, dict[str, str]]
StartSplit = Callable[[str, int], Advance]

logger = logging.getLogger("tinyvgg")


class Engine(Protocol):
    """What does tasks: threads of this process, or a cluster."""

    def write_shards(
        self, tasks: Sequence[ShardTask], open_bar: OpenBar, report: Report, stop: Event
    ) -> None:
        """As `Threads.write_shards`."""


@dataclass
class PartialPack:
    """The shards of OUT.partial.

    Attributes:
        folder: OUT.partial; it is there.
        config: what to pack and how.
        source: its images.
        image: what they become.
        start_split: opens a bar.
        writer: "whole", or the name of a part.
        written: of each finished shard, by name.
        bad_files: that were met in this run, and those left out, by split and path, with reasons.
        was_changed: whether the source has other paths or labels than when a journal was begun.
    """

    folder: Path
    config: PackConfig
    source: ImageSource
    image: AnyFormat
    start_split: StartSplit
    writer: str
    written: dict[str, WrittenShard] = field(default_factory=dict)
    bad_files: BadFiles = field(default_factory=lambda: {"train": {}, "val": {}})
    was_changed: bool = False

    def __post_init__(self) -> None:
        """Read the journals."""
        self.header = Header(
            options=_list_options(self.config, self.image),
            listing=hash_listing(self.source.splits),
        )
        self.options = self.header.model_dump_json(include={"options"})
        self.journal = Journal(self.folder, self.writer)
        listings = {header.listing for header in self.journal.headers}
        self.was_changed = bool(listings) and self.header.listing not in listings

    def find_other_option(self) -> tuple[str, str, str] | None:
        """Return name, value then and value now of an option that a journal has another value of.

        None: all journals have those of this pack.
        """
        for header in self.journal.headers:
            for name in sorted({*header.options, *self.header.options}):
                then, now = header.options.get(name, "none"), self.header.options.get(name, "none")
                if then != now:
                    return name, then, now
        return None

    def start_over(self) -> None:
        """Remove all that is there."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self.journal = Journal(self.folder, self.writer)

    def take_known_bad(self) -> None:
        """Leave out what an earlier run found to be bad, and what is as it was."""
        for split, images in self.source.splits.items():
            self.bad_files[split] |= self.journal.list_bad(self.source.tree, images)

    def list_left(self) -> dict[str, list[SourceImage]]:
        """Return the images of each split that are not known to be bad."""
        return {
            split: [image for image in images if image.path not in self.bad_files[split]]
            if self.bad_files[split]
            else images
            for split, images in self.source.splits.items()
        }

    def list_bad(self, split: str) -> list[tuple[str, str]]:
        """Return path and reason of the bad files of a split, as they are shown, in its order."""
        bad_files = self.bad_files[split]
        if not bad_files:
            return []
        return [
            (show_path(image.path), bad_files[image.path])
            for image in self.source.splits[split]
            if image.path in bad_files
        ]

    def plan(self) -> list[ShardTask]:
        """Return the shards of all images that are not known to be bad."""
        return plan_shards(self.list_left(), self.config.shard_size)

    def plan_part(self, index: int, num_parts: int) -> list[ShardTask]:
        """Return the shards of a part: which those are does not depend on bad files."""
        places = self.find_places()
        return [task for task in self.plan() if places[task.name] % num_parts == index]

    def find_places(self) -> dict[str, int]:
        """Return the place of each shard by its name, were no file bad."""
        tasks = plan_shards(self.source.splits, self.config.shard_size)
        return {task.name: place for place, task in enumerate(tasks)}

    def find_finished(self, tasks: Sequence[ShardTask]) -> list[ShardTask]:
        """Take what is finished of some tasks; return those that are finished of other files."""
        known = [task for task in tasks if task.name in self.journal.lines]

        def find(task: ShardTask) -> WrittenShard | None:
            key = task.make_key(self.options, task.find_stamps(self.source))
            return self.journal.find_finished(task, key, self.image)

        def find_all(stop: Event) -> list[WrittenShard | None]:
            with ThreadPoolExecutor(NUM_STATS) as pool:
                return list(pool.map(lambda task: None if stop.is_set() else find(task), known))

        found = run_interruptible(find_all) if known else []
        finished = {
            task.name: written
            for task, written in zip(known, found, strict=True)
            if written is not None
        }
        for task in tasks:
            self.written.pop(task.name, None)
        self.written |= finished
        return [task for task in known if task.name not in finished]

    def list_todo(self, tasks: Sequence[ShardTask]) -> list[ShardTask]:
        """Return the tasks whose shards are not finished."""
        return [task for task in tasks if task.name not in self.written]

    def name_files(self, tasks: Sequence[ShardTask]) -> set[str]:
        """Return the names of the files of finished shards."""
        records = [self.written[task.name].record for task in tasks if task.name in self.written]
        return {name for record in records if record is not None for name in record.file_names}

    def write(self, tasks: Sequence[ShardTask]) -> BadFiles:
        """Pack the shards of the tasks that are not finished; return the bad files among them.

        Raises:
            OSError: the machine cannot read an image, or write a shard.
        """
        todo = self.list_todo(tasks)
        bad_files: BadFiles = {"train": {}, "val": {}}
        if not todo:
            return bad_files
        self.journal.begin(self.header)

        def open_bar(split: str) -> Advance:
            num_images = sum(len(task.images) for task in tasks if task.split == split)
            num_todo = sum(len(task.images) for task in todo if task.split == split)
            advance = self.start_split(split, num_images)
            if num_todo < num_images:
                advance(num_images - num_todo)
            return advance

        def report(task: ShardTask, written: WrittenShard, folder: Path) -> None:
            if written.bad_files:
                bad_files[task.split] |= {image.path: reason for image, reason in written.bad_files}
                self.journal.add_bad(task, written, self.source.tree)
                return
            key = task.make_key(self.options, written.stamps)
            self.journal.add(task, key, written, folder)
            self.written[task.name] = written

        scratch = self.folder / f"{WRITING}-{self.writer}"
        if scratch.exists():  # of a killed run: nobody else holds the lock
            shutil.rmtree(scratch)
        scratch.mkdir()
        try:
            num_images = sum(len(task.images) for task in todo)
            with self._open_engine(scratch, num_images) as engine:
                run_interruptible(functools.partial(engine.write_shards, todo, open_bar, report))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return bad_files

    @contextmanager
    def _open_engine(self, scratch: Path, num_images: int) -> Iterator[Engine]:
        if self.config.engine == "ray":
            with open_ray(self.config, self.source, self.image, scratch) as engine:
                yield engine
            return
        num_threads = self.config.workers or num_cores()
        own = make_encoder(self.config, self.source, self.image, num_threads)
        with forking(own, num_threads, num_images) as encoder:
            yield Threads(encoder, num_threads, scratch)

    @contextmanager
    def saying_what_stays(self, num_shards: int) -> Iterator[None]:
        """Say on the way out that finished shards stay, if there are any."""
        try:
            yield
        except (KeyboardInterrupt, OSError, BackendUnavailable):
            if self.written:
                logger.warning(
                    "%s: %s of %s shards are finished and stay; the same command goes on from "
                    "there",
                    *(self.folder, f"{len(self.written):,}", f"{num_shards:,}"),
                )
            raise

    def say_resumed(self, num_shards: int, others: Sequence[ShardTask]) -> None:
        """Say that there are shards of a run before, and whether the source changed since.

        Args:
            num_shards: that are to be packed, with those.
            others: those that hold other files; bad files move some, too.
        """
        is_moved = [bool(self.bad_files[task.split]) for task in others]
        if self.was_changed or not all(is_moved):
            logger.warning(
                "%s: changed since %s was begun: %s of its shards hold the same files and are "
                "kept, %s are packed again",
                *(self.source.name, self.folder, f"{len(self.written):,}", f"{len(others):,}"),
            )
        elif self.written:
            logger.warning(
                "%s: %s of %s shards are finished and kept",
                *(self.folder, f"{len(self.written):,}", f"{num_shards:,}"),
            )


def _list_options(config: PackConfig, image: AnyFormat) -> dict[str, str]:
    """Return all that the bytes of a shard depend on besides its images, by flag."""
    options = {
        "--encoding": config.encoding,
        "--shard-size": str(config.shard_size),
        "decoders": f"Pillow {PIL.__version__}, simplejpeg {simplejpeg.__version__}",
    }
    if isinstance(image, ImageFormat):
        options["--resize"] = str(config.resize or "none")
        options["image size"] = f"{image.width}x{image.height}"
    else:
        options["--recode"] = str(config.recode or "none")
    return options


def num_cores() -> int:
    """Return the CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
