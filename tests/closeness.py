"""How far two tensors are apart."""

from torch import Tensor


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over that of what was expected, computed in float64."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())
