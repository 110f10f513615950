"""Real images as JPEG shards: the pixels of raw shards, bit for bit, on the whole set."""

from pathlib import Path

import pytest
import torch

from tests.loading.contract import BACKENDS, assert_same
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.options import Backend
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images
from tinyvgg.shards.store import PackedDataset, open_dataset


@pytest.fixture(scope="module")
def real_jpegs(real_images: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    out = tmp_path_factory.mktemp("real") / "jpegs"
    config = PackConfig(source=real_images, out=out, encoding="jpeg")
    pack_images(config, lambda split, num_images: lambda num_done: None)
    return open_dataset(out)


@pytest.mark.real
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_real_image_has_the_pixels_of_the_raw_shards(
    real_dataset: PackedDataset, real_jpegs: PackedDataset, backend: Backend, split: str
) -> None:
    reference: Backend = "torch"
    pairs = ((real_dataset, reference), (real_jpegs, backend))
    raw, jpegs = (
        open_loader(
            dataset,
            split,
            LoaderConfig(backend=kind, batch_size=250, seed=5, drop_last=False),
            dtype=torch.uint8,
        )
        for dataset, kind in pairs
    )

    for one, other in zip(raw.epoch(3), jpegs.epoch(3), strict=True):
        assert_same([one], [other])


@pytest.mark.real
def test_statistics_of_real_files_are_those_of_their_pixels(
    real_dataset: PackedDataset, real_jpegs: PackedDataset
) -> None:
    for split in ("train", "val"):
        raw, jpegs = (dataset.manifest.split(split) for dataset in (real_dataset, real_jpegs))
        assert (raw.mean, raw.std) == (jpegs.mean, jpegs.std)
