"""Batches of images of several sizes, and of boxes of stored ones: every backend, every type."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.loading.contract import (
    CPU,
    assert_same,
    every_dtype,
    keep,
    read_epochs,
    same_bits,
    valid_ids,
)
from tests.loading.test_pinned import LateRuntime
from tinyvgg.errors import BackendUnavailable
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.loading.batch import Batch, PixelPass
from tinyvgg.loading.loader import Loader
from tinyvgg.loading.open import count_batch_bytes
from tinyvgg.loading.pinned import PinnedSource
from tinyvgg.loading.resident import ResidentSource
from tinyvgg.loading.views import choose_view
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images
from tinyvgg.shards.store import PackedDataset, open_dataset

SIZE = 24
VIEW_BACKENDS = ["torch", pytest.param("dali", marks=pytest.mark.dali)]
PATHS = [("jpeg", backend) for backend in VIEW_BACKENDS]

pytestmark = pytest.mark.usefixtures("three_threads")


@pytest.fixture(params=["jpeg", "raw"])
def dataset(
    request: pytest.FixtureRequest, tmp_path: Path, pack_arrays: Callable[..., PackedDataset]
) -> PackedDataset:
    """23 train and 6 val images: JPEG files of several sizes, or stored pixels of one."""
    generator = np.random.default_rng(3)

    def draw(height: int, width: int) -> NDArray[np.uint8]:
        coarse = generator.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))

    if request.param == "raw":
        train, val = (np.stack([draw(40, 52) for _ in range(count)]) for count in (23, 6))
        return pack_arrays("raw", train, np.arange(23) % 2, val, np.arange(6) % 2, shard_size=9)
    for split, count in (("train", 23), ("val", 6)):
        for number in range(count):
            folder = tmp_path / "source" / split / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = draw(*generator.integers(20, 90, 2).tolist())
            data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 90)
            (folder / f"{number:02d}.jpg").write_bytes(data)
    config = PackConfig(
        source=tmp_path / "source", out=tmp_path / "packed", shard_size=9, encoding="jpeg"
    )
    pack_images(config, lambda split, num_images: lambda num_done: None)
    return open_dataset(tmp_path / "packed")


def open_view(
    dataset: PackedDataset,
    backend: Any = "torch",
    split: str = "train",
    dtype: torch.dtype = torch.uint8,
    **fields: Any,
) -> Loader:
    view = "resized-crop" if split == "train" else "center"
    config = LoaderConfig(
        **{"backend": backend, "batch_size": 5, "size": SIZE, "view": view, "seed": 4, **fields}
    )
    return open_loader(dataset, split, config, dtype=dtype)


def obvious_images(dataset: PackedDataset, loader: Loader, step: int) -> NDArray[np.uint8]:
    """Return a step's images by Pillow: decoded, cut out, scaled, flipped; [b, H, W, 3]."""
    planned = loader.plan(loader.state)
    assert planned.boxes is not None
    images = []
    for row, box, flip in zip(
        planned.rows[step], planned.boxes[step], planned.flip[step], strict=True
    ):
        top, left, height, width = box.tolist()
        pixels, _ = loader.dataset[row]
        cut = Image.fromarray(pixels[top : top + height, left : left + width])
        scaled = np.asarray(cut.resize(loader.image_size[::-1], Image.Resampling.BILINEAR))
        images.append(scaled[:, ::-1] if flip else scaled)
    return np.stack(images)


@pytest.mark.parametrize("backend", VIEW_BACKENDS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_pixels_are_pillows_of_the_planned_boxes(
    dataset: PackedDataset, backend: str, split: str
) -> None:
    loader = open_view(dataset, backend, split, drop_last=False)
    expected = [obvious_images(dataset, loader, step) for step in range(len(loader))]

    batches = read_epochs(loader, range(1))

    for batch, images in zip(batches, expected, strict=True):
        found = batch.images.permute(0, 2, 3, 1).numpy().astype(int)
        difference = np.abs(found - images)
        assert difference.max() <= (1 if backend == "torch" else 4)
        assert difference.mean() <= (0.1 if backend == "torch" else 0.25)
    assert sorted(valid_ids(batches)) == list(range(loader.dataset.num_images))


@pytest.mark.parametrize("backend", VIEW_BACKENDS)
@every_dtype
def test_every_type_holds_the_same_pixels(
    dataset: PackedDataset, backend: str, dtype: torch.dtype
) -> None:
    stored, other = (open_view(dataset, backend, dtype=kind) for kind in (torch.uint8, dtype))
    normalization = other.normalization
    scale, shift = (
        torch.from_numpy(values)[:, None, None]
        for values in (normalization.scale, normalization.shift)
    )

    for batch, converted in zip(stored.epoch(2), other.epoch(2), strict=True):
        expected = batch.images
        if dtype != torch.uint8:
            expected = (batch.images.float() * scale + shift).to(dtype)
        atol = {torch.uint8: 0, torch.bfloat16: 2**-6, torch.float16: 2**-9}.get(dtype, 1e-6)
        assert converted.images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(converted.images.float(), expected.float(), rtol=0, atol=atol)
        assert converted.labels.tolist() == batch.labels.tolist()


@pytest.mark.parametrize("backend", VIEW_BACKENDS)
def test_batches_depend_neither_on_the_batch_size_nor_on_where_it_was_resumed(
    dataset: PackedDataset, backend: str
) -> None:
    by_id = {
        id_: image
        for batch in read_epochs(open_view(dataset, backend, batch_size=23), range(1))
        for id_, image in zip(batch.ids.tolist(), batch.images, strict=True)
    }
    stopped, resumed = (open_view(dataset, backend, drop_last=False) for _ in range(2))
    batches = stopped.epoch(0)
    read = [keep(next(batches)), keep(next(batches))]
    resumed.load_state_dict(stopped.state_dict())
    read += [keep(batch) for batch in resumed]

    assert valid_ids(read) == valid_ids(read_epochs(open_view(dataset, drop_last=False), range(1)))
    for batch in read:
        for id_, image in zip(batch.ids[: batch.num_valid].tolist(), batch.images, strict=False):
            assert same_bits(image, by_id[id_])


@pytest.mark.parametrize("backend", VIEW_BACKENDS)
def test_the_size_changes_from_epoch_to_epoch(dataset: PackedDataset, backend: str) -> None:
    loader = open_view(dataset, backend)

    for epoch, size in enumerate((16, SIZE, 30, 30)):
        loader.set_size(size)
        found, expected = (
            read_epochs(opened, range(epoch, epoch + 1))
            for opened in (loader, open_view(dataset, backend, size=size))
        )
        assert_same(found, expected)
        assert found[0].images.shape[2:] == (size, size)


@every_dtype
def test_the_staged_path_of_an_accelerator_gives_the_same(
    dataset: PackedDataset, dtype: torch.dtype
) -> None:
    loader = open_view(dataset, dtype=dtype)
    expected = read_epochs(loader, range(1))
    size = loader.image_size
    pixel_pass = PixelPass((*size, 3), loader.normalization, dtype)

    with LateRuntime() as runtime:
        source = PinnedSource(dataset.train, pixel_pass, CPU, runtime)
        start = open_view(dataset, dtype=dtype).state
        batches: list[Batch] = [keep(b) for b in source.batches(loader.plan, start, size)]

    assert_same(batches, expected)


def test_images_of_several_sizes_need_a_size(dataset: PackedDataset) -> None:
    if dataset.manifest.image.size is not None:
        assert open_view(dataset, size=None).image_size == (40, 40)
        return
    with pytest.raises(ValueError, match="size must be given for images of several sizes, 224 for"):
        open_loader(dataset, "train", LoaderConfig(batch_size=5))


@every_dtype
def test_resident_pixels_give_what_torch_gives(dataset: PackedDataset, dtype: torch.dtype) -> None:
    for split in ("train", "val"):
        loaders = [open_view(dataset, b, split, dtype) for b in ("torch", "resident")]
        expected, found = (read_epochs(loader, range(2)) for loader in loaders)
        assert_same(found, expected)
        for loader in loaders:
            loader.set_size(32)
        expected, found = ([keep(batch) for batch in loader.epoch(2)] for loader in loaders)
        assert_same(found, expected)


def test_boxes_that_are_cut_out_on_the_device_are_those_of_the_host(dataset: PackedDataset) -> None:
    loader = open_view(dataset, "resident")
    assert isinstance(loader.source, ResidentSource)
    epoch = loader.plan(loader.state)
    assert epoch.boxes is not None

    for step, batch in enumerate(open_view(dataset, "torch", flip=False).epoch(0)):
        shown = loader.source.cut_boxes(epoch.rows[step], epoch.boxes[step], (SIZE, SIZE))
        difference = (shown.permute(0, 3, 1, 2).int() - batch.images.int()).abs()
        assert difference.max() <= 1
        assert difference.float().mean() < 0.2


def test_resident_that_does_not_fit_is_refused(
    dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyvgg.loading.open.find_free_memory", lambda: 2**10)

    refusal = (
        r"resident' needs 0\.00 GiB on cpu for split 'train', 0\.00 GiB may be used, half of the "
        "host memory that is free; use --backend torch"
    )
    with pytest.raises(BackendUnavailable, match=refusal):
        open_view(dataset, "resident")


def test_dali_whose_batches_may_not_fit_is_refused(
    dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyvgg.loading.open.find_free_memory", lambda: 2**10)

    with pytest.raises(BackendUnavailable, match=r"dali' may need 0\.00 GiB for a batch .* torch"):
        open_view(dataset, "dali")


def test_batches_of_the_largest_images_are_counted(dataset: PackedDataset) -> None:
    pixels = sorted(dataset.train.sizes.astype(int).prod(axis=1).tolist())
    view = choose_view(LoaderConfig(), None, is_augmented=True)

    assert count_batch_bytes(dataset.train, 2, view) == 9 * sum(pixels[-2:])
    assert count_batch_bytes(dataset.train, 2, None) == 0


@pytest.mark.parametrize("backend", VIEW_BACKENDS)
def test_large_images_of_one_size_are_scaled_as_they_are_read(backend: str, tmp_path: Path) -> None:
    pixels = np.zeros((1000, 1100, 3), np.uint8)
    pixels[:500], pixels[:, 550:, 1] = (200, 10, 90), 120
    for split in ("train", "val"):
        (tmp_path / "source" / split / "a").mkdir(parents=True)
        data = simplejpeg.encode_jpeg(pixels, 95)
        (tmp_path / "source" / split / "a" / "0.jpg").write_bytes(data)
    config = PackConfig(source=tmp_path / "source", out=tmp_path / "packed", encoding="jpeg")
    pack_images(config, lambda split, num_images: lambda num_done: None)
    dataset = open_dataset(tmp_path / "packed")

    loader = open_view(dataset, backend, "val", view=None, batch_size=1, size=20)
    (batch,) = loader.epoch(0)

    assert loader.image_size == (20, 22)
    stored, _ = dataset.split("val")[0]
    expected = Image.fromarray(stored).resize((22, 20), Image.Resampling.BILINEAR)
    shown = batch.images[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(shown - np.asarray(expected)).max() <= (1 if backend == "torch" else 4)
    with pytest.raises(ValueError, match="resized-crop or center for 1100x1000, got 'crop'"):
        open_view(dataset, backend, view="crop", batch_size=1)
