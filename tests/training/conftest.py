from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.config import TrainConfig


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
def make_config(tmp_path: Path) -> Callable[..., TrainConfig]:
    """Return a config for `color_dataset` in float32, with fields replaced."""

    def make(**fields: object) -> TrainConfig:
        defaults = {"epochs": 2, "batch_size": 8, "amp": "off", "log_every": 3}
        return TrainConfig(tmp_path / "colors", **{"out": tmp_path / "run", **defaults, **fields})

    return make
