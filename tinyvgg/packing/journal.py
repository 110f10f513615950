"""Journal: which shards of OUT.partial are finished, so that nobody packs them again.

    OUT.partial/journal/whole.jsonl        of a pack in one process
    OUT.partial/journal/part-2-of-4.jsonl  of `--part 2/4`; each file has one writer

From: `pack`, a line when a shard's files are on disk, under their names.
To:   the same command after a kill or a full disk, other parts, and `--finish`.

A line says all that the manifest needs of a shard, and the key of its task (`tasks`): a hash of
options, paths, sizes and times of files, labels. A shard counts as finished if its line has the
key that is asked for, and its files have the sizes, headers and first 4 KiB of the line; also the
digest, where lines of several keys say that the files were replaced once. A line is written only
after `fsync` of what it says, so it needs none of its own: lost, it costs the shard again.
"""

import base64
import hashlib
import json
import os
import shutil
import threading
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinyvgg.errors import ShardError, naming
from tinyvgg.packing.folders import SourceImage
from tinyvgg.packing.tasks import ShardTask, WrittenShard
from tinyvgg.packing.trees import FileTree
from tinyvgg.shards.manifest import AnyFormat, Sha256, ShardRecord, shard_file_names
from tinyvgg.shards.store import check_shard_files

JOURNAL = "journal"
WRITING = ".writing"  # begins the names of folders with files that are not whole


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Header(_Line):
    """The first line: what the shards are made of."""

    kind: Literal["header"] = "header"
    options: dict[str, str]
    listing: Sha256


class _Begun(_Line):
    """The files of a shard are about to be replaced."""

    kind: Literal["begun"] = "begun"
    shard: str
    key: Sha256


class _Finished(_Line):
    """A shard is on disk."""

    kind: Literal["finished"] = "finished"
    shard: str
    key: Sha256
    record: ShardRecord
    sums: Annotated[list[list[int]], Field(min_length=2, max_length=2)]
    num_pixels: int
    sizes: list[tuple[int, int]]
    recoded: list[tuple[str, str]]
    digests: str


class BadFile(_Line):
    """A file that cannot be packed: its path in hexadecimal, as it is no text always; its stamp."""

    kind: Literal["bad"] = "bad"
    shard: str
    path: str
    reason: str
    stamp: tuple[int, int]


LINES: dict[object, type[_Line]] = {
    "header": Header, "begun": _Begun, "finished": _Finished, "bad": BadFile
}  # fmt: skip


class Journal:
    """The journals of an OUT.partial: all are read, one is written.

    Args:
        folder: OUT.partial; it is there.
        writer: "whole", or which part this is.

    Attributes:
        headers: of all journals.
        bad_files: that any pack met, last one last.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        self.folder = folder
        self.path = folder / JOURNAL / f"{writer}.jsonl"
        self.headers: list[Header] = []
        self.bad_files: list[BadFile] = []
        self.lines: dict[str, list[_Finished]] = defaultdict(list)
        self.keys: dict[str, set[str]] = defaultdict(set)  # more than one: files were replaced
        self.mutex = threading.Lock()
        (folder / JOURNAL).mkdir(exist_ok=True)
        for path in sorted((folder / JOURNAL).glob("*.jsonl")):
            self._read(path)

    def _read(self, path: Path) -> None:
        """Read a journal up to its first line that is torn."""
        data = path.read_bytes()
        for line in data[: data.rfind(b"\n") + 1].splitlines():
            try:
                kind = json.loads(line)["kind"]
                self._take(LINES[kind].model_validate_json(line))
            except (ValueError, KeyError, TypeError, ValidationError, RecursionError):
                return

    def _take(self, line: _Line) -> None:
        if isinstance(line, Header):
            self.headers.append(line)
        elif isinstance(line, BadFile):
            self.bad_files.append(line)
        elif isinstance(line, _Begun | _Finished):
            self.keys[line.shard].add(line.key)
            if isinstance(line, _Finished):
                self.lines[line.shard].append(line)

    @property
    def shards(self) -> set[str]:
        """Names of the shards that were written once, or that hold bad files."""
        return {*self.lines, *(bad.shard for bad in self.bad_files)}

    @property
    def writers(self) -> list[str]:
        """Who wrote: "whole", "part-2-of-4"."""
        return sorted(path.stem for path in (self.folder / JOURNAL).glob("*.jsonl"))

    @property
    def has_parts(self) -> bool:
        """Whether a part wrote one of the journals."""
        return any(writer.startswith("part-") for writer in self.writers)

    def begin(self, header: Header) -> None:
        """Write the first line of a journal that has none yet, and cut off a torn last one."""
        data = self.path.read_bytes() if self.path.exists() else b""
        num_whole_bytes = data.rfind(b"\n") + 1
        if num_whole_bytes != len(data):
            os.truncate(self.path, num_whole_bytes)
        if header not in self.headers or not num_whole_bytes:
            self._write(header)

    def add(self, task: ShardTask, key: str, written: WrittenShard, folder: Path) -> None:
        """Give the files of a written shard their names, and write its line.

        Args:
            task: that made it.
            key: of that task.
            written: what there is to say; nothing in it is bad.
            folder: where the files are.
        """
        assert written.record is not None
        line = _Finished(
            shard=task.name,
            key=key,
            record=written.record,
            sums=written.sums.tolist(),
            num_pixels=written.num_pixels,
            sizes=sorted(written.sizes),
            recoded=written.recoded,
            digests=base64.b64encode(written.digests.astype("<u8").tobytes()).decode(),
        )
        with self.mutex:
            self._write(_Begun(shard=task.name, key=key))
            for name in written.record.file_names:
                (folder / name).replace(self.folder / name)
            self._write(line)

    def add_bad(self, task: ShardTask, written: WrittenShard, tree: FileTree) -> None:
        """Write a line for each file of a shard that cannot be packed."""
        for image, reason in written.bad_files:
            path = os.fsencode(image.path).hex()
            reason = reason.encode("utf-8", "backslashreplace").decode()
            stamp = tree.find_stamp(image.path)
            with self.mutex:
                self._write(BadFile(shard=task.name, path=path, reason=reason, stamp=stamp))

    def _write(self, line: _Line) -> None:
        """Write a line, or nothing of it where the disk is full."""
        data = line.model_dump_json().encode() + b"\n"
        num_bytes = self.path.stat().st_size if self.path.exists() else 0
        try:
            with naming(self.path, len(data)), self.path.open("ab") as file:
                file.write(data)
        except OSError:
            os.truncate(self.path, num_bytes)
            raise
        self._take(line)

    def find_finished(self, task: ShardTask, key: str, image: AnyFormat) -> WrittenShard | None:
        """Return what was written for a task with a key; None if it is to be done (again)."""
        for line in reversed(self.lines.get(task.name, [])):
            if line.key == key:
                return self._check(line, image) if self._is_whole(line, image) else None
        return None

    def _is_whole(self, line: _Finished, image: AnyFormat) -> bool:
        """Tell whether the files on disk are those that the line is of."""
        split, _, index = line.shard.partition("-")
        names = shard_file_names(split, int(index), is_jpeg=line.record.is_jpeg)
        if (line.record.images, line.record.labels) != names:
            return False
        try:
            check_shard_files(self.folder, line.record, image)
            path = self.folder / line.record.images
            if len(self.keys[line.shard]) == 1:
                return True
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == line.record.images_sha256
        except (ShardError, OSError):
            return False

    def _check(self, line: _Finished, image: AnyFormat) -> WrittenShard:
        digests = np.frombuffer(base64.b64decode(line.digests), "<u8").astype(np.uint64)
        return WrittenShard(
            sums=np.array(line.sums, np.int64),
            num_pixels=line.num_pixels,
            sizes=set(line.sizes),
            recoded=line.recoded,
            digests=digests,
            record=line.record,
        )

    def list_bad(self, tree: FileTree, images: list[SourceImage]) -> dict[str, str]:
        """Return path and reason of the bad files among some images that are as they were."""
        known = {os.fsdecode(bytes.fromhex(bad.path)): bad for bad in self.bad_files}
        return {
            image.path: known[image.path].reason
            for image in images
            if image.path in known and tree.find_stamp(image.path) == known[image.path].stamp
        }

    def remove_strays(self, kept: set[str]) -> None:
        """Remove what is no finished shard: of killed runs, or of another plan."""
        for path in self.folder.iterdir():
            if path.name == JOURNAL or path.name in kept:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
