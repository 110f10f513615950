"""Plain torch over one mapped array: what a good engineer writes in an afternoon.

Dataset: batched `__getitems__` through DataLoader. Bare: one `index_select` into one buffer that is
reused, in the consumer's own thread.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peers.contract import (
    PIXELS,
    Batches,
    Contest,
    Items,
    OpenEpochs,
    Peer,
    Variant,
    augment,
    batch_size,
    data_loader,
    decode,
)

if TYPE_CHECKING:
    import torch

SMALL: tuple[Contest, ...] = ("stored", "flip", "crop")
PEER = Peer(
    None,
    (
        Variant("plain torch, Dataset", (*SMALL, "convert"), "raw", {"is_bare": False}),
        Variant("plain torch, bare index_select", SMALL, "raw", {"is_bare": True}),
    ),
    {"photographs": "one array holds images of one size"},
    "bare: no thread of its own, each batch overwrites the one before",
)


def write(items: Items, out: Path, encoding: str) -> None:
    """Decode into one array on disk."""
    shape = (len(items), PIXELS, PIXELS, 3)
    images = np.lib.format.open_memmap(out / "images.npy", "w+", np.uint8, shape)
    for row, (path, _) in enumerate(items):
        images[row] = decode(path.read_bytes())
    images.flush()
    np.save(out / "labels.npy", np.array([label for _, label in items]))


class Mapped:
    """A Dataset that gives whole batches."""

    def __init__(self, folder: Path) -> None:
        import torch

        # copy on write: torch takes no memory that is read-only
        self.images = torch.from_numpy(np.load(folder / "images.npy", mmap_mode="c"))
        self.labels = torch.from_numpy(np.load(folder / "labels.npy"))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, rows: list[int]) -> tuple["torch.Tensor", "torch.Tensor"]:
        import torch

        chosen = torch.tensor(rows)
        return self.images[chosen], self.labels[chosen]


def keep(batch: Any) -> Any:
    """Collate what is a batch already."""
    return batch


def open_epochs(folder: Path, contest: Contest, encoding: str, is_bare: bool) -> OpenEpochs:
    """Read one array, by DataLoader or without it."""
    import torch

    data = Mapped(folder)
    size = batch_size(contest)
    if not is_bare:
        loader = data_loader(data, contest, 0, shuffle=True, collate_fn=keep)
    picked = torch.empty((size, PIXELS, PIXELS, 3), dtype=torch.uint8)
    made = torch.empty(picked.shape, dtype=torch.float32)

    def through_loader() -> Batches:
        for images, labels in loader:
            yield augment(images, contest), labels

    def bare() -> Batches:
        for rows in torch.randperm(len(data)).split(size):
            out = picked[: len(rows)]
            torch.index_select(data.images, 0, rows, out=out)
            yield augment(out, contest, made), data.labels[rows]

    return bare if is_bare else through_loader
