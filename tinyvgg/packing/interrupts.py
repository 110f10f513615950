"""Interrupts: Ctrl-C and other signals while threads work.

From: `pack`, around whatever starts threads.
To:   a thread of its own, which signals never disturb; the main thread does nothing but wait.

Python raises a signal in the main thread, between any two of its lines: also while that starts a
thread or takes a lock, and then the thread runs on or the lock is held for ever.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TypeVar

ALL_SIGNALS = signal.valid_signals() if hasattr(signal, "pthread_sigmask") else set()
Result = TypeVar("Result")


def run_interruptible(work: Callable[[threading.Event], Result]) -> Result:
    """Return what `work` returns, or raise what it raises.

    Args:
        work: called with an event, which is set when it is to end early; what it then returns or
            raises does not count.

    Raises:
        BaseException: that of a signal, once `work` has ended.
    """
    stop = threading.Event()
    results: SimpleQueue[tuple[list[Result], BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            results.put(([work(stop)], None))
        except BaseException as error:
            results.put(([], error))

    thread = threading.Thread(target=run)
    try:
        with signals_held():
            thread.start()
        result, error = results.get()  # of all waits the one that holds no lock when it is left
    except BaseException:
        with signals_held():
            stop.set()
            if thread.ident is not None:  # it was started
                thread.join()
        raise
    with signals_held():
        thread.join()
    if error is not None:
        raise error
    return result[0]


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Let signals wait; threads and processes that are started meanwhile never get any (POSIX)."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
