"""Evaluate: a network and a split to accuracy, loss and a confusion matrix, every image once.

From: `runs` or a notebook (a network) and `loading`.
To:   the command line, and `reporting`.

K classes. Padding rows, whose label is -100, count nowhere, sums are exact and divided by the
global count. Convolutions of another number of images may round otherwise, so no batch is cut among
ranks: each takes whole batches of a size that does not depend on how many ranks there are. So every
image stands in the same batch at the same place, and any number of ranks comes to the same result,
to the last bit. Always in eval mode. Nothing is read from the device before the end, so the host
runs ahead of it.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyvgg.inference.trained import TrainedNetwork, check_classes, find_preprocessing
from tinyvgg.loading.config import CENTER_SHARE, LoaderConfig
from tinyvgg.loading.loader import Loader
from tinyvgg.loading.open import open_given, open_loader
from tinyvgg.model.vgg import compute_logits
from tinyvgg.options import Amp, Backend
from tinyvgg.ranks import find_rank, is_distributed
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.amp import AMP_DTYPES


@dataclass(frozen=True)
class ScoredImages:
    """What a network said of every image of a split, by row of the split.

    Attributes:
        rows: int64 [n], ascending.
        predictions: int64 [n], labels.
        confidences: float32 [n], probability of the prediction, 0 to 1.
        losses: float32 [n], cross-entropy.
    """

    rows: NDArray[np.int64]
    predictions: NDArray[np.int64]
    confidences: NDArray[np.float32]
    losses: NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """Result of one pass over a split.

    Attributes:
        loss: mean cross-entropy, without label smoothing.
        top1, top5: share of images whose label is the best, among the best five; 0 to 1.
        confusion: int64 [K, K], images by label (row) and prediction (column).
        images: each of them; None where nobody kept them.
    """

    loss: float
    top1: float
    top5: float
    confusion: NDArray[np.int64]
    images: ScoredImages | None = None

    @property
    def class_top1(self) -> NDArray[np.float64]:
        """Top-1 of each class, float64 [K]; NaN for a class without images."""
        counts = self.confusion.sum(axis=1)
        hits = np.diagonal(self.confusion)
        shares = np.full(len(hits), np.nan)
        np.divide(hits, counts, out=shares, where=counts > 0)
        return shares

    @property
    def average_top1(self) -> float:
        """Mean of the classes' top-1, each class counted once."""
        return float(np.nanmean(self.class_top1))

    def describe(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return everything but the confusion matrix, ready for JSON (a missing class is null)."""
        return {
            "loss": self.loss,
            "top1": self.top1,
            "top5": self.top5,
            "average_top1": self.average_top1,
            "num_images": int(self.confusion.sum()),
            "class_top1": {
                name: None if np.isnan(top1) else top1
                for name, top1 in zip(class_names, self.class_top1.tolist(), strict=True)
            },
        }


def open_scored(
    dataset: PackedDataset,
    split: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    mean: Iterable[float] | None,
    std: Iterable[float] | None,
    backend: Backend,
    batch_size: int | None = None,
    size: int | None = None,
    center_share: float = CENTER_SHARE,
) -> Loader:
    """Return a loader of every image of a split once, in order, neither cropped nor flipped.

    Arguments are those of `open_loader` and `LoaderConfig`, but for `batch_size`, which is that of
    each rank; None means 1,024 images, which fill a GPU, or 256, which fit a CPU's cache.
    """
    if batch_size is None:
        batch_size = 256 if device.type == "cpu" else 1024
    _, world_size = find_rank()
    config = LoaderConfig(
        backend=backend,
        batch_size=batch_size * world_size,
        shuffle=False,
        augment=False,
        drop_last=False,
        size=size,
        center_share=center_share,
        mean=mean,
        std=std,
        reuse_buffers=True,
    )
    return open_loader(dataset, split, config, device=device, dtype=dtype)


@dataclass
class Tally:
    """What scored images add up to, on one rank or on all.

    Attributes:
        pairs: int64 [K * K + 1], images by label and prediction; the last bin is padding's.
        top5_hits: int64 scalar.
        losses: float32 [n], one an image, 0 for padding; every rank has as many.
        ids: int64 [n], -1 for padding.
        predictions: int64 [n].
        confidences: float32 [n], probability of the prediction.
    """

    pairs: Tensor
    top5_hits: Tensor
    losses: Tensor
    ids: Tensor
    predictions: Tensor
    confidences: Tensor

    def over_ranks(self) -> "Tally":
        """Return the tally of all ranks, which must call it together."""
        if not is_distributed():
            return self
        for sums in (self.pairs, self.top5_hits):
            torch.distributed.all_reduce(sums)
        columns = (self.losses, self.ids, self.predictions, self.confidences)
        return Tally(self.pairs, self.top5_hits, *map(_gather, columns))

    def read(self) -> Evaluation:
        """Return the figures; waits for the device.

        Losses are added exactly and rounded once, so neither the number of ranks counts nor the
        order in which a device adds.
        """
        num_classes = math.isqrt(len(self.pairs) - 1)
        matrix = self.pairs[:-1].view(num_classes, num_classes).cpu().numpy()
        num_images = int(matrix.sum())
        ids = self.ids.cpu().numpy()
        order = np.argsort(ids, kind="stable")[np.count_nonzero(ids < 0) :]  # without padding
        columns = (self.ids, self.predictions, self.confidences, self.losses)
        return Evaluation(
            loss=math.fsum(self.losses.tolist()) / num_images,
            top1=int(np.trace(matrix)) / num_images,
            top5=self.top5_hits.item() / num_images,
            confusion=matrix,
            images=ScoredImages(*(column.cpu().numpy()[order] for column in columns)),
        )


def _gather(values: Tensor) -> Tensor:
    """Return the values [n] of all ranks, one rank's after the other's; all have as many."""
    parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, values)
    return torch.cat(parts)


@torch.no_grad()
def tally_images(
    network: nn.Module,
    loader: Loader,
    num_classes: int,
    *,
    amp: str,
    device: torch.device,
    advance: Callable[[int], Any] = lambda num_images: None,
) -> Tally:
    """Score a network on one rank's part of a pass of a loader; arguments as `evaluate_network`.

    Raises:
        ValueError: the network gives another number of logits.
    """
    was_training = network.training
    network.eval()
    # one bin more than pairs of classes: padding's, so that shapes stay and the host waits for none
    num_bins = num_classes * num_classes + 1
    pairs = torch.zeros(num_bins, dtype=torch.int64, device=device)
    top5_hits = torch.zeros((), dtype=torch.int64, device=device)
    losses: list[Tensor] = []
    told: list[tuple[Tensor, ...]] = []
    num_scored = 0
    try:
        for batch in loader.epoch(0):
            with torch.autocast(device.type, AMP_DTYPES[amp], enabled=amp != "off"):
                logits = compute_logits(network, batch.images)
            if logits.shape[1] != num_classes:
                found = f"got {logits.shape[1]:,}"
                raise ValueError(f"network must give {num_classes:,} logits, one a class, {found}")
            logits, labels = logits.float(), batch.labels
            # padding's is 0
            losses.append(nn.functional.cross_entropy(logits, labels, reduction="none"))
            best = logits.topk(min(5, num_classes), dim=1).indices
            top5_hits += (best == labels[:, None]).sum()
            found_pairs = torch.where(labels < 0, num_bins - 1, labels * num_classes + best[:, 0])
            pairs.scatter_add_(0, found_pairs, torch.ones_like(found_pairs))
            # `ids` of a batch are another's when that is asked for
            told.append((batch.ids.clone(), best[:, 0], logits.softmax(dim=1).amax(dim=1)))
            num_after = min(num_scored + loader.batch_size, len(loader.dataset))
            advance(num_after - num_scored)
            num_scored = num_after
    finally:
        network.train(was_training)
    columns = (torch.cat(parts) for parts in zip(*told, strict=True))
    return Tally(pairs, top5_hits, torch.cat(losses), *columns)


def evaluate_network(
    network: nn.Module,
    loader: Loader,
    num_classes: int,
    *,
    amp: str,
    device: torch.device,
    advance: Callable[[int], Any] = lambda num_images: None,
) -> Evaluation:
    """Score a network on one pass of a loader, on all ranks together.

    Args:
        network: gives logits [B, K], or a tuple that begins with them; put into eval mode, and
            back.
        loader: not shuffled or shuffled, with padding or without: every image counts once.
        num_classes: K.
        amp: "off", "bf16" or "fp16".
        device: of the batches.
        advance: called with the number of images that all ranks scored in a step; may raise to end
            the pass.

    Returns:
        Loss, hits and confusion matrix over all ranks, the same on each; no tensor of the device.

    Raises:
        ValueError: the network gives another number of logits.
    """
    tally = tally_images(network, loader, num_classes, amp=amp, device=device, advance=advance)
    return tally.over_ranks().read()


def evaluate(
    network: nn.Module,
    dataset: PackedDataset | str | os.PathLike[str],
    *,
    split: str = "val",
    device: str | torch.device | None = None,
    backend: Backend = "auto",
    batch_size: int | None = None,
    amp: Amp = "auto",
    pixels: int | None = None,
    mean: Iterable[float] | None = None,
    std: Iterable[float] | None = None,
    advance: Callable[[int], Any] = lambda num_images: None,
) -> Evaluation:
    """Score a network on every image of a split, in eval mode; on all ranks together.

    What `fit` and `load` have noted on the network says how its images are normalized and reduced
    and in what precision it computes; arguments override it. Where nothing is noted, images are
    normalized by the statistics of the train split, and taken as they are stored, in float32.

    Args:
        network: gives logits [B, K], or a tuple that begins with them; stays in its mode.
        dataset: with the classes it was trained on, or the folder that holds it.
        split: "val" or "train".
        device: where to compute; None: where the network is.
        backend: of the loader.
        batch_size: images in a batch of each rank; the result depends on it as far as the
            network's arithmetic does, and on the number of ranks not at all. None: 256 on a CPU,
            1,024 elsewhere.
        amp: autocast type; "auto": as noted.
        pixels: shorter side that images are reduced to; None: as noted.
        mean: per channel on the 0-to-1 scale, that pixels are normalized with; None: as noted.
        std: likewise.
        advance: called with the number of images scored; may raise to end the pass.

    Returns:
        Loss, hits and confusion matrix, as Python and numpy values.

    Raises:
        CheckpointError: the network comes from a checkpoint, and its classes are others.
        TypeError: `network` is no module, or `dataset` no data set.
        BackendUnavailable: `backend` cannot run here.
        ShardError: the split is empty, or the folder holds no data set.
        ValueError: another number of logits than classes, or a parameter that cannot be.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(
            "network must be a torch.nn.Module, tinyvgg.load(checkpoint) for example, "
            f"got {type(network).__name__}"
        )
    dataset = open_given(dataset)
    if isinstance(network, TrainedNetwork):
        check_classes(network, dataset)
    if device is None:
        device = next((weight.device for weight in network.parameters()), "cpu")
    target = torch.device(device)
    center_share = CENTER_SHARE
    if (noted := find_preprocessing(network)) is not None:
        mean = noted.mean if mean is None else mean
        std = noted.std if std is None else std
        pixels = noted.pixels if pixels is None else pixels
        amp = noted.amp if amp == "auto" else amp
        center_share = noted.center_share
    if amp == "auto":
        amp = "off"
    if pixels is None and dataset.manifest.image.size is None:
        raise ValueError("pixels must be given for images of several sizes, 224 for example")
    loader = open_scored(
        dataset,
        split,
        target,
        AMP_DTYPES[amp],
        mean=mean,
        std=std,
        backend=backend,
        batch_size=batch_size,
        size=pixels,
        center_share=center_share,
    )
    with loader:
        return evaluate_network(
            network,
            loader,
            len(dataset.class_names),
            amp=amp,
            device=target,
            advance=advance,
        )
