"""Plan: which image, which crop, which flip, from (seed, epoch) alone.

From: the seed, the epoch and the number of images of a split.
To:   every backend, which follows it row by row; so all of them give the same batches.

N images, B images in a global batch, w ranks, b = B / w images of a batch on one rank, S steps.

For (seed, epoch, N) the words are `numpy.random.Philox(key=[seed, epoch]).random_raw(2 N)`,
whose raw stream numpy keeps stable; a test holds golden values. The first N words, sorted, give
the order; word N + i gives the crop and the flip of image i. Neither depends on batch size,
world size, backend or the step a run was resumed at.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvgg.kernels import compile_kernel
from tinyvgg.loading.config import CROP_PIXELS
from tinyvgg.loading.views import View

PADDING_ID = -1
PADDING_LABEL = -100  # what torch's cross-entropy ignores


@dataclass(frozen=True)
class Augmentation:
    """Crop and flip of every image of a split for one epoch, by row of the split.

    Attributes:
        dy: int32 [N], rows by which the crop window is moved down, -p to p, 4 by default.
        dx: int32 [N], columns by which it is moved right, -p to p.
        flip: bool [N], whether the cropped image is then mirrored.
    """

    dy: NDArray[np.int32]
    dx: NDArray[np.int32]
    flip: NDArray[np.bool_]


@dataclass(frozen=True)
class RankEpoch:
    """What is left of one epoch for one rank, one line a step.

    Attributes:
        rows: int64 [S, b], row of the split to read; padding repeats the last real row.
        ids: int64 [S, b], the same, with -1 for padding.
        labels: int64 [S, b], with -100 for padding.
        num_valid: int64 [S], real rows on this rank; they come first.
        dy, dx: int32 [S, b], crop offsets; zero without augmentation.
        flip: bool [S, b]; False without augmentation.
        is_augmented: whether any crop or flip may differ from zero.
        boxes: int32 [S, b, 4], top, left, height and width of what is shown of each image; None
            where images are shown whole.
        images_consumed: int64 [S], images of the epoch that all ranks have had after a step.
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    num_valid: NDArray[np.int64]
    dy: NDArray[np.int32]
    dx: NDArray[np.int32]
    flip: NDArray[np.bool_]
    is_augmented: bool
    images_consumed: NDArray[np.int64]
    boxes: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class LoaderState:
    """Where a loader stands, as JSON: the next batch begins at `images_consumed` of `epoch`."""

    seed: int
    epoch: int
    images_consumed: int
    manifest_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return the four fields as a dictionary."""
        return asdict(self)

    def next_epoch(self, num_epochs: int = 1) -> "LoaderState":
        """Return the start of a later epoch."""
        return replace(self, epoch=self.epoch + num_epochs, images_consumed=0)

    def after(self, planned: RankEpoch, step: int) -> "LoaderState":
        """Return where a loader stands after a step of what was planned from here."""
        if step == len(planned) - 1:
            return self.next_epoch()
        consumed = int(planned.images_consumed[step])  # `replace` would take 3 times as long
        return LoaderState(self.seed, self.epoch, consumed, self.manifest_sha256)


def draw_words(seed: int, epoch: int, num_images: int) -> NDArray[np.uint64]:
    """Return the 2 N random words of an epoch, uint64."""
    return _open_stream(seed, epoch).random_raw(2 * num_images)


def _open_stream(seed: int, epoch: int) -> np.random.Philox:
    key = np.array([seed, epoch], np.uint64)  # a list with a number from 2^63 on becomes float64
    return np.random.Philox(key=key)


def plan_order(seed: int, epoch: int, num_images: int) -> NDArray[np.int64]:
    """Return the order of an epoch: a permutation of the rows of a split, int64 [N]."""
    return argsort_words(_open_stream(seed, epoch).random_raw(num_images))  # the first half


def argsort_words(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the stable argsort of random words, int64 [N].

    Random words lie where their high bits say, give or take a few places: 50,000 are sorted in
    0.25 ms, where `numpy.argsort` takes 3.2 and `numpy.sort` of words with their positions 1.7.
    Words that are not random come out right, but take long.
    """
    order: NDArray[np.int64] = _argsort_spread(words, max(len(words) - 1, 1).bit_length())
    return order


@compile_kernel
def _argsort_spread(words: Any, num_bits: Any) -> Any:
    """Put every word into the bucket of its high bits, then let each fall into its place."""
    shift = np.uint64(64 - num_bits)
    ends = np.zeros((1 << num_bits) + 1, np.int64)
    for row in range(len(words)):
        ends[(words[row] >> shift) + np.uint64(1)] += 1
    for bucket in range(1 << num_bits):
        ends[bucket + 1] += ends[bucket]
    order = np.empty(len(words), np.int64)
    for row in range(len(words)):
        bucket_of_row = words[row] >> shift
        order[ends[bucket_of_row]] = row
        ends[bucket_of_row] += 1
    for place in range(1, len(words)):
        row, left = order[place], place
        while left > 0 and words[order[left - 1]] > words[row]:
            order[left] = order[left - 1]
            left -= 1
        order[left] = row
    return order


def plan_augmentation(
    seed: int, epoch: int, num_images: int, crop_pixels: int = CROP_PIXELS, *, flip: bool = True
) -> Augmentation:
    """Return crop and flip of every image for an epoch; neither depends on the other's setting.

    Args:
        seed: of the loader.
        epoch: from 0.
        num_images: of the split.
        crop_pixels: that a crop is off at most, p.
        flip: whether any image is mirrored.
    """
    words = draw_words(seed, epoch, num_images)[num_images:]
    span = np.uint64(2 * crop_pixels + 1)
    dy = (words % span).astype(np.int32) - crop_pixels
    dx = ((words >> np.uint64(16)) % span).astype(np.int32) - crop_pixels
    return Augmentation(dy, dx, (words >> np.uint64(63)).astype(np.bool_) & flip)


def count_steps(num_images: int, batch_size: int, *, drop_last: bool) -> int:
    """Return the steps that `num_images` make: full batches, and a padded one unless dropped."""
    return num_images // batch_size if drop_last else -(-num_images // batch_size)


def plan_rank_epoch(
    labels: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    shuffle: bool,
    augment: bool,
    drop_last: bool,
    crop_pixels: int = CROP_PIXELS,
    flip: bool = True,
    view: View | None = None,
    sizes: NDArray[np.int32] | None = None,
    first: int = 0,
    rank: int = 0,
    world_size: int = 1,
    chosen: NDArray[np.int64] | None = None,
) -> RankEpoch:
    """Lay out the steps of one epoch for one rank.

    Args:
        labels: int64 [N], of the split.
        seed: of the loader.
        epoch: from 0.
        batch_size: global; divisible by `world_size`.
        shuffle: whether to draw an order, or to go through the split as it is stored.
        augment: whether to draw crops and flips.
        drop_last: whether the images beyond the last full batch sit out.
        crop_pixels: that a drawn crop is off at most.
        flip: whether to draw flips with the crops.
        view: which box of each image is shown, instead of a crop; None: images are shown whole.
        sizes: int32 [N, 2], height and width of the images, for the view.
        first: images of this epoch that were consumed before; the steps begin there.
        rank: of this process.
        world_size: number of processes.
        chosen: int64 [n], the only rows that are read, in this order, instead of all.

    Returns:
        Rows, ids, labels, crops and flips of every step, [steps, b]; the caller's own.
    """
    num_images = len(labels)
    order = plan_order(seed, epoch, num_images) if shuffle else np.arange(num_images)
    order = order if chosen is None else chosen
    num_steps = count_steps(max(len(order) - first, 0), batch_size, drop_last=drop_last)
    local = batch_size // world_size
    steps = np.arange(num_steps)
    starts = first + steps * batch_size + rank * local
    positions = starts[:, None] + np.arange(local)
    is_valid = positions < len(order)
    rows = order[np.minimum(positions, len(order) - 1)] if num_steps else positions
    if augment:
        drawn = plan_augmentation(seed, epoch, num_images, crop_pixels, flip=flip)
        dy, dx, flips = drawn.dy[rows], drawn.dx[rows], drawn.flip[rows]
    else:
        dy = dx = np.zeros(rows.shape, np.int32)
        flips = np.zeros(rows.shape, np.bool_)
    boxes = None
    if view is not None and sizes is not None:
        words = draw_words(seed, epoch, num_images)[num_images:]
        boxes = view.boxes(words, sizes)[rows]
        dy = dx = np.zeros(rows.shape, np.int32)
    return RankEpoch(
        rows=rows,
        ids=np.where(is_valid, rows, PADDING_ID),
        labels=np.where(is_valid, labels[rows], PADDING_LABEL),
        num_valid=is_valid.sum(axis=1),
        dy=dy,
        dx=dx,
        flip=flips,
        is_augmented=augment,
        images_consumed=np.minimum(first + (steps + 1) * batch_size, len(order)),
        boxes=boxes,
    )


@dataclass(frozen=True, eq=False)
class EpochPlanner:
    """Plans epochs for one rank of a loader, and keeps the last two.

    Attributes:
        labels: int64 [N], of the split.
        batch_size, shuffle, augment, drop_last, rank, world_size: as in `plan_rank_epoch`.
        crop_pixels, flip, view, sizes, chosen: likewise.
    """

    labels: NDArray[np.int64]
    batch_size: int
    shuffle: bool
    augment: bool
    drop_last: bool
    rank: int = 0
    world_size: int = 1
    crop_pixels: int = CROP_PIXELS
    flip: bool = True
    view: View | None = None
    sizes: NDArray[np.int32] | None = None
    chosen: NDArray[np.int64] | None = None
    recent: dict[LoaderState, RankEpoch] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        """Steps of a full epoch."""
        num_images = len(self.labels if self.chosen is None else self.chosen)
        return count_steps(num_images, self.batch_size, drop_last=self.drop_last)

    @property
    def local_batch_size(self) -> int:
        """Images of a batch on this rank."""
        return self.batch_size // self.world_size

    def __call__(self, state: LoaderState) -> RankEpoch:
        """Return what is left of the epoch that `state` stands in."""
        if state not in self.recent:
            for oldest in list(self.recent)[:-1]:
                del self.recent[oldest]
            self.recent[state] = plan_rank_epoch(
                self.labels,
                seed=state.seed,
                epoch=state.epoch,
                batch_size=self.batch_size,
                shuffle=self.shuffle,
                augment=self.augment,
                drop_last=self.drop_last,
                crop_pixels=self.crop_pixels,
                flip=self.flip,
                view=self.view,
                sizes=self.sizes,
                first=state.images_consumed,
                rank=self.rank,
                world_size=self.world_size,
                chosen=self.chosen,
            )
        return self.recent[state]
