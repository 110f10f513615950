"""Folders: a source of images, in a folder or a zip, to class names and sorted (path, label).

From: the user, who has a folder or a .zip, in one of the layouts of `layouts`, or a list of paths
      and labels (`csv_list`).
To:   `pack`, which reads every image once, in this order.

Promises: labels follow the sorted class folder names, as in `torchvision.datasets.ImageFolder`;
images are sorted by (class folder, path inside it), byte by byte, so a folder, its zip and the
other layouts give the same order. All layouts and both containers go through one list of
relative paths; only reading differs.
"""

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tinyvgg.errors import DatasetError
from tinyvgg.packing.csv_list import CsvList, find_listed_images
from tinyvgg.packing.file_kinds import count_suffixes
from tinyvgg.packing.holdout import Holdout
from tinyvgg.packing.label_lists import WORDS, read_words
from tinyvgg.packing.layouts import FoundImages, find_images
from tinyvgg.packing.trees import FileTree, open_tree

logger = logging.getLogger("tinyvgg")


def show_path(path: str) -> str:
    """Return a path as UTF-8 text; other bytes are shown as backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class SourceImage:
    """One image of a source: its path inside the source ('/' between parts) and its label."""

    path: str
    label: int


@dataclass(frozen=True)
class ImageSource:
    """What `list_images` found.

    Attributes:
        name: the path the user gave.
        class_folders: sorted; a label is an index into it.
        class_words: what words.txt says of each class, "" where it says nothing.
        splits: the images of "train" and of "val", sorted.
        tree: reads them.
        unpacked: by suffix, how many files are neither images nor anything that is known.
    """

    name: str
    class_folders: list[str]
    class_words: list[str]
    splits: dict[str, list[SourceImage]]
    tree: FileTree
    unpacked: dict[str, int]


def list_images(
    source: Path,
    holdout: Holdout | None = None,
    csv_list: CsvList | None = None,
    written: Collection[Path] = (),
) -> ImageSource:
    """Find classes and images of a folder or zip, without reading an image.

    What was understood and what is left out is logged, a line each.

    Args:
        source: a folder or a zip.
        holdout: what to set aside for val, where the source has no val split.
        csv_list: a file that says the class of each image; else folders say it.
        written: resolved paths of what is being written meanwhile, which is no part of it.

    Returns:
        Class names, paths and labels of both splits, sorted; and the open tree they are read from.

    Raises:
        DatasetError: no known layout, a class without images, or annotations or a list that do
            not match the images.
    """
    tree = open_tree(source, written)
    try:
        if csv_list is None:
            found = find_images(str(source), tree, holdout)
        else:
            found = find_listed_images(str(source), tree, csv_list, holdout)
        _say_what_is_left(str(source), found)
        class_folders = sorted(found.by_class["train"], key=os.fsencode)
        if not any(found.by_class["val"].values()):
            raise DatasetError(f"{source}: one image in each class, so none is held out for val")
        _say_held_out(str(source), found, holdout)
        if len(class_folders) == 1:
            logger.warning("%s: one class alone, %r: nothing to tell apart", source, *class_folders)
        words = read_words(str(source), tree) if WORDS in tree.list_folder("") else {}
    except BaseException:
        tree.close()
        raise
    labels = {folder: label for label, folder in enumerate(class_folders)}
    splits = {
        split: [
            SourceImage(path, labels[name])
            for name in sorted(by_class, key=os.fsencode)
            for path in by_class[name]
        ]
        for split, by_class in found.by_class.items()
    }
    class_words = [words.get(name, "") for name in class_folders]
    unpacked = count_suffixes(path.rpartition("/")[2] for path in found.unpacked)
    return ImageSource(str(source), class_folders, class_words, splits, tree, unpacked)


def _say_held_out(source: str, found: FoundImages, holdout: Holdout | None) -> None:
    if holdout is not None:
        num_train, num_val = (sum(map(len, found.by_class[s].values())) for s in ("train", "val"))
        logger.info(
            "%s: %s of %s images are held out for val, seed %d",
            *(source, f"{num_val:,}", f"{num_train + num_val:,}", holdout.seed),
        )


def _say_what_is_left(source: str, found: FoundImages) -> None:
    """Count and name the files that are left out: the first 20, then how many more there are."""
    hidden = {folder: count for folder, count in found.hidden.items() if count}
    if hidden:
        logger.warning(
            "%s: left out: %s images in hidden folders, which ImageFolder would take (%s)",
            source,
            f"{sum(hidden.values()):,}",
            ", ".join(f"{folder}/" for folder in [*hidden][:3])
            + (", …" if len(hidden) > 3 else ""),
        )
    if found.unpacked:
        logger.warning(
            "%s: left out: %s files that are no images by their names, or in no class folder",
            source,
            f"{len(found.unpacked):,}",
        )
        for path in found.unpacked[:20]:
            logger.warning("  %s", path)
        if len(found.unpacked) > 20:
            logger.warning("  … and %s more", f"{len(found.unpacked) - 20:,}")
