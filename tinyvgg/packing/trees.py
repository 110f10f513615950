"""Trees: what a folder and a zip have in common: relative paths, and bytes for each of them."""

from collections.abc import Iterable
from typing import Protocol


class FileTree(Protocol):
    """A folder or a zip. A path has '/' between its parts; that of the top is ""."""

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

    def enter(self, folder: str) -> None:
        """Make a folder the top: from now on paths begin there."""

    def close(self) -> None:
        """Let go of what is open."""
