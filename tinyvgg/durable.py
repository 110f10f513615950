"""Durable writes: a file appears under its name whole and on disk, or not at all."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from tinyvgg.errors import naming

# What file systems answer that cannot sync a folder: CIFS, 9p, vboxsf, some FUSE. There a name is
# as durable as the server makes it; an error of the disk itself (EIO, ENOSPC) stays an error.
NO_FOLDER_SYNC = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOTTY}
)


def replace_file(
    path: Path,
    data: bytes | memoryview,
    keep_as: Path | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a file beside its name, sync it, then rename it over what was there.

    Args:
        path: the final name.
        data: all of it.
        keep_as: name for what was there; killed in between, only that name is there.
        check: given the file under another name, before it takes this one; may raise to prevent it.

    Raises:
        OSError: the disk is full or cannot be written, with the path and the bytes needed; the
            old file is untouched, under its name or under `keep_as`.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with naming(path, len(data)), partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(partial)
        if keep_as is not None and path.exists():
            path.replace(keep_as)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where its file system can do that.

    On POSIX; elsewhere nothing is needed.

    Raises:
        OSError: the disk failed, with the folder's name.
    """
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            error.filename = str(folder)
            raise
    finally:
        os.close(descriptor)
