"""Scores: what `tinyvgg evaluate` found, as lines and as a confusion matrix.

From: `inference`.
To:   stdout, and confusion.csv and confusion.png.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from tinyvgg.endings import explain_error
from tinyvgg.inference.confusion import find_confused_pairs, find_worst_classes
from tinyvgg.inference.evaluate import Evaluation
from tinyvgg.reporting.console import print_lines
from tinyvgg.reporting.plots import plot_confusion
from tinyvgg.reporting.tables import write_confusion

logger = logging.getLogger("tinyvgg")


NUM_WORST, NUM_PAIRS = 10, 20


def print_evaluation(
    evaluation: Evaluation, class_names: Sequence[str], class_words: Sequence[str]
) -> None:
    """Print every class and the averages, in the reference's words; then what goes wrong."""
    print_lines(
        "Accuracy of %5s : %2d %%" % (name, 100 * top1)  # noqa: UP031 - its format
        for name, top1 in zip(class_names, evaluation.class_top1.tolist(), strict=True)
        if top1 == top1  # NaN: no image of that class in the split
    )
    print_lines(
        [
            f"Accuracy average: {100 * evaluation.average_top1:.2f} %",
            f"top-1 {100 * evaluation.top1:.2f} %, top-5 {100 * evaluation.top5:.2f} %, "
            f"loss {evaluation.loss:.4f} on {int(evaluation.confusion.sum()):,} images",
        ]
    )
    names = [
        f"{name} ({words})" if words and words != name else name
        for name, words in zip(class_names, class_words, strict=True)
    ]
    counts, top1 = evaluation.confusion.sum(axis=1), evaluation.class_top1
    worst = find_worst_classes(evaluation.confusion, NUM_WORST)
    lines = [f"worst classes, {len(worst)} of {len(names)}:"]
    lines += [
        f"  {100 * top1[label]:5.1f} % of {counts[label]:,}  {names[label]}" for label in worst
    ]
    pairs = find_confused_pairs(evaluation.confusion, NUM_PAIRS)
    lines += ["most confused pairs, label -> prediction:"] if pairs else []
    lines += [
        f"  {pair.num_images:,} images, {100 * pair.share:.1f} % of the class: "
        f"{names[pair.label]} -> {names[pair.prediction]}"
        for pair in pairs
    ]
    print_lines(lines)


def draw_confusion(
    evaluation: Evaluation,
    class_names: Sequence[str],
    class_words: Sequence[str],
    out: Path,
    *,
    is_needed: bool,
) -> None:
    """Write the confusion matrix as a table and as a picture.

    Args:
        evaluation: what to draw.
        class_names: in label order.
        class_words: what they are called, "" where nobody said; the picture says these.
        out: folder for confusion.csv and confusion.png.
        is_needed: whether it is an error if they cannot be written, and not a warning.

    Raises:
        OSError: they cannot be written, and are needed.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_confusion(evaluation.confusion, class_names, out / "confusion.csv")
        shown = [words or name for name, words in zip(class_names, class_words, strict=True)]
        plot_confusion(evaluation.confusion, shown, out / "confusion.png")
    except OSError as error:
        if is_needed:
            raise
        reason = explain_error(error)[1]
        logger.warning("%s, or pass --out (the results are complete)", reason)


def find_fault(evaluation: Evaluation, min_top1: float | None) -> str | None:
    """Say why a network is not good enough, or None if it is."""
    if not math.isfinite(evaluation.loss):
        found = f"loss {evaluation.loss}: the outputs are NaN or infinite"
        return f"{found}; pass --amp off, or train again"
    if min_top1 is not None and evaluation.top1 < min_top1:
        asked = f"--min-top1 asks for {min_top1:.4f}"
        return f"top-1 {evaluation.top1:.4f}, {asked}; train longer"
    return None
