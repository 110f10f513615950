"""Order, epochs and state of a loader, whatever its backend."""

import json
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.loading.contract import (
    assert_same,
    every_backend,
    keep,
    open_raw,
    pixel_ids,
    read_epochs,
    valid_ids,
)
from tinyvgg.errors import ShardError
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.loading.views import scaled_size
from tinyvgg.options import Backend
from tinyvgg.shards.store import PackedDataset

pytestmark = pytest.mark.usefixtures("three_threads")


@every_backend
def test_equal_seed_and_epoch_give_equal_batches(packed: PackedDataset, backend: Backend) -> None:
    once, twice = (open_raw(packed, backend, seed=3, augment=True) for _ in range(2))

    assert_same(read_epochs(once, range(2, 4)), read_epochs(twice, range(2, 4)))


@every_backend
def test_the_next_epoch_and_another_seed_have_another_order(
    packed: PackedDataset, backend: Backend
) -> None:
    loader, other = open_raw(packed, backend), open_raw(packed, backend, seed=1)

    orders = [valid_ids(read_epochs(loader, range(epoch, epoch + 1))) for epoch in range(2)]
    orders.append(valid_ids(read_epochs(other, range(1))))

    assert len({tuple(order) for order in orders}) == 3


@every_backend
@pytest.mark.parametrize(
    ("batch_size", "drop_last", "steps"),
    [(33, True, 1), (33, False, 1), (32, True, 1), (32, False, 2), (34, False, 1), (1, True, 33)],
)
def test_len_is_the_steps_of_an_epoch(
    packed: PackedDataset, backend: Backend, batch_size: int, drop_last: bool, steps: int
) -> None:
    loader = open_raw(packed, backend, batch_size=batch_size, drop_last=drop_last)

    assert len(loader) == len(read_epochs(loader, range(1))) == steps


@every_backend
def test_train_is_shuffled_augmented_and_cut_by_default_and_val_is_not(
    packed: PackedDataset, backend: Backend
) -> None:
    config = LoaderConfig(backend=backend, batch_size=5)

    train = read_epochs(open_loader(packed, "train", config, dtype=torch.uint8), range(1))
    val = read_epochs(open_loader(packed, "val", config, dtype=torch.uint8), range(1))

    assert len(train) == 6
    assert valid_ids(train) != sorted(valid_ids(train))
    assert [pixel_ids(batch.images) for batch in train] != [batch.ids.tolist() for batch in train]
    assert len(val) == 2
    assert valid_ids(val) == list(range(7))
    assert pixel_ids(val[0].images) == list(range(5))


@every_backend
@pytest.mark.parametrize(
    "fields", [{"augment": False, "crop_pixels": 8}, {"crop_pixels": 0, "flip": False}], ids=str
)
def test_what_neither_crops_nor_flips_does_not_augment(
    packed: PackedDataset, backend: Backend, fields: dict[str, Any]
) -> None:
    loader = open_raw(packed, backend, **{"augment": True, **fields})

    assert not loader.plan.augment
    assert_same(read_epochs(loader, range(1)), read_epochs(open_raw(packed, backend), range(1)))


@every_backend
def test_iterating_goes_through_one_epoch_after_the_other(
    packed: PackedDataset, backend: Backend
) -> None:
    loader, reference = open_raw(packed, backend), open_raw(packed, backend)

    batches = [keep(batch) for _ in range(3) for batch in loader]

    assert len(batches) == 18
    assert_same(batches, read_epochs(reference, range(3)))


@every_backend
def test_iterating_after_an_epoch_goes_on_with_the_next(
    packed: PackedDataset, backend: Backend
) -> None:
    loader, reference = open_raw(packed, backend), open_raw(packed, backend)

    read_epochs(loader, range(4, 5))
    batches = [keep(batch) for batch in loader]

    assert_same(batches, read_epochs(reference, range(5, 6)))


@every_backend
def test_an_epoch_can_be_run_again_from_its_start(packed: PackedDataset, backend: Backend) -> None:
    loader = open_raw(packed, backend)

    first = read_epochs(loader, range(1))
    list(islice(loader, 2))

    assert_same(first, read_epochs(loader, range(1)))


@every_backend
@pytest.mark.parametrize("num_read", [1, 3, 5])
def test_iterating_again_after_a_break_begins_the_epoch_again(
    packed: PackedDataset, backend: Backend, num_read: int
) -> None:
    loader = open_raw(packed, backend)
    expected = read_epochs(open_raw(packed, backend), range(4, 6))

    for step, _ in enumerate(loader.epoch(4), 1):
        if step == num_read:
            break
    batches = [keep(batch) for _ in range(2) for batch in loader]

    assert_same(batches, expected)


@every_backend
def test_a_batch_taken_for_a_look_is_not_lost(packed: PackedDataset, backend: Backend) -> None:
    loader = open_raw(packed, backend)
    expected = read_epochs(open_raw(packed, backend), range(1))

    looked_at = [keep(next(iter(loader))) for _ in range(2)]

    assert_same(looked_at, [expected[0]] * 2)
    assert_same([keep(batch) for batch in loader], expected)


@every_backend
def test_the_last_batch_ends_the_epoch_though_the_loop_is_left_there(
    packed: PackedDataset, backend: Backend
) -> None:
    loader = open_raw(packed, backend)

    list(islice(loader, len(loader)))

    assert_same([keep(batch) for batch in loader], read_epochs(loader, range(1, 2)))


@every_backend
def test_an_epoch_is_the_one_asked_for_however_late_it_is_read(
    packed: PackedDataset, backend: Backend
) -> None:
    loader = open_raw(packed, backend)
    expected = read_epochs(open_raw(packed, backend), range(2))

    first, second = loader.epoch(0), loader.epoch(1)
    pairs = [(keep(one), keep(other)) for one, other in zip(first, second, strict=True)]

    assert_same([one for one, _ in pairs] + [other for _, other in pairs], expected)


@every_backend
def test_two_loaders_can_be_read_in_turn(packed: PackedDataset, backend: Backend) -> None:
    train, val = open_raw(packed, backend, batch_size=16), open_raw(packed, backend, "val")
    expected = [read_epochs(train, range(1)), read_epochs(val, range(1))]

    pairs = list(zip(map(keep, train.epoch(0)), map(keep, val.epoch(0)), strict=True))

    assert_same([one for one, _ in pairs], expected[0])
    assert_same([other for _, other in pairs], expected[1])


@every_backend
def test_set_epoch_says_which_epoch_begins_next(packed: PackedDataset, backend: Backend) -> None:
    loader, other = open_raw(packed, backend), open_raw(packed, backend)

    for epoch in (0, 1, 3):
        loader.set_epoch(epoch)
        assert valid_ids(list(loader)) == valid_ids(list(other.epoch(epoch)))


def test_the_state_after_set_epoch_is_the_start_of_that_epoch(packed: PackedDataset) -> None:
    loader = open_raw(packed, "torch")
    next(iter(loader))

    loader.set_epoch(4)

    state = loader.state_dict()
    assert (state["epoch"], state["images_consumed"]) == (4, 0)


def test_set_epoch_keeps_a_state_that_was_loaded_for_this_epoch(packed: PackedDataset) -> None:
    stopped, loader = open_raw(packed, "torch"), open_raw(packed, "torch")
    list(islice(stopped.epoch(2), 3))
    loader.load_state_dict(stopped.state_dict())

    loader.set_epoch(2)

    assert valid_ids(list(loader)) == valid_ids(list(stopped.epoch(2)))[15:]


@every_backend
def test_a_closed_loader_gives_no_more_batches(packed: PackedDataset, backend: Backend) -> None:
    with open_raw(packed, backend) as loader:
        assert len(list(loader)) == len(loader)

    with pytest.raises(ValueError, match="loader is closed; open another one"):
        next(iter(loader))


def test_the_dataset_of_a_loader_is_its_split(packed: PackedDataset) -> None:
    loader = open_raw(packed, "torch", split="val")

    assert loader.dataset is packed.val
    assert len(loader.dataset) == 7


@every_backend
def test_epoch_must_not_be_negative(packed: PackedDataset, backend: Backend) -> None:
    loader = open_raw(packed, backend)

    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        loader.epoch(-1)


@every_backend
@pytest.mark.parametrize("drop_last", [True, False])
def test_state_counts_what_was_yielded(
    packed: PackedDataset, backend: Backend, drop_last: bool
) -> None:
    loader = open_raw(packed, backend, seed=9, drop_last=drop_last)
    states = [loader.state_dict()]
    for _ in range(2):
        states += [loader.state_dict() for _ in loader]

    places = [(0, consumed) for consumed in range(5, 5 * len(loader), 5)]
    places += [(1, 0)] + [(1, consumed) for _, consumed in places] + [(2, 0)]
    assert [(state["epoch"], state["images_consumed"]) for state in states] == [(0, 0), *places]
    assert {state["seed"] for state in states} == {9}
    assert {state["manifest_sha256"] for state in states} == {packed.manifest_sha256}


@every_backend
def test_state_is_json_under_1_kb(packed: PackedDataset, backend: Backend) -> None:
    loader = open_raw(packed, backend, seed=2**64 - 1)
    next(iter(loader))

    text = json.dumps(loader.state_dict())

    assert json.loads(text) == loader.state_dict()
    assert set(json.loads(text)) == {"seed", "epoch", "images_consumed", "manifest_sha256"}
    assert len(text) < 1000


@every_backend
@pytest.mark.parametrize("drop_last", [True, False])
def test_resuming_at_any_batch_of_two_epochs_gives_the_rest(
    packed: PackedDataset, backend: Backend, drop_last: bool
) -> None:
    fields: dict[str, Any] = {"seed": 3, "augment": True, "drop_last": drop_last}
    expected = read_epochs(open_raw(packed, backend, **fields), range(3))
    steps = len(expected) // 3

    for num_read in range(2 * steps + 1):
        interrupted = open_raw(packed, backend, **fields)
        stream = (batch for _ in range(3) for batch in interrupted)
        for _ in islice(stream, num_read):
            pass
        state = json.loads(json.dumps(interrupted.state_dict()))

        resumed = open_raw(packed, backend, **{**fields, "seed": 0})
        resumed.load_state_dict(state)
        rest = [keep(batch) for _ in range(3 - num_read // steps) for batch in resumed]

        assert_same(rest, expected[num_read:])


@every_backend
def test_a_run_that_was_interrupted_twice_gives_the_rest(
    packed: PackedDataset, backend: Backend
) -> None:
    expected = read_epochs(open_raw(packed, backend), range(2))
    state = open_raw(packed, backend).state_dict()

    batches = []
    for num_read in (2, 3):
        loader = open_raw(packed, backend)
        loader.load_state_dict(state)
        batches += [keep(batch) for batch in islice(loader, num_read)]
        state = loader.state_dict()
    loader = open_raw(packed, backend)
    loader.load_state_dict(state)
    batches += [keep(batch) for _ in range(2) for batch in loader]

    assert_same(batches, expected)


@every_backend
def test_a_state_that_is_loaded_and_saved_is_the_same(
    packed: PackedDataset, backend: Backend
) -> None:
    loader, resumed = open_raw(packed, backend), open_raw(packed, backend, seed=1)
    list(islice(loader, 4))

    resumed.load_state_dict(loader.state_dict())

    assert resumed.state_dict() == loader.state_dict()


@every_backend
def test_a_loaded_state_holds_for_one_epoch_and_not_for_the_next_look(
    packed: PackedDataset, backend: Backend
) -> None:
    loader = open_raw(packed, backend)
    expected = read_epochs(open_raw(packed, backend), range(3))
    list(islice(loader.epoch(1), 2))
    state = loader.state_dict()

    loader.load_state_dict(state)
    first = keep(next(iter(loader)))
    middle = loader.state_dict()
    again = [keep(batch) for batch in loader]
    loader.load_state_dict(state)
    whole = read_epochs(loader, range(1, 2))

    assert_same([first], expected[8:9])
    assert middle == {**state, "images_consumed": 15}
    assert_same(again, expected[6:12])
    assert_same(whole, expected[6:12])


@every_backend
def test_a_loaded_state_is_kept_when_an_old_iterator_ends(
    packed: PackedDataset, backend: Backend
) -> None:
    loader = open_raw(packed, backend)
    old = iter(loader)
    next(old)
    state = {**loader.state_dict(), "seed": 77, "epoch": 5, "images_consumed": 10}

    loader.load_state_dict(state)
    del old

    assert loader.state_dict() == state


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 18, 19, 40])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("torch", "resident"),
        ("resident", "torch"),
        pytest.param("torch", "dali", marks=pytest.mark.dali),
        pytest.param("dali", "resident", marks=pytest.mark.dali),
    ],
)
def test_resuming_may_change_backend_and_batch_size(
    packed: PackedDataset, before: Backend, after: Backend, batch_size: int
) -> None:
    uninterrupted = open_raw(packed, before, augment=True, drop_last=False)
    images = {
        id_: image
        for batch in read_epochs(uninterrupted, range(1))
        for id_, image in zip(batch.ids.tolist(), batch.images, strict=True)
    }
    loader = open_raw(packed, before, augment=True)
    order = valid_ids(read_epochs(open_raw(packed, before, drop_last=False), range(1)))
    list(islice(loader, 3))

    resumed = open_raw(packed, after, augment=True, batch_size=batch_size, drop_last=False)
    resumed.load_state_dict(loader.state_dict())
    rest = [keep(batch) for batch in resumed]

    assert valid_ids(rest) == order[15:]
    for batch in rest:
        for id_, image in list(zip(batch.ids.tolist(), batch.images, strict=True))[
            : batch.num_valid
        ]:
            assert torch.equal(image, images[id_])


@every_backend
def test_resuming_with_a_batch_larger_than_the_rest_goes_on_with_the_next_epoch(
    packed: PackedDataset, backend: Backend
) -> None:
    loader = open_raw(packed, backend)
    list(islice(loader, 4))

    resumed = open_raw(packed, backend, batch_size=14)  # 13 images are left, drop_last
    resumed.load_state_dict(loader.state_dict())
    batches = [keep(batch) for batch in resumed]

    assert_same(batches, read_epochs(open_raw(packed, backend, batch_size=14), range(1, 2)))
    assert resumed.state_dict()["epoch"] == 2


@every_backend
def test_the_state_of_another_dataset_is_refused(
    packed: PackedDataset, pack_arrays: Callable[..., PackedDataset], backend: Backend
) -> None:
    images = np.zeros((33, 64, 64, 3), np.uint8)
    other = pack_arrays("other", images, np.arange(33) % 3, images[:7], np.arange(7) % 3)
    loader = open_raw(packed, backend)
    before = loader.state_dict()

    message = (
        f"loader state is of data set {other.manifest_sha256[:12]}…, this one is "
        f"{packed.manifest_sha256[:12]}…; open the data set it was saved with"
    )
    with pytest.raises(ShardError, match=message):
        loader.load_state_dict(open_raw(other, backend).state_dict())

    assert loader.state_dict() == before


@pytest.mark.parametrize(
    "change", [{"images_consumed": 34}, {"images_consumed": -1}, {"epoch": -1}], ids=str
)
def test_a_state_out_of_range_is_refused(packed: PackedDataset, change: dict[str, Any]) -> None:
    loader = open_raw(packed, "torch")

    with pytest.raises(ValueError, match="loader state is out of range"):
        loader.load_state_dict(loader.state_dict() | change)


@pytest.mark.parametrize("state", [{}, {"seed": 0}, {"a": 1}], ids=str)
def test_what_is_no_state_is_refused(packed: PackedDataset, state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must have seed, epoch, images_consumed, manifest_sha256"):
        open_raw(packed, "torch").load_state_dict(state)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_images_are_scaled_to_the_size_of_the_epoch(
    packed: PackedDataset, backend: Backend, dtype: torch.dtype
) -> None:
    options: dict[str, Any] = {"backend": backend, "batch_size": 8, "seed": 3}
    stored = open_loader(packed, "train", LoaderConfig(**options), dtype=dtype)
    scaled = open_loader(packed, "train", LoaderConfig(**options, size=5), dtype=dtype)

    for size in (5, 11, None):
        scaled.set_size(size)
        for whole, batch in zip(stored.epoch(1), scaled.epoch(1), strict=True):
            expected = whole.images if size is None else obvious_resize(whole.images, size)
            atol = {torch.uint8: 1, torch.bfloat16: 0.02, torch.float32: 1e-5}[dtype]
            assert batch.images.dtype == dtype
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(batch.images, expected, rtol=0, atol=atol)
            assert torch.equal(batch.ids, whole.ids)


def obvious_resize(images: Tensor, size: int) -> Tensor:
    """Return images scaled by torch, in float32."""
    height, width = images.shape[2:]
    target = scaled_size(height, width, size)
    resized = functional.interpolate(images.float(), target, mode="bilinear", antialias=True)
    return (
        resized.round().to(images.dtype)
        if images.dtype == torch.uint8
        else resized.to(images.dtype)
    )


def test_a_size_of_no_pixels_is_refused(packed: PackedDataset) -> None:
    loader = open_loader(packed, "val")

    message = "^size must be a whole number from 1 to 65,535 pixels, got"
    with pytest.raises(ValueError, match=f"{message} 0$"):
        loader.set_size(0)
    with pytest.raises(ValueError, match=f"{message} -3$"):
        LoaderConfig(size=-3)
