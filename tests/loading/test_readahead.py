import ctypes
import logging
import mmap
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import write_packed
from tests.loading.contract import assert_same, every_backend, read_epochs
from tinyvgg.loading import LoaderConfig, host_batches, open_loader, readahead
from tinyvgg.loading.host_kernel import HostKernel
from tinyvgg.loading.readahead import Readahead, open_readahead
from tinyvgg.loading.reader import ImageReader
from tinyvgg.options import Backend
from tinyvgg.shards.store import PackedDataset, Split, open_dataset

PAGE = mmap.PAGESIZE
pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_RANDOM"), reason="needs madvise(2)")


def pages_of(address: int, num_bytes: int) -> set[int]:
    """Return the addresses of the pages that a piece of memory lies on."""
    return set(range(address // PAGE * PAGE, address + num_bytes, PAGE))


def pages_of_rows(split: Split, rows: np.ndarray) -> set[int]:
    addresses, num_bytes = split.row_addresses[rows].flat, split.row_bytes[rows].flat
    return set().union(*map(pages_of, map(int, addresses), map(int, num_bytes)))


def find_resident(split: Split) -> set[int]:
    """Return the addresses of the pages of a split that are in memory (mincore(2))."""
    libc, found = ctypes.CDLL(None, use_errno=True), set()
    for shard in split.shards:
        pages = sorted(pages_of(shard.images.ctypes.data, shard.images.nbytes))
        are_in = (ctypes.c_uint8 * len(pages))()
        num_bytes = ctypes.c_size_t(len(pages) * PAGE)
        assert libc.mincore(ctypes.c_void_p(pages[0]), num_bytes, are_in) == 0
        found |= {page for page, is_in in zip(pages, are_in, strict=True) if is_in & 1}
    return found


@pytest.fixture
def cold(tmp_path: Path) -> Split:
    """Two shards of 200 images of 12 KiB, none of them in memory."""
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("NOT RUN: this system keeps files in memory as long as it likes")
    pixels = np.random.default_rng(0).integers(0, 256, (400, 64, 64, 3), np.uint8)
    labels = np.arange(400) % 2
    folder = write_packed(tmp_path / "cold", pixels, labels, pixels[:2], labels[:2], shard_size=200)
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    split = open_dataset(folder).train
    if pages_of_rows(split, np.array([150, 350])) & find_resident(split):
        pytest.skip("NOT RUN: this file system keeps its files in memory")
    return split


def test_it_reads_the_images_that_were_asked_for_and_no_others(cold: Split) -> None:
    rows = np.array([[130, 333], [57, 222]])
    before = find_resident(cold)  # opening reads where a shard begins

    Readahead(cold).ask(rows)

    until = time.monotonic() + 20
    while not pages_of_rows(cold, rows) <= find_resident(cold):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert find_resident(cold) <= pages_of_rows(cold, rows) | before


@pytest.mark.parametrize(("row", "control"), [(120, 320), (320, 120)])
def test_what_is_missed_is_read_alone_until_the_epoch_ends_or_is_left(
    cold: Split, row: int, control: int
) -> None:
    def read_more_than(row: int) -> bool:
        """Read a row; return whether the system read what is around it, too."""
        before = find_resident(cold)
        cold.view_row(row).sum()
        return not find_resident(cold) - before <= pages_of_rows(cold, np.array([row]))

    if not read_more_than(control):
        pytest.skip("NOT RUN: this file system reads nothing around a missing page")
    followed = Readahead(cold).follow(np.array([[10], [11]]), iter([0, 1]))

    next(followed)
    while_followed = read_more_than(row)
    del followed

    assert not while_followed
    assert read_more_than(row + 40)


def test_a_long_row_is_asked_for_in_pieces_that_a_disk_takes_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(readahead, "madvise", lambda *call: asked.append(call))

    readahead.advise.py_func(np.array([2 * PAGE + 7]), np.array([5 * PAGE]), 3, 2 * PAGE)

    assert asked == [
        (2 * PAGE, 2 * PAGE, 3),
        (4 * PAGE, 2 * PAGE, 3),
        (6 * PAGE, PAGE + 7, 3),
    ]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("batch_size", [2, 5])
@pytest.mark.usefixtures("three_threads")
def test_no_image_is_read_before_it_was_asked_for(
    packed: PackedDataset, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, batch_size: int
) -> None:
    split = packed.train
    row_of = {address: row for row, address in enumerate(split.row_addresses.tolist())}
    asked: set[int] = set()
    events: list[tuple[int, bool]] = []
    # batches of two, two a task where they are uint8: tasks of several batches, but not all
    task_bytes = int(4 * split.row_bytes.mean())

    def note(rows: list[int]) -> None:
        events.extend((row, row in asked) for row in rows)

    def write(kernel: HostKernel, addresses: np.ndarray, *rest: Any, **options: Any) -> None:
        if not split.is_jpeg:
            note([row_of[address] for address in addresses.tolist()])
        write_pixels(kernel, addresses, *rest, **options)

    def read(reader: ImageReader, rows: np.ndarray, *rest: Any) -> None:
        note(rows.tolist())
        read_rows(reader, rows, *rest)

    write_pixels, read_rows = HostKernel.write, ImageReader.read
    monkeypatch.setattr(HostKernel, "write", write)
    monkeypatch.setattr(ImageReader, "read", read)
    monkeypatch.setattr(Readahead, "ask", lambda self, rows: asked.update(rows.flat))
    monkeypatch.setattr(readahead, "find_free_memory", lambda: 0)
    monkeypatch.setattr(readahead, "AHEAD_BYTES", 0)
    for module in (readahead, host_batches):
        monkeypatch.setattr(module, "TASK_BYTES", task_bytes)
    config = LoaderConfig(backend="torch", batch_size=batch_size)

    with open_loader(packed, "train", config, dtype=dtype) as loader:
        num_images = sum(batch.num_valid for batch in loader)

    assert [row for row, was_asked in events if not was_asked] == []
    assert len(events) == num_images == len(asked)


@every_backend
def test_batches_of_a_split_that_exceeds_memory_are_those_of_one_that_fits(
    packed: PackedDataset,
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = LoaderConfig(backend=backend, batch_size=8)
    with open_loader(packed, "train", config) as loader:
        expected = read_epochs(loader, range(2))
    monkeypatch.setattr(readahead, "find_free_memory", lambda: 2**10)
    caplog.set_level(logging.INFO, "tinyvgg")

    with open_loader(packed, "train", config) as loader:
        found = read_epochs(loader, range(2))

    assert_same(found, expected)
    # `resident` reads the split once, from the first image to the last
    assert ("images are read one by one" in caplog.text) == (backend != "resident")


def test_a_split_that_stays_in_memory_or_is_not_shuffled_is_read_as_ever(
    packed: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_readahead(packed.train) is None

    monkeypatch.setattr(readahead, "find_free_memory", lambda: 0)

    assert open_loader(packed, "val", LoaderConfig(batch_size=2)).readahead is None
