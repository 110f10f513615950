"""Backend `dali`: NVIDIA DALI crops, flips and normalizes, on CUDA, or on the CPU.

From: shards mapped into memory, and the plan, whose crops and flips are DALI's argument inputs.
To:   batches on the device. Only uint8 crosses the bus.

    mapped shards ─ gather ─▶ ring slot ─ .gpu() ─▶ slice ─▶ crop_mirror_normalize ─▶ batch
         (this thread)      (pinned for CUDA)            (DALI's threads and streams)

The pipeline is endless: what it reads at an iteration is a function of the iteration's number,
so prefetching runs over the end of an epoch into the next one, and nothing has to be reset. A
loader that jumps (another epoch, a loaded state) tells the feed where the next iteration is and
lets the batches go that were under way.

Images stay HWC from the shard to the batch: seen as [b, C, H, W] they are channels-last, without
a copy. DALI has no bfloat16, so for it torch rounds DALI's float32 on the device.
"""

import os
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from tinyvgg.errors import BackendUnavailable
from tinyvgg.loading.batch import Batch, Normalization
from tinyvgg.loading.host_kernel import HostKernel
from tinyvgg.loading.plan import EpochPlanner, LoaderState, RankEpoch
from tinyvgg.shards.store import Split

try:
    from nvidia.dali import Pipeline, fn, tensors, types
except ImportError as error:
    raise BackendUnavailable(
        "backend 'dali' needs nvidia-dali, which is not installed; run "
        "pip install nvidia-dali-cuda120 (nvidia-dali-cuda130 for CUDA 13) or use --backend torch"
    ) from error

PREFETCH = 2  # batches DALI works on while the model has one
# of the source's buffers: those under way, the model's, and one that the device may still read
NUM_SLOTS = PREFETCH + 2


def define_pipeline(
    feed: Any,
    device: torch.device,
    batch_size: int,
    image_shape: tuple[int, int, int],
    normalization: Normalization,
    dtype: torch.dtype,
    *,
    is_augmented: bool,
) -> Pipeline:
    """Define the graph; the same operators for CUDA and for the CPU.

    Args:
        feed: called with the iteration, from 0; returns images uint8 [b, H, W, 3], labels int64
            [b], ids int64 [b], and for crop and flip (dy, dx) int32 [b, 2] and flips int32 [b].
        device: CUDA, with its number or without, or the CPU.
        batch_size: b, of this rank.
        image_shape: (H, W, 3).
        normalization: of the pixels.
        dtype: of the images; uint8 leaves out the normalization.
        is_augmented: whether to crop and flip.

    Returns:
        A pipeline that is not built yet. Outputs: images [b, H, W, 3], labels [b], ids [b].
    """
    height, width, _ = image_shape
    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=torch.get_num_threads(),
        device_id=device.index if device.type == "cuda" else None,
        prefetch_queue_depth=PREFETCH,
    )
    with pipeline:
        num_inputs = 5 if is_augmented else 3
        images, labels, ids, *crops = fn.external_source(
            feed,
            num_outputs=num_inputs,
            batch=True,
            no_copy=True,
            layout=["HWC", "", "", "", ""][:num_inputs],
            dtype=[types.UINT8, types.INT64, types.INT64, types.INT32, types.INT32][:num_inputs],
            ndim=[3, 0, 0, 1, 0][:num_inputs],
        )
        mirror = {"mirror": crops[1]} if is_augmented else {}
        if device.type == "cuda":
            images, labels, ids = images.gpu(), labels.gpu(), ids.gpu()
        if is_augmented:
            images = fn.slice(
                images,
                start=crops[0],
                shape=[height, width],
                axes=[0, 1],
                out_of_bounds_policy="pad",
                fill_values=normalization.fill.tolist(),
            )
        if dtype != torch.uint8:
            images = fn.crop_mirror_normalize(
                images,
                dtype=types.FLOAT16 if dtype == torch.float16 else types.FLOAT,
                output_layout="HWC",
                mean=[255 * mean for mean in normalization.mean],
                std=[255 * std for std in normalization.std],
                **mirror,
            )
        elif is_augmented:
            images = fn.flip(images, horizontal=crops[1])
        pipeline.set_outputs(images, labels, ids)
    return pipeline


class Feed:
    """What the pipeline reads: a function of the iteration, between two jumps.

    Args:
        split: mapped.
        image_shape: (H, W, 3).
        batch_size: of this rank.
        device: of the batches; memory is pinned for CUDA.
    """

    def __init__(
        self, split: Split, image_shape: tuple[int, int, int], batch_size: int, device: torch.device
    ) -> None:
        self.split = split
        # the pixel pass is DALI's: the kernel copies, whatever the normalization
        self.kernel = HostKernel(image_shape, Normalization((0, 0, 0), (1, 1, 1)), torch.uint8)
        self.is_pinned = device.type == "cuda"
        self.slots = [
            self.kernel.empty(batch_size, pin_memory=self.is_pinned) for _ in range(NUM_SLOTS)
        ]
        self.released: list[Any] = [None] * NUM_SLOTS  # event: the device has read this slot
        self.no_crop, self.no_flip = np.zeros(batch_size, np.int32), np.zeros(batch_size, np.bool_)
        self.held: list[Any] = [None] * NUM_SLOTS  # small inputs, alive while DALI reads them
        self.next_iteration = 0

    def start(self, plan: EpochPlanner, state: LoaderState) -> None:
        """Let the next iteration be the first step of `plan(state)`."""
        self.plan, self.state = plan, state
        self.first, self.num_left = self.next_iteration, len(plan(state))

    def locate(self, iteration: int) -> tuple[RankEpoch, int]:
        """Return the planned epoch and the step in it that an iteration is."""
        step = iteration - self.first
        if step < self.num_left:
            return self.plan(self.state), step
        later, step = divmod(step - self.num_left, self.plan.num_steps)
        return self.plan(self.state.next_epoch(1 + later)), step

    def __call__(self, iteration: int) -> tuple[Any, ...]:
        """Return the inputs of an iteration."""
        planned, step = self.locate(iteration)
        slot = iteration % NUM_SLOTS
        if self.released[slot] is not None:
            self.released[slot].synchronize()  # two batches old: done long ago
        images = self.slots[slot]
        addresses = self.split.row_addresses[planned.rows[step]]
        crops = (self.no_crop, self.no_crop, self.no_flip)
        self.kernel.write(addresses, *crops, images, is_augmented=False)
        inputs = [planned.labels[step], planned.ids[step]]
        if planned.is_augmented:
            inputs.append(np.stack([planned.dy[step], planned.dx[step]], axis=1))
            inputs.append(planned.flip[step].astype(np.int32))
        self.held[slot] = inputs
        self.next_iteration = iteration + 1
        stored = tensors.TensorListCPU(images.numpy(), layout="HWC", is_pinned=self.is_pinned)
        return stored, *inputs


# A forked child has DALI's objects without their threads, and would wait for these when it lets go
# of the objects; so it never does.
_running: "weakref.WeakSet[EndlessPipeline]" = weakref.WeakSet()
_of_parent: list[Any] = []
os.register_at_fork(after_in_child=lambda: _of_parent.extend(_running))


class EndlessPipeline:
    """A built pipeline: outputs in order, from where its feed was told to start.

    Args:
        feed: started; it is this pipeline's alone.
        device: of the outputs.
        options: further arguments of `define_pipeline`.
    """

    def __init__(self, feed: Feed, device: torch.device, **options: Any) -> None:
        self.feed = feed
        self.device = device
        self.process_id = os.getpid()
        self.num_taken = 0
        self.pipeline = define_pipeline(feed, device, **options)
        self.pipeline.build()
        _running.add(self)
        self._schedule()  # the first time, as many as the queue holds

    def jump(self, plan: EpochPlanner, state: LoaderState) -> None:
        """Let the next outputs be the first step of `plan(state)`."""
        self.feed.start(plan, state)
        while self.num_taken < self.feed.first:  # what is under way
            self.take_outputs()

    def take_outputs(self) -> list[Tensor]:
        """Take one iteration's images, labels and ids, and let another one begin.

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
                outputs = self.pipeline.share_outputs()
            else:  # the model's stream waits for them, the host does not
                stream = torch.cuda.current_stream(self.device)
                outputs = self.pipeline.share_outputs(stream)
                self.feed.released[self.num_taken % NUM_SLOTS] = stream.record_event()
            tensors = [from_dlpack(output.as_tensor()) for output in outputs]
        except RuntimeError as error:
            raise self._name_images(self.num_taken, error) from error
        self.num_taken += 1
        self.pipeline.release_outputs()
        self._schedule()
        return tensors

    def _schedule(self) -> None:
        try:
            self.pipeline.schedule_run()
        except (RuntimeError, TypeError, ValueError) as error:
            raise self._name_images(self.feed.next_iteration, error) from error

    def _name_images(self, iteration: int, error: Exception) -> BackendUnavailable:
        """Say which images DALI stopped at."""
        planned, step = self.feed.locate(iteration)
        split, rows = self.feed.split, planned.rows[step]
        shards = {split.shards[row // split.shard_size].record.images for row in rows}
        return BackendUnavailable(
            f"backend 'dali' stopped at images {_join(rows.tolist())} of split {split.name!r} "
            f"in {_join(sorted(shards))}: {str(error).strip().splitlines()[0]}"
        )


class DaliSource:
    """Backend `dali`. Its threads live as long as it does.

    Args:
        split: mapped.
        image_shape: (H, W, 3).
        normalization: of the pixels.
        dtype: of the images.
        device: of the batches, CUDA or CPU.

    Raises:
        BackendUnavailable: DALI does not run on this device.
    """

    def __init__(
        self,
        split: Split,
        image_shape: tuple[int, int, int],
        normalization: Normalization,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        if device.type not in ("cpu", "cuda"):
            raise BackendUnavailable(
                f"backend 'dali' runs on CUDA and on the CPU, got {device}; use --backend torch"
            )
        self.split = split
        self.image_shape = image_shape
        self.normalization = normalization
        self.dtype = dtype
        self.device = device
        self.pipeline: EndlessPipeline | None = None  # built for the first batch
        self.position: tuple[EpochPlanner, LoaderState] | None = None  # of its next outputs

    def batches(self, plan: EpochPlanner, state: LoaderState) -> Iterator[Batch]:
        """Yield one batch for every step of `plan(state)`, the rest of an epoch."""
        planned = plan(state)
        for step in range(len(planned)):
            here = state if step == 0 else state.after(planned, step - 1)
            pipeline = self._seek(plan, here)
            images, labels, ids = pipeline.take_outputs()
            self.position = plan, state.after(planned, step)
            if self.dtype == torch.bfloat16:
                images = images.to(self.dtype)
            num_valid = int(planned.num_valid[step])
            yield Batch(images.permute(0, 3, 1, 2), labels, ids, num_valid)

    def _seek(self, plan: EpochPlanner, state: LoaderState) -> EndlessPipeline:
        """Return the pipeline, its next outputs the first step of `plan(state)`."""
        position, self.position = self.position, None  # until it is reached
        if self.pipeline is not None and position is not None:
            if position != (plan, state):
                self.pipeline.jump(plan, state)
            return self.pipeline
        batch_size = plan(state).rows.shape[1]
        feed = Feed(self.split, self.image_shape, batch_size, self.device)
        feed.start(plan, state)
        self.pipeline = EndlessPipeline(
            feed,
            self.device,
            batch_size=batch_size,
            image_shape=self.image_shape,
            normalization=self.normalization,
            dtype=self.dtype,
            is_augmented=plan.augment,
        )
        return self.pipeline


def _join(values: list[Any]) -> str:
    """List the first eight."""
    return ", ".join([*map(str, values[:8]), *(["…"] if len(values) > 8 else [])])
