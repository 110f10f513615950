"""File kinds: what a name says of a file or folder, before anybody reads it.

From: `layouts`, which has the paths of a source.
To:   `layouts`, which packs images, leaves out what is hidden, knows what describes a data set,
      and counts and names the rest: nothing is dropped in silence.
"""

from collections import Counter
from collections.abc import Iterable

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),  # ImageFolder's
    *(".avif", ".gif"),  # of a GIF the first frame
)
# What desktops, notebooks, archives and storage boxes leave among images. A name that begins
# with a dot is hidden anyway.
HIDDEN_NAMES = frozenset(
    {"@eadir", "@recycle", "#recycle", "$recycle.bin", "__macosx", "lost+found"}
    | {"system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"}
)
METADATA_NAMES = frozenset({"val_annotations.txt", "wnids.txt", "words.txt"})
TEXT_STEMS = frozenset({"readme", "license", "licence", "copying", "citation"})
TEXT_SUFFIXES = frozenset({"", ".txt", ".md", ".rst", ".html", ".pdf", ".bib", ".cff"})
MAX_SUFFIXES = 50  # counted one by one: file names may end in numbers, a hundred thousand of them
MAX_SUFFIX_CHARACTERS = 16


def is_image(name: str) -> bool:
    """Tell whether a file name has the suffix of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is hidden by its own name; macOS writes '._x.JPEG'."""
    return name.startswith(".") or name.lower() in HIDDEN_NAMES


def is_metadata(name: str) -> bool:
    """Tell whether a file describes a data set: TinyImageNet's lists and boxes, a README."""
    name = name.lower()
    stem = name.removesuffix(find_suffix(name))
    is_text = stem in TEXT_STEMS and find_suffix(name) in TEXT_SUFFIXES
    return name in METADATA_NAMES or name.endswith("_boxes.txt") or is_text


def find_suffix(name: str) -> str:
    """Return the suffix of a file name in lower case, with its dot; "" without one."""
    stem, dot, suffix = name.rpartition(".")
    is_suffix = stem and dot and suffix.isalnum() and len(suffix) <= MAX_SUFFIX_CHARACTERS
    return f".{suffix.lower()}" if is_suffix else ""


def count_suffixes(names: Iterable[str]) -> dict[str, int]:
    """Count files by suffix; the rarest beyond 50 suffixes are counted together as "other"."""
    counts = Counter(map(find_suffix, names))
    kept = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_SUFFIXES]
    num_others = counts.total() - sum(count for _, count in kept)
    return dict(sorted(kept)) | ({"other": num_others} if num_others else {})
