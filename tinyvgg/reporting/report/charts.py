"""Charts: curves as coordinates for the SVG that the template draws; no markup here.

From: the histories of runs.
To:   `page`. A chart is 400 x 240 units; it is scaled to its place, text and all.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tinyvgg.reporting.report.read import ReportedRun
from tinyvgg.runs.checkpoint import EpochRecord

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 34
NUM_COLORS = 8


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: for the legend.
        color: number of a color of the style sheet.
        is_dashed: whether it is.
        points: x and y of what is drawn.
        labels: epoch and value of each point, as text.
    """

    name: str
    color: int
    is_dashed: bool
    points: list[tuple[float, float]]
    labels: list[str]


@dataclass(frozen=True)
class Mark:
    """A vertical line with a word: the best epoch, a change of size."""

    x: float
    text: str
    kind: str


@dataclass(frozen=True)
class Chart:
    """A picture of curves over epochs.

    Attributes:
        title: what it shows, with the unit.
        lines: the curves.
        x_ticks, y_ticks: place and text.
        marks: see `Mark`.
    """

    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[Mark]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Curve:
    """What is drawn of each run: a name, and a value of an epoch or None."""

    name: str
    value: Callable[[EpochRecord], float | None]
    is_dashed: bool = False


def list_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers from `low` to `high`, about so many."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def list_epochs(first: int, last: int, most: int = 8) -> list[int]:
    """Return whole epochs from `first` to `last`, at most about so many."""
    step = next(step for step in _steps() if (last - first) / step <= most)
    return [epoch for epoch in range(first, last + 1) if epoch % step == 0 or first == last]


def _steps() -> "list[int]":
    return [factor * 10**power for power in range(12) for factor in (1, 2, 5)]


def find_size_changes(history: Sequence[EpochRecord]) -> list[tuple[int, int]]:
    """Return (epoch from 1, pixels) where images begin to have another size."""
    return [(b.epoch + 1, b.pixels) for a, b in pairwise(history) if a.pixels != b.pixels]


def draw_chart(
    title: str,
    runs: Sequence[ReportedRun],
    curves: Sequence[Curve],
    *,
    scale: float = 1,
    from_zero: bool = False,
    unit: str = "",
) -> Chart | None:
    """Lay out curves of runs in one chart; None if there is nothing to draw.

    Args:
        title: what it shows.
        runs: one color each; of a single run each curve has a color.
        curves: drawn for each run.
        scale: factor of all values.
        from_zero: whether the axis begins at 0.
        unit: behind each value, in the labels of points.
    """
    found: list[tuple[str, int, bool, list[tuple[int, float]]]] = []
    for number, run in enumerate(runs):
        for place, curve in enumerate(curves):
            values = [
                (record.epoch + 1, scale * value)
                for record in run.history
                if (value := curve.value(record)) is not None and math.isfinite(value)
            ]
            name = curve.name if len(runs) == 1 else f"{run.name}: {curve.name}"
            color = (place if len(runs) == 1 else number) % NUM_COLORS
            if values:
                found.append((name, color, curve.is_dashed, values))
    if not found:
        return None
    epochs = [epoch for *_, values in found for epoch, _ in values]
    numbers = [value for *_, values in found for _, value in values]
    low, high = (0.0 if from_zero else min(numbers)), max(numbers)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = (low if from_zero else low - room), high + room
    first, last = min(epochs), max(epochs)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def to_x(epoch: float) -> float:
        share = 0.5 if first == last else (epoch - first) / (last - first)
        return round(LEFT + 8 + share * (right - LEFT - 16), 1)

    def to_y(value: float) -> float:
        return round(bottom - (value - low) / (high - low) * (bottom - TOP), 1)

    lines = [
        Line(
            name,
            color,
            is_dashed,
            [(to_x(epoch), to_y(value)) for epoch, value in values],
            [f"{name}, epoch {epoch}: {value:,.4g}{unit}" for epoch, value in values],
        )
        for name, color, is_dashed, values in found
    ]
    marks: list[Mark] = []
    if len(runs) == 1:
        changes = find_size_changes(runs[0].history)
        marks = [Mark(to_x(epoch - 0.5), f"{pixels} px", "size") for epoch, pixels in changes]
        best = runs[0].best
        if best is not None:
            marks.append(Mark(to_x(best.epoch + 1), "best", "best"))
    return Chart(
        title,
        lines,
        [(to_x(epoch), str(epoch)) for epoch in list_epochs(first, last)],
        [(to_y(value), f"{value:,.6g}") for value in list_ticks(low, high)],
        marks,
    )


def draw_all(runs: Sequence[ReportedRun]) -> list[Chart]:
    """Return the charts of a page."""
    sampled = next((r.sample_images for run in runs for r in run.history if r.sample_images), None)
    if sampled is None:  # a run from before train images were scored
        kind = "train (as trained: augmented, smoothed)"
        train_loss, train_top1 = (lambda r: r.train_loss), (lambda r: r.train_top1)
    else:
        kind = f"train ({sampled:,} fixed images)" if len(runs) == 1 else "train sample"
        train_loss, train_top1 = (lambda r: r.sample_loss), (lambda r: r.sample_top1)
    charts = [
        draw_chart(
            "Cross-entropy",
            runs,
            [Curve("val", lambda r: r.val_loss), Curve(kind, train_loss, is_dashed=True)],
        ),
        draw_chart(
            "Top-1, %",
            runs,
            [Curve("val", lambda r: r.val_top1), Curve(kind, train_top1, is_dashed=True)],
            scale=100,
            unit=" %",
        ),
        draw_chart(
            "Training rate, images/sec",
            runs,
            [Curve("images/sec", lambda r: r.images_per_sec)],
            from_zero=True,
        ),
        draw_chart(
            "Time spent waiting for data, %",
            runs,
            [Curve("waiting", lambda r: r.data_wait_share)],
            scale=100,
            from_zero=True,
            unit=" %",
        ),
    ]
    return [chart for chart in charts if chart is not None]
