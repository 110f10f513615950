"""Muon: singular values near one, torch's own Muon, and AdamW, each step by step."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim._muon import _zeropower_via_newtonschulz

from tests.closeness import relative_error
from tests.rank_processes import run_ranks
from tinyvgg.training.muon import (
    ADAMW_SHARE,
    COEFFICIENTS,
    MOMENTUM,
    NUM_ITERATIONS,
    Muon,
    orthogonalize,
    orthogonalize_together,
)

# what bfloat16, 8 bits, loses over a dozen products of matrices; found: up to 0.031
TOLERANCE = 0.05


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(64, 5))
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def backward(network: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    network.zero_grad()
    images, labels = torch.randn(4, 3, 6, 6), torch.randint(5, (4,))
    torch.autograd.backward(nn.functional.cross_entropy(network(images), labels))


@pytest.mark.parametrize("shape", [(64, 27), (64, 576), (128, 128), (512, 2304)])
def test_orthogonalize_iterates_as_torch_does_on_the_whole_matrix(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    gradient = torch.randn(shape) * torch.rand(shape[1]) ** 2

    (found,) = orthogonalize([gradient])

    expected = _zeropower_via_newtonschulz(gradient, COEFFICIENTS, NUM_ITERATIONS, 1e-7)
    assert found.shape == shape
    assert relative_error(found, expected) < TOLERANCE


def test_orthogonalize_keeps_the_singular_vectors_and_brings_the_values_to_one() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(32, 96, dtype=torch.float64)
    u, expected, v = torch.linalg.svd(matrix, full_matrices=False)
    expected /= matrix.norm()
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        expected = a * expected + b * expected**3 + c * expected**5

    (orthogonal,) = orthogonalize([matrix])
    found = u.T @ orthogonal.double() @ v.T

    assert relative_error(found, torch.diag(expected)) < TOLERANCE
    assert found.diagonal().min() > 0.6
    assert found.diagonal().max() < 1.3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02)])
def test_matrices_in_stacks_become_what_they_become_alone(
    dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    shapes = [(64, 27), (64, 576), (128, 1152), (256, 1152), (512, 2304), (700, 800)]
    matrices = [torch.randn(shape) * torch.rand(shape[1]) ** 2 for shape in shapes]

    alone = orthogonalize(matrices, dtype)
    stacked = orthogonalize(matrices, dtype, stacked=True)

    for shape, one, other in zip(shapes, stacked, alone, strict=True):
        assert one.shape == other.shape == shape
        assert relative_error(one, other) < tolerance


@pytest.mark.slow
def test_the_compiled_update_is_the_eager_one() -> None:
    networks = [make_network() for _ in range(2)]
    optimizers = [
        Muon(
            network.parameters(), dtype=torch.float32, compiled=compiled, lr=0.02, weight_decay=0.1
        )
        for network, compiled in zip(networks, (False, True), strict=True)
    ]

    for seed, rate in enumerate((0.02, 0.01, 0.005)):  # a rate compiled in would stay the first
        for network, optimizer in zip(networks, optimizers, strict=True):
            backward(network, seed)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    start = make_network()
    for eager, compiled, before in zip(*(n.parameters() for n in (*networks, start)), strict=True):
        assert relative_error(compiled - before, eager - before) < 1e-4


def test_a_gradient_of_zero_moves_nothing() -> None:
    (found,) = orthogonalize([torch.zeros(8, 27)])

    assert torch.equal(found, torch.zeros(8, 27).bfloat16())


def test_convolutions_follow_torchs_muon_and_the_rest_adamw() -> None:
    network = make_network()
    optimizer = Muon(network.parameters(), lr=0.02, betas=(0.9, 0.99), weight_decay=0.1)
    convolutions = [p for p in network.parameters() if p.dim() == 4]
    rest = [p for p in network.parameters() if p.dim() < 4]
    matrices = [nn.Parameter(to_matrix(weight)) for weight in convolutions]
    others = [nn.Parameter(parameter.detach().clone()) for parameter in rest]
    muon = torch.optim.Muon(
        matrices, lr=0.02, weight_decay=0.1, momentum=MOMENTUM, ns_steps=NUM_ITERATIONS
    )
    share = 0.02 * ADAMW_SHARE
    adamw = torch.optim.AdamW(others, lr=share, betas=(0.9, 0.99), weight_decay=0.1)

    start = [matrix.detach().clone() for matrix in matrices]
    for seed in range(5):
        backward(network, seed)
        for copied, weight in zip(matrices, convolutions, strict=True):
            assert weight.grad is not None
            copied.grad = to_matrix(weight.grad)
        for copied, parameter in zip(others, rest, strict=True):
            assert parameter.grad is not None
            copied.grad = parameter.grad.clone()
        optimizer.step()
        muon.step()
        adamw.step()

    for copied, weight, before in zip(matrices, convolutions, start, strict=True):
        assert relative_error(to_matrix(weight) - before, copied - before) < TOLERANCE
    for copied, parameter in zip(others, rest, strict=True):
        torch.testing.assert_close(parameter, copied)
    assert {group["lr"] for group in optimizer.param_groups} == {0.02}


@pytest.mark.parametrize("fused", [True, False])
def test_a_loaded_optimizer_goes_on_bit_equal(fused: bool) -> None:
    network = make_network()
    optimizer = Muon(network.parameters(), lr=0.02, fused=fused)
    backward(network, 0)
    optimizer.step()
    resumed_network = copy.deepcopy(network)
    resumed = Muon(resumed_network.parameters(), lr=0.02, fused=fused)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    for each, step in ((network, optimizer), (resumed_network, resumed)):
        for seed in (1, 2):
            backward(each, seed)
            step.step()

    pairs = zip(network.parameters(), resumed_network.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def to_matrix(weight: Tensor) -> Tensor:
    return weight.detach().permute(0, 2, 3, 1).flatten(1).clone()


def orthogonalize_drawn(together: bool) -> list[list[int]]:
    """Return the bits of the orthogonalized gradients of a small network."""
    torch.manual_seed(0)
    shapes = [(8, 27), (16, 72), (16, 144), (40, 16), (3, 5)]
    matrices = [torch.randn(shape) for shape in shapes]
    found = (
        orthogonalize_together(matrices, torch.bfloat16) if together else orthogonalize(matrices)
    )
    return [matrix.contiguous().view(torch.int16).flatten().tolist() for matrix in found]


@pytest.mark.parametrize("world_size", [2, 7])
def test_ranks_together_orthogonalize_to_the_bits_of_one(world_size: int, tmp_path: Path) -> None:
    found = run_ranks(world_size, orthogonalize_drawn, True, out=tmp_path / "together")

    assert found == run_ranks(1, orthogonalize_drawn, False, out=tmp_path / "alone") * world_size
