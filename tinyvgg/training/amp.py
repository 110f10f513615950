"""Precision: which autocast type a device is good at, found by a short timed probe.

A table of devices would be wrong: bf16 convolutions run 2 x faster than float32 on a CPU with
avx512_bf16 or AMX and 25 x slower on one without (pytorch#183815).
"""

import time

import torch
from torch import nn

AMP_DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MIN_GAIN = 1.2  # under this a half type is not worth its rounding


def probe_amp(device: torch.device) -> str:
    """Return "bf16", "fp16" or "off": what forward and backward of a convolution runs best in.

    bf16 is preferred to fp16, which needs a loss scaler. A CPU is not asked for fp16: oneDNN
    has no fp16 training there. Takes about half a second on two CPU cores.
    """
    full_sec = _time_convolution(device, torch.float32)
    for name in ("bf16",) if device.type == "cpu" else ("bf16", "fp16"):
        try:
            half_sec = _time_convolution(device, AMP_DTYPES[name])
        except RuntimeError:  # the device has no such type
            continue
        if full_sec / half_sec >= MIN_GAIN:
            return name
    return "off"


def _time_convolution(device: torch.device, dtype: torch.dtype) -> float:
    """Return the fastest of three seconds for a 128-channel convolution, forward and backward."""
    convolution = nn.Conv2d(128, 128, 3, padding=1, device=device).to(
        memory_format=torch.channels_last
    )
    num_images = 8 if device.type == "cpu" else 256
    images = torch.randn(num_images, 128, 32, 32, device=device)
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    best = float("inf")
    for _ in range(4):  # the first one warms up and is the slowest
        started = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = convolution(images).float().square().mean()
        loss.backward()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
