"""Measure: arms side by side, interleaved, each in a fresh process, and what may be said of them.

    arm         "benchmarks.loaders:tinyvgg_torch" and keyword arguments; the function prepares
                and returns `work`, which does one unit and returns how many images it was
    window      at least `window_sec` of units; the device is synchronized at its edges only
    repeat      every arm once, in a process of its own, in a new order; 5 or more of them

A process warms up until three windows in a row agree within 5 % (or 30 s), then measures. A
repeat's figure is the median of its windows; an arm's is the median over repeats. A ratio of two
arms is the median of its repeats' ratios, with a bootstrap interval of 95 %; an interval that
includes 1 is "no difference". A machine that was busy before the first arm is flagged.

A record (JSON, one file in records/) holds every window, the configuration and the machine.
"""

import importlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyvgg.bench.machine import BUSY_SHARE, count_cores, measure_busy_share
from tinyvgg.bench.ratios import Ratio, bootstrap_ratio

if TYPE_CHECKING:  # torch is loaded by the functions that need it: the GPU's supervisor has none
    from tinyvgg.bench.windows import Work

REPOSITORY = Path(__file__).parents[1]
RECORDS = REPOSITORY / "benchmarks" / "records"
SCHEMA = 1
PEAK_FLOP_PER_SEC = {  # dense bf16, by what a GPU's name contains; NVIDIA's data sheets
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
}


@dataclass(frozen=True)
class Arm:
    """One thing to measure.

    Attributes:
        name: in tables.
        target: "module:function"; called with `options`, returns the work.
        options: JSON values.
        window_sec: least length of a window.
        num_windows: measured in each process after the warm-up.
        min_warm_windows: windows thrown away at least; 0 for whole commands.
        max_warm_sec: after which windows count, whether they agree or not.
        environment: variables to set before the process starts.
        ceiling: name of the arm that bounds this one, for its share of what is possible.
        flop_per_image: floating-point operations that an image costs, where that says something.
        bytes_per_image: that are read from storage, likewise.
        python: interpreter of a peer that has an environment of its own; None: this one.
    """

    name: str
    target: str
    options: dict[str, Any] = field(default_factory=dict)
    window_sec: float = 0.5
    num_windows: int = 5
    min_warm_windows: int = 2
    max_warm_sec: float = 30
    environment: dict[str, str] = field(default_factory=dict)
    ceiling: str | None = None
    flop_per_image: float | None = None
    bytes_per_image: float | None = None
    python: str | None = None


@dataclass(frozen=True)
class Measurement:
    """What an arm did, in images/sec.

    Attributes:
        arm: as it was asked for.
        windows: raw rates, a list for each repeat.
        cpu_sec_per_image: of each repeat's process, all threads of it and no process it started.
    """

    arm: Arm
    windows: list[list[float]]
    cpu_sec_per_image: list[float] = field(default_factory=list)

    @property
    def repeats(self) -> list[float]:
        """Median of each repeat."""
        return [statistics.median(rates) for rates in self.windows]

    @property
    def images_per_sec(self) -> float:
        """Median over repeats."""
        return statistics.median(self.repeats)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the repeats; of one repeat, that one twice."""
        if len(self.repeats) == 1:  # Python 3.11 and 3.12 refuse quantiles of one value
            return self.repeats[0], self.repeats[0]
        first, _, third = statistics.quantiles(self.repeats, n=4, method="inclusive")
        return first, third


def compare(measured: Measurement, baseline: Measurement) -> Ratio:
    """Return measured over baseline, repeat by repeat: they ran next to each other."""
    return bootstrap_ratio([a / b for a, b in zip(measured.repeats, baseline.repeats, strict=True)])


def measure(arms: Sequence[Arm], *, num_repeats: int = 5) -> dict[str, Measurement]:
    """Measure arms interleaved, each repeat in another order, and return them by name."""
    windows: dict[str, list[list[float]]] = {arm.name: [] for arm in arms}
    cpu_sec: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for repeat in range(num_repeats):
        order = random.Random(repeat).sample(list(arms), len(arms))
        for arm in order:
            rates, cpu_sec_per_image = measure_once(arm)
            windows[arm.name].append(rates)
            cpu_sec[arm.name].append(cpu_sec_per_image)
            median = statistics.median(rates)
            print(f"repeat {repeat + 1}: {arm.name}: {median:,.1f} images/sec", file=sys.stderr)
    return {arm.name: Measurement(arm, windows[arm.name], cpu_sec[arm.name]) for arm in arms}


def measure_once(arm: Arm) -> tuple[list[float], float]:
    """Run one arm in a fresh process; return images/sec of its windows, CPU seconds an image."""
    done = subprocess.run(
        [arm.python or sys.executable, "-m", "benchmarks.measure", json.dumps(asdict(arm))],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **arm.environment},
        cwd=REPOSITORY,
        check=True,
    )
    rates, cpu_sec_per_image = json.loads(done.stdout.splitlines()[-1])
    return rates, cpu_sec_per_image


def run_arm(arm: Arm) -> tuple[list[float], float]:
    """Warm up and measure, in this process; return images/sec, and CPU seconds an image."""
    from tinyvgg.bench.windows import time_window

    module, _, function = arm.target.partition(":")
    work: Work = getattr(importlib.import_module(module), function)(**arm.options)
    warm: list[float] = []
    started = time.perf_counter()
    while len(warm) < arm.min_warm_windows or (
        arm.min_warm_windows
        and not _agree(warm[-3:])
        and time.perf_counter() - started < arm.max_warm_sec
    ):
        warm.append(time_window(work, arm.window_sec))
    num_images = 0

    def counted() -> int:
        nonlocal num_images
        num_done = work()
        num_images += num_done
        return num_done

    cpu_started = time.process_time()
    rates = [time_window(counted, arm.window_sec) for _ in range(arm.num_windows)]
    return rates, (time.process_time() - cpu_started) / num_images


def _agree(rates: list[float]) -> bool:
    return len(rates) == 3 and max(rates) <= 1.05 * min(rates)


def describe_machine() -> dict[str, Any]:
    """Return what a record must say of the machine, the versions and the checkout.

    Without git, or outside a checkout, the commit is that of the environment's TINYVGG_COMMIT, or
    "unknown", and whether files were changed is None.
    """
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    fields = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    flags = set(fields.get("flags", "").split())
    load = os.getloadavg()[0]
    import torch

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **describe_commit(),
        "cpu": fields.get("model name", platform.processor()),
        "cpu_family_model": f"{fields.get('cpu family', '?')}/{fields.get('model', '?')}",
        "cpu_flags": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}),
        "num_cores": count_cores(),
        "load_average": load,
        "is_busy": measure_busy_share() > BUSY_SHARE,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **describe_gpu(),
    }


def describe_commit() -> dict[str, Any]:
    """Return the commit of this checkout, and whether files differ from it."""
    top = output_of("git", "rev-parse", "--show-toplevel")
    commit = output_of("git", "rev-parse", "HEAD")
    if top is None or commit is None or Path(top).resolve() != REPOSITORY.resolve():
        return {"commit": os.environ.get("TINYVGG_COMMIT") or "unknown", "is_dirty": None}
    changes = output_of("git", "status", "--porcelain", "--", ".", ":!benchmarks/records")
    return {"commit": commit, "is_dirty": None if changes is None else bool(changes)}


def output_of(*words: str) -> str | None:
    """Return what a command prints, or None if there is no such command, or it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def describe_gpu() -> dict[str, Any]:
    """Return name, dense bf16 peak (None where it is not known), power and driver of the GPU."""
    import torch

    if not torch.cuda.is_available():
        return {"gpu": None, "peak_flop_per_sec": None}
    name = torch.cuda.get_device_name()
    peaks = [peak for part, peak in PEAK_FLOP_PER_SEC.items() if part in name]
    query = "--query-gpu=driver_version,power.limit,clocks.max.sm"
    return {
        "gpu": name,
        "peak_flop_per_sec": peaks[0] if peaks else None,
        "gpu_driver_power_clock": output_of("nvidia-smi", query, "--format=csv,noheader"),
        "cuda": torch.version.cuda,
    }


def wait_until_idle(max_sec: float = 600.0) -> None:
    """Wait until nothing else keeps the cores busy; after `max_sec` the record says that it does.

    The load average remembers minutes, what runs now is what counts: the share of all cores' time
    that was not idle within a second (Linux; elsewhere there is nothing to wait for).
    """
    deadline = time.monotonic() + max_sec
    while (share := measure_busy_share()) > BUSY_SHARE and time.monotonic() < deadline:
        print(f"waiting: {100 * share:.0f} % of the cores are busy", file=sys.stderr)
        time.sleep(5)


def run_benchmark(
    name: str,
    claim: str,
    arms: Sequence[Arm],
    judge: Callable[[dict[str, Measurement]], Sequence[dict[str, Any]]],
    num_repeats: int,
) -> None:
    """Measure arms in fresh processes, interleaved; print a table and write a record.

    Args:
        name: of the benchmark; records are named date-name-commit.json.
        claim: what is measured, in one sentence.
        arms: what to measure.
        judge: called with the measurements by arm name; returns bars, from `make_bar`.
        num_repeats: processes of each arm.
    """
    wait_until_idle()
    machine = describe_machine()
    measured = measure(arms, num_repeats=num_repeats)
    bars = judge(measured)
    print_table(measured, bars)
    print(write_record(name, claim, machine, measured, bars))


def write_record(
    name: str,
    claim: str,
    machine: dict[str, Any],
    measurements: dict[str, Measurement],
    bars: Sequence[dict[str, Any]],
) -> Path:
    """Write one record and return its path.

    Args:
        name: of the benchmark; records are named date-name-commit.json.
        claim: what was measured, in one sentence.
        machine: `describe_machine()`, taken before the first arm.
        measurements: by arm name.
        bars: from `make_bar`.
    """
    arms = [
        {
            **asdict(measurement.arm),
            **name_places(measurement.arm),
            "images_per_sec": measurement.images_per_sec,
            "quartiles": measurement.quartiles,
            "windows": measurement.windows,
            "cpu_sec_per_image": statistics.median(measurement.cpu_sec_per_image or [0.0]),
            **flop_rates(measurement, machine),
        }
        for measurement in measurements.values()
    ]
    return save_record(name, claim, machine, arms, bars)


def name_places(arm: Arm) -> dict[str, Any]:
    """Return options and interpreter of an arm for its record: of absolute paths only the names."""

    def name_place(value: Any) -> Any:
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    options = {key: name_place(value) for key, value in arm.options.items()}
    return {"options": options, "python": name_place(arm.python)}


def save_record(
    name: str,
    claim: str,
    machine: dict[str, Any],
    arms: Sequence[dict[str, Any]],
    bars: Sequence[dict[str, Any]],
) -> Path:
    """Write one record, date-name-commit.json, of arms as JSON values; return its path.

    Replaced in one go: a record that is written again after each arm is whole at any moment.
    """
    RECORDS.mkdir(exist_ok=True)
    document = {
        "schema": SCHEMA,
        "name": name,
        "claim": claim,
        "machine": {**machine, "load_average_after": os.getloadavg()[0]},
        "arms": list(arms),
        "bars": list(bars),
    }
    path = RECORDS / f"{machine['date'][:10]}-{name}-{machine['commit'][:8]}.json"
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    unfinished.replace(path)
    return path


def flop_rates(measurement: Measurement, machine: dict[str, Any]) -> dict[str, float]:
    """Return operations per second, and MFU (their share of the dense peak) where it is known."""
    if measurement.arm.flop_per_image is None:
        return {}
    rate = measurement.arm.flop_per_image * measurement.images_per_sec
    peak = machine.get("peak_flop_per_sec")
    return {"flop_per_sec": rate, **({"mfu": rate / peak} if peak else {})}


def make_bar(
    measured: Measurement, baseline: Measurement, what: str, at_least: float
) -> dict[str, Any]:
    """Return one line of a record's bars: a ratio, what it should be, whether it is."""
    ratio = compare(measured, baseline)
    return {
        "what": what,
        "measured": measured.arm.name,
        "baseline": baseline.arm.name,
        "ratio": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "at_least": at_least,
        "is_met": ratio.median >= at_least,
    }


def print_table(measurements: dict[str, Measurement], bars: Sequence[dict[str, Any]]) -> None:
    """Print rates and bars."""
    for name, measurement in measurements.items():
        low, high = measurement.quartiles
        rate = measurement.images_per_sec
        print(f"{name:<44} {rate:>12,.1f} images/sec   [{low:,.1f} to {high:,.1f}]")
    for bar in bars:
        verdict = "met" if bar["is_met"] else "NOT MET"
        print(
            f"{bar['what']}: {bar['ratio']:.3f} [{bar['low']:.3f} to {bar['high']:.3f}], "
            f"bar {bar['at_least']}: {verdict}"
        )


if __name__ == "__main__":
    print(json.dumps(run_arm(Arm(**json.loads(sys.argv[1])))), flush=True)
    os._exit(0)  # threads of a peer that abort or hang at the end say nothing of its speed
