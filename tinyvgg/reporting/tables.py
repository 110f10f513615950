"""Tables: what a packed folder holds, as data and for the terminal.

From: `shards` (an opened data set), `model` (layers) and `inference` (a confusion matrix).
To:   `tinyvgg inspect`, `train --summary` and `evaluate`: JSON, rich tables, CSV.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from tinyvgg.errors import naming, printable
from tinyvgg.shards.manifest import SPLITS
from tinyvgg.shards.store import PackedDataset

if TYPE_CHECKING:  # `inspect` works without torch
    from tinyvgg.model.summary import LayerSummary


def describe_dataset(dataset: PackedDataset) -> dict[str, Any]:
    """Return counts, sizes and statistics of a data set, ready for JSON."""
    manifest = dataset.manifest
    counts = {
        name: np.bincount(dataset.split(name).labels, minlength=len(manifest.classes)).tolist()
        for name in SPLITS
    }
    splits = {}
    for name in SPLITS:
        record = manifest.split(name)
        splits[name] = {
            "num_images": record.num_images,
            "num_shards": len(record.shards),
            "num_bytes": sum(shard.image_bytes + shard.label_bytes for shard in record.shards),
            "sizes": describe_sizes(dataset.split(name).sizes),
            "mean": record.mean,
            "std": record.std,
            "skipped": [skipped.model_dump() for skipped in record.skipped],
        }
    return {
        "packed": str(dataset.folder),
        "manifest_sha256": dataset.manifest_sha256,
        "image": manifest.image.model_dump(exclude_none=True),
        "splits": splits,
        "classes": [
            {
                "label": label,
                "folder": record.folder,
                "words": record.words,
                **{name: counts[name][label] for name in SPLITS},
            }
            for label, record in enumerate(manifest.classes)
        ],
    }


def describe_sizes(sizes: NDArray[np.int32]) -> dict[str, list[int]]:
    """Return the least, median and greatest height and width of images; empty without any."""
    if not len(sizes):
        return {"height": [], "width": []}
    quantiles = np.quantile(sizes, [0, 0.5, 1], axis=0, method="lower")
    return {"height": quantiles[:, 0].tolist(), "width": quantiles[:, 1].tolist()}


def render_description(description: dict[str, Any]) -> list[Table]:
    """Return the tables that `tinyvgg inspect` prints."""
    image = description["image"]
    size = f"{image['width']}x{image['height']}" if "width" in image else "several sizes"
    size += ", JPEG files" if "encoding" in image else f" {image['dtype']} RGB"
    splits = Table(title=Text(printable(f"{description['packed']}: {size}")))
    for column in ("split", "images", "shards", "MiB", "mean", "std", "skipped"):
        splits.add_column(column, justify="left" if column == "split" else "right")
    for name, split in description["splits"].items():
        mean, std = (" ".join(f"{value:.4f}" for value in split[key]) for key in ("mean", "std"))
        splits.add_row(
            name,
            f"{split['num_images']:,}",
            f"{split['num_shards']:,}",
            f"{split['num_bytes'] / 2**20:,.1f}",
            mean,
            std,
            f"{len(split['skipped']):,}",
        )
    classes = Table(title=f"{len(description['classes']):,} classes")
    for column in ("label", "class folder", "words", "train", "val"):
        justify: Literal["left", "right"] = "right" if column in ("train", "val") else "left"
        classes.add_column(column, justify=justify, overflow="fold")  # whole, in several lines
    for record in description["classes"]:
        classes.add_row(
            str(record["label"]),
            Text(printable(record["folder"])),  # plain strings would be read as markup
            Text(printable(record["words"])),
            f"{record['train']:,}",
            f"{record['val']:,}",
        )
    return [splits, classes]


def render_summary(arch: str, layers: Sequence["LayerSummary"]) -> Table:
    """Return the table that `train --summary` prints: a line for each layer with parameters."""
    table = Table(title=arch)
    for column in ("layer", "kind", "output", "parameters", "MFLOP forward"):
        table.add_column(column, justify="left" if column in ("layer", "kind") else "right")
    for layer in layers:
        table.add_row(
            layer.name,
            layer.kind,
            " x ".join(map(str, layer.shape)),
            f"{layer.num_parameters:,}",
            f"{layer.flop / 1e6:,.1f}",
        )
    return table


def write_confusion(confusion: NDArray[np.int64], class_names: Sequence[str], path: Path) -> None:
    """Write a confusion matrix as CSV: a line for each label, a column for each prediction.

    Args:
        confusion: int64 [K, K].
        class_names: K names.
        path: of the CSV.
    """
    with (
        naming(path),
        # a folder's name may hold bytes that are no UTF-8
        path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["label", *class_names])
        for name, row in zip(class_names, confusion.tolist(), strict=True):
            writer.writerow([name, *row])
