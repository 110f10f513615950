"""Layouts: which folder of a source is train, which is val, and what class an image has.

From: `trees`: the names in a folder or a zip.
To:   `folders`, which turns class names into labels.

    train/<class>/…, val/<class>/…            folder per class; also valid/ or validation/
    train/<wnid>/images/…, val/images/…       Stanford, with val/val_annotations.txt
    train/<class>/…, test/<class>/…           a labelled test/ is val where nothing else is
    <class>/…, or train/<class>/… alone       val is held out of it, if --val-share says so

each with up to two folders around. What a folder holds decides, not that it is there; whatever is
not the plain case is said in a line on stderr, and so is everything that is left out.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tinyvgg.errors import DatasetError, bad_files_text
from tinyvgg.packing.file_kinds import IMAGE_SUFFIXES, is_hidden, is_image, is_metadata
from tinyvgg.packing.holdout import Holdout, hold_out
from tinyvgg.packing.label_lists import group_by_annotation
from tinyvgg.packing.roots import (
    LAYOUTS,
    SPLIT_NAMES,
    VAL_NAMES,
    check_flat,
    describe,
    find_root,
    folders_in,
    listed,
)
from tinyvgg.packing.trees import FileTree

logger = logging.getLogger("tinyvgg")


@dataclass
class FoundImages:
    """Where the images of a source are, and what else is.

    Attributes:
        by_class: paths by split ("train", "val") and class, sorted in a class byte by byte.
        unpacked: paths of files that are neither images, nor hidden, nor known metadata.
        hidden: images in each hidden folder, which ImageFolder would take.
    """

    by_class: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    unpacked: list[str] = field(default_factory=list)
    hidden: Counter[str] = field(default_factory=Counter)


def find_images(source: str, tree: FileTree, holdout: Holdout | None) -> FoundImages:
    """Find the images of a source by its folders; `tree` is left at the folder of train/.

    Args:
        source: what the user calls it, for errors.
        tree: its folders and files.
        holdout: what to set aside for val; None where the source has a val split.

    Raises:
        DatasetError: no known layout, or one that is not whole.
        OSError: a folder that must not be read.
    """
    root = find_root(source, tree)
    names = set(tree.list_folder(""))
    train_folder = "train" if "train/" in names else ""
    if not train_folder:
        check_flat(source, tree, names, holdout)
    found = FoundImages()
    train = _group_by_class(tree, train_folder, found)
    _check_classes(source, tree, train_folder, train)
    if root:
        logger.info("%s: the images are in %s/", source, root)
    val_folder, val = "", dict[str, list[str]]()
    if train_folder:
        loose = [name for name in names if is_image(name) and not is_hidden(name)]
        found.unpacked += sorted(loose)  # beside the splits, in no class
        val_folder, val = _choose_val(source, tree, train, found, is_held_out=holdout is not None)
        others = sorted(n for n in names if n.endswith("/") and n[:-1] not in SPLIT_NAMES)
        others = [name for name in others if not is_hidden(name[:-1])]
        if others:
            logger.info("%s: left out: %s, neither train/ nor val/", source, listed(others))
    if holdout is None:
        if not val:
            raise DatasetError(
                f"{source}: no images under val/, expected {LAYOUTS}; found {describe(names)}; "
                "pass --val-share 0.1 to hold out a tenth of each class"
            )
        found.by_class = {"train": train, "val": val}
    else:
        if val:
            raise DatasetError(
                f"{source}: {val_folder}/ holds images, so none need to be held out; "
                f"leave out --val-share, or take {val_folder}/ away"
            )
        found.by_class = hold_out(train, holdout, f"{train_folder}/" if train_folder else "")
    return found


def _group_by_class(tree: FileTree, folder: str, found: FoundImages) -> dict[str, list[str]]:
    """Return the image paths below each folder of `folder`, and note what else is there."""
    prefix = f"{folder}/" if folder else ""
    by_class: dict[str, list[str]] = {}
    last_parent, class_folder, hidden = None, None, None
    for path in sorted(tree.list_files(folder), key=os.fsencode):
        parent, _, name = path.rpartition("/")
        if parent != last_parent:
            last_parent = parent
            class_folder, hidden = _place(f"{parent}/"[len(prefix) :] if parent else "")
            if class_folder is not None and hidden is None:
                by_class.setdefault(class_folder, [])  # a folder without images is seen
        if not name or is_hidden(name):
            continue
        if hidden is not None:
            found.hidden[f"{prefix}{hidden}"] += is_image(name)
        elif class_folder is not None and is_image(name):
            by_class[class_folder].append(path)
        elif not is_metadata(name) and (folder or class_folder is not None or is_image(name)):
            found.unpacked.append(path)
    return by_class


def _place(parents: str) -> tuple[str | None, str | None]:
    """Return the class folder of a file, and the hidden folder it is in, from 'ant/.x/y/'."""
    class_folder, slash, _ = parents.partition("/")
    names = parents.split("/")
    for number, name in enumerate(names):
        if is_hidden(name) and name not in (".", ".."):  # those are no names, and refused
            return class_folder, "/".join(names[: number + 1])
    return (class_folder, None) if slash and parents else (None, None)


def _check_classes(
    source: str, tree: FileTree, folder: str, by_class: dict[str, list[str]]
) -> None:
    """Refuse class folders that are no names, or that hold no image."""
    prefix = f"{folder}/" if folder else ""
    if not by_class:
        names = set(tree.list_folder(folder))
        raise DatasetError(
            f"{source}: no train/<class>/ folders; found {describe(names)} in train/, "
            f"expected {LAYOUTS}"
        )
    check_class_names(source, [(f"{prefix}{name!a}", name) for name in by_class])
    empty = [(f"{prefix}{name}", "no images") for name, paths in by_class.items() if not paths]
    if empty:
        kinds = ", ".join(IMAGE_SUFFIXES)
        remedy = f"put {kinds} files there or remove the folder"
        raise DatasetError(bad_files_text(source, empty, remedy))


def check_class_names(source: str, names: Iterable[tuple[str, str]]) -> None:
    """Refuse (place, name) that the manifest cannot hold: a class is text, and never a path.

    Raises:
        DatasetError: there are such names.
    """
    odd = [(place, "not a class name") for place, name in names if _is_odd(name)]
    if odd:
        raise DatasetError(bad_files_text(source, odd, "give them names in UTF-8"))


def _is_odd(class_folder: str) -> bool:
    utf8 = class_folder.encode("utf-8", "replace").decode()
    is_path = class_folder in ("", ".", "..") or "/" in class_folder or "\0" in class_folder
    return utf8 != class_folder or is_path


def _choose_val(
    source: str,
    tree: FileTree,
    train: dict[str, list[str]],
    found: FoundImages,
    *,
    is_held_out: bool,
) -> tuple[str, dict[str, list[str]]]:
    """Return the folder that is val, and its images by class; "" and none where nothing is."""
    chosen, by_class = "", dict[str, list[str]]()
    folders = folders_in(tree, "")
    for folder in (name for name in VAL_NAMES if name in folders):
        inside = FoundImages()
        grouped = _group_by_class(tree, folder, inside)
        num_images = sum(map(len, grouped.values()))
        if num_images and chosen:
            _say_left_out(source, folder, num_images, f"{chosen}/ is the val split")
            continue
        found.unpacked += inside.unpacked
        found.hidden += inside.hidden
        if num_images:
            chosen, by_class = folder, _label_val(source, tree, folder, grouped, train)
    if "test" in folders:
        has_val = is_held_out or bool(chosen)
        reason = f"{chosen}/ is the val split" if chosen else "val is held out of train/"
        test = _find_test(source, tree, train, reason if has_val else "", found)
        if test:
            chosen, by_class = "test", test
    if chosen not in ("", VAL_NAMES[0]):
        logger.info("%s: %s/ is the val split", source, chosen)
    return chosen, by_class


def _label_val(
    source: str,
    tree: FileTree,
    folder: str,
    by_class: dict[str, list[str]],
    train: dict[str, list[str]],
) -> dict[str, list[str]]:
    """Return the images of val by class of train, from its folders or from its annotations."""
    by_class = {name: paths for name, paths in by_class.items() if paths}  # others mean nothing
    annotations = f"{folder}/val_annotations.txt"
    if "images" in by_class and "val_annotations.txt" in tree.list_folder(folder):
        others = [f"{folder}/{name}/" for name in by_class if name != "images"]
        if others:
            raise DatasetError(
                f"{source}: images in {folder}/images/ and in {listed(others)}, expected one of "
                "both; move all of them to class folders, or all of them back"
            )
        by_class = group_by_annotation(source, tree, annotations, by_class["images"])
    unknown = [
        (f"{folder}/{name}", "no such class in train/") for name in by_class if name not in train
    ]
    if f"{folder}/images" in dict(unknown):
        raise DatasetError(
            f"{source}: {folder}/images/ without {annotations}, which has the classes; "
            f"restore it, or move the images to {folder}/<class>/"
        )
    if unknown:
        raise DatasetError(bad_files_text(source, unknown, "add the class or remove these"))
    return by_class


def _find_test(
    source: str, tree: FileTree, train: dict[str, list[str]], reason: str, found: FoundImages
) -> dict[str, list[str]]:
    """Return the images of test/ where they are val; else leave them out, and say so.

    TinyImageNet's test/images/ has no labels and is known: nothing is said.
    """
    names = [name for name in tree.list_folder("test") if not is_hidden(name.rstrip("/"))]
    if names == ["images/"] and "images" not in train:
        return {}
    inside = FoundImages()
    by_class = _group_by_class(tree, "test", inside)
    num_images = sum(map(len, by_class.values())) + sum(map(is_image, inside.unpacked))
    is_labeled = any(by_class.get(name) for name in train)
    if reason or not is_labeled:
        if num_images:
            why = reason if is_labeled else "no class folders of train/ in it"
            _say_left_out(source, "test", num_images, why)
        return {}
    found.unpacked += inside.unpacked
    found.hidden += inside.hidden
    return _label_val(source, tree, "test", by_class, train)


def _say_left_out(source: str, folder: str, num_images: int, reason: str) -> None:
    logger.info("%s: %s/ is left out, %s images: %s", source, folder, f"{num_images:,}", reason)
