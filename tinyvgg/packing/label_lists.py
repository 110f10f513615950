"""Label lists: the text files of a source that say what its images are.

From: a `FileTree`, or a file the user names.
To:   `layouts` (val_annotations.txt) and `folders` (words.txt); `csv_list` reads its text here.

A list comes from any editor: with a byte order mark, in UTF-16, with the line ends of Windows or
of old Macs. What cannot be told apart for sure is refused in one line.
"""

import codecs
import re
from collections import defaultdict
from collections.abc import Sequence

from tinyvgg.errors import DatasetError, bad_files_text
from tinyvgg.packing.trees import FileTree

WORDS = "words.txt"
LINE_END = re.compile(r"\r\n|\r|\n")  # str.splitlines cuts names at seven other characters, too


def decode_text(data: bytes, name: str) -> str:
    """Return the text of a list; bytes that are no UTF-8 become surrogates, as in file names.

    Raises:
        DatasetError: UTF-16 without a byte order mark, UTF-32, or no text at all.
    """
    encoding = "utf-8-sig"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in data:
        raise DatasetError(
            f"{name}: NUL bytes, as in UTF-16 without a byte order mark; save it as UTF-8"
        )
    try:
        text = data.decode(encoding, "surrogateescape")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{name}: damaged {encoding} ({error.reason}); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise DatasetError(f"{name}: UTF-32, or no text; save it as UTF-8")
    return text


def group_by_annotation(
    source: str, tree: FileTree, annotations: str, paths: Sequence[str]
) -> dict[str, list[str]]:
    """Return image paths by the class that val_annotations.txt gives their names.

    Args:
        source: what the user calls the source, for errors.
        tree: reads the file.
        annotations: its path; names in it count from images/ beside it.
        paths: images below images/, sorted.

    Raises:
        DatasetError: lines and images do not match; every one that does not is named.
    """
    folder = f"{annotations.rpartition('/')[0]}/images/"
    named = {path.removeprefix(folder): path for path in paths}
    class_of: dict[str, str] = {}
    bad: list[tuple[str, str]] = []
    text = decode_text(tree.read_file(annotations), f"{source}: {annotations}")
    for number, line in enumerate(LINE_END.split(text), start=1):
        name, *fields = line.split("\t")
        if not line.strip():
            continue
        name = name if name in named else name.strip()
        if not fields or not fields[0].strip() or name in class_of:
            bad.append((f"{annotations}:{number}", "not 'file<tab>class', or a file named twice"))
        else:
            class_of[name] = fields[0].strip()
    by_class: dict[str, list[str]] = defaultdict(list)
    for name, path in named.items():
        class_folder = class_of.pop(name, None)
        if class_folder is None:
            bad.append((path, f"not in {annotations}"))
        else:
            by_class[class_folder].append(path)
    bad.extend((f"{folder}{name}", f"missing, but in {annotations}") for name in class_of)
    if bad:
        raise DatasetError(bad_files_text(source, bad, "copy or unpack the data again"))
    return dict(by_class)


def read_words(source: str, tree: FileTree) -> dict[str, str]:
    """Return what words.txt, at the top of a source, says of each class.

    Raises:
        DatasetError: it is no text.
    """
    text = decode_text(tree.read_file(WORDS), f"{source}: {WORDS}")
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    pairs = (line.partition("\t") for line in LINE_END.split(text))
    return {wnid.strip(): words.strip() for wnid, tab, words in pairs if tab}
