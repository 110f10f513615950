"""Host memory: how much of it this process may use, page cache that can be dropped included.

From: Linux: /proc/meminfo, and the limits of the control groups, v1 or v2, that hold the process
      (containers, SLURM).
To:   `open`, which lets decoded images fit into it, and `readahead`, which asks whether a split
      stays in the page cache.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# cgroups(7): of version 2 and 1, what limits memory, and what a group holds that cannot be dropped
LIMITS = ("memory.max", "memory.high"), ("memory.limit_in_bytes",)
HELD = ("anon", "shmem"), ("total_rss", "total_shmem")


def find_free_memory(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Return the bytes that can be used before something else has to be swapped out or killed.

    Elsewhere than on Linux it is all memory of the machine, or no limit where it does not say. What
    cannot be read counts as no limit.

    Args:
        proc: of the system.
        groups: where its control groups are.
    """
    available = _read_numbers(proc / "meminfo").get("MemAvailable:")
    machine = _machine_memory() if available is None else available * 2**10
    return max(0, min([machine, *_free_in_groups(proc, groups)]))


def _machine_memory() -> int:
    if not hasattr(os, "sysconf"):  # Windows
        return sys.maxsize
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _free_in_groups(proc: Path, groups: Path) -> Iterator[int]:
    """Yield the limit of every group that holds the process, less what all in it hold."""
    for line in _read(proc / "self" / "cgroup").split("\n"):
        _, _, rest = line.partition(":")  # number:controllers:path
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        is_old = bool(controllers)
        top = groups / controllers if is_old else groups
        if is_old and not top.exists():
            top = groups / "memory"
        # in a container the path may be the host's: then only the top is there
        for folder in (top, *_with_parents(top, path.strip("/"))):
            held = _read_numbers(folder / "memory.stat")
            for name in LIMITS[is_old]:
                limit = _read(folder / name).strip()
                if limit.isdecimal():
                    yield int(limit) - sum(held.get(key, 0) for key in HELD[is_old])


def _with_parents(top: Path, path: str) -> Iterator[Path]:
    """Yield top/a, top/a/b and so on of a path a/b."""
    parts = path.split("/") if path else []
    for count in range(len(parts)):
        yield top.joinpath(*parts[: count + 1])


def _read_numbers(path: Path) -> dict[str, int]:
    """Return the numbers of a file of lines `name number …`; others are left out."""
    words = [line.split() for line in _read(path).split("\n")]
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}


def _read(path: Path) -> str:
    """Return a small file, nothing where it cannot be read."""
    try:
        return path.read_text("utf-8", errors="surrogateescape")
    except (OSError, ValueError):  # ValueError: a path with a zero byte
        return ""
