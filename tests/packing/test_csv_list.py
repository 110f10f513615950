"""A CSV list: any delimiter, encoding and columns; every line that cannot be used is named."""

import logging
import zipfile
from collections.abc import Sequence
from os import fsencode
from pathlib import Path

import pytest

from tinyvgg.errors import DatasetError
from tinyvgg.packing.csv_list import CsvList
from tinyvgg.packing.folders import ImageSource, list_images
from tinyvgg.packing.holdout import Holdout

FILES = ("img/1.png", "img/2.png", "img/3.png", "more/4.png", "5.png")
LABELS = ("rose", "daisy", "rose", "daisy", "rose")
SPLITS = ("train", "train", "val", "val", "train")
TABLE = [("path", "label", "split"), *zip(FILES, LABELS, SPLITS, strict=True)]


def write_csv(
    path: Path, rows: Sequence[tuple[str, ...]], mark: str = ",", end: str = "\n"
) -> Path:
    path.write_bytes(fsencode("".join(mark.join(row) + end for row in rows)))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for path in FILES:
        (tmp_path / "set" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / path).write_bytes(path.encode())
    return tmp_path / "set"


def found(
    source: Path, csv_list: CsvList, holdout: Holdout | None = None
) -> dict[str, list[tuple[str, str]]]:
    listed: ImageSource = list_images(source, holdout, csv_list)
    listed.tree.close()
    return {
        split: [(image.path, listed.class_folders[image.label]) for image in images]
        for split, images in listed.splits.items()
    }


EXPECTED = {
    "train": [("img/2.png", "daisy"), ("5.png", "rose"), ("img/1.png", "rose")],
    "val": [("more/4.png", "daisy"), ("img/3.png", "rose")],
}


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_images_get_the_class_and_split_of_their_line(source: Path, mark: str, end: str) -> None:
    path = write_csv(source.parent / "labels.csv", TABLE, mark, end)

    assert found(source, CsvList(path)) == EXPECTED


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le-bom"])
def test_a_list_in_another_encoding_is_read(source: Path, encoding: str) -> None:
    text = "".join(",".join(row) + "\n" for row in TABLE)
    data = (
        b"\xff\xfe" + text.encode("utf-16-le")
        if encoding.endswith("bom")
        else text.encode(encoding)
    )
    (source.parent / "labels.csv").write_bytes(data)

    assert found(source, CsvList(source.parent / "labels.csv")) == EXPECTED


def test_utf_16_without_a_mark_is_refused_in_one_line(source: Path) -> None:
    (source.parent / "labels.csv").write_bytes("path,label\n".encode("utf-16-le"))

    with pytest.raises(
        DatasetError, match=r"labels\.csv: NUL bytes, as in UTF-16 without .* UTF-8"
    ):
        found(source, CsvList(source.parent / "labels.csv"))


def test_columns_are_found_by_name_wherever_they_stand(source: Path) -> None:
    rows = [(split, "x", label, path) for path, label, split in TABLE]
    rows[0] = ("Usage", "id", "class name", "file")
    path = write_csv(source.parent / "labels.csv", rows)

    assert found(source, CsvList(path, "file", "class name", "Usage")) == EXPECTED


def test_quotes_spaces_dots_and_backslashes_are_understood(source: Path) -> None:
    rows = [TABLE[0], ('"img\\1.png"', " rose ", "Train"), ("./img//2.png", '"daisy"', "training")]
    rows += [("img/3.png", "rose", "valid"), ("more\\4.png", "daisy", "VAL"), TABLE[5]]
    path = write_csv(source.parent / "labels.csv", rows)

    assert found(source, CsvList(path)) == EXPECTED


@pytest.mark.parametrize("in_zip", [False, True])
def test_a_list_inside_the_source_is_found(source: Path, in_zip: bool) -> None:
    write_csv(source / "more/labels.csv", TABLE)
    given = source
    if in_zip:
        given = source.with_suffix(".zip")
        with zipfile.ZipFile(given, "w") as archive:
            for file in source.rglob("*"):
                archive.write(file, file.relative_to(source))

    assert found(given, CsvList(Path("more/labels.csv"))) == EXPECTED


def test_a_list_that_is_nowhere_is_named(source: Path) -> None:
    with pytest.raises(DatasetError, match=r"no\.csv: no such file, nor in .*set; pass --csv"):
        found(source, CsvList(Path("no.csv")))


def test_a_listed_file_needs_no_suffix(source: Path) -> None:
    (source / "img/3.png").rename(source / "img/3")
    path = write_csv(source.parent / "x.csv", [*TABLE[:3], ("img/3", "rose", "val"), *TABLE[4:]])

    assert found(source, CsvList(path))["val"][1] == ("img/3", "rose")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("../set/5.png", "rose", "train"), "'../set/5.png': leads out of SOURCE"),
        (("img/../../x.png", "rose", "train"), "'../x.png': leads out of SOURCE"),
        (("/etc/passwd", "rose", "train"), "'/etc/passwd': an absolute path"),
        (("C:\\x\\1.png", "rose", "train"), "'C:/x/1.png': an absolute path"),
        (("img/9.png", "rose", "train"), "'img/9.png': no such file"),
        (("nowhere/9.png", "rose", "train"), "'nowhere/9.png': no such file"),
        (("img", "rose", "train"), "'img': no such file"),
        (("img/1.png", "rose", "train"), "'img/1.png': listed in line 2, too"),
        (("./img/1.png", "daisy", "val"), "'img/1.png': listed in line 2, too"),
        (("", "rose", "train"), "'': no path"),
        (("5.png", "", "train"), "'5.png': no label"),
        (("5.png", "rose", "dev"), "'5.png': split 'dev', expected train, val or test"),
        (("5.png",), "'5.png': no label"),
        (("5.png", "rose", "train", "x"), "'5.png': 'x' behind the last column"),
        (("5", "png", "rose", "train"), "'5': 'train' behind the last column"),
        (("5.png", "rose", "train", "", "2"), "'5.png': '2' behind the last column"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(
    source: Path, row: tuple[str, ...], message: str
) -> None:
    path = write_csv(source.parent / "labels.csv", [*TABLE[:5], row])

    with pytest.raises(DatasetError) as caught:
        found(source, CsvList(path))

    title, line = str(caught.value).splitlines()
    assert title == f"{path}: 1 bad files; mend these lines; paths begin in {source}"
    assert line.startswith(f"  {path}:6: {message}")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            ("file", "label"),
            "no column 'path' in its first .* found 'file', 'label'; pass --csv-path-column",
        ),
        (
            ("path", "y"),
            "no column 'label' in its first .* found 'path', 'y'; pass --csv-label-column",
        ),
        (
            ("path", "path", "label"),
            "no column 'path' in its first line, or two; found 'path', 'path', 'label'",
        ),
    ],
)
def test_a_missing_column_is_named_with_those_found(
    source: Path, columns: tuple[str, ...], message: str
) -> None:
    path = write_csv(source.parent / "labels.csv", [columns, TABLE[1]])

    with pytest.raises(DatasetError, match=message):
        found(source, CsvList(path))


def test_cells_without_text_behind_the_last_column_are_no_fault(source: Path) -> None:
    path = write_csv(source.parent / "labels.csv", [TABLE[0], *((*row, "") for row in TABLE[1:])])

    assert found(source, CsvList(path)) == EXPECTED


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_quoted_line_break_is_part_of_a_cell(source: Path, end: str) -> None:
    (source / f"a{end}b.png").write_bytes(b"")
    path = write_csv(
        source.parent / "labels.csv", [*TABLE, (f'"a{end}b.png"', f'"ro{end}se"', "train")], end=end
    )

    assert (f"a{end}b.png", f"ro{end}se") in found(source, CsvList(path))["train"]
    write_csv(path, [*TABLE, (f'"a{end}b.png"', "rose", "train"), ("no.png", "rose", "val")])
    with pytest.raises(DatasetError, match=r"labels\.csv:9: 'no\.png': no such file"):
        found(source, CsvList(path))


@pytest.mark.parametrize("name", ["labels.csv", "img/labels.csv", "x.txt"])
def test_a_list_in_two_places_is_taken_if_they_are_equal(
    source: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    inside, outside = source / name, source.parent / "work" / name
    outside.parent.mkdir(parents=True)
    for path in (inside, outside):
        write_csv(path, TABLE)
    monkeypatch.chdir(source.parent / "work")
    assert found(source, CsvList(Path(name))) == EXPECTED
    write_csv(outside, TABLE[:-1])

    with pytest.raises(
        DatasetError, match=f"{name}: there is another one in .*; pass the absolute"
    ):
        found(source, CsvList(Path(name)))
    assert found(source, CsvList(inside)) == EXPECTED


def test_a_folder_is_no_list(source: Path) -> None:
    with pytest.raises(DatasetError, match="img: a folder, expected a CSV file"):
        found(source, CsvList(source / "img"))


def test_files_beside_listed_ones_are_counted_and_named(
    source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("notes.doc", "img/x.xmp", "img/.y.xmp", "LICENSE", "labels.csv"):
        (source / name).write_bytes(b"")
    path = write_csv(source / "labels.csv", TABLE)

    listed = list_images(source, None, CsvList(path))

    assert listed.unpacked == {".doc": 1, ".xmp": 1}
    assert [r.getMessage() for r in caplog.records][-2:] == ["  notes.doc", "  img/x.xmp"]


@pytest.mark.parametrize(
    ("labels", "is_said"),
    [
        (("2", "10", "2", "10", "2"), True),
        (("02", "10", "02", "10", "02"), False),
        (("1", "2", "1", "2", "1"), False),
        (("2", "x10", "2", "x10", "2"), False),
    ],
)
def test_numbers_that_are_sorted_as_text_are_worth_a_line(
    source: Path, caplog: pytest.LogCaptureFixture, labels: tuple[str, ...], is_said: bool
) -> None:
    rows = [(path, label, split) for (path, _, split), label in zip(TABLE[1:], labels, strict=True)]
    path = write_csv(source.parent / "labels.csv", [TABLE[0], *rows])

    found(source, CsvList(path))

    text = f"{path}: labels are sorted as text, so '10' is class 0; write them with leading zeros"
    assert any(text in record.getMessage() for record in caplog.records) == is_said


def test_a_named_split_column_must_be_there(source: Path) -> None:
    path = write_csv(source.parent / "labels.csv", TABLE)

    with pytest.raises(
        DatasetError, match=r"no column 'fold' in its first line, .* pass --csv-split-column"
    ):
        found(source, CsvList(path, split_column="fold"))


@pytest.mark.parametrize("label", ["a/b", "..", "\udcff"])
def test_a_label_that_is_no_name_is_refused(source: Path, label: str) -> None:
    path = write_csv(source.parent / "labels.csv", [TABLE[0], ("5.png", label, "train")])

    with pytest.raises(DatasetError, match="not a class name"):
        found(source, CsvList(path))


def test_val_is_held_out_of_a_list_without_splits(source: Path) -> None:
    path = write_csv(source.parent / "labels.csv", [row[:2] for row in TABLE])

    splits = found(source, CsvList(path), Holdout(0.34, seed=1))

    assert [label for _, label in splits["train"]] == ["daisy", "rose", "rose"]
    assert [label for _, label in splits["val"]] == ["daisy", "rose"]
    assert {*splits["train"], *splits["val"]} == {*EXPECTED["train"], *EXPECTED["val"]}


def test_a_list_without_val_says_how_to_hold_out(source: Path) -> None:
    path = write_csv(source.parent / "labels.csv", [row[:2] for row in TABLE])

    with pytest.raises(DatasetError, match=r"every image is train, .* pass --val-share 0\.1"):
        found(source, CsvList(path))


def test_test_images_are_val_only_where_there_is_no_val(
    source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tinyvgg")
    as_test = [(*row[:2], row[2].replace("val", "test")) for row in TABLE]
    path = write_csv(source.parent / "labels.csv", as_test)

    assert found(source, CsvList(path)) == EXPECTED
    assert f"{path}: split test is the val split" in caplog.messages

    write_csv(path, [*TABLE[:4], (*TABLE[4][:2], "test"), TABLE[5]])
    assert found(source, CsvList(path))["val"] == [("img/3.png", "rose")]
    assert f"{path}: split test is left out, 1 images: val is the val split" in caplog.messages


def test_a_label_that_only_val_has_is_named(source: Path) -> None:
    path = write_csv(source.parent / "x.csv", [*TABLE[:4], ("more/4.png", "tulip", "val")])

    with pytest.raises(DatasetError, match=r"label 'tulip': in val, not in train"):
        found(source, CsvList(path))


def test_images_that_are_not_listed_are_counted(
    source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tinyvgg")
    for name in ("img/8.png", "img/9.jpg", "img/.x.png", "img/notes.txt"):
        (source / name).touch()
    path = write_csv(source.parent / "labels.csv", TABLE)

    found(source, CsvList(path))

    assert caplog.messages[:2] == [
        f"{source}: left out: 2 images that {path} does not list",
        f"{path}: lists 3 train and 2 val images of 2 classes",
    ]


def test_a_quote_that_never_ends_is_one_clear_error(source: Path) -> None:
    path = write_csv(source.parent / "labels.csv", [TABLE[0], ('"img/1.png', "rose", "train")])

    with pytest.raises(
        DatasetError, match=r"labels\.csv:\d: unexpected end of data; mend the line"
    ):
        found(source, CsvList(path))
