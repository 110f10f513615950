import logging
import re
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch

from tests.conftest import known_images
from tinyvgg.bench.config import BenchConfig
from tinyvgg.bench.stages import bench_stages, name_bottleneck
from tinyvgg.shards.store import PackedDataset

FLAGS = {f"--{field.name.replace('_', '-')}" for field in fields(BenchConfig)}


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [32, 96])
def test_images_that_the_reference_does_not_take_are_measured_without_a_warning(
    pixels: int, pack_arrays: Callable[..., PackedDataset], caplog: pytest.LogCaptureFixture
) -> None:
    images, labels = known_images(12, pixels, pixels), np.arange(12) % 3
    dataset = pack_arrays("sized", images, labels, images[:3], labels[:3])

    with caplog.at_level(logging.INFO, "tinyvgg"):
        rates = list(bench_stages(dataset, torch.device("cpu"), 0.01, repeats=2, batch_size=4))

    assert [rate.stage for rate in rates][-2:] == ["step", "train (load + step)"]
    assert all(len(rate.windows) == 2 and min(rate.windows) > 0 for rate in rates)
    assert name_bottleneck(rates).startswith("bottleneck: ")
    texts = [record.getMessage() for record in caplog.records]
    assert [text for text in texts if "reference network takes 48 to 95 pixels: vgg11" in text]
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    assert set(re.findall(r"--[a-z-]+", " ".join(texts))) <= FLAGS
