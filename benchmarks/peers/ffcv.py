"""FFCV: one .beton file, pixels or JPEG. Its authors are invited to mend this file."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.contract import (
    FILL,
    LARGE,
    MEAN,
    PAD,
    STD,
    Batches,
    Contest,
    Items,
    OpenEpochs,
    Peer,
    Variant,
    batch_size,
)

PEER = Peer(
    "ffcv",
    (
        Variant("FFCV, raw", ("stored", "flip", "crop", "convert"), "raw", {"workers": 2}),
        Variant(
            "FFCV, JPEG", ("flip", "photographs", "convert"), "jpeg", {"workers": 2}, levels_off=1.0
        ),
    ),
    unlike="JPEG: encoded again at quality 90, so other pixels; it compiles in every process, "
    "before what is timed; buffers are reused",
)


class Files:
    """What its writer reads."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        from PIL import Image

        path, label = self.items[row]
        with Image.open(path) as image:
            return image.convert("RGB"), label


def write(items: Items, out: Path, encoding: str) -> None:
    """Write by two processes."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    mode = "jpg" if encoding == "jpeg" else "raw"
    fields = {"image": RGBImageField(write_mode=mode, jpeg_quality=90), "label": IntField()}
    writer = DatasetWriter(str(out / "train.beton"), fields, num_workers=2)
    writer.from_indexed_dataset(Files(items), chunksize=100)


def open_epochs(folder: Path, contest: Contest, encoding: str, workers: int) -> OpenEpochs:
    """Its pipeline, all operations its own."""
    from ffcv.fields.decoders import (
        IntDecoder,
        RandomResizedCropRGBImageDecoder,
        SimpleRGBImageDecoder,
    )
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import (
        NormalizeImage,
        RandomHorizontalFlip,
        RandomTranslate,
        Squeeze,
        ToTensor,
        ToTorchImage,
    )

    is_large = contest == "photographs"
    steps: list[Any] = [
        RandomResizedCropRGBImageDecoder((LARGE, LARGE)) if is_large else SimpleRGBImageDecoder()
    ]
    steps += [RandomTranslate(PAD, FILL)] if contest == "crop" else []
    if contest != "stored":
        mean, std = 255 * np.array(MEAN), 255 * np.array(STD)
        steps += [RandomHorizontalFlip(), NormalizeImage(mean, std, np.float32)]
    steps += [ToTensor(), ToTorchImage(convert_back_int16=False)]
    loader = Loader(
        str(folder / "train.beton"), batch_size=batch_size(contest), num_workers=workers,
        os_cache=True, order=OrderOption.RANDOM, drop_last=False, seed=0,
        pipelines={"image": steps, "label": [IntDecoder(), ToTensor(), Squeeze()]},
    )  # fmt: skip

    def epoch() -> Batches:
        yield from loader

    return epoch
