"""Muon: orthogonal updates of the convolutions, AdamW for everything else.

From: `step`, which builds it for recipes with `optimizer = "muon"`.
To:   the weights.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024. Without BatchNorm
the outputs of ReLU share a large mean, and with it all gradients share one direction, which plain
steps and Adam's follow. An update whose singular values are all near one goes everywhere alike.

`torch.optim.Muon` takes matrices only, and iterates on the whole m x n gradient. Here the iteration
runs on its m x m Gram matrix, about half the operations for the convolutions of a VGG. On CUDA the
matrices go through it in stacks, padded with zeros to a common size: 2 stacks instead of 10
matrices, since a launch costs the host more than a small product costs the device.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tinyvgg.compiling import compile_apart
from tinyvgg.ranks import find_rank

# Jordan's: steepest at zero; singular values from 0.1 of the norm on end between 0.6 and 1.3
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# airbench94_muon's; a fifth on the Gram matrix in bfloat16 has singular values as large as 4
NUM_ITERATIONS = 3
MOMENTUM = 0.95
# an update of a convolution has spectral norm 1, one of Adam's values about 1 each
ADAMW_SHARE = 0.03
STACK_ROWS = (128, 512)  # matrices of at most so many rows share a stack


def orthogonalize(
    matrices: Sequence[Tensor], dtype: torch.dtype = torch.bfloat16, *, stacked: bool = False
) -> list[Tensor]:
    """Return matrices with the same singular vectors and singular values near one.

    Args:
        matrices: floating [m, n], of any sizes; singular values under 0.01 of the norm stay small.
        dtype: that products are computed in; bfloat16 only where the device is fast in it.
        stacked: whether matrices of similar size share products.

    Returns:
        [m, n] each, in `dtype`.
    """
    wide = [matrix.T if matrix.size(0) > matrix.size(1) else matrix for matrix in matrices]
    done = list(wide)
    bounds = STACK_ROWS if stacked else ()
    for places in _group_by_rows(wide, bounds):
        rows, columns = (max(wide[place].size(side) for place in places) for side in (0, 1))
        stack = torch.stack(
            [
                functional.pad(
                    wide[place].to(dtype),
                    (0, columns - wide[place].size(1), 0, rows - wide[place].size(0)),
                )
                for place in places
            ]
        )
        for place, result in zip(places, orthogonalize_stack(stack), strict=True):
            done[place] = result[: wide[place].size(0), : wide[place].size(1)]
    return [
        result.T if matrix.size(0) > matrix.size(1) else result
        for matrix, result in zip(matrices, done, strict=True)
    ]


def orthogonalize_together(matrices: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return what `orthogonalize` does, each matrix computed by one rank and sent to all others.

    On a rank of one core it is a tenth of a step of 64 images, and the same on every rank. All
    ranks must call it together, with the same matrices on a CPU.
    """
    rank, world_size = find_rank()
    owners = _share_out(matrices, world_size)
    own = [matrix for matrix, owner in zip(matrices, owners, strict=True) if owner == rank]
    computed = iter(orthogonalize(own, dtype))
    found = [
        next(computed).contiguous() if owner == rank else torch.empty(matrix.shape, dtype=dtype)
        for matrix, owner in zip(matrices, owners, strict=True)
    ]
    for result, owner in zip(found, owners, strict=True):
        torch.distributed.broadcast(result, owner)
    return found


def _share_out(matrices: Sequence[Tensor], world_size: int) -> list[int]:
    """Return the rank that computes each matrix: the largest ones first, to who has least."""
    costs = [min(matrix.shape) * matrix.numel() for matrix in matrices]
    owners, loads = [0] * len(costs), [0] * world_size
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        owners[place] = loads.index(min(loads))
        loads[owners[place]] += costs[place]
    return owners


def _group_by_rows(matrices: Sequence[Tensor], bounds: Sequence[int]) -> list[list[int]]:
    """Return the positions of the matrices that share a stack: those under the same bound."""
    groups: dict[int, list[int]] = {}
    for place, matrix in enumerate(matrices):
        # over all bounds a matrix stands alone
        bound = next((bound for bound in bounds if matrix.size(0) <= bound), -1 - place)
        groups.setdefault(bound, []).append(place)
    return list(groups.values())


def orthogonalize_stack(stack: Tensor) -> Tensor:
    """Return `orthogonalize` of a stack [s, m, n], m <= n; rows and columns of zeros stay zero.

    A Newton-Schulz iteration X <- (a + b XX' + c (XX')^2) X. Every X is Q times the first one, and
    Q, a polynomial of R = XX', commutes with it; so Q and R are iterated, and X is met twice.
    """
    gram = torch.bmm(stack, stack.mT)
    # the trace is the squared norm; dividing m x m values by it, not m x n, saves 2 of 41 ms
    squared_norm = _diagonal_of(gram).sum(1, dtype=torch.float32).clamp(min=1e-14)
    gram = gram / squared_norm.to(gram.dtype)[:, None, None]
    product = factor = _factor_of(gram)
    for _ in range(NUM_ITERATIONS - 1):
        gram = torch.bmm(torch.bmm(factor, gram), factor)
        factor = _factor_of(gram)
        product = torch.bmm(product, factor)
    return torch.bmm(product * squared_norm.rsqrt().to(gram.dtype)[:, None, None], stack)


def _factor_of(gram: Tensor) -> Tensor:
    """Return a + b R + c R^2 of every R [m, m], what one iteration multiplies by."""
    a, b, c = COEFFICIENTS
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    _diagonal_of(factor).add_(a)
    return factor


def _diagonal_of(squares: Tensor) -> Tensor:
    """Return the view [s, m] of [s, m, m]; inductor warns of what `Tensor.diagonal` calls."""
    return squares.flatten(1)[:, :: squares.size(1) + 1]


def update_convolutions(
    weights: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    counts: list[Tensor],
    learning_rate: float | Tensor,
    decay: float,
    dtype: torch.dtype,
    stacked: bool,
    together: bool = False,
) -> None:
    """Move weights along their orthogonalized momentum, all in place.

    Args:
        weights: float32 [O, I, h, w] each.
        gradients: likewise; used up.
        means: likewise, of the gradients so far.
        counts: float32 [] each, steps so far.
        learning_rate: spectral norm of an update; a tensor [] if this function is compiled.
        decay: weight decay.
        dtype: of the products.
        stacked: whether matrices of similar size share them.
        together: whether ranks share the matrices; not with `stacked`, nor compiled.
    """
    torch._foreach_add_(counts, 1.0)
    torch._foreach_lerp_(means, gradients, 1 - MOMENTUM)
    torch._foreach_lerp_(gradients, means, MOMENTUM)  # Nesterov
    rows = [ahead.permute(0, 2, 3, 1) for ahead in gradients]  # channels-last: a view
    matrices = [ahead.flatten(1) for ahead in rows]
    if together:
        found = orthogonalize_together(matrices, dtype)
    else:
        found = orthogonalize(matrices, dtype, stacked=stacked)
    if decay:
        torch._foreach_mul_(weights, 1 - learning_rate * decay)
    steps = [
        update.reshape(ahead.shape).permute(0, 3, 1, 2)
        for update, ahead in zip(found, rows, strict=True)
    ]
    # a tall matrix has fewer directions than outputs (Jordan et al.)
    scales = [max(1.0, weight.shape[0] / weight[0].numel()) ** 0.5 for weight in weights]
    if isinstance(learning_rate, Tensor):  # compiled: one kernel for all
        rates = [learning_rate * scale for scale in scales]
        moves = [step.float() * rate for step, rate in zip(steps, rates, strict=True)]
        torch._foreach_sub_(weights, moves)
    else:
        for weight, step, scale in zip(weights, steps, scales, strict=True):
            weight.add_(step, alpha=-learning_rate * scale)


class Muon(torch.optim.AdamW):
    """AdamW that updates parameters of four dimensions by Muon.

    Args:
        groups: parameter groups as of `torch.optim.AdamW`; "lr" is Muon's, the spectral norm of an
            update; AdamW's is `ADAMW_SHARE` of it.
        dtype: that Muon's products are computed in.
        compiled: whether Muon's update goes through torch.compile.
        options: as of `torch.optim.AdamW`.
    """

    def __init__(
        self,
        groups: Any,
        *,
        dtype: torch.dtype = torch.bfloat16,
        compiled: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(groups, **options)
        self.dtype = dtype
        self.compiled = compiled
        self.update: Callable[..., None] = update_convolutions
        if compiled:
            self.update = compile_apart(update_convolutions)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters that have a gradient."""
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            self._update_group(group)
            group["lr"] *= ADAMW_SHARE
        loss = super().step(closure)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate
        return loss

    def _update_group(self, group: dict[str, Any]) -> None:
        """Update the convolutions of a group, and let AdamW pass over them."""
        weights = [p for p in group["params"] if p.dim() == 4 and p.grad is not None]
        if not weights:
            return
        for weight in weights:
            if not self.state[weight]:  # by AdamW's names, whose checkpoints hold a step and a mean
                self.state[weight]["step"] = torch.zeros((), device=weight.device)
                self.state[weight]["exp_avg"] = torch.zeros_like(weight)
        states = [self.state[weight] for weight in weights]
        rate = group["lr"]
        if self.compiled:  # a number would be compiled in
            rate = torch.full((), rate, device=weights[0].device)
        is_cpu = weights[0].device.type == "cpu"
        self.update(
            weights,
            [weight.grad for weight in weights],
            [state["exp_avg"] for state in states],
            [state["step"] for state in states],
            rate,
            group["weight_decay"],
            self.dtype,
            not is_cpu,
            is_cpu and not self.compiled and find_rank()[1] > 1,
        )
        for weight in weights:
            weight.grad = None
