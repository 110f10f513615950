"""Export: a network to a file that another program reads, which is read back before it counts.

From: `runs` or a notebook (a network).
To:   OUT, by its suffix, with `metadata` as strings:

    .safetensors  the weights alone; `tinyvgg evaluate` and `predict` read it as a checkpoint
    .onnx         a graph for onnxruntime and others; needs the extra 'onnx'
    .pt2          a graph for torch.export.load; metadata in the extra file "tinyvgg.json"

Both graphs take "images", [B, 3, H, W] RGB with any B, as uint8 or as float32 from 0 to 1,
normalize them, and give "logits", float32 [B, K]. They are exported from `forward`, a plain chain
of Conv, Relu and MaxPool, and not from `compute_logits`, which is made for a CPU's caches.

Promise: a file stands under its name only if, read back from disk, it gives the network's float32
logits at batch 1, 2 and 7: within 1e-4, of the largest one where that is under 1; or within 1e-5
of it where it is over 10.
"""

import copy
import importlib.util
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyvgg.durable import replace_file
from tinyvgg.errors import BackendUnavailable, CheckpointError
from tinyvgg.inference.config import EXPORT_SUFFIXES, ExportInput, check_export_suffix
from tinyvgg.inference.metadata import describe_network, find_input_size, hash_weights
from tinyvgg.inference.trained import TrainedNetwork
from tinyvgg.loading.batch import Normalization
from tinyvgg.model.vgg import MaxPoolReLU

BATCHES = (1, 2, 7)
TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-5  # of the largest logit: what float32 leaves of logits over 10
OPSET = 20
EXTRA_FILE = "tinyvgg.json"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUTS = {"uint8": "uint8, 0 to 255", "float": "float32, 0 to 1"}


@dataclass(frozen=True)
class Exported:
    """A file that was written and read back.

    Attributes:
        path: of it.
        num_bytes: its size.
        max_difference: of its logits from the network's.
        max_logit: the largest magnitude among these.
        metadata: what the file says of the network.
    """

    path: Path
    num_bytes: int
    max_difference: float
    max_logit: float
    metadata: dict[str, str]


class PixelNetwork(nn.Module):
    """A network that normalizes its images itself, and gives logits alone.

    Args:
        trained: copied, to the CPU.
        given: what the images are: "uint8", 0 to 255, or "float", 0 to 1.
    """

    def __init__(self, trained: TrainedNetwork, given: ExportInput) -> None:
        super().__init__()
        self.model = _with_plain_pools(copy.deepcopy(trained.model).cpu().float().eval())
        self.to(memory_format=torch.contiguous_format)  # what other programs expect
        scale, shift = _find_scale_shift(trained)
        self.scale = nn.Buffer(scale if given == "uint8" else scale * 255)
        self.shift = nn.Buffer(shift)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [B, K], of images [B, 3, H, W]."""
        output = self.model(images.float() * self.scale + self.shift)
        logits: Tensor = output[0] if isinstance(output, tuple) else output
        return logits


def _find_scale_shift(trained: TrainedNetwork) -> tuple[Tensor, Tensor]:
    """Return what normalizes pixels, 0 to 255: float32 [1, 3, 1, 1] each."""
    normalization = Normalization(trained.preprocessing.mean, trained.preprocessing.std)
    scale, shift = map(torch.from_numpy, (normalization.scale, normalization.shift))
    return scale.view(1, 3, 1, 1), shift.view(1, 3, 1, 1)


def _with_plain_pools(model: nn.Module) -> nn.Module:
    """Return a module in which torch's own layers pool: others become a dozen nodes each."""
    for name, child in model.named_children():
        if isinstance(child, MaxPoolReLU):
            setattr(model, name, nn.Sequential(nn.MaxPool2d(2), nn.ReLU()))
        else:
            _with_plain_pools(child)
    return model


def export(
    trained: TrainedNetwork,
    out: str | Path,
    *,
    given: ExportInput = "uint8",
    overwrite: bool = False,
) -> Exported:
    """Write a network into a file, and read it back.

    Args:
        trained: from `tinyvgg.load`.
        out: the file; its suffix says what it becomes.
        given: what a graph takes: "uint8", 0 to 255, or "float", 0 to 1.
        overwrite: whether a file that is there is replaced, once the new one is whole.

    Returns:
        What was written.

    Raises:
        CheckpointError: `out` is there already, the network cannot be exported, or what was
            written does not give its logits.
        BackendUnavailable: .onnx without the extra 'onnx'.
        OSError: `out` cannot be written.
        ValueError: another suffix.
    """
    path = Path(out)
    check_export_suffix(path)
    if path.suffix == ".onnx":
        check_onnx()
    if path.is_dir() or (path.exists() and not overwrite):
        what = "a folder" if path.is_dir() else "there already"
        raise CheckpointError(f"{path}: {what}; pass another name, or --overwrite for a file")
    metadata = describe_network(trained)
    if path.suffix == ".safetensors":
        metadata["weights_sha256"] = hash_weights(trained.model.state_dict())
    else:
        height, width = find_input_size(trained)
        metadata["input"] = f"images [B, 3, {height}, {width}], RGB, {INPUTS[given]}"
    write, read = WRITERS[path.suffix]
    data = _write(path, write, trained, given, metadata)
    pixels, expected = compute_expected(trained)
    largest = float(expected.abs().max())
    differences: list[float] = []

    def check(partial: Path) -> None:
        """Refuse what was written if it gives other logits."""
        compute = read(partial, trained, metadata)
        for size in BATCHES:
            images = pixels[:size] if given == "uint8" else pixels[:size].float() / 255
            differences.append(find_difference(compute(images), expected[:size]))
        allowed = max(TOLERANCE * min(1.0, largest), RELATIVE_TOLERANCE * largest)
        if not max(differences) <= allowed:  # NaN is none
            raise CheckpointError(
                f"{path}: read back, its logits differ by {max(differences):.2g} from the "
                f"network's, allowed are {allowed:.2g}; it was removed, export another format"
            )

    replace_file(path, data, check=check)
    return Exported(path, len(data), max(differences), largest, metadata)


Compute = Callable[[Tensor], Tensor]  # images as the file takes them, to logits
Write = Callable[[TrainedNetwork, ExportInput, dict[str, str]], bytes]


def _write(
    path: Path, write: Write, trained: TrainedNetwork, given: ExportInput, metadata: dict[str, str]
) -> bytes:
    try:
        return write(trained, given, metadata)
    except Exception as error:  # torch raises whatever it met in a network of the caller's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: the network cannot be exported ({reason[:200]}); export another format"
        ) from error


def find_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two tensors; infinite if their shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max())


@torch.no_grad()
def compute_expected(trained: TrainedNetwork) -> tuple[Tensor, Tensor]:
    """Return images, uint8 [7, 3, H, W] from noise to flat color, and the network's logits."""
    height, width = find_input_size(trained)
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (max(BATCHES), 3, height, width))
    color = generator.integers(0, 256, (max(BATCHES), 3, 1, 1))
    share = np.linspace(0, 1, max(BATCHES))[:, None, None, None]
    pixels = torch.from_numpy((noise * (1 - share) + color * share).astype(np.uint8))
    scale, shift = _find_scale_shift(trained)
    reference = copy.deepcopy(trained).cpu().float().eval()
    images = (pixels.float() * scale + shift).contiguous(memory_format=torch.channels_last)
    return pixels, reference(images)


def check_onnx() -> None:
    """Refuse to write ONNX where it cannot be written or read back.

    Raises:
        BackendUnavailable: a package is missing.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendUnavailable(
            f".onnx needs {', '.join(missing)}, not installed; run pip install 'tinyvgg[onnx]'"
        )


def write_safetensors(
    trained: TrainedNetwork, given: ExportInput, metadata: dict[str, str]
) -> bytes:
    """Return the bytes of a .safetensors."""
    from safetensors.torch import save

    weights = {name: tensor.cpu() for name, tensor in trained.model.state_dict().items()}
    # a tensor of its own each: safetensors takes neither channels-last nor shared memory
    weights = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
    data: bytes = save(weights, {"format": "pt", **metadata})
    return data


def read_safetensors(path: Path, trained: TrainedNetwork, metadata: dict[str, str]) -> Compute:
    """Return what the weights in a .safetensors compute of uint8 or float images."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        found = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    if {**found, "format": "pt"} != {"format": "pt", **metadata}:
        raise CheckpointError(f"{path}: read back, its metadata differ; export again")
    read = copy.deepcopy(trained).cpu()
    read.model.load_state_dict(weights)
    return lambda images: _compute(
        PixelNetwork(read, "uint8" if images.dtype == torch.uint8 else "float"), images
    )


@torch.no_grad()
def _compute(module: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = module(images)
    return logits


def _example(trained: TrainedNetwork, given: ExportInput) -> Tensor:
    """Return two images: of one, torch would make the batch a constant."""
    dtype = torch.uint8 if given == "uint8" else torch.float32
    return torch.zeros((2, 3, *find_input_size(trained)), dtype=dtype)


def _export_graph(trained: TrainedNetwork, given: ExportInput) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(
        PixelNetwork(trained, given).eval(),
        (_example(trained, given),),
        dynamic_shapes={"images": {0: batch}},
    )


def write_pt2(trained: TrainedNetwork, given: ExportInput, metadata: dict[str, str]) -> bytes:
    """Return the bytes of a .pt2."""
    data = io.BytesIO()
    extra = {EXTRA_FILE: json.dumps(metadata, indent=1, sort_keys=True)}
    with torch.no_grad():
        torch.export.save(_export_graph(trained, given), data, extra_files=extra)
    return data.getvalue()


def read_pt2(path: Path, trained: TrainedNetwork, metadata: dict[str, str]) -> Compute:
    """Return what a .pt2 computes."""
    extra = {EXTRA_FILE: ""}
    with path.open("rb") as file:
        program = torch.export.load(file, extra_files=extra)
    if json.loads(extra[EXTRA_FILE]) != metadata:
        raise CheckpointError(f"{path}: read back, its metadata differ; export again")
    module = program.module()
    return lambda images: _compute(module, images)


def write_onnx(trained: TrainedNetwork, given: ExportInput, metadata: dict[str, str]) -> bytes:
    """Return the bytes of an .onnx."""
    with torch.no_grad():
        program = torch.onnx.export(
            _export_graph(trained, given),
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    model: Any = program.model_proto  # type: ignore[union-attr]
    for name in sorted(metadata):
        model.metadata_props.add(key=name, value=metadata[name])
    data: bytes = model.SerializeToString()
    return data


def read_onnx(path: Path, trained: TrainedNetwork, metadata: dict[str, str]) -> Compute:
    """Return what onnxruntime computes of an .onnx."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    if session.get_modelmeta().custom_metadata_map != metadata:
        raise CheckpointError(f"{path}: read back, its metadata differ; export again")

    def compute(images: Tensor) -> Tensor:
        logits: NDArray[np.float32] = session.run(["logits"], {"images": images.numpy()})[0]
        return torch.from_numpy(logits)

    return compute


WRITERS: dict[str, tuple[Write, Callable[[Path, TrainedNetwork, dict[str, str]], Compute]]] = {
    ".safetensors": (write_safetensors, read_safetensors),
    ".onnx": (write_onnx, read_onnx),
    ".pt2": (write_pt2, read_pt2),
}
assert set(WRITERS) == set(EXPORT_SUFFIXES)
