"""Hold-out: images of each class set aside for val, where a source has no val split.

Promises: the share is that of every class (stratified), rounded, at least one image of a class
of two or more, never its last one; the choice depends on (seed, class, path) alone, so
that neither other classes nor the container of a source changes it. The order of an image is the
SHA-256 of those three, which no library will ever compute differently.
"""

import hashlib
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Holdout:
    """How many images of each class become val, and which draw of them."""

    share: float
    seed: int = 0


def hold_out(
    by_class: dict[str, list[str]], holdout: Holdout, prefix: str
) -> dict[str, dict[str, list[str]]]:
    """Share out the paths of each class between "train" and "val"; their order stays.

    Args:
        by_class: paths of each class.
        holdout: the share and the seed.
        prefix: what all paths begin with and what does not count ("train/").

    Returns:
        Paths by split and class.
    """
    splits: dict[str, dict[str, list[str]]] = {"train": {}, "val": {}}
    for name, paths in by_class.items():
        num_val = min(max(1, int(len(paths) * holdout.share + 0.5)), len(paths) - 1)
        ranked = sorted(
            paths, key=lambda path: _draw(holdout.seed, name, path.removeprefix(prefix))
        )
        val = set(ranked[:num_val])
        splits["train"][name] = [path for path in paths if path not in val]
        splits["val"][name] = [path for path in paths if path in val]
    return splits


def _draw(seed: int, class_folder: str, path: str) -> bytes:
    return hashlib.sha256(os.fsencode(f"{seed}\0{class_folder}\0{path}")).digest()
