"""Tasks: each shard is one, planned from the sorted listing; done twice it gives the same bytes.

From: `folders`, with the sorted images of a source.
To:   `threads` or `ray_tasks`, which do tasks anywhere and in any order, and `journal`, which knows
      the done ones by their keys.

A key is a hash of all that the bytes of a shard depend on: the options, the paths, sizes and times
of its files, their labels. The shard of another key is another shard.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tinyvgg.packing.encoders import Block
from tinyvgg.packing.folders import ImageSource, SourceImage, show_path
from tinyvgg.packing.trees import Stamp
from tinyvgg.shards.manifest import ShardRecord


@dataclass(frozen=True)
class ShardTask:
    """Images that belong into one shard."""

    split: str
    index: int
    images: list[SourceImage]

    @property
    def name(self) -> str:
        """What the names of its files begin with."""
        return f"{self.split}-{self.index:05d}"

    def make_key(self, options: str, stamps: NDArray[np.int64]) -> str:
        """Return its key, 64 hexadecimal digits.

        Args:
            options: what the bytes depend on besides the images.
            stamps: int64 [2 n], of its files.
        """
        digest = hashlib.sha256(f"{options}\0{self.name}\0{len(self.images)}\0".encode())
        digest.update(stamps.astype("<i8").tobytes())
        _update(digest, self.images)
        return digest.hexdigest()

    def find_stamps(self, source: ImageSource) -> NDArray[np.int64]:
        """Return the stamps of its files as they are now, int64 [2 n]."""
        stamps: list[Stamp] = [source.tree.find_stamp(image.path) for image in self.images]
        return np.array(stamps, np.int64).reshape(-1)


@dataclass
class WrittenShard:
    """What the blocks of a shard add up to; `record` is there when it is written.

    Attributes:
        record: what the manifest says of it.
        sums: int64 [2, 3]: of x and of x * x, per channel, over all pixels.
        num_pixels: behind the sums.
        sizes: (height, width) of its images; two of them if there are more.
        bad_files: and why they cannot be packed; if there are any, its rows hold anything.
        recoded: paths as they are shown, and why they could not be stored as they are.
        stamps: int64 [2 n], of its files, when they were read.
        digests: uint64 [n], of its files.
    """

    sums: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 3), np.int64))
    num_pixels: int = 0
    sizes: set[tuple[int, int]] = field(default_factory=set)
    bad_files: list[tuple[SourceImage, str]] = field(default_factory=list)
    recoded: list[tuple[str, str]] = field(default_factory=list)
    stamps: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    digests: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    record: ShardRecord | None = None

    def add(self, block: Block) -> None:
        """Add what was learned of a block."""
        self.sums += block.sums
        self.num_pixels += block.num_pixels
        if len(self.sizes) < 2:
            self.sizes |= block.sizes
        self.bad_files += block.bad_files
        self.recoded += [(show_path(image.path), reason) for image, reason in block.recoded]
        self.stamps = np.concatenate([self.stamps, np.array(block.stamps, np.int64)])
        self.digests = np.concatenate([self.digests, np.array(block.digests, np.uint64)])


def plan_shards(splits: dict[str, list[SourceImage]], shard_size: int) -> list[ShardTask]:
    """Return the shards of all splits, in order; every one but the last of a split is full."""
    return [
        ShardTask(split, index, images[first : first + shard_size])
        for split, images in splits.items()
        for index, first in enumerate(range(0, len(images), shard_size))
    ]


def hash_listing(splits: dict[str, list[SourceImage]]) -> str:
    """Return a hash of the paths and labels of all images."""
    digest = hashlib.sha256()
    for split, images in splits.items():
        digest.update(f"{split}\0{len(images)}\0".encode())
        _update(digest, images)
    return digest.hexdigest()


def _update(digest: "hashlib._Hash", images: Iterable[SourceImage]) -> None:
    images = list(images)
    digest.update(os.fsencode("\0".join([image.path for image in images])))
    digest.update(np.array([image.label for image in images], "<i8").tobytes())
