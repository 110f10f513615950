"""CSV list: a file of paths and labels, where folders do not say what class an image has.

From: the user: a header line, then a line an image, with commas, semicolons, tabs or bars; from
      any editor (`label_lists.decode_text`). It lies anywhere, or inside the source.
To:   `folders`, which turns labels into classes, sorted as text, as it does for folders.

Paths count from the top of the source and never leave it. Every line that cannot be used is
named, not the first alone; what stands beside listed images and is not listed is counted.
"""

import csv
import io
import logging
import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tinyvgg.errors import DatasetError, bad_files_text
from tinyvgg.packing.file_kinds import is_hidden, is_image, is_metadata
from tinyvgg.packing.holdout import Holdout, hold_out
from tinyvgg.packing.label_lists import LINE_END, decode_text
from tinyvgg.packing.layouts import FoundImages, check_class_names
from tinyvgg.packing.trees import MAX_FILE_BYTES, FileTree
from tinyvgg.regular import read_regular_file

DELIMITERS = ",;\t|"
SPLIT_COLUMN = "split"  # taken where a file has it, if no other is named
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}

logger = logging.getLogger("tinyvgg")


@dataclass(frozen=True)
class CsvList:
    """A CSV file, and the names of its columns; no split column means `split`, if there is one."""

    file: Path
    path_column: str = "path"
    label_column: str = "label"
    split_column: str | None = None


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    label: str
    split: str
    fault: str  # why it cannot be used, "" if it can as far as one line tells


def find_listed_images(
    source: str, tree: FileTree, csv_list: CsvList, holdout: Holdout | None
) -> FoundImages:
    """Find the images that a CSV file lists.

    Args:
        source: what the user calls the source, for errors.
        tree: its folders and files.
        csv_list: the file and its columns.
        holdout: what to set aside for val; None where the file says which images are val.

    Returns:
        Paths of each class of both splits, relative to the tree.

    Raises:
        DatasetError: columns are missing, lines cannot be used, or there is no val split.
        OSError: the file must not be read.
    """
    name = str(csv_list.file)
    text = decode_text(_read_list(source, tree, csv_list.file), name)
    rows = _check_rows(source, name, tree, list(_read_rows(name, text, csv_list)))
    by_split = _group_rows(rows)
    if not by_split["train"]:
        raise DatasetError(
            f"{name}: no train images, expected a line an image; found {text[:40]!r}"
        )
    check_class_names(name, [(f"label {label!a}", label) for label in by_split["train"]])
    _warn_of_numbers(name, by_split["train"])
    val = _choose_val(name, by_split, holdout)
    unlisted = _find_unlisted(source, name, tree, rows)
    train = by_split["train"]
    splits = hold_out(train, holdout, "") if holdout else {"train": train, "val": val}
    counts = {split: sum(map(len, splits[split].values())) for split in splits}
    logger.info(
        "%s: lists %s train and %s val images of %s classes",
        *(name, f"{counts['train']:,}", f"{counts['val']:,}", f"{len(train):,}"),
    )
    return FoundImages(splits, unpacked=unlisted)


def _read_list(source: str, tree: FileTree, file: Path) -> bytes:
    """Return the bytes of the list: a file as the user names it, or one inside the source."""
    path = file.as_posix()
    folder, _, file_name = path.rpartition("/")
    try:
        is_inside = not _find_fault(path) and file_name in tree.list_folder(folder)
    except OSError:  # no such folder
        is_inside = False
    if file.exists():
        if file.is_dir():
            raise DatasetError(f"{file}: a folder, expected a CSV file")
        data = read_regular_file(file, MAX_FILE_BYTES)
        if is_inside and tree.read_file(path) != data:
            raise DatasetError(
                f"{file}: there is another one in {source}; pass the absolute path of one of them"
            )
        return data
    if not is_inside:
        raise DatasetError(f"{file}: no such file, nor in {source}; pass --csv with its path")
    return tree.read_file(path)


def _read_rows(name: str, text: str, csv_list: CsvList) -> Iterator[_Row]:
    """Yield the lines of a list below its header; a path with backslashes alone is Windows'."""
    header, *_ = LINE_END.split(text, maxsplit=1)
    wanted = (csv_list.path_column, csv_list.label_column)
    by_delimiter = {mark: _split_header(header, mark) for mark in DELIMITERS}
    mark = max(
        DELIMITERS, key=lambda mark: (set(wanted) <= {*by_delimiter[mark]}, len(by_delimiter[mark]))
    )
    columns = by_delimiter[mark]
    split_column = csv_list.split_column
    if split_column is None and SPLIT_COLUMN in columns:
        split_column = SPLIT_COLUMN
    flags = ("--csv-path-column", "--csv-label-column", "--csv-split-column")
    places = []
    for flag, column in zip(flags, (*wanted, split_column), strict=True):
        if column is not None and columns.count(column) != 1:
            found = ", ".join(map(repr, columns[:20])) or "an empty line"
            raise DatasetError(
                f"{name}: no column {column!r} in its first line, or two; found {found}; "
                f"pass {flag}, or put a line with names of columns on top"
            )
        places.append(None if column is None else columns.index(column))
    path_place, label_place, split_place = places
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    try:
        next(lines, None)
        line = lines.line_num + 1  # where a row begins: quoted cells may hold line breaks
        for cells in lines:
            this_line, line = line, lines.line_num + 1
            if not any(cells):
                continue
            extra = ", ".join(map(repr, filter(None, cells[len(columns) :])))
            cells += [""] * (len(columns) - len(cells))
            path, label = cells[path_place or 0].strip(), cells[label_place or 0].strip()
            split = "train" if split_place is None else cells[split_place].strip()
            path = path if "/" in path else path.replace("\\", "/")
            path = posixpath.normpath(path) if path else ""
            fault = f"{extra} behind the last column; are quotes missing?" if extra else ""
            yield _Row(this_line, path, label, split, fault or _find_fault(path))
    except csv.Error as error:
        raise DatasetError(f"{name}:{lines.line_num}: {error}; mend the line") from error


def _split_header(header: str, mark: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([header], delimiter=mark), [])]
    except csv.Error:
        return []


def _check_rows(source: str, name: str, tree: FileTree, rows: list[_Row]) -> list[_Row]:
    """Return the rows; refuse paths that lead outside, are missing or twice, and odd splits."""
    names_in: dict[str, set[str]] = {}
    line_of: dict[str, int] = {}
    bad: list[tuple[str, str]] = []
    for row in rows:
        folder, _, file_name = row.path.rpartition("/")
        fault = row.fault
        if not fault and folder not in names_in:
            try:
                names_in[folder] = set(tree.list_folder(folder))
            except OSError:  # no such folder, or not to be read
                names_in[folder] = set()
        if not fault and file_name not in names_in[folder]:
            fault = "no such file"
        elif not row.label:
            fault = fault or "no label"
        elif row.split.lower() not in SPLIT_WORDS:
            fault = fault or f"split {row.split!r}, expected train, val or test"
        elif row.path in line_of:
            fault = fault or f"listed in line {line_of[row.path]}, too"
        if fault:
            bad.append((f"{name}:{row.line}", f"{row.path!r}: {fault}"))
        line_of.setdefault(row.path, row.line)
    if bad:
        raise DatasetError(bad_files_text(name, bad, f"mend these lines; paths begin in {source}"))
    return rows


def _find_fault(path: str) -> str:
    """Say why a path cannot be one inside the source; "" if it can."""
    if not path:
        return "no path"
    if path.startswith("/") or path[1:3] in (":/", ":\\"):
        return "an absolute path, expected one that begins inside SOURCE"
    return "leads out of SOURCE" if ".." in path.split("/") else ""


def _group_rows(rows: list[_Row]) -> dict[str, dict[str, list[str]]]:
    """Return the paths by split and label, sorted byte by byte in each."""
    by_split: dict[str, dict[str, list[str]]] = {"train": {}, "val": {}, "test": {}}
    for row in sorted(rows, key=lambda row: os.fsencode(row.path)):
        by_split[SPLIT_WORDS[row.split.lower()]].setdefault(row.label, []).append(row.path)
    return by_split


def _choose_val(
    name: str, by_split: dict[str, dict[str, list[str]]], holdout: Holdout | None
) -> dict[str, list[str]]:
    """Return the val images, or the test images where there are none; say what is left out."""
    val, test = by_split["val"], by_split["test"]
    num_test = sum(map(len, test.values()))
    if holdout is not None and val:
        raise DatasetError(f"{name}: lists val images, so none are held out; leave out --val-share")
    if num_test and (val or holdout is not None):
        reason = "val is the val split" if val else "val is held out of train"
        logger.info("%s: split test is left out, %s images: %s", name, f"{num_test:,}", reason)
    elif num_test:
        logger.info("%s: split test is the val split", name)
        val = test
    if holdout is None and not val:
        raise DatasetError(
            f"{name}: every image is train, expected val images too; name their column with "
            "--csv-split-column, or pass --val-share 0.1 to hold out a tenth of each class"
        )
    unknown = [(f"label {label!r}", "in val, not in train") for label in val]
    unknown = [
        item for item, label in zip(unknown, val, strict=True) if label not in by_split["train"]
    ]
    if unknown:
        raise DatasetError(bad_files_text(name, unknown, "add train images or remove these"))
    return val


def _warn_of_numbers(name: str, labels: Iterable[str]) -> None:
    """Say that labels such as 10 and 2 are sorted as text, where that is another order."""
    as_text = sorted(labels, key=os.fsencode)
    if all(label.isdecimal() for label in as_text) and as_text != sorted(as_text, key=int):
        place = next(i for i, label in enumerate(as_text) if int(label) != i)
        logger.warning(
            "%s: labels are sorted as text, so %r is class %d; write them with leading zeros to "
            "keep their order",
            *(name, as_text[place], place),
        )


def _find_unlisted(source: str, name: str, tree: FileTree, rows: list[_Row]) -> list[str]:
    """Count the images that stand beside listed ones, and return the other files that do."""
    listed = {row.path for row in rows}
    unlisted = [
        path
        for folder in sorted({path.rpartition("/")[0] for path in listed})
        for file_name in sorted(tree.list_folder(folder))
        if not (file_name.endswith("/") or is_hidden(file_name) or is_metadata(file_name))
        and (path := f"{folder}/{file_name}" if folder else file_name) not in listed
    ]
    num_images = sum(map(is_image, unlisted))
    if num_images:
        logger.info(
            "%s: left out: %s images that %s does not list", source, f"{num_images:,}", name
        )
    list_name = name.replace("\\", "/").rpartition("/")[2]
    return [p for p in unlisted if not is_image(p) and p.rpartition("/")[2] != list_name]
