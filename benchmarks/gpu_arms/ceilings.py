"""Ceilings: what the card gives a matrix product, a copy, and each convolution by itself.

B images, C channels, H = W = side of the images that a convolution sees.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu_arms.plan import Row, Setting
from benchmarks.gpu_arms.rates import measure_call_ms, share_of_peak
from benchmarks.gpu_arms.steps import target_device

# name, channels in, channels out, side: 3 channels of conv1_1 and what padding would make of them;
# conv4_2 and conv4_3 as VGG_Net computes them, which leaves out what max_pool never sees
LAYERS = (
    ("conv1_1", 3, 64, 64), ("conv1_1 of 4", 4, 64, 64), ("conv1_1 of 8", 8, 64, 64),
    ("conv1_2", 64, 64, 64), ("conv2_1", 64, 128, 32), ("conv2_2", 128, 128, 32),
    ("conv3_1", 128, 256, 16), ("conv3_2", 256, 256, 16), ("conv4_1", 256, 512, 8),
    ("conv4_2 of 7", 512, 512, 7), ("conv4_3 of 6", 512, 512, 6), ("conv4 of 8", 512, 512, 8),
)  # fmt: skip


def half_type(setting: Setting) -> torch.dtype:
    """Return bf16, or float32 on a CPU, where bf16 may run 25 times slower."""
    return torch.bfloat16 if setting.device == "cuda" else torch.float32


def time_matmul(setting: Setting) -> Iterator[Row]:
    """Measure a square matrix product."""
    side = setting.scale(8192, 64)
    left, right = (
        torch.randn(side, side, device=target_device(setting), dtype=half_type(setting))
        for _ in range(2)
    )
    ms = measure_call_ms(setting, lambda: left @ right)
    flop_per_sec = 2 * side**3 / ms * 1e3
    yield {
        "name": f"matrix product of {side}",
        "ms": ms,
        "tflop_per_sec": flop_per_sec / 1e12,
        "mfu": share_of_peak(setting, flop_per_sec),
    }


def time_device_copy(setting: Setting) -> Iterator[Row]:
    """Measure a copy; bytes read and bytes written both count."""
    yield time_copy(setting, "copy within the device", 2**30, 2, is_from_host=False)


def time_host_copy(setting: Setting) -> Iterator[Row]:
    """Measure copies from pinned memory: of one batch of uint8, and of a large block."""
    for name, num_bytes in (("a batch", 512 * 64 * 64 * 3), ("256 MiB", 2**28)):
        row = time_copy(setting, f"pinned host to device, {name}", num_bytes, 1, is_from_host=True)
        setting.require_cuda()
        yield row


def time_copy(
    setting: Setting, name: str, num_bytes: int, num_moves: int, *, is_from_host: bool
) -> Row:
    """Return GB/s of a copy onto the device."""
    num_bytes = setting.scale(num_bytes, 2**16)
    device = target_device(setting)
    source = torch.ones(num_bytes, dtype=torch.uint8, device="cpu" if is_from_host else device)
    if is_from_host and setting.device == "cuda":
        source = source.pin_memory()
    target = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    ms = measure_call_ms(setting, lambda: target.copy_(source, non_blocking=True))
    return {"name": name, "ms": ms, "gb_per_sec": num_moves * num_bytes / ms / 1e6}


def time_convolutions(setting: Setting) -> Iterator[Row]:
    """Measure each layer at batch 512, channels-last: forward and the two gradients."""
    for tuned in (False, True):
        with torch.backends.cudnn.flags(enabled=True, benchmark=tuned):
            for layer in LAYERS:
                yield time_convolution(setting, *layer, tuned=tuned)


def time_convolution(
    setting: Setting, name: str, channels_in: int, channels_out: int, side: int, *, tuned: bool
) -> Row:
    """Return ms, TFLOP/s and GB/s (activations read and written) of one layer's three passes."""
    batch_size = setting.scale(512, 1)
    images, weight = (
        torch.randn(shape, device=target_device(setting), dtype=half_type(setting)).contiguous(
            memory_format=torch.channels_last
        )
        for shape in ((batch_size, channels_in, side, side), (channels_out, channels_in, 3, 3))
    )
    output = functional.conv2d(images, weight, padding=1)
    gradient = torch.randn_like(output)

    def backward(mask: list[bool]) -> tuple[Tensor, ...]:
        gradients: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            gradient, images, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
        )
        return gradients

    passes: dict[str, Callable[[], object]] = {
        "forward": lambda: functional.conv2d(images, weight, padding=1),
        "image_gradient": lambda: backward([True, False, False]),
        "weight_gradient": lambda: backward([False, True, False]),
    }
    flop = 2 * output.numel() * channels_in * 9
    moved = output.element_size() * (images.numel() + output.numel())
    row: Row = {"name": f"{name}, cudnn.benchmark {'on' if tuned else 'off'}"}
    row["batch_size"] = batch_size
    for key, call in passes.items():
        ms = measure_call_ms(setting, call)
        row[f"{key}_ms"] = ms
        row[f"{key}_tflop_per_sec"] = flop / ms / 1e9
        row[f"{key}_gb_per_sec"] = moved / ms / 1e6
    return row


def time_pointwise(setting: Setting) -> Iterator[Row]:
    """Measure ReLU over the output of conv1, read once and written once."""
    shape = (setting.scale(512, 1), 64, 64, 64)
    images = torch.randn(shape, device=target_device(setting), dtype=half_type(setting))
    ms = measure_call_ms(setting, lambda: functional.relu(images))
    moved = 2 * images.numel() * images.element_size()
    yield {"name": "ReLU of conv1's output", "ms": ms, "gb_per_sec": moved / ms / 1e6}
