"""What the tests of shards share: random images, and ways to damage a packed folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinyvgg.shards.store import PackedDataset

PackArrays = Callable[..., PackedDataset]


def make_images(num_images: int, height: int = 4, width: int = 3, seed: int = 0) -> np.ndarray:
    shape = (num_images, height, width, 3)
    return np.random.default_rng([seed, num_images]).integers(0, 256, shape, np.uint8)


def swap(first: Path, second: Path) -> None:
    first.rename(first.with_suffix(".swap"))
    second.rename(first)
    first.with_suffix(".swap").rename(second)


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a manifest as a set without optional fields has it: nothing seals the others."""
    fields = json.loads((folder / "manifest.json").read_bytes())
    del fields["fields_sha256"]
    for split in fields["splits"].values():
        for shard in split["shards"]:
            del shard["head_crc32"]
    edit(fields)
    (folder / "manifest.json").write_text(json.dumps(fields))
