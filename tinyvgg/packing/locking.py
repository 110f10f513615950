"""Locking: one writer of an OUT at a time.

From: `pack` and `download`, before they touch OUT.partial.
To:   the same command in another process, which gets one clear error.

The lock is the kernel's (`flock`), which no killed process leaves behind. Shares without it
(Lustre without -o flock, some NFS and SMB) get a marker file that names process and host; one
that a killed process of this host left is taken over.
"""

import contextlib
import errno
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from tinyvgg.errors import DatasetError

NO_FLOCK = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})


@contextlib.contextmanager
def hold_lock(out: Path, command: str) -> Iterator[None]:
    """Hold OUT.lock, so that two processes never write the same OUT.

    Args:
        out: what is written; its folder is made.
        command: that writes it, for the error.

    Returns:
        A context manager; the lock is free again at its end, and when the process dies.

    Raises:
        DatasetError: another process holds it.
        OSError: no file can be made there.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = _acquire(out)
    except Timeout as error:
        raise DatasetError(
            f"{out}: another '{command}' is writing it; wait for it"
            + _advise_marker(Path(error.lock_file))
        ) from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: nobody else has it
        lock.release()


def _acquire(out: Path) -> BaseFileLock:
    """Return the held lock of OUT.

    Raises:
        Timeout: somebody else holds it.
    """
    path, marker = name_locks(out)
    lock: BaseFileLock = FileLock(path, timeout=0)
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            lock.acquire()  # without flock (ENOSYS) it turns into a marker itself, and warns
    except Timeout:
        raise
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        path.unlink(missing_ok=True)  # it locks nothing there; a marker has a name of its own
        lock = SoftFileLock(marker, timeout=0)
        lock.acquire()
    return lock


def name_locks(out: Path) -> tuple[Path, Path]:
    """Name OUT's lock and the marker that is one where the kernel has none."""
    return out.with_name(out.name + ".lock"), out.with_name(out.name + ".marker.lock")


def _advise_marker(path: Path) -> str:
    """Say what to do about a marker that a process of another host may have left."""
    is_marker = path.name.endswith(".marker.lock")
    return f", or remove {path} if no process writes any more" if is_marker else ""
