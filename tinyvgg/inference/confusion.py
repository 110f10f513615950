"""Confusion: which classes a network takes for which, and an order that puts such side by side.

From: a confusion matrix, int64 [K, K], images by label (row) and prediction (column).
To:   `evaluate`, pictures and the report.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class ConfusedPair(NamedTuple):
    """Images of one class that were taken for another.

    Attributes:
        label, prediction: of the classes.
        num_images: that were.
        share: of the images of the class, 0 to 1.
    """

    label: int
    prediction: int
    num_images: int
    share: float


def find_confused_pairs(confusion: NDArray[np.int64], most: int = 20) -> list[ConfusedPair]:
    """Return the pairs with the most images, at most so many; ties by share, then by label."""
    mistakes = confusion.copy()
    np.fill_diagonal(mistakes, 0)
    labels, predictions = np.nonzero(mistakes)
    counts = mistakes[labels, predictions]
    shares = counts / confusion.sum(axis=1)[labels]
    first = np.lexsort((predictions, labels, -shares, -counts))[:most]
    columns = (labels, predictions, counts, shares)
    return [
        ConfusedPair(*values)
        for values in zip(*(column[first].tolist() for column in columns), strict=True)
    ]


def find_worst_classes(confusion: NDArray[np.int64], most: int = 10) -> list[int]:
    """Return the labels with the least top-1, the worst first; of classes that have images."""
    counts = confusion.sum(axis=1)
    shares = np.diagonal(confusion) / np.maximum(counts, 1)
    order = np.argsort(shares, kind="stable")
    labels: list[int] = order[counts[order] > 0][:most].tolist()
    return labels


def order_by_similarity(confusion: NDArray[np.int64]) -> list[int]:
    """Return the labels so that classes taken for each other stand side by side.

    They are sorted by the second eigenvector of the normalized Laplacian of the mistakes, which
    puts the heaviest links over the shortest ways; without mistakes they stay as they are.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    links = shares + shares.T
    np.fill_diagonal(links, 0)
    if len(links) < 3 or not links.any():
        return list(range(len(links)))
    links += 1e-3 * links.max() / len(links)  # no class stands alone
    np.fill_diagonal(links, 0)
    scale = 1 / np.sqrt(links.sum(axis=1))
    laplacian = np.eye(len(links)) - scale[:, None] * links * scale
    position = np.linalg.eigh(laplacian)[1][:, 1] * scale
    if position[0] > np.median(position):  # an eigenvector has no sign of its own
        position = -position
    labels: list[int] = np.argsort(position, kind="stable").tolist()
    return labels
