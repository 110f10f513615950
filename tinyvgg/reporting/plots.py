"""Plots: the history of a run and a confusion matrix as PNG files.

From: `training` (metrics of each epoch) and `inference` (a confusion matrix).
To:   files in the run folder. Figures are drawn without a display.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray

from tinyvgg.errors import naming, printable
from tinyvgg.inference.confusion import find_confused_pairs, order_by_similarity
from tinyvgg.reporting.fonts import choose_fonts

DOTS_PER_INCH = 120
MAX_NAMED_CLASSES = 200  # above, names would be smaller than a pixel a stroke
NAME_CHARACTERS = 28
NUM_PAIRS = 20


def plot_curves(history: Sequence[dict[str, Any]], folder: Path) -> None:
    """Draw train against validation: `loss.png` and `accuracy.png`.

    Train images are the fixed sample, scored as val images are; in a run from before there was one
    they are those of the training steps, and the label says so.

    Args:
        history: one dictionary an epoch, with epoch, train_loss, val_loss, train_top1, val_top1;
            and pixels, sample_loss, sample_top1 and sample_images where they are known.
        folder: where the two files go.
    """
    epochs = [int(metrics["epoch"]) + 1 for metrics in history]
    num_sampled = next((found for m in history if (found := m.get("sample_images"))), None)
    best = max(range(len(history)), key=lambda number: history[number]["val_top1"], default=None)
    for file_name, key, label, scale in (
        ("loss.png", "loss", "cross-entropy", 1),
        ("accuracy.png", "top1", "top-1, %", 100),
    ):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot()
        train, name = f"sample_{key}", f"train: {num_sampled or 0:,} fixed images, scored as val"
        if num_sampled is None:
            train, name = f"train_{key}", "train: as trained (augmented, smoothed)"
        for column, legend in ((train, name), (f"val_{key}", "val")):
            values = [np.nan if (v := m.get(column)) is None else scale * v for m in history]
            axes.plot(epochs, values, marker="o", markersize=3, label=legend)
        if best is not None:
            value = (
                scale * history[best]["val_top1"] if key == "top1" else history[best]["val_loss"]
            )
            legend = f"best val top-1: epoch {epochs[best]}"
            axes.axvline(epochs[best], color="gray", linewidth=0.8)
            axes.plot(  # hollow: what it marks stays visible
                [epochs[best]], [value], "*", color="black", markersize=14, markerfacecolor="none",
                label=legend,
            )  # fmt: skip
        _mark_sizes(axes, history, epochs)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        if len(set(epochs)) == 1:
            axes.xaxis.set_major_locator(FixedLocator(epochs[:1]))
            axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        _save(figure, folder / file_name)


def _mark_sizes(axes: Axes, history: Sequence[dict[str, Any]], epochs: Sequence[int]) -> None:
    """Draw a dotted line where images begin to have another size."""
    sizes = [metrics.get("pixels") for metrics in history]
    for number in range(1, len(sizes)):
        if sizes[number] != sizes[number - 1]:
            place = epochs[number] - 0.5
            axes.axvline(place, color="gray", linewidth=0.8, linestyle=":")
            across = axes.get_xaxis_transform()
            text = f" {sizes[number]} px"
            axes.text(place, 0.01, text, transform=across, fontsize=7, color="dimgray")


def plot_confusion(confusion: NDArray[np.int64], class_names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix: the root of each row's shares, so that rare mistakes are seen.

    Classes that are taken for each other stand side by side. The most confused pairs stand beside
    the matrix as text.

    Args:
        confusion: int64 [K, K], images by label (row) and prediction (column).
        class_names: K names; written on the axes, behind their labels, up to 200 classes.
        path: of the PNG.
    """
    counts = confusion.sum(axis=1, keepdims=True)
    order = order_by_similarity(confusion)
    shares = np.sqrt(confusion / np.maximum(counts, 1))[np.ix_(order, order)]
    num_classes = len(order)
    names = [f"{label} {_shorten(class_names[label])}" for label in order]
    texts = [
        f"{_shorten(class_names[pair.label])} → {_shorten(class_names[pair.prediction])}: "
        f"{pair.num_images:,} ({100 * pair.share:.0f} %)"
        for pair in find_confused_pairs(confusion, NUM_PAIRS)
    ]
    side = min(max(5.0, 0.14 * num_classes), 20.0)  # inches
    families = choose_fonts([*names, *texts])
    figure = Figure(figsize=(side + 2.5, side + 1.5), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    ticks = np.array([0, 1, 5, 10, 25, 50, 100])
    bar = figure.colorbar(
        drawn, label="share of the class, %", ticks=np.sqrt(ticks / 100), shrink=0.6, pad=0.02
    )
    bar.ax.set_yticklabels(list(map(str, ticks)))
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    if num_classes <= MAX_NAMED_CLASSES:
        positions = range(num_classes)
        size = min(8.0, 0.8 * 72 * side / num_classes)  # points
        # a dollar sign in a name begins no formula
        look: dict[str, Any] = {"fontsize": size, "parse_math": False, "family": families}
        axes.set_xticks(positions, names, rotation=90, **look)
        axes.set_yticks(positions, names, **look)
        axes.tick_params(length=2)
    title = "Most confused pairs (label → prediction: images)" if texts else "No image was mistaken"
    beside = figure.text(
        1.02,
        0.98,
        "\n".join([title, "", *texts]),
        va="top",
        fontsize=8,
        family=families,
        parse_math=False,
        in_layout=False,
    )
    _save(figure, path, beside)


def _shorten(name: str) -> str:
    text = printable(name)
    return text if len(text) <= NAME_CHARACTERS else text[: NAME_CHARACTERS - 1] + "…"


def _save(figure: Figure, path: Path, *beside: Artist) -> None:
    """Write a figure as PNG, with what stands beside it."""
    with naming(path), warnings.catch_warnings():
        # `choose_fonts` has said so in one line
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        extra: dict[str, Any] = (
            {"bbox_inches": "tight", "bbox_extra_artists": beside} if beside else {}
        )
        figure.savefig(path, dpi=DOTS_PER_INCH, **extra)
