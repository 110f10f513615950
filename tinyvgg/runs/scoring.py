"""Scoring: a trained epoch to its record, by val images and by a sample of train images.

From: `training` (a trainer whose epoch is trained).
To:   `fit`, which records and saves it.

What training says of its own images, it says of augmented ones, with dropout, smoothed labels and
weights of the past: no measure to hold against that of val images. So a fixed sample of train
images is scored like them: 2 % of the split, at least 100, at most 2,000 images, drawn by a seed of
its own. Nothing is drawn from torch's generators, so training does not depend on it.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvgg.inference.evaluate import Evaluation, evaluate_network, open_scored
from tinyvgg.loading.loader import Loader
from tinyvgg.options import Backend
from tinyvgg.runs.checkpoint import EpochRecord
from tinyvgg.runs.signals import StopRequest, StopRequested
from tinyvgg.training.trainer import Trainer

SAMPLE_SHARE = 0.02
MIN_SAMPLE, MAX_SAMPLE = 100, 2_000
SAMPLE_SEED = 0
BATCH_SIZE = 250  # at most, of the sample on each rank


def choose_sample(num_images: int) -> NDArray[np.int64]:
    """Return the rows of the sample of a train split, int64 [n], ascending; always the same."""
    size = min(max(round(SAMPLE_SHARE * num_images), MIN_SAMPLE), MAX_SAMPLE, num_images)
    generator = np.random.default_rng([SAMPLE_SEED, num_images])
    return np.sort(generator.choice(num_images, size, replace=False)).astype(np.int64)


class Scorer:
    """Scores the epochs of a trainer.

    Args:
        trainer: whose network is scored.
        backend: of the loader of val images.

    Attributes:
        last: the last evaluation of val images; None before one.
    """

    def __init__(self, trainer: Trainer, backend: Backend) -> None:
        self.trainer = trainer
        self.last: Evaluation | None = None
        self.val_loader = self._open("val", backend, None)
        self.sample = choose_sample(trainer.dataset.train.num_images)
        batch_size = min(len(self.sample), BATCH_SIZE)
        # `resident` would take the whole split
        is_dali = self.val_loader.backend == "dali"
        self.sample_loader = self._open("train", "dali" if is_dali else "torch", batch_size)
        self.sample_loader.choose_rows(self.sample)

    def _open(self, split: str, backend: Backend, batch_size: int | None) -> Loader:
        """Return a loader whose images are normalized as those of the trainer."""
        trainer = self.trainer
        return open_scored(
            trainer.dataset,
            split,
            trainer.device,
            trainer.image_dtype,
            mean=trainer.loader.normalization.mean,
            std=trainer.loader.normalization.std,
            backend=backend,
            batch_size=batch_size,
            size=trainer.recipe.size,
            center_share=trainer.recipe.center_share,
        )

    def _evaluate(self, loader: Loader, pixels: int, advance: Callable[[int], Any]) -> Evaluation:
        loader.set_size(pixels)
        return evaluate_network(
            self.trainer.scored_model,
            loader,
            len(self.trainer.dataset.class_names),
            amp=self.trainer.amp,
            device=self.trainer.device,
            advance=advance,
        )

    def score(self, stop: StopRequest, on_scored: Callable[[int], None]) -> EpochRecord | None:
        """Return the record of the trained epoch; None without one, or if scoring was stopped.

        Args:
            stop: asked between two batches.
            on_scored: called with the number of val images of each batch.
        """
        trained = self.trainer.trained
        if trained is None:
            return None

        def advance(num_images: int) -> None:
            on_scored(num_images)
            stop.check()

        try:
            evaluation = self._evaluate(self.val_loader, trained.pixels, advance)
            sample = self._evaluate(
                self.sample_loader, trained.pixels, lambda num_images: stop.check()
            )
        except StopRequested:  # the epoch is scored by the run that goes on
            return None
        self.trainer.trained = None
        self.last = evaluation
        return EpochRecord(
            **asdict(trained),
            val_loss=evaluation.loss,
            val_top1=evaluation.top1,
            val_top5=evaluation.top5,
            sample_loss=sample.loss,
            sample_top1=sample.top1,
            sample_images=len(self.sample),
        )
