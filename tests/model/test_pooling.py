import pytest
import torch
from torch.nn import functional

from tinyvgg.compiling import compile_apart
from tinyvgg.model.pooling import PlacedPoolRelu, can_pool, max_pool_relu, pool_relu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def tied_images(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return images of few values, channels-last, so that many windows hold equal ones."""
    torch.manual_seed(sum(shape))
    images = torch.randn(shape).mul(2).round().div(2)  # zeros of both signs among them
    return images.to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (5, 16, 6, 10), (2, 64, 12, 8)], ids=str)
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_outputs_and_gradients_equal_torchs_bit_by_bit(
    dtype: torch.dtype, shape: tuple[int, ...], num_threads: int
) -> None:
    images = tied_images(shape, dtype)
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    before = torch.get_num_threads()

    torch.set_num_threads(num_threads)
    try:
        found = pool_relu(ours)
        gradient = torch.randn_like(found)
        torch.autograd.backward(found, gradient)
    finally:
        torch.set_num_threads(before)
    expected = functional.relu(functional.max_pool2d(theirs, 2))
    torch.autograd.backward(expected, gradient)

    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(ours.grad, theirs.grad)


def test_a_gradient_in_another_layout_is_taken() -> None:
    images = tied_images((2, 8, 4, 4), torch.float32).requires_grad_()
    expected = images.detach().clone().requires_grad_()
    gradient = torch.randn(2, 8, 2, 2)

    torch.autograd.backward(pool_relu(images), gradient)
    torch.autograd.backward(functional.relu(functional.max_pool2d(expected, 2)), gradient)

    assert images.grad is not None
    assert expected.grad is not None
    assert torch.equal(images.grad, expected.grad)


def test_what_the_kernel_cannot_take_is_left_to_torch() -> None:
    images = tied_images((2, 8, 4, 4), torch.float32)

    assert can_pool(images)
    assert not can_pool(images[:, :, :3].contiguous(memory_format=torch.channels_last))
    assert not can_pool(images[..., :3].contiguous(memory_format=torch.channels_last))
    assert not can_pool(images.contiguous())
    assert not can_pool(images.double())


ODD_SHAPES = [(1, 3, 2, 2), (3, 4, 3, 5), (2, 16, 6, 6), (2, 8, 7, 12)]


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
def test_the_pointwise_form_equals_torchs_bit_by_bit(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    images = tied_images(shape, dtype).requires_grad_()
    expected = functional.relu(functional.max_pool2d(images, 2))
    weights = torch.randn(expected.shape).to(dtype)
    (expected_gradient,) = torch.autograd.grad(expected, images, weights)

    pooled, places = PlacedPoolRelu.apply(images)
    (gradient,) = torch.autograd.grad(pooled, images, weights)

    assert torch.equal(pooled, expected)
    assert torch.equal(gradient, expected_gradient)
    assert places.dtype == torch.uint8


def test_a_nan_anywhere_in_a_window_is_its_maximum_as_in_torch() -> None:
    windows = torch.randn(4, 1, 2, 2)
    windows.view(4, 4).fill_diagonal_(float("nan"))

    pooled, _ = PlacedPoolRelu.apply(windows)

    assert pooled.isnan().all()
    assert functional.relu(functional.max_pool2d(windows, 2)).isnan().all()


@pytest.mark.slow
def test_compiled_outputs_and_gradients_equal_torchs_bit_by_bit() -> None:
    given = [tied_images(shape, dtype) for shape in ODD_SHAPES for dtype in DTYPES]
    ours, theirs = ([images.clone().requires_grad_() for images in given] for _ in range(2))
    expected = [functional.relu(functional.max_pool2d(images, 2)) for images in theirs]
    weights = [torch.randn(out.shape).to(out.dtype) for out in expected]

    def pool_all(images: list[torch.Tensor]) -> list[torch.Tensor]:
        return [max_pool_relu(one) for one in images]

    found = compile_apart(pool_all)(ours)
    torch.autograd.backward(found, weights)
    torch.autograd.backward(expected, weights)

    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
