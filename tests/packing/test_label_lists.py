"""Label lists: val_annotations.txt and words.txt from any editor, or one line that says why not."""

import codecs
from pathlib import Path

import pytest

from tinyvgg.errors import DatasetError
from tinyvgg.packing.folders import list_images
from tinyvgg.packing.label_lists import decode_text

TEXT = "val_0.png\tbee\t0\t0\t9\t9\nval_1.png\tant\t0\t0\t9\t9\nval 2.png\tbee\t1\t2\t3\t4\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for path in ("train/ant/0.png", "train/bee/0.png", "val/images/val_0.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "val/images/val_1.png").touch()
    (tmp_path / "val/images/val 2.png").touch()
    return tmp_path


def val_labels(source: Path) -> list[tuple[str, int]]:
    return [(image.path[11:], image.label) for image in list_images(source).splits["val"]]


ENCODED = {
    "UTF-8 with a mark": codecs.BOM_UTF8 + TEXT.encode(),
    "UTF-16, little-endian": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "UTF-16, big-endian": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "Windows' line ends": TEXT.replace("\n", "\r\n").encode(),
    "old Macs' line ends": TEXT.replace("\n", "\r").encode(),
    "no last line end": TEXT.rstrip().encode(),
    "spaces around names": TEXT.replace("\t", " \t ").replace("val_1", "  val_1").encode(),
    "empty lines": TEXT.replace("\n", "\n \n\n").encode(),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_annotations_from_any_editor_are_read(source: Path, kind: str) -> None:
    (source / "val/val_annotations.txt").write_bytes(ENCODED[kind])

    assert val_labels(source) == [("val_1.png", 0), ("val 2.png", 1), ("val_0.png", 1)]


@pytest.mark.parametrize("name", ["a\x85.png", "a\u2028.png", "a\x0c.png", " a.png", "\xa0a.png"])
def test_a_name_is_cut_at_line_ends_alone(source: Path, name: str) -> None:
    (source / "val/images/val_0.png").rename(source / "val/images" / name)
    text = TEXT.replace("val_0.png", name)
    (source / "val/val_annotations.txt").write_bytes(text.encode())

    assert (name, 1) in val_labels(source)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (TEXT.encode("utf-16-le"), "NUL bytes, as in UTF-16 without a byte order mark"),
        (TEXT.encode("utf-16-be"), "NUL bytes, as in UTF-16 without a byte order mark"),
        (TEXT.encode("utf-32"), "UTF-32, or no text"),
        (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le")[:-1], r"damaged utf-16 \(truncated data\)"),
        (b"val_0.png\0\0\0bee", "NUL bytes"),
    ],
)
@pytest.mark.parametrize("path", ["val/val_annotations.txt", "words.txt"])
def test_what_is_no_plain_text_is_refused_by_name(
    source: Path, path: str, data: bytes, found: str
) -> None:
    (source / "val/val_annotations.txt").write_text(TEXT)
    (source / path).write_bytes(data)

    with pytest.raises(DatasetError, match=f"{source}: {path}: {found}.*; save it as UTF-8$"):
        list_images(source)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_words_in_any_encoding_are_read(source: Path, encoding: str) -> None:
    (source / "val/val_annotations.txt").write_text(TEXT)
    (source / "words.txt").write_bytes("bee\tBiene, Ägypten\r\nant\tΩß\r\n".encode(encoding))

    assert list_images(source).class_words == ["Ωß", "Biene, Ägypten"]


def test_bytes_that_are_no_utf_8_become_those_of_a_file_name() -> None:
    assert decode_text(b"\xff\xe9.png\tant", "x") == "\udcff\udce9.png\tant"
