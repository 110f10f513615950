import numpy as np
import pytest
import torch
from torch import nn

from tinyvgg.model.dropout import Dropout

TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("p", [0.1, 0.4, 0.75])
def test_values_are_zero_with_probability_p_and_scaled_otherwise(
    dtype: torch.dtype, p: float
) -> None:
    values = torch.ones(8, 64, 32, 32, dtype=dtype)
    torch.manual_seed(0)

    found = Dropout(p)(values)

    scale = torch.tensor(1 / (1 - p), dtype=dtype)
    assert set(found.unique().tolist()) == {0.0, scale.item()}
    num_values = values.numel()
    error = 5 * (p * (1 - p) / num_values) ** 0.5  # five standard deviations
    assert abs((found == 0).float().mean().item() - p) < error


def test_strides_are_kept_and_gradients_follow_the_mask() -> None:
    values = torch.randn(4, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    values.requires_grad_()

    found = Dropout(0.5)(values)
    found.sum().backward()

    assert found.is_contiguous(memory_format=torch.channels_last)
    assert values.grad is not None
    assert torch.equal(found.detach(), values.detach() * values.grad)
    assert set(values.grad.unique().tolist()) == {0.0, 2.0}


def test_the_generator_of_torch_decides_the_mask() -> None:
    values = torch.ones(1000)
    torch.manual_seed(3)
    first, second = Dropout(0.5)(values), Dropout(0.5)(values)
    torch.manual_seed(3)
    again = Dropout(0.5)(values)

    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_masks_are_not_correlated_within_or_between_calls() -> None:
    torch.manual_seed(0)
    masks = np.stack([Dropout(0.5)(torch.ones(2**18)).numpy() for _ in range(4)]) - 1
    num_values = masks.shape[1]

    for lag in range(1, 9):
        assert abs((masks[:, lag:] * masks[:, :-lag]).mean()) < 5 / (4 * num_values) ** 0.5
    between = masks @ masks.T / num_values
    assert np.abs(between - np.eye(4)).max() < 5 / num_values**0.5


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 1023])
def test_every_value_of_any_count_is_written(count: int) -> None:
    values = torch.ones(count)

    drawn = torch.stack([Dropout(0.5)(values) for _ in range(64)])

    assert set(drawn.unique().tolist()) == {0.0, 2.0}
    assert (drawn.mean(dim=0) > 0).all()


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_eval_mode_and_the_ends_of_p_are_those_of_torch(p: float) -> None:
    values = torch.randn(100)

    assert torch.equal(Dropout(p).eval()(values), values)
    if p in (0.0, 1.0):
        assert torch.equal(Dropout(p)(values), nn.Dropout(p)(values))
