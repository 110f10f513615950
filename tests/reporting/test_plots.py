from pathlib import Path

import numpy as np
from PIL import Image

from tinyvgg.reporting.plots import plot_confusion, plot_curves


def test_curves_are_two_images_with_something_drawn(tmp_path: Path) -> None:
    history = [
        {"epoch": epoch, "train_loss": 2.0 - epoch, "val_loss": 2.1 - epoch}
        | {"train_top1": 0.1 * epoch, "val_top1": 0.1 * epoch}
        for epoch in range(2)
    ]

    plot_curves(history, tmp_path)

    for name in ("loss.png", "accuracy.png"):
        with Image.open(tmp_path / name) as image:
            assert np.asarray(image.convert("L")).std() > 5


def test_confusion_is_brightest_on_the_diagonal_of_a_perfect_network(tmp_path: Path) -> None:
    plot_confusion(np.eye(3, dtype=np.int64) * 4, ["a", "b", "c"], tmp_path / "confusion.png")

    with Image.open(tmp_path / "confusion.png") as image:
        colors = {tuple(color) for color in np.asarray(image.convert("RGB")).reshape(-1, 3)}
    assert (253, 231, 36) in colors  # viridis at 1
    assert (68, 1, 84) in colors  # viridis at 0
