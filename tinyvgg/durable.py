"""Durable writes: a file appears under its name whole and on disk, or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO


def replace_file(
    path: Path, write: Callable[[IO[bytes]], object], keep_as: Path | None = None
) -> None:
    """Write a file beside its name, sync it, then rename it over what was there.

    Args:
        path: the final name.
        write: called with the open file.
        keep_as: name for what was there; killed in between, only that name is there.

    Raises:
        OSError: the disk is full or cannot be written; the old file is untouched, under its
            name or under `keep_as`.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep_as is not None and path.exists():
            path.replace(keep_as)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut (POSIX; elsewhere nothing is needed)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
