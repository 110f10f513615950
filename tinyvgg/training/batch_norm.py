"""BatchNorm in step: mean and variance over the images of all ranks, not over each rank's own.

From: `build`, where the recipe asks for it and there are several ranks.
To:   the network, in place: parameters, buffers and their names stay.

On CUDA it is torch's SyncBatchNorm, which refuses a CPU. Here ranks gather mean, variance and count
of what they have, and add the two sums up that the gradient needs: one exchange each way. Gradients
are those of the loss summed over all ranks, which DistributedDataParallel then divides by their
number, so a step equals that of one process on the whole batch.
"""

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from tinyvgg.ranks import is_distributed


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a network whose BatchNorm layers take the images of all ranks together.

    Args:
        model: changed in place, unless it is such a layer itself.
        device: of the network.
    """
    if device.type != "cpu":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    if isinstance(model, _BatchNorm) and not isinstance(model, nn.SyncBatchNorm):
        return RankBatchNorm.of(model)
    for name, child in model.named_children():
        replacement = synchronize_batch_norm(child, device)
        if replacement is not child:
            setattr(model, name, replacement)
    return model


class RankBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all ranks, [B, C, ...], on a CPU.

    In eval mode, and where a process is alone, it is torch's own.
    """

    @classmethod
    def of(cls, layer: _BatchNorm) -> "RankBatchNorm":
        """Return the layer with the parameters and buffers of another one."""
        found = cls(
            layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
        )
        found.weight, found.bias = layer.weight, layer.bias
        found.running_mean, found.running_var = layer.running_mean, layer.running_var
        found.num_batches_tracked = layer.num_batches_tracked
        found.training = layer.training
        return found

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's own name
        if input.dim() < 2:
            raise ValueError(f"expected [B, C, ...], got {input.dim()} dimensions")

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Normalize by the statistics of all ranks; all must call it together.

        Args:
            input: floating [B, C, ...], B 1 at least.
        """
        if not self.training or not is_distributed():
            return super().forward(input)
        self._check_input_dim(input)
        output: Tensor
        output, mean, var, count = _NormalizeOverRanks.apply(
            input, self.weight, self.bias, self.eps
        )
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                share = self.momentum
                if share is None:
                    share = 1 / float(self.num_batches_tracked)
                unbiased = var * (count / (count - 1).clamp(min=1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        return output


class _NormalizeOverRanks(torch.autograd.Function):
    """x [B, C, ...] to its normalized values, with mean and biased variance [C], and the count."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [0, *range(2, x.dim())]
        wide = torch.promote_types(x.dtype, torch.float32)
        own_var, own_mean = torch.var_mean(x.to(wide), dims, correction=0)
        own_count = own_mean.new_tensor([x.numel() / x.shape[1]])
        own = torch.cat([own_mean, own_var, own_count]).double()
        parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, own)
        means, variances, counts = torch.stack(parts).split([x.shape[1], x.shape[1], 1], dim=1)
        count = counts.sum()
        mean = (means * counts).sum(0) / count
        var = ((variances + (means - mean) ** 2) * counts).sum(0) / count
        mean, var = mean.to(wide), var.to(wide)
        output = functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
        inverse = (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(mean, var, count)
        return output, mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        shape = [1, -1, *[1] * (x.dim() - 2)]
        dims = [0, *range(2, x.dim())]
        gradient = gradients[0].to(mean.dtype)
        normalized = (x.to(mean.dtype) - mean.view(shape)) * inverse.view(shape)
        sums = torch.stack([gradient.sum(dims), (gradient * normalized).sum(dims)])
        own_bias, own_weight = sums.clone()
        torch.distributed.all_reduce(sums)
        of_mean, of_spread = sums / count.to(sums.dtype)
        scale = inverse if weight is None else inverse * weight.to(inverse.dtype)
        left = gradient - of_mean.view(shape) - normalized * of_spread.view(shape)
        return (
            (left * scale.view(shape)).to(x.dtype),
            None if weight is None else own_weight.to(weight.dtype),
            own_bias if ctx.has_bias else None,
            None,
        )
