"""Arms: a peer's file in a process of its environment, to be written, proven or timed.

    python -m benchmarks.peers.arms write MODULE SOURCE OUT ENCODING
    python -m benchmarks.peers.arms prove MODULE CONTEST FOLDER ENCODING OPTIONS TRUTH

What a proof compares, over one epoch, is the sum of pixels and the label of every image: sorted,
they are those of the truth exactly if each image came once. A flip keeps the sum; after a crop, of
a random box or where files were encoded again, only the number of images, the labels and the mean
of all pixels can be compared.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from benchmarks.peers.contract import (
    MEAN,
    SCALE,
    SHIFT,
    OpenEpochs,
    decode,
    list_items,
)

if TYPE_CHECKING:
    from tinyvgg.bench.windows import Work

CROP_LEVELS_OFF, BOX_LEVELS_OFF = 1.0, 3.0  # mean of all pixels: a box shows the middle more often


def open_peer(
    module: str, contest: str, folder: str, encoding: str | None, options: dict[str, Any]
) -> OpenEpochs:
    """Return what yields epochs of a peer."""
    peer = importlib.import_module(f"benchmarks.peers.{module}")
    return cast(OpenEpochs, peer.open_epochs(Path(folder), contest, encoding, **options))


def timed(
    module: str, contest: str, folder: str, encoding: str | None, options: dict[str, Any]
) -> "Work":
    """Endless epochs, a batch at a time: what happens between epochs is part of the cost."""
    epoch = open_peer(module, contest, folder, encoding, options)

    def endless() -> Iterator[int]:
        while True:
            for _, labels in epoch():
                yield len(labels)

    return endless().__next__


def convert(module: str, source: str, out: str, encoding: str) -> "Work":
    """One conversion as a whole command, start of Python included, until it is on the disk.

    Those that leave that to the system are given a `sync`; the others have done it themselves.
    """
    items = list_items(source)
    for path, _ in items:  # others may have driven it from the page cache
        path.read_bytes()
    shutil.rmtree(out, ignore_errors=True)
    os.sync()  # what another arm left to write is not this one's cost

    def work() -> int:
        assert not Path(out).exists(), "one conversion a process"
        command(module, source, out, encoding)
        os.sync()
        return len(items)

    return work


def command(module: str, source: str, out: str, encoding: str) -> None:
    """Write a set by the interpreter of this process."""
    words = [sys.executable, "-m", "benchmarks.peers.arms", "write", module, source, out, encoding]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace")
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise SystemExit(done.returncode)


def write(module: str, source: str, out: str, encoding: str) -> None:
    """Convert class folders into a peer's format."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    peer = importlib.import_module(f"benchmarks.peers.{module}")
    if hasattr(peer, "write_folders"):  # it lists them itself
        peer.write_folders(Path(source), folder, encoding)
    else:
        peer.write(list_items(source), folder, encoding)


def find_truth(source: str) -> dict[str, Any]:
    """Return labels and sums of all images, sorted, and the mean of all pixels."""
    items = list_items(source)
    images = [decode(path.read_bytes()) for path, _ in items]
    rows = sorted(
        (label, int(image.sum(dtype=np.int64)))
        for (_, label), image in zip(items, images, strict=True)
    )
    mean = sum(total for _, total in rows) / sum(image.size for image in images)
    return {"rows": rows, "mean": mean, "is_of_one_size": len({i.shape for i in images}) == 1}


def prove(
    epoch: OpenEpochs, contest: str, truth: dict[str, Any], levels_off: float = 0.0
) -> dict[str, Any]:
    """Compare one epoch with the truth; `is_right` says whether it may be timed.

    Args:
        epoch: yields its batches.
        contest: that they are for.
        truth: of `find_truth`.
        levels_off: that the mean of pixels may be off; 0: every image has exactly its sum.
    """
    import torch

    rows: list[tuple[int, int]] = []
    total, num_values, is_dense = 0.0, 0, True
    for images, labels in epoch():
        if contest == "stored":
            assert images.dtype == torch.uint8, images.dtype
            if images.shape[1] == 3:
                images = images.permute(0, 2, 3, 1)
            is_dense = is_dense and images.is_contiguous()
            pixels = images.numpy()
        else:
            assert images.dtype == torch.float32, images.dtype
            assert images.shape[1] == 3, images.shape
            is_dense = is_dense and images.permute(0, 2, 3, 1).is_contiguous()
            pixels = (images.permute(0, 2, 3, 1).numpy() - SHIFT) / SCALE
            if contest == "flip":
                pixels = np.rint(pixels).astype(np.uint8)
        sums = pixels.reshape(len(pixels), -1).sum(1, dtype=np.float64)
        rows += zip(labels.reshape(-1).tolist(), np.rint(sums).astype(int).tolist(), strict=True)
        total += float(sums.sum())
        num_values += pixels.size
    rows.sort()
    expected = [tuple(row) for row in truth["rows"]]
    has_labels = [label for label, _ in rows] == [label for label, _ in expected]
    is_exact = rows == expected
    found = total / num_values
    expected_mean, allowed = truth["mean"], levels_off
    if contest == "crop":
        share = 1 - (1 - 4.444 / 2 / 64) ** 2  # of an image: what moves of 2.2 on average leave
        expected_mean = (1 - share) * truth["mean"] + share * 255 * float(np.mean(MEAN))
        allowed = CROP_LEVELS_OFF
    elif contest == "photographs":
        allowed = BOX_LEVELS_OFF
    off = abs(found - expected_mean)
    return {
        "images": len(rows),
        "labels_right": has_labels,
        "is_exact": None if contest in ("crop", "photographs") else is_exact,
        "levels_off": off,
        "channels_last": is_dense,
        "is_right": has_labels and (is_exact or off < allowed),
    }


def main() -> None:
    """Write or prove, as the words say."""
    action, module, *words = sys.argv[1:]
    if action == "write":
        write(module, *words)
    elif action == "truth":
        Path(words[0]).write_text(json.dumps(find_truth(module)))
    else:
        contest, folder, encoding, given, path = words
        options, truth = json.loads(given), json.loads(Path(path).read_text())
        epoch = open_peer(module, contest, folder, encoding or None, options)
        variants = importlib.import_module(f"benchmarks.peers.{module}").PEER.variants
        (allowed,) = {
            variant.levels_off
            for variant in variants
            if (variant.encoding, variant.options) == (encoding or None, options)
        }
        print("\n" + json.dumps(prove(epoch, contest, truth, allowed)))
        sys.stdout.flush()
        os._exit(0)  # workers that are still reading ahead are nobody's concern


if __name__ == "__main__":
    main()
