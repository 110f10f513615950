"""Dropout that a CPU can afford: a mask is a hash of counters, written in one pass.

From: `model`, after each of its groups of convolutions.
To:   the same place, at a few hundredths of the cost.

torch draws a CPU mask from one serial Mersenne Twister: 15 ns a value, 5 to 9 % of a training
step; a vectorized hash takes 0.16 ns. Value i of a mask is 16 bits of SplitMix64 (Steele, Lea,
Flood, "Fast splittable pseudorandom number generators", 2014) of i and a 63-bit key, which is
drawn from torch's generator: `torch.manual_seed` and a saved generator state still decide it.
On other devices, in float64 and under torch.compile it is torch's own dropout.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyvgg.kernels import compile_kernel

BITS_TYPES = {  # a kept value's mask is the bits of 1 / (1 - p) in its own type
    torch.float32: torch.uint32,
    torch.bfloat16: torch.uint16,
    torch.float16: torch.uint16,
}


@compile_kernel
def _write_mask(out, key, threshold, kept):  # type: ignore[no-untyped-def]
    """Fill `out` [n] with `kept` where 16 hashed bits are at least `threshold`, else with 0."""
    for i in range((out.size + 3) // 4):
        z = key + np.uint64(i) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        for part in range(min(4, out.size - 4 * i)):
            is_kept = ((z >> np.uint64(16 * part)) & np.uint64(0xFFFF)) >= threshold
            out[4 * i + part] = kept if is_kept else 0


class Dropout(nn.Dropout):
    """`nn.Dropout` with a cheaper mask on a CPU; p is exact to 2^-17 there."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Zero values with probability p and scale the rest by 1 / (1 - p), in training only.

        Args:
            input: floating, any shape; strides are kept.
        """
        is_plain = torch.compiler.is_compiling() or input.device.type != "cpu"
        if is_plain or not self.training or not 0 < self.p < 1 or input.dtype not in BITS_TYPES:
            return functional.dropout(input, self.p, self.training)
        mask = torch.empty_like(input)
        bits_type = BITS_TYPES[input.dtype]
        kept = torch.tensor(1 / (1 - self.p), dtype=input.dtype).view(bits_type).numpy()[()]
        key = np.uint64(torch.randint(2**63 - 1, ()).item())
        in_memory_order = mask.as_strided((mask.numel(),), (1,)).view(bits_type).numpy()
        _write_mask(in_memory_order, key, np.uint64(round(self.p * 2**16)), kept)
        return input * mask
