"""Parts: N processes, on any machines, each of which packs every N-th shard.

From: `pack`, for `--part I/N` and `--finish`.
To:   OUT.partial, where each part has a lock and a journal of its own.

Shard k belongs to part k mod N. A part that begins holds OUT.lock for a moment, in which it takes
its own; whoever makes OUT holds OUT.lock, and then no part's may be held.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinyvgg.errors import DatasetError, bad_files_text
from tinyvgg.packing.folders import show_path
from tinyvgg.packing.journal import JOURNAL
from tinyvgg.packing.locking import hold_lock
from tinyvgg.packing.partial import PartialPack
from tinyvgg.packing.roots import listed
from tinyvgg.packing.tasks import ShardTask

PART = re.compile(r"part-([0-9]+)-of-([0-9]+)")


def name_part(index: int, num_parts: int) -> str:
    """Name the journal of a part."""
    return f"part-{index}-of-{num_parts}"


@contextmanager
def hold_part(partial: Path, index: int, num_parts: int) -> Iterator[None]:
    """Hold the lock of a part.

    Raises:
        DatasetError: another process packs it.
    """
    path = partial / JOURNAL / name_part(index, num_parts)
    with hold_lock(path, f"tinyvgg pack --part {index}/{num_parts}"):
        yield


def refuse_running_parts(partial: Path) -> None:
    """Refuse to make OUT while a part is being packed; OUT.lock is held.

    Raises:
        DatasetError: one is.
    """
    names = {path.name for path in (partial / JOURNAL).glob("part-*.lock")}
    for found in sorted(filter(None, map(PART.match, names)), key=lambda found: found[0]):
        with hold_part(partial, int(found[1]), int(found[2])):
            pass


def check_parts(pack: PartialPack) -> None:
    """Check that parts have packed all shards, but those that bad files moved.

    Raises:
        DatasetError: some are missing, or of files that changed since, or bad files stand in them.
    """
    planned = pack.plan()
    missing = [task for task in planned if task.name not in pack.journal.shards]
    if missing:
        raise DatasetError(
            f"{pack.folder}: {len(missing):,} of {len(planned):,} shards are not packed yet "
            f"({listed(task.name for task in missing)}); run {_name_parts(pack, missing)}"
        )
    if pack.config.on_bad == "fail":
        pack.take_known_bad()
        bad_files = [
            (show_path(path), reason)
            for split in pack.bad_files.values()
            for path, reason in split.items()
        ]
        if bad_files:
            remedy = (
                "mend or remove them and run the parts again, or pass --on-bad skip to all parts "
                "and to --finish"
            )
            raise DatasetError(bad_files_text(pack.source.name, bad_files, remedy))
    tasks = pack.plan()
    pack.find_finished(tasks)
    others = [task for task in pack.list_todo(tasks) if not pack.bad_files[task.split]]
    if others:
        raise DatasetError(
            f"{pack.folder}: {len(others):,} of {len(tasks):,} shards are damaged, or of files "
            f"that changed since they were packed ({listed(task.name for task in others)}); run "
            f"{_name_parts(pack, others)} again"
        )


def _name_parts(pack: PartialPack, tasks: list[ShardTask]) -> str:
    """Name the parts that shards belong to: '--part 0/4 and --part 3/4'."""
    counts = {int(found[2]) for found in map(PART.match, pack.journal.writers) if found}
    if len(counts) != 1:
        return "its part"
    (num_parts,) = counts
    places = pack.find_places()
    numbers = sorted({places[task.name] % num_parts for task in tasks})
    return listed(f"--part {number}/{num_parts}" for number in numbers)
