"""Muon: orthogonal updates of the convolutions, AdamW for everything else.

From: `step`, which builds it for recipes with `optimizer = "muon"`.
To:   the weights.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024. Without BatchNorm
the outputs of ReLU share a large mean, and with it all gradients share one direction, which plain
steps and Adam's follow. An update whose singular values are all near one goes everywhere alike.

`torch.optim.Muon` takes matrices only, and iterates on the whole m x n gradient. Here the iteration
runs on its m x m Gram matrix, about half the operations for the convolutions of a VGG.
"""

from typing import Any

import torch
from torch import Tensor

# Jordan's: steepest at zero; singular values from 0.1 of the norm on end between 0.6 and 1.3
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# airbench94_muon's; a fifth on the Gram matrix in bfloat16 has singular values as large as 4
NUM_ITERATIONS = 3
MOMENTUM = 0.95
# an update of a convolution has spectral norm 1, one of Adam's values about 1 each
ADAMW_SHARE = 0.03


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return a matrix with the same singular vectors and singular values near one.

    A Newton-Schulz iteration X <- (a + b XX' + c (XX')^2) X. Every X is Q times the first one, and
    Q, a polynomial of R = XX', commutes with it; so Q and R are iterated, and X is met twice.

    Args:
        matrix: floating [m, n]; singular values under 0.01 of its norm stay small.

    Returns:
        [m, n], bfloat16.
    """
    is_tall = matrix.size(0) > matrix.size(1)
    wide = (matrix.T if is_tall else matrix).bfloat16()
    gram = wide @ wide.T
    # the trace is the squared norm; dividing m x m values by it, not m x n, saves 2 of 41 ms
    squared_norm = gram.diagonal().sum(dtype=torch.float32).clamp(min=1e-14)
    gram = gram / squared_norm.bfloat16()
    product = factor = _factor_of(gram)
    for _ in range(NUM_ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = _factor_of(gram)
        product = product @ factor
    wide = (product * squared_norm.rsqrt().bfloat16()) @ wide
    return wide.T if is_tall else wide


def _factor_of(gram: Tensor) -> Tensor:
    """Return a + b R + c R^2 of R [m, m], what one iteration multiplies by."""
    a, b, c = COEFFICIENTS
    identity = torch.eye(gram.size(0), dtype=gram.dtype, device=gram.device)
    return torch.addmm(gram, gram, gram, beta=b, alpha=c).add_(identity, alpha=a)


class Muon(torch.optim.AdamW):
    """AdamW that updates parameters of four dimensions by Muon.

    Args:
        groups: parameter groups as of `torch.optim.AdamW`; "lr" is Muon's, the spectral norm of an
            update; AdamW's is `ADAMW_SHARE` of it.
        options: as of `torch.optim.AdamW`.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters that have a gradient."""
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.dim() == 4 and weight.grad is not None:
                    gradient, weight.grad = weight.grad, None  # AdamW passes over it
                    self._update_convolution(weight, gradient, group["lr"], group["weight_decay"])
            group["lr"] *= ADAMW_SHARE
        loss = super().step(closure)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate
        return loss

    def _update_convolution(
        self, weight: Tensor, gradient: Tensor, learning_rate: float, decay: float
    ) -> None:
        """Move a convolution's weights [O, I, h, w] along its orthogonalized momentum."""
        state = self.state[weight]
        if not state:  # by AdamW's names, whose checkpoints hold a step and a mean
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight)
        state["step"] += 1
        mean = state["exp_avg"].lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp_(mean, MOMENTUM)  # Nesterov; the gradient is not needed again
        rows = ahead.permute(0, 2, 3, 1)  # channels-last: a view
        update = orthogonalize(rows.flatten(1)).view(rows.shape).permute(0, 3, 1, 2)
        # a tall matrix has fewer directions than outputs (Jordan et al.)
        scale = max(1.0, weight.shape[0] / weight[0].numel()) ** 0.5
        if decay:
            weight.mul_(1 - learning_rate * decay)
        weight.add_(update, alpha=-learning_rate * scale)
