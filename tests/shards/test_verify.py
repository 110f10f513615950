"""Verify: every damaged byte is found, and named by the images it belongs to."""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.shards.damage import PackArrays, edit_manifest, make_images, swap
from tinyvgg.errors import ShardError
from tinyvgg.shards import verify
from tinyvgg.shards.store import (
    PackedDataset,
    open_dataset,
)
from tinyvgg.shards.verify import verify_dataset


@pytest.mark.parametrize("read_bytes", [1, 1000, 64 * 64 * 3 * 100])
def test_damage_is_named_by_block_however_much_is_read_at_once(
    pack_arrays: PackArrays, monkeypatch: pytest.MonkeyPatch, read_bytes: int
) -> None:
    images, labels = np.zeros((600, 8, 8, 3), np.uint8), np.zeros(600, np.int64)
    folder = pack_arrays("blocks", images, labels, images, labels, shard_size=600).folder
    monkeypatch.setattr(verify, "READ_BYTES", read_bytes)
    assert verify_dataset(folder) == []

    with (folder / "val-00000.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")

    assert [line.partition(": ")[2] for line in verify_dataset(folder)] == [
        "images 512 to 599 of the split are damaged; copy or pack them again"
    ]


def test_every_byte_of_a_good_folder_agrees(packed: PackedDataset) -> None:
    done: list[int] = []

    assert verify_dataset(packed.folder, done.append) == []
    assert done == [10, 10, 10, 3, 7]


def test_swapped_files_of_the_same_size_are_found_by_verify(packed: PackedDataset) -> None:
    swap(packed.folder / "train-00000.npy", packed.folder / "train-00002.npy")
    swap(packed.folder / "train-00000.labels.npy", packed.folder / "train-00002.labels.npy")

    damages = "\n".join(verify_dataset(packed.folder))

    assert damages.count("\n") == 3
    for index, rows in ((0, "0 to 9"), (2, "20 to 29")):
        assert f"train-0000{index}.npy: images {rows} of the split are damaged" in damages
        assert f"train-0000{index}.labels.npy: labels of images {rows} of the split" in damages


def flip(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def test_any_flipped_pixel_bit_is_found_with_its_range_of_images(blocks: Path) -> None:
    draws = random.Random(0)

    for _ in range(250):
        row, byte, bit = draws.randrange(1250), draws.randrange(36), draws.randrange(8)
        shard, row_in_shard = divmod(row, 600)
        path = blocks / f"train-{shard:05d}.npy"
        first = row - row_in_shard % 256
        last = min(first + 255, 600 * shard + 599, 1249)

        position = 128 + row_in_shard * 36 + byte
        flip(path, position, bit)
        if position < 4096:
            with pytest.raises(ShardError, match="its first 4,096 bytes are not those"):
                open_dataset(blocks)
        else:
            assert open_dataset(blocks).train.num_images == 1250
        assert verify_dataset(blocks) == [
            f"{path}: images {first:,} to {last:,} of the split are damaged; "
            "copy or pack them again"
        ]
        flip(path, position, bit)

    assert verify_dataset(blocks) == []


def test_any_flipped_label_bit_is_found_with_its_range_of_images(blocks: Path) -> None:
    draws = random.Random(0)

    for _ in range(250):
        row, byte, bit = draws.randrange(1250), draws.randrange(8), draws.randrange(8)
        shard, row_in_shard = divmod(row, 600)
        path = blocks / f"train-{shard:05d}.labels.npy"
        last = min(600 * shard + 599, 1249)

        flip(path, 128 + row_in_shard * 8 + byte, bit)
        assert verify_dataset(blocks) == [
            f"{path}: labels of images {600 * shard:,} to {last:,} of the split are damaged; "
            "copy or pack them again"
        ]
        flip(path, 128 + row_in_shard * 8 + byte, bit)

    assert verify_dataset(blocks) == []


def test_every_damage_of_a_shard_is_reported_at_once(blocks: Path) -> None:
    flip(blocks / "train-00000.npy", 128, 0)
    flip(blocks / "train-00000.npy", 128 + 599 * 36, 0)
    flip(blocks / "train-00000.labels.npy", 128, 0)
    flip(blocks / "train-00001.npy", 5, 0)
    flip(blocks / "train-00001.labels.npy", 1000, 0)
    (blocks / "val-00000.npy").unlink()

    damages = [line.removeprefix(f"{blocks}/") for line in verify_dataset(blocks)]

    assert [line.partition(";")[0] for line in damages] == [
        "train-00000.npy: images 0 to 255 of the split are damaged",
        "train-00000.npy: images 512 to 599 of the split are damaged",
        "train-00000.labels.npy: labels of images 0 to 599 of the split are damaged",
        "train-00001.npy: its npy header is damaged",
        "train-00001.labels.npy: labels of images 600 to 1,199 of the split are damaged",
        "val-00000.npy: No such file or directory",
    ]


@pytest.mark.parametrize("key", ["images_sha256", "block_crc32"])
def test_a_damaged_checksum_in_the_manifest_is_told_from_a_damaged_shard(
    packed: PackedDataset, key: str
) -> None:
    other = {"images_sha256": "0" * 64, "block_crc32": [0]}[key]
    edit_manifest(packed.folder, lambda f: f["splits"]["val"]["shards"][0].update({key: other}))

    assert verify_dataset(packed.folder) == [
        f"{packed.folder / 'val-00000.npy'}: its SHA-256 and its CRC-32 in the manifest contradict "
        "each other; the manifest is damaged, pack the images again"
    ]


def test_the_manifest_of_another_folder_is_found_by_verify(
    packed: PackedDataset, pack_arrays: PackArrays
) -> None:
    images, labels = make_images(33, 64, 64), np.arange(33) % 3
    other = pack_arrays("other", images, labels, images[:7], labels[:7])
    shutil.copy(other.folder / "manifest.json", packed.folder)

    damages = verify_dataset(packed.folder)

    assert len(damages) == 5
    assert all("of the split are damaged" in line for line in damages)


@pytest.mark.parametrize(
    "name", [".DS_Store", "Thumbs.db", "desktop.ini", "._train-00000.npy", ".nfs0000000001"]
)
def test_files_of_file_managers_are_no_damage(packed: PackedDataset, name: str) -> None:
    (packed.folder / name).write_bytes(b"x")

    assert verify_dataset(packed.folder) == []


def test_files_that_the_manifest_does_not_know_are_reported(packed: PackedDataset) -> None:
    (packed.folder / "train-00004.npy").touch()
    (packed.folder / "notes").mkdir()

    assert verify_dataset(packed.folder) == [
        f"{packed.folder}/notes: not in the manifest; remove it",
        f"{packed.folder}/train-00004.npy: not in the manifest; remove it",
    ]
    assert open_dataset(packed.folder).train.num_images == 33
