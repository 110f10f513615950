"""Compile what a GPU would run, for a GPU that is not here, and count what comes out.

    python -m tests.compile_step 90 [--code]

prints one line of JSON: for the step (forward and backward, as torch.compile cuts them), for
Muon's update and for the pixel pass, the Triton kernels, the library calls and the layout copies.

Autograd refuses to run backward on fake CUDA tensors. So torch.compile runs on the CPU up to
inductor, whose graphs are kept instead of compiled; they are moved to CUDA node by node and
handed to inductor, which writes Triton kernels and compiles them to cubins with the ptxas that
comes with Triton. No graph is ever executed.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
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
from torch import Tensor  # noqa: E402
from torch._functorch.aot_autograd import make_boxed_func  # type: ignore[attr-defined]  # noqa: E402
from torch._inductor.compile_fx import compile_fx, compile_fx_inner  # noqa: E402
from torch._inductor.fx_passes.replace_random import replace_random_passes  # noqa: E402
from torch._inductor.utils import run_and_get_code  # noqa: E402
from torch._inductor.virtualized import V  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.fx.passes.fake_tensor_prop import FakeTensorProp  # noqa: E402

from tinyvgg.loading.batch import transform_images  # noqa: E402
from tinyvgg.model.dropout import Dropout  # noqa: E402
from tinyvgg.training.build import build_model  # noqa: E402
from tinyvgg.training.config import Recipe  # noqa: E402
from tinyvgg.training.muon import update_convolutions  # noqa: E402
from tinyvgg.training.step import BatchLoss  # noqa: E402

CUDA = torch.device("cuda", 0)
BATCH = 64
torch._inductor.config.compile_threads = 1

Graph = tuple[torch.fx.GraphModule, list[Any]]


def capture_graphs(function: Callable[..., Any], *arguments: Tensor) -> list[Graph]:
    """Return the graphs that torch.compile hands to inductor, and their inputs; run none."""
    graphs: list[Graph] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any, **_: Any) -> Any:
        graphs.append((graph, list(inputs)))
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        shapes = [
            None if node is None else (v.size(), v.stride(), v.dtype)  # type: ignore[union-attr]
            for node in output.args[0]
            for v in [node if node is None else node.meta["val"]]
        ]
        return make_boxed_func(
            lambda *_: [s and torch.empty_strided(s[0], s[1], dtype=s[2]) for s in shapes]
        )

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        return compile_fx(graph, inputs, inner_compile=keep)

    out = torch.compile(function, backend=backend, fullgraph=True, dynamic=False)(*arguments)
    loss = out[0] if isinstance(out, tuple) else out
    if isinstance(loss, Tensor) and loss.requires_grad:
        loss.backward()
    return graphs


def step_graphs() -> list[Graph]:
    """Return forward and backward of recipe `fast` with dropout, in fp16."""
    # what CUDA's dropout is; on the CPU, where this is traced, there is no such operation
    Dropout.forward = lambda self, images: torch.native_dropout(images, self.p, True)[0]  # type: ignore[method-assign, assignment]
    config = Recipe(dropout=0.1)
    loss = BatchLoss(build_model(config, 100).train(), "fp16", config.label_smoothing)
    images = torch.zeros(BATCH, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    return capture_graphs(loss, images, torch.zeros(BATCH, dtype=torch.int64))


def muon_graphs() -> list[Graph]:
    """Return the graph of Muon's update of the ten convolutions, without weight decay."""
    model = build_model(Recipe(), 100)
    weights: list[Tensor] = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    momenta, squares = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    counts = [torch.zeros(()) for _ in weights]

    def update(rate: Tensor) -> None:
        update_convolutions(weights, momenta, squares, counts, rate, 0.0, torch.bfloat16, True)

    with torch.no_grad():
        return capture_graphs(update, torch.ones(()))


def pixel_pass_graphs() -> list[Graph]:
    """Return the graph of `transform_images` to fp16."""
    stored = torch.zeros(BATCH, 64, 64, 3, dtype=torch.uint8)
    offsets = torch.zeros(BATCH, dtype=torch.int32)
    flip, fill = torch.zeros(BATCH, dtype=torch.bool), torch.zeros(3, dtype=torch.uint8)
    constants = (fill, torch.ones(3), torch.ones(3))

    def take(*arguments: Any) -> Tensor:
        return transform_images(*arguments, dtype=torch.float16)  # type: ignore[misc]

    return capture_graphs(take, stored, torch.arange(BATCH), offsets, offsets, flip, *constants)


def move_to_cuda(graph: torch.fx.GraphModule, inputs: list[Any]) -> list[Any]:
    """Let a graph be one of CUDA; return its fake inputs there."""
    on_cpu: Any = next(v for n in graph.graph.nodes if isinstance(v := n.meta.get("val"), Tensor))
    with V.set_fake_mode(on_cpu.fake_mode):
        replace_random_passes(graph)
    for node in graph.graph.nodes:
        node.args = tuple(CUDA if isinstance(arg, torch.device) else arg for arg in node.args)
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": CUDA}
    graph.recompile()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        moved = [
            torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=CUDA)
            if isinstance(value, Tensor)
            else value
            for value in inputs
        ]
        FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*moved)
    return moved


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


def describe(graphs: list[Graph]) -> dict[str, Any]:
    """Compile graphs and return what they, the generated code and the cache show, added up."""
    found: dict[str, Any] = {"not_on_cuda": [], "convolutions": [], "kernels": [], "calls": []}
    found |= {"layout_copies": [], "host_syncs": [], "num_launches": 0}
    before = set(Path(CACHE.name).rglob("*.cubin"))
    for graph, cpu_inputs in graphs:
        inputs = move_to_cuda(graph, cpu_inputs)
        nodes = [node for node in graph.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
        mode = nodes[0].meta["val"].fake_mode
        with torch._guards.tracing(torch._guards.TracingContext(mode)), mode:
            _, codes = run_and_get_code(compile_fx_inner, graph, inputs)
        (code,) = codes
        if "--code" in sys.argv:
            sys.stderr.write(code)
        body = code[code.index("def call(") :]
        calls = re.findall(r"= (?:extern_kernels|torch\.ops)\.([\w.]+)\(", body)
        calls += re.findall(r"^ +extern_kernels\.(\w+)\(", body, re.MULTILINE)
        launched = re.findall(r"^ +(triton_\w+)\.run\(", body, re.MULTILINE)
        found["not_on_cuda"] += [
            node.name
            for node in nodes
            if node.meta["val"].device != CUDA and node.meta["val"].dim()  # numbers are compiled in
        ]
        found["convolutions"] += [
            str(node.target).split(".")[1]
            for node in graph.graph.nodes
            if "convolution" in str(node.target)
        ]
        found["kernels"] += launched
        found["calls"] += calls
        found["layout_copies"] += find_layout_copies(code)
        found["host_syncs"] += re.findall(r"aten\.(?:_local_scalar_dense|nonzero|item)\b", code)
        found["num_launches"] += len(launched) + len(calls)
    found["num_cubins"] = len(set(Path(CACHE.name).rglob("*.cubin")) - before)
    return found


def main() -> None:
    graphs = {"step": step_graphs, "muon": muon_graphs, "pixel_pass": pixel_pass_graphs}
    found = {name: describe(capture()) for name, capture in graphs.items()}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
