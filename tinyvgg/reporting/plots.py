"""Plots: the history of a run and a confusion matrix as PNG files.

From: `training` (metrics of each epoch) and `inference` (a confusion matrix).
To:   files in the run folder. Figures are drawn without a display.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tinyvgg.errors import naming, printable

DOTS_PER_INCH = 120


def plot_curves(history: Sequence[dict[str, float]], folder: Path) -> None:
    """Draw train against validation: `loss.png` and `accuracy.png`.

    Args:
        history: one dictionary an epoch, with epoch, train_loss, val_loss, train_top1, val_top1.
        folder: where the two files go.
    """
    epochs = [int(metrics["epoch"]) + 1 for metrics in history]
    for file_name, key, label, scale in (
        ("loss.png", "loss", "cross-entropy", 1),
        ("accuracy.png", "top1", "top-1, %", 100),
    ):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        for split in ("train", "val"):
            values = [scale * metrics[f"{split}_{key}"] for metrics in history]
            axes.plot(epochs, values, marker="o", markersize=3, label=split)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
        _save(figure, folder / file_name)


def plot_confusion(confusion: NDArray[np.int64], class_names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix, each row as shares of its class.

    Args:
        confusion: int64 [K, K], images by label (row) and prediction (column).
        class_names: K names; written on the axes, behind their labels, up to 40 classes.
        path: of the PNG.
    """
    counts = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(counts, 1)
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    figure.colorbar(drawn, label="share of the class")
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    if len(class_names) <= 40:
        positions = range(len(class_names))
        names = [f"{label} {printable(name)}" for label, name in enumerate(class_names)]
        # a dollar sign in a name begins no formula
        axes.set_xticks(positions, names, rotation=90, fontsize=6, parse_math=False)
        axes.set_yticks(positions, names, fontsize=6, parse_math=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with naming(path), warnings.catch_warnings():
        # no font has every script: boxes stand for such a name, behind its label
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, dpi=DOTS_PER_INCH)
