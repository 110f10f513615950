"""LitData: chunks made by `optimize`. Its authors are invited to mend this file.

Its cache folders are emptied without asking: `benchmarks.peers` sets them to folders of its own.
"""

import os
from pathlib import Path
from typing import Any

from benchmarks.peers.contract import (
    Batches,
    Contest,
    Items,
    OpenEpochs,
    Peer,
    Variant,
    augment,
    batch_size,
    encode,
    make_collate,
    shuffle_items,
)

PEER = Peer(
    "litdata",
    (
        Variant("LitData, raw", ("stored", "flip", "crop", "convert"), "raw", {"workers": 2}),
        Variant("LitData, JPEG", ("flip", "photographs", "convert"), "jpeg", {"workers": 2}),
    ),
    unlike="shuffles chunks, then within one: no permutation of the whole set",
)


def use_own_caches(folder: Path) -> None:
    """Point its caches, which it empties, beside the set."""
    for name in ("DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER"):
        os.environ[name] = str(folder.with_name(f"{folder.name}.cache") / name.lower())


def encode_item(item: tuple[str, int, str]) -> dict[str, Any]:
    """Return one sample; it is called in processes that `optimize` starts."""
    path, label, encoding = item
    return {"x": encode(Path(path), encoding), "y": label}


def write(items: Items, out: Path, encoding: str) -> None:
    """Write by two processes, in a drawn order: its own shuffle keeps neighbors together."""
    use_own_caches(out)
    import litdata

    inputs = [(str(path), label, encoding) for path, label in shuffle_items(items)]
    litdata.optimize(
        fn=encode_item, inputs=inputs, output_dir=str(out), chunk_bytes="64MB", num_workers=2
    )


def open_epochs(folder: Path, contest: Contest, encoding: str, workers: int) -> OpenEpochs:
    """Its data set and its DataLoader."""
    use_own_caches(folder)
    import litdata

    data = litdata.StreamingDataset(str(folder), shuffle=True, drop_last=False)
    collate = make_collate(contest, encoding)

    def join(samples: list[dict[str, Any]]) -> Any:
        return collate([(sample["x"], sample["y"]) for sample in samples])

    loader = litdata.StreamingDataLoader(
        data, batch_size=batch_size(contest), num_workers=workers, collate_fn=join,
        shuffle=True, drop_last=False, persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
    )  # fmt: skip

    def epoch() -> Batches:
        for images, labels in loader:
            yield augment(images, contest), labels

    return epoch
