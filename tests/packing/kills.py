"""Packs in children that are killed, and what they leave."""

import json
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from tests.packing.sources import known_pixels


def write_jpegs(root: Path, train: int, val: int, size: int = 32) -> Path:
    for split, count in (("train", train), ("val", val)):
        for name in ("ant", "bee"):
            for number in range(count):
                path = root / split / name / f"{number:03d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(known_pixels(split, name, number, size)).save(path, quality=90)
    return root


def start(*words: object) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tinyvgg.cli", "pack", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


File = tuple[int, int]


def identify(path: Path) -> File:
    """Return what two files never have in common: an inode and the time it was written."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def list_finished(partial: Path) -> dict[str, File]:
    """Return the images of every shard that the journals call finished, and which file it is."""
    found = {}
    beside = partial.with_name(f"{partial.name}-journal")  # for the moment before it is OUT
    for path in [*partial.glob("journal/*.jsonl"), *beside.glob("*.jsonl")]:
        for line in path.read_bytes().split(b"\n")[:-1]:
            fields = json.loads(line)
            if fields["kind"] == "finished":
                name = fields["record"]["images"]
                found[name] = identify(partial / name)
    return found


def kill_between(process: "subprocess.Popen[bytes]", partial: Path, num_shards: int) -> None:
    """Kill a pack when so many shards are in the journals, or let it end."""
    journals = partial / "journal"
    while process.poll() is None:
        lines = sum(path.read_bytes().count(b'"finished"') for path in journals.glob("*.jsonl"))
        if lines >= num_shards:
            process.kill()
        time.sleep(0.002)
    process.communicate()


def leave_partial(source: Path, out: Path, num_shards: int, **options: object) -> dict[str, File]:
    """Leave what a pack leaves that is killed after some shards; return its shards."""
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    partial = out.with_name(f"{out.name}.partial")
    kill_between(start(source, out, *flags), partial, num_shards)
    finished = list_finished(partial)
    assert finished
    return finished
