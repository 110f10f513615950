"""Roots: the folder of a source where train/ stands, or class folders; what is found elsewhere.

From: `trees`: the names in a folder or a zip.
To:   `layouts`, which takes it from there.
"""

from collections.abc import Iterable, Iterator

from tinyvgg.errors import DatasetError
from tinyvgg.packing.file_kinds import is_hidden, is_image
from tinyvgg.packing.holdout import Holdout
from tinyvgg.packing.trees import FileTree
from tinyvgg.shards.manifest import MANIFEST_NAME

LAYOUTS = "train/<class>/… and val/<class>/…, or val/images/ with val/val_annotations.txt"
VAL_NAMES = ("val", "valid", "validation")
SPLIT_NAMES = frozenset({"train", "test", *VAL_NAMES})
MAX_LOOKED_INTO = 100  # folders, in search of train/: a source may be a whole disk


def find_root(source: str, tree: FileTree) -> tuple[str, list[str]]:
    """Enter the folder that holds train/, or class folders, at most two below the top.

    Returns:
        Its path; "" for the top, also where there is no such folder. And what stands beside it,
        or beside the folder around it, by its path; that of a folder ends with '/'.

    Raises:
        DatasetError: several folders hold train/.
    """
    level = [""]
    for depth in range(3):
        looked_into = level[:MAX_LOOKED_INTO] if depth == 2 else level
        inside = {folder: folders_in(tree, folder) for folder in looked_into}
        holders = [
            folder
            for folder, names in inside.items()
            if "train" in names and holds_anything(tree, _join(folder, "train"))
        ]
        if len(holders) > 1:
            raise DatasetError(
                f"{source}: train/ stands in {listed(f'{name}/' for name in holders)}, expected "
                "one; pack these folders one by one"
            )
        if holders:
            return _enter(tree, holders[0])
        level = [_join(folder, name) for folder, names in inside.items() for name in names]
    for root, names in _only_folders(tree):  # class folders: where the first two are
        if len(names) > 1:
            return _enter(tree, root)
    return "", []


def _enter(tree: FileTree, root: str) -> tuple[str, list[str]]:
    beside = []
    folder = ""
    for name in root.split("/") if root else ():
        names = sorted(tree.list_folder(folder))
        beside += [_join(folder, other) for other in names if other != f"{name}/"]
        folder = _join(folder, name)
    if root:
        tree.enter(root)
    return root, beside


def holds_anything(tree: FileTree, folder: str) -> bool:
    """Tell whether there is more than what is hidden in a folder; yes where nobody may look."""
    try:
        return any(not is_hidden(name.rstrip("/")) for name in tree.list_folder(folder))
    except PermissionError:
        return True


def _only_folders(tree: FileTree) -> Iterator[tuple[str, list[str]]]:
    """Yield the top, the only folder in it, and the only one in that, with the folders in each."""
    root = ""
    for _ in range(3):
        names = folders_in(tree, root)
        yield root, names
        if len(names) != 1 or names[0] in SPLIT_NAMES:
            return
        root = _join(root, names[0])


def folders_in(tree: FileTree, folder: str) -> list[str]:
    """Return the names of folders that are not hidden; none where nobody may look."""
    try:
        names = tree.list_folder(folder)
    except PermissionError:
        return []
    return sorted(name[:-1] for name in names if name.endswith("/") and not is_hidden(name[:-1]))


def check_flat(source: str, tree: FileTree, names: set[str], holdout: Holdout | None) -> None:
    """Check that a source without train/ has class folders, out of which val is held.

    Raises:
        DatasetError: it has none, or nobody said what to hold out.
    """
    folders = folders_in(tree, "")
    splits = [name for name in folders if name in SPLIT_NAMES and holds_anything(tree, name)]
    classes = [] if splits else [name for name in folders if _holds_image(tree, name)]
    if MANIFEST_NAME in names:
        raise DatasetError(f"{source}: packed already; train on it, or name the folder of images")
    if not classes:
        raise DatasetError(
            f"{source}: no train/<class>/ folders; found {describe(names)}, expected {LAYOUTS}; "
            "name another folder, or list the images with --csv"
        )
    if holdout is None:
        raise DatasetError(
            f"{source}: {len(classes):,} class folders ({listed(classes)}) without train/ and "
            f"val/; pass --val-share 0.1 to hold out a tenth of each class, or make {LAYOUTS}"
        )


def _holds_image(tree: FileTree, folder: str) -> bool:
    """Tell whether a folder holds an image, directly or in a folder of it."""
    below = [f"{folder}/{name}" for name in folders_in(tree, folder)]
    return any(
        is_image(name) and not is_hidden(name)
        for inside in (folder, *below)
        for name in tree.list_folder(inside)
    )


def describe(names: Iterable[str]) -> str:
    """Say what stands in a folder: '2 folders (a/, b/) and 1 file (x.png)'."""
    shown = sorted(name for name in names if not is_hidden(name.rstrip("/")))
    folders = [name for name in shown if name.endswith("/")]
    files = [name for name in shown if not name.endswith("/")]
    parts = [
        f"{len(part):,} {kind}{'s' if len(part) > 1 else ''} ({listed(part)})"
        for kind, part in (("folder", folders), ("file", files))
        if part
    ]
    return " and ".join(parts) or "nothing"


def listed(names: Iterable[str]) -> str:
    """Name the first three."""
    shown = list(names)
    return ", ".join(shown[:3]) + (", …" if len(shown) > 3 else "")


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
