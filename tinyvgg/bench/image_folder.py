"""Image folder: torchvision's ImageFolder and torch's DataLoader, as most people load images.

From: a folder-per-class tree, and what a batch is to hold.
To:   `against`, as work like that of our own loaders; `benchmarks/`.

Decoding, cropping, flipping and normalizing are torchvision's own transforms, with the numbers that
ours use; on CUDA memory is pinned and copies do not block, as torch's documentation advises.
"""

import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyvgg.bench.setting import Setting
from tinyvgg.bench.windows import Work
from tinyvgg.errors import DatasetError
from tinyvgg.loading.batch import Normalization
from tinyvgg.loading.config import CROP_PIXELS, LoaderConfig
from tinyvgg.shards.store import PackedDataset

STALLED_SEC = 120  # after which a worker that delivers nothing is given up
SAMPLE_IMAGES = 20  # compared with the packed ones
PIXEL_TOLERANCE = 2.0  # levels, on average: JPEG decoders differ


def open_image_folder(folders: Path, transform: Any = None) -> Any:
    """Return torchvision's ImageFolder of the train images.

    Raises:
        DatasetError: there are no class folders with images.
    """
    from torchvision.datasets import ImageFolder

    root = folders / "train" if (folders / "train").is_dir() else folders
    try:
        return ImageFolder(str(root), transform)
    except (FileNotFoundError, NotADirectoryError) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(
            f"{folders}: no class folders that ImageFolder reads ({reason}); name the folder that "
            "holds train/CLASS/IMAGE, or CLASS/IMAGE, unzipped"
        ) from error


def build_transform(
    setting: Setting, stored: tuple[int, int] | None, normalization: Normalization, *, resize: bool
) -> Any:
    """Return what a train image goes through: crop, flip, normalize.

    Args:
        setting: size and view of the batches.
        stored: (H, W) of the packed images; None: of several sizes.
        normalization: mean and std.
        resize: whether the files have to be scaled to `stored` first, as `pack --resize` did.
    """
    from torchvision import transforms

    steps: list[Any] = [transforms.Resize(stored)] if resize and stored else []
    if setting.view == "resized-crop":
        box = LoaderConfig()
        steps.append(
            transforms.RandomResizedCrop(setting.shown, scale=box.crop_area, ratio=box.crop_aspect)
        )
    else:
        fill = tuple(round(255 * value) for value in normalization.mean)
        steps.append(transforms.RandomCrop(setting.shown, padding=CROP_PIXELS, fill=fill))
    steps += [
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(normalization.mean, normalization.std),
    ]
    return transforms.Compose(steps)


def check_same_images(folder: Any, dataset: PackedDataset) -> bool:
    """Compare a sample of the packed train images with the files.

    Args:
        folder: from `open_image_folder`, without a transform.
        dataset: that was packed from it.

    Returns:
        Whether the packed images were scaled, so that the files must be, too.

    Raises:
        DatasetError: they are not the same images.
    """
    root, train = Path(folder.root), dataset.train
    # where `pack` drew the val images from the same folders, both splits are there
    is_drawn = len(folder) == train.num_images + dataset.val.num_images and root.name != "train"
    if folder.classes != dataset.class_names or not (is_drawn or len(folder) == train.num_images):
        num_bad = len(dataset.manifest.splits.train.skipped)
        remedy = "name the folder that it was packed from"
        if num_bad:
            remedy += f"; ImageFolder needs one without the {num_bad:,} bad files that pack skipped"
        raise DatasetError(
            f"{root}: {len(folder):,} images of {len(folder.classes):,} classes, {dataset.folder} "
            f"holds {train.num_images:,} of {len(dataset.class_names):,}; {remedy}"
        )
    is_scaled = False
    for row in range(0, len(folder), max(1, len(folder) // SAMPLE_IMAGES)):
        image, label = folder[row]
        if is_drawn:
            stored = dataset.manifest.image.size
            is_scaled |= stored is not None and (image.height, image.width) != stored
            continue
        pixels, packed_label = train[row]
        is_same = label == packed_label
        if (image.height, image.width) != pixels.shape[:2]:
            is_scaled = True
        else:
            difference = np.abs(pixels.astype(np.int16) - np.asarray(image, np.int16)).mean()
            is_same = is_same and bool(difference <= PIXEL_TOLERANCE)
        if not is_same:
            raise DatasetError(
                f"{folder.samples[row][0]}: not image {row:,} of {dataset.folder}; name the folder "
                "that it was packed from"
            )
    return is_scaled


@contextmanager
def image_folder_work(
    folder: Any, num_workers: int, batch_size: int, device: torch.device
) -> Iterator[Work]:
    """Yield work that gives a batch of each worker on the device; in the end they are gone.

    Batches come in rounds of one a worker, so that a unit of work has to be a whole round.

    Args:
        folder: from `open_image_folder`, with a transform.
        num_workers: processes that decode; 0: this one does.
        batch_size: images of a batch.
        device: where batches go.

    Raises:
        DatasetError: a worker ended, or delivers nothing.
    """
    is_pinned = device.type == "cuda"
    with warnings.catch_warnings():
        # more workers than cores, and to fork a process with threads: that is how it is used
        warnings.simplefilter("ignore")
        loader: Any = torch.utils.data.DataLoader(
            folder,
            batch_size=batch_size,
            shuffle=True,
            num_workers=num_workers,
            drop_last=True,
            pin_memory=is_pinned,
            persistent_workers=num_workers > 0,
            timeout=STALLED_SEC if num_workers else 0,
        )

        def endless() -> Generator[Any, None, None]:
            while True:
                yield from loader

        batches = endless()

        def work() -> int:
            return sum(give_batch() for _ in range(max(1, num_workers)))

        def give_batch() -> int:
            try:
                images, labels = next(batches)
            except RuntimeError as error:  # a worker that was killed, or delivers nothing
                reason = str(error).strip().splitlines()[-1]
                raise DatasetError(
                    f"DataLoader with {num_workers} workers: {reason}; leave that number out, with "
                    "--workers"
                ) from error
            images, labels = (part.to(device, non_blocking=is_pinned) for part in (images, labels))
            return len(images)

        try:
            yield work
        finally:
            batches.close()
            iterator, loader._iterator = loader._iterator, None
            if num_workers and iterator is not None:
                iterator._shutdown_workers()
