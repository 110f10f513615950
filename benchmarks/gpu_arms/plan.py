"""Plan: every arm of the GPU benchmark, what matters most first. No torch here.

An arm is a generator function `target(setting, **options)` that yields rows as it measures them.
A row is a dict of JSON values: `name`, then figures whose names end in their units. An arm that
cannot be measured here raises `NotMeasured` with the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
BACKENDS = ("dali", "resident", "torch")
BATCH_SIZE = 512


class NotMeasured(Exception):  # noqa: N818 - a reason, not an error
    """This machine lacks what the arm needs."""


@dataclass(frozen=True)
class Setting:
    """Where and how closely to measure; the same for all arms.

    Attributes:
        packed: folder that `tinyvgg pack` wrote.
        device: "cuda" or "cpu".
        is_tiny: execute every arm's code, as small as it goes; the figures mean nothing.
        data: folder or zip of real images, or None.
        num_windows: measured of each figure.
    """

    packed: str
    device: str
    is_tiny: bool = False
    data: str | None = None
    num_windows: int = 5

    @property
    def num_steps(self) -> int:
        """Steps of a unit: on a GPU many, for a unit of the loop plans its part of an epoch."""
        if self.is_tiny:
            return 1
        return 100 if self.device == "cuda" else 2

    @property
    def window_sec(self) -> float:
        """Least length of a window."""
        return 0.0 if self.is_tiny else 0.5

    def scale(self, full: int, tiny: int) -> int:
        """Return the size that an arm uses."""
        return tiny if self.is_tiny else full

    def require_cuda(self) -> None:
        """Refuse to call a figure of a CPU one of CUDA."""
        if self.device != "cuda":
            raise NotMeasured("needs CUDA")


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: for `--arms`.
        what: it measures, in a few words.
        target: "module:function".
        options: of the function, JSON values.
        limit_sec: after which it is stopped.
    """

    name: str
    what: str
    target: str
    options: dict[str, Any] = field(default_factory=dict)
    limit_sec: float = 60.0


def step(name: str, what: str, *, limit_sec: float = 90, **options: Any) -> Arm:
    """Return an arm of the step alone, of recipe fast at batch 512 where not said otherwise."""
    options = {"batch_size": BATCH_SIZE, "mode": "default", **options}
    return Arm(name, f"step alone, {what}", "benchmarks.gpu_arms.steps:time_step",
               options, limit_sec)  # fmt: skip


def load(backend: str, dtype: str, batch_size: int) -> Arm:
    """Return an arm of a loader alone."""
    return Arm(f"load-{batch_size}-{backend}-{dtype}",
               f"loader {backend} alone, {dtype}, batch {batch_size}",
               "benchmarks.gpu_arms.loaders:time_loader",
               {"backend": backend, "dtype": dtype, "batch_size": batch_size}, 40)  # fmt: skip


def train(backend: str, mode: str) -> Arm:
    """Return an arm of the training loop, beside its step."""
    return Arm(f"train-{backend}-{mode}",
               f"training end to end over its step, loader {backend}, compile mode {mode}",
               "benchmarks.gpu_arms.steps:time_loop",
               {"backend": backend, "mode": mode, "batch_size": BATCH_SIZE}, 90)  # fmt: skip


def profile(backend: str, mode: str) -> Arm:
    """Return an arm that lists the kernels of a step."""
    return Arm(f"profile-{backend}-{mode}",
               f"kernels, launches, copies of 20 steps, loader {backend}, compile mode {mode}",
               "benchmarks.gpu_arms.kernels:profile_steps",
               {"backend": backend, "mode": mode, "batch_size": BATCH_SIZE}, 90)  # fmt: skip


def simple(name: str, what: str, target: str, limit_sec: float = 40, **options: Any) -> Arm:
    """Return an arm of one of the other files."""
    return Arm(name, what, f"benchmarks.gpu_arms.{target}", options, limit_sec)


ARMS: Sequence[Arm] = (
    step("step-512-default", "compiled", limit_sec=180),
    step("step-512-reduce-overhead", "compiled, CUDA graphs", mode="reduce-overhead"),
    *(load(backend, "bfloat16", BATCH_SIZE) for backend in BACKENDS),
    *(train(backend, "default") for backend in BACKENDS),
    *(train(backend, "reduce-overhead") for backend in BACKENDS),
    profile("resident", "default"),
    simple("ceiling-matmul", "ceiling: a bf16 matrix product", "ceilings:time_matmul"),
    simple("ceiling-copy", "ceiling: a copy within the device", "ceilings:time_device_copy"),
    simple("ceiling-host-to-device", "ceiling: a copy from pinned memory to the device",
           "ceilings:time_host_copy"),
    step("step-512-eager", "eager", mode="eager"),
    *(simple(f"optimizer-{name}", f"the update alone, {name}", "steps:time_optimizer",
             optimizer=name) for name in ("muon", "adamw", "sgd")),
    *(simple(f"to-60-{recipe}", f"seconds to 60 % top-1 on DATA, recipe {recipe}",
             "real:train_to_target", 150, recipe=recipe) for recipe in ("fast", "fast-bn")),
    *(step(f"step-{size}-default", f"compiled, batch {size}", batch_size=size)
      for size in (1024, 256, 128, 64)),
    step("step-64-reduce-overhead", "compiled, CUDA graphs, batch 64", batch_size=64,
         mode="reduce-overhead"),
    *(simple(f"evaluate-{backend}", f"validation passes, loader {backend}",
             "steps:time_evaluation", backend=backend) for backend in BACKENDS),
    *(step(f"step-512-{name}", f"compiled, optimizer {name}", optimizer=name)
      for name in ("adamw", "sgd")),
    step("step-512-48-pixels", "compiled, images of 64 reduced to 48 pixels", pixels=48),
    *(step(f"step-512-cudnn-benchmark-{word}", f"compiled, cudnn.benchmark {word}",
           cudnn_benchmark=word == "on") for word in ("on", "off")),
    step("step-512-combo-kernels", "compiled, small kernels joined", combo_kernels=True),
    step("step-512-fast-bn", "compiled, recipe fast-bn", recipe="fast-bn"),
    step("step-512-strong", "compiled, recipe strong: vgg16_bn with averaged weights",
         recipe="strong"),
    profile("dali", "reduce-overhead"),
    simple("convolutions", "ceiling: each convolution, forward and both gradients",
           "ceilings:time_convolutions", 60),
    simple("pointwise", "ceiling: a pointwise pass over conv1's output",
           "ceilings:time_pointwise"),
    *(load(backend, dtype, BATCH_SIZE) for dtype in ("float16", "uint8") for backend in BACKENDS),
    *(load(backend, "bfloat16", 64) for backend in BACKENDS),
    simple("peer-torchvision", "peer: torchvision decode_jpeg (nvJPEG) on DATA, normalized",
           "peers:time_torchvision"),
    simple("peer-dali-jpeg", "peer: DALI's mixed decoder on DATA's JPEG files, normalized",
           "peers:time_dali_files"),
    step("step-512-max-autotune", "compiled, tries kernels", mode="max-autotune", limit_sec=240),
)  # fmt: skip


def select_arms(words: Sequence[str]) -> list[Arm]:
    """Return the arms that bear a name or, where none does, part of it; all without words.

    Raises:
        ValueError: a word that no arm knows.
    """
    if not words:
        return list(ARMS)
    chosen: set[str] = set()
    for word in words:
        names = {arm.name for arm in ARMS}
        found = {word} & names or {name for name in names if word in name}
        if not found:
            raise ValueError(f"no arm is called {word!r}, or in part; --list prints their names")
        chosen |= found
    return [arm for arm in ARMS if arm.name in chosen]
