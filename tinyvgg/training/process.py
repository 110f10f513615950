"""Process: what must be so before Python starts. No torch here.

From: the command line, as the first thing it does.
To:   the same command in the same process, started again where something was missing:

  * training on a CPU wants an allocator that keeps memory. Fresh memory for every activation is the
    largest waste of a CPU step after the convolutions: glibc hands large blocks back to the kernel,
    which then clears them page by page, again and again;
  * names of files are UTF-8 whatever the locale, so that a set has the same bytes everywhere.

What is started again imports nothing from the working directory, where a random.py or another
tinyvgg/ may lie, unless tinyvgg itself is run from there.
"""

import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import tinyvgg

# torch backs large tensors by 2 MiB pages; glibc keeps what was freed (thresholds in bytes)
TRAIN_ENVIRONMENT = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
}


def prepare_process(argv: Sequence[str]) -> None:
    """Start this process again, with the same command, if something must be set before it starts.

    A variable that the user has set stays as it is. Returns only if nothing had to be done.

    Args:
        argv: the command and its flags.
    """
    _name_user()
    if not sys.platform.startswith("linux"):
        return
    wanted = TRAIN_ENVIRONMENT if argv[:1] in (["train"], ["bench"]) else {}
    missing = {key: value for key, value in wanted.items() if key not in os.environ}
    options = [] if _is_run_from_working_directory() else ["-P"]
    if sys.getfilesystemencoding() != "utf-8":
        options += ["-X", "utf8"]
        missing.setdefault("PYTHONIOENCODING", sys.stdout.encoding)  # the terminal's stays
    elif not missing:
        return
    command = [sys.executable, *options, "-m", "tinyvgg.cli", *argv]
    os.execve(sys.executable, command, {**missing, **os.environ})


def _is_run_from_working_directory() -> bool:
    """Return whether `python -m` found this package in the working directory."""
    first = str(Path(tinyvgg.__file__).parents[1])
    return not sys.flags.safe_path and sys.path[:1] == [first]


def _name_user() -> None:
    """Give a user without a passwd entry a name: torch asks for it to name its cache."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = str(os.getuid()) if hasattr(os, "getuid") else "user"
