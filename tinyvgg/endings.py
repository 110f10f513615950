"""Endings: how a command ends that did not come to its own end, as one line and an exit status.

From: `cli`, around a command.
To:   stderr and the shell: 1 for the data or the machine, 2 for usage, 128 + n for signal n.
"""

import errno
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinyvgg.errors import TinyvggError, printable


class EndedBySignal(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised as Ctrl-C is, so that a command cleans up on its way out."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def raising_signals() -> Iterator[None]:
    """Raise what would end the process without a word; what is ignored or handled stays so."""

    def handle(number: int, frame: object) -> None:
        for other in numbers:  # cleaning up is not to be cut short
            signal.signal(other, signal.SIG_IGN)
        raise EndedBySignal(number)

    is_main = threading.current_thread() is threading.main_thread()  # others may set no handler
    known = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]  # Windows has one
    numbers = [n for n in known if is_main and n and signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def explain_error(error: BaseException) -> tuple[int, str]:
    """Return the exit status and the one line for an error that is not a bug of ours."""
    if isinstance(error, EndedBySignal):
        return 128 + error.number, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, OSError):
        if error.errno is None:
            raise error
        return 1, printable(explain_os_error(error))
    if isinstance(error, TinyvggError):
        return 1, str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "tinyvgg").partition(".")[0]
        if package == "tinyvgg":
            raise error
        return 1, f"needs {package}, which is not installed; run pip install {package}"
    return 2, printable(str(error))


def explain_os_error(error: OSError) -> str:
    """Say which file the machine failed at, with what it needed, and what is free there."""
    path = None if error.filename is None else Path(str(error.filename))
    where = "" if path is None else f"{path}: "
    what = ", ".join([error.strerror or type(error).__name__, *getattr(error, "__notes__", [])])
    if error.errno != errno.ENOSPC or path is None or str(path) == "stdout":
        return f"{where}{what}; check free space and permissions"
    folder = next(
        parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists()
    )
    free = shutil.disk_usage(folder).free
    return f"{where}{what}, {free:,} bytes free; make room, or write elsewhere"
