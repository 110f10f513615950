"""What can go wrong that is not a bug of ours.

    TinyvggError
    ├── DatasetError        the images given to `pack` or `predict`, or a download
    ├── ShardError          what is on disk is not what the manifest says
    ├── CheckpointError     a run folder or a checkpoint that cannot be used
    ├── DivergedError       a run whose loss became NaN or infinite
    ├── RankError           another process of the run, which ended first
    └── BackendUnavailable  a loader backend or a device that cannot run here

A bad parameter is a plain `ValueError`, raised before any work. Every text reads
"thing: what was found, what was needed; what to do". `cli.main` prints it as one line.

Names in it may hold anything but a NUL: line breaks, terminal commands, marks that turn the
direction of writing. So the text of an error is `printable`, wherever it is shown.
"""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

JOINERS = "\u200c\u200d"  # format characters that Persian words and emoji are written with


def printable(text: str) -> str:
    """Return a text that any terminal shows as one line; what would do more is escaped.

    Escaped are control characters, line breaks, surrogates (bytes of a file name that are no
    UTF-8) and format characters, which turn the direction of writing or are not seen.
    """
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        and character not in JOINERS
        else character
        for character in text
    )


class PrintableLines(str):
    """Text whose line breaks are ours: every line of it went through `printable`."""

    __slots__ = ()


class TinyvggError(Exception):
    """Base of every error that is the data's or the machine's, not a bug."""

    def __str__(self) -> str:
        """Return the text, whatever names it holds: one line, or those of `bad_files_text`."""
        text = super().__str__()
        is_checked = self.args and isinstance(self.args[0], PrintableLines)
        return text if is_checked else printable(text)


class DatasetError(TinyvggError):
    """Source images, or an archive of them, that cannot be packed as they are."""


class ShardError(TinyvggError):
    """A packed folder whose files do not agree with its manifest."""


class CheckpointError(TinyvggError):
    """A run folder or checkpoint that is missing, damaged or of another data set."""


class DivergedError(TinyvggError):
    """A training run whose loss has become infinite or NaN."""


class RankError(TinyvggError):
    """Another process of a run that ended, so that this one cannot continue."""


class BackendUnavailable(TinyvggError):  # noqa: N818 - the name is part of the public contract
    """A loader backend or device that was asked for and cannot run on this machine."""


@contextmanager
def naming(path: str | PathLike[str], num_bytes: int | None = None) -> Iterator[None]:
    """Name the file, and the bytes it needs, in an `OSError` that does not: a full disk's say."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        if num_bytes is not None:
            error.add_note(f"{num_bytes:,} bytes needed")
        raise


def bad_files_text(title: str, bad_files: list[tuple[str, str]], remedy: str) -> PrintableLines:
    """Word one error for many bad files: the first 20, then how many more there are."""
    lines = [f"{path}: {reason}" for path, reason in bad_files[:20]]
    if len(bad_files) > 20:
        lines.append(f"… and {len(bad_files) - 20:,} more")
    lines = [f"{title}: {len(bad_files):,} bad files; {remedy}", *lines]
    return PrintableLines("\n  ".join(map(printable, lines)))
