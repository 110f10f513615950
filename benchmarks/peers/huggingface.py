"""Hugging Face datasets: mapped Arrow files. Its authors are invited to mend this file."""

import os
from collections.abc import Iterator
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
    data_loader,
    encode,
    make_collate,
)

PEER = Peer(
    "huggingface",
    (
        Variant("HF datasets, raw", ("stored", "flip", "crop", "convert"), "raw", {"workers": 2}),
        Variant("HF datasets, JPEG", ("flip", "photographs", "convert"), "jpeg", {"workers": 2}),
    ),
    unlike="its __getitems__ is batched; pixels are a column of bytes, its fastest way",
)


def make_rows(items: Items, encoding: str) -> Iterator[dict[str, Any]]:
    """Yield its rows."""
    for path, label in items:
        yield {"x": encode(path, encoding), "y": label}


def write(items: Items, out: Path, encoding: str) -> None:
    """Make Arrow files of a generator, then save them."""
    os.environ["HF_HOME"] = str(out / "home")
    import datasets

    kinds = {"x": datasets.Value("binary"), "y": datasets.Value("int64")}
    made = datasets.Dataset.from_generator(
        make_rows,
        gen_kwargs={"items": tuple(items), "encoding": encoding},
        features=datasets.Features(kinds),
        cache_dir=str(out / "cache"),
    )
    made.save_to_disk(str(out / "train"))


def open_epochs(folder: Path, contest: Contest, encoding: str, workers: int) -> OpenEpochs:
    """DataLoader over its mapped rows."""
    os.environ["HF_HOME"] = str(folder / "home")
    import datasets

    collate = make_collate(contest, encoding)

    def join(rows: list[dict[str, Any]]) -> Any:
        return collate([(row["x"], row["y"]) for row in rows])

    data = datasets.load_from_disk(str(folder / "train"))
    loader = data_loader(data, contest, workers, shuffle=True, collate_fn=join)

    def epoch() -> Batches:
        for images, labels in loader:
            yield augment(images, contest), labels

    return epoch
