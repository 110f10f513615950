"""Locking: one writer of an OUT at a time.

From: `pack` and `download`, before they touch OUT.partial.
To:   the same command in another process, which gets one clear error.

The lock is the kernel's (`flock`), which no killed process leaves behind; the file says process
and host of who holds it. Shares without it (Lustre without -o flock, some NFS and SMB) get a
marker file that says the same; one that a killed process of this host left is taken over.
"""

import contextlib
import errno
import os
import platform
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from tinyvgg.errors import DatasetError

NO_FLOCK = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})


@contextlib.contextmanager
def hold_lock(
    out: Path, command: str, wait_sec: float = 0, *, keep_file: bool = False
) -> Iterator[None]:
    """Hold OUT.lock, so that two processes never write the same OUT.

    Args:
        out: what is written; its folder is made.
        command: that writes it, for the error.
        wait_sec: how long to wait until it is free.
        keep_file: leave the file of the kernel's lock, free, at the end: where others wait for
            it, nobody may remove it.

    Returns:
        A context manager; the lock is free again at its end, and when the process dies.

    Raises:
        DatasetError: another process holds it.
        OSError: no file can be made there.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = _wait_for(out, command, time.monotonic() + wait_sec)
    try:
        yield
    finally:
        if not keep_file:
            Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: nobody else has it
        lock.release()


def _wait_for(out: Path, command: str, deadline: float) -> BaseFileLock:
    while True:
        holder = _read_holder(out)  # first: older filelocks empty the file when they try
        try:
            return _acquire(out)
        except Timeout as error:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise DatasetError(
                f"{out}: another '{command}' is writing it{holder}; wait for it"
                + _advise_marker(Path(error.lock_file))
            ) from error


def _read_holder(out: Path) -> str:
    """Return ' (process 12 on host a)' if a lock or a marker says so."""
    for path in name_locks(out):
        with contextlib.suppress(OSError):
            text = path.read_bytes()[:300].decode("utf-8", "replace")
            if found := re.match(r"(\d+)\n(\S+)\n", text):
                return f" (process {found[1]} on host {found[2]})"
    return ""


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
        with contextlib.suppress(OSError):  # a full disk, a locked file on Windows: no name then
            path.write_text(f"{os.getpid()}\n{platform.node()}\n")
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
