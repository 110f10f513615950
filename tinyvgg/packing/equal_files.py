"""Equal files: val images that are train images too, found while `pack` reads both.

From: `pack`, whose decode threads read every file through a `NotingTree`.
To:   a warning: a score on such images says nothing of new ones.

Equal is byte by byte. Compared are 64-bit hashes, keyed anew in each process, which take 1 µs of
the 50 a TinyImageNet image takes to pack: among 1,000,000 train and 100,000 val images one wrong
pair turns up in 180 million runs. Memory: 8 bytes a train image, some 100 a val image.
"""

from array import array
from collections.abc import Iterable

import numpy as np

from tinyvgg.packing.trees import FileTree


class NotingTree:
    """A tree that remembers a hash of each file it reads; safe from several threads."""

    def __init__(self, tree: FileTree, val_paths: Iterable[str]) -> None:
        self.tree = tree
        self.read_bytes = tree.read_file
        self.val: dict[str, int | None] = dict.fromkeys(val_paths)
        self.train = array("q")

    def read_file(self, path: str) -> bytes:
        """Return the bytes of one file, and note their hash. Raises: OSError."""
        data = self.read_bytes(path)
        if path in self.val:
            self.val[path] = hash(data)
        else:
            self.train.append(hash(data))
        return data

    def list_equal(self) -> list[str]:
        """Return the paths of val files that are equal to a train file, in their order."""
        read = {path: value for path, value in self.val.items() if value is not None}
        hashes = np.fromiter(read.values(), np.int64, len(read))
        is_equal = np.isin(hashes, np.frombuffer(self.train, np.int64))
        return [path for path, equal in zip(read, is_equal.tolist(), strict=True) if equal]

    def list_folder(self, folder: str) -> list[str]:
        """As the tree does."""
        return self.tree.list_folder(folder)

    def list_files(self, folder: str) -> Iterable[str]:
        """As the tree does."""
        return self.tree.list_files(folder)

    def enter(self, folder: str) -> None:
        """As the tree does."""
        self.tree.enter(folder)

    def close(self) -> None:
        """As the tree does."""
        self.tree.close()
