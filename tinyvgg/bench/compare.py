"""Compare: two results of `tinyvgg bench --out`, stage by stage.

From: two JSON files: of one machine before and after a change, or of two machines.
To:   ratio, interval and verdict a stage; and whether anything became slower.

The two did not run side by side, so the interval is that of the ratio of two medians, whose windows
are drawn anew on both sides: what changed on the machine between them is in it only where it shows
within one of the runs.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinyvgg.bench.ratios import Ratio, bootstrap_medians
from tinyvgg.errors import TinyvggError
from tinyvgg.regular import read_regular_file

MAX_RESULT_BYTES = 16 * 2**20


class _Rates(BaseModel):
    """A stage or an arm; the rest of it is not compared."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    stage: str = ""
    arm: str = ""
    windows: list[float] = Field(min_length=1)

    @property
    def name(self) -> str:
        return self.stage or self.arm


class _Result(BaseModel):
    model_config = ConfigDict(extra="ignore")
    stages: list[_Rates] = []
    arms: list[_Rates] = []
    machine: dict[str, Any] = {}
    batches: str = ""
    images: str = ""


@dataclass(frozen=True)
class Compared:
    """What two results come to.

    Attributes:
        ratios: of what both have, the second over the first, by name.
        notes: in what else they differ, a line each.
    """

    ratios: dict[str, Ratio]
    notes: list[str]

    @property
    def is_slower(self) -> bool:
        """Whether anything became slower, beyond its interval and by more than 2 %."""
        return any(ratio.verdict == "slower" for ratio in self.ratios.values())

    def describe(self) -> dict[str, Any]:
        """Return it as JSON values."""
        ratios = {
            name: {
                "median": ratio.median,
                "low": ratio.low,
                "high": ratio.high,
                "verdict": ratio.verdict,
            }
            for name, ratio in self.ratios.items()
        }
        return {"ratios": ratios, "notes": self.notes, "is_slower": self.is_slower}


def compare_results(first: Path, second: Path) -> Compared:
    """Compare two files that `tinyvgg bench --out` wrote.

    Args:
        first: before.
        second: after: a ratio above 1 says that it is faster.

    Raises:
        OSError: a file cannot be read.
        TinyvggError: it holds no such result, or the two have nothing in common.
    """
    before, after = (_read(path) for path in (first, second))
    rates = [
        {rates.name: rates.windows for rates in (*result.stages, *result.arms)}
        for result in (before, after)
    ]
    both = [name for name in rates[0] if name in rates[1]]
    if not both:
        raise TinyvggError(
            f"{second}: nothing of it was measured in {first}, too; compare two results of bench, "
            "or two of bench --against"
        )
    notes = [
        f"{name}: {getattr(before, name)} in {first.name}, {getattr(after, name)} in {second.name}"
        for name in ("images", "batches")
        if getattr(before, name) != getattr(after, name)
    ]
    keys = sorted((before.machine.keys() | after.machine.keys()) - {"busy_share"})
    for key in keys:
        found, other = before.machine.get(key), after.machine.get(key)
        if found != other:
            notes.append(f"{key}: {found} in {first.name}, {other} in {second.name}")
    notes += [f"{name}: only in {first.name}" for name in rates[0] if name not in rates[1]]
    notes += [f"{name}: only in {second.name}" for name in rates[1] if name not in rates[0]]
    ratios = {name: bootstrap_medians(rates[1][name], rates[0][name]) for name in both}
    return Compared(ratios, notes)


def render_compared(found: Compared) -> list[str]:
    """Return a line for each ratio, one for each note, and the verdict."""
    width = max(map(len, found.ratios))
    lines = [f"{name:<{width}}  {ratio}  {ratio.verdict}" for name, ratio in found.ratios.items()]
    lines += [f"note: {note}" for note in found.notes]
    slower = [name for name, ratio in found.ratios.items() if ratio.verdict == "slower"]
    lines.append(f"slower: {', '.join(slower)}" if slower else "nothing is slower")
    return lines


def _read(path: Path) -> _Result:
    """Return a result.

    Raises:
        OSError: the file cannot be read.
        TinyvggError: it holds none.
    """
    try:
        result = _Result.model_validate(json.loads(read_regular_file(path, MAX_RESULT_BYTES)))
        rates = [*result.stages, *result.arms]
        if not rates or any(min(one.windows) <= 0 or not one.name for one in rates):
            raise ValueError("no rates above 0")
    except (ValidationError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise TinyvggError(
            f"{path}: holds no result of bench ({reason}); write one with tinyvgg bench --out FILE"
        ) from error
    return result
