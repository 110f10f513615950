"""Packing real images: their pixels are those of ImageFolder and Pillow."""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import PILToTensor

from tests.packing.sources import (
    pack,
    zip_folder,
)
from tinyvgg.shards.store import open_dataset


def sha256_of(folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


@pytest.fixture(scope="module")
def real_sources(
    real_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    """The real images as a folder and as a zip; what is missing is made from the other."""
    made = tmp_path_factory.mktemp("real-source")
    memory = Path("/dev/shm")  # 55,000 files are made and removed in 5 s there, in 45 s on a disk
    if memory.is_dir() and shutil.disk_usage(memory).free > 2**30:
        made = Path(tempfile.mkdtemp(dir=memory))
    sources = {"folder": real_images, "zip": real_images}
    if real_images.is_dir():
        sources["zip"] = zip_folder(real_images, made / "real.zip", zipfile.ZIP_STORED)
    else:
        sources["folder"] = made / "folder"
        with zipfile.ZipFile(real_images) as archive:
            archive.extractall(sources["folder"])
    yield sources
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def real_packed(
    real_sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The real zip, packed by two workers."""
    made = tmp_path_factory.mktemp("real-packed")
    pack(real_sources["zip"], made / "packed", workers=2)
    yield made / "packed"
    shutil.rmtree(made)


def find_root(folder: Path) -> Path:
    return folder if (folder / "train").is_dir() else next(folder.glob("*/train")).parent


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers"), [("zip", 1), ("zip", 5), ("folder", 2)])
def test_real_images_give_the_same_bytes_from_zip_and_folder_for_any_workers(
    real_sources: dict[str, Path], real_packed: Path, tmp_path: Path, kind: str, workers: int
) -> None:
    pack(real_sources[kind], tmp_path / "packed", workers=workers)

    assert sha256_of(tmp_path / "packed") == sha256_of(real_packed)
    shutil.rmtree(tmp_path / "packed")


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("one_in", [7, pytest.param(1, marks=pytest.mark.long)])
def test_real_train_images_equal_those_of_image_folder(
    real_sources: dict[str, Path], real_packed: Path, one_in: int
) -> None:
    root = find_root(real_sources["folder"])
    reference = ImageFolder(str(root / "train"), transform=PILToTensor())
    train = open_dataset(real_packed).train

    def is_equal(row: int) -> bool:
        image, label = reference[row]
        packed = train.shards[row // train.shard_size].images[row % train.shard_size]
        return label == train.labels[row] and np.array_equal(
            image.numpy().transpose(1, 2, 0), packed
        )

    with ThreadPoolExecutor(2) as threads:
        are_equal = list(threads.map(is_equal, range(0, train.num_images, one_in)))

    assert len(reference) == train.num_images
    assert all(are_equal)


@pytest.mark.real
@pytest.mark.slow
def test_every_real_validation_image_equals_its_annotation_and_pillow(
    real_sources: dict[str, Path], real_packed: Path
) -> None:
    root = find_root(real_sources["folder"])
    lines = (root / "val/val_annotations.txt").read_text().splitlines()
    annotated = sorted(tuple(reversed(line.split("\t")[:2])) for line in lines)
    dataset = open_dataset(real_packed)

    images = dataset.val.read_images(np.arange(dataset.val.num_images))

    assert [dataset.class_names[k] for k in dataset.val.labels] == [name for name, _ in annotated]
    wrong = [
        file
        for (_, file), image in zip(annotated, images, strict=True)
        if not np.array_equal(
            image, np.asarray(Image.open(root / "val/images" / file).convert("RGB"))
        )
    ]
    assert wrong == []


MEASURED_PACK = """
import json, runpy, sys

sys.argv = ["tinyvgg", "pack", *sys.argv[1:]]
try:
    runpy.run_module("tinyvgg.cli", run_name="__main__")
except SystemExit as end:
    status = end.code
with open("/proc/self/status") as file:  # ru_maxrss would count the parent before exec
    peak_kib = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
print(json.dumps({"status": status, "peak_kib": peak_kib, "modules": list(sys.modules)}))
"""


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: /proc/self/status is Linux's")
def test_packing_real_images_takes_under_one_gib_and_imports_no_torch(
    real_sources: dict[str, Path], real_packed: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", MEASURED_PACK, str(real_sources["zip"]), "packed"]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["status"] == 0
    assert measured["peak_kib"] < 2**20
    assert {"torch", "numba", "matplotlib"}.isdisjoint(measured["modules"])
    assert sha256_of(tmp_path / "packed") == sha256_of(real_packed)
    shutil.rmtree(tmp_path / "packed")
