import threading
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch

from tinyvgg.loading.batch import Normalization, PixelPass
from tinyvgg.loading.host_batches import stored_batches, view_memory
from tinyvgg.loading.host_kernel import HostKernel
from tinyvgg.loading.plan import plan_rank_epoch

MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2764, 0.2689, 0.2816)
FILL = (122, 114, 101)  # round(255 mean)
DTYPES = [torch.uint8, torch.float32, torch.bfloat16, torch.float16]
SIZES = [(64, 64), (5, 7), (64, 48), (1, 1), (2, 3), (3, 2), (9, 1)]
MOST = 8  # pixels that a crop may be off
CROPS = np.array(list(product(range(-MOST, MOST + 1), range(-MOST, MOST + 1), (0, 1))))  # all 578


def draw_images(num_images: int, height: int, width: int) -> np.ndarray:
    shape = (num_images, height, width, 3)
    return np.random.default_rng(height * width).integers(0, 256, shape).astype(np.uint8)


def crop_slowly(image: np.ndarray, dy: int, dx: int, flip: bool) -> np.ndarray:
    """Pad pixels of the mean color, cut out the window, mirror it."""
    height, width, _ = image.shape
    padded = np.stack(
        [np.pad(image[..., c], MOST, constant_values=FILL[c]) for c in range(3)], axis=-1
    )
    window = padded[MOST + dy : MOST + dy + height, MOST + dx : MOST + dx + width]
    return window[:, ::-1] if flip else window


def normalize_slowly(pixels: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Multiply and add in float32, each rounded, then round to `dtype`."""
    if dtype == torch.uint8:
        return torch.from_numpy(pixels)
    scale = np.array([1 / (255 * std) for std in STD]).astype(np.float32)
    shift = np.array([-mean / std for mean, std in zip(MEAN, STD, strict=True)]).astype(np.float32)
    scaled = pixels.astype(np.float32) * scale
    return torch.from_numpy(scaled + shift).to(dtype)


def write_images(
    images: np.ndarray,
    crops: np.ndarray,
    dtype: torch.dtype,
    is_augmented: bool = True,
) -> torch.Tensor:
    """Return what the kernel writes for `images` in reverse order, and check around it."""
    kernel = HostKernel(PixelPass(images.shape[1:], Normalization(MEAN, STD), dtype))
    addresses = images.ctypes.data + np.arange(len(images))[::-1] * images[0].nbytes
    guarded = kernel.empty(len(images) + 2)  # the first and the last are not the kernel's
    guarded.view(torch.uint8).fill_(77)
    kernel.write(
        addresses,
        crops[:, 0].astype(np.int32),
        crops[:, 1].astype(np.int32),
        crops[:, 2].astype(np.bool_),
        guarded[1:-1],
        is_augmented=is_augmented,
    )
    assert (guarded[[0, -1]].view(torch.uint8) == 77).all()
    return guarded[1:-1]


def write_slowly(images: np.ndarray, crops: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    pixels = [crop_slowly(image, *crop) for image, crop in zip(images[::-1], crops, strict=True)]
    return normalize_slowly(np.stack(pixels), dtype)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(
        left.view(torch.uint8), right.view(torch.uint8)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_crop_and_flip_equals_the_slow_reference(
    size: tuple[int, int], dtype: torch.dtype
) -> None:
    images = draw_images(len(CROPS), *size)

    written = write_images(images, CROPS, dtype)

    assert same_bits(written, write_slowly(images, CROPS, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_pixel_value_is_normalized_as_the_slow_reference_does(dtype: torch.dtype) -> None:
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)

    written = write_images(images, np.zeros((1, 3)), dtype)

    assert same_bits(written, normalize_slowly(images, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_images_that_are_not_augmented_are_written_whole(dtype: torch.dtype) -> None:
    images = draw_images(6, 5, 7)

    written = write_images(images, np.zeros((6, 3)), dtype, is_augmented=False)

    assert same_bits(written, normalize_slowly(images[::-1].copy(), dtype))


@pytest.mark.parametrize("is_augmented", [False, True])
def test_stored_images_are_only_read(is_augmented: bool) -> None:
    images = draw_images(4, 5, 7)
    before = images.copy()

    write_images(images, np.zeros((4, 3)), torch.uint8, is_augmented=is_augmented)

    assert np.array_equal(images, before)


@pytest.fixture(params=[1, 2, 3, 8])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Torch's number of threads, for one test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_threads_end_with_the_epoch_or_where_it_is_left(num_threads: int) -> None:
    before = set(threading.enumerate())
    images = draw_images(12, 5, 7)
    plan = plan_rank_epoch(
        np.arange(12),
        seed=0,
        epoch=0,
        batch_size=1,
        shuffle=True,
        augment=True,
        drop_last=False,
    )
    kernel = HostKernel(PixelPass((5, 7, 3), Normalization(MEAN, STD), torch.uint8))
    addresses = images.ctypes.data + np.arange(12) * images[0].nbytes

    batches = stored_batches(kernel, addresses, plan)
    next(batches)
    assert 1 <= len(set(threading.enumerate()) - before) <= num_threads
    batches.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) == before

    assert len(list(stored_batches(kernel, addresses, plan))) == 12
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.usefixtures("num_threads")
def test_batches_of_an_epoch_follow_the_plan(augment: bool) -> None:
    images = draw_images(11, 5, 7)
    plan = plan_rank_epoch(
        np.arange(11) % 3,
        seed=0,
        epoch=0,
        batch_size=4,
        shuffle=True,
        augment=augment,
        drop_last=False,
    )
    kernel = HostKernel(PixelPass((5, 7, 3), Normalization(MEAN, STD), torch.uint8))
    addresses = images.ctypes.data + np.arange(11) * images[0].nbytes

    steps = 0
    for step, batch in enumerate(stored_batches(kernel, addresses, plan)):
        crops = zip(plan.rows[step], plan.dy[step], plan.dx[step], plan.flip[step], strict=True)
        expected = np.stack([crop_slowly(images[row], *crop) for row, *crop in crops])
        assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), expected)
        assert batch.ids.tolist() == plan.ids[step].tolist()
        assert batch.labels.tolist() == plan.labels[step].tolist()
        assert batch.num_valid == plan.num_valid[step]
        steps += 1

    assert steps == 3


def test_images_as_stored_may_lie_anywhere() -> None:
    parts = [draw_images(5, 5, 7), draw_images(6, 5, 7), draw_images(3, 5, 7)]
    images = np.concatenate(parts)
    addresses = np.concatenate([p.ctypes.data + np.arange(len(p)) * p[0].nbytes for p in parts])
    memory = view_memory(addresses, images[0].nbytes)
    assert memory is not None

    found = torch.index_select(memory, 0, torch.from_numpy(addresses - addresses.min()))

    assert np.array_equal(found.numpy(), images.reshape(14, -1))


def test_images_too_far_apart_for_one_tensor_are_copied_by_threads() -> None:
    assert view_memory(np.array([2**12, 2**46]), 2**20) is None
