"""Networks: the one in a checkpoint, ready to be scored.

From: a checkpoint that a run wrote, or anybody else.
To:   `inference`, which gets networks and never paths.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyvgg.errors import CheckpointError
from tinyvgg.inference.config import EvaluateConfig
from tinyvgg.inference.evaluate import Evaluation, evaluate_network
from tinyvgg.loading.batch import channel_triple
from tinyvgg.loading.config import LoaderConfig
from tinyvgg.loading.open import open_loader
from tinyvgg.model.vgg import ARCHS, Network, build_network
from tinyvgg.runs.checkpoint import Checkpoint, read_checkpoint
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.amp import AMP_DTYPES


@dataclass(frozen=True)
class TrainedNetwork:
    """A network read from a checkpoint, with what its input and output mean.

    Attributes:
        model: in eval mode, on the device.
        class_folders: in label order.
        mean, std: per channel on the 0-to-1 scale, that its input is normalized with.
        amp: the precision it was trained in.
        pixels: shorter side of the images it was last trained on.
    """

    model: Network
    class_folders: list[str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    amp: str
    pixels: int


def read_network(path: Path, device: torch.device) -> TrainedNetwork:
    """Read the network of a checkpoint.

    Returns:
        The network in eval mode, on `device`; the file is no longer needed.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint of a network, or of one that diverged.
    """
    fields = read_checkpoint(path, Checkpoint, device)
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
    model = build_network(fields.arch, len(fields.class_folders))
    model.load_state_dict(fields.model)
    return TrainedNetwork(
        model.to(device).eval(),
        fields.class_folders,
        channel_triple(fields.mean),
        channel_triple(fields.std),
        fields.amp,
        fields.pixels,
    )


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


def check_classes(trained: TrainedNetwork, dataset: PackedDataset) -> None:
    """Refuse a data set whose classes are not the network's.

    Raises:
        CheckpointError: they differ in number or name.
    """
    found, needed = dataset.class_names, trained.class_folders
    if len(found) != len(needed):
        raise CheckpointError(
            f"manifest has {len(found)} classes, checkpoint was trained on {len(needed)}; "
            "train again or pass the dataset it was trained on"
        )
    for label, (folder, expected) in enumerate(zip(found, needed, strict=True)):
        if folder != expected:
            raise CheckpointError(
                f"class {label} is {folder!r} in the manifest, {expected!r} in the checkpoint; "
                "train again or pass the dataset it was trained on"
            )


def score_network(
    trained: TrainedNetwork,
    dataset: PackedDataset,
    config: EvaluateConfig,
    device: torch.device,
    advance: Callable[[int], Any],
) -> Evaluation:
    """Score a trained network on a split, normalized and resized as in its training.

    Args:
        trained: from `read_network`.
        dataset: with the classes it was trained on.
        config: which split, in what precision, through which backend.
        device: that the network is on.
        advance: called with the number of images scored.

    Returns:
        Loss, hits and confusion matrix over every image of the split, as Python and numpy values.

    Raises:
        BackendUnavailable: the backend that `config` names cannot run here.
        ShardError: the split is empty.
    """
    amp = trained.amp if config.amp == "auto" else config.amp
    loader_config = LoaderConfig(
        backend=config.backend,
        batch_size=config.batch_size,
        shuffle=False,
        augment=False,
        drop_last=False,
        mean=trained.mean,
        std=trained.std,
        reuse_buffers=True,
    )
    loader = open_loader(dataset, config.split, loader_config, device=device, dtype=AMP_DTYPES[amp])
    return evaluate_network(
        trained.model,
        loader,
        len(dataset.class_names),
        amp=amp,
        device=device,
        pixels=trained.pixels,
        advance=advance,
    )
