"""CUDA code checked without CUDA: what torch offers for it, all of it private, in this one file.

    SanitizedRuntime    a `pinned.Runtime` over CPU tensors; torch's CUDA sanitizer checks the order
    HostSyncSpy         operations on fake CUDA tensors that would make the host wait
    pretend_cuda        enough of a CUDA device for inductor to compile for it; nothing can run

Known to hold for torch 2.11 to 2.14; `known_torch` skips, with the reason, under any other.
"""

import contextlib
import itertools
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.cuda._sanitizer as sanitizer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
known_torch = pytest.mark.skipif(
    not (2, 11) <= tuple(map(int, torch.__version__.split(".")[:2])) <= (2, 14),
    reason=f"NOT RUN: private names of torch 2.11 to 2.14, this is {torch.__version__}",
)


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class SanitizedStream:
    def __init__(self, runtime: "SanitizedRuntime") -> None:
        self.runtime, self.id = runtime, next(runtime.numbers)
        self.num_launched = 0
        runtime.handler._handle_stream_creation(self.id)

    def record_event(self) -> "SanitizedEvent":
        return SanitizedEvent(self)

    def wait_event(self, event: "SanitizedEvent") -> None:
        self.runtime.handler._handle_event_wait(event.id, self.id)


class SanitizedEvent:
    def __init__(self, stream: SanitizedStream) -> None:
        self.stream, self.runtime = stream, stream.runtime
        self.id, self.recorded_at = next(self.runtime.numbers), stream.num_launched
        self.runtime.handler._handle_event_creation(self.id)
        self.runtime.handler._handle_event_record(self.id, stream.id)

    def synchronize(self) -> None:
        """Let the host wait; for the last thing its stream was given, that is a stall."""
        if self.stream.num_launched == self.recorded_at:
            self.runtime.problems.append("host waits for the newest copy")
        self.runtime.handler._handle_event_synchronization(self.id)


class SanitizedRuntime(TorchDispatchMode):
    """Runs at once on CPU memory, and tells the sanitizer what would run where on a device.

    `problems` lists races, host waits and copies that are pageable or blocking. What the host
    writes into pinned memory is checked, too: `host_write` makes it a launch on a stream of its
    own that has seen what the host has waited for.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.handler = sanitizer.EventHandler()
        self.numbers = itertools.count(1)
        self.model_stream = self.active = SanitizedStream(self)
        self.device_memory: set[int] = set()
        self.pinned_memory: set[int] = set()
        self.problems: list[str] = []
        self.num_copies = 0
        self.kept: list[Tensor] = []  # no address is used twice

    # pinned.Runtime

    def new_stream(self) -> SanitizedStream:
        return SanitizedStream(self)

    def current_stream(self) -> SanitizedStream:
        return self.active

    @contextlib.contextmanager
    def on_stream(self, stream: SanitizedStream) -> Iterator[None]:
        self.active, before = stream, self.active
        yield
        self.active = before

    def pin(self, tensor: Tensor) -> Tensor:
        pinned = tensor.clone()
        self.pinned_memory.add(storage_of(pinned))
        self.kept.append(pinned)
        return pinned

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory that the model's stream may have had until now."""
        memory = torch.full(shape, 99, dtype=dtype)
        self.device_memory.add(storage_of(memory))
        self.kept.append(memory)
        self.launch("empty", set(), {storage_of(memory)})
        return memory

    def upload(self, tensor: Tensor) -> Tensor:
        copy = self.empty(*tensor.shape, dtype=tensor.dtype)
        return copy.copy_(tensor, non_blocking=True)

    # the sanitizer

    def launch(self, name: str, read: set[int], written: set[int]) -> None:
        self.active.num_launched += 1
        aliases = {address: [hex(address)] for address in read | written}
        errors = self.handler._handle_kernel_launch(
            self.active.id, read - written, written, set(), name, aliases
        )
        self.problems += [f"race at {name}" for _ in errors]

    def host_write(self, write: Any) -> Any:
        """Wrap a function whose argument `out`, the last one, is memory that the host writes."""

        def checked(*args: Any, **kwargs: Any) -> None:
            with self.on_stream(SanitizedStream(self)):
                self.launch("host write", set(), {storage_of(args[-1])})
                self.handler._handle_event_synchronization(self.active.record_event().id)
            write(*args, **kwargs)

        return checked

    def __torch_dispatch__(
        self, func: Any, types_: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        out = func(*args, **kwargs)
        read = {storage_of(tensor) for tensor in inputs} & self.device_memory
        is_view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not read or is_view:
            return out
        if func in (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default):
            self.problems.append(f"host waits in {func}")
            return out
        written = {
            storage_of(value)
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        }
        if func is aten.copy_.default:
            self.check_copy(args[0], args[1], args[2] if len(args) > 2 else False)
            read |= {storage_of(args[1])} & self.pinned_memory
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and storage_of(tensor) not in written:
                self.device_memory.add(storage_of(tensor))
                self.kept.append(tensor)
                written = written | {storage_of(tensor)}
        self.launch(str(func), read, written)
        return out

    def check_copy(self, target: Tensor, source: Tensor, non_blocking: bool) -> None:
        if storage_of(target) not in self.device_memory:
            self.problems.append("host waits for a copy from the device")
        elif storage_of(source) not in self.device_memory:
            self.num_copies += 1
            if not non_blocking:
                self.problems.append("blocking copy")
            if storage_of(source) not in self.pinned_memory:
                self.problems.append("copy from pageable memory")


class HostSyncSpy(TorchDispatchMode):
    """Lists operations that would make the host wait for the device, or copy to it in secret."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.hits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types_: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if func in (
            aten._local_scalar_dense.default,
            aten.nonzero.default,
            aten.masked_select.default,
            aten._unique2.default,
        ):
            self.hits.append(str(func))
        elif func is aten._to_copy.default:
            target = torch.device(kwargs.get("device") or args[0].device).type
            if target != args[0].device.type and not kwargs.get("non_blocking"):
                self.hits.append(f"blocking copy to {target}")
        elif func is aten.copy_.default and args[0].device.type != args[1].device.type:
            if not (len(args) > 2 and args[2]):
                self.hits.append(f"blocking copy to {args[0].device.type}")
        elif func in (aten.index.Tensor, aten.index_put_.default):
            if any(tensor.dtype == torch.bool for tensor in tensors[1:]):
                self.hits.append("index by a mask")
            if len({tensor.device.type for tensor in tensors if tensor.dim()}) > 1:
                self.hits.append("index of another device")
        return func(*args, **kwargs)


def pretend_cuda(capability: tuple[int, int]) -> None:
    """Let this process compile for a CUDA device; for good, so call it in a process of its own."""
    major, minor = capability
    name = f"pretended sm_{major}{minor}"
    properties = types.SimpleNamespace(
        name=name,
        major=major,
        minor=minor,
        total_memory=80 << 30,
        multi_processor_count=132,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=232448 if major >= 9 else 166912,
        shared_memory_per_multiprocessor=233472 if major >= 9 else 167936,
        L2_cache_size=50 << 20,
        gcnArchName="",
        uuid="pretended",
        clock_rate=1755000,
        memory_clock_rate=2619000,
        memory_bus_width=5120,
    )
    for attribute, value in {
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": properties,
        "get_device_capability": capability,
        "get_device_name": name,
        "is_bf16_supported": True,
        "synchronize": None,
        "set_device": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "mem_get_info": (70 << 30, 80 << 30),
        "get_arch_list": [f"sm_{major}{minor}"],
    }.items():
        setattr(torch.cuda, attribute, lambda *_, value=value, **__: value)
    allow_cuda_autocast()

    from torch._inductor.runtime import triton_helpers
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils import _triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime.driver import driver

    class PretendedDriver(CudaDriver):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 10 * major + minor, 32)

        def get_current_device(self) -> int:
            return 0

        def get_device_capability(self, device: int = 0) -> tuple[int, int]:
            return capability

        def get_current_stream(self, device: int = 0) -> int:
            return 0

        @staticmethod
        def is_active() -> bool:
            return True

    driver.set_active(PretendedDriver())
    driver._default = driver._active
    _triton.has_triton = lambda: True  # type: ignore[assignment]
    triton_helpers.set_driver_to_gpu = lambda: None
    # compiled to a cubin, never loaded
    CachingAutotuner._make_launchers = lambda self: setattr(self, "launchers", [])  # type: ignore[method-assign]
    FakeTensorMode.avoid_device_init = property(lambda self: True)  # type: ignore[assignment, method-assign]


def allow_cuda_autocast() -> None:
    """Let `torch.autocast("cuda")` follow its rules although there is no device."""
    from torch.cuda.amp import common

    common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
