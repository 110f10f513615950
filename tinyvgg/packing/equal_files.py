"""Equal files: val images that are train images too, byte by byte.

From: `pack`, with 64 bits of every file it read: CRC-32 and size, in the journal's lines.
To:   a warning: a score on such images says nothing of new ones.

Where 64 bits agree, both files are read again and compared. Memory: 8 bytes an image.
"""

import numpy as np
from numpy.typing import NDArray

from tinyvgg.errors import DatasetError
from tinyvgg.packing.folders import ImageSource, SourceImage

Digests = dict[str, NDArray[np.uint64]]


def list_equal_files(
    source: ImageSource, images: dict[str, list[SourceImage]], digests: Digests
) -> list[str]:
    """Return the paths of val files that are equal to a train file, in their order.

    Args:
        source: that they are read from.
        images: by split, those that were packed.
        digests: by split, uint64 of each image.
    """
    train, val = digests["train"], digests["val"]
    places = np.flatnonzero(np.isin(val, train)).tolist()
    alike: dict[int, list[str]] = {int(val[place]): [] for place in places}
    for place in np.flatnonzero(np.isin(train, val)).tolist():
        alike[int(train[place])].append(images["train"][place].path)
    paths = [(images["val"][place].path, alike[int(val[place])]) for place in places]
    return [path for path, others in paths if _is_in(source, path, others)]


def _is_in(source: ImageSource, path: str, others: list[str]) -> bool:
    """Tell whether a file is equal to one of others; no, where one is gone meanwhile."""
    try:
        data = source.tree.read_file(path)
        return any(source.tree.read_file(other) == data for other in others)
    except (DatasetError, OSError):
        return False
