import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvgg.loading.plan import (
    PADDING_ID,
    PADDING_LABEL,
    RankEpoch,
    argsort_words,
    count_steps,
    draw_words,
    plan_augmentation,
    plan_order,
    plan_rank_epoch,
)

BATCH_SIZE = 84  # divisible by every world size below
WORLD_SIZES = [1, 2, 3, 4, 7]
TAILS = [1, BATCH_SIZE - 1, BATCH_SIZE, BATCH_SIZE + 1, 3 * BATCH_SIZE, 200]
SEEDS = st.integers(0, 2**64 - 1)
EPOCHS = st.integers(0, 2**32)


def make_labels(num_images: int) -> np.ndarray:
    return np.arange(num_images) % 10


def plan_ranks(num_images: int, world_size: int, **fields: Any) -> list[RankEpoch]:
    """Return the epoch of every rank; shuffled, augmented and padded unless told otherwise."""
    settings: dict[str, Any] = {"seed": 5, "epoch": 2, "batch_size": BATCH_SIZE} | {
        "shuffle": True,
        "augment": True,
        "drop_last": False,
    }
    return [
        plan_rank_epoch(
            make_labels(num_images), rank=rank, world_size=world_size, **{**settings, **fields}
        )
        for rank in range(world_size)
    ]


def valid_lines(ranks: list[RankEpoch]) -> list[tuple[int, ...]]:
    """Return (id, label, dy, dx, flip) of every real row, step by step, rank by rank."""
    return [
        tuple(int(getattr(rank, name)[step, k]) for name in ("ids", "labels", "dy", "dx", "flip"))
        for step in range(len(ranks[0]))
        for rank in ranks
        for k in range(rank.num_valid[step])
    ]


def reference_lines(
    num_images: int, seed: int = 5, epoch: int = 2, crop_pixels: int = 4, flip: bool = True
) -> list[tuple[int, ...]]:
    """Return the same for a whole epoch, in Python's integers, from DESIGN.md's formulas."""
    raw = np.random.Philox(key=seed + (epoch << 64)).random_raw(2 * num_images)
    words = [int(word) for word in raw]
    order = sorted(range(num_images), key=lambda row: words[row])
    span, p = 2 * crop_pixels + 1, crop_pixels
    return [
        (row, row % 10, word % span - p, (word >> 16) % span - p, (word >> 63) * flip)
        for row in order
        for word in [words[num_images + row]]
    ]


def test_words_are_the_raw_philox_stream() -> None:
    assert draw_words(0, 0, 5).tolist() == [
        *(213000021201967259, 4455796210202625458, 2055444239878205049, 10411612076246414556),
        *(9267267987884836803, 5120919030223861725, 17460660323513034167, 18189711684604811196),
        *(4682203132107789405, 3598048050090122770),
    ]
    assert draw_words(7, 3, 2).tolist() == [
        *(8893702929424106994, 13357943582879616415, 927023405073346982, 5831511509215899605)
    ]


def test_the_largest_seed_has_words_of_its_own() -> None:
    assert draw_words(2**64 - 1, 1, 2).tolist() == [
        *(12079472389394220099, 14346830830234300966, 3255439652616677437, 1097474567947550444)
    ]
    assert draw_words(2**63, 0, 4).tolist() != draw_words(2**63 + 1, 0, 4).tolist()


def test_order_has_golden_values() -> None:
    assert plan_order(0, 0, 5).tolist() == [0, 2, 1, 4, 3]
    assert plan_order(7, 3, 6).tolist() == [2, 5, 3, 0, 4, 1]


def test_augmentation_has_golden_values() -> None:
    drawn = plan_augmentation(7, 3, 6)

    assert drawn.dy.tolist() == [3, 3, 2, 0, 3, 0]
    assert drawn.dx.tolist() == [-4, 3, 4, -4, -3, 0]
    assert drawn.flip.tolist() == [True, False, True, False, True, True]
    dtypes = [drawn.dy.dtype, drawn.dx.dtype, drawn.flip.dtype]
    assert dtypes == [np.dtype(np.int32), np.dtype(np.int32), np.dtype(np.bool_)]


def test_crops_of_other_sizes_have_golden_values() -> None:
    small, large = plan_augmentation(7, 3, 6, 1, flip=False), plan_augmentation(7, 3, 6, 8)

    assert small.dy.tolist() == [0, 0, -1, 0, 0, 0]
    assert large.dx.tolist() == [4, -4, 8, -5, 5, -5]
    assert not small.flip.any()
    assert large.flip.tolist() == plan_augmentation(7, 3, 6).flip.tolist()


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, epoch=EPOCHS, num_images=st.integers(0, 300))
def test_order_is_a_permutation(seed: int, epoch: int, num_images: int) -> None:
    assert sorted(plan_order(seed, epoch, num_images).tolist()) == list(range(num_images))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2**64 - 1) | st.sampled_from([0, 5, 2**63, 2**64 - 1]), max_size=99))
def test_argsort_of_words_is_numpys_stable_one(words: list[int]) -> None:
    array = np.array(words, np.uint64)

    assert argsort_words(array).tolist() == np.argsort(array, kind="stable").tolist()


@pytest.mark.parametrize("num_words", [65_535, 65_536, 65_537, 300_000])
def test_argsort_of_many_random_words_is_numpys(num_words: int) -> None:
    words = np.random.default_rng(num_words).integers(0, 2**64, num_words, np.uint64)
    words[::100] = words[7]

    assert np.array_equal(argsort_words(words), np.argsort(words, kind="stable"))


@given(
    seed=SEEDS,
    epoch=EPOCHS,
    num_images=st.integers(1, 200),
    crop_pixels=st.integers(0, 8),
    flip=st.booleans(),
)
def test_an_epoch_follows_the_formulas(
    seed: int, epoch: int, num_images: int, crop_pixels: int, flip: bool
) -> None:
    augmentation = {"crop_pixels": crop_pixels, "flip": flip}

    ranks = plan_ranks(num_images, 1, seed=seed, epoch=epoch, **augmentation)

    assert valid_lines(ranks) == reference_lines(num_images, seed, epoch, crop_pixels, flip)
    dtypes = [ranks[0].dy.dtype, ranks[0].dx.dtype, ranks[0].flip.dtype]
    assert dtypes == [np.dtype("i4"), np.dtype("i4"), np.dtype("?")]


def test_epochs_and_seeds_differ() -> None:
    keys = [(seed, epoch) for seed in (0, 1, 2**63) for epoch in range(3)]

    orders = {tuple(plan_order(seed, epoch, 50)) for seed, epoch in keys}
    flips = {tuple(plan_augmentation(seed, epoch, 50).flip) for seed, epoch in keys}

    assert len(orders) == len(flips) == len(keys)


def test_class_sorted_input_is_shuffled_evenly() -> None:
    labels = np.repeat(np.arange(20), 500)
    chi_squares = []
    for epoch in range(20):
        first_tenth = labels[plan_order(0, epoch, len(labels))[:1000]]
        counts = np.bincount(first_tenth, minlength=20)
        chi_squares.append(((counts - 50) ** 2 / 50).sum())

    # 19 degrees of freedom, times 0.9 for drawing without putting back
    assert 13 < np.mean(chi_squares) < 21
    assert max(chi_squares) < 45


def test_neighbors_in_the_order_do_not_follow_each_other() -> None:
    order = plan_order(3, 0, 10_000)

    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.04  # 4 standard deviations
    assert (np.diff(order) == 1).sum() < 8  # 1 expected


def test_every_offset_and_flip_is_equally_likely() -> None:
    drawn = plan_augmentation(1, 0, 16_200)

    crops = ((drawn.dy + 4) * 9 + drawn.dx + 4) * 2 + drawn.flip
    counts = np.bincount(crops, minlength=162)

    assert len(counts) == 162
    assert ((counts - 100) ** 2 / 100).sum() < 232  # chi-square, 161 degrees of freedom, p = 1e-4


@pytest.mark.parametrize(
    ("num_images", "steps", "full_steps"), [(1, 1, 0), (9, 1, 0), (10, 1, 1), (11, 2, 1)]
)
def test_steps_are_counted_with_and_without_a_short_last_batch(
    num_images: int, steps: int, full_steps: int
) -> None:
    assert count_steps(num_images, 10, drop_last=False) == steps
    assert count_steps(num_images, 10, drop_last=True) == full_steps


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("num_images", TAILS)
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_an_epoch_exactly(num_images: int, world_size: int, drop_last: bool) -> None:
    ranks = plan_ranks(num_images, world_size, drop_last=drop_last)

    kept = num_images // BATCH_SIZE * BATCH_SIZE if drop_last else num_images
    assert valid_lines(ranks) == reference_lines(num_images)[:kept]
    assert {len(rank) for rank in ranks} == {
        count_steps(num_images, BATCH_SIZE, drop_last=drop_last)
    }


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("num_images", TAILS)
def test_padding_stands_behind_the_real_rows(num_images: int, world_size: int) -> None:
    ranks = plan_ranks(num_images, world_size)

    for rank in ranks:
        is_real = np.arange(BATCH_SIZE // world_size) < rank.num_valid[:, None]
        assert np.array_equal(rank.ids != PADDING_ID, is_real)
        assert np.array_equal(rank.labels != PADDING_LABEL, is_real)
        assert np.array_equal(rank.ids[is_real], rank.rows[is_real])
        assert rank.rows.min() >= 0
        assert rank.rows.max() < num_images
    assert (PADDING_ID, PADDING_LABEL) == (-1, -100)
    assert sum(rank.num_valid.sum() for rank in ranks) == num_images


def test_a_batch_has_one_shape_on_every_rank_and_step() -> None:
    for world_size in WORLD_SIZES:
        for rank in plan_ranks(BATCH_SIZE + 1, world_size):
            for name in ("rows", "ids", "labels", "dy", "dx", "flip"):
                assert getattr(rank, name).shape == (2, BATCH_SIZE // world_size)
            assert rank.rows.dtype == rank.ids.dtype == rank.labels.dtype == np.int64


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_empty_split_has_no_steps(drop_last: bool) -> None:
    assert len(plan_ranks(0, 1, drop_last=drop_last)[0]) == 0


def test_without_shuffle_the_split_is_read_as_it_is_stored() -> None:
    ranks = plan_ranks(200, 2, shuffle=False)

    assert [line[0] for line in valid_lines(ranks)] == list(range(200))


def test_without_augment_nothing_is_cropped_or_flipped() -> None:
    ranks = plan_ranks(200, 2, augment=False)

    assert {line[2:] for line in valid_lines(ranks)} == {(0, 0, 0)}
    assert [line[0] for line in valid_lines(ranks)] == [line[0] for line in reference_lines(200)]
    assert not ranks[0].is_augmented


@settings(deadline=None, max_examples=150)
@given(
    num_images=st.integers(1, 150),
    first=st.integers(0, 160),
    local=st.integers(1, 40),
    world_size=st.sampled_from(WORLD_SIZES),
    drop_last=st.booleans(),
)
def test_a_resumed_epoch_is_the_rest_of_it(
    num_images: int, first: int, local: int, world_size: int, drop_last: bool
) -> None:
    batch_size = local * world_size

    ranks = plan_ranks(
        num_images, world_size, first=first, batch_size=batch_size, drop_last=drop_last
    )

    rest = reference_lines(num_images)[first:]
    if drop_last:
        rest = rest[: len(rest) // batch_size * batch_size]
    assert valid_lines(ranks) == rest


def test_crop_and_flip_do_not_depend_on_batch_size_world_size_or_resume() -> None:
    expected = {line[0]: line[2:] for line in reference_lines(200)}

    for changes in ({"batch_size": 42}, {"batch_size": 2 * BATCH_SIZE}, {"first": 101}):
        for world_size in (1, 2, 3, 7):
            found = {
                line[0]: line[2:] for line in valid_lines(plan_ranks(200, world_size, **changes))
            }
            assert found.items() <= expected.items()


def test_images_consumed_counts_all_ranks_and_no_padding() -> None:
    for world_size in WORLD_SIZES:
        for rank in plan_ranks(200, world_size, first=20):
            assert rank.images_consumed.tolist() == [104, 188, 200]


def test_planning_twice_gives_the_same_epoch() -> None:
    (once,), (twice,) = plan_ranks(200, 1), plan_ranks(200, 1)

    for field in dataclasses.fields(RankEpoch):
        assert np.array_equal(getattr(once, field.name), getattr(twice, field.name))
