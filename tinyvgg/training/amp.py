"""Precision: which autocast type a device is good at, said by what the device can do.

A CUDA device's compute capability and a CPU's instruction flags decide, so the answer does not
depend on what else the machine is doing. Only where neither says (other accelerators, an ARM CPU)
a convolution is timed. Float32 stays where a half type only seems to be there: bf16 convolutions
run 2 x faster than float32 on a CPU with avx512_bf16 or AMX and 25 x slower on one without
(pytorch#183815).
"""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

AMP_DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MIN_GAIN = 1.2  # under this a half type is not worth its rounding
NUM_ROUNDS = 5  # of a timing, each type once; the fastest counts, so other load must hit all five
HOPELESS = 4  # times slower than float32: not timed again


def choose_amp(device: torch.device) -> tuple[str, str]:
    """Return what `--amp auto` means on a device, and why.

    Returns:
        "bf16", "fp16" or "off", and the reason in a few words. bf16 is preferred to fp16, which
        needs a loss scaler.
    """
    if device.type == "cuda":
        return amp_of_cuda(torch.cuda.get_device_capability(device))
    if device.type == "cpu":
        said = amp_of_cpu(torch.cpu.get_capabilities())
        if said is not None:
            return said
    return time_amp(device)


def amp_of_cuda(capability: tuple[int, int]) -> tuple[str, str]:
    """Return the precision of a compute capability: bf16 matrix units from 8.0, fp16 from 7.0."""
    name = "{}.{}".format(*capability)
    if capability >= (8, 0):
        return "bf16", f"compute capability {name} multiplies bf16 matrices"
    if capability >= (7, 0):
        return "fp16", f"compute capability {name} multiplies fp16 matrices, bf16 from 8.0"
    return "off", f"compute capability {name} multiplies half types no faster"


def amp_of_cpu(capabilities: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the precision of a CPU's flags, as of `torch.cpu.get_capabilities`; None: unknown.

    A CPU is not asked for fp16: oneDNN has no fp16 training there.
    """
    if capabilities.get("architecture") != "x86_64":
        return None
    for flag in ("amx_bf16", "avx512_bf16"):
        if capabilities.get(flag):
            return "bf16", f"the CPU has {flag}"
    return "off", "the CPU has neither amx_bf16 nor avx512_bf16"


def time_amp(device: torch.device) -> tuple[str, str]:
    """Return the precision that forward and backward of a convolution run best in.

    Takes about a second on two CPU cores.
    """
    names = ["off", "bf16"] if device.type == "cpu" else ["off", "bf16", "fp16"]
    best = dict.fromkeys(names, float("inf"))
    for _ in range(NUM_ROUNDS + 1):  # the first one warms up and is the slowest
        for name in names:
            if HOPELESS * best["off"] < best[name] < float("inf"):
                continue
            try:
                best[name] = min(best[name], _time_convolution(device, AMP_DTYPES[name]))
            except RuntimeError:  # the device has no such type
                best[name] = float("inf")
    for name in names[1:]:
        gain = best["off"] / best[name]
        if gain >= MIN_GAIN:
            return name, f"a convolution runs {gain:.1f} x as fast as in float32"
    return "off", f"no half type runs a convolution {MIN_GAIN} x as fast as float32"


def _time_convolution(device: torch.device, dtype: torch.dtype) -> float:
    """Return the seconds of a 128-channel convolution, forward and backward."""
    convolution = nn.Conv2d(128, 128, 3, padding=1, device=device).to(
        memory_format=torch.channels_last
    )
    num_images = 8 if device.type == "cpu" else 256
    images = torch.randn(num_images, 128, 32, 32, device=device)
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    started = time.perf_counter()
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loss = convolution(images).float().square().mean()
    loss.backward()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - started
