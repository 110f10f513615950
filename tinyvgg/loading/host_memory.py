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


def find_free_memory(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Return the bytes that can be used before something else has to be swapped out or killed.

    Elsewhere than on Linux it is all memory of the machine, or no limit where it does not say.

    Args:
        proc: of the system.
        groups: where its control groups are.
    """
    free = _machine_memory()
    for line in _read_lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            free = min(free, int(line.split()[1]) * 2**10)
    return max(0, min([free, *_free_in_groups(proc, groups)]))


def _machine_memory() -> int:
    if not hasattr(os, "sysconf"):  # Windows
        return sys.maxsize
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _free_in_groups(proc: Path, groups: Path) -> Iterator[int]:
    """Yield the limit of every group above the process, less what its processes hold."""
    for line in _read_lines(proc / "self" / "cgroup"):  # cgroups(7): number:controllers:path
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = groups / "memory" if controllers else groups
        limit_name = "memory.limit_in_bytes" if controllers else "memory.max"
        held_name = "total_rss" if controllers else "anon"
        # in a container the path may be the host's: then only the top is there
        for folder in (top, *(top / part for part in _with_parents(path.strip("/")))):
            (limit,) = _read_lines(folder / limit_name) or ["max"]
            if limit != "max":
                held = dict(line.split() for line in _read_lines(folder / "memory.stat"))
                yield int(limit) - int(held.get(held_name, 0))


def _with_parents(path: str) -> Iterator[str]:
    """Yield "a", "a/b" and so on of a path."""
    parts = path.split("/") if path else []
    for count in range(len(parts)):
        yield "/".join(parts[: count + 1])


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a small file, none where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
