"""Card: power, clocks, temperature and throttle reasons of the GPU around each arm.

From: `nvidia-smi`, which prints a line every half second. Without it every figure is None.
"""

import contextlib
import os
import statistics
import subprocess
import threading
from types import TracebackType
from typing import Any

FIELDS = ("power.draw", "clocks.sm", "clocks.mem", "temperature.gpu")
# the newer name first; drivers before 535 know only the other
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
PERIOD_MS = 500


class CardSampler:
    """Samples for the length of a `with` block; `begin` and `summary` mark an arm in it."""

    def __init__(self) -> None:
        self.samples: list[list[str]] = []
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "CardSampler":
        command = _find_command()
        if command is not None:
            words = [*command, f"--loop-ms={PERIOD_MS}"]
            self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            self.reader = threading.Thread(target=self._read, daemon=True)
            self.reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.reader.join(timeout=5)
            assert self.process.stdout is not None
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.samples.append([value.strip() for value in line.split(",")])

    def begin(self) -> None:
        """Forget what was sampled before."""
        self.samples = []

    def summary(self) -> dict[str, Any] | None:
        """Return what the card did since `begin`, or None without samples."""
        samples = [sample for sample in self.samples if len(sample) == len(FIELDS) + 1]
        if not samples:
            return None
        power, sm_clock, memory_clock, heat = (
            [value for sample in samples if (value := _number(sample[column])) is not None]
            for column in range(len(FIELDS))
        )
        reasons = 0
        for sample in samples:
            with contextlib.suppress(ValueError):
                reasons |= int(sample[-1], 16)
        return {
            "num_samples": len(samples),
            "median_power_watt": statistics.median(power) if power else None,
            "max_power_watt": max(power, default=None),
            "min_sm_mhz": min(sm_clock, default=None),
            "median_sm_mhz": statistics.median(sm_clock) if sm_clock else None,
            "median_memory_mhz": statistics.median(memory_clock) if memory_clock else None,
            "max_celsius": max(heat, default=None),
            "throttle_reasons": f"{reasons:#x}",  # all bits seen; 0x1 idle, 0x4 power cap
        }


def _find_command() -> list[str] | None:
    """Return the query that this machine's nvidia-smi answers."""
    index = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    for reasons in REASONS:
        query = ",".join([*FIELDS, reasons])
        command = ["nvidia-smi", f"--id={index}", f"--query-gpu={query}",
                   "--format=csv,noheader,nounits"]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode == 0:
            return command
    return None


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:  # "[N/A]"
        return None
