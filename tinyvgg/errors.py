"""What can go wrong that is not a bug of ours.

    TinyvggError
    ├── DatasetError        the images given to `pack` or `predict`, or a download
    ├── ShardError          what is on disk is not what the manifest says
    ├── CheckpointError     a run folder or a checkpoint that cannot be used
    ├── DivergedError       a run whose loss is no number any more
    └── BackendUnavailable  a loader backend or a device that cannot run here

A bad parameter is a plain `ValueError`, raised before any work. Every text reads
"thing: what was found, what was needed; what to do". `cli.main` prints it as one line.
"""


class TinyvggError(Exception):
    """Base of every error that is the data's or the machine's, not a bug."""


class DatasetError(TinyvggError):
    """Source images, or an archive of them, that cannot be packed as they are."""


class ShardError(TinyvggError):
    """A packed folder whose files do not agree with its manifest."""


class CheckpointError(TinyvggError):
    """A run folder or checkpoint that is missing, damaged or of another data set."""


class DivergedError(TinyvggError):
    """A training run whose loss has become infinite or NaN."""


class BackendUnavailable(TinyvggError):  # noqa: N818 - the name is part of the public contract
    """A loader backend or device that was asked for and cannot run on this machine."""


def bad_files_text(title: str, bad_files: list[tuple[str, str]], remedy: str) -> str:
    """Word one error for many bad files: the first 20, then how many more there are."""
    lines = [f"{path}: {reason}" for path, reason in bad_files[:20]]
    if len(bad_files) > 20:
        lines.append(f"… and {len(bad_files) - 20:,} more")
    return "\n  ".join([f"{title}: {len(bad_files):,} bad files; {remedy}", *lines])
