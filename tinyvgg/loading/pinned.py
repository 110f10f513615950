"""Backend `torch`: mapped shards, pinned staging, asynchronous copy.

From: shards mapped into memory; processes on one machine share their pages.
To:   batches on the device. Only uint8 crosses the bus.

JPEG files are decoded on a CUDA device, from the mapping into the device slot, on the copy stream.
On a CPU device the host kernel reads the mapping and writes the batch, nothing else. Elsewhere

    mapped shards ─ gather ─▶ pinned slot ─ copy stream ─▶ device slot ─ one pass ─▶ batch
         (this thread)              (asynchronous)               (the model's stream)

with two slots: while the model works on batch k, batch k + 1 is gathered and copied. Events
order the two streams; the host waits only for a copy that is two batches old, before it writes
into that copy's source again. What a stream, an event and pinned memory are comes from a
`Runtime`, so that the order can be proved on a machine without CUDA.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tinyvgg.compiling import compile_apart
from tinyvgg.loading.batch import Batch, PixelPass, transform_images
from tinyvgg.loading.device_decoder import DeviceDecoder
from tinyvgg.loading.host_batches import stored_batches
from tinyvgg.loading.host_kernel import HostKernel
from tinyvgg.loading.plan import EpochPlanner, LoaderState, RankEpoch
from tinyvgg.loading.reader import ImageReader, read_batches, read_step
from tinyvgg.shards.store import Split

NUM_SLOTS = 2


class Runtime(Protocol):
    """Streams, events and memory of an accelerator, as `torch.cuda` has them."""

    def new_stream(self) -> Any:
        """Return a stream of its own."""

    def current_stream(self) -> Any:
        """Return the stream that the model works on."""

    def on_stream(self, stream: Any) -> AbstractContextManager[Any]:
        """Issue what is inside the `with` block on `stream`."""

    def pin(self, tensor: Tensor) -> Tensor:
        """Return the tensor in memory that an asynchronous copy may read."""

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return uninitialized memory on the device."""

    def upload(self, tensor: Tensor) -> Tensor:
        """Copy a pinned tensor to the device, asynchronously, on the current stream."""


@dataclass(frozen=True)
class AcceleratorRuntime:
    """The runtime of a real device: CUDA, or whatever `torch.accelerator` names."""

    device: torch.device

    def new_stream(self) -> Any:
        """Return a stream of its own."""
        return torch.Stream(self.device)

    def current_stream(self) -> Any:
        """Return the stream that the model works on."""
        return torch.accelerator.current_stream(self.device)

    def on_stream(self, stream: Any) -> AbstractContextManager[Any]:
        """Issue what is inside the `with` block on `stream`."""
        context: AbstractContextManager[Any] = stream
        return context

    def pin(self, tensor: Tensor) -> Tensor:
        """Return a pinned copy; on a CPU there is nothing to pin for."""
        return tensor if self.device.type == "cpu" else tensor.pin_memory()

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return uninitialized memory on the device."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def upload(self, tensor: Tensor) -> Tensor:
        """Copy a pinned tensor to the device, asynchronously, on the current stream."""
        return tensor.to(self.device, non_blocking=True)


class DevicePlan:
    """The plan of an epoch on the device, uploaded once: a step costs slices, not copies."""

    def __init__(
        self,
        epoch: RankEpoch,
        runtime: Runtime,
        names: Sequence[str] = ("rows", "ids", "labels", "dy", "dx", "flip"),
    ) -> None:
        self.pinned = {  # kept: an asynchronous copy reads it
            name: runtime.pin(torch.from_numpy(np.ascontiguousarray(getattr(epoch, name))))
            for name in names
        }
        self.tensors = {name: runtime.upload(tensor) for name, tensor in self.pinned.items()}

    def step(self, step: int) -> dict[str, Tensor]:
        """Return what was asked for of one step, by name, each [b]."""
        return {name: tensor[step] for name, tensor in self.tensors.items()}


@cache
def compile_transform(
    stored: torch.Size, rows: torch.Size, dtype: torch.dtype, device: torch.device
) -> Callable[..., Tensor]:
    """Return `transform_images` compiled for shapes, a type and a device, once a process."""
    del stored, rows, dtype, device  # the key; what is compiled sees them in its arguments
    return compile_apart(transform_images)


class DevicePixels:
    """`transform_images` with its constants on the device, compiled on CUDA."""

    def __init__(self, pixel_pass: PixelPass, device: torch.device) -> None:
        self.dtype = pixel_pass.dtype
        self.device = device
        normalization = pixel_pass.normalization
        constants = (normalization.fill, normalization.scale, normalization.shift)
        self.constants = [torch.from_numpy(values).to(device) for values in constants]

    def __call__(self, stored: Tensor, rows: Tensor, plan: dict[str, Tensor]) -> Tensor:
        """Return a batch's images from `stored` uint8 [n, H, W, 3]."""
        transform: Callable[..., Tensor] = transform_images
        if self.device.type == "cuda":
            transform = compile_transform(stored.shape, rows.shape, self.dtype, self.device)
        crops = (plan["dy"], plan["dx"], plan["flip"])
        return transform(stored, rows, *crops, *self.constants, self.dtype)


class PinnedSource:
    """Backend `torch`.

    Args:
        split: mapped.
        pixel_pass: from stored images to those of a batch.
        device: of the batches.
        runtime: streams, events and memory of that device; not needed for a CPU.
        decoder: of JPEG files on the device; None: on CUDA one of its own, elsewhere the host.
    """

    def __init__(
        self,
        split: Split,
        pixel_pass: PixelPass,
        device: torch.device,
        runtime: Runtime | None = None,
        decoder: DeviceDecoder | None = None,
    ) -> None:
        if split.is_jpeg and device.type == "cuda":
            decoder = decoder or DeviceDecoder(split, device)
        self.decoder = decoder
        self.split = split
        is_host = device.type == "cpu" and runtime is None
        self.pixel_pass = pixel_pass if is_host else replace(pixel_pass, dtype=torch.uint8)
        self.kernel = HostKernel(self.pixel_pass)  # of whole images
        if not is_host:
            self.runtime = runtime or AcceleratorRuntime(device)
            self.pixels = DevicePixels(pixel_pass, device)
        self.is_host = is_host

    def batches(
        self, plan: EpochPlanner, state: LoaderState, size: tuple[int, int] | None = None
    ) -> Iterator[Batch]:
        """Yield one batch for every step of `plan(state)`, the rest of an epoch."""
        epoch, kernel = plan(state), self.kernel
        if epoch.boxes is not None and size is not None and size != kernel.image_shape[:2]:
            kernel = HostKernel(replace(self.pixel_pass, image_shape=(*size, 3)))
        if not self.is_host:
            yield from self._staged_batches(epoch, kernel)
        elif self.split.is_jpeg or epoch.boxes is not None:
            reader = ImageReader(self.split, kernel.image_shape[:2])
            yield from read_batches(reader, kernel, epoch)
        else:  # a generator, so that it keeps the split and with it the mapping
            yield from stored_batches(kernel, self.split.row_addresses, epoch)

    def _staged_batches(self, epoch: RankEpoch, kernel: HostKernel) -> Iterator[Batch]:
        runtime = self.runtime
        local = epoch.rows.shape[1]
        fill = self.find_filler(epoch, kernel)
        decoder = self.decoder
        copy_stream = runtime.new_stream()
        plan = DevicePlan(epoch, runtime)
        in_order = runtime.upload(runtime.pin(torch.arange(local)))
        num_pinned = NUM_SLOTS if decoder is None else 0
        pinned = [runtime.pin(kernel.empty(local)) for _ in range(num_pinned)]
        slots = [
            runtime.empty(local, *kernel.image_shape, dtype=torch.uint8) for _ in range(NUM_SLOTS)
        ]
        copied: list[Any] = [None] * NUM_SLOTS  # event: the copy into this slot is done
        released: list[Any] = [None] * NUM_SLOTS  # event: the model is done with this slot

        def send(step: int) -> None:
            slot = step % NUM_SLOTS
            if copied[slot] is not None:
                copied[slot].synchronize()  # two batches old: done long ago
            if decoder is None:
                fill(step, pinned[slot])
            if released[slot] is not None:
                copy_stream.wait_event(released[slot])
            with runtime.on_stream(copy_stream):
                if decoder is None:
                    slots[slot].copy_(pinned[slot], non_blocking=True)
                else:
                    boxes = None if epoch.boxes is None else epoch.boxes[step]
                    decoder(epoch.rows[step], boxes, slots[slot])
            copied[slot] = copy_stream.record_event()

        # the slots were allocated on the model's stream: nothing may still be using them there
        copy_stream.wait_event(runtime.current_stream().record_event())
        try:
            for step in range(min(1, len(epoch))):
                send(step)
            for step in range(len(epoch)):
                if step + 1 < len(epoch):
                    send(step + 1)
                slot = step % NUM_SLOTS
                runtime.current_stream().wait_event(copied[slot])
                tensors = plan.step(step)
                images = self.pixels(slots[slot], in_order, tensors)
                released[slot] = runtime.current_stream().record_event()
                num_valid = int(epoch.num_valid[step])
                yield Batch(images, tensors["labels"], tensors["ids"], num_valid)
        finally:
            # left early, a copy may be under way: its slot goes back to the memory of the model's
            # stream, which must not use it before
            runtime.current_stream().wait_event(copy_stream.record_event())

    def find_filler(self, epoch: RankEpoch, kernel: HostKernel) -> Callable[[int, Tensor], None]:
        """Return what fills a pinned slot with the uint8 images of a step, whole."""
        if self.split.is_jpeg or epoch.boxes is not None:
            reader = ImageReader(self.split, kernel.image_shape[:2])
            return lambda step, slot: read_step(reader, epoch, step, slot.numpy())
        local = epoch.rows.shape[1]
        no_crop, no_flip = np.zeros(local, np.int32), np.zeros(local, np.bool_)
        row_addresses = self.split.row_addresses

        def copy(step: int, slot: Tensor) -> None:
            addresses = row_addresses[epoch.rows[step]]
            kernel.write(addresses, no_crop, no_crop, no_flip, slot, is_augmented=False)

        return copy
