"""NVIDIA DALI from JPEG files, on a CPU. Its authors are invited to mend this file."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.contract import (
    FILL,
    LARGE,
    MEAN,
    PAD,
    PIXELS,
    STD,
    Batches,
    Contest,
    OpenEpochs,
    Peer,
    Variant,
    batch_size,
    list_items,
)

ALL: tuple[Contest, ...] = ("stored", "flip", "crop", "photographs")
PEER = Peer(
    "dali",
    (Variant("DALI, JPEG files", ALL, None, {"threads": 2}),),
    {"convert": "it reads the files themselves"},
    "shuffles the file list anew after each epoch; decodes every file in every epoch",
)


def open_epochs(folder: Path, contest: Contest, encoding: str | None, threads: int) -> OpenEpochs:
    """Its file reader, decoder and operators."""
    from nvidia.dali import Pipeline, fn, types
    from torch.utils.dlpack import from_dlpack

    items = list_items(folder)
    size = batch_size(contest)
    pipeline = Pipeline(size, threads, None, prefetch_queue_depth=2, seed=1)
    with pipeline:
        data, labels = fn.readers.file(
            files=[str(path) for path, _ in items], labels=[label for _, label in items],
            shuffle_after_epoch=True, pad_last_batch=True, name="files",
        )  # fmt: skip
        if contest == "photographs":
            images = fn.decoders.image_random_crop(data, device="cpu", random_area=[0.08, 1.0])
            images = fn.resize(images, size=[LARGE, LARGE], antialias=True)
        else:
            images = fn.decoders.image(data, device="cpu")
        if contest == "crop":
            corner = fn.random.uniform(values=[float(i) for i in range(-PAD, PAD + 1)], shape=2)
            images = fn.slice(
                images, corner, (float(PIXELS), float(PIXELS)), axes=(0, 1),
                normalized_anchor=False, normalized_shape=False,
                out_of_bounds_policy="pad", fill_values=[float(value) for value in FILL],
            )  # fmt: skip
        if contest != "stored":
            images = fn.crop_mirror_normalize(
                images, dtype=types.FLOAT, output_layout="HWC", mirror=fn.random.coin_flip(),
                mean=[255 * value for value in MEAN], std=[255 * value for value in STD],
            )  # fmt: skip
        pipeline.set_outputs(images, labels)
    pipeline.build()

    def to_torch(output: Any) -> torch.Tensor:
        return from_dlpack(output.as_tensor())

    def epoch() -> Batches:
        for start in range(0, len(items), size):
            images, labels = map(to_torch, pipeline.run())
            count = min(size, len(items) - start)  # the last batch is filled up
            images = images if contest == "stored" else images.permute(0, 3, 1, 2)
            yield images[:count], labels.reshape(-1)[:count].long()

    return epoch
