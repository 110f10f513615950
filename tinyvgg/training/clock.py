"""Clock: images per second of an epoch, the share of it spent waiting for data, and a pace.

From: `trainer`, which marks where it asks for a batch and where it has one.
To:   every step's report, and an epoch's metrics.

On a CPU the wait is what the host spends asking. An accelerator works behind the host's back: while
it is busy a loader holds the host up on purpose, and nothing is lost. There the wait is the time
between two events on the model's stream: one passes when the device has nothing left to do and the
host is asking, the other when the batch is there. Neither makes the host wait.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch


class TimingEvent(Protocol):
    """An event of an accelerator, as `StreamEvent` is one."""

    def record(self) -> None:
        """Let it pass when the current stream has done what it was given so far."""

    def query(self) -> bool:
        """Return whether it has passed."""

    def elapsed_time(self, other: Any, /) -> float:
        """Return the milliseconds from this one to another, both passed."""


class StreamEvent:
    """A timing event of a device, whichever device is the current one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.event = torch.Event(device, enable_timing=True)

    def record(self) -> None:
        """Let it pass when the device's current stream has done what it was given so far."""
        self.event.record(torch.accelerator.current_stream(self.device))

    def query(self) -> bool:
        """Return whether it has passed."""
        return self.event.query()

    def elapsed_time(self, other: "StreamEvent", /) -> float:
        """Return the milliseconds from this one to another, both passed."""
        return self.event.elapsed_time(other.event)


class Clock:
    """Counts steps from its creation on.

    Args:
        batch_size: images of a step, over all ranks.
        new_event: makes a timing event of the device; None where the host computes.
        now: seconds, from any start.
    """

    def __init__(
        self,
        batch_size: int,
        new_event: Callable[[], TimingEvent] | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.batch_size = batch_size
        self.new_event = new_event
        self.now = now
        self.started = self.lapped = now()
        self.wait_sec = 0.0
        self.num_steps = 0
        self.pending: deque[tuple[TimingEvent, TimingEvent]] = deque()

    @classmethod
    def on(cls, device: torch.device, batch_size: int) -> "Clock":
        """Return a clock for the steps of a device."""
        if device.type == "cpu":
            return cls(batch_size)
        return cls(batch_size, lambda: StreamEvent(device))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count a `with` block in which a batch is asked for."""
        if self.new_event is None:
            asked_at = self.now()
            yield
            self.wait_sec += self.now() - asked_at
            return
        asked, ready = self.new_event(), self.new_event()
        asked.record()
        yield
        ready.record()
        self.pending.append((asked, ready))

    def count(self) -> None:
        """Count a step."""
        self.num_steps += 1

    def elapsed_sec(self) -> float:
        """Return the seconds since this clock was made."""
        return self.now() - self.started

    def lap_sec(self) -> float:
        """Return the seconds since this was asked last."""
        before, self.lapped = self.lapped, self.now()
        return self.lapped - before

    def images_per_sec(self) -> float:
        """Return the rate so far, over all ranks."""
        return self.num_steps * self.batch_size / self.elapsed_sec()

    def wait_share(self) -> float:
        """Return the share of the time spent waiting for data, as far as the device has come."""
        while self.pending and self.pending[0][1].query():
            asked, ready = self.pending.popleft()
            self.wait_sec += asked.elapsed_time(ready) / 1e3
        return self.wait_sec / self.elapsed_sec()


class Pace:
    """Says when something slow may be done again, so that it takes a share of the time at most.

    Args:
        share: of the time, 0 to 1.
        now: seconds, from any start.
    """

    def __init__(self, share: float = 0.05, now: Callable[[], float] = time.monotonic) -> None:
        self.share = share
        self.now = now
        self.due_at = -math.inf

    def is_due(self) -> bool:
        """Return whether it may be done now; the first time it may."""
        return self.now() >= self.due_at

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Do it in a `with` block; what it takes decides when it is due again."""
        started = self.now()
        yield
        ended = self.now()
        self.due_at = ended + (ended - started) * (1 - self.share) / self.share
