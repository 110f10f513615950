"""Shards: arrays come back as they were, and no damaged byte passes for a good one."""

import contextlib
import copy
import ctypes
import hashlib
import io
import itertools
import json
import multiprocessing
import operator
import os
import pickle
import random
import re
import shutil
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests.shards.damage import PackArrays, edit_manifest, make_images, swap
from tinyvgg import shards
from tinyvgg.errors import ShardError
from tinyvgg.shards.npy import npy_header
from tinyvgg.shards.store import (
    MANIFEST_MAX_BYTES,
    PackedDataset,
    open_dataset,
    read_manifest,
)
from tinyvgg.shards.verify import verify_dataset

numbers = itertools.count()


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@given(
    st.integers(0, 20_000),
    st.lists(st.integers(0, 12), max_size=2),
    st.sampled_from(["|u1", "<i8"]),
)
def test_the_header_is_the_one_numpy_writes(num_rows: int, rest: list[int], dtype: str) -> None:
    array = np.zeros((num_rows, *rest), dtype)

    assert npy_header(array.shape, dtype) + array.tobytes() == saved(array)


def test_the_files_of_a_shard_are_those_of_np_save(pack_arrays: PackArrays) -> None:
    images, labels = make_images(25), np.arange(25) % 3
    folder = pack_arrays("saved", images, labels, images[:5], labels[:5], shard_size=10).folder

    for index, start in enumerate(range(0, 25, 10)):
        rows = slice(start, start + 10)
        assert (folder / f"train-{index:05d}.npy").read_bytes() == saved(images[rows])
        assert (folder / f"train-{index:05d}.labels.npy").read_bytes() == saved(labels[rows])


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    num_train=st.integers(1, 600),
    num_val=st.integers(1, 20),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    shard_size=st.integers(1, 700) | st.sampled_from([255, 256, 257]),
)
def test_arrays_come_back_as_they_were(
    pack_arrays: PackArrays, num_train: int, num_val: int, height: int, width: int, shard_size: int
) -> None:
    arrays = {}
    for split, count in (("train", num_train), ("val", num_val)):
        labels = np.random.default_rng(count).integers(0, 7, count)
        arrays[split] = (make_images(count, height, width), labels)
    shard_size = max(shard_size, num_train // 20)

    dataset = pack_arrays(
        f"any-{next(numbers)}", *arrays["train"], *arrays["val"], shard_size=shard_size
    )

    for name, (images, labels) in arrays.items():
        opened = dataset.split(name)
        assert np.array_equal(np.concatenate([shard.images for shard in opened.shards]), images)
        assert np.array_equal(opened.read_images(np.arange(len(images))), images)
        assert np.array_equal(opened.labels, labels)
        assert opened.num_images == len(images)
    assert verify_dataset(dataset.folder) == []
    shutil.rmtree(dataset.folder)


def test_an_opened_dataset_knows_classes_and_the_hash_of_its_manifest(
    packed: PackedDataset,
) -> None:
    data = (packed.folder / "manifest.json").read_bytes()

    assert packed.class_names == ["class000", "class001", "class002"]
    assert packed.manifest_sha256 == hashlib.sha256(data).hexdigest()
    assert read_manifest(packed.folder) == (packed.manifest, packed.manifest_sha256)
    assert [packed.train.shard_size, packed.val.shard_size] == [10, 7]


def test_open_dataset_is_imported_from_the_room_and_takes_text(packed: PackedDataset) -> None:
    dataset = shards.open_dataset(str(packed.folder))

    assert dataset.manifest == packed.manifest
    with pytest.raises(AttributeError, match="has no attribute 'close_dataset'"):
        shards.close_dataset  # noqa: B018 - looking it up is the test


def test_a_split_is_found_by_its_name(packed: PackedDataset) -> None:
    assert packed.split("val") is packed.val
    with pytest.raises(ValueError, match="split must be one of train, val, got 'test'"):
        packed.split("test")


def test_images_and_labels_cannot_be_written(packed: PackedDataset) -> None:
    for array in (packed.train.shards[0].images, packed.train.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_rows_are_read_in_any_order_and_more_than_once(packed: PackedDataset) -> None:
    rows = np.array([32, 0, 10, 9, 10, 31])

    images = packed.train.read_images(rows)

    assert images[:, 0, 0, 0].tolist() == rows.tolist()
    images[:] = 0
    assert packed.train.read_images(rows)[:, 0, 0, 0].tolist() == rows.tolist()


def test_a_split_is_a_map_style_dataset(packed: PackedDataset) -> None:
    split = packed.train

    assert len(split) == 33
    for row in (0, 9, 10, 32, -1, -33):
        image, label = split[row]
        assert np.array_equal(image, split.read_images(np.array([row % 33]))[0])
        assert label == split.labels[row]
    image, _ = split[3]
    image[:] = 0  # a copy, so the mapping cannot be written through it
    assert split[3][0].any()
    for row in (33, -34):
        with pytest.raises(IndexError, match=f"row must be under 33, got {row}"):
            split[row]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_torch_reads_a_split_through_its_own_data_loader(
    packed: PackedDataset, num_workers: int
) -> None:
    split: Any = packed.train  # duck-typed: the disk half knows no torch
    batches = list(DataLoader(split, batch_size=8, num_workers=num_workers))

    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert np.array_equal(images.numpy(), packed.train.read_images(np.arange(33)))
    assert np.array_equal(labels.numpy(), packed.train.labels)


def test_row_addresses_lead_to_the_pixels(packed: PackedDataset) -> None:
    for split in (packed.train, packed.val):
        images = split.read_images(np.arange(split.num_images))

        assert split.row_addresses.dtype == np.int64
        assert len(split.row_addresses) == split.num_images
        for address, image in zip(split.row_addresses, images, strict=True):
            assert ctypes.string_at(int(address), image.nbytes) == image.tobytes()


def test_a_dataset_pickles_as_its_path_also_after_it_was_used(packed: PackedDataset) -> None:
    assert len(packed.train.row_addresses) == 33

    assert len(pickle.dumps((packed, packed.train, packed.val))) < 1000


@pytest.mark.parametrize(
    "make_copy", [copy.copy, copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))]
)
def test_a_copy_maps_the_shards_itself(
    packed: PackedDataset, make_copy: Callable[[Any], Any]
) -> None:
    rows = np.arange(33)
    addresses = set(packed.train.row_addresses)

    dataset, train = make_copy(packed), make_copy(packed.train)

    assert dataset.manifest == packed.manifest
    for split in (dataset.train, train):
        assert np.array_equal(split.read_images(rows), packed.train.read_images(rows))
        assert not set(split.row_addresses) & addresses


def test_a_spawned_process_reads_a_split_that_was_used_before(
    packed: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(packed.folder.parent)
    split = open_dataset(packed.folder.name).train  # a path that means nothing elsewhere
    assert len(split.row_addresses) == 33
    rows = np.array([32, 0, 10])

    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), os.chdir, (packed.folder.parent.parent,)
    ) as pool:
        images = pool.submit(operator.methodcaller("read_images", rows), split).result()

    assert np.array_equal(images, split.read_images(rows))


def test_a_pickle_of_a_dataset_that_was_packed_again_since_is_refused(
    packed: PackedDataset,
) -> None:
    data = pickle.dumps(packed)
    manifest = packed.folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")

    with pytest.raises(ShardError, match=r"packed: manifest .* was pickled; it was packed again"):
        pickle.loads(data)


def test_a_dataset_with_an_empty_split_opens(packed: PackedDataset) -> None:
    edit_manifest(
        packed.folder, lambda fields: fields["splits"]["val"].update(num_images=0, shards=[])
    )

    val = open_dataset(packed.folder).val

    assert (val.num_images, len(val.labels), len(val.row_addresses)) == (0, 0, 0)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="nowhere: no such folder; run 'tinyvgg pack SOURCE"):
        open_dataset(tmp_path / "nowhere")


def test_a_folder_without_manifest_was_never_finished(packed: PackedDataset) -> None:
    (packed.folder / "manifest.json").unlink()

    for read in (open_dataset, verify_dataset):
        with pytest.raises(ShardError, match=r"packed: no manifest\.json, so packing was never"):
            read(packed.folder)


def test_a_manifest_that_cannot_be_read_is_named(packed: PackedDataset) -> None:
    (packed.folder / "manifest.json").unlink()
    (packed.folder / "manifest.json").mkdir()

    with pytest.raises(ShardError, match=r"manifest\.json: a folder, expected a file; check"):
        open_dataset(packed.folder)


def test_a_manifest_of_gigabytes_is_not_read(packed: PackedDataset) -> None:
    with (packed.folder / "manifest.json").open("wb") as file:
        file.truncate(MANIFEST_MAX_BYTES + 1)

    with pytest.raises(ShardError, match=r"manifest\.json: 268,435,457 bytes, expected at most"):
        open_dataset(packed.folder)


def shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npy"))


def assert_refused(folder: Path, path: Path, message: str = "") -> None:
    """Require that opening fails with the file's name, and that verify says the same."""
    with pytest.raises(ShardError, match=f"^{re.escape(str(path))}: .*{message}.*; .*copy or pack"):
        open_dataset(folder)
    damages = verify_dataset(folder)
    assert [line for line in damages if line.startswith(f"{path}: ")] == damages
    assert len(damages) == 1


def test_a_file_of_any_other_size_is_refused_on_open(packed: PackedDataset) -> None:
    for path in shard_files(packed.folder):
        data = path.read_bytes()
        for other in (b"", data[:1], data[:128], data[: len(data) // 2], data[:-1], data + b"\0"):
            path.write_bytes(other)
            sizes = f"{len(other):,} bytes, manifest says {len(data):,}"
            assert_refused(packed.folder, path, sizes)
        path.write_bytes(data)


def test_any_flipped_byte_of_a_header_is_refused_on_open(packed: PackedDataset) -> None:
    draws = random.Random(0)
    for path in (packed.folder / "train-00001.npy", packed.folder / "val-00000.labels.npy"):
        data = path.read_bytes()
        for position in range(128):
            damaged = bytearray(data)
            damaged[position] ^= 1 << draws.randrange(8)
            path.write_bytes(damaged)
            assert_refused(packed.folder, path, "its npy header is damaged")
        path.write_bytes(data)


@pytest.mark.parametrize("name", ["train-00001.npy", "train-00003.labels.npy", "val-00000.npy"])
def test_a_deleted_file_is_refused_on_open(packed: PackedDataset, name: str) -> None:
    (packed.folder / name).unlink()

    assert_refused(packed.folder, packed.folder / name, "No such file or directory")


def test_a_folder_in_place_of_a_file_is_refused_on_open(packed: PackedDataset) -> None:
    (packed.folder / "train-00001.npy").unlink()
    (packed.folder / "train-00001.npy").mkdir()

    with pytest.raises(ShardError, match=r"train-00001\.npy: "):
        open_dataset(packed.folder)


@pytest.mark.parametrize("kind", ["npy", "labels.npy"])
def test_swapped_files_of_different_size_are_refused_on_open(
    packed: PackedDataset, kind: str
) -> None:
    swap(packed.folder / f"train-00002.{kind}", packed.folder / f"train-00003.{kind}")

    with pytest.raises(ShardError, match=rf"train-00002\.{re.escape(kind)}: .* bytes, manifest"):
        open_dataset(packed.folder)
    assert len(verify_dataset(packed.folder)) == 2


@pytest.mark.parametrize("old", ["uint16", "float64", "int32"])
def test_an_array_of_another_type_is_refused_on_open(packed: PackedDataset, old: str) -> None:
    path = packed.folder / "val-00000.labels.npy"
    path.write_bytes(saved(np.load(path).astype(old)))

    assert_refused(packed.folder, path)


def test_a_fortran_order_array_is_refused_on_open(packed: PackedDataset) -> None:
    path = packed.folder / "val-00000.npy"
    path.write_bytes(saved(np.asfortranarray(np.load(path))))

    assert_refused(packed.folder, path, "its npy header is damaged")


def test_a_pickle_is_never_loaded(packed: PackedDataset) -> None:
    path = packed.folder / "val-00000.labels.npy"
    buffer = io.BytesIO()
    np.save(buffer, np.array([open_dataset], object), allow_pickle=True)
    path.write_bytes(buffer.getvalue().ljust(path.stat().st_size, b"\0")[: path.stat().st_size])

    assert_refused(packed.folder, path, "its npy header is damaged")


@pytest.mark.parametrize("label", [3, -1, 2**40])
def test_a_label_without_a_class_is_refused_on_open(packed: PackedDataset, label: int) -> None:
    edit_manifest(packed.folder, lambda fields: None)
    path = packed.folder / "val-00000.labels.npy"
    labels = np.load(path)
    labels[4] = label
    path.write_bytes(saved(labels))

    with pytest.raises(
        ShardError, match=r"val-00000\.labels\.npy: labels -?\d+ to \d+, expected 0"
    ):
        open_dataset(packed.folder)
    assert verify_dataset(packed.folder) == [
        f"{path}: labels of images 0 to 6 of the split are damaged; copy or pack them again"
    ]


def test_a_manifest_with_a_class_less_is_refused_and_found_by_verify(
    packed: PackedDataset,
) -> None:
    edit_manifest(packed.folder, lambda fields: fields["classes"].pop())

    with pytest.raises(
        ShardError, match=r"train-00000\.labels\.npy: labels 0 to 2, expected 0 to 1"
    ):
        open_dataset(packed.folder)
    assert len(verify_dataset(packed.folder)) == 5


@pytest.mark.parametrize("key", ["image_bytes", "label_bytes"])
def test_a_size_in_the_manifest_that_no_shape_has_is_refused(
    packed: PackedDataset, key: str
) -> None:
    edit_manifest(packed.folder, lambda f: f["splits"]["val"]["shards"][0].update({key: 77}))

    with pytest.raises(ShardError, match=r"manifest\.json: val-00000\S* is given 77 bytes, its"):
        open_dataset(packed.folder)
    assert len(verify_dataset(packed.folder)) == 1


def test_a_manifest_that_claims_terabytes_allocates_none_of_them(packed: PackedDataset) -> None:
    def claim(fields: dict[str, Any]) -> None:
        fields["image"].update(height=65_535, width=65_535)
        for split in fields["splits"].values():
            for shard in split["shards"]:
                shard["image_bytes"] = 128 + shard["num_images"] * 65_535 * 65_535 * 3

    edit_manifest(packed.folder, claim)

    tracemalloc.start()
    with pytest.raises(ShardError, match=r"train-00000\.npy: 123,008 bytes, manifest says 128,"):
        open_dataset(packed.folder)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 2**21


@pytest.mark.parametrize("kind", ["npy", "labels.npy"])
def test_swapped_files_of_the_same_size_are_refused_on_open(
    packed: PackedDataset, kind: str
) -> None:
    swap(packed.folder / f"train-00000.{kind}", packed.folder / f"train-00002.{kind}")

    with pytest.raises(ShardError, match=rf"train-00000\.{kind}: its first 4,096 bytes are not"):
        open_dataset(packed.folder)


def test_any_flipped_bit_of_the_manifest_is_refused(blocks: Path) -> None:
    path, draws = blocks / "manifest.json", random.Random(0)
    data = path.read_bytes()
    unnoticed = []

    for position in range(len(data) - 1):
        damaged = bytearray(data)
        damaged[position] ^= 1 << draws.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(ShardError):
            read_manifest(blocks)
            unnoticed.append((position, data[position - 20 : position + 9]))

    assert len(data) > 2000
    assert unnoticed == []


@pytest.mark.parametrize(
    ("names", "value"),
    [
        (("splits", "train", "mean"), [0.1, 0.1, 0.1]),
        (("splits", "val", "std"), [1e-300, 1e-300, 1e-300]),
        (("classes", 0, "words"), "zebra"),
        (("classes", 1, "folder"), "bb"),
        (("image", "height"), 63),
        (("splits", "train", "skipped"), [{"path": "a", "reason": "b"}]),
        (("splits", "val", "shards", 0, "head_crc32", "images"), 7),
    ],
)
def test_a_field_that_was_edited_is_refused_whatever_it_says(
    packed: PackedDataset, names: tuple[str | int, ...], value: object
) -> None:
    path = packed.folder / "manifest.json"
    fields = place = json.loads(path.read_bytes())
    for name in names[:-1]:
        place = place[name]
    assert place[names[-1]] != value
    place[names[-1]] = value
    path.write_text(json.dumps(fields))

    with pytest.raises(ShardError, match=r"manifest\.json: .*; (copy the manifest or )?pack the"):
        open_dataset(packed.folder)


def test_a_set_without_optional_fields_opens_and_verifies(packed: PackedDataset) -> None:
    edit_manifest(packed.folder, lambda fields: None)

    dataset = open_dataset(packed.folder)

    assert dataset.manifest.fields_sha256 is None
    assert dataset.train.record.shards[0].head_crc32 is None
    assert np.array_equal(dataset.train.labels, packed.train.labels)
    assert verify_dataset(packed.folder) == []


def test_the_seal_is_the_hash_of_the_manifest_without_it(packed: PackedDataset) -> None:
    fields = json.loads((packed.folder / "manifest.json").read_bytes())

    seal = fields.pop("fields_sha256")

    text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    assert seal == hashlib.sha256(text.encode()).hexdigest()


def test_the_first_4_kib_of_every_file_have_a_checksum(packed: PackedDataset) -> None:
    for split in (packed.train, packed.val):
        for shard in split.record.shards:
            assert shard.head_crc32 is not None
            for name, crc32 in (
                (shard.images, shard.head_crc32.images),
                (shard.labels, shard.head_crc32.labels),
            ):
                assert crc32 == zlib.crc32((packed.folder / name).read_bytes()[:4096])


def test_a_data_set_is_shown_in_one_line(packed: PackedDataset) -> None:
    assert re.fullmatch(
        r"<PackedDataset '.*packed': 33 train and 7 val images of \d+x\d+ pixels, 3 classes>",
        repr(packed),
    )
    assert repr(packed.val) == f"<Split 'val' of '{packed.folder}': 7 images>"
