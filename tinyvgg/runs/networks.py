"""Networks: the one in a checkpoint, ready to be called and scored.

From: a checkpoint that a run wrote, or anybody else.
To:   `inference`, which gets networks and never paths; and a notebook.
"""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from tinyvgg.errors import CheckpointError
from tinyvgg.inference.trained import Preprocessing, TrainedNetwork
from tinyvgg.loading.batch import channel_triple
from tinyvgg.model.vgg import ARCHS, build_network
from tinyvgg.runs.checkpoint import Checkpoint, read_checkpoint
from tinyvgg.runs.weight_file import SUFFIX, read_weight_file
from tinyvgg.training.devices import find_device


def load(
    checkpoint: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    device: str | torch.device = "auto",
) -> TrainedNetwork:
    """Read the network of a checkpoint.

    Args:
        checkpoint: RUN/best.pt or RUN/last.pt, or a .safetensors that `tinyvgg export` wrote.
        model: takes the weights, where `fit` was given a network; in place.
        device: where the network goes; "auto" takes an accelerator where there is one.

    Returns:
        The network in eval mode, with its classes and what its images must be; the file is no
        longer needed.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint of a network, or of one that diverged;
            or the weights are of another network than `model`.
        BackendUnavailable, ValueError: there is no such device.
    """
    path = Path(checkpoint)
    target = find_device(device) if isinstance(device, str) else device
    if path.suffix.lower() == SUFFIX:
        fields = read_weight_file(path, target)
    else:
        fields = read_checkpoint(path, Checkpoint, target)
    if model is None:
        model = _build_described(path, fields)
    elif (misfit := _find_misfit(fields.model, model.state_dict())) is not None:
        raise CheckpointError(f"{path}: {misfit}; pass the model that was trained")
    model.load_state_dict(fields.model)
    preprocessing = Preprocessing(
        channel_triple(fields.mean),
        channel_triple(fields.std),
        fields.pixels,
        fields.amp,
        fields.center_share,
        fields.stored_size,
        fields.is_center,
    )
    trained = TrainedNetwork(
        model, fields.class_folders, fields.class_words, preprocessing, fields.arch
    )
    return trained.to(target).eval()


def _build_described(path: Path, fields: Checkpoint) -> nn.Module:
    """Return the network whose name stands in a checkpoint.

    Raises:
        CheckpointError: none does, or the weights are not of it.
    """
    if fields.arch is None:
        raise CheckpointError(
            f"{path}: holds the weights of a network of your own; evaluate it from Python, as "
            "tinyvgg.load(checkpoint, model=...)"
        )
    limits = ARCHS[fields.arch]
    if not limits.min_pixels <= fields.pixels <= limits.max_pixels:
        raise CheckpointError(
            f"{path}: holds no network (pixels {fields.pixels:,}, {fields.arch} takes "
            f"{limits.min_pixels} to {limits.max_pixels}); use another one"
        )
    with torch.device("meta"):  # shapes only: nothing is allocated for what does not fit
        expected = build_network(fields.arch, len(fields.class_folders)).state_dict()
    if (misfit := _find_misfit(fields.model, expected)) is not None:
        raise CheckpointError(f"{path}: {misfit}; use another one, previous.pt say")
    return build_network(fields.arch, len(fields.class_folders))


def _find_misfit(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    """Say in one line why tensors are not the weights of a network, or None if they are."""
    odd = sorted(found.keys() ^ expected.keys())
    if odd:
        return f"weights are of another network ({len(odd):,} names differ, {odd[0]!r} first)"
    for name, tensor in found.items():
        shape, needed = list(tensor.shape), list(expected[name].shape)
        if shape != needed:
            return f"weight {name!r} is {shape}, needed {needed}"
        if tensor.layout != torch.strided or tensor.dtype != expected[name].dtype:
            return f"weight {name!r} is {tensor.dtype}, needed {expected[name].dtype}"
        if not tensor.isfinite().all():
            return f"weight {name!r} is NaN or infinite, so the run had diverged"
    return None
