import json
import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinyvgg.bench.against import bench_against, render_page, sweep_workers
from tinyvgg.bench.config import BenchConfig
from tinyvgg.bench.image_folder import (
    build_transform,
    check_same_images,
    image_folder_work,
    open_image_folder,
)
from tinyvgg.bench.setting import choose_setting
from tinyvgg.cli import main
from tinyvgg.errors import DatasetError
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images
from tinyvgg.shards.store import PackedDataset, open_dataset

CPU = torch.device("cpu")
FLAGS = {f"--{field.name.replace('_', '-')}" for field in fields(BenchConfig)}


@pytest.fixture
def pack_folders(class_folders: Path, tmp_path: Path) -> Callable[..., PackedDataset]:
    """Pack `class_folders`, 12 train images of 64 x 64."""

    def pack(**options: object) -> PackedDataset:
        config = PackConfig(class_folders, tmp_path / "made", **options)  # type: ignore[arg-type]
        pack_images(config, lambda split, num_images: lambda num_done: None)
        return open_dataset(config.out)

    return pack


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_every_arm_is_measured_beside_the_swept_workers(
    encoding: str, pack_folders: Callable[..., PackedDataset], class_folders: Path
) -> None:
    dataset = pack_folders(encoding=encoding)

    found = bench_against(
        dataset, class_folders, CPU, batch_size=4, workers=(0, 1), repeats=2, window_sec=0.01
    )

    names = [rate.arm for rate in found.rates]
    assert names[:2] == [f"ImageFolder + DataLoader, {count} workers" for count in (0, 1)]
    assert names[2:] == [f"tinyvgg, backend {name}" for name in ("dali", "torch", "resident")]
    assert all(len(rate.windows) == 2 and min(rate.windows) > 0 for rate in found.rates)
    assert found.baseline.images_per_sec == max(rate.images_per_sec for rate in found.rates[:2])
    assert found.ratio(found.baseline).median == 1
    assert multiprocessing.active_children() == []
    document = json.loads(json.dumps(found.describe()))
    assert document["arms"][0]["windows"] == found.rates[0].windows


@pytest.mark.slow
def test_the_command_prints_a_page_and_writes_what_compare_reads(
    pack_folders: Callable[..., PackedDataset],
    class_folders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    packed = pack_folders().folder
    words = ["bench", str(packed), "--against", str(class_folders), "--workers", "0"]
    words += ["--batch-size", "4", "--repeats", "2", "--window-sec", "0.01"]
    out = str(tmp_path / "result.json")

    assert main([*words, "--out", out]) == 0
    page = capsys.readouterr().out
    assert main(["bench", "--compare", out, out]) == 0

    assert "12 train images of 3 classes, 64x64 pixels, packed as uint8" in page
    assert "4 images, random crop, flip, normalize; float32, 64x64, on cpu" in page
    assert re.search(r"tinyvgg, backend torch +[\d,.]+ +\[.*\] +[\d,.]+ x \[", page)
    assert " images/sec of ImageFolder + DataLoader with 0 workers, the best of 0: " in page
    assert str(tmp_path) not in page  # to be shown to others
    assert str(tmp_path) not in Path(out).read_text()
    assert set(re.findall(r"--[a-z-]+", page)) <= FLAGS


def test_both_pipelines_give_the_same_pixels_where_nothing_is_drawn(
    pack_folders: Callable[..., PackedDataset], class_folders: Path
) -> None:
    dataset = pack_folders()
    setting = choose_setting(dataset)
    loader = open_loader(dataset, "train", LoaderConfig(batch_size=12, augment=False))
    transform = build_transform(setting, (64, 64), loader.normalization, resize=False)
    transform.transforms = transform.transforms[-2:]  # neither crop nor flip

    images = [image for image, _ in open_image_folder(class_folders, transform)]
    batch = next(iter(loader))

    for image, row in zip(batch.images, batch.ids.tolist(), strict=True):
        assert (image - images[row]).abs().max() < 0.02  # a level is 1 / (255 std) = 0.013


def test_a_crop_fills_with_the_mean_as_ours_does(
    pack_folders: Callable[..., PackedDataset],
) -> None:
    dataset = pack_folders()
    normalization = open_loader(dataset, "train", LoaderConfig(batch_size=12)).normalization
    setting = choose_setting(dataset)

    crop, flip, *_ = build_transform(setting, (64, 64), normalization, resize=False).transforms

    assert (crop.size, crop.padding) == ((64, 64), 4)
    assert crop.fill == tuple(round(255 * mean) for mean in dataset.manifest.splits.train.mean)
    assert flip.p == 0.5


def test_batches_come_in_rounds_of_one_a_worker_and_workers_end(
    pack_folders: Callable[..., PackedDataset], class_folders: Path
) -> None:
    dataset = pack_folders()
    normalization = open_loader(dataset, "train", LoaderConfig(batch_size=12)).normalization
    transform = build_transform(choose_setting(dataset), None, normalization, resize=False)
    folder = open_image_folder(class_folders, transform)

    for workers, num_images in ((0, 4), (2, 8)):
        with image_folder_work(folder, workers, 4, CPU) as work:
            assert [work() for _ in range(3)] == [num_images] * 3  # over the end of an epoch
            assert len(multiprocessing.active_children()) == workers
        assert multiprocessing.active_children() == []


def test_a_worker_that_is_killed_is_an_error_in_one_line(
    pack_folders: Callable[..., PackedDataset], class_folders: Path
) -> None:
    folder = open_image_folder(class_folders, lambda image: os.kill(os.getpid(), signal.SIGKILL))

    with (
        pytest.raises(DatasetError, match=r"DataLoader with 1 workers: .* --workers"),
        image_folder_work(folder, 1, 4, CPU) as work,
    ):
        work()
    assert multiprocessing.active_children() == []


def test_images_that_were_packed_smaller_are_scaled_by_both(
    pack_folders: Callable[..., PackedDataset], class_folders: Path
) -> None:
    dataset = pack_folders(resize=48)

    assert check_same_images(open_image_folder(class_folders), dataset)


def test_folders_that_the_val_images_were_drawn_from_are_taken(
    class_folders: Path, tmp_path: Path
) -> None:
    config = PackConfig(class_folders / "train", tmp_path / "made", val_share=0.25)
    (class_folders / "train").rename(class_folders / "all")
    config = replace(config, source=class_folders / "all")
    pack_images(config, lambda split, num_images: lambda num_done: None)
    dataset = open_dataset(config.out)

    assert (dataset.train.num_images, dataset.val.num_images) == (9, 3)
    assert not check_same_images(open_image_folder(class_folders / "all"), dataset)


def test_other_folders_are_refused(
    pack_folders: Callable[..., PackedDataset], class_folders: Path, tmp_path: Path
) -> None:
    dataset = pack_folders()
    image = class_folders / "train" / "bear" / "bear_2.JPEG"
    original = image.read_bytes()
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)

    Image.fromarray(noise).save(image)
    with pytest.raises(DatasetError, match=r"bear_2.JPEG: not image 6 of .*packed from"):
        check_same_images(open_image_folder(class_folders), dataset)
    image.unlink()
    with pytest.raises(DatasetError, match=r"11 images of 3 classes, .* holds 12 of 3"):
        check_same_images(open_image_folder(class_folders), dataset)
    image.write_bytes(original)
    assert not check_same_images(open_image_folder(class_folders), dataset)
    with pytest.raises(DatasetError, match="no class folders that ImageFolder reads"):
        open_image_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("num_cores", "counts"),
    [(1, [0, 1, 2]), (2, [0, 1, 2, 4]), (16, [0, 4, 8, 16]), (64, [0, 8, 16, 32])],
)
def test_workers_are_swept_around_the_cores(num_cores: int, counts: list[int]) -> None:
    assert sweep_workers(num_cores) == counts


def test_a_busy_machine_is_said(
    pack_folders: Callable[..., PackedDataset], class_folders: Path
) -> None:
    found = bench_against(
        pack_folders(), class_folders, CPU, batch_size=4, workers=(0,), repeats=1, window_sec=0.01
    )

    found.machine["busy_share"] = 0.5
    assert "other work kept 50 % of the cores busy" in render_page(found)[-1]
    found.machine["busy_share"] = 0.0
    assert render_page(found)[-1] == "1 windows an arm are few: take the intervals as a hint."
