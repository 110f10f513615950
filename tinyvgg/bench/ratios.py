"""Ratios: how many times faster one thing is than another, and what may be said of that.

From: windows of two things, in images/sec.
To:   `against`, `compare`, and every file of benchmarks/.

The interval is a bootstrap of 95 %; one that includes 1, or an effect of 2 % and less, is "no
difference". No torch here.
"""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NUM_DRAWS = 2000
MIN_EFFECT = 0.02  # what is less is no difference, however sure it is


@dataclass(frozen=True)
class Ratio:
    """How many times faster one thing is than another: median and 95 % bootstrap interval."""

    median: float
    low: float
    high: float

    @property
    def is_difference(self) -> bool:
        """Whether the interval excludes 1 and the effect is over 2 %."""
        return not self.low <= 1 <= self.high and abs(self.median - 1) > MIN_EFFECT

    @property
    def verdict(self) -> str:
        """What may be said: "faster", "slower" or "no difference"."""
        if not self.is_difference:
            return "no difference"
        return "faster" if self.median > 1 else "slower"

    def __str__(self) -> str:
        """Return it with as many digits as help."""
        digits = 1 if self.median >= 10 else 2
        low, high = f"{self.low:,.{digits}f}", f"{self.high:,.{digits}f}"
        return f"{self.median:,.{digits}f} x [{low} to {high}]"


def bootstrap_ratio(ratios: Sequence[float]) -> Ratio:
    """Return the median of ratios, taken side by side, and the interval around it."""
    generator = random.Random(0)
    medians = sorted(
        statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(NUM_DRAWS)
    )
    return _between(statistics.median(ratios), medians)


def bootstrap_medians(rates: Sequence[float], others: Sequence[float]) -> Ratio:
    """Return the ratio of two medians, of windows that did not run side by side."""
    generator = random.Random(0)
    ratios = sorted(
        statistics.median(generator.choices(rates, k=len(rates)))
        / statistics.median(generator.choices(others, k=len(others)))
        for _ in range(NUM_DRAWS)
    )
    return _between(statistics.median(rates) / statistics.median(others), ratios)


def _between(median: float, drawn: Sequence[float]) -> Ratio:
    cut = NUM_DRAWS // 40
    return Ratio(median, drawn[cut], drawn[-cut - 1])
