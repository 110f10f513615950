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
import unicodedata
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
    holds_anything,
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

    Returns:
        Paths of each class of both splits, relative to what `tree` is left at.

    Raises:
        DatasetError: no known layout, or one that is not whole.
        OSError: a folder that must not be read.
    """
    root, beside = find_root(source, tree)
    names = set(tree.list_folder(""))
    has_train = "train/" in names and holds_anything(tree, "train")
    train_folder = "train" if has_train else ""
    if not train_folder:
        check_flat(source, tree, names, holdout)
    found = FoundImages()
    train = _group_by_class(tree, train_folder, found)
    if not train_folder:  # an empty train/ or val/ beside class folders is no class
        train = {name: paths for name, paths in train.items() if paths or name not in SPLIT_NAMES}
    _check_classes(source, tree, train_folder, train)
    if root:
        logger.info("%s: the images are in %s/", source, root)
        _note_beside(source, beside, f"beside {root}/", found)
    val_folder, val = "", dict[str, list[str]]()
    if train_folder:
        val_folder, val = _choose_val(source, tree, train, found, is_held_out=holdout is not None)
        others = sorted(name for name in names if name.rstrip("/") not in SPLIT_NAMES)
        _note_beside(source, others, "neither train/ nor val/", found)
    if holdout is None:
        if not val:
            loose = [p for p in found.unpacked if is_image(p) and p.partition("/")[0] in VAL_NAMES]
            if loose:
                raise DatasetError(
                    f"{source}: {len(loose):,} val images in no class folder ({listed(loose)}), "
                    "expected val/<class>/…, or val/images/ with val/val_annotations.txt"
                )
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
        elif not is_metadata(name):
            found.unpacked.append(path)
    return by_class


def _note_beside(source: str, paths: list[str], where: str, found: FoundImages) -> None:
    """Note files and folders that nobody looks into: they stand where no class can be."""
    paths = [path for path in paths if not is_hidden(path.rstrip("/").rpartition("/")[2])]
    folders = [path for path in paths if path.endswith("/")]
    files = [path for path in paths if not path.endswith("/")]
    found.unpacked += [path for path in files if not is_metadata(path.rpartition("/")[2])]
    if folders:
        what = f"{len(folders):,} folders, " if len(folders) > 3 else ""
        logger.info("%s: left out: %s%s, %s", source, what, listed(folders), where)


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
        beside = [name for name in folders_in(tree, "") if name not in SPLIT_NAMES]
        if any(map(is_image, names)) and beside:
            raise DatasetError(
                f"{source}: train/ holds images and no class folders, and {listed(beside)} stand "
                "beside it; if train is a class, too, list the images with --csv, or move all "
                "class folders into a folder train/"
            )
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
    odd = [(place, fault) for place, name in names if (fault := _find_fault(name))]
    if odd:
        raise DatasetError(bad_files_text(source, odd, "give these classes other names"))


def _find_fault(class_folder: str) -> str:
    """Say why a text is not the name of a class; "" if it is."""
    if class_folder.encode("utf-8", "replace").decode() != class_folder:
        return "not a class name: not UTF-8"
    is_path = class_folder in ("", ".", "..") or not {"/", "\0"}.isdisjoint(class_folder)
    return "not a class name, but a path: with '/' or NUL, or '.', '..' or ''" if is_path else ""


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
        (f"{folder}/{name}", _say_unknown(name, train)) for name in by_class if name not in train
    ]
    if f"{folder}/images" in dict(unknown):
        raise DatasetError(
            f"{source}: {folder}/images/ without {annotations}, which has the classes; "
            f"restore it, or move the images to {folder}/<class>/"
        )
    if unknown:
        raise DatasetError(bad_files_text(source, unknown, "add the class or remove these"))
    return by_class


def _say_unknown(name: str, train: Iterable[str]) -> str:
    """Say that train has no such class; two names may look alike and differ in their bytes."""
    normal = unicodedata.normalize("NFC", name)
    alike = [other for other in train if unicodedata.normalize("NFC", other) == normal]
    if alike:
        return f"{name!a}, in train/ {alike[0]!a}: one name in two Unicode forms"
    return "no such class in train/"


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
