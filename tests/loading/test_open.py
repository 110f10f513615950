import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed

import tinyvgg.loading
from tinyvgg.errors import BackendUnavailable, ShardError
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.loading.loader import Loader
from tinyvgg.shards.manifest import Manifest
from tinyvgg.shards.store import PackedDataset, open_dataset, write_manifest

CPU = torch.device("cpu")


@contextmanager
def world_of(size: int, folder: Path) -> Iterator[None]:
    """Be rank 0 of `size` processes, of which no other exists: opening asks none of them."""
    from torch.testing._internal.distributed import fake_pg  # registers the backend  # noqa: F401

    store = torch.distributed.FileStore(str(folder / "store"), size)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("fake", store=store, rank=0, world_size=size)
    yield
    torch.distributed.destroy_process_group()


def change_statistics(dataset: PackedDataset, split: str, **changes: Any) -> PackedDataset:
    """Write other statistics of a split into the manifest and open the folder again."""
    record = dataset.manifest.split(split).model_copy(update=changes)
    splits = dataset.manifest.splits.model_copy(update={split: record})
    manifest: Manifest = dataset.manifest.model_copy(update={"splits": splits})
    write_manifest(dataset.folder, manifest)
    return open_dataset(dataset.folder)


@pytest.mark.parametrize("module", ["torch", "numba", "matplotlib"])
def test_the_config_can_be_imported_without(module: str) -> None:
    code = f"from tinyvgg.loading import LoaderConfig; import sys; print({module!r} in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"


def test_the_package_has_the_two_public_names_and_no_other() -> None:
    assert tinyvgg.loading.__all__ == ["LoaderConfig", "open_loader"]
    with pytest.raises(AttributeError, match="no attribute 'close_loader'"):
        _ = tinyvgg.loading.close_loader


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backend": "gpu"}, "backend must be one of auto, .*torch, resident, got 'gpu'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, r"seed must be at least 0 and under 2\^64, got -1"),
        ({"seed": 2**64}, r"seed must be at least 0 and under 2\^64, got 18446744073709551616"),
        ({"crop_pixels": -1}, "crop_pixels must be a whole number from 0 to 8, got -1"),
        ({"crop_pixels": 9}, "crop_pixels must be a whole number from 0 to 8, got 9"),
        ({"crop_pixels": 4.0}, "crop_pixels must be a whole number from 0 to 8, got 4.0"),
        ({"crop_pixels": "4"}, "crop_pixels must be a whole number from 0 to 8, got 4"),
        ({"std": (0.2, 0.0, 0.2)}, r"std must be 3 values above 0, got \(0.2, 0.0, 0.2\)"),
        ({"std": (0.2, -0.1, 0.2)}, "std must be 3 values above 0"),
        ({"std": (0.2, float("nan"), 0.2)}, "std must be 3 values above 0"),
        ({"std": (0.2, 0.2)}, "std must be 3 values above 0"),
        ({"mean": (123.7, 116.3, 103.5)}, r"mean must be 3 values from 0 to 1, got \(123.7"),
        ({"mean": (-0.1, 0.5, 0.5)}, "mean must be 3 values from 0 to 1"),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean must be 3 values from 0 to 1"),
        ({"mean": (0.5,)}, "mean must be 3 values from 0 to 1"),
        ({"mean": 0.5}, "mean must be 3 values from 0 to 1, got 0.5$"),
        ({"mean": "rgb"}, "mean must be 3 values from 0 to 1, got rgb$"),
        ({"mean": np.full((3, 1), 0.5)}, r"mean must be 3 values from 0 to 1, got \[\[0.5\] \[0.5"),
        (
            {"std": np.array([0.2, 0.0, 0.2])},
            r"std must be 3 values above 0, got \(0.2, 0.0, 0.2\)",
        ),
        ({"std": torch.ones(4)}, r"std must be 3 values above 0, got tensor\(\[1., 1., 1., 1.\]\)"),
    ],
    ids=str,
)
def test_a_config_that_no_loader_can_follow_is_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        LoaderConfig(**fields)


@pytest.mark.parametrize(
    "make",
    [list, np.array, torch.tensor, iter, lambda values: np.array(values, np.float32)],
    ids=["list", "array", "tensor", "iterator", "float32"],
)
def test_any_three_numbers_are_a_mean_or_a_std(
    packed: PackedDataset, make: Callable[[tuple[float, ...]], Any]
) -> None:
    mean, std = (0.0, 0.5, 1.0), (0.25, 0.5, 2.0)  # exact in float32
    config = LoaderConfig(batch_size=5, augment=False, mean=make(mean), std=make(std))

    assert config == LoaderConfig(batch_size=5, augment=False, mean=mean, std=std)
    assert first_error(open_loader(packed, "train", config), packed, mean, std) < 1e-6


@pytest.mark.parametrize("make", [str, Path], ids=["str", "path"])
def test_a_loader_opens_the_folder_that_it_is_given(
    packed: PackedDataset, make: Callable[[Path], Any]
) -> None:
    config = LoaderConfig(batch_size=5)
    expected = [batch.ids.tolist() for batch in open_loader(packed, "train", config)]

    loader = open_loader(make(packed.folder), "train", config)

    assert [batch.ids.tolist() for batch in loader] == expected


def test_a_folder_that_is_no_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=f"^{tmp_path}.*manifest"):
        open_loader(tmp_path, "train")


@pytest.mark.parametrize(
    ("found", "name"), [(None, "NoneType"), (["packed"], "list"), (b"packed", "bytes")]
)
def test_what_is_no_data_set_and_no_folder_is_refused(found: Any, name: str) -> None:
    message = f"dataset must be a packed folder or what open_dataset returns, got {name}"
    with pytest.raises(TypeError, match=message):
        open_loader(found, "train")


def test_the_defaults_open_a_loader_of_float32_on_the_cpu(
    pack_arrays: Callable[..., PackedDataset],
) -> None:
    images, labels = np.zeros((130, 2, 2, 3), np.uint8), np.zeros(130)
    loader = open_loader(pack_arrays("zeros", images, labels, images, labels), "train")

    (batch,) = loader.epoch(0)

    assert loader.batch_size == len(batch.ids) == 128
    assert (batch.images.dtype, batch.images.device) == (torch.float32, CPU)


def test_an_unknown_split_is_refused(packed: PackedDataset) -> None:
    with pytest.raises(ValueError, match="split must be one of train, val, got 'test'"):
        open_loader(packed, "test", LoaderConfig(batch_size=5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8], ids=str)
def test_an_unknown_dtype_is_refused(packed: PackedDataset, dtype: torch.dtype) -> None:
    message = f"dtype must be one of uint8, float32, bfloat16, float16, got {dtype}"
    with pytest.raises(ValueError, match=message):
        open_loader(packed, "train", LoaderConfig(batch_size=5), dtype=dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="NOT RUN: there is a CUDA device")
@pytest.mark.parametrize("backend", ["auto", "torch", "resident"])
def test_a_device_that_is_not_there_is_named(packed: PackedDataset, backend: Any) -> None:
    config = LoaderConfig(backend=backend, batch_size=5)

    with pytest.raises(BackendUnavailable, match=r"device 'cuda': torch .* pass device='cpu'"):
        open_loader(packed, "train", config, device="cuda")


def test_an_empty_split_is_refused(pack_arrays: Callable[..., PackedDataset]) -> None:
    images, labels = np.zeros((3, 2, 2, 3), np.uint8), np.arange(3)
    dataset = pack_arrays("no-val", images, labels, images[:1], labels[:1])
    dataset = change_statistics(dataset, "val", num_images=0, shards=[])

    with pytest.raises(ShardError, match="no-val: split 'val' has no images; pack it again"):
        open_loader(dataset, "val")


@pytest.mark.parametrize("backend", ["torch", "resident"])
def test_a_batch_larger_than_the_split_is_refused_where_it_would_be_dropped(
    packed: PackedDataset, backend: Any
) -> None:
    message = "batch_size must be at most 33, the images of split 'train', got 34"
    with pytest.raises(ValueError, match=message):
        open_loader(packed, "train", LoaderConfig(backend=backend, batch_size=34))

    padded = LoaderConfig(backend=backend, batch_size=34, drop_last=False)
    assert len(open_loader(packed, "train", padded)) == 1


def test_a_batch_that_ranks_cannot_share_is_refused(packed: PackedDataset, tmp_path: Path) -> None:
    with world_of(3, tmp_path):
        message = "batch_size must be divisible by the world size 3, got 8"
        with pytest.raises(ValueError, match=message):
            open_loader(packed, "train", LoaderConfig(batch_size=8))


@pytest.mark.parametrize("backend", ["torch", "resident"])
def test_a_rank_gets_its_share_of_a_batch(
    packed: PackedDataset, tmp_path: Path, backend: Any
) -> None:
    config = LoaderConfig(backend=backend, batch_size=8)
    alone = [batch.ids.tolist() for batch in open_loader(packed, "train", config).epoch(0)]

    with world_of(4, tmp_path):
        loader = open_loader(packed, "train", config)
        shared = [batch.ids.tolist() for batch in loader.epoch(0)]

    assert len(loader) == 4
    assert shared == [ids[:2] for ids in alone]


def test_auto_means_torch_on_a_cpu_and_says_why_in_one_line(
    packed: PackedDataset, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tinyvgg"):
        loader = open_loader(packed, "train", LoaderConfig(batch_size=5))

    assert loader.backend == "torch"
    reason = "on a CPU it reads the mapped shards without a copy"
    if packed.train.is_jpeg:
        reason = "on a CPU it decodes JPEG files with every core"
    assert [record.getMessage() for record in caplog.records] == [
        f"backend torch for split train: {reason}"
    ]


@pytest.mark.parametrize("backend", ["torch", "resident"])
def test_a_backend_asked_for_by_name_is_taken_and_only_decoding_is_said(
    packed: PackedDataset, caplog: pytest.LogCaptureFixture, backend: Any
) -> None:
    with caplog.at_level(logging.DEBUG, "tinyvgg"):
        loader = open_loader(packed, "train", LoaderConfig(backend=backend, batch_size=5))

    assert loader.backend == backend
    expected = []
    if backend == "resident" and packed.train.is_jpeg:
        expected = ["backend resident for split train: decodes it once, to 0.00 GiB"]
    assert [record.getMessage() for record in caplog.records] == expected


def first_error(
    loader: Loader, dataset: PackedDataset, mean: tuple[float, ...], std: tuple[float, ...]
) -> float:
    """Return how far the first batch is from the stored pixels normalized so."""
    batch = next(iter(loader))
    pixels = dataset.split(loader.dataset.name).read_images(batch.ids.numpy()) / 255
    expected = (pixels - np.array(mean)) / np.array(std)
    return float(np.abs(batch.images.permute(0, 2, 3, 1).numpy() - expected).max())


@pytest.mark.parametrize("split", ["train", "val"])
def test_both_splits_are_normalized_as_the_train_split_asks_for(
    packed: PackedDataset, split: str
) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.9, 0.8, 0.7)
    dataset = change_statistics(packed, "train", mean=list(mean), std=list(std))

    loader = open_loader(dataset, split, LoaderConfig(batch_size=5, augment=False))

    assert (loader.normalization.mean, loader.normalization.std) == (mean, std)
    assert first_error(loader, dataset, mean, std) < 1e-6


@pytest.mark.parametrize("backend", ["torch", "resident"])
@pytest.mark.parametrize(
    "override",
    [{"mean": (0.0, 0.5, 1.0)}, {"std": (0.5, 1.0, 2.0)}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}],
    ids=str,
)
def test_mean_and_std_of_the_config_go_before_the_manifest(
    packed: PackedDataset, backend: Any, override: dict[str, Any]
) -> None:
    expected = {"mean": (0.48, 0.45, 0.4), "std": (0.28, 0.27, 0.29)} | override
    config = LoaderConfig(backend=backend, batch_size=5, augment=False, **override)

    loader = open_loader(packed, "train", config)

    assert first_error(loader, packed, **expected) < 2e-6


def test_the_color_outside_a_crop_follows_the_mean_of_the_config(packed: PackedDataset) -> None:
    config = LoaderConfig(batch_size=33, mean=(0.0, 1.0, 0.5))
    loader = open_loader(packed, "train", config, dtype=torch.uint8)
    words = np.random.Philox(key=[0, 0]).random_raw(66)[33:]

    (batch,) = loader.epoch(0)

    for image, id_ in zip(batch.images, batch.ids, strict=True):
        if words[id_] % 9 < 4:  # the crop begins above the image
            assert image[:, 0].T.tolist() == [[0, 255, 128]] * 64


def test_a_channel_without_variation_is_centered_and_not_scaled(packed: PackedDataset) -> None:
    dataset = change_statistics(packed, "train", std=[0.28, 0.0, 0.29])

    loader = open_loader(dataset, "train", LoaderConfig(batch_size=5, augment=False))

    assert first_error(loader, dataset, (0.48, 0.45, 0.4), (0.28, 1.0, 0.29)) < 1e-6
