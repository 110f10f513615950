"""Locking: one writer of an OUT at a time.

From: `pack` and `download`, before they touch OUT.partial.
To:   the same command in another process, which gets one clear error.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from tinyvgg.errors import DatasetError


@contextlib.contextmanager
def hold_lock(out: Path, command: str) -> Iterator[None]:
    """Hold OUT.lock, so that two processes never write the same OUT.

    Args:
        out: what is written; its folder is made.
        command: that writes it, for the error.

    Raises:
        DatasetError: another process holds it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out.with_name(out.name + ".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise DatasetError(f"{out}: another '{command}' is writing it; wait for it") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: nobody else has it
        lock.release()
