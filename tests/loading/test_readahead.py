import ctypes
import logging
import mmap
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import write_packed
from tests.loading.contract import assert_same, every_backend, read_epochs
from tinyvgg.loading import LoaderConfig, open_loader, readahead
from tinyvgg.loading.readahead import Readahead, open_readahead
from tinyvgg.options import Backend
from tinyvgg.shards.store import PackedDataset, Split, open_dataset

PAGE = mmap.PAGESIZE
pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_RANDOM"), reason="needs madvise(2)")


def find_resident(split: Split) -> np.ndarray:
    """Return which pages of a split's first shard are in memory, bool [pages] (mincore(2))."""
    images = split.shards[0].images
    first = images.ctypes.data // PAGE * PAGE
    num_bytes = images.ctypes.data + images.nbytes - first
    pages = (ctypes.c_uint8 * -(-num_bytes // PAGE))()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(first), ctypes.c_size_t(num_bytes), pages) == 0
    is_resident: np.ndarray = np.ctypeslib.as_array(pages) & 1 == 1
    return is_resident


def pages_of(split: Split, row: int) -> set[int]:
    """Return the pages of the first shard that a row lies on."""
    base = split.shards[0].images.ctypes.data // PAGE * PAGE
    first = int(split.row_addresses[row]) - base
    return set(range(first // PAGE, (first + int(split.row_bytes[row]) - 1) // PAGE + 1))


@pytest.fixture
def cold(tmp_path: Path) -> Split:
    """400 images of 12 KiB in one shard, none of them in memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (400, 64, 64, 3), np.uint8)
    labels = np.arange(400) % 2
    folder = write_packed(tmp_path / "cold", pixels, labels, pixels[:2], labels[:2], shard_size=400)
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    split = open_dataset(folder).train
    if find_resident(split)[len(find_resident(split)) // 2 :].any():
        pytest.skip("this file system keeps its files in memory")
    return split


def test_it_reads_the_images_that_were_asked_for_and_no_others(cold: Split) -> None:
    rows = np.array([[130, 333], [57, 222]])
    expected = set().union(*(pages_of(cold, row) for row in rows.flat))
    before = set(np.flatnonzero(find_resident(cold)).tolist())  # opening reads the header

    Readahead(cold).ask(rows)

    until = time.monotonic() + 20
    while not expected <= set(np.flatnonzero(find_resident(cold)).tolist()):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert set(np.flatnonzero(find_resident(cold)).tolist()) <= expected | before


def test_what_was_not_asked_for_is_read_alone(cold: Split) -> None:
    Readahead(cold)
    before = set(np.flatnonzero(find_resident(cold)).tolist())

    cold.view_row(200).sum()

    assert set(np.flatnonzero(find_resident(cold)).tolist()) - before == pages_of(cold, 200)


def test_steps_are_asked_for_once_in_order_and_before_they_are_due(
    packed: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ahead = Readahead(packed.train)
    monkeypatch.setattr(readahead, "AHEAD_BYTES", 0)
    monkeypatch.setattr(ahead, "ask", lambda rows: asked.extend(rows[:, 0].tolist()))
    rows = np.arange(33).reshape(11, 3)
    num_ahead = torch.get_num_threads() + 2

    for step, _ in enumerate(ahead.follow(rows, iter(range(11)))):
        assert asked == rows[: step + 1 + num_ahead, 0].tolist()


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
    assert ("each is read by itself" in caplog.text) == (backend != "resident")


def test_a_split_that_stays_in_memory_or_is_not_shuffled_is_read_as_ever(
    packed: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_readahead(packed.train) is None

    monkeypatch.setattr(readahead, "find_free_memory", lambda: 0)

    assert open_loader(packed, "val", LoaderConfig(batch_size=2)).readahead is None
