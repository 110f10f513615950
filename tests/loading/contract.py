"""What the tests of loaders share: backends, ways to read, compare and leave them."""

import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.loading.batch import Batch, Normalization, PixelPass
from tinyvgg.loading.loader import Loader
from tinyvgg.loading.plan import EpochPlanner, LoaderState
from tinyvgg.options import Backend
from tinyvgg.shards.store import PackedDataset

BACKENDS = ["torch", "resident", pytest.param("dali", marks=pytest.mark.dali)]
DTYPES = [torch.uint8, torch.float32, torch.bfloat16, torch.float16]
CPU = torch.device("cpu")

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def open_raw(
    dataset: PackedDataset, backend: Backend, split: str = "train", **fields: Any
) -> Loader:
    """Open a loader of stored pixels, in batches of 5 without crop and flip by default."""
    config = LoaderConfig(**{"backend": backend, "batch_size": 5, "augment": False, **fields})
    return open_loader(dataset, split, config, dtype=torch.uint8)


def keep(batch: Batch) -> Batch:
    """Return a copy that outlives the next batch."""
    tensors = {name: getattr(batch, name).clone() for name in ("images", "labels", "ids")}
    return replace(batch, **tensors)


def read_epochs(loader: Loader, epochs: range) -> list[Batch]:
    return [keep(batch) for epoch in epochs for batch in loader.epoch(epoch)]


def valid_ids(batches: list[Batch]) -> list[int]:
    return [id_ for batch in batches for id_ in batch.ids[: batch.num_valid].tolist()]


def pixel_ids(images: Tensor) -> list[int]:
    """Return the numbers that the first pixels of uint8 images encode; gray ones are small."""
    first = images[:, :, 0, 0].to(torch.int64)
    is_gray = (first == first[:, :1]).all(dim=1)
    numbers = first[:, 0] + 256 * first[:, 1] + 65536 * first[:, 2]
    return torch.where(is_gray, first[:, 0], numbers).tolist()


def same_bits(left: Tensor, right: Tensor) -> bool:
    left, right = left.contiguous(), right.contiguous()
    return left.dtype == right.dtype and torch.equal(
        left.view(torch.uint8), right.view(torch.uint8)
    )


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert one.labels.tolist() == other.labels.tolist()
        assert one.num_valid == other.num_valid
        assert same_bits(one.images, other.images)


def child_processes() -> set[str]:
    """Return the process numbers of this process's children (Linux), or of those it knows."""
    tasks = list(Path("/proc/self/task").glob("*/children"))
    if not tasks:
        return {str(child.pid) for child in multiprocessing.active_children()}
    children: set[str] = set()
    for task in tasks:
        with suppress(OSError):  # that thread has ended since
            children |= set(task.read_text().split())
    return children


@contextmanager
def nothing_left_behind(within_sec: float = 0) -> Iterator[None]:
    """Fail if a thread or a process has come up inside and is still there at the end."""
    threads, children = set(threading.enumerate()), child_processes()
    yield
    deadline = time.monotonic() + within_sec
    while set(threading.enumerate()) - threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= threads
    assert child_processes() <= children


def leave_by_break(loader: Loader) -> None:
    for _ in loader.epoch(0):
        break


def leave_by_exception(loader: Loader) -> None:
    def interrupt() -> None:
        for _ in loader.epoch(0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()


def leave_by_del(loader: Loader) -> None:
    batches = loader.epoch(0)
    next(batches)
    del batches


def leave_by_close(loader: Loader) -> None:
    batches = loader.epoch(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def leave_at_the_end(loader: Loader) -> None:
    for _ in loader.epoch(0):
        pass


def leave_before_the_start(loader: Loader) -> None:
    loader.epoch(0)


LEAVES = [
    leave_by_break,
    leave_by_exception,
    leave_by_del,
    leave_by_close,
    leave_at_the_end,
    leave_before_the_start,
]
every_leave = pytest.mark.parametrize("leave", LEAVES, ids=lambda leave: leave.__name__)


def pixel_pass(dtype: torch.dtype) -> PixelPass:
    normalization = Normalization((0.48, 0.45, 0.4), (0.28, 0.27, 0.29))
    return PixelPass((64, 64, 3), normalization, dtype)


def plan_train(dataset: PackedDataset, first: int = 0) -> tuple[EpochPlanner, LoaderState]:
    """Return the plan of what is left of epoch 0 of the train split, in padded batches of 5."""
    labels = dataset.train.labels
    planner = EpochPlanner(labels, 5, shuffle=True, augment=True, drop_last=False)
    return planner, LoaderState(1, 0, first, "")
