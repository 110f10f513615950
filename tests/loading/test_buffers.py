"""A buffer is taken again when nobody holds a tensor of it, and not before."""

import gc
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.loading.contract import DTYPES, assert_same, read_epochs
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.loading.buffers import BufferPool
from tinyvgg.shards.store import PackedDataset

HOLDS: list[Callable[[Tensor], object]] = [
    lambda tensor: tensor,
    lambda tensor: tensor.permute(0, 3, 1, 2),
    lambda tensor: tensor[1:2, 0],
    lambda tensor: tensor.detach(),
    lambda tensor: tensor.numpy(),
    lambda tensor: tensor.untyped_storage(),
    lambda tensor: torch.from_numpy(tensor.numpy()),
]


@pytest.mark.parametrize("hold", HOLDS)
def test_a_buffer_is_free_only_when_nothing_of_it_is_held(
    hold: Callable[[Tensor], object],
) -> None:
    pool = BufferPool((2, 3, 4, 3), torch.float32, 4)
    taken = pool.take()
    place = taken.data_ptr()
    held = hold(taken)
    del taken
    gc.collect()

    others = [pool.take() for _ in range(5)]

    assert place not in [other.data_ptr() for other in others]
    del held, others
    again = [pool.take() for _ in range(4)]
    assert place in [tensor.data_ptr() for tensor in again]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_buffer_is_aligned_and_of_the_shape_and_type_asked_for(dtype: torch.dtype) -> None:
    pool = BufferPool((2, 5, 7, 3), dtype, 2)

    for tensor in (pool.take(), pool.take(), pool.take()):
        assert (tuple(tensor.shape), tensor.dtype) == ((2, 5, 7, 3), dtype)
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0


def test_a_loop_that_keeps_nothing_goes_through_one_buffer() -> None:
    pool = BufferPool((2, 3, 4, 3), torch.uint8, 4)

    places = {pool.take().data_ptr() for _ in range(100)}

    assert len(places) == 1


def test_no_more_than_max_kept_are_kept_and_none_is_given_twice() -> None:
    pool = BufferPool((2, 3, 4, 3), torch.uint8, 3)

    held = [pool.take() for _ in range(20)]

    assert len({tensor.data_ptr() for tensor in held}) == 20
    assert len(pool.arrays) == 3


def test_reused_buffers_come_in_turn_whoever_holds_them() -> None:
    pool = BufferPool((2, 3), torch.float32, 3, is_reused=True)

    held = [pool.take() for _ in range(7)]

    addresses = [tensor.data_ptr() for tensor in held]
    assert len(set(addresses[:3])) == 3
    assert addresses == [addresses[i % 3] for i in range(7)]
    assert {tensor.shape for tensor in held} == {(2, 3)}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_batches_of_reused_buffers_are_right_until_the_next_one(
    packed: PackedDataset, dtype: torch.dtype
) -> None:
    config = LoaderConfig(backend="torch", batch_size=5, drop_last=False)
    kept, reused = (
        open_loader(packed, "train", replace(config, reuse_buffers=is_reused), dtype=dtype)
        for is_reused in (False, True)
    )

    assert_same(read_epochs(reused, range(3)), read_epochs(kept, range(3)))
