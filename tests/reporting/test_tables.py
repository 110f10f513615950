import csv
from pathlib import Path

import numpy as np

from tinyvgg.reporting.tables import describe_dataset, write_confusion
from tinyvgg.shards.store import PackedDataset


def test_description_counts_images_by_class_and_split(packed: PackedDataset) -> None:
    description = describe_dataset(packed)

    assert [record["train"] for record in description["classes"]] == [11, 11, 11]
    assert [record["val"] for record in description["classes"]] == [3, 2, 2]
    assert description["splits"]["train"]["num_shards"] == 4
    on_disk = sum(path.stat().st_size for path in packed.folder.glob("*.npy"))
    assert sum(split["num_bytes"] for split in description["splits"].values()) == on_disk


def test_confusion_csv_reads_back(tmp_path: Path) -> None:
    confusion = np.arange(9).reshape(3, 3)

    write_confusion(confusion, ["a", "b", "c, d"], tmp_path / "confusion.csv")

    with (tmp_path / "confusion.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["label", "a", "b", "c, d"]
    assert [row[0] for row in rows] == ["a", "b", "c, d"]
    assert np.array_equal(np.array([row[1:] for row in rows], int), confusion)
