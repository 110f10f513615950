"""Listing a source: every layout, in a folder or a zip, against torchvision's ImageFolder.

`list_images` reads no image, so most files here hold their own path instead of pixels.
"""

import io
import random
import subprocess
import threading
import zipfile
from collections.abc import Callable
from os import fsdecode, fsencode
from pathlib import Path
from typing import Any

import pytest
from torchvision.datasets import ImageFolder

from tinyvgg.errors import DatasetError
from tinyvgg.packing.folders import list_images

FLAT = (
    "train/ant/a1.JPEG",
    "train/ant/a2.JPEG",
    "train/bee/b1.JPEG",
    "val/ant/v1.JPEG",
    "val/bee/v2.JPEG",
)
STANFORD = (
    "train/n01/images/n01_0.JPEG",
    "train/n01/images/n01_1.JPEG",
    "train/n01/n01_boxes.txt",
    "train/n02/images/n02_0.JPEG",
    "train/n02/n02_boxes.txt",
    "val/images/val_0.JPEG",
    "val/images/val_1.JPEG",
    "val/images/val_2.JPEG",
    "test/images/test_0.JPEG",
    "wnids.txt",
)
ANNOTATIONS = (
    "val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\nval_2.JPEG\tn02\t1\t2\t3\t4\n"
)


def write_files(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(fsencode(path))
    return root


def write_stanford(root: Path, annotations: str = ANNOTATIONS) -> Path:
    write_files(root, *STANFORD)
    (root / "val/val_annotations.txt").write_text(annotations)
    return root


def zip_files(folder: Path, path: Path, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """Zip a folder, last file first: the order in a zip must not matter."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def found(source: Path) -> dict[str, list[tuple[str, str]]]:
    """Return (path, class folder) of every image of each split, in order."""
    listed = list_images(source)
    listed.tree.close()
    return {
        split: [(image.path, listed.class_folders[image.label]) for image in images]
        for split, images in listed.splits.items()
    }


def test_the_folder_per_class_layout_gives_sorted_paths_and_labels(tmp_path: Path) -> None:
    write_files(tmp_path, *FLAT)

    listed = list_images(tmp_path)

    assert listed.class_folders == ["ant", "bee"]
    train = [(image.path, image.label) for image in listed.splits["train"]]
    val = [(image.path, image.label) for image in listed.splits["val"]]
    assert train == [(FLAT[0], 0), (FLAT[1], 0), (FLAT[2], 1)]
    assert val == [(FLAT[3], 0), (FLAT[4], 1)]


def test_the_stanford_layout_takes_validation_classes_from_the_annotations(tmp_path: Path) -> None:
    write_stanford(tmp_path)

    splits = found(tmp_path)

    assert splits["train"] == [(STANFORD[0], "n01"), (STANFORD[1], "n01"), (STANFORD[3], "n02")]
    assert splits["val"] == [(STANFORD[6], "n01"), (STANFORD[5], "n02"), (STANFORD[7], "n02")]


def test_annotations_with_windows_line_ends_and_an_empty_line_are_read(tmp_path: Path) -> None:
    lines = ["val_0.JPEG\tn02", "", "val_1.JPEG\tn01", "val_2.JPEG\tn02"]
    write_stanford(tmp_path)
    (tmp_path / "val/val_annotations.txt").write_bytes("\r\n".join(lines).encode())

    splits = found(tmp_path)

    assert [name for _, name in splits["val"]] == ["n01", "n02", "n02"]


@pytest.mark.parametrize("write", [write_stanford, lambda root: write_files(root, *FLAT)])
def test_one_folder_around_changes_nothing(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    plain, around = write(tmp_path / "plain"), write(tmp_path / "around/tiny-imagenet-200")

    assert found(around.parent) == found(plain)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("around", ["", "tiny-imagenet-200"])
@pytest.mark.parametrize("write", [write_stanford, lambda root: write_files(root, *FLAT)])
def test_a_zip_lists_and_reads_like_its_folder(
    tmp_path: Path, write: Callable[[Path], Path], around: str, compression: int
) -> None:
    folder = write(tmp_path / "files" / around)
    path = zip_files(tmp_path / "files", tmp_path / "files.zip", compression)

    in_folder, in_zip = list_images(folder), list_images(path)

    assert in_zip.splits == in_folder.splits
    assert in_zip.class_folders == in_folder.class_folders
    for image in (*in_zip.splits["train"], *in_zip.splits["val"]):
        assert in_zip.tree.read_file(image.path) == in_folder.tree.read_file(image.path)
    in_zip.tree.close()


def test_what_macos_adds_to_a_zip_is_ignored(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "files", *(f"set/{path}" for path in FLAT))
    write_files(folder, "__MACOSX/set/train/ant/._a1.JPEG", "set/train/.DS_Store", ".DS_Store")

    splits = found(zip_files(folder, tmp_path / "files.zip"))

    assert [path for path, _ in splits["train"] + splits["val"]] == list(FLAT)


@pytest.mark.parametrize("layout", ["train/{}/{}", "train/{}/images/{}"])
def test_labels_and_order_equal_those_of_image_folder(tmp_path: Path, layout: str) -> None:
    classes = ["10", "9", "100", "a", "B", "é", "_", "a b", "Ω"]
    files = ["10.png", "9.png", "a.JPEG", "Z.jpg", "é.bmp", "a b.webp", "a-b.jpeg"]
    write_files(tmp_path, *(layout.format(name, file) for name in classes for file in files))
    write_files(tmp_path, *(f"val/{name}/v.png" for name in classes))

    listed = list_images(tmp_path)
    reference = ImageFolder(str(tmp_path / "train"))

    labels = {name: label for label, name in enumerate(listed.class_folders)}
    assert labels == reference.class_to_idx
    samples = [(str(tmp_path / image.path), image.label) for image in listed.splits["train"]]
    assert samples == reference.samples


def test_numbered_classes_are_sorted_as_text(tmp_path: Path) -> None:
    write_files(tmp_path, *(f"{s}/{n}/0.png" for n in range(12) for s in ("train", "val")))

    listed = list_images(tmp_path)

    assert listed.class_folders == sorted(str(number) for number in range(12))
    assert listed.class_folders[:4] == ["0", "1", "10", "11"]


def test_images_are_sorted_byte_by_byte(tmp_path: Path) -> None:
    names = [b"A", b"Z", b"a", b"a b", b"a-", b"a/b", b"a0", "é".encode(), "𝄞".encode(), b"\xff"]
    paths = [b"train/c/" + name + b".png" for name in names]
    write_files(tmp_path, *map(fsdecode, paths), "val/c/v.png")

    listed = list_images(tmp_path)

    assert [fsencode(image.path) for image in listed.splits["train"]] == sorted(paths)


def test_other_files_and_hidden_files_are_ignored(tmp_path: Path) -> None:
    write_files(tmp_path, *FLAT)
    write_files(tmp_path, "train/readme.png", "train/ant/._a1.JPEG", "train/ant/.hidden.png")
    write_files(tmp_path, "train/ant/a1.txt", "train/ant/Thumbs.db", "train/ant/noext", "x.png")

    splits = found(tmp_path)

    assert [path for path, _ in splits["train"] + splits["val"]] == list(FLAT)


@pytest.mark.parametrize("suffix", ["JPEG", "jpeg", "jpg", "JPG", "png", "bmp", "webp", "WebP"])
def test_image_suffixes_are_known_in_either_case(tmp_path: Path, suffix: str) -> None:
    write_files(tmp_path, f"train/a/x.{suffix}", f"val/a/x.{suffix}")

    assert found(tmp_path)["train"] == [(f"train/a/x.{suffix}", "a")]


def test_words_txt_gives_the_words_of_each_class(tmp_path: Path) -> None:
    write_stanford(tmp_path)
    words = "n02\tgoldfish, Carassius auratus\nn99\tunused\nno tab here\n"
    (tmp_path / "words.txt").write_text(words)

    listed = list_images(tmp_path)

    assert listed.class_words == ["", "goldfish, Carassius auratus"]


def test_a_class_without_validation_images_is_allowed(tmp_path: Path) -> None:
    write_files(tmp_path, *FLAT, "train/cat/c.JPEG")

    assert list_images(tmp_path).class_folders == ["ant", "bee", "cat"]


def test_validation_classes_that_train_lacks_are_named(tmp_path: Path) -> None:
    write_files(tmp_path, *FLAT, "val/cat/c.JPEG", "val/dog/d.JPEG")

    with pytest.raises(DatasetError, match=r"2 bad files.*\n  val/cat: no such class.*\n  val/dog"):
        list_images(tmp_path)


def test_an_annotated_class_that_train_lacks_is_named(tmp_path: Path) -> None:
    write_stanford(tmp_path, ANNOTATIONS.replace("n01", "n77"))

    with pytest.raises(DatasetError, match="val/n77: no such class in train/"):
        list_images(tmp_path)


@pytest.mark.parametrize("in_zip", [False, True])
def test_a_class_without_images_is_named(tmp_path: Path, in_zip: bool) -> None:
    folder = write_files(tmp_path / "files", *FLAT, "train/cat/notes.txt")

    with pytest.raises(DatasetError, match=r"1 bad files; put \.jpg.*\n  train/cat: no images"):
        list_images(zip_files(folder, tmp_path / "files.zip") if in_zip else folder)


def test_an_empty_class_folder_is_named_in_a_zip_too(tmp_path: Path) -> None:
    path = zip_files(write_files(tmp_path / "files", *FLAT), tmp_path / "files.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.mkdir("train/cat")

    with pytest.raises(DatasetError, match="\n  train/cat: no images"):
        list_images(path)


def test_twenty_of_many_empty_classes_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    write_files(tmp_path, *FLAT)
    for number in range(33):
        (tmp_path / f"train/c{number:02d}").mkdir()

    with pytest.raises(DatasetError, match="33 bad files") as caught:
        list_images(tmp_path)

    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert lines[20] == "  train/c19: no images"
    assert lines[21] == "  … and 13 more"


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("readme.txt",), r"found 1 file \(readme.txt\), expected train/<class>/…"),
        (("val/a/x.png",), "no train/<class>/ folders"),
        (("manifest.json", "train-00000.npy"), "packed already; train on it, or name the folder"),
        (("train/x.png", "val/x.png"), "no train/<class>/ folders"),
        (("a/train/c/x.png", "b/train/c/x.png"), "train/ stands in a/, b/, expected one; pack"),
        (("train/a/x.png",), "no images under val/, expected"),
        (("train/a/x.png", "val/val_annotations.txt"), "no images under val/"),
        (("train/a/x.png", "val/a/notes.txt"), "no images under val/"),
        (("train/a/x.png", "val/images/x.png"), "val/images/ without val/val_annotations.txt"),
    ],
)
@pytest.mark.parametrize("in_zip", [False, True])
def test_an_unknown_layout_is_one_clear_error(
    tmp_path: Path, paths: tuple[str, ...], message: str, in_zip: bool
) -> None:
    folder = write_files(tmp_path / "files", *paths)
    source = zip_files(folder, tmp_path / "files.zip") if in_zip else folder

    with pytest.raises(DatasetError, match=message) as caught:
        list_images(source)

    assert str(caught.value).startswith(f"{source}: ")


def test_a_source_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere: no such folder or zip; run 'tinyvgg download"):
        list_images(tmp_path / "nowhere")


def test_a_file_that_is_no_zip_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("hello")

    with pytest.raises(DatasetError, match=r"text\.zip: neither a folder nor a complete zip"):
        list_images(tmp_path / "text.zip")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("val_1.JPEG", "val_7.JPEG", "val/images/val_7.JPEG: missing, but in val/val_annotations"),
        ("val_1.JPEG", "val_7.JPEG", "val/images/val_1.JPEG: not in val/val_annotations.txt"),
        ("JPEG\tn01\t0\t0\t9\t9", "JPEG n01", "annotations.txt:2: not 'file<tab>class'"),
        ("val_1.JPEG\tn01", "val_1.JPEG\t", "annotations.txt:2: not 'file<tab>class'"),
        ("val_1.JPEG", "val_0.JPEG", "annotations.txt:2: .* or a file named twice"),
    ],
)
def test_annotations_that_do_not_fit_the_images_are_named(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    write_stanford(tmp_path, ANNOTATIONS.replace(old, new))

    with pytest.raises(DatasetError, match=message):
        list_images(tmp_path)


def test_every_annotation_that_does_not_fit_is_listed_at_once(tmp_path: Path) -> None:
    write_stanford(tmp_path, "")

    with pytest.raises(DatasetError, match="3 bad files") as caught:
        list_images(tmp_path)

    assert all(f"val/images/val_{number}.JPEG" in str(caught.value) for number in range(3))


def test_a_linked_class_folder_is_followed(tmp_path: Path) -> None:
    root = write_files(tmp_path / "root", *FLAT)
    elsewhere = write_files(tmp_path / "elsewhere", "c1.JPEG")
    (root / "train/cat").symlink_to(elsewhere)

    assert found(root)["train"][-1] == ("train/cat/c1.JPEG", "cat")


def test_a_link_to_a_folder_above_does_not_loop(tmp_path: Path) -> None:
    write_files(tmp_path, *FLAT)
    (tmp_path / "train/ant/up").symlink_to("..")

    assert [path for path, _ in found(tmp_path)["train"]] == list(FLAT[:3])


@pytest.mark.parametrize("target", ["loop.JPEG", "nowhere"])
def test_an_image_that_is_a_broken_link_is_listed_and_cannot_be_read(
    tmp_path: Path, target: str
) -> None:
    write_files(tmp_path, *FLAT)
    (tmp_path / "train/ant/loop.JPEG").symlink_to(target)

    listed = list_images(tmp_path)

    assert "train/ant/loop.JPEG" in [image.path for image in listed.splits["train"]]
    with pytest.raises(OSError, match=r"loop\.JPEG"):
        listed.tree.read_file("train/ant/loop.JPEG")


def test_a_link_to_itself_that_is_no_image_is_ignored(tmp_path: Path) -> None:
    write_files(tmp_path, *FLAT)
    (tmp_path / "train/ant/loop").symlink_to("loop")
    (tmp_path / "train/loop").symlink_to("loop")

    assert [path for path, _ in found(tmp_path)["train"]] == list(FLAT[:3])


@pytest.mark.parametrize("place", ["train/loop", "train/ant/loop", "train/ant/deep/loop"])
def test_a_link_back_to_the_source_adds_no_image(tmp_path: Path, place: str) -> None:
    write_files(tmp_path / "set", *FLAT, "train/ant/deep/x.txt", "train/loop.d/x.png")
    (tmp_path / "set" / place).symlink_to(tmp_path / "set")

    try:
        listed = list_images(tmp_path / "set")
    except DatasetError as error:
        assert "train/loop: no images" in str(error)  # noqa: PT017
    else:
        paths = [image.path for image in listed.splits["train"]]
        assert paths == [*FLAT[:3], "train/loop.d/x.png"]


def test_twelve_hundred_folders_inside_each_other_are_listed(tmp_path: Path) -> None:
    write_files(tmp_path, *FLAT)
    deep = tmp_path / "train/ant"
    for _ in range(12):  # one path of all of them would be too long to be made at once
        deep = deep / ("d/" * 100)
        deep.mkdir(parents=True)
    (deep / "deep.png").write_bytes(b"")

    paths = [image.path for image in list_images(tmp_path).splits["train"]]
    subprocess.run(["rm", "-r", tmp_path / "train/ant/d"], check=True)  # too deep for rmtree

    assert paths[2] == f"train/ant/{'d/' * 1200}deep.png"


def test_a_class_folder_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, *FLAT, fsdecode(b"train/\xff/x.png"))

    with pytest.raises(DatasetError, match=r"train/'\\udcff': not a class name"):
        list_images(tmp_path)


@pytest.mark.parametrize("prefix", ["./", "/", "//", ".//"])
def test_a_zip_is_taken_as_unzip_takes_it(tmp_path: Path, prefix: str) -> None:
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        archive.writestr("./", b"")
        for path in FLAT:
            archive.writestr(prefix + path.replace("/", "//", 1).replace("/a", "/./a"), b"")

    listed = list_images(tmp_path / "odd.zip")

    assert [image.path for image in listed.splits["train"]] == list(FLAT[:3])
    listed.tree.close()


def test_a_zip_cannot_name_a_class_like_a_path(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        archive.writestr("train/../x.png", b"")
        archive.writestr("train/a/x.png", b"")
        archive.writestr("val/a/x.png", b"")

    with pytest.raises(DatasetError, match="not a class name"):
        list_images(tmp_path / "odd.zip")


def test_zip_names_without_the_utf8_flag_are_the_bytes_of_the_folder(tmp_path: Path) -> None:
    raw = zip_files(write_files(tmp_path / "files", *FLAT), tmp_path / "files.zip").read_bytes()
    (tmp_path / "files.zip").write_bytes(raw.replace(b"a2.JPEG", "é.JPEG".encode()))
    (tmp_path / "files/train/ant/a2.JPEG").rename(tmp_path / "files/train/ant/é.JPEG")

    assert found(tmp_path / "files.zip") == found(tmp_path / "files")


def write_zip(path: Path, **kwargs: Any) -> Path:
    """Write a zip whose images have 2,000 bytes each, compressible."""
    with zipfile.ZipFile(path, "w", **kwargs) as archive:
        for name in FLAT:
            archive.writestr(name, random.Random(name).randbytes(100) * 20)
    return path


def read_all(source: Path) -> dict[str, bytes]:
    listed = list_images(source)
    try:
        images = (*listed.splits["train"], *listed.splits["val"])
        return {image.path: listed.tree.read_file(image.path) for image in images}
    finally:
        listed.tree.close()


def test_no_flipped_bit_of_a_zip_goes_unnoticed(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "files.zip", compression=zipfile.ZIP_DEFLATED)
    raw, expected, bits = path.read_bytes(), read_all(path), random.Random(0)

    for position in range(len(raw)):
        damaged = bytearray(raw)
        damaged[position] ^= 1 << bits.randrange(8)
        path.write_bytes(damaged)

        try:
            images = read_all(path)
        except (DatasetError, OSError):
            continue

        assert images == expected, f"byte {position}"


def test_a_flipped_bit_of_an_image_in_a_zip_is_an_error_of_that_image(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "files.zip", compression=zipfile.ZIP_STORED)
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"train/ant/a2.JPEG") + 100] ^= 1
    path.write_bytes(raw)

    listed = list_images(path)

    with pytest.raises(DatasetError, match="damaged in the zip: wrong size or CRC-32"):
        listed.tree.read_file("train/ant/a2.JPEG")
    assert len(listed.tree.read_file("train/ant/a1.JPEG")) == 2000
    listed.tree.close()


def test_a_zip_cut_short_anywhere_is_one_clear_error(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "files.zip", compression=zipfile.ZIP_DEFLATED)
    raw = path.read_bytes()

    for num_bytes in range(0, len(raw), 7):
        path.write_bytes(raw[:num_bytes])
        with pytest.raises(DatasetError, match="download it again"):
            list_images(path)


def test_a_zip_with_a_hole_is_one_clear_error(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "files.zip", compression=zipfile.ZIP_DEFLATED)
    raw = path.read_bytes()
    path.write_bytes(raw[:60] + raw[90:])

    with pytest.raises(DatasetError, match="download it again"):
        list_images(path)


def test_a_directory_entry_swallowed_by_the_one_before_is_noticed(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "files.zip", compression=zipfile.ZIP_DEFLATED)
    raw = bytearray(path.read_bytes())
    second = raw.index(b"PK\x01\x02", raw.index(b"PK\x01\x02") + 4)
    raw[second + 33] = 8  # its comment is now 2,048 bytes long
    path.write_bytes(raw)

    with pytest.raises(DatasetError, match="2 members in the zip's directory, 5 by its end"):
        list_images(path)


def test_a_directory_of_70000_entries_is_counted_by_its_zip64_record(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*FLAT, *(f"train/ant/{number}.png" for number in range(70_000))):
            archive.writestr(name, b"")
    listed = list_images(path)
    assert len(listed.splits["train"]) == 70_003
    listed.tree.close()
    raw = bytearray(path.read_bytes())
    raw[raw.rindex(b"PK\x06\x06") + 32] ^= 1
    path.write_bytes(raw)

    with pytest.raises(DatasetError, match=r"70,00. members in the zip's directory, 70,00. by"):
        list_images(path)


def test_a_member_without_a_name_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "files.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*FLAT, "/."):
            archive.writestr(name, b"")

    with pytest.raises(DatasetError, match="a member without a name; download it again"):
        list_images(path)


def test_a_zip_of_a_later_version_is_one_clear_error(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "files.zip")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 6] = 99
    path.write_bytes(raw)

    with pytest.raises(DatasetError, match=r"zip file version 9\.9"):
        list_images(path)


def test_an_encrypted_member_cannot_be_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "files.zip")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)

    listed = list_images(path)

    with pytest.raises(DatasetError, match="encrypted in the zip"):
        listed.tree.read_file(FLAT[0])
    listed.tree.close()


def test_a_member_in_another_compression_cannot_be_read(tmp_path: Path) -> None:
    listed = list_images(write_zip(tmp_path / "files.zip", compression=zipfile.ZIP_BZIP2))

    with pytest.raises(DatasetError, match="compression method 12 in the zip, expected deflate"):
        listed.tree.read_file(FLAT[0])
    listed.tree.close()


def test_a_member_with_a_long_local_extra_field_is_read(tmp_path: Path) -> None:
    path = tmp_path / "files.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in FLAT:
            info = zipfile.ZipInfo(name)
            info.extra = b"\x99\x99\xc8\x00" + bytes(200)
            archive.writestr(info, name.encode())
            info.extra = b""  # what the directory at the end will say

    assert read_all(path) == {name: name.encode() for name in FLAT}


class Pipe(io.RawIOBase):
    """A stream that cannot seek, so that sizes follow the data."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.written += data
        return len(data)


def test_a_zip_written_to_a_pipe_is_read(tmp_path: Path) -> None:
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in FLAT:
            archive.writestr(name, name * 9)
    (tmp_path / "files.zip").write_bytes(pipe.written)

    assert read_all(tmp_path / "files.zip") == {name: (name * 9).encode() for name in FLAT}


def test_a_zip_with_something_in_front_is_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "files.zip", compression=zipfile.ZIP_DEFLATED)
    expected = read_all(path)
    path.write_bytes(b"#!/bin/sh\n" * 100 + path.read_bytes())

    assert read_all(path) == expected


def test_a_zip_is_read_by_eight_threads_at_once(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "files.zip", compression=zipfile.ZIP_DEFLATED)
    expected, listed = read_all(path), list_images(path)
    wrong: list[str] = []

    def read_often(seed: int) -> None:
        for name in random.Random(seed).choices(FLAT, k=200):
            if listed.tree.read_file(name) != expected[name]:
                wrong.append(name)

    threads = [threading.Thread(target=read_often, args=[seed]) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listed.tree.close()

    assert wrong == []
