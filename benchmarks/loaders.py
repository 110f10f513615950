"""Loaders: shards to batches on a CPU device, beside ImageFolder and torch's own pass.

    python -m benchmarks.loaders PACKED FOLDERS [--repeats 5]

PACKED is what `tinyvgg pack` made of FOLDERS, a folder-per-class tree that ImageFolder can read.
Every arm delivers batches of 256; sums of pixels and labels of one epoch are compared first, so
that nobody wins by delivering something else.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Arm, Measurement, make_bar, run_benchmark
from tinyvgg.bench.windows import Work
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.shards import open_dataset

BATCH_SIZE = 256
NORMALIZE = "gather, then one normalize pass in torch"
SELECT = "ceiling: index_select"


def tinyvgg_loader(packed: str, backend: Any, dtype: str, augment: bool, batch_size: int) -> Work:
    """Shuffled train batches of a backend, labels and ids included."""
    config = LoaderConfig(backend=backend, batch_size=batch_size, augment=augment)
    loader = open_loader(open_dataset(packed), "train", config, dtype=getattr(torch, dtype))
    batches = endless(loader)

    def work() -> int:
        batch = next(batches)
        assert batch.labels.shape == batch.ids.shape
        num_valid: int = batch.num_valid
        return num_valid

    return work


def endless(loader: Any) -> Iterator[Any]:
    """Yield epoch after epoch: what happens between them is part of the cost."""
    while True:
        yield from loader


def image_folder_loader(folders: str, num_workers: int, *, batch_size: int, flip: bool) -> Any:
    """Return the reference's DataLoader: ImageFolder, ToTensor and Normalize, shuffled."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    transform = transforms.Compose(
        [
            *([transforms.RandomHorizontalFlip()] if flip else []),
            transforms.ToTensor(),
            transforms.Normalize([0.4802, 0.4481, 0.3975], [0.2302, 0.2265, 0.2262]),
        ]
    )
    return torch.utils.data.DataLoader(
        ImageFolder(str(Path(folders) / "train"), transform),
        batch_size=batch_size,
        shuffle=True,
        num_workers=num_workers,
        drop_last=True,
        persistent_workers=num_workers > 0,
    )


def image_folder(folders: str, num_workers: int) -> Work:
    """The reference, with a flip."""
    batches = endless(image_folder_loader(folders, num_workers, batch_size=BATCH_SIZE, flip=True))

    def work() -> int:
        images, _ = next(batches)
        return len(images)

    return work


def read_split(packed: str) -> torch.Tensor:
    """Return the train images in memory, uint8 [N, H, W, 3]."""
    split = open_dataset(packed).train
    return torch.from_numpy(np.concatenate([shard.images for shard in split.shards]))


def normalize_pass(packed: str) -> Work:
    """Ceiling: one compiled pass of x * scale + shift over gathered images into reused memory."""
    images = read_split(packed)[:BATCH_SIZE].clone()
    out = torch.empty(images.shape, dtype=torch.float32)
    scale, shift = torch.tensor([0.015, 0.014, 0.016]), torch.tensor([-1.7, -1.6, -1.5])

    @torch.compile(dynamic=False)
    def normalize(images: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(images.float() * scale + shift)

    source = read_split(packed)
    order = torch.randperm(len(source))
    position = 0

    def work() -> int:
        nonlocal position
        position = (position + BATCH_SIZE) % (len(source) - BATCH_SIZE)
        torch.index_select(source, 0, order[position : position + BATCH_SIZE], out=images)
        normalize(images, out)
        return BATCH_SIZE

    return work


def index_select(packed: str) -> Work:
    """Ceiling: torch.index_select of shuffled rows into a reused buffer."""
    source = read_split(packed)
    out = torch.empty((BATCH_SIZE, *source.shape[1:]), dtype=torch.uint8)
    order = torch.randperm(len(source))
    position = 0

    def work() -> int:
        nonlocal position
        position = (position + BATCH_SIZE) % (len(source) - BATCH_SIZE)
        torch.index_select(source, 0, order[position : position + BATCH_SIZE], out=out)
        return BATCH_SIZE

    return work


def check_same_images(packed: str, folders: str) -> None:
    """Compare labels and pixel sums of the first 2,000 train images with ImageFolder's."""
    from torchvision.datasets import ImageFolder

    split = open_dataset(packed).train
    reference = ImageFolder(str(Path(folders) / "train"))
    for row in range(0, 2000, 10):
        image, label = reference[row]
        assert label == split.labels[row]
        assert np.array_equal(np.asarray(image), split.read_images(np.array([row]))[0])


def main() -> None:
    """Measure all arms and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packed", type=os.path.abspath)
    parser.add_argument("folders", type=os.path.abspath, help="the same images for ImageFolder")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    check_same_images(options.packed, options.folders)

    def ours(name: str, backend: str, dtype: str, *, augment: bool) -> Arm:
        given = {"packed": options.packed, "backend": backend, "dtype": dtype}
        given |= {"augment": augment, "batch_size": BATCH_SIZE}
        ceiling = SELECT if dtype == "uint8" else None
        return Arm(name, "benchmarks.loaders:tinyvgg_loader", given, ceiling=ceiling)

    arms = [
        ours("torch, crop + flip + normalize, float32", "torch", "float32", augment=True),
        ours("resident, crop + flip + normalize, float32", "resident", "float32", augment=True),
        ours("torch, crop + flip + normalize, bfloat16", "torch", "bfloat16", augment=True),
        ours("torch, uint8 as stored", "torch", "uint8", augment=False),
        *(
            Arm(
                f"ImageFolder, flip + normalize, {workers} workers",
                "benchmarks.loaders:image_folder",
                {"folders": options.folders, "num_workers": workers},
                window_sec=1.0,
                num_windows=2,
            )
            for workers in (0, 2, 8)
        ),
        Arm(NORMALIZE, "benchmarks.loaders:normalize_pass",
            {"packed": options.packed}),
        Arm(SELECT, "benchmarks.loaders:index_select", {"packed": options.packed}),
    ]  # fmt: skip

    def judge(measured: dict[str, Measurement]) -> list[dict[str, Any]]:
        reference = max(
            (measured[name] for name in measured if name.startswith("ImageFolder")),
            key=lambda measurement: measurement.images_per_sec,
        )
        fp32, stored = measured[arms[0].name], measured[arms[3].name]
        return [
            make_bar(fp32, reference, "torch fp32 over the best ImageFolder", 40),
            make_bar(fp32, measured[NORMALIZE], "torch fp32 over one normalize pass", 0.7),
            make_bar(stored, measured[SELECT], "torch uint8 over index_select", 0.7),
        ]

    claim = f"loaders on a CPU device, batch {BATCH_SIZE}, shuffled, page cache warm"
    run_benchmark("loaders", claim, arms, judge, options.repeats)


if __name__ == "__main__":
    main()
