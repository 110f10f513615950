"""Backend `dali`: NVIDIA DALI crops, flips and normalizes, on CUDA, or on the CPU.

From: shards mapped into memory, and the plan, whose crops and flips are DALI's argument inputs.
To:   batches on the device. Only uint8 crosses the bus.

    mapped shards ─ gather ─▶ ring slot ─ .gpu() ─▶ crop_mirror_normalize ─▶ batch
           (a thread)       (pinned for CUDA)       (DALI's threads and streams)

The pipeline is endless: what it reads at an iteration is a function of the iteration's number,
so prefetching runs over the end of an epoch into the next one, and nothing has to be reset. A
loader that jumps (another epoch, a loaded state) tells the feed where the next iteration is and
lets the batches go that were under way.

A slot has a margin of the mean color around every image, written once. So the crop lies inside,
and one operator does everything: 2.4 ms for 256 images on two cores, where `slice` with padding
and then `crop_mirror_normalize` takes 3.0. Labels and ids do not go through DALI, which handles
256 numbers as 256 samples: another 0.4 to 0.9 ms.

Images stay HWC from the shard to the batch: seen as [b, C, H, W] they are channels-last, without
a copy. DALI has no bfloat16, so for it torch rounds DALI's float32 on the device.
"""

import contextlib
import ctypes
import os
import re
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from tinyvgg.errors import BackendUnavailable
from tinyvgg.loading.batch import Batch, PixelPass
from tinyvgg.loading.dali_graphs import (
    PREFETCH,
    define_pipeline,
    define_view_pipeline,
    wrap_images,
)
from tinyvgg.loading.host_kernel import copy_inside
from tinyvgg.loading.pinned import AcceleratorRuntime, DevicePlan
from tinyvgg.loading.plan import EpochPlanner, LoaderState, RankEpoch
from tinyvgg.shards.store import Split

# of the source's buffers: those under way, the model's, the one that is gathered ahead, and one
# that the device may still read
NUM_SLOTS = PREFETCH + 3


class PlannedFeed:
    """What a pipeline reads: a function of the iteration, between two jumps.

    Args:
        split: mapped.
        plan: says what an iteration is.
    """

    def __init__(self, split: Split, plan: EpochPlanner) -> None:
        self.split = split
        self.plan = plan
        self.released: list[Any] = [None] * NUM_SLOTS  # event: the device has read this slot
        self.held: list[Any] = [None] * NUM_SLOTS  # inputs, alive while DALI reads them
        self.gatherer: Executor | None = None  # copies the next iteration's images ahead
        self.next_iteration = 0

    def start(self, state: LoaderState) -> None:
        """Let the next iteration be the first step of `plan(state)`."""
        self.state = state
        self.first, self.num_left = self.next_iteration, len(self.plan(state))

    def locate(self, iteration: int) -> tuple[RankEpoch, int]:
        """Return the planned epoch and the step in it that an iteration is."""
        step = iteration - self.first
        if step < self.num_left:
            return self.plan(self.state), step
        later, step = divmod(step - self.num_left, self.plan.num_steps)
        return self.plan(self.state.next_epoch(1 + later)), step


class FileFeed(PlannedFeed):
    """JPEG files, or images that boxes are cut out of, as they are mapped: nothing is copied.

    Args:
        split: mapped.
        plan: says which of them, and what is shown of each.
        size: (H, W) of the batch's images.
    """

    def __init__(self, split: Split, plan: EpochPlanner, size: tuple[int, int]) -> None:
        super().__init__(split, plan)
        self.size = np.array(size, np.int32)

    def __call__(self, iteration: int) -> tuple[Any, ...]:
        """Return the inputs of an iteration."""
        planned, step = self.locate(iteration)
        if planned.boxes is not None:
            first, extent = planned.boxes[step, :, :2], planned.boxes[step, :, 2:]
        else:
            first = np.stack([planned.dy[step], planned.dx[step]], axis=1)
            extent = np.broadcast_to(self.size, first.shape)
        inputs = [
            [self.split.view_row(row) for row in planned.rows[step].tolist()],
            np.ascontiguousarray(first),
            np.ascontiguousarray(extent),
            planned.flip[step].astype(np.int32),
        ]
        self.held[iteration % NUM_SLOTS] = inputs
        self.next_iteration = iteration + 1
        return tuple(inputs)


class Feed(PlannedFeed):
    """Images of one size, gathered into slots with a margin for crops.

    Args:
        split: mapped.
        pixel_pass: from stored images to those of a batch; its mean color surrounds them.
        plan: says whether there is a margin, and the batch size.
        device: of the batches; memory is pinned for CUDA.
    """

    def __init__(
        self,
        split: Split,
        pixel_pass: PixelPass,
        plan: EpochPlanner,
        device: torch.device,
    ) -> None:
        super().__init__(split, plan)
        self.margin = plan.crop_pixels if plan.augment else 0
        self.is_pinned = device.type == "cuda"
        height, width, channels = pixel_pass.image_shape
        shape = (height + 2 * self.margin, width + 2 * self.margin, channels)
        fill = torch.from_numpy(pixel_pass.normalization.fill)
        self.slots = [
            fill.expand(plan.local_batch_size, *shape).contiguous() for _ in range(NUM_SLOTS)
        ]
        if self.is_pinned:
            self.slots = [slot.pin_memory() for slot in self.slots]
        self.gathered: tuple[int, Future[None]] | None = None

    def start(self, state: LoaderState) -> None:
        """Let the next iteration be the first step of `plan(state)`."""
        if self.gathered is not None:
            self.gathered[1].exception()  # its slot is still being written
        self.gathered = None
        super().start(state)

    def __call__(self, iteration: int) -> tuple[Any, ...]:
        """Return the inputs of an iteration."""
        planned, step = self.locate(iteration)
        slot = iteration % NUM_SLOTS
        if self.gathered is not None and self.gathered[0] == iteration:
            self.gathered[1].result()
        else:
            self._gather(slot, planned.rows[step])
        self.gathered = None
        if self.gatherer is not None:
            ahead, ahead_step = self.locate(iteration + 1)
            ahead_slot = (iteration + 1) % NUM_SLOTS
            job = self.gatherer.submit(self._gather, ahead_slot, ahead.rows[ahead_step])
            self.gathered = iteration + 1, job
        inputs: list[Any] = []
        if planned.is_augmented:
            inputs = [
                crop_positions(offset[step], self.margin) for offset in (planned.dy, planned.dx)
            ]
            inputs.append(planned.flip[step].astype(np.int32))
        self.held[slot] = inputs
        self.next_iteration = iteration + 1
        images = self.slots[slot].numpy()
        return wrap_images(images, is_pinned=self.is_pinned), *inputs

    def _gather(self, slot: int, rows: NDArray[np.int64]) -> None:
        """Copy rows of the split into a slot, when the device has read what was there."""
        if self.released[slot] is not None:
            self.released[slot].synchronize()  # two batches old: done long ago
        copy_inside(self.split.row_addresses[rows], self.margin, self.slots[slot])


def crop_positions(offsets: NDArray[np.int32], margin: int) -> NDArray[np.float32]:
    """Return where crops begin as shares of the way, which DALI multiplies by 2 p and rounds.

    Rounded to float32, a share of at most 1 is off by 2^-25; times 2 p, at most 16, by 2^-21: far
    from the half pixel at which another whole number would come out.

    Args:
        offsets: int32 [b], -p to p.
        margin: p, pixels on every side of an image; 0: there is no way to go.
    """
    return ((offsets + margin) / max(2 * margin, 1)).astype(np.float32)


_running: "weakref.WeakSet[EndlessPipeline]" = weakref.WeakSet()


def _keep_for_good() -> None:
    """Never shut down the parent's pipelines in a forked child.

    It has DALI's objects without their threads, and would wait for these for ever: when the last
    reference goes, and in DALI's exit handler, which shuts down every pipeline that has a `_pipe`.
    """
    for running in _running:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(running.pipeline._pipe))
        running.pipeline._pipe = None


os.register_at_fork(after_in_child=_keep_for_good)


def current_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make a CUDA device the current one for the length of a `with` block.

    DALI takes pinned memory for that of the device that is current when it is wrapped: for a
    pipeline on cuda:1, of another one than its own.
    """
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class EndlessPipeline:
    """A built pipeline: outputs in order, from where its feed was told to start.

    Args:
        feed: started; it is this pipeline's alone.
        device: of the outputs.
        define: the graph.
        options: further arguments of `define`.
    """

    def __init__(
        self,
        feed: PlannedFeed,
        device: torch.device,
        define: Callable[..., Any] = define_pipeline,
        **options: Any,
    ) -> None:
        self.feed = feed
        self.device = device
        self.process_id = os.getpid()
        self.num_taken = 0
        with current_device(device):
            self.pipeline = define(feed, device, **options)
            self.pipeline.build()
        _running.add(self)
        self._schedule()  # the first time, as many as the queue holds

    def jump(self, state: LoaderState) -> None:
        """Let the next outputs be the first step of `plan(state)`."""
        self.feed.start(state)
        while self.num_taken < self.feed.first:  # what is under way
            self.take_images()

    def take_images(self) -> Tensor:
        """Take one iteration's images [b, H, W, 3], and let another one begin.

        Returns:
            On the device; valid until the next call.

        Raises:
            BackendUnavailable: DALI stopped; nothing more will come of this pipeline.
        """
        if self.process_id != os.getpid():
            raise BackendUnavailable(
                "backend 'dali': its threads did not come along into this forked process; "
                "open the loader after the fork, or use --backend torch"
            )
        try:
            if self.device.type == "cpu":
                (output,) = self.pipeline.share_outputs()
            else:  # the model's stream waits for them, the host does not
                stream = torch.cuda.current_stream(self.device)
                (output,) = self.pipeline.share_outputs(stream)
                self.feed.released[self.num_taken % NUM_SLOTS] = stream.record_event()
            images: Tensor = from_dlpack(output.as_tensor())
        except RuntimeError as error:
            raise self._name_images(self.num_taken, error) from error
        self.num_taken += 1
        self.pipeline.release_outputs()
        self._schedule()
        return images

    def _schedule(self) -> None:
        try:
            with current_device(self.device):  # of which the feed's pinned memory is said to be
                self.pipeline.schedule_run()
        except (RuntimeError, TypeError, ValueError) as error:
            raise self._name_images(self.feed.next_iteration, error) from error

    def _name_images(self, iteration: int, error: Exception) -> BackendUnavailable:
        """Say which images DALI stopped at."""
        planned, step = self.feed.locate(iteration)
        split, rows = self.feed.split, planned.rows[step]
        shards = {split.shards[row // split.shard_size].record.images for row in rows}
        remedy = "; run 'tinyvgg verify'" if split.is_jpeg else ""
        return BackendUnavailable(
            f"backend 'dali' stopped at images {_join(rows.tolist())} of split {split.name!r} "
            f"in {_join(sorted(shards))}: {_pick_reason(str(error))}{remedy}"
        )


class DaliSource:
    """Backend `dali`. Its threads live as long as it does.

    Args:
        split: mapped.
        pixel_pass: from stored images to those of a batch.
        device: of the batches, CUDA or CPU.

    Raises:
        BackendUnavailable: DALI does not run on this device.
    """

    def __init__(
        self,
        split: Split,
        pixel_pass: PixelPass,
        device: torch.device,
    ) -> None:
        if device.type not in ("cpu", "cuda"):
            raise BackendUnavailable(
                f"backend 'dali' runs on CUDA and on the CPU, got {device}; use --backend torch"
            )
        self.split = split
        self.pixel_pass = pixel_pass
        self.device = device
        self.pipeline: EndlessPipeline | None = None  # built for the first batch
        self.size: tuple[int, int] | None = None  # of its images
        self.position: tuple[EpochPlanner, LoaderState] | None = None  # of its next outputs

    def batches(
        self, plan: EpochPlanner, state: LoaderState, size: tuple[int, int] | None = None
    ) -> Iterator[Batch]:
        """Yield one batch for every step of `plan(state)`, the rest of an epoch."""
        planned = plan(state)
        device_plan = DevicePlan(planned, AcceleratorRuntime(self.device), ("labels", "ids"))
        with ThreadPoolExecutor(1, "tinyvgg-dali-gather") as gatherer:
            try:
                for step in range(len(planned)):
                    here = state if step == 0 else state.after(planned, step - 1)
                    pipeline = self._seek(plan, here, size, gatherer)
                    images = pipeline.take_images().permute(0, 3, 1, 2)
                    self.position = plan, state.after(planned, step)
                    if images.dtype != self.pixel_pass.dtype:  # bfloat16
                        images = images.to(self.pixel_pass.dtype)
                    elif not self.pixel_pass.reuse_buffers:  # DALI writes there again
                        images = images.clone()
                    tensors = device_plan.step(step)
                    num_valid = int(planned.num_valid[step])
                    yield Batch(images, tensors["labels"], tensors["ids"], num_valid)
            finally:
                if self.pipeline is not None:
                    self.pipeline.feed.gatherer = None

    def _seek(
        self,
        plan: EpochPlanner,
        state: LoaderState,
        size: tuple[int, int] | None,
        gatherer: Executor,
    ) -> EndlessPipeline:
        """Return the pipeline, its next outputs the first step of `plan(state)`."""
        position, self.position = self.position, None  # until it is reached
        is_known = self.pipeline is not None and position is not None and position[0] is plan
        if is_known and (plan.view is None or size == self.size):
            assert self.pipeline is not None
            assert position is not None
            self.pipeline.feed.gatherer = gatherer
            if position[1] != state:
                self.pipeline.jump(state)
            return self.pipeline
        self.size = size
        self.pipeline = self._build(plan, state, size, gatherer)
        return self.pipeline

    def _build(
        self,
        plan: EpochPlanner,
        state: LoaderState,
        size: tuple[int, int] | None,
        gatherer: Executor,
    ) -> EndlessPipeline:
        """Return a pipeline whose first outputs are the first step of `plan(state)`."""
        if self.split.is_jpeg or plan.view is not None:
            pixel_pass = self.pixel_pass
            if plan.view is not None and size is not None:
                pixel_pass = replace(pixel_pass, image_shape=(*size, 3))
            files = FileFeed(self.split, plan, pixel_pass.image_shape[:2])
            files.start(state)
            return EndlessPipeline(
                files,
                self.device,
                define_view_pipeline,
                batch_size=plan.local_batch_size,
                pixel_pass=pixel_pass,
                is_jpeg=self.split.is_jpeg,
                has_boxes=plan.view is not None,
            )
        feed = Feed(self.split, self.pixel_pass, plan, self.device)
        feed.gatherer = gatherer
        feed.start(state)
        return EndlessPipeline(
            feed,
            self.device,
            batch_size=plan.local_batch_size,
            pixel_pass=self.pixel_pass,
            is_augmented=plan.augment,
        )


def _pick_reason(text: str) -> str:
    """Return the line of DALI's message that says what happened, without its source file."""
    _, _, told = text.rpartition("encountered:")
    lines = [line.strip() for line in (told or text).splitlines()]
    reason = next((line for line in lines if line and not line.startswith("Critical error")), "")
    return re.sub(r"^\[\S+:\d+\] ", "", reason) or "no reason given"


def _join(values: list[Any]) -> str:
    """List the first eight."""
    return ", ".join([*map(str, values[:8]), *(["…"] if len(values) > 8 else [])])
