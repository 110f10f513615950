"""Stages: images/sec of each stage on this machine and these images, in about two minutes.

From: a packed data set.
To:   `tinyvgg bench`. The full suite, with peers, ceilings and records, is `benchmarks/`.

Each stage runs alone, then loading and step together; the slowest one is the bottleneck.
"""

import logging
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image

from tinyvgg.bench.against import why_not
from tinyvgg.bench.setting import choose_setting
from tinyvgg.bench.windows import Work, time_window
from tinyvgg.errors import BackendUnavailable
from tinyvgg.loading.batch import Batch
from tinyvgg.loading.config import LoaderConfig
from tinyvgg.loading.loader import Loader
from tinyvgg.loading.open import open_loader
from tinyvgg.options import BACKENDS, Backend
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.build import build_trainer
from tinyvgg.training.config import Recipe
from tinyvgg.training.trainer import Trainer

logger = logging.getLogger("tinyvgg")

# re-encoded as JPEG and packed again: enough for `pack` to decode in processes, in little space
PACK_IMAGES, PACK_BYTES = 16_384, 256 * 2**20
STEP_IMAGES = 64  # of a batch that is trained on
LARGE_PIXELS, LARGE_STEP_IMAGES = 128, 16  # an image of 224 pixels costs 12 times one of 64
LOOP_STEPS = 4  # of the training loop in one unit of work, where a step is shorter than a window


@dataclass(frozen=True)
class StageRate:
    """Images/sec of one stage: the median of its windows, and the slowest and fastest of them."""

    stage: str
    images_per_sec: float
    low: float
    high: float
    windows: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        """Return the line of a stage."""
        spread = f"[{self.low:,.1f} to {self.high:,.1f}]"
        return f"{self.stage:<24} {self.images_per_sec:>12,.1f} images/sec   {spread}"


def bench_stages(
    dataset: PackedDataset,
    device: torch.device,
    window_sec: float,
    *,
    repeats: int = 5,
    batch_size: int = 256,
) -> Iterator[StageRate]:
    """Measure pack, every loader backend, the step, and training end to end.

    Args:
        dataset: to load and train on.
        device: to load and train on.
        window_sec: length of each window, after one that is thrown away.
        repeats: windows of a stage.
        batch_size: images of a batch that is loaded; a step takes 64, of large images 16.

    Returns:
        An iterator over the rates; each is measured when it is asked for.
    """
    with tempfile.TemporaryDirectory() as scratch:
        yield _measure("pack", _pack_again(dataset, Path(scratch)), 0.0, repeats)
    setting = choose_setting(dataset)
    if setting.reason:
        logger.info("%s", setting.reason)
    recipe = Recipe(
        batch_size=min(
            STEP_IMAGES if max(setting.shown) < LARGE_PIXELS else LARGE_STEP_IMAGES,
            dataset.train.num_images,
        ),
        sizes=(),
        size_shares=(),
        epochs=10**6,
        size=setting.size,
        view=setting.view,
        arch=setting.arch,
    )
    trainer = build_trainer(recipe, dataset, device)
    for backend in BACKENDS[1:]:
        config = LoaderConfig(
            backend=cast(Backend, backend),
            batch_size=min(batch_size, dataset.train.num_images),
            size=setting.size,
            view=setting.view,
        )
        dtype = trainer.image_dtype
        try:
            loader = open_loader(dataset, "train", config, device=device, dtype=dtype)
        except BackendUnavailable as error:
            logger.info("not measured: %s", why_not(error))
            continue
        yield _measure(f"load, backend {backend}", _load(loader), window_sec, repeats)
    step = _measure("step", _step(trainer), window_sec, repeats)
    yield step
    is_slow = trainer.loader.batch_size / step.images_per_sec > window_sec
    num_steps = 1 if is_slow else LOOP_STEPS
    yield _measure("train (load + step)", _train(trainer, num_steps), window_sec, repeats)


def name_bottleneck(rates: list[StageRate]) -> str:
    """Say in one line which stage holds training back."""
    rate_of = {rate.stage: rate.images_per_sec for rate in rates}
    loading = max(value for stage, value in rate_of.items() if stage.startswith("load"))
    share = rate_of["train (load + step)"] / rate_of["step"]
    slow = "the step" if rate_of["step"] < loading else "loading"
    return (
        f"bottleneck: {slow}; loading alone is {loading / rate_of['step']:,.1f} times the step, "
        f"and training reaches {100 * share:.0f} % of the step's rate"
    )


def _measure(stage: str, work: Work, window_sec: float, repeats: int) -> StageRate:
    time_window(work, window_sec)
    rates = [time_window(work, window_sec) for _ in range(repeats)]
    return StageRate(stage, statistics.median(rates), min(rates), max(rates), rates)


def _pack_again(dataset: PackedDataset, scratch: Path) -> Work:
    """Write some train images as JPEG class folders, and return the packing of them."""
    train = dataset.train
    is_jpeg = train.is_jpeg

    def place(split: str, row: int) -> Path:
        folder = str(dataset.class_names[train.labels[row]])
        path: Path = scratch / "images" / split / folder / f"{row}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    # of every class: rows stand class by class
    num_images = min(PACK_IMAGES, train.num_images, 1 + PACK_BYTES // int(train.row_bytes.mean()))
    rows = np.linspace(0, train.num_images - 1, num_images).astype(int)
    for row in rows.tolist():
        if is_jpeg:
            place("train", row).write_bytes(train.view_row(row).tobytes())
        else:
            Image.fromarray(train.view_row(row)).save(place("train", row), quality=90)
    # `pack` needs a val image, and warns of one whose file is a train image's, too
    Image.fromarray(train[0][0]).save(place("val", 0), quality=80)
    config = PackConfig(
        scratch / "images",
        scratch / "packed",
        overwrite=True,
        encoding="jpeg" if is_jpeg else "raw",
    )

    def work() -> int:
        manifest = pack_images(config, lambda split, num_images: lambda num_done: None)
        return manifest.splits.train.num_images

    return work


def _load(loader: Loader) -> Work:
    def endless() -> Iterator[Batch]:
        while True:
            yield from loader

    batches = endless()
    return lambda: next(batches).num_valid


def _step(trainer: Trainer) -> Work:
    batch = next(iter(trainer.loader))
    batch = replace(batch, images=batch.images.clone())
    trainer.model.train()

    def work() -> int:
        trainer.take_step(batch, 1e-4)
        return batch.num_valid

    return work


def _train(trainer: Trainer, num_steps: int) -> Work:
    def work() -> int:
        return sum(trainer.loader.batch_size for _ in trainer.train_steps(num_steps))

    return work
