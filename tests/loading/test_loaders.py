"""One contract for every backend, with `torch` on the CPU as the reference."""

import gc
import json
import multiprocessing
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch

from tests.loading.contract import (
    CPU,
    assert_same,
    every_backend,
    every_dtype,
    every_leave,
    keep,
    leave_by_break,
    nothing_left_behind,
    open_raw,
    pixel_ids,
    pixel_pass,
    plan_train,
    read_epochs,
    valid_ids,
)
from tinyvgg.loading import LoaderConfig, host_batches, open_loader
from tinyvgg.loading.loader import Loader
from tinyvgg.loading.pinned import PinnedSource
from tinyvgg.loading.resident import ResidentSource
from tinyvgg.options import Backend
from tinyvgg.shards.store import PackedDataset, open_dataset

pytestmark = pytest.mark.usefixtures("three_threads")
BIT_EQUAL: list[Backend] = ["torch", "resident"]


# what a batch holds


@every_backend
@pytest.mark.parametrize("batch_size", [1, 5, 33, 40])
def test_an_epoch_without_drop_last_has_each_image_once(
    packed: PackedDataset, backend: Backend, batch_size: int
) -> None:
    loader = open_raw(packed, backend, batch_size=batch_size, drop_last=False)

    assert sorted(valid_ids(read_epochs(loader, range(1)))) == list(range(33))


@every_backend
def test_an_epoch_with_drop_last_has_no_image_twice(
    packed: PackedDataset, backend: Backend
) -> None:
    ids = valid_ids(read_epochs(open_raw(packed, backend), range(1)))

    assert len(ids) == len(set(ids)) == 30


@every_backend
@pytest.mark.parametrize("split", ["train", "val"])
def test_image_label_and_id_travel_together(
    packed: PackedDataset, backend: Backend, split: str
) -> None:
    for batch in open_raw(packed, backend, split, shuffle=True, drop_last=False).epoch(0):
        ids = batch.ids[: batch.num_valid]
        assert pixel_ids(batch.images[: batch.num_valid]) == ids.tolist()
        assert batch.labels[: batch.num_valid].tolist() == (ids % 3).tolist()


@every_backend
def test_stored_pixels_come_out_unchanged(packed: PackedDataset, backend: Backend) -> None:
    for batch in open_raw(packed, backend).epoch(0):
        stored = packed.train.read_images(batch.ids.numpy())
        assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), stored)


@every_backend
def test_the_last_batch_is_padded_behind_its_real_images(
    packed: PackedDataset, backend: Backend
) -> None:
    *full, last = read_epochs(open_raw(packed, backend, drop_last=False), range(1))

    assert {batch.num_valid for batch in full} == {5}
    assert last.num_valid == 3
    assert last.ids.shape == last.labels.shape == (5,)
    assert last.images.shape == (5, 3, 64, 64)
    assert last.ids[3:].tolist() == [-1, -1]
    assert last.labels[3:].tolist() == [-100, -100]
    assert torch.equal(last.images[3], last.images[2])
    assert torch.equal(last.images[4], last.images[2])


@every_backend
@every_dtype
def test_images_are_channels_last_and_of_the_type_asked_for(
    packed: PackedDataset, backend: Backend, dtype: torch.dtype
) -> None:
    loader = open_loader(packed, "train", LoaderConfig(backend=backend, batch_size=5), dtype=dtype)

    for batch in loader.epoch(0):
        assert batch.images.shape == (5, 3, 64, 64)
        assert batch.images.stride() == (64 * 64 * 3, 1, 64 * 3, 3)
        assert batch.images.dtype == dtype
        assert batch.images.device.type == "cpu"


@every_backend
def test_labels_and_ids_are_int64(packed: PackedDataset, backend: Backend) -> None:
    for batch in open_raw(packed, backend, "val").epoch(0):
        assert batch.labels.dtype == batch.ids.dtype == torch.int64
        assert batch.labels.shape == batch.ids.shape == (5,)
        assert type(batch.num_valid) is int


@every_backend
def test_normalized_images_are_pixels_times_scale_plus_shift(
    packed: PackedDataset, backend: Backend
) -> None:
    config = LoaderConfig(backend=backend, batch_size=5, augment=False)
    mean, std = np.array([0.48, 0.45, 0.4]), np.array([0.28, 0.27, 0.29])

    for batch in open_loader(packed, "train", config).epoch(0):
        stored = packed.train.read_images(batch.ids.numpy())
        expected = (stored / 255 - mean) / std
        assert np.abs(batch.images.permute(0, 2, 3, 1).numpy() - expected).max() < 1e-6


@every_backend
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 7), (64, 48)], ids=str)
@pytest.mark.parametrize(
    ("crop_pixels", "flip"), [(4, True), (0, True), (1, False), (8, True)], ids=str
)
def test_images_of_any_size_are_cropped_and_flipped_by_the_plan(
    pack_arrays: Callable[..., PackedDataset],
    backend: Backend,
    size: tuple[int, int],
    crop_pixels: int,
    flip: bool,
) -> None:
    images = np.random.default_rng(1).integers(0, 256, (23, *size, 3)).astype(np.uint8)
    dataset = pack_arrays("sizes", images, np.arange(23) % 3, images[:3], np.arange(3))
    fill = [122, 115, 102]  # round(255 mean)
    margin = (crop_pixels, crop_pixels)
    padded = np.stack(
        [
            np.pad(images[..., c], ((0, 0), margin, margin), constant_values=fill[c])
            for c in range(3)
        ],
        axis=-1,
    )
    words = np.random.Philox(key=[0, 0]).random_raw(46)
    augmentation: dict[str, Any] = {"augment": True, "crop_pixels": crop_pixels, "flip": flip}

    for batch in open_raw(dataset, backend, drop_last=False, **augmentation).epoch(0):
        for image, id_ in list(zip(batch.images, batch.ids, strict=True))[: batch.num_valid]:
            word = int(words[23 + int(id_)])
            top, left = (v % (2 * crop_pixels + 1) for v in (word, word >> 16))
            window = padded[id_, top : top + size[0], left : left + size[1]]
            expected = window[:, ::-1] if flip and word >> 63 else window
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


@every_backend
@every_dtype
def test_a_batch_stays_whole_until_the_next_is_asked_for(
    packed: PackedDataset, backend: Backend, dtype: torch.dtype
) -> None:
    config = LoaderConfig(backend=backend, batch_size=5)
    loader, other = (open_loader(packed, "train", config, dtype=dtype) for _ in range(2))

    for batch in loader.epoch(0):
        kept = keep(batch)
        read_epochs(other, range(1, 2))
        assert_same([batch], [kept])


@every_backend
@every_dtype
def test_a_kept_batch_never_changes(
    packed: PackedDataset, backend: Backend, dtype: torch.dtype
) -> None:
    config = LoaderConfig(backend=backend, batch_size=2, drop_last=False)
    with open_loader(packed, "train", config, dtype=dtype) as loader:
        kept = [batch for epoch in range(2) for batch in loader.epoch(epoch)]
        copies = [keep(batch) for epoch in range(2) for batch in loader.epoch(epoch)]

    assert_same(kept, copies)


@every_backend
def test_a_view_of_a_batch_keeps_its_pixels(packed: PackedDataset, backend: Backend) -> None:
    with open_raw(packed, backend, batch_size=2) as loader:
        views = [batch.images[1:, 0] for batch in loader.epoch(0)]
        expected = [batch.images[1:, 0].clone() for batch in loader.epoch(0)]

    assert all(torch.equal(view, other) for view, other in zip(views, expected, strict=True))


@every_backend
def test_reused_buffers_hold_the_same_batches(packed: PackedDataset, backend: Backend) -> None:
    plain, reusing = (
        open_raw(packed, backend, augment=True, reuse_buffers=reuse) for reuse in (False, True)
    )

    assert_same(read_epochs(reusing, range(2)), list(chain(plain.epoch(0), plain.epoch(1))))


@every_backend
def test_a_batch_is_unpacked_into_images_and_labels(
    packed: PackedDataset, backend: Backend
) -> None:
    for images, labels in open_raw(packed, backend):
        assert [id_ % 3 for id_ in pixel_ids(images)] == labels.tolist()


# backends against each other


@every_dtype
@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_resident_equals_torch_bit_by_bit_for_two_epochs(
    packed: PackedDataset, dtype: torch.dtype, augment: bool, drop_last: bool
) -> None:
    batches = [
        read_epochs(
            open_loader(
                packed,
                "train",
                LoaderConfig(backend=backend, batch_size=5, augment=augment, drop_last=drop_last),
                dtype=dtype,
            ),
            range(2),
        )
        for backend in BIT_EQUAL
    ]

    assert_same(*batches)


# leaving early, lifetimes


@every_backend
@every_leave
def test_leaving_leaves_no_thread_and_no_process(
    packed: PackedDataset, backend: Backend, leave: Callable[[Loader], None]
) -> None:
    loader = open_raw(packed, backend)

    with nothing_left_behind():
        leave(loader)

    assert len(read_epochs(loader, range(1))) == 6


@pytest.mark.parametrize("backend", BIT_EQUAL)
@pytest.mark.parametrize("batches_per_task", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_batches_do_not_depend_on_how_many_a_thread_prepares_at_once(
    packed: PackedDataset,
    backend: Backend,
    batches_per_task: int,
    batch_size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields: dict[str, Any] = {"batch_size": batch_size, "augment": True, "drop_last": False}
    expected = read_epochs(open_raw(packed, backend, **fields), range(2))
    task_bytes = batches_per_task * batch_size * 64 * 64 * 3
    monkeypatch.setattr(host_batches, "TASK_BYTES", task_bytes)

    batches = read_epochs(open_raw(packed, backend, **fields), range(2))

    assert_same(batches, expected)


@every_backend
def test_two_iterators_of_one_loader_leave_nothing_behind(
    packed: PackedDataset, backend: Backend
) -> None:
    loader = open_raw(packed, backend)

    with nothing_left_behind(within_sec=5):
        for _ in zip(loader.epoch(0), loader.epoch(1), strict=True):
            pass


@every_backend
@pytest.mark.parametrize("num_read", [0, 2])
def test_a_loader_outlives_the_dataset_it_was_opened_with(
    packed: PackedDataset, backend: Backend, num_read: int
) -> None:
    expected = read_epochs(open_raw(packed, backend), range(1))
    dataset = open_dataset(packed.folder)
    split = weakref.ref(dataset.train)
    loader = open_raw(dataset, backend)
    batches = loader.epoch(0)
    read = [keep(batch) for batch in islice(batches, num_read)]

    del dataset, loader
    gc.collect()

    assert split() is not None
    assert_same(read + [keep(batch) for batch in batches], expected)


@pytest.mark.parametrize("source_class", [PinnedSource, ResidentSource])
def test_batches_keep_the_memory_that_they_read(
    packed: PackedDataset, source_class: type[PinnedSource | ResidentSource]
) -> None:
    source = source_class(open_dataset(packed.folder).train, pixel_pass(torch.uint8), CPU)
    plan, state = plan_train(packed)
    owner = weakref.ref(source)

    batches = source.batches(plan, state)
    del source
    gc.collect()

    assert owner() is not None
    batches.close()  # type: ignore[attr-defined]
    del batches
    assert owner() is None


@every_backend
def test_nothing_is_kept_when_loader_and_dataset_are_dropped(
    packed: PackedDataset, backend: Backend
) -> None:
    dataset = open_dataset(packed.folder)
    loader = open_raw(dataset, backend)
    leave_by_break(loader)
    owners: list[Callable[[], Any]] = [
        weakref.ref(dataset.train),
        weakref.ref(loader),
        weakref.ref(loader.source),
    ]

    del dataset, loader
    if backend == "dali":  # a pipeline refers to itself
        gc.collect()

    assert [owner() for owner in owners] == [None] * 3


@pytest.mark.parametrize("backend", BIT_EQUAL)
def test_an_error_of_a_backend_reaches_the_loop_and_leaves_nothing_behind(
    packed: PackedDataset, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_batches, "TASK_BYTES", 1)  # one batch a task
    loader = open_raw(packed, backend, augment=True)
    source: Any = loader.source
    kernel, fill = source.kernel, source.kernel.fill

    with nothing_left_behind():
        batches = loader.epoch(0)
        next(batches)
        kernel.fill = "no color"  # every batch fails that is not prepared yet
        with pytest.raises(numba.TypingError):
            list(batches)
        kernel.fill = fill

    num_consumed = loader.state_dict()["images_consumed"]
    assert num_consumed % 5 == 0
    assert 5 <= num_consumed < 30
    loader.load_state_dict(loader.state_dict())
    assert len(list(loader)) == 6 - num_consumed // 5


def read_in_child(loader: Loader, ids: "multiprocessing.SimpleQueue[list[int]]") -> None:
    # nothing but the loader: torch's own threads do not survive a fork
    ids.put([id_ for batch in loader.epoch(0) for id_ in batch.ids.tolist()])


@pytest.mark.parametrize("backend", BIT_EQUAL)
def test_a_loader_works_in_a_forked_process(packed: PackedDataset, backend: Backend) -> None:
    context = multiprocessing.get_context("fork")
    loader = open_raw(packed, backend)
    expected = valid_ids(read_epochs(loader, range(1)))
    half_read = loader.epoch(0)
    next(half_read)

    ids = context.SimpleQueue()
    child = context.Process(target=read_in_child, args=(loader, ids))
    child.start()
    child.join(30)
    child.kill()

    assert child.exitcode == 0
    assert ids.get() == expected
    assert valid_ids([keep(batch) for batch in half_read]) == expected[5:]


@pytest.mark.slow
@every_backend
def test_a_process_can_exit_with_an_iterator_half_read(
    packed: PackedDataset, backend: Backend
) -> None:
    code = (
        "import torch; torch.set_num_threads(3)\n"
        "from tinyvgg.loading import LoaderConfig, open_loader\n"
        "from tinyvgg.shards.store import open_dataset\n"
        f"loader = open_loader(open_dataset({str(packed.folder)!r}), 'train',\n"
        f"                     LoaderConfig(backend={backend!r}, batch_size=5))\n"
        "batches = iter(loader)\n"
        "print(next(batches).num_valid)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")


# several processes

WORKER = """
import json, os, sys
import torch.distributed
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.shards.store import open_dataset

folder, store, out = sys.argv[1:]
rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size
)
dataset, found = open_dataset(folder), {}
for split, backend in (("train", "torch"), ("val", "resident")):
    config = LoaderConfig(backend=backend, batch_size=6, seed=4)
    loader = open_loader(dataset, split, config, dtype=torch.uint8)
    steps = []
    for batch in loader.epoch(1):
        torch.distributed.barrier()  # hangs if the ranks' steps differ in number
        sums = batch.images.flatten(1).to(torch.int64).sum(1)
        steps.append([batch.num_valid, batch.ids.tolist(), batch.labels.tolist(), sums.tolist()])
        if len(steps) == 2:
            state = loader.state_dict()
    found[split] = {"steps": steps, "len": len(loader), "state": state}
with open(out, "w") as file:
    json.dump(found, file)
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def free_threads() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_read_what_one_process_reads(
    packed: PackedDataset, tmp_path: Path, free_threads: dict[str, str], world_size: int
) -> None:
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", WORKER, packed.folder),
                *(tmp_path / "store", tmp_path / f"{rank}.json"),
            ],
            env={**free_threads, "RANK": str(rank), "WORLD_SIZE": str(world_size)},
        )
        for rank in range(world_size)
    ]
    try:
        assert [process.wait(timeout=60) for process in processes] == [0] * world_size
    finally:
        for process in processes:
            process.kill()

    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world_size)]
    for split in ("train", "val"):
        config = LoaderConfig(batch_size=6, seed=4)
        loader = open_loader(packed, split, config, dtype=torch.uint8)
        expected = []
        for batch in loader.epoch(1):
            sums = batch.images.flatten(1).to(torch.int64).sum(1).tolist()
            expected.append([batch.num_valid, batch.ids.tolist(), batch.labels.tolist(), sums])
            if len(expected) == 2:
                state = loader.state_dict()
        joined = [
            [sum(num_valid), *(list(chain(*values)) for values in lists)]
            for step in zip(*(rank[split]["steps"] for rank in ranks), strict=True)
            for num_valid, *lists in [zip(*step, strict=True)]
        ]
        assert joined == expected
        assert all(rank[split]["len"] == len(loader) for rank in ranks)
        assert all(rank[split]["state"] == state for rank in ranks)


# real images


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_on_real_images_resident_equals_torch_bit_by_bit_for_two_epochs(
    real_dataset: PackedDataset, dtype: torch.dtype
) -> None:
    loaders = [
        open_loader(real_dataset, "train", LoaderConfig(backend=backend, seed=1), dtype=dtype)
        for backend in BIT_EQUAL
    ]

    steps = 0
    for epoch in range(2):
        for one, other in zip(*(loader.epoch(epoch) for loader in loaders), strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.ids, other.ids)
            steps += 1

    assert steps == 2 * (real_dataset.train.num_images // 128)


@pytest.mark.real
@pytest.mark.slow
def test_on_real_images_resident_goes_on_where_torch_stood_at_10_random_steps(
    real_dataset: PackedDataset,
) -> None:
    config = LoaderConfig(seed=2)
    resumed = open_loader(real_dataset, "train", replace(config, backend="resident"))
    loader = open_loader(real_dataset, "train", replace(config, backend="torch"))
    steps = np.random.default_rng(0).choice(2 * len(loader) - 3, 10, replace=False).tolist()

    step = 0
    states: dict[int, dict[str, Any]] = {}
    for _ in range(2):
        for batch in loader:
            for start, state in states.items():
                if start < step <= start + 3:
                    resumed.load_state_dict(state)
                    expected = next(iter(resumed))
                    assert torch.equal(batch.images, expected.images)
                    assert torch.equal(batch.ids, expected.ids)
                    assert torch.equal(batch.labels, expected.labels)
                    states[start] = resumed.state_dict()
            if step in steps:
                states[step] = loader.state_dict()
            step += 1

    assert len(states) == 10


@pytest.mark.real
@pytest.mark.slow
@every_backend
def test_on_real_images_every_id_comes_once_an_epoch_with_its_own_pixels(
    real_dataset: PackedDataset, backend: Backend
) -> None:
    loader = open_raw(real_dataset, backend, batch_size=256, drop_last=False)
    train = real_dataset.train

    seen = np.zeros(train.num_images, np.int64)
    for batch in loader.epoch(0):
        ids = batch.ids[: batch.num_valid].numpy()
        seen[ids] += 1
        assert np.array_equal(batch.labels[: batch.num_valid].numpy(), train.labels[ids])
        stored = train.read_images(ids[:4])
        assert np.array_equal(batch.images[:4].permute(0, 2, 3, 1).numpy(), stored)

    assert (seen == 1).all()
