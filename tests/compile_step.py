"""Compile a training step of VGG_Net, and the pixel pass, for a GPU that is not here.

    python -m tests.compile_step 90

prints one line of JSON. Autograd refuses to run backward on fake CUDA tensors, so the step is
traced on the CPU (forward, backward, AdamW), moved to CUDA node by node, and handed to inductor,
which writes Triton kernels and compiles them to cubins with the ptxas that comes with Triton.
"""

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

CAPABILITY = (int(sys.argv[1]) // 10, int(sys.argv[1]) % 10)
CACHE = tempfile.TemporaryDirectory()
os.environ["TORCHINDUCTOR_CACHE_DIR"] = CACHE.name
os.environ["TRITON_CACHE_DIR"] = f"{CACHE.name}/triton"

from tests.gpu_static import pretend_cuda  # noqa: E402 - the folders come first

pretend_cuda(CAPABILITY)

import torch  # noqa: E402
import torch._inductor.config  # noqa: E402
import torch._inductor.lowering  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._inductor.compile_fx import compile_fx_inner  # noqa: E402
from torch._inductor.decomposition import select_decomp_table  # noqa: E402
from torch._inductor.fx_passes.replace_random import replace_random_passes  # noqa: E402
from torch._inductor.utils import run_and_get_code  # noqa: E402
from torch._inductor.virtualized import V  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.fx.passes.fake_tensor_prop import FakeTensorProp  # noqa: E402
from torch.utils._pytree import tree_flatten  # noqa: E402

from tinyvgg.dropout import Dropout  # noqa: E402
from tinyvgg.loading.batch import transform_images  # noqa: E402
from tinyvgg.model import LogitsOnly, VGG_Net, initialize_he  # noqa: E402
from tinyvgg.training.config import TrainConfig  # noqa: E402
from tinyvgg.training.step import TrainStep, build_optimizer  # noqa: E402

CUDA = torch.device("cuda", 0)
torch._inductor.config.compile_threads = 1


class StepLoss(nn.Module):
    """The loss that `TrainStep` computes, as a module whose parameters can be replaced."""

    def __init__(self, step: TrainStep) -> None:
        super().__init__()
        self.network = step.network
        self.compute_loss = step.compute_loss

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.compute_loss(images, labels)[0]


def training_step() -> tuple[Any, list[Any]]:
    """Return the whole step as a function of flat state, and its arguments."""
    torch.compiler.is_compiling = lambda: True
    # what CUDA's dropout is; on the CPU, where this is traced, there is no such operation
    Dropout.forward = lambda self, images: torch.native_dropout(images, self.p, True)[0]  # type: ignore[method-assign,assign,misc]
    config = TrainConfig(Path("packed"), Path("run"), optimizer="adamw", dropout=0.1)
    model = VGG_Net(100, dropout=config.dropout)
    initialize_he(model)
    network = LogitsOnly(model).train()
    step = TrainStep(
        network, build_optimizer(model, config), config, "fp16", torch.device("cpu"), False
    )
    loss_of = StepLoss(step)
    names = [name for name, _ in loss_of.named_parameters()]

    def take(
        weights: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
        counts: list[Tensor],
        images: Tensor,
        labels: Tensor,
    ) -> list[Tensor]:
        def loss(weights: list[Tensor]) -> Tensor:
            parameters = dict(zip(names, weights, strict=True))
            return torch.func.functional_call(loss_of, parameters, (images, labels))

        gradients, value = torch.func.grad_and_value(loss)(weights)
        updated = torch.ops.aten._fused_adamw.default(
            weights, list(gradients), means, squares, [], counts,
            lr=6e-4, beta1=0.9, beta2=0.99, weight_decay=0.05, eps=1e-8,
            amsgrad=False, maximize=False,
        )  # fmt: skip
        return [value, *(tensor for part in updated for tensor in part)]

    weights = [parameter.detach().clone() for parameter in loss_of.parameters()]
    zeros = [[torch.zeros_like(weight) for weight in weights] for _ in range(2)]
    counts = [torch.ones(()) for _ in weights]
    images = torch.randn(64, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    return take, [weights, *zeros, counts, images, torch.zeros(64, dtype=torch.int64)]


def pixel_pass() -> tuple[Any, list[Any]]:
    """Return `transform_images` to fp16, and its arguments."""

    def take(*args: Tensor) -> list[Tensor]:
        return [transform_images(*args, torch.float16)]

    stored = torch.zeros(64, 64, 64, 3, dtype=torch.uint8)
    offsets = torch.zeros(64, dtype=torch.int32)
    flip, fill = torch.zeros(64, dtype=torch.bool), torch.zeros(3, dtype=torch.uint8)
    scale, shift = torch.ones(3), torch.ones(3)
    return take, [stored, torch.arange(64), offsets, offsets, flip, fill, scale, shift]


def move_to_cuda(function: Any, arguments: list[Any]) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """Trace on the CPU and return the graph and its fake inputs on CUDA."""
    traced = make_fx(
        torch.func.functionalize(function, remove="mutations"),
        tracing_mode="fake",
        decomposition_table=select_decomp_table(),
    )(*arguments)
    on_cpu = next(v for n in traced.graph.nodes if isinstance(v := n.meta.get("val"), Tensor))
    with V.set_fake_mode(on_cpu.fake_mode):
        replace_random_passes(traced)
    for node in traced.graph.nodes:
        node.args = tuple(CUDA if isinstance(arg, torch.device) else arg for arg in node.args)
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": CUDA}
    traced.graph.set_codegen(torch.fx.graph.CodeGen())
    traced.recompile()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    flat, _ = tree_flatten(arguments)
    with mode:
        inputs = [
            torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=CUDA)
            for tensor in flat
        ]
        FakeTensorProp(traced, mode).propagate_dont_convert_inputs(*inputs)
    return traced, inputs


def find_layout_copies(code: str) -> list[str]:
    """Return the kernels that transpose maps: tiled in two directions, over tensors [B, C, H, W].

    Matrices of fully connected layers are transposed, too; those are not maps.
    """
    found = []
    for block in re.split(r"^(?=# kernel path)", code, flags=re.MULTILINE):
        name = re.search(r"^(triton_\w+) = async_compile", block, re.MULTILINE)
        is_tiled = re.search(r"size_hints=\{'y'", block)
        if name and is_tiled and re.search(r'Tensor "\w+\[\d+, \d+, \d+, \d+\]', block):
            found.append(name.group(1))
    return found


def describe(function: Any, arguments: list[Any]) -> dict[str, Any]:
    """Compile and return what the graph, the generated code and the cache show."""
    graph, inputs = move_to_cuda(function, arguments)
    tensors = [
        (node, node.meta["val"])
        for node in graph.graph.nodes
        if isinstance(node.meta.get("val"), Tensor)
    ]
    mode = tensors[0][1].fake_mode
    before = set(Path(CACHE.name).rglob("*.cubin"))
    with torch._guards.tracing(torch._guards.TracingContext(mode)), mode:
        _, codes = run_and_get_code(compile_fx_inner, graph, inputs)
    (code,) = codes
    if "--code" in sys.argv:
        sys.stderr.write(code)
    cubins = set(Path(CACHE.name).rglob("*.cubin")) - before
    return {
        "num_nodes": len(graph.graph.nodes),
        "not_on_cuda": [node.name for node, value in tensors if value.device != CUDA],
        "convolutions": [
            str(node.target).split(".")[1] for node in graph.graph.nodes
            if "convolution" in str(node.target)
        ],
        "kernels": re.findall(r"^(triton_\w+) = async_compile", code, re.MULTILINE),
        "num_cubins": len(cubins),
        "layout_copies": find_layout_copies(code),
        "host_syncs": re.findall(r"aten\.(?:_local_scalar_dense|nonzero|item)\b", code),
        "code_lines": len(code.splitlines()),
    }  # fmt: skip


def main() -> None:
    found = {"step": describe(*training_step()), "pixel_pass": describe(*pixel_pass())}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
