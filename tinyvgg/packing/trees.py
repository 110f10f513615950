"""Trees: a folder and a zip, and what they have in common: relative paths, bytes for each of them.

From: a path that the user gave.
To:   `folders`, which lists what is there, and `pack`, whose threads read it.
"""

import logging
import os
import struct
import threading
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from tinyvgg.errors import DatasetError
from tinyvgg.packing.file_kinds import is_hidden
from tinyvgg.regular import is_of_the_file, read_regular_file, read_with_status

MAX_FILE_BYTES = 256 * 2**20  # of one image or text; more is refused before it is read
Stamp = tuple[int, int]  # bytes, and when they were written in ns; of a zip's member its CRC-32
NO_STAMP = (-1, -1)  # of a file that is not there

logger = logging.getLogger("tinyvgg")


class FileTree(Protocol):
    """A folder or a zip. A path has '/' between its parts; that of the top is "".

    Attributes:
        entered: what `enter` was given; "" at the top.
        descriptors: of files that stay open.
    """

    entered: str
    descriptors: tuple[int, ...]

    def list_folder(self, folder: str) -> list[str]:
        """Return the names directly in a folder, in any order; those of folders end with '/'.

        Raises:
            OSError: the folder is not there, or must not be read.
        """

    def list_files(self, folder: str) -> Iterable[str]:
        """Return the paths of all files below a folder, hidden ones too, in any order.

        The folders directly in it are given as well, with '/' at the end, so that an empty one
        is seen.

        Raises:
            OSError: a folder that is not hidden must not be read.
        """

    def read_file(self, path: str) -> bytes:
        """Return the bytes of one file; safe from several threads.

        Raises:
            DatasetError: damaged, or not to be read as it is.
            OSError: it cannot be read, with its path; `is_of_the_file` tells why.
        """

    def read_stamped(self, path: str) -> tuple[bytes, Stamp]:
        """Return the bytes of one file, as `read_file`, and its stamp."""

    def find_stamp(self, path: str) -> Stamp:
        """Return the stamp of a file, `NO_STAMP` if there is none; another one is another file."""

    def enter(self, folder: str) -> None:
        """Make a folder the top: from now on paths begin there."""

    def close(self) -> None:
        """Let go of what is open."""


class _Folder:
    """A folder. Symbolic links are followed, each real folder once along a path."""

    def __init__(self, root: Path, written: Collection[Path]) -> None:
        self.root = self.top = str(root)
        self.written = {str(path) for path in written}
        self.written_names = {path.name for path in written}
        self.entered = ""
        self.descriptors: tuple[int, ...] = ()

    def enter(self, folder: str) -> None:
        self.entered = folder
        self.root = f"{self.root}/{folder}"

    def list_folder(self, folder: str) -> list[str]:
        return [f"{name}/" if is_folder else name for name, is_folder, _ in self._scan(folder)]

    def _scan(self, folder: str) -> list[tuple[str, bool, bool]]:
        """Return (name, whether it is a folder, a link) of all that is directly in a folder."""
        with os.scandir(f"{self.root}/{folder}") as entries:
            return [
                (entry.name, _is_folder(entry), entry.is_symlink())
                for entry in entries
                if entry.name not in self.written_names
                or os.path.realpath(entry.path) not in self.written
            ]

    def list_files(self, folder: str) -> Iterator[str]:
        prefix = f"{folder}/" if folder else ""
        yield from (prefix + name for name in self.list_folder(folder) if name.endswith("/"))
        above = {os.path.realpath(path) for path in (self.top, self.root)} if folder else set()
        to_do = [(prefix, os.path.realpath(f"{self.root}/{prefix}"), frozenset(above))]
        while to_do:
            prefix, real, parents = to_do.pop()
            if real in parents or not os.path.isdir(real):  # noqa: PTH112
                continue
            try:
                inside = self._scan(prefix)
            except PermissionError:
                if not is_hidden(prefix[:-1].rpartition("/")[2]):  # lost+found is root's
                    raise
                continue
            parents |= {real}
            for name, is_folder, is_link in inside:
                if is_folder:
                    path = f"{real}/{name}"
                    below = os.path.realpath(path) if is_link else path
                    to_do.append((f"{prefix}{name}/", below, parents))
                else:
                    yield prefix + name

    def read_file(self, path: str) -> bytes:
        return read_regular_file(f"{self.root}/{path}", MAX_FILE_BYTES)

    def read_stamped(self, path: str) -> tuple[bytes, Stamp]:
        data, status = read_with_status(f"{self.root}/{path}", MAX_FILE_BYTES)
        return data, (status.st_size, status.st_mtime_ns)

    def find_stamp(self, path: str) -> Stamp:
        try:
            status = os.stat(f"{self.root}/{path}")  # noqa: PTH116 - a Path takes 2 µs more
        except OSError as error:
            if not is_of_the_file(error):
                raise
            return NO_STAMP
        return status.st_size, status.st_mtime_ns

    def close(self) -> None:
        pass


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # `is_dir` raises for a link to itself; such a link is a file that cannot be read
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # noqa: PTH112


class _Zip:
    """A zip. Members are read with one `pread` each and inflated without the GIL.

    `zipfile.ZipFile.read` takes a lock and some 50 µs of Python a member; the local header in
    front of a member's data is 30 bytes and two lengths, which is all that is needed here.
    Names are taken as bytes, like those of a folder, whatever the UTF-8 flag says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entered = ""
        self.file = path.open("rb", buffering=0)
        self.descriptors: tuple[int, ...] = (self.file.fileno(),)
        self.lock = threading.Lock()
        try:
            members = self._read_directory(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            self.file.close()
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise DatasetError(f"{path}: {reason}; download it again, or zip it again") from error
        if any("/" in name and "/" not in info.orig_filename for name, info in members.items()):
            logger.info("%s: its names have backslashes, as of Windows; taken for folders", path)
        self.members = members
        self.folders = _list_folders(members)

    def enter(self, folder: str) -> None:
        self.entered = folder
        self.members = {
            name.removeprefix(f"{folder}/"): info
            for name, info in self.members.items()
            if name.startswith(f"{folder}/")
        }
        self.folders = _list_folders(self.members)

    def _read_directory(self, path: Path) -> dict[str, zipfile.ZipInfo]:
        """Return the members by name; each must carry that name in front of its data, too.

        A zip's directory has no checksum: a flipped bit would drop an image, or a hundred, or move
        it to another class. The check costs 3 µs a member.
        """
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
        num_bytes = path.stat().st_size
        num_members = self._read_count(num_bytes)
        if num_members not in (len(infos), len(infos) % 65_536):  # old programs wrap around
            raise zipfile.BadZipFile(
                f"{len(infos):,} members in the zip's directory, {num_members:,} by its end record"
            )
        members = {}
        for info in infos:
            name = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
            path_inside = _with_slashes(name.decode("utf-8", "surrogateescape"))
            if path_inside in members and not path_inside.endswith("/"):
                raise zipfile.BadZipFile(f"{path_inside} is in it twice")
            if info.header_offset + info.compress_size > num_bytes:
                raise zipfile.BadZipFile(f"{name!r} ends behind the zip's {num_bytes:,} bytes")
            if self._pread(30 + len(name), info.header_offset)[30:] != name:
                raise zipfile.BadZipFile(f"the zip's directory is damaged at {name!r}")
            if path_inside:
                members[path_inside] = info
            elif not name.endswith(b"/"):  # "./" is the top
                raise zipfile.BadZipFile("the zip's directory is damaged: a member without a name")
        return members

    def _read_count(self, num_bytes: int) -> int:
        """Return the number of members by the record at the end of a zip, or by its ZIP64 one."""
        tail_bytes = min(num_bytes, 22 + 65_535 + 76)  # the record, its comment, ZIP64's two
        tail = self._pread(tail_bytes, num_bytes - tail_bytes)
        end = tail.rindex(b"PK\x05\x06")
        (count,) = struct.unpack_from("<H", tail, end + 10)
        if count == 65_535 and (zip64 := tail.rfind(b"PK\x06\x06", 0, end)) >= 0:
            (count,) = struct.unpack_from("<Q", tail, zip64 + 32)
        return int(count)

    def list_folder(self, folder: str) -> list[str]:
        return self.folders.get(folder, [])

    def list_files(self, folder: str) -> Iterator[str]:
        prefix = f"{folder}/" if folder else ""
        for name in self.members:
            if name.startswith(prefix) and name != prefix:
                yield name

    def read_stamped(self, path: str) -> tuple[bytes, Stamp]:
        return self.read_file(path), self.find_stamp(path)

    def find_stamp(self, path: str) -> Stamp:
        info = self.members.get(path)
        return NO_STAMP if info is None else (info.file_size, info.CRC)

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
        try:
            if hasattr(os, "pread"):
                return os.pread(self.file.fileno(), num_bytes, offset)
            with self.lock:
                self.file.seek(offset)
                return self.file.read(num_bytes)
        except OSError as error:
            error.filename = str(self.path)
            raise

    def close(self) -> None:
        self.file.close()


def _with_slashes(name: str) -> str:
    """Return the path of a member as unzip takes it: '/train//a' and './train/a' are 'train/a'.

    Old .NET and PowerShell 5 write backslashes for '/'.
    """
    path = name if "/" in name else name.replace("\\", "/")
    if path.startswith(("/", "./")) or "//" in path or "/./" in path:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        path = "/".join(parts) + "/" * (path.endswith("/") and len(parts) > 0)
    return path


def _list_folders(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names directly in each folder of a zip; those of folders end with '/'."""
    inside: dict[str, list[str]] = defaultdict(list)
    known = {""}
    for name in names:
        folder, _, file_name = name.rpartition("/")
        if file_name:
            inside[folder].append(file_name)
        while folder not in known:
            known.add(folder)
            above, _, last = folder.rpartition("/")
            inside[above].append(f"{last}/")
            folder = above
    return dict(inside)


def open_tree(source: Path, written: Collection[Path] = ()) -> FileTree:
    """Open a folder or a zip.

    Args:
        source: its path.
        written: resolved paths of what is being written meanwhile; a folder is listed without.

    Returns:
        The tree; a zip stays open until it is closed.

    Raises:
        DatasetError: it is neither, or not there.
    """
    if source.is_dir():
        return _Folder(source, written)
    if not source.exists():
        raise DatasetError(f"{source}: no such folder or zip; run 'tinyvgg download' or 'synth'")
    if not source.is_file():
        raise DatasetError(f"{source}: a FIFO, a socket or a device, expected a folder or a zip")
    if not zipfile.is_zipfile(source):
        raise DatasetError(f"{source}: neither a folder nor a complete zip; download it again")
    return _Zip(source)
