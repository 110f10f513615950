"""Fixtures that carry the suite: class folders of JPEGs, a packed dataset whose pixels are known.

Tests marked `real` need TinyImageNet images: a folder or zip in the environment variable
TINYVGG_DATA. Tests marked `gpu` need a CUDA device. Both say so when they are skipped;
TINYVGG_REQUIRE_GPU=1 makes a missing GPU a failure.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tinyvgg.shards.jpeg_shards import JpegFile, write_jpeg_shard
from tinyvgg.shards.manifest import (
    BLOCK_ROWS,
    ClassRecord,
    ImageFormat,
    JpegFormat,
    Manifest,
    SplitRecord,
    Splits,
)
from tinyvgg.shards.store import PackedDataset, open_dataset, write_manifest, write_shard
from tinyvgg.training.config import Recipe

CLASS_FOLDERS = ("apple", "bear", "car")


NOT_RUN = "NOT RUN: "


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    no_gpu = why_no_gpu() if any(item.get_closest_marker("gpu") for item in items) else None
    for item in items:
        if item.get_closest_marker("real") and "TINYVGG_DATA" not in os.environ:
            reason = f"{NOT_RUN}TINYVGG_DATA names no real images"
            item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("gpu") and no_gpu and not is_gpu_required():
            item.add_marker(pytest.mark.skip(reason=f"{NOT_RUN}{no_gpu}"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Under TINYVGG_REQUIRE_GPU=1 a test that needs a GPU fails without one."""
    if item.get_closest_marker("gpu") and is_gpu_required() and (no_gpu := why_no_gpu()):
        pytest.fail(f"TINYVGG_REQUIRE_GPU=1, but {no_gpu}", pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the tests that were not run for want of something, by name."""
    skipped = terminalreporter.stats.get("skipped", [])
    not_run = [report.nodeid for report in skipped if NOT_RUN in str(report.longrepr)]
    if not_run:
        terminalreporter.section(f"{len(not_run)} tests NOT RUN on this machine")
        for name in not_run:
            terminalreporter.line(name)


def is_gpu_required() -> bool:
    return os.environ.get("TINYVGG_REQUIRE_GPU") == "1"


def why_no_gpu() -> str | None:
    import torch

    if torch.cuda.is_available():
        return None
    return f"no CUDA device (torch {torch.__version__}, {torch.cuda.device_count()} devices)"


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Folder per class: 3 classes, 4 train and 2 val JPEGs each, all different."""
    root = tmp_path / "images"
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(CLASS_FOLDERS):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                key = [split == "val", label, number]
                pixels = np.random.default_rng(key).integers(0, 256, (8, 8, 3), np.uint8)
                image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
                image.save(folder / f"{name}_{number}.JPEG", quality=90)
    return root


def known_images(num_images: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Return uint8 [n, H, W, 3] noise in which pixel [0, 0] of image i encodes i."""
    images = np.random.default_rng(num_images).integers(0, 256, (num_images, height, width, 3))
    images = images.astype(np.uint8)
    numbers = np.arange(num_images)
    images[:, 0, 0] = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=1)
    return images


def write_packed(
    folder: Path,
    train: np.ndarray,
    train_labels: np.ndarray,
    val: np.ndarray,
    val_labels: np.ndarray,
    shard_size: int = 10,
    mean: tuple[float, ...] = (0.48, 0.45, 0.4),
    std: tuple[float, ...] = (0.28, 0.27, 0.29),
    encode: Callable[[np.ndarray, int], bytes] | None = None,
) -> Path:
    """Write a packed folder from arrays, uint8 [n, H, W, 3] and int64 [n].

    With `encode`, which makes a JPEG file of an image and its number, it is one of JPEG files.
    """
    folder.mkdir(parents=True)
    records = {}
    for split, images, labels in (("train", train, train_labels), ("val", val, val_labels)):
        shards = []
        for index, first in enumerate(range(0, len(images), shard_size)):
            part = images[first : first + shard_size]
            part_labels = labels[first : first + shard_size].astype(np.int64)
            if encode is not None:
                files = [
                    JpegFile(encode(pixels, first + number), pixels.shape[:2])
                    for number, pixels in enumerate(part)
                ]
                shards.append(write_jpeg_shard(folder, split, index, files, part_labels))
                continue
            blocks = [part[start : start + BLOCK_ROWS] for start in range(0, len(part), BLOCK_ROWS)]
            shape = images.shape[1:]
            shards.append(write_shard(folder, split, index, shape, blocks, part_labels))
        records[split] = SplitRecord(
            num_images=len(images), mean=list(mean), std=list(std), shards=shards, skipped=[]
        )
    num_classes = int(max(train_labels.max(), val_labels.max())) + 1
    classes = [ClassRecord(folder=f"class{k:03d}", words=f"words {k}") for k in range(num_classes)]
    size = {"height": train.shape[1], "width": train.shape[2]}
    manifest = Manifest(
        format=1 if encode is None else 2,
        image=ImageFormat(**size) if encode is None else JpegFormat(**size),
        classes=classes,
        splits=Splits(**records),
    )
    write_manifest(folder, manifest)
    return folder


@pytest.fixture
def packed(tmp_path: Path) -> PackedDataset:
    """33 train images in shards of 10 and 7 val images, 3 classes; label = id mod 3."""
    train, val = known_images(33), known_images(7)
    folder = write_packed(tmp_path / "packed", train, np.arange(33) % 3, val, np.arange(7) % 3)
    return open_dataset(folder)


@pytest.fixture
def pack_arrays(tmp_path: Path) -> Callable[..., PackedDataset]:
    """Return write_packed + open_dataset under tmp_path; the first argument is a name."""

    def pack(name: str, *arrays: np.ndarray, **kwargs: object) -> PackedDataset:
        return open_dataset(write_packed(tmp_path / name, *arrays, **kwargs))  # type: ignore[arg-type]

    return pack


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder or zip of real TinyImageNet images."""
    return Path(os.environ["TINYVGG_DATA"])


@pytest.fixture
def color_dataset(pack_arrays: Callable[..., PackedDataset]) -> PackedDataset:
    """40 train and 10 val images of 48 x 48 noise, 2 classes: class 1 is brighter."""
    generator = np.random.default_rng(0)

    def draw(num_images: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(num_images) % 2
        noise = generator.integers(0, 128, (num_images, 48, 48, 3))
        return (noise + 100 * labels[:, None, None, None]).astype(np.uint8), labels

    return pack_arrays("colors", *draw(40), *draw(10))


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    """Return a recipe for `color_dataset` in float32, with fields replaced."""

    def make(**fields: Any) -> Recipe:
        return Recipe(**{"epochs": 2, "batch_size": 8, "amp": "off", **fields})

    return make
