"""The staged path of `pinned`: on streams that are as late as they may be, and sanitized."""

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.gpu_static import SanitizedRuntime, known_torch
from tests.loading.contract import (
    CPU,
    assert_same,
    every_dtype,
    every_leave,
    keep,
    nothing_left_behind,
    pixel_pass,
    plan_train,
    read_epochs,
)
from tinyvgg.loading import LoaderConfig, open_loader, pinned
from tinyvgg.loading.loader import Loader
from tinyvgg.loading.pinned import NUM_SLOTS, PinnedSource
from tinyvgg.shards.store import PackedDataset


class LateStream:
    """A stream whose copies happen only when another stream or the host waits for them."""

    def __init__(self) -> None:
        self.num_issued = 0  # operations, of which the copies are kept
        self.copies: list[tuple[Tensor, Tensor, Tensor]] = []  # slot, source, source when issued
        self.num_copied = self.num_awaited = 0  # the host has waited for the latter
        self.num_torn = 0
        self.seen = 0  # operations of the model's stream that this one has waited for

    def record_event(self) -> "LateEvent":
        return LateEvent(self, self.num_issued)

    def wait_event(self, event: "LateEvent") -> None:
        self.seen = max(self.seen, event.num_issued)
        event.stream.copy(event.num_issued)

    def copy(self, num_issued: int) -> None:
        for slot, source, _ in self.copies[self.num_copied : num_issued]:
            slot.copy_(source)
            self.num_copied += 1

    def check(self, num_issued: int) -> None:
        """Count the copies that, made as late as now, would have read something else."""
        for _, source, issued in self.copies[self.num_awaited : num_issued]:
            self.num_torn += not torch.equal(source, issued)
            self.num_awaited += 1


class LateEvent:
    """The end of the first `num_issued` operations of a stream."""

    def __init__(self, stream: LateStream, num_issued: int) -> None:
        self.stream, self.num_issued = stream, num_issued

    def synchronize(self) -> None:
        self.stream.copy(self.num_issued)
        self.stream.check(self.num_issued)


class LateRuntime(TorchDispatchMode):
    """A `Runtime` over CPU memory that shows what a real device may do at the worst moment.

    A copy is put off until its event is waited for, so a wait that the model's stream forgets
    shows as wrong pixels. A copy is torn if the host writes into its source before waiting for
    it. `num_overwritten` counts copies into a slot that the model's stream may still be reading:
    that stream runs at once here, and its reads of slots are numbered.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model_stream, self.copy_streams = LateStream(), list[LateStream]()
        self.active = self.model_stream
        self.last_read: dict[int, int] = {}  # address of a slot: operation of the model's stream
        self.num_overwritten = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        is_copy = func is torch.ops.aten.copy_.default
        if self.active is not self.model_stream:
            assert is_copy
            slot, source = args[:2]
            self.num_overwritten += self.last_read[slot.data_ptr()] > self.active.seen
            self.active.copies.append((slot, source, source.clone()))
            self.active.num_issued += 1
            return slot
        for value in args:
            if isinstance(value, Tensor) and value.data_ptr() in self.last_read and not is_copy:
                self.model_stream.num_issued += 1
                self.last_read[value.data_ptr()] = self.model_stream.num_issued
        return func(*args, **(kwargs or {}))

    def new_stream(self) -> LateStream:
        self.copy_streams.append(LateStream())
        return self.copy_streams[-1]

    def current_stream(self) -> LateStream:
        return self.active

    @contextmanager
    def _active(self, stream: LateStream) -> Iterator[None]:
        self.active, before = stream, self.active
        yield
        self.active = before

    def on_stream(self, stream: LateStream) -> AbstractContextManager[None]:
        return self._active(stream)

    def pin(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        slot = torch.full(shape, 99, dtype=dtype)
        self.last_read[slot.data_ptr()] = 0
        return slot

    def upload(self, tensor: Tensor) -> Tensor:
        return tensor.clone()


def open_staged(dataset: PackedDataset, runtime: LateRuntime, dtype: torch.dtype) -> Loader:
    """Open a loader on the staged path, with crop and flip."""
    source = PinnedSource(dataset.train, pixel_pass(dtype), CPU, runtime)
    config = LoaderConfig(batch_size=5, drop_last=False)
    return Loader(
        dataset.train,
        config,
        source,
        "torch",
        pixel_pass(dtype).normalization,
        dataset.manifest_sha256,
        (64, 64),
    )


@every_dtype
def test_the_staged_path_equals_the_cpu_backend(packed: PackedDataset, dtype: torch.dtype) -> None:
    config = LoaderConfig(backend="torch", batch_size=5, drop_last=False)
    expected = read_epochs(open_loader(packed, "train", config, dtype=dtype), range(2))

    with LateRuntime() as runtime:
        batches = read_epochs(open_staged(packed, runtime, dtype), range(2))

    for batch in batches:
        assert batch.images.dtype == dtype
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    if dtype == torch.uint8:
        assert_same(batches, expected)
    bound = {torch.bfloat16: 2**-6, torch.float16: 2**-9}.get(dtype, 1e-6)  # a unit at 2 to 4
    for batch, other in zip(batches, expected, strict=True):
        assert torch.equal(batch.ids, other.ids)
        assert torch.equal(batch.labels, other.labels)
        assert batch.num_valid == other.num_valid
        assert (batch.images.float() - other.images.float()).abs().max() <= bound


def test_the_staged_path_overwrites_no_slot_that_the_model_may_read(packed: PackedDataset) -> None:
    with LateRuntime() as runtime:
        batches = read_epochs(open_staged(packed, runtime, torch.uint8), range(1))

    assert len(batches) == 7
    assert len(runtime.last_read) == NUM_SLOTS
    assert min(runtime.last_read.values()) >= 6  # the model's stream was seen reading both
    assert runtime.num_overwritten == 0


def test_the_staged_path_changes_no_pinned_memory_that_a_copy_may_read(
    packed: PackedDataset,
) -> None:
    with LateRuntime() as runtime:
        batches = read_epochs(open_staged(packed, runtime, torch.uint8), range(1))
        (stream,) = runtime.copy_streams
        stream.check(stream.num_issued)

    assert len(batches) == stream.num_awaited == 7
    assert stream.num_torn == 0


@pytest.mark.parametrize("num_images", [1, 5, 6, 11])
def test_the_staged_path_works_for_few_steps(packed: PackedDataset, num_images: int) -> None:
    expected = list(
        map(
            keep,
            PinnedSource(packed.train, pixel_pass(torch.uint8), CPU).batches(
                *plan_train(packed, 33 - num_images)
            ),
        )
    )

    with LateRuntime() as runtime:
        source = PinnedSource(packed.train, pixel_pass(torch.uint8), CPU, runtime)
        batches = list(map(keep, source.batches(*plan_train(packed, 33 - num_images))))

    assert_same(batches, expected)


def test_what_the_staged_path_prefetched_is_not_in_the_state(packed: PackedDataset) -> None:
    with LateRuntime() as runtime:
        loader = open_staged(packed, runtime, torch.uint8)
        counts = [loader.state_dict()["images_consumed"] for _ in loader]

    assert counts == [5, 10, 15, 20, 25, 30, 0]


@every_leave
def test_leaving_the_staged_path_waits_for_its_copies_and_leaves_nothing_behind(
    packed: PackedDataset, leave: Callable[[Loader], None]
) -> None:
    with LateRuntime() as runtime, nothing_left_behind():
        leave(open_staged(packed, runtime, torch.uint8))

    for stream in runtime.copy_streams:
        assert stream.num_copied == stream.num_issued


# the order of streams, proved by torch's own sanitizer: no race, no wait, no slow copy


def run_sanitized(dataset: PackedDataset, source_class: type[PinnedSource]) -> SanitizedRuntime:
    """Read an epoch of 7 steps, work on every batch, and leave the next one early."""
    with SanitizedRuntime() as runtime:
        source = source_class(dataset.train, pixel_pass(torch.uint8), CPU, runtime)
        find_filler = source.find_filler
        source.find_filler = lambda *args: runtime.host_write(find_filler(*args))  # type: ignore[method-assign]
        for batch in source.batches(*plan_train(dataset)):
            batch.images.sum()
        batches = source.batches(*plan_train(dataset))
        next(batches).images.sum()
        batches.close()  # type: ignore[attr-defined]
        for memory in runtime.kept:  # the model's stream gets all device memory back
            memory.zero_()
    return runtime  # type: ignore[no-any-return]


@pytest.mark.gpu_static
@known_torch
def test_the_staged_path_has_no_race_no_wait_and_no_slow_copy(packed: PackedDataset) -> None:
    runtime = run_sanitized(packed, PinnedSource)

    assert runtime.problems == []
    # a batch a step, the plan's six arrays and the row numbers of either epoch
    assert runtime.num_copies == 7 + 2 + 2 * 7


MUTANTS = {
    "the model does not wait for the copy": (
        "runtime.current_stream().wait_event(copied[slot])",
        "pass",
        "race",
    ),
    "the copy does not wait for the model": (
        "copy_stream.wait_event(released[slot])",
        "pass",
        "race",
    ),
    "the copy does not wait for the memory": (
        "copy_stream.wait_event(runtime.current_stream().record_event())",
        "pass",
        "race",
    ),
    "the memory is given back before the copy": (
        "runtime.current_stream().wait_event(copy_stream.record_event())",
        "pass",
        "race",
    ),
    "the host does not wait for an old copy": (
        "copied[slot].synchronize()",
        "pass",
        "race at host write",
    ),
    "the host waits for the newest copy": (
        "images = self.pixels(slots[slot], in_order, tensors)",
        "images = self.pixels(slots[slot], in_order, tensors); copy_stream.record_event()"
        ".synchronize()",
        "host waits for the newest copy",
    ),
    "a value is read back": (
        "num_valid = int(epoch.num_valid[step])",
        "num_valid = int(tensors['ids'].ge(0).sum())",
        "host waits in aten._local_scalar_dense.default",
    ),
    "a slot is pageable": (
        "[runtime.pin(kernel.empty(local)) for",
        "[kernel.empty(local) for",
        "copy from pageable memory",
    ),
    "a copy is blocking": ("non_blocking=True", "non_blocking=False", "blocking copy"),
}


@pytest.mark.gpu_static
@known_torch
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_sanitizer_finds_every_planted_mistake(packed: PackedDataset, mutant: str) -> None:
    original, changed, expected = MUTANTS[mutant]
    code = textwrap.dedent(inspect.getsource(PinnedSource._staged_batches))
    assert code.count(original) == 1
    names = dict(vars(pinned))
    exec(compile(code.replace(original, changed), "mutant", "exec"), names)

    class Mutant(PinnedSource):
        _staged_batches = names["_staged_batches"]

    problems = run_sanitized(packed, Mutant).problems

    assert problems
    assert all(problem.startswith(expected) for problem in problems)
