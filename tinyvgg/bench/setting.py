"""Setting: which network and image size a data set is measured with.

From: a packed data set.
To:   `stages` and `against`, and a line where it is not the reference network on whole images.
"""

from dataclasses import dataclass

import numpy as np

from tinyvgg.loading.config import ViewName
from tinyvgg.model.vgg import ARCHS
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.config import ArchName

PHOTOGRAPH_PIXELS = 224  # that large images are scaled to, as torchvision's networks take them
OTHER_ARCH: ArchName = "vgg11"  # takes what the reference network does not


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        arch: of the network.
        size: that images are scaled to, in pixels; None: as they are stored.
        view: what an augmented image shows.
        shown: (H, W) of the images of a batch.
        reason: in one line, where it is not the reference network on whole images; else "".
    """

    arch: ArchName
    size: int | None
    view: ViewName
    shown: tuple[int, int]
    reason: str = ""


def choose_setting(dataset: PackedDataset) -> Setting:
    """Return network and size: the reference's where it takes the images, else vgg11's."""
    stored = dataset.manifest.image.size
    other = ARCHS[OTHER_ARCH]
    if stored is None:
        middle = int(np.median(dataset.train.sizes.min(axis=1)))
        size = min(PHOTOGRAPH_PIXELS, max(other.min_pixels, middle))
        reason = f"images have several sizes: boxes of them scaled to {size}x{size}, {OTHER_ARCH}"
        return Setting(OTHER_ARCH, size, "resized-crop", (size, size), reason)
    least, most = min(stored), max(stored)
    text = f"images are {stored[1]}x{stored[0]}"
    reference = ARCHS["vgg_net"]
    if reference.min_pixels <= least and most <= reference.max_pixels:
        return Setting("vgg_net", None, "crop", stored)
    if other.min_pixels <= least and most <= other.max_pixels:
        limits = f"{reference.min_pixels} to {reference.max_pixels}"
        reason = f"{text}, the reference network takes {limits} pixels: {OTHER_ARCH}"
        return Setting(OTHER_ARCH, None, "crop", stored, reason)
    size = PHOTOGRAPH_PIXELS if most > other.max_pixels else other.min_pixels
    reason = f"{text}: boxes of them scaled to {size}x{size}, {OTHER_ARCH}"
    return Setting(OTHER_ARCH, size, "resized-crop", (size, size), reason)
