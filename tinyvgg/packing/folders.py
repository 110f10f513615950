"""Folders: a source of images, in a folder or a zip, to class names and sorted (path, label).

From: the user, who has one of
        train/<wnid>/images/*.JPEG, val/images/*.JPEG + val/val_annotations.txt   (Stanford)
        train/<class>/*, val/<class>/*                                            (one per class)
      in a folder or a .zip, with or without one folder around it.
To:   `pack`, which reads every image once, in this order.

Promises: labels follow the sorted class folder names, as in `torchvision.datasets.ImageFolder`;
images are sorted by (class folder, path inside it), byte by byte, so a folder, its zip and the
other layout give the same order. Both layouts and both containers go through one list of
relative paths; only reading differs.
"""

import os
import struct
import threading
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tinyvgg.errors import DatasetError, bad_files_text, naming
from tinyvgg.regular import read_regular_file

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
MAX_FILE_BYTES = 256 * 2**20  # of one image or text; more is refused before it is read
ANNOTATIONS = "val/val_annotations.txt"
LAYOUTS = "train/<class>/… and val/<class>/…, or val/images/ with val/val_annotations.txt"


@dataclass(frozen=True)
class SourceImage:
    """One image of a source: its path inside the source ('/' between parts) and its label."""

    path: str
    label: int


class FileTree(Protocol):
    """A folder or a zip: relative paths, and bytes for each of them."""

    def list_files(self) -> Iterable[str]:
        """Return the paths of all files that matter, '/' between parts, in any order."""

    def read_file(self, path: str) -> bytes:
        """Return the bytes of one file; safe from several threads.

        Raises:
            DatasetError: damaged, or not to be read as it is.
            OSError: it cannot be read, with its path; `is_of_the_file` tells why.
        """

    def close(self) -> None:
        """Let go of what is open."""


@dataclass(frozen=True)
class ImageSource:
    """What `list_images` found.

    Attributes:
        name: the path the user gave.
        class_folders: sorted; a label is an index into it.
        class_words: what words.txt says of each class, "" where it says nothing.
        splits: the images of "train" and of "val", sorted.
        tree: reads them.
    """

    name: str
    class_folders: list[str]
    class_words: list[str]
    splits: dict[str, list[SourceImage]]
    tree: FileTree


def list_images(source: Path) -> ImageSource:
    """Find classes and images of a folder or zip, without reading an image.

    Raises:
        DatasetError: no known layout, a class without images, or annotations that do not
            match the images.
    """
    tree = _open_tree(source)
    try:
        paths = sorted(tree.list_files(), key=os.fsencode)
        by_class = _group_by_class(paths, "train/")
        if not by_class:
            raise DatasetError(f"{source}: no train/<class>/ folders, expected {LAYOUTS}")
        class_folders = sorted(by_class, key=os.fsencode)
        odd = [(f"train/{name!a}", "not a class name") for name in class_folders if _is_odd(name)]
        if odd:
            raise DatasetError(bad_files_text(f"{source}", odd, "give them names in UTF-8"))
        labels = {folder: label for label, folder in enumerate(class_folders)}
        empty = [(f"train/{name}", "no images") for name in class_folders if not by_class[name]]
        if empty:
            kinds = ", ".join(IMAGE_SUFFIXES)
            raise DatasetError(
                bad_files_text(f"{source}", empty, f"put {kinds} files there or remove the folder")
            )
        train = [
            SourceImage(path, labels[name]) for name in class_folders for path in by_class[name]
        ]
        has_annotations = ANNOTATIONS in paths and any(p.startswith("val/images/") for p in paths)
        val_by_class = (
            _group_by_annotation(source, tree, paths)
            if has_annotations
            else _group_by_class(paths, "val/")
        )
        val = _label_validation(source, val_by_class, labels)
        words = _read_words(tree) if "words.txt" in paths else {}
    except BaseException:
        tree.close()
        raise
    class_words = [words.get(name, "") for name in class_folders]
    return ImageSource(str(source), class_folders, class_words, {"train": train, "val": val}, tree)


def _label_validation(
    source: Path, by_class: dict[str, list[str]], labels: dict[str, int]
) -> list[SourceImage]:
    unknown = [
        (f"val/{name}", "no such class in train/") for name in by_class if name not in labels
    ]
    if "val/images" in dict(unknown):
        raise DatasetError(f"{source}: val/images/ without {ANNOTATIONS}, which has the classes")
    if unknown:
        raise DatasetError(bad_files_text(f"{source}", unknown, "add the class or remove these"))
    if not any(by_class.values()):
        raise DatasetError(f"{source}: no images under val/, expected {LAYOUTS}")
    names = sorted(by_class, key=os.fsencode)
    return [SourceImage(path, labels[name]) for name in names for path in by_class[name]]


def _group_by_class(paths: list[str], prefix: str) -> dict[str, list[str]]:
    """Return the image paths below each folder of `prefix`; `paths` is sorted."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        if not path.startswith(prefix):
            continue
        name, slash, rest = path[len(prefix) :].partition("/")
        if slash:
            by_class[name]  # a folder without images is a class without images
            if _is_image(rest):
                by_class[name].append(path)
    return dict(by_class)


def _group_by_annotation(source: Path, tree: FileTree, paths: list[str]) -> dict[str, list[str]]:
    """Return the paths of val/images by the class that val_annotations.txt gives them."""
    text = tree.read_file(ANNOTATIONS).decode("utf-8", "surrogateescape")
    class_of: dict[str, str] = {}
    bad: list[tuple[str, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        name, *fields = line.split("\t")
        if not line.strip():
            continue
        if not fields or not fields[0].strip() or name in class_of:
            bad.append((f"{ANNOTATIONS}:{number}", "not 'file<tab>class', or a file named twice"))
        else:
            class_of[name] = fields[0].strip()
    by_class: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        if not path.startswith("val/images/") or not _is_image(path):
            continue
        folder = class_of.pop(path.removeprefix("val/images/"), None)
        if folder is None:
            bad.append((path, f"not in {ANNOTATIONS}"))
        else:
            by_class[folder].append(path)
    bad.extend((f"val/images/{name}", f"missing, but in {ANNOTATIONS}") for name in class_of)
    if bad:
        raise DatasetError(bad_files_text(f"{source}", bad, "copy or unpack the data again"))
    return by_class


def _read_words(tree: FileTree) -> dict[str, str]:
    lines = tree.read_file("words.txt").decode("utf-8", "replace").splitlines()
    pairs = (line.partition("\t") for line in lines)
    return {wnid.strip(): words.strip() for wnid, tab, words in pairs if tab}


def _is_odd(class_folder: str) -> bool:
    """Tell whether the manifest cannot hold a class name: it is text, and never a path."""
    utf8 = class_folder.encode("utf-8", "replace").decode()
    return utf8 != class_folder or class_folder in ("", ".", "..")


def _is_image(path: str) -> bool:
    """Tell whether a path has an image suffix; hidden files (macOS writes '._x.JPEG') have not."""
    name = path.rpartition("/")[2]
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _open_tree(source: Path) -> FileTree:
    if source.is_dir():
        return _Folder(source)
    if not source.exists():
        raise DatasetError(f"{source}: no such folder or zip; run 'tinyvgg download' or 'synth'")
    if not source.is_file():
        raise DatasetError(f"{source}: a FIFO, a socket or a device, expected a folder or a zip")
    if not zipfile.is_zipfile(source):
        raise DatasetError(f"{source}: neither a folder nor a complete zip; download it again")
    return _Zip(source)


class _Folder:
    """A folder. Symbolic links are followed, each real folder once along a path."""

    def __init__(self, root: Path) -> None:
        children = [entry for entry in root.iterdir() if (entry / "train").is_dir()]
        if not (root / "train").is_dir() and len(children) == 1:
            root = children[0]
        self.root = str(root)

    def list_files(self) -> Iterator[str]:
        for name in ("words.txt", ANNOTATIONS):
            if os.path.isfile(f"{self.root}/{name}"):  # noqa: PTH113
                yield name
        for split in ("train", "val"):
            yield from self._walk(split, frozenset())

    def _walk(self, folder: str, parents: frozenset[str]) -> Iterator[str]:
        real = os.path.realpath(f"{self.root}/{folder}")
        if real in parents or not os.path.isdir(real):  # noqa: PTH112
            return
        with os.scandir(real) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}"
                # `is_dir` raises for a link to itself; such a link is a file that cannot be read
                if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():  # noqa: PTH112
                    if path.count("/") == 1:
                        yield f"{path}/"  # so that an empty class is seen
                    yield from self._walk(path, parents | {real})
                elif path != ANNOTATIONS:
                    yield path

    def read_file(self, path: str) -> bytes:
        return read_regular_file(f"{self.root}/{path}", MAX_FILE_BYTES)

    def close(self) -> None:
        pass


class _Zip:
    """A zip. Members are read with one `pread` each and inflated without the GIL.

    `zipfile.ZipFile.read` takes a lock and some 50 µs of Python a member; the local header in
    front of a member's data is 30 bytes and two lengths, which is all that is needed here.
    Names are taken as bytes, like those of a folder, whatever the UTF-8 flag says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("rb", buffering=0)
        self.lock = threading.Lock()
        try:
            members = self._read_directory(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            self.file.close()
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise DatasetError(f"{path}: {reason}; download it again, or zip it anew") from error
        names = [name for name in members if not name.startswith("__MACOSX/")]
        roots = {""} if any(name.startswith("train/") for name in names) else set()
        if not roots:
            tops = {name.partition("/")[0] for name in names}
            roots = {f"{top}/" for top in tops if any(n.startswith(f"{top}/train/") for n in names)}
        root = roots.pop() if len(roots) == 1 else ""
        self.members = {
            name.removeprefix(root): members[name] for name in names if name.startswith(root)
        }

    def _read_directory(self, path: Path) -> dict[str, zipfile.ZipInfo]:
        """Return the members by name; each must carry that name in front of its data, too.

        A zip's directory has no checksum: a flipped bit would drop an image, or a hundred, or move
        it to another class. The check costs 3 µs a member.
        """
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
        num_bytes = path.stat().st_size
        members = {}
        for info in infos:
            name = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
            path_inside = name.decode("utf-8", "surrogateescape")
            if path_inside in members and not path_inside.endswith("/"):
                raise zipfile.BadZipFile(f"{path_inside} is in it twice")
            if info.header_offset + info.compress_size > num_bytes:
                raise zipfile.BadZipFile(f"{name!r} ends behind the zip's {num_bytes:,} bytes")
            if self._pread(30 + len(name), info.header_offset)[30:] != name:
                raise zipfile.BadZipFile(f"the zip's directory is damaged at {name!r}")
            if b"PK\x01\x02" in info.extra or b"PK\x01\x02" in info.comment:  # the next members
                raise zipfile.BadZipFile(f"the zip's directory is damaged behind {name!r}")
            members[path_inside] = info
        return members

    def list_files(self) -> Iterator[str]:
        for name in self.members:
            folder, _, file_name = name.rpartition("/")
            if file_name or folder.count("/") == 1:
                yield name

    def read_file(self, path: str) -> bytes:
        info = self.members[path]
        if info.flag_bits & 1:
            raise DatasetError("encrypted in the zip")
        if max(info.file_size, info.compress_size) > MAX_FILE_BYTES:
            size = f"{max(info.file_size, info.compress_size):,} bytes"
            raise DatasetError(f"{size} in the zip, expected at most {MAX_FILE_BYTES:,}")
        # 30 fixed bytes, the name, and room for the extra field, which may differ from the
        # central directory's
        slack = 30 + len(os.fsencode(info.orig_filename)) + 64
        data = self._pread(slack + info.compress_size, info.header_offset)
        if data[:4] != b"PK\x03\x04":
            raise DatasetError("damaged in the zip: no local header")
        name_bytes, extra_bytes = struct.unpack_from("<HH", data, 26)
        start = 30 + name_bytes + extra_bytes
        if start > slack:
            data, start = self._pread(info.compress_size, info.header_offset + start), 0
        packed = data[start : start + info.compress_size]
        if info.compress_type == zipfile.ZIP_STORED:
            content = packed
        elif info.compress_type == zipfile.ZIP_DEFLATED:
            try:
                content = zlib.decompressobj(-15).decompress(packed, info.file_size + 1)
            except zlib.error as error:
                raise DatasetError(f"damaged in the zip: {error}") from error
        else:
            raise DatasetError(
                f"compression method {info.compress_type} in the zip, expected deflate"
            )
        if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
            raise DatasetError("damaged in the zip: wrong size or CRC-32")
        return content

    def _pread(self, num_bytes: int, offset: int) -> bytes:
        if hasattr(os, "pread"):
            with naming(self.path):
                return os.pread(self.file.fileno(), num_bytes, offset)
        with naming(self.path), self.lock:
            self.file.seek(offset)
            return self.file.read(num_bytes)

    def close(self) -> None:
        self.file.close()
