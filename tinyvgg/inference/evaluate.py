"""Evaluate: a network and a split to accuracy, loss and a confusion matrix, every image once.

From: `training` or `runs.networks` (a network) and `loading`.
To:   the command line, and `reporting`.

K classes. Padding rows, whose label is -100, count nowhere, and sums are divided by the global
count, so the result does not depend on batch size or world size. Always in eval mode. Nothing is
read from the device before the end, so the host runs ahead of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyvgg.loading.batch import resize_images
from tinyvgg.loading.loader import Loader
from tinyvgg.model.vgg import Network
from tinyvgg.ranks import is_distributed
from tinyvgg.training.amp import AMP_DTYPES


@dataclass(frozen=True)
class Evaluation:
    """Result of one pass over a split.

    Attributes:
        loss: mean cross-entropy, without label smoothing.
        top1, top5: share of images whose label is the best, among the best five; 0 to 1.
        confusion: int64 [K, K], images by label (row) and prediction (column).
    """

    loss: float
    top1: float
    top5: float
    confusion: NDArray[np.int64]

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


@torch.no_grad()
def evaluate_network(
    network: Network,
    loader: Loader,
    num_classes: int,
    *,
    amp: str,
    device: torch.device,
    pixels: int | None = None,
    advance: Callable[[int], Any] = lambda num_images: None,
) -> Evaluation:
    """Score a network on one pass of a loader, on all ranks together.

    Args:
        network: gives logits [B, K]; put into eval mode, and back.
        loader: not shuffled or shuffled, with padding or without: every image counts once.
        num_classes: K.
        amp: "off", "bf16" or "fp16".
        device: of the batches.
        pixels: shorter side that images are reduced to, as in training; None: as stored.
        advance: called with the number of images scored; may raise to end the pass.

    Returns:
        Loss, hits and confusion matrix over all ranks, the same on each; no tensor of the device.
    """
    was_training = network.training
    network.eval()
    # one bin more than pairs of classes: padding's, so that shapes stay and the host waits for none
    num_bins = num_classes * num_classes + 1
    confusion = torch.zeros(num_bins, dtype=torch.int64, device=device)
    top5_hits = torch.zeros((), dtype=torch.int64, device=device)
    losses: list[Tensor] = []
    for batch in loader.epoch(0):
        images = batch.images if pixels is None else resize_images(batch.images, pixels)
        with torch.autocast(device.type, AMP_DTYPES[amp], enabled=amp != "off"):
            logits = network.compute_logits(images)
        logits, labels = logits.float(), batch.labels
        losses.append(nn.functional.cross_entropy(logits, labels, reduction="none"))  # padding's: 0
        best = logits.topk(min(5, num_classes), dim=1).indices
        top5_hits += (best == labels[:, None]).sum()
        pairs = torch.where(labels < 0, num_bins - 1, labels * num_classes + best[:, 0])
        confusion.scatter_add_(0, pairs, torch.ones_like(pairs))
        advance(batch.num_valid)
    network.train(was_training)
    if is_distributed():
        for sums in (confusion, top5_hits):
            torch.distributed.all_reduce(sums)
    matrix = confusion[:-1].view(num_classes, num_classes).cpu().numpy()
    num_images = int(matrix.sum())
    return Evaluation(
        loss=_sum_over_ranks(torch.cat(losses)) / num_images,
        top1=int(np.trace(matrix)) / num_images,
        top5=top5_hits.item() / num_images,
        confusion=matrix,
    )


def _sum_over_ranks(values: Tensor) -> float:
    """Return the sum of all ranks' values, exact until it is rounded once.

    So it depends neither on batch size or world size nor on the order in which a device adds.

    Args:
        values: float32 [n], 4 bytes an image; every rank has as many, padding included.
    """
    parts = [values]
    if is_distributed():
        parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, values)
    return math.fsum(torch.cat(parts).tolist())
