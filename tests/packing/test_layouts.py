"""Layouts: what stands for train and val, what is left out, and what is said of either.

`list_images` reads no image, so files here hold their own path instead of pixels.
"""

import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from os import fsencode
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from tinyvgg.errors import DatasetError
from tinyvgg.packing.folders import ImageSource, list_images
from tinyvgg.packing.holdout import Holdout

TRAIN = ("train/ant/a1.png", "train/ant/a2.png", "train/bee/b1.png")
VAL = ("val/ant/v1.png", "val/bee/v2.png")


def write_files(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(fsencode(path))
    return root


def zip_files(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, file.relative_to(folder))
    return path


WritePaths = Callable[..., Path]


@pytest.fixture(params=["folder", "zip"])
def container(request: pytest.FixtureRequest, tmp_path: Path) -> WritePaths:
    """Return a function that writes paths into a folder, or into a zip, and returns it."""

    def write(*paths: str) -> Path:
        folder = write_files(tmp_path / "set", *paths)
        return folder if request.param == "folder" else zip_files(folder)

    return write


def listed(source: Path, holdout: Holdout | None = None) -> ImageSource:
    found = list_images(source, holdout)
    found.tree.close()
    return found


def paths_of(found: ImageSource, split: str) -> list[str]:
    return [image.path for image in found.splits[split]]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tinyvgg")


def test_the_plain_layouts_are_taken_without_a_word(
    container: WritePaths, caplog: pytest.LogCaptureFixture
) -> None:
    source = container(*TRAIN, *VAL, "test/images/t.JPEG", "wnids.txt", "train/ant/ant_boxes.txt")

    found = listed(source)

    assert (paths_of(found, "train"), paths_of(found, "val")) == (list(TRAIN), list(VAL))
    assert found.unpacked == {}
    assert said(caplog) == []


@pytest.mark.parametrize("name", ["valid", "validation", "test"])
def test_another_folder_is_val_where_val_is_missing(
    container: WritePaths, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    source = container(*TRAIN, *(path.replace("val", name, 1) for path in VAL))

    found = listed(source)

    assert paths_of(found, "val") == [f"{name}/ant/v1.png", f"{name}/bee/v2.png"]
    assert [image.label for image in found.splits["val"]] == [0, 1]
    assert said(caplog) == [f"{source}: {name}/ is the val split"]


@pytest.mark.parametrize("empty", ["val/.gitkeep", "val/ant/Thumbs.db", "valid/bee/.x.png"])
def test_an_empty_folder_is_not_val_whatever_its_name(container: WritePaths, empty: str) -> None:
    source = container(*TRAIN, empty, "validation/ant/v.png")

    assert paths_of(listed(source), "val") == ["validation/ant/v.png"]


@pytest.mark.parametrize(
    ("others", "text"),
    [
        (
            ("test/ant/t.png", "test/bee/t.png"),
            "test/ is left out, 2 images: val/ is the val split",
        ),
        (("valid/ant/v.png",), "valid/ is left out, 1 images: val/ is the val split"),
        (("test/1.png", "test/2.png"), "test/ is left out, 2 images: no class folders of train/"),
        (("test/unknown/1.png",), "test/ is left out, 1 images: no class folders of train/"),
        (("extra/ant/x.png", "more/y"), "left out: extra/, more/, neither train/ nor val/"),
    ],
)
def test_what_stands_beside_val_is_left_out_and_said(
    container: WritePaths, caplog: pytest.LogCaptureFixture, others: tuple[str, ...], text: str
) -> None:
    source = container(*TRAIN, *VAL, *others)

    found = listed(source)

    assert paths_of(found, "val") == list(VAL)
    assert [text in line for line in said(caplog)] == [True]


@pytest.mark.parametrize(
    ("others", "lines", "unpacked"),
    [
        (("notes.pdf", "x.png", "README.md", ".x"), [], {".pdf": 1, ".png": 1}),
        (("more/ant/x.png",), ["left out: more/, beside data/"], {}),
        (("a/x", "b/x", "c/x", "d/x"), ["left out: 4 folders, a/, b/, c/, …, beside data/"], {}),
        ((".git/x", "__MACOSX/x"), [], {}),
    ],
)
def test_what_stands_beside_the_folder_around_is_left_out_and_said(
    container: WritePaths,
    caplog: pytest.LogCaptureFixture,
    others: tuple[str, ...],
    lines: list[str],
    unpacked: dict[str, int],
) -> None:
    source = container(*(f"data/{path}" for path in (*TRAIN, *VAL)), *others)

    found = listed(source)

    assert paths_of(found, "val") == list(VAL)
    assert said(caplog)[1 : 1 + len(lines)] == [f"{source}: {line}" for line in lines]
    assert found.unpacked == unpacked


@pytest.mark.parametrize("prefix", ["", "data/", "around/data/"])
def test_a_file_beside_train_is_counted_and_named(
    container: WritePaths, caplog: pytest.LogCaptureFixture, prefix: str
) -> None:
    source = container(*(prefix + path for path in (*TRAIN, *VAL, "labels.csv", "LICENSE")))

    assert listed(source).unpacked == {".csv": 1}
    assert said(caplog)[-1] == "  labels.csv"


@pytest.mark.parametrize("empty", ["train", "val", "test"])
def test_an_empty_folder_beside_class_folders_is_neither_a_split_nor_a_class(
    container: WritePaths, empty: str
) -> None:
    source = container("ant/1.png", "ant/2.png", "bee/1.png", "bee/2.png", f"{empty}/.gitkeep")

    assert listed(source, Holdout(0.5)).class_folders == ["ant", "bee"]


def test_loose_val_images_are_named(container: WritePaths) -> None:
    source = container(*TRAIN, "val/1.png", "val/2.png")

    with pytest.raises(DatasetError, match=r"2 val images in no class folder \(val/1.png, val/2"):
        listed(source)


def test_a_class_in_two_unicode_forms_is_named(container: WritePaths) -> None:
    source = container("train/caf\u00e9/1.png", "train/tea/1.png", "val/cafe\u0301/1.png")

    with pytest.raises(DatasetError, match=r"'cafe\\u0301', in train/ 'caf\\xe9': one name in two"):
        listed(source)


def test_a_class_called_train_is_told_from_a_split(container: WritePaths) -> None:
    source = container("bus/1.png", "bus/2.png", "train/1.png", "train/2.png")

    with pytest.raises(DatasetError, match=r"train/ holds images .* bus stand beside it; if train"):
        listed(source, Holdout(0.5))


def test_one_class_alone_is_worth_a_line(
    container: WritePaths, caplog: pytest.LogCaptureFixture
) -> None:
    source = container("train/images/1.png", "val/images/1.png")

    listed(source)

    assert said(caplog) == [f"{source}: one class alone, 'images': nothing to tell apart"]


def test_an_unlabeled_test_folder_is_not_val(container: WritePaths) -> None:
    source = container(*TRAIN, "test/images/t.png")

    with pytest.raises(
        DatasetError, match=r"no images under val/.*found 2 folders \(test/, train/"
    ):
        listed(source)


@pytest.mark.parametrize("around", ["one", "one/two"])
def test_folders_around_are_looked_into_and_named(
    container: WritePaths, caplog: pytest.LogCaptureFixture, around: str
) -> None:
    source = container(*(f"{around}/{path}" for path in (*TRAIN, *VAL)), "README.md", "__MACOSX/x")

    found = list_images(source)

    assert (paths_of(found, "train"), paths_of(found, "val")) == (list(TRAIN), list(VAL))
    assert found.tree.read_file(TRAIN[0]) == f"{around}/{TRAIN[0]}".encode()
    found.tree.close()
    assert said(caplog) == [f"{source}: the images are in {around}/"]


def test_three_folders_around_are_too_many(container: WritePaths) -> None:
    source = container(*(f"a/b/c/{path}" for path in (*TRAIN, *VAL)))

    with pytest.raises(DatasetError, match=r"no train/<class>/ folders; found 1 folder \(a/\)"):
        listed(source)


def test_two_sets_in_one_source_are_named(container: WritePaths) -> None:
    source = container("x/a/train/ant/1.png", "x/b/train/ant/1.png")

    with pytest.raises(DatasetError, match=r"train/ stands in x/a/, x/b/, expected one; pack"):
        listed(source)


@pytest.mark.parametrize(
    "left_behind",
    [
        ("val/val_annotations.txt",),
        ("val/images/.keep",),
        ("val/images/", "val/val_annotations.txt"),
    ],
)
def test_what_moving_validation_images_leaves_behind_is_no_obstacle(
    tmp_path: Path, left_behind: tuple[str, ...]
) -> None:
    source = write_files(tmp_path, *TRAIN, *VAL)
    for path in left_behind:
        if path.endswith("/"):
            (source / path).mkdir(parents=True)
        else:
            write_files(source, path)

    assert paths_of(listed(source), "val") == list(VAL)


def test_validation_images_that_were_moved_in_part_are_named(container: WritePaths) -> None:
    source = container(*TRAIN, *VAL, "val/images/v3.png", "val/val_annotations.txt")

    with pytest.raises(
        DatasetError, match=r"in val/images/ and in val/ant/, val/bee/, expected one"
    ):
        listed(source)


def test_a_class_named_images_is_a_class(container: WritePaths) -> None:
    source = container("train/images/1.png", "val/images/2.png", "test/images/3.png")

    found = listed(source)

    assert (found.class_folders, paths_of(found, "val")) == (["images"], ["val/images/2.png"])


HIDDEN = (
    "train/.ipynb_checkpoints/x.png",
    "train/ant/.ipynb_checkpoints/a1-checkpoint.png",
    "train/ant/@eaDir/a1.png/SYNOPHOTO_THUMB_M.jpg",
    "train/__MACOSX/ant/a.png",
    "val/lost+found/x.png",
    "train/$RECYCLE.BIN/x.png",
)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_images_in_hidden_folders_are_left_out_and_counted(
    container: WritePaths, caplog: pytest.LogCaptureFixture, hidden: str
) -> None:
    source = container(*TRAIN, *VAL, hidden)

    found = listed(source)

    assert found.class_folders == ["ant", "bee"]
    assert (paths_of(found, "train"), paths_of(found, "val")) == (list(TRAIN), list(VAL))
    assert found.unpacked == {}
    [line] = said(caplog)
    assert "left out: 1 images in hidden folders, which ImageFolder would take (" in line
    assert f"{hidden.rpartition('/')[0]}/".startswith(line.rpartition("(")[2][:-2])


def test_hidden_files_are_not_worth_a_line(
    container: WritePaths, caplog: pytest.LogCaptureFixture
) -> None:
    source = container(*TRAIN, *VAL, ".x.png", "train/._y.png", "train/ant/.z.png", "val/Thumbs.db")

    assert listed(source).unpacked == {}
    assert said(caplog) == []


def test_empty_hidden_folders_are_not_worth_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_files(tmp_path, *TRAIN, *VAL)
    for folder in ("train/.ipynb_checkpoints", "val/@eaDir", "train/ant/lost+found"):
        (source / folder).mkdir()

    assert listed(source).class_folders == ["ant", "bee"]
    assert said(caplog) == []


OTHERS = {
    "train/ant/a3": "",
    "train/ant/a4.JFIF": ".jfif",
    "train/ant/deep/a5.heic": ".heic",
    "train/bee/b2.png.bak": ".bak",
    "train/loose.png": ".png",
    "val/notes.txt": ".txt",
    "loose.jpg": ".jpg",
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_file_that_is_not_understood_is_counted_and_named(
    container: WritePaths, caplog: pytest.LogCaptureFixture, other: str
) -> None:
    source = container(*TRAIN, *VAL, other)

    found = listed(source)

    assert (paths_of(found, "train"), paths_of(found, "val")) == (list(TRAIN), list(VAL))
    assert found.unpacked == {OTHERS[other]: 1}
    assert said(caplog) == [
        f"{source}: left out: 1 files that are no images by their names, or in no class folder",
        f"  {other}",
    ]


def test_twenty_files_that_are_not_understood_are_named_and_the_rest_counted(
    container: WritePaths, caplog: pytest.LogCaptureFixture
) -> None:
    source = container(*TRAIN, *VAL, *(f"train/ant/{number:02d}.xml" for number in range(33)))

    found = listed(source)

    assert found.unpacked == {".xml": 33}
    lines = said(caplog)
    assert len(lines) == 22
    assert lines[20:] == ["  train/ant/19.xml", "  … and 13 more"]


def test_what_image_folder_takes_is_taken(tmp_path: Path) -> None:
    suffixes = [".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".TIF"]
    names = [f"train/{name}/{k}{suffix}" for name in "ab" for k, suffix in enumerate(suffixes)]
    write_files(tmp_path, *names, *VAL[:0], "val/a/v.png")

    found = listed(tmp_path)

    reference = ImageFolder(str(tmp_path / "train"))
    samples = [(str(tmp_path / image.path), image.label) for image in found.splits["train"]]
    assert samples == reference.samples
    assert len(samples) == 20


FLAT = tuple(f"{name}/{number}.png" for name in ("daisy", "rose") for number in range(10))


def test_class_folders_without_a_split_say_how_to_hold_out(container: WritePaths) -> None:
    source = container(*FLAT)

    with pytest.raises(
        DatasetError, match=r"2 class folders \(daisy, rose\) without .* pass --val-"
    ):
        listed(source)


@pytest.mark.parametrize("prefix", ["", "flowers/", "one/two/", "train/", "flowers/train/"])
def test_val_is_held_out_of_every_class_whatever_the_layout(
    container: WritePaths, prefix: str
) -> None:
    source = container(*(f"{prefix}{path}" for path in FLAT))

    found = listed(source, Holdout(0.2, seed=3))

    train, val = paths_of(found, "train"), paths_of(found, "val")
    assert [path.removeprefix("train/") for path in val] == [
        "daisy/6.png",
        "daisy/7.png",
        "rose/0.png",
        "rose/5.png",
    ]
    assert [path.removeprefix("train/") for path in sorted(train + val)] == sorted(FLAT)
    assert [image.label for image in found.splits["val"]] == [0, 0, 1, 1]


def test_a_test_folder_stays_aside_where_val_is_held_out(
    container: WritePaths, caplog: pytest.LogCaptureFixture
) -> None:
    source = container(*(f"train/{path}" for path in FLAT), "test/rose/t.png")

    found = listed(source, Holdout(0.1))

    assert len(found.splits["val"]) == 2
    assert said(caplog) == [
        f"{source}: test/ is left out, 1 images: val is held out of train/",
        f"{source}: 2 of 20 images are held out for val, seed 0",
    ]


def test_nothing_is_held_out_beside_a_val_split(container: WritePaths) -> None:
    source = container(*TRAIN, "valid/ant/v.png")

    with pytest.raises(
        DatasetError, match=r"valid/ holds images, .* leave out --val-share, or take"
    ):
        listed(source, Holdout(0.1))


def test_classes_of_one_image_leave_nothing_to_hold_out(container: WritePaths) -> None:
    source = container("ant/1.png", "bee/2.png")

    with pytest.raises(DatasetError, match="one image in each class, so none is held out for val"):
        listed(source, Holdout(0.5))


LIST_WITHOUT_RIGHTS = """
import sys
from pathlib import Path
from tinyvgg.packing.folders import list_images

print(len(list_images(Path(sys.argv[1])).splits["train"]))
"""


@pytest.mark.parametrize(
    ("locked", "printed"),
    [
        ("lost+found", "3\n"),
        ("private", "3\n"),
        ("train/lost+found", "3\n"),
        ("train/ant/.x", "3\n"),
        ("train/cat", ""),
        ("train/ant/more", ""),
    ],
)
def test_a_folder_in_which_nobody_may_look_matters_only_where_images_are_expected(
    tmp_path: Path, locked: str, printed: str
) -> None:
    source = write_files(tmp_path, *TRAIN, *VAL)
    (source / locked).mkdir(mode=0)
    rights = "-dac_override,-dac_read_search"  # root's, to read what it must not
    as_user = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("NOT RUN: root may read anything, and there is no setpriv")

    done = subprocess.run(
        [*as_user * (os.geteuid() == 0), sys.executable, "-c", LIST_WITHOUT_RIGHTS, str(source)],
        capture_output=True,
        text=True,
        check=False,
    )

    (source / locked).chmod(0o700)
    assert done.stdout == printed
    assert (
        printed
        or f"PermissionError: [Errno 13] Permission denied: '{source / locked}" in done.stderr
    )


@pytest.mark.parametrize("mixed", [False, True])
def test_backslashes_in_the_names_of_a_zip_are_folders(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mixed: bool
) -> None:
    path = tmp_path / "windows.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate((*TRAIN, *VAL)):
            info = zipfile.ZipInfo("x")
            info.filename = name if mixed and number % 2 else name.replace("/", "\\")
            archive.writestr(info, name)

    found = list_images(path)

    assert (paths_of(found, "train"), paths_of(found, "val")) == (list(TRAIN), list(VAL))
    assert found.tree.read_file(TRAIN[2]) == TRAIN[2].encode()
    found.tree.close()
    assert said(caplog) == [f"{path}: its names have backslashes, as of Windows; taken for folders"]
