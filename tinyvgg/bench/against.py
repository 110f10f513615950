"""Against: the user's present loading beside every backend, on this machine and these images.

From: `tinyvgg bench PACKED --against FOLDERS`.
To:   a page of text, and the same as JSON.

Every arm gives batches of one size, of the same images, cropped, flipped and normalized to float32
on the device. Each repeat runs every arm once, in a new order; an arm is opened for its window and
closed after it, so that no other one's processes work meanwhile. What lay ready when the window
began is taken out before. The ratio is over the best number of workers, repeat by repeat.
"""

import logging
import random
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from tinyvgg.bench.image_folder import (
    build_transform,
    check_same_images,
    image_folder_work,
    open_image_folder,
)
from tinyvgg.bench.machine import BUSY_SHARE, count_cores, describe_machine
from tinyvgg.bench.ratios import Ratio, bootstrap_ratio
from tinyvgg.bench.setting import Setting, choose_setting
from tinyvgg.bench.windows import Work, time_window
from tinyvgg.errors import BackendUnavailable, printable
from tinyvgg.loading.config import LoaderConfig
from tinyvgg.loading.loader import Loader
from tinyvgg.loading.open import open_loader
from tinyvgg.options import BACKENDS, Backend
from tinyvgg.shards.store import PackedDataset

logger = logging.getLogger("tinyvgg")

READY_ROUNDS = 3  # DataLoader keeps two batches a worker ready, and one is being made
MAX_WORKERS = 32  # swept to by default
ENOUGH_REPEATS = 5  # for an interval that can be relied on
FEW_CORES = 8  # up to which twice as many workers may be faster

Opener = Callable[[], AbstractContextManager[Work]]


@dataclass(frozen=True)
class ArmRate:
    """What one way of loading came to, in images/sec.

    Attributes:
        arm: its name.
        windows: one a repeat.
        workers: processes of a DataLoader; None: one of our backends.
    """

    arm: str
    windows: list[float]
    workers: int | None = None

    @property
    def images_per_sec(self) -> float:
        """Median of the windows."""
        return statistics.median(self.windows)


@dataclass(frozen=True)
class Comparison:
    """All arms, and how they were measured; see `bench_against`."""

    rates: list[ArmRate]
    reasons: list[str]
    machine: dict[str, Any]
    images: str
    batches: str
    window_sec: float
    date: str

    @property
    def baseline(self) -> ArmRate:
        """The fastest DataLoader."""
        loaders = [rate for rate in self.rates if rate.workers is not None]
        return max(loaders, key=lambda rate: rate.images_per_sec)

    def ratio(self, rate: ArmRate) -> Ratio:
        """Return an arm over the fastest DataLoader."""
        pairs = zip(rate.windows, self.baseline.windows, strict=True)
        return bootstrap_ratio([ours / theirs for ours, theirs in pairs])

    def describe(self) -> dict[str, Any]:
        """Return it as JSON values."""
        arms = []
        for rate in self.rates:
            ratio = self.ratio(rate)
            fields: dict[str, Any] = {
                "arm": rate.arm,
                "workers": rate.workers,
                "windows": rate.windows,
            }
            fields |= {"images_per_sec": rate.images_per_sec}
            fields["ratio"] = {"median": ratio.median, "low": ratio.low, "high": ratio.high}
            arms.append(fields)
        return {
            "schema": 1,
            "date": self.date,
            "machine": self.machine,
            "images": self.images,
            "batches": self.batches,
            "window_sec": self.window_sec,
            "baseline": self.baseline.arm,
            "arms": arms,
            "not_measured": self.reasons,
        }


def bench_against(
    dataset: PackedDataset,
    folders: Path,
    device: torch.device,
    *,
    batch_size: int,
    workers: Sequence[int] = (),
    repeats: int = 5,
    window_sec: float = 2.0,
    open_bar: Callable[[str, int], Callable[[int], Any]] = lambda title, total: lambda done: None,
) -> Comparison:
    """Measure loading alone: ImageFolder and DataLoader beside every backend.

    Args:
        dataset: that was packed from `folders`.
        folders: with train/CLASS/IMAGE, or CLASS/IMAGE.
        device: where batches go.
        batch_size: images of a batch; as many as there are, where there are fewer.
        workers: counts to try; none: those of `sweep_workers`.
        repeats: windows of each arm.
        window_sec: least length of a window.
        open_bar: called with a title and the number of windows; returns what each one is told to.

    Raises:
        DatasetError: `folders` holds other images.
    """
    setting = choose_setting(dataset)
    batch_size = min(batch_size, dataset.train.num_images)
    machine = describe_machine()
    loaders, reasons = _open_backends(dataset, setting, device, batch_size)
    normalization = next(iter(loaders.values())).normalization
    is_scaled = check_same_images(open_image_folder(folders), dataset)
    stored = dataset.manifest.image.size
    transform = build_transform(setting, stored, normalization, resize=is_scaled)
    folder = open_image_folder(folders, transform)
    counts = {name_workers(count): count for count in workers or sweep_workers(count_cores())}
    arms: dict[str, Opener] = {
        name: partial(image_folder_work, folder, count, batch_size, device)
        for name, count in counts.items()
    }
    arms |= {name: partial(_loader_work, loader) for name, loader in loaders.items()}
    windows: dict[str, list[float]] = {name: [] for name in arms}
    advance = open_bar("windows", repeats * len(arms))
    for repeat in range(repeats):
        for name in random.Random(repeat).sample(list(arms), len(arms)):
            with arms[name]() as work:
                windows[name].append(_measure(work, window_sec))
            advance(1)
    height, width = setting.shown
    view = "random box, scaled" if setting.view == "resized-crop" else "random crop"
    scaled = ", scaled to that size first" if is_scaled else ""
    sizes = "several sizes" if stored is None else f"{stored[1]}x{stored[0]} pixels{scaled}"
    kind = "JPEG files, packed untouched" if dataset.train.is_jpeg else "packed as uint8"
    return Comparison(
        rates=[ArmRate(name, windows[name], counts.get(name)) for name in arms],
        reasons=reasons,
        machine=machine,
        images=f"{dataset.train.num_images:,} train images of {len(dataset.class_names):,} "
        f"classes, {sizes}, {kind}",
        batches=f"{batch_size} images, {view}, flip, normalize; float32, {width}x{height}, "
        f"on {device}",
        window_sec=window_sec,
        date=datetime.now(UTC).date().isoformat(),
    )


def name_workers(count: int) -> str:
    """Return the name of a DataLoader's arm."""
    return f"ImageFolder + DataLoader, {count} workers"


def sweep_workers(num_cores: int) -> list[int]:
    """Return the worker counts that are tried: 0, a quarter of the cores, half of them, all.

    Twice as many, too, where there are few cores; never more than 32.
    """
    most = min(num_cores, MAX_WORKERS)
    counts = {0, max(1, most // 4), max(1, most // 2), most}
    return sorted(counts | ({2 * most} if most <= FEW_CORES else set()))


def _open_backends(
    dataset: PackedDataset, setting: Setting, device: torch.device, batch_size: int
) -> tuple[dict[str, Loader], list[str]]:
    """Return a loader of each backend that can run here by arm, and why the others cannot."""
    loaders: dict[str, Loader] = {}
    reasons = []
    for backend in BACKENDS[1:]:
        config = LoaderConfig(
            backend=cast(Backend, backend),
            batch_size=batch_size,
            size=setting.size,
            view=setting.view,
            reuse_buffers=True,
        )
        try:
            loader = open_loader(dataset, "train", config, device=device)
        except BackendUnavailable as error:
            reasons.append(why_not(error))
            continue
        loaders[f"tinyvgg, backend {backend}"] = loader
    return loaders, reasons


def why_not(error: BackendUnavailable) -> str:
    """Return the reason without its advice, which names flags of other commands."""
    return str(error).partition("; ")[0]


@contextmanager
def _loader_work(loader: Loader) -> Iterator[Work]:
    """Yield work that gives one batch of a loader, epoch after epoch."""

    def endless() -> Generator[Any, None, None]:
        while True:
            yield from loader

    batches = endless()
    try:
        yield lambda: next(batches).num_valid
    finally:
        batches.close()


def _measure(work: Work, window_sec: float) -> float:
    """Return images/sec, after what lay ready and a quarter of a window were thrown away."""
    started = time.perf_counter()
    for _ in range(READY_ROUNDS):
        work()
    time_window(work, max(0.0, window_sec / 4 - (time.perf_counter() - started)))
    return time_window(work, window_sec)


def render_page(found: Comparison) -> list[str]:
    """Return the page of text to show to others, line by line."""
    machine, baseline = found.machine, found.baseline
    repeats = len(baseline.windows)
    lines = [
        f"Loading images for training: images/sec of loading alone, {found.date}",
        "",
        f"machine   {machine['cpu']}, {machine['num_cores']} cores, {machine['gpu'] or 'no GPU'}",
        f"versions  tinyvgg {machine['tinyvgg']}, torch {machine['torch']}, "
        f"Python {machine['python']}",
        f"images    {found.images}",
        f"batches   {found.batches}",
        f"windows   {repeats} of {found.window_sec:g} s an arm, in turn, in a new order each time; "
        "the files were read before",
        "",
        f"{'':<38} {'images/sec':>12}   {'slowest to fastest':<24} over the best DataLoader",
    ]
    for rate in found.rates:
        spread = f"[{min(rate.windows):,.1f} to {max(rate.windows):,.1f}]"
        ratio = "1, by definition" if rate is baseline else str(found.ratio(rate))
        lines.append(f"{rate.arm:<38} {rate.images_per_sec:>12,.1f}   {spread:<24} {ratio}")
    lines += [f"not measured: {reason}" for reason in found.reasons]
    ours = [rate for rate in found.rates if rate.workers is None]
    best = max(ours, key=lambda rate: rate.images_per_sec)
    best_ratio = found.ratio(best)
    counts = ", ".join(str(rate.workers) for rate in found.rates if rate.workers is not None)
    lines += [
        "",
        f"{best.arm} gives {best_ratio} the images/sec of ImageFolder + DataLoader with "
        f"{baseline.workers} workers, the best of {counts}: {best_ratio.verdict}.",
        "Brackets: 95 % bootstrap interval over the windows, repeat by repeat.",
    ]
    if repeats < ENOUGH_REPEATS:
        lines.append(f"{repeats} windows an arm are few: take the intervals as a hint.")
    if machine["busy_share"] > BUSY_SHARE:
        lines.append(
            f"Before it began, other work kept {100 * machine['busy_share']:.0f} % of the cores "
            "busy: measure again on an idle machine."
        )
    return [printable(line) for line in lines]
