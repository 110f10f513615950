"""Signals: a request to stop, kept until the run stands between two steps.

From: SIGTERM (a scheduler, torchrun), SIGUSR1 (a scheduler's early warning) and Ctrl-C.
To:   `fit` and the evaluation, which ask after every step, and stop together on all ranks.

A handler only notes the signal, so compilation and a running step come to their end first. Ctrl-C
a second time ends at once.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed

from tinyvgg.ranks import is_distributed

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")  # Windows has no SIGUSR1


class StopRequested(Exception):  # noqa: N818 - nothing went wrong
    """Raised where a request to stop is met inside a pass that is not finished."""


class StopRequest:
    """Whether any rank was asked to stop.

    Attributes:
        noted: number of the signal this process was sent, or None.
        agreed: number that all ranks agreed on when they last asked, or None.
    """

    def __init__(self, timeout_sec: float = 600.0) -> None:
        """Make the group in which ranks ask each other, if there are others.

        Args:
            timeout_sec: after which a rank that does not ask is taken for lost.
        """
        self.noted: int | None = None
        self.agreed: int | None = None
        # a group of its own on the CPU: asking must not wait for the device
        group: Any = None
        if is_distributed():
            timeout = timedelta(seconds=timeout_sec)
            group = torch.distributed.new_group(backend="gloo", timeout=timeout)
        self._group = group  # never the number that stands for "not in the group": all ranks are

    def note(self, signal_number: int, frame: FrameType | None = None) -> None:
        """Keep a signal; the second Ctrl-C is not kept but raised."""
        del frame
        if self.noted == signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self.noted = signal_number

    def ask(self) -> bool:
        """Return whether any rank was asked to stop; all ranks must ask together."""
        self.agreed = self.noted
        if self._group is not None:
            number = torch.tensor(self.noted or 0)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, self._group)
            self.agreed = int(number) or None
        return self.agreed is not None

    def check(self) -> None:
        """Raise `StopRequested` if any rank was asked to stop; all ranks must ask together."""
        if self.ask():
            raise StopRequested


@contextmanager
def stop_request(timeout_sec: float = 600.0) -> Iterator[StopRequest]:
    """Note signals instead of dying of them, for the length of a `with` block.

    Args:
        timeout_sec: as in `StopRequest`.

    Returns:
        A context manager that gives what notes them; afterwards signals do what they did before.
    """
    request = StopRequest(timeout_sec)
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, request.note) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
