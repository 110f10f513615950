"""The clock, on a simulated device whose time is its own: no test here depends on the machine."""

from collections.abc import Iterator

import pytest

from tinyvgg.training.clock import Clock, Pace


class SimulatedDevice:
    """One stream of work in virtual seconds; the host gives it work and goes on at once."""

    def __init__(self) -> None:
        self.now = 0.0
        self.free_at = 0.0

    def host(self, seconds: float) -> None:
        """Let the host work."""
        self.now += seconds

    def launch(self, seconds: float) -> None:
        """Give the stream work."""
        self.free_at = max(self.now, self.free_at) + seconds

    def new_event(self) -> "SimulatedEvent":
        return SimulatedEvent(self)


class SimulatedEvent:
    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device

    def record(self) -> None:
        self.at = max(self.device.now, self.device.free_at)

    def query(self) -> bool:
        return self.at <= self.device.now

    def synchronize(self) -> None:
        self.device.now = max(self.device.now, self.at)

    def elapsed_time(self, end_event: "SimulatedEvent") -> float:
        return 1e3 * (end_event.at - self.at)


def load(device: SimulatedDevice, host_sec: float, num_batches: int) -> Iterator[int]:
    """Yield batches as backend `torch` does: the host waits for a slot that is two batches old."""
    slots: list[SimulatedEvent | None] = [None, None]
    for number in range(num_batches):
        old = slots[number % 2]
        if old is not None:
            old.synchronize()
        device.host(host_sec)
        device.launch(0.0001)  # the pixel pass
        event = device.new_event()
        event.record()
        slots[number % 2] = event
        yield number


def train(device: SimulatedDevice, clock: Clock, *, load_sec: float, step_sec: float) -> float:
    """Take 100 steps; return the share of time that the host spent asking for batches."""
    batches = load(device, load_sec, 100)
    asking_sec = 0.0
    for _ in range(100):
        before = device.now
        with clock.waiting():
            next(batches)
        asking_sec += device.now - before
        device.host(0.0005)  # launches of the step
        device.launch(step_sec)
        clock.count()
        clock.wait_share()
    device.now = max(device.now, device.free_at)
    return asking_sec / clock.elapsed_sec()


def clock_of(device: SimulatedDevice) -> Clock:
    return Clock(512, device.new_event, lambda: device.now)


def test_a_busy_device_that_holds_the_loader_up_is_not_waiting_for_data() -> None:
    device = SimulatedDevice()
    clock = clock_of(device)

    host_share = train(device, clock, load_sec=0.001, step_sec=0.02)

    assert host_share > 0.8  # what the host's own time would have said
    assert clock.wait_share() < 0.01


def test_a_loader_slower_than_the_step_is_what_the_device_waits_for() -> None:
    device = SimulatedDevice()
    clock = clock_of(device)

    train(device, clock, load_sec=0.02, step_sec=0.005)

    assert clock.wait_share() == pytest.approx(0.75, abs=0.03)


def test_launches_that_keep_the_device_idle_are_not_counted_as_data() -> None:
    device = SimulatedDevice()
    clock = clock_of(device)
    batches = load(device, 0.001, 100)

    for _ in range(100):
        with clock.waiting():
            next(batches)
        device.host(0.02)  # a step of many small launches
        device.launch(0.001)
        clock.count()
    device.now = max(device.now, device.free_at)

    assert clock.wait_share() < 0.01


def test_on_a_cpu_the_time_spent_asking_is_the_wait() -> None:
    now = [0.0]
    clock = Clock(8, None, lambda: now[0])

    for _ in range(4):
        with clock.waiting():
            now[0] += 1.0
        now[0] += 3.0
        clock.count()

    assert clock.wait_share() == 0.25
    assert clock.images_per_sec() == 2.0
    assert clock.lap_sec() == 16.0
    assert clock.lap_sec() == 0.0


def test_the_share_lags_behind_the_device_and_never_waits_for_it() -> None:
    device = SimulatedDevice()
    clock = clock_of(device)
    device.host(0.1)

    with clock.waiting():
        device.host(0.1)
        device.launch(10.0)
    before = device.now

    assert clock.wait_share() == 0.0
    assert device.now == before
    device.host(10.0)
    assert clock.wait_share() == pytest.approx(10.1 / 10.2)


def test_a_pace_keeps_something_slow_to_its_share_of_the_time() -> None:
    now = [0.0]
    pace = Pace(0.05, lambda: now[0])
    spent = 0.0

    for _ in range(1000):  # epochs of 0.9 s
        now[0] += 0.9
        if pace.is_due():
            with pace.spending():
                now[0] += 0.5
            spent += 0.5

    assert 0.045 < spent / now[0] <= 0.05


def test_what_is_rare_is_done_every_time() -> None:
    now = [0.0]
    pace = Pace(0.05, lambda: now[0])

    for _ in range(10):
        assert pace.is_due()
        with pace.spending():
            now[0] += 1.0
        now[0] += 60.0
