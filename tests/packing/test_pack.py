"""Packing: the same bytes whatever happens, or one clear error and nothing left behind.

Pixels come from PNG files, so that the expected ones are known without a decoder. Kills are
real: a child packs and is ended with SIGKILL, at a random moment or right before the n-th time
it is about to change the file system.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import PILToTensor

from tinyvgg.errors import DatasetError, ShardError
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images, sum_channels
from tinyvgg.shards.manifest import Manifest
from tinyvgg.shards.store import open_dataset, read_manifest
from tinyvgg.shards.verify import verify_dataset

CLASSES = ("ant", "bee", "cat")


def known_pixels(split: str, name: str, number: int, size: int = 8) -> np.ndarray:
    key = [split == "val", *name.encode(), number]
    return np.random.default_rng(key).integers(0, 256, (size, size, 3), np.uint8)


def write_image(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG", **options)


def write_source(root: Path, train: int = 5, val: int = 2, size: int = 8) -> Path:
    """Write `train` and `val` images a class, as root/SPLIT/CLASS/000.png."""
    for split, count in (("train", train), ("val", val)):
        for name in CLASSES:
            for number in range(count):
                path = root / split / name / f"{number:03d}.png"
                write_image(path, known_pixels(split, name, number, size))
    return root


def rearrange_as_stanford(source: Path, root: Path) -> Path:
    """Copy a folder-per-class source into the other layout, under the same sorted order."""
    lines = []
    for path in sorted(source.glob("train/*/*")):
        target = root / "train" / path.parent.name / "images" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (root / "val/images").mkdir(parents=True)
    for number, path in enumerate(sorted(source.glob("val/*/*"))):
        shutil.copy(path, root / f"val/images/{number:03d}.png")
        lines.append(f"{number:03d}.png\t{path.parent.name}\t0\t0\t8\t8\n")
    (root / "val/val_annotations.txt").write_text("".join(reversed(lines)))
    return root


def zip_folder(folder: Path, path: Path, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in folder.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def pack(source: Path, out: Path, **options: object) -> Manifest:
    return pack_images(PackConfig(source, out, **options), lambda split, count: lambda num: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_nothing_left(out: Path) -> None:
    assert sorted(path.name for path in out.parent.glob(f"{out.name}*")) == []


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "outs"
    folder.mkdir()
    return folder / "packed"


def test_shards_hold_the_pixels_and_labels_of_the_source(source: Path, out: Path) -> None:
    pack(source, out, shard_size=4)

    dataset = open_dataset(out)
    for split, count in (("train", 5), ("val", 2)):
        packed = dataset.split(split)
        expected = [known_pixels(split, name, k) for name in CLASSES for k in range(count)]
        assert np.array_equal(packed.read_images(np.arange(3 * count)), np.stack(expected))
        assert packed.labels.tolist() == [label for label in range(3) for _ in range(count)]
    assert dataset.class_names == list(CLASSES)


def test_images_beyond_one_block_of_256_keep_their_order(tmp_path: Path, out: Path) -> None:
    source = write_source(tmp_path / "source", train=100, val=1, size=2)

    pack(source, out, shard_size=280, workers=3)

    expected = [known_pixels("train", name, k, 2) for name in CLASSES for k in range(100)]
    images = open_dataset(out).train.read_images(np.arange(300))
    assert np.array_equal(images, np.stack(expected))


def test_shards_open_with_plain_numpy(source: Path, out: Path) -> None:
    pack(source, out, shard_size=10)

    images = np.load(out / "train-00000.npy", mmap_mode="r", allow_pickle=False)
    labels = np.load(out / "train-00000.labels.npy", mmap_mode="r", allow_pickle=False)
    assert (images.dtype, images.shape, images.flags.c_contiguous) == (
        np.uint8,
        (10, 8, 8, 3),
        True,
    )
    assert (labels.dtype, labels.shape) == (np.int64, (10,))
    assert (out / "train-00000.npy").read_bytes()[:8] == b"\x93NUMPY\x01\x00"


def test_every_byte_agrees_with_the_manifest(source: Path, out: Path) -> None:
    manifest = pack(source, out, shard_size=4)

    assert verify_dataset(out) == []
    assert read_manifest(out)[0] == manifest
    shards = [len(manifest.split(split).shards) for split in ("train", "val")]
    assert shards == [4, 2]


def test_packing_twice_gives_the_same_bytes(source: Path, out: Path) -> None:
    pack(source, out)
    pack(source, out.with_name("again"))

    assert contents(out.with_name("again")) == contents(out)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_does_not_change_the_bytes(
    tmp_path: Path, out: Path, workers: int
) -> None:
    source = write_source(tmp_path / "source", train=100, val=10, size=2)
    pack(source, out, shard_size=280)

    pack(source, out.with_name("other"), shard_size=280, workers=workers)

    assert contents(out.with_name("other")) == contents(out)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("layout", ["folder per class", "Stanford"])
def test_zips_and_layouts_do_not_change_the_bytes(
    tmp_path: Path, source: Path, out: Path, layout: str, compression: int
) -> None:
    pack(source, out)
    if layout == "Stanford":
        source = rearrange_as_stanford(source, tmp_path / "stanford")

    pack(source, out.with_name("folder"))
    pack(zip_folder(source, tmp_path / "x.zip", compression), out.with_name("zip"))

    assert contents(out.with_name("folder")) == contents(out.with_name("zip")) == contents(out)


def test_three_images_have_the_bytes_they_always_had(tmp_path: Path, out: Path) -> None:
    ramp = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    write_image(tmp_path / "three/train/a/0.png", ramp)
    write_image(tmp_path / "three/train/b/0.png", 255 - ramp)
    write_image(tmp_path / "three/val/b/0.png", ramp * 5)
    (tmp_path / "three/words.txt").write_text("a\tant, emmet\nb\tbee\n")

    pack(tmp_path / "three", out)

    fields = json.loads((out / "manifest.json").read_bytes())
    del fields["fields_sha256"]  # optional fields have come since; nothing else has changed
    for split in fields["splits"].values():
        for shard in split["shards"]:
            del shard["head_crc32"]
    before = (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()
    digest = hashlib.sha256()
    for name, content in sorted({**contents(out), "manifest.json": before}.items()):
        digest.update(f"{name} {len(content)}\n".encode() + content)
    assert digest.hexdigest() == (
        "8fb9fa3b32c52ca3448fbd4292580cf9060c69079201435a3025d133432a4092"
    )


def test_what_is_not_plain_about_a_source_is_in_the_manifest(tmp_path: Path, out: Path) -> None:
    source = write_source(tmp_path / "source", train=5)
    shutil.rmtree(source / "val")
    plain = pack(source, out.with_name("plain"), val_share=0.4, seed=9)
    for name in ("notes.txt", "0", "more/x.xml", "more/y.XML"):
        (source / "train/ant" / name).parent.mkdir(exist_ok=True)
        (source / "train/ant" / name).touch()

    manifest = pack(source, out, val_share=0.4, seed=9)

    fields = json.loads((out / "manifest.json").read_bytes())
    unpacked = {"": 1, ".txt": 1, ".xml": 2}
    assert fields["source"] == {"unpacked": unpacked, "val_seed": 9, "val_share": 0.4}
    assert read_manifest(out)[0] == manifest
    assert manifest.splits == plain.splits
    assert (plain.splits.train.num_images, plain.splits.val.num_images) == (9, 6)
    plain_fields = json.loads((out.with_name("plain") / "manifest.json").read_bytes())
    assert plain_fields["source"] == {"val_seed": 9, "val_share": 0.4}


def test_of_a_plain_source_the_manifest_says_nothing(source: Path, out: Path) -> None:
    pack(source, out)

    assert "source" not in json.loads((out / "manifest.json").read_bytes())


def test_a_list_of_all_images_gives_the_bytes_of_their_folders(source: Path, out: Path) -> None:
    lines = ["class;file;fold"]
    for path in sorted(source.rglob("*.png"), reverse=True):
        split, name, file = path.parts[-3:]
        lines.append(f"{name};{split}/{name}/{file};{split}")
    path = source.with_name("list.csv")
    path.write_text("\n".join(lines))
    pack(source, out.with_name("folders"))

    pack(
        source,
        out,
        csv=path,
        csv_path_column="file",
        csv_label_column="class",
        csv_split_column="fold",
    )

    assert contents(out) == contents(out.with_name("folders"))


def test_every_kind_of_image_that_image_folder_takes_is_packed(source: Path, out: Path) -> None:
    pixels = known_pixels("train", "ant", 0)
    kinds = {
        "ppm": "PPM",
        "tif": "TIFF",
        "tiff": "TIFF",
        "gif": "GIF",
        "avif": "AVIF",
        "bmp": "BMP",
    }
    for suffix, kind in kinds.items():
        Image.fromarray(pixels).save(source / f"train/cat/1.{suffix}", kind)
    Image.fromarray(pixels[:, :, 0]).save(source / "train/cat/1.pgm", "PPM")
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    frames[0].save(source / "train/cat/2.gif", save_all=True, append_images=frames[1:])

    manifest = pack(source, out)

    train = open_dataset(out).train
    for row, path in enumerate(sorted(source.glob("train/cat/*")), start=10):
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        assert np.array_equal(train.read_images(np.array([row]))[0], expected), path.name
    assert manifest.splits.train.num_images == 15 + 8
    assert manifest.source is None


@pytest.mark.parametrize("in_zip", [False, True])
def test_val_images_that_are_train_images_are_counted(
    tmp_path: Path, source: Path, out: Path, caplog: pytest.LogCaptureFixture, in_zip: bool
) -> None:
    for number in (0, 3):  # one of the same class under another name, one of another class
        shutil.copy(source / f"train/ant/00{number}.png", source / f"val/cat/10{number}.png")
    shutil.copy(source / "val/bee/000.png", source / "val/bee/001.png")  # in one split: no matter

    pack(zip_folder(source, tmp_path / "x.zip") if in_zip else source, out)

    [line] = caplog.messages
    assert ": 2 of 8 val images are in train too, byte for byte (val/cat/100.png, val/c" in line


def test_bad_files_and_equal_pixels_in_other_bytes_are_not_equal_images(
    source: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "val"):
        (source / split / "ant/000.png").write_bytes(b"no image")
    same = Image.open(source / "train/bee/000.png")
    same.save(source / "val/bee/000.bmp")

    pack(source, out, on_bad="skip")

    assert caplog.messages == []


def test_mean_and_std_equal_those_of_numpy(source: Path, out: Path) -> None:
    manifest = pack(source, out)

    for split, count in (("train", 5), ("val", 2)):
        images = np.stack([known_pixels(split, n, k) for n in CLASSES for k in range(count)])
        pixels = images.reshape(-1, 3).astype(np.float64) / 255
        record = manifest.split(split)
        assert np.allclose(record.mean, pixels.mean(axis=0), rtol=0, atol=1e-12)
        assert np.allclose(record.std, pixels.std(axis=0), rtol=0, atol=1e-12)


def test_std_of_one_color_is_exactly_zero(tmp_path: Path, out: Path) -> None:
    for split in ("train", "val"):
        write_image(tmp_path / f"flat/{split}/a/0.png", np.full((64, 64, 3), 201, np.uint8))

    record = pack(tmp_path / "flat", out).splits.train

    assert record.mean == [201 / 255] * 3
    assert record.std == [0.0] * 3


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(0, 40), st.integers(1, 70), st.integers(1, 70)),
    seed=st.integers(0, 99),
    low=st.sampled_from([0, 250]),
)
def test_sum_channels_equals_int64_arithmetic(
    shape: tuple[int, int, int], seed: int, low: int
) -> None:
    images = np.random.default_rng(seed).integers(low, 256, (*shape, 3), np.uint8)

    sums = sum_channels(images)

    pixels = images.reshape(-1, 3).astype(np.int64)
    assert sums.dtype == np.int64
    assert np.array_equal(sums, [pixels.sum(axis=0), (pixels * pixels).sum(axis=0)])


def test_sum_channels_is_exact_for_white_images() -> None:
    images = np.full((256, 64, 64, 3), 255, np.uint8)

    assert sum_channels(images).tolist() == [[255 * 2**20] * 3, [255 * 255 * 2**20] * 3]


def test_kinds_of_images_may_be_mixed_and_misnamed(source: Path, out: Path) -> None:
    pixels = known_pixels("train", "ant", 0)
    Image.fromarray(pixels).save(source / "train/ant/100.JPEG", "PNG")
    Image.fromarray(pixels).save(source / "train/ant/101.jpg", "BMP")
    Image.fromarray(pixels).save(source / "train/ant/102.png", "WEBP", lossless=True)
    Image.fromarray(pixels[:, :, 0]).save(source / "train/ant/103.png")

    pack(source, out)

    images = open_dataset(out).train.read_images(np.arange(5, 9))
    assert np.array_equal(images[:3], np.stack([pixels] * 3))
    assert np.array_equal(images[3], np.repeat(pixels[:, :, :1], 3, axis=2))


def test_resize_packs_images_of_any_size(source: Path, out: Path) -> None:
    write_image(source / "train/ant/100.png", np.full((31, 77, 3), 9, np.uint8))

    manifest = pack(source, out, resize=16)

    assert (manifest.image.height, manifest.image.width) == (16, 16)
    assert (open_dataset(out).train.read_images(np.array([5])) == 9).all()


def test_warnings_of_pillow_are_not_shown_and_filters_stay_as_they_were(
    source: Path, out: Path
) -> None:
    for number in range(100, 140):
        path = source / f"train/ant/{number}.png"
        palette = Image.fromarray(known_pixels("train", "ant", number)).quantize(4)
        palette.save(path, transparency=bytes([0, 9, 99, 255]))  # converting it warns
    filters = list(warnings.filters)

    pack(source, out, workers=5)

    assert list(warnings.filters) == filters


def test_parents_of_out_are_made(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "a/b/packed")

    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["packed"]


BAD_FILES = {
    "train/ant/000.png": (b"", "0 bytes, expected an image"),
    "train/bee/003.png": (b"hello", "5 bytes that are not an image"),
    "train/cat/004.png": (None, "9x8 pixels, expected 8x8; drop it, or pack with --resize"),
    "val/ant/001.png": (b"\xff\xd8", "2 bytes that are not an image"),
}


def spoil(source: Path) -> None:
    for path, (content, _) in BAD_FILES.items():
        if content is None:
            write_image(source / path, np.zeros((8, 9, 3), np.uint8))
        else:
            (source / path).write_bytes(content)


@pytest.mark.parametrize("in_zip", [False, True])
def test_every_bad_file_of_both_splits_is_listed_and_nothing_is_left(
    tmp_path: Path, source: Path, out: Path, in_zip: bool
) -> None:
    spoil(source)
    given = zip_folder(source, tmp_path / "x.zip") if in_zip else source

    with pytest.raises(DatasetError) as caught:
        pack(given, out)

    title, *lines = str(caught.value).splitlines()
    assert title == (
        f"{given}: 4 bad files; mend or remove them, or leave them out with --on-bad skip"
    )
    assert lines == [f"  {path}: {reason}" for path, (_, reason) in BAD_FILES.items()]
    assert_nothing_left(out)


def test_twenty_bad_files_are_listed_and_the_rest_counted(tmp_path: Path, out: Path) -> None:
    source = write_source(tmp_path / "source", train=15)
    for path in [*source.glob("train/bee/*"), *source.glob("train/cat/*")]:
        path.write_bytes(b"no")

    with pytest.raises(DatasetError, match="30 bad files") as caught:
        pack(source, out, shard_size=7)

    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert lines[1].startswith("  train/bee/000.png: ")
    assert lines[20].startswith("  train/cat/004.png: ")
    assert lines[21] == "  … and 10 more"


@pytest.mark.parametrize("on_bad", ["fail", "skip"])
def test_a_source_without_one_good_train_image_is_an_error_that_lists_them(
    source: Path, out: Path, on_bad: str
) -> None:
    for path in source.glob("train/*/*"):
        path.write_bytes(b"no")

    with pytest.raises(DatasetError, match="no train image can be read: 15 bad files") as caught:
        pack(source, out, on_bad=on_bad)

    assert "  train/ant/000.png: 2 bytes that are not an image" in str(caught.value).splitlines()
    assert_nothing_left(out)


def test_a_split_of_bad_images_alone_cannot_be_skipped(source: Path, out: Path) -> None:
    for path in source.glob("val/*/*"):
        path.write_bytes(b"no")

    with pytest.raises(DatasetError, match="6 of 6 val images are bad: 6 bad files"):
        pack(source, out, on_bad="skip")

    assert_nothing_left(out)


def test_skipped_files_are_in_the_manifest(source: Path, out: Path) -> None:
    spoil(source)

    manifest = pack(source, out, on_bad="skip")

    skipped = [*manifest.splits.train.skipped, *manifest.splits.val.skipped]
    reasons = {file.path: file.reason for file in skipped}
    assert reasons == {path: reason for path, (_, reason) in BAD_FILES.items()}
    assert (manifest.splits.train.num_images, manifest.splits.val.num_images) == (12, 5)
    assert verify_dataset(out) == []


@pytest.mark.parametrize("workers", [1, 5])
def test_skipping_gives_the_shards_of_a_source_without_the_bad_files(
    source: Path, out: Path, workers: int
) -> None:
    spoil(source)
    skipped = pack(source, out, on_bad="skip", shard_size=4, workers=workers)
    for path in BAD_FILES:
        (source / path).unlink()

    clean = pack(source, out.with_name("clean"), shard_size=4)

    with_manifests = contents(out), contents(out.with_name("clean"))
    shards = [{k: v for k, v in files.items() if k.endswith(".npy")} for files in with_manifests]
    assert shards[0] == shards[1]
    for split in ("train", "val"):
        assert skipped.split(split).model_copy(update={"skipped": []}) == clean.split(split)


def test_a_damaged_member_of_a_zip_is_a_bad_file(tmp_path: Path, source: Path, out: Path) -> None:
    path = zip_folder(source, tmp_path / "x.zip")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"train/bee/002.png") + 60] ^= 1
    path.write_bytes(raw)

    with pytest.raises(DatasetError, match=r"1 bad files.*\n  train/bee/002\.png: damaged in the"):
        pack(path, out)

    assert_nothing_left(out)


def test_an_image_that_is_gone_by_the_time_it_is_read_is_a_bad_file(
    source: Path, out: Path
) -> None:
    def start_split(split: str, num_images: int) -> Callable[[int], None]:
        (source / "train/bee/002.png").unlink(missing_ok=True)
        return lambda num_done: None

    with pytest.raises(DatasetError, match=r"train/bee/002\.png: No such file or directory"):
        pack_images(PackConfig(source, out), start_split)

    assert_nothing_left(out)


def test_a_link_to_itself_is_a_bad_file(source: Path, out: Path) -> None:
    (source / "train/ant/loop.png").symlink_to("loop.png")

    with pytest.raises(DatasetError, match=r"train/ant/loop\.png: Too many levels of symbolic"):
        pack(source, out)


def test_a_bad_file_whose_name_is_not_utf8_is_shown_and_skipped(source: Path, out: Path) -> None:
    (source / "train/ant" / os.fsdecode(b"\xff\xe9.png")).write_bytes(b"no")

    with pytest.raises(DatasetError, match=r"train/ant/\\xff\\xe9\.png: 2 bytes"):
        pack(source, out)
    manifest = pack(source, out, on_bad="skip")

    assert manifest.splits.train.skipped[0].path == r"train/ant/\xff\xe9.png"
    assert read_manifest(out)[0] == manifest


def test_an_unknown_layout_leaves_nothing_behind(tmp_path: Path, out: Path) -> None:
    with pytest.raises(DatasetError, match="no train/<class>/ folders"):
        pack(tmp_path, out)

    assert_nothing_left(out)


def test_an_existing_out_is_not_replaced_without_being_asked(source: Path, out: Path) -> None:
    pack(source, out)
    before = contents(out)
    shutil.rmtree(source / "train/cat")

    with pytest.raises(DatasetError, match="packed: exists already; pass --overwrite to replace"):
        pack(source, out)

    assert contents(out) == before


def test_overwrite_replaces_out_and_leaves_nothing_else(source: Path, out: Path) -> None:
    pack(source, out, shard_size=1)
    pack(source, out.with_name("expected"), shard_size=9)

    pack(source, out, shard_size=9, overwrite=True)

    assert contents(out) == contents(out.with_name("expected"))
    assert sorted(path.name for path in out.parent.iterdir()) == ["expected", "packed"]


def test_the_old_out_stays_until_the_new_one_is_complete(source: Path, out: Path) -> None:
    pack(source, out)
    before, seen = contents(out), []

    def start_split(split: str, num_images: int) -> Callable[[int], None]:
        return lambda num_done: seen.append(contents(out) == before)

    pack_images(PackConfig(source, out, overwrite=True, shard_size=2), start_split)

    assert len(seen) == 8 + 3
    assert all(seen)


def test_an_overwrite_that_cannot_be_finished_keeps_the_old_out(source: Path, out: Path) -> None:
    pack(source, out)
    before = contents(out)
    spoil(source)

    with pytest.raises(DatasetError, match="4 bad files"):
        pack(source, out, overwrite=True)

    assert contents(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["packed"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_not_packed_is_never_replaced(
    source: Path, out: Path, overwrite: bool
) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("four years")

    message = r"packed: not a packed folder, so it is not replaced; .* inside it: .*packed/packed"
    with pytest.raises(DatasetError, match=message):
        pack(source, out, overwrite=overwrite)

    assert contents(out) == {"thesis.txt": b"four years"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_empty_folder_is_packed_into(source: Path, out: Path, overwrite: bool) -> None:
    out.mkdir(mode=0o700)

    pack(source, out, overwrite=overwrite)

    assert verify_dataset(out) == []
    assert [path.name for path in out.parent.iterdir()] == ["packed"]


def test_the_working_directory_is_not_replaced(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    with pytest.raises(DatasetError, match=r"^\.: the working directory, .* say packed"):
        pack(source, Path())
    pack(source, Path("packed"))  # the advice

    assert verify_dataset(tmp_path / "here/packed") == []


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("is_bind", [False, True])
def test_an_empty_mount_point_is_refused_before_any_work(
    source: Path, tmp_path: Path, overwrite: bool, is_bind: bool
) -> None:
    (tmp_path / "elsewhere").mkdir()
    bind = tmp_path / "elsewhere" if is_bind else None

    with mounted(tmp_path / "disk", "size=512k", bind) as disk:
        with pytest.raises(
            DatasetError, match=r"disk: an empty folder .* inside it: .*disk/packed"
        ):
            pack(source, disk, overwrite=overwrite)

        assert [path.name for path in tmp_path.glob("disk*")] == ["disk"]
        pack(source, disk / "packed")  # the advice
        assert verify_dataset(disk / "packed") == []


def test_a_file_is_never_replaced(source: Path, out: Path) -> None:
    out.write_text("four years")

    with pytest.raises(DatasetError, match="packed: not a packed folder"):
        pack(source, out, overwrite=True)

    assert out.read_text() == "four years"


def test_the_source_itself_is_never_replaced(source: Path) -> None:
    (source / "manifest.json").write_text('{"format": 1, "splits": {}}')

    with pytest.raises(DatasetError, match="source: also holds 'train', which pack did not write"):
        pack(source, source, overwrite=True)

    assert (source / "train/ant/000.png").is_file()


@pytest.mark.parametrize("text", ["{}", "[]", "[" * 9999, "", '{"splits": 3}', "\0"])
def test_a_folder_with_some_other_manifest_is_not_replaced(
    source: Path, out: Path, text: str
) -> None:
    out.mkdir()
    (out / "manifest.json").write_text(text)

    with pytest.raises(DatasetError, match=r"packed: its manifest\.json is none of pack's"):
        pack(source, out, overwrite=True)
    assert (out / "manifest.json").read_text() == text


@pytest.mark.parametrize(
    "name", ["embeddings.npy", "config.json", "train-1.npy", "test-00000.npy", "train-00000.npy/x"]
)
def test_an_array_that_pack_did_not_write_is_not_replaced(
    source: Path, out: Path, name: str
) -> None:
    pack(source, out)
    if "/" in name:
        (out / "train-00000.npy").unlink()
        (out / "train-00000.npy").mkdir()
    (out / name).write_bytes(b"mine")

    with pytest.raises(DatasetError, match=f"also holds '{name.split('/')[0]}', which pack did"):
        pack(source, out, overwrite=True)
    assert (out / name).read_bytes() == b"mine"


def test_out_may_lie_inside_the_source(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = pack(source, source / "packed")

    assert pack(source, source / "packed", overwrite=True) == manifest
    assert pack(source, source / "train/packed") == manifest
    assert pack(source, source / "train/packed", overwrite=True) == manifest
    assert [record.message for record in caplog.records if "packed.lock" in record.message] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/", "/: the root of a file system; name a folder inside it"),
        ("loop", "loop: a symbolic link that leads to itself; remove it"),
        ("file/out", "file/out: .*file is a file; name a folder elsewhere"),
        ("file/a/out", "file/a/out: .*file is a file; name a folder elsewhere"),
    ],
)
def test_an_out_that_cannot_be_is_named(
    source: Path, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(DatasetError, match=message):
        pack(source, tmp_path / name)


def test_a_packed_folder_that_holds_something_else_is_not_replaced(source: Path, out: Path) -> None:
    pack(source, out)
    (out / "run").mkdir()

    with pytest.raises(DatasetError, match="packed: also holds 'run', which pack did not write"):
        pack(source, out, overwrite=True)

    assert (out / "run").is_dir()


def test_an_out_that_is_a_link_stays_a_link(source: Path, out: Path) -> None:
    pack(source, out.with_name("target"), shard_size=1)
    out.symlink_to("target")

    pack(source, out, shard_size=2, overwrite=True)

    assert out.is_symlink()
    assert len(open_dataset(out.with_name("target")).train.shards) == 8
    assert sorted(path.name for path in out.parent.iterdir()) == ["packed", "target"]


def test_a_backup_beside_out_is_left_alone(source: Path, out: Path) -> None:
    backup = out.with_name("packed.old")
    pack(source, backup)
    before = contents(backup)

    pack(source, out)
    pack(source, out, overwrite=True, shard_size=2)

    assert contents(backup) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_killed_run_left_is_replaced(source: Path, out: Path, overwrite: bool) -> None:
    pack(source, out.with_name("expected"))
    partial = out.with_name("packed.partial")
    shutil.copytree(out.with_name("expected"), partial)
    (partial / "train-00007.npy").write_bytes(b"left over")
    out.with_name("packed.lock").touch()

    pack(source, out, overwrite=overwrite)

    assert contents(out) == contents(out.with_name("expected"))
    assert sorted(path.name for path in out.parent.iterdir()) == ["expected", "packed"]


@pytest.mark.parametrize("when", ["train", "val", "advance"])
def test_an_interrupt_leaves_nothing_behind_and_does_not_hang(
    source: Path, out: Path, when: str
) -> None:
    def interrupt(num_done: int) -> None:
        raise KeyboardInterrupt

    def start_split(split: str, num_images: int) -> Callable[[int], None]:
        if split == when:
            raise KeyboardInterrupt
        return interrupt if when == "advance" else lambda num_done: None

    with pytest.raises(KeyboardInterrupt):
        pack_images(PackConfig(source, out, shard_size=1), start_split)

    assert_nothing_left(out)


KILLABLE = """
import os, signal, sys, threading
from pathlib import Path
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images

source, out = map(Path, sys.argv[1:])
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def end():
    os.kill(os.getpid(), signal.SIGKILL)


def arrange_end(how, number):
    left = [int(number)] if how == "change" else [0]

    def count(event, args):
        writes = event == "open" and str(args[0]).startswith(f"{out}.partial/")
        if writes or event in CHANGES:
            left[0] -= 1
            if left[0] == 0:
                end()

    if how == "change":
        sys.addaudithook(count)
    if how == "ms":
        threading.Timer(float(number) / 1000, end).start()


for line in sys.stdin:
    how, number, overwrite = line.split()
    child = os.fork()
    if child == 0:
        arrange_end(how, number)
        config = PackConfig(source, out, shard_size=8, overwrite=overwrite == "True")
        pack_images(config, lambda split, count: lambda done: None)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""
Killable = Callable[..., int]


@pytest.fixture
def pack_until(source: Path, out: Path) -> Iterator[Killable]:
    """Return a function that packs in a child, ends it somewhere, and returns its status."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLABLE, str(source), str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=environment,
    )

    def pack_until(how: str = "end", number: float = 0, *, overwrite: bool = False) -> int:
        process.stdin.write(f"{how} {number} {overwrite}\n")
        return int(process.stdout.readline())

    yield pack_until
    process.stdin.close()
    process.stdout.close()
    assert process.wait(timeout=30) == 0


def is_absent_or_complete(out: Path) -> bool:
    if out.exists():
        return verify_dataset(out) == []
    with pytest.raises(ShardError, match="no such folder; run 'tinyvgg pack"):
        open_dataset(out)
    return True


@pytest.mark.slow
def test_a_pack_killed_before_any_change_of_the_disk_can_be_run_again(
    source: Path, out: Path, pack_until: Killable
) -> None:
    pack(source, out.with_name("expected"), shard_size=8)
    expected, num_changes = contents(out.with_name("expected")), 0

    while pack_until("change", num_changes + 1) != 0:
        num_changes += 1
        assert is_absent_or_complete(out)
        if not out.exists():
            assert pack_until() == 0
            assert [path.name for path in out.parent.glob("packed*")] == ["packed"]
        assert contents(out) == expected
        shutil.rmtree(out)

    assert num_changes >= 12


@pytest.mark.slow
def test_a_pack_killed_at_random_moments_can_be_run_again(
    source: Path, out: Path, pack_until: Killable
) -> None:
    write_source(source, train=60, val=20)
    pack(source, out.with_name("expected"), shard_size=8)
    draws, num_killed = random.Random(0), 0

    for _ in range(20):
        num_killed += pack_until("ms", draws.uniform(1, 80)) != 0
        assert is_absent_or_complete(out)
        if out.exists():
            shutil.rmtree(out)
    pack(source, out, shard_size=8)

    assert num_killed >= 5
    assert contents(out) == contents(out.with_name("expected"))
    assert sorted(path.name for path in out.parent.iterdir()) == ["expected", "packed"]


@pytest.mark.slow
def test_an_overwrite_killed_before_any_change_of_the_disk_loses_nothing(
    source: Path, out: Path, pack_until: Killable
) -> None:
    pack(source, out.with_name("old"), shard_size=15)
    pack(source, out.with_name("new"), shard_size=8)
    old, new = contents(out.with_name("old")), contents(out.with_name("new"))
    shutil.copytree(out.with_name("old"), out)
    num_changes = num_absent = 0

    while pack_until("change", num_changes + 1, overwrite=True) != 0:
        num_changes += 1
        if not out.exists():
            num_absent += 1
            with pytest.raises(DatasetError, match="exists already"):
                pack(source, out)
        assert contents(out) in (old, new)
        if contents(out) == new:
            shutil.rmtree(out)
            shutil.copytree(out.with_name("old"), out)

    assert num_changes >= 15
    assert num_absent == 1
    assert contents(out) == new
    assert [path.name for path in out.parent.glob("packed*")] == ["packed"]


PACK_SLOWLY = """
import sys
from pathlib import Path
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images


def start_split(split, num_images):
    print(split, flush=True)
    sys.stdin.readline()
    return lambda num_done: None


pack_images(PackConfig(Path(sys.argv[1]), Path(sys.argv[2])), start_split)
"""


def test_the_second_of_two_packs_into_one_out_gets_one_clear_error(source: Path, out: Path) -> None:
    command = [sys.executable, "-c", PACK_SLOWLY, str(source), str(out)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as first:
        assert first.stdout.readline() == "train\n"

        with pytest.raises(DatasetError, match="another 'tinyvgg pack' is writing it; wait"):
            pack(source, out)
        with pytest.raises(DatasetError, match="another 'tinyvgg pack'"):
            pack(source, out, overwrite=True)

        first.communicate("\n\n", timeout=30)
    assert first.returncode == 0
    assert verify_dataset(out) == []
    assert [path.name for path in out.parent.iterdir()] == ["packed"]


def test_a_lock_file_that_nobody_holds_is_no_obstacle(source: Path, out: Path) -> None:
    with FileLock(f"{out}.lock"):
        pass
    out.with_name("packed.lock").touch()

    pack(source, out)

    assert [path.name for path in out.parent.iterdir()] == ["packed"]


@contextlib.contextmanager
def mounted(folder: Path, options: str, bind: Path | None = None) -> Iterator[Path]:
    """Mount a small disk in memory, or another folder; skip where that is not permitted."""
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("NOT RUN: no mount command")
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if bind is not None:
        command = ["mount", "--bind", str(bind), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"NOT RUN: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_named_before_any_work(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", train=20, size=64)

    with mounted(tmp_path / "disk", "size=512k") as disk:
        with pytest.raises(DatasetError, match=r"disk: 5\d\d,\d{3} bytes free, packing needs 811,"):
            pack(source, disk / "packed")

        assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up_is_an_error_and_nothing_is_left(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", train=40)

    with mounted(tmp_path / "disk", "size=512k") as disk:
        with pytest.raises(OSError, match="No space left on device"):
            pack(source, disk / "packed", shard_size=1)  # each file takes 4 KiB at least
        assert list(disk.iterdir()) == []

        pack(source, disk / "packed", shard_size=100)
        assert verify_dataset(disk / "packed") == []


def test_what_a_killed_run_left_does_not_count_as_used_space(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", train=8, size=64)

    with mounted(tmp_path / "disk", "size=512k") as disk:
        (disk / "packed.partial").mkdir()
        (disk / "packed.partial/train-00000.npy").write_bytes(bytes(400_000))

        pack(source, disk / "packed")

        assert verify_dataset(disk / "packed") == []


def test_a_full_disk_keeps_the_old_out(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", train=40)

    with mounted(tmp_path / "disk", "size=512k") as disk:
        pack(source, disk / "packed", shard_size=100)
        before = contents(disk / "packed")

        with pytest.raises(OSError, match="No space left on device"):
            pack(source, disk / "packed", shard_size=1, overwrite=True)

        assert contents(disk / "packed") == before


def test_a_read_only_disk_is_an_error(source: Path, tmp_path: Path) -> None:
    with (
        mounted(tmp_path / "disk", "ro,size=64k") as disk,
        pytest.raises(OSError, match="Read-only file system"),
    ):
        pack(source, disk / "packed")


@pytest.mark.skipif(os.geteuid() == 0, reason="NOT RUN: root may write anywhere")
def test_a_folder_without_write_permission_is_an_error(source: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)

    with pytest.raises(PermissionError):
        pack(source, tmp_path / "locked/packed")


def sha256_of(folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


@pytest.fixture(scope="module")
def real_sources(
    real_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    """The real images as a folder and as a zip; what is missing is made from the other."""
    made = tmp_path_factory.mktemp("real-source")
    memory = Path("/dev/shm")  # 55,000 files are made and removed in 5 s there, in 45 s on a disk
    if memory.is_dir() and shutil.disk_usage(memory).free > 2**30:
        made = Path(tempfile.mkdtemp(dir=memory))
    sources = {"folder": real_images, "zip": real_images}
    if real_images.is_dir():
        sources["zip"] = zip_folder(real_images, made / "real.zip", zipfile.ZIP_STORED)
    else:
        sources["folder"] = made / "folder"
        with zipfile.ZipFile(real_images) as archive:
            archive.extractall(sources["folder"])
    yield sources
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def real_packed(
    real_sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The real zip, packed by two workers."""
    made = tmp_path_factory.mktemp("real-packed")
    pack(real_sources["zip"], made / "packed", workers=2)
    yield made / "packed"
    shutil.rmtree(made)


def find_root(folder: Path) -> Path:
    return folder if (folder / "train").is_dir() else next(folder.glob("*/train")).parent


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers"), [("zip", 1), ("zip", 5), ("folder", 2)])
def test_real_images_give_the_same_bytes_from_zip_and_folder_for_any_workers(
    real_sources: dict[str, Path], real_packed: Path, tmp_path: Path, kind: str, workers: int
) -> None:
    pack(real_sources[kind], tmp_path / "packed", workers=workers)

    assert sha256_of(tmp_path / "packed") == sha256_of(real_packed)
    shutil.rmtree(tmp_path / "packed")


@pytest.mark.real
@pytest.mark.slow
def test_every_real_train_image_equals_that_of_image_folder(
    real_sources: dict[str, Path], real_packed: Path
) -> None:
    root = find_root(real_sources["folder"])
    reference = ImageFolder(str(root / "train"), transform=PILToTensor())
    train = open_dataset(real_packed).train

    def is_equal(row: int) -> bool:
        image, label = reference[row]
        packed = train.shards[row // train.shard_size].images[row % train.shard_size]
        return label == train.labels[row] and np.array_equal(
            image.numpy().transpose(1, 2, 0), packed
        )

    with ThreadPoolExecutor(2) as threads:
        are_equal = list(threads.map(is_equal, range(train.num_images)))

    assert len(reference) == train.num_images
    assert all(are_equal)


@pytest.mark.real
@pytest.mark.slow
def test_every_real_validation_image_equals_its_annotation_and_pillow(
    real_sources: dict[str, Path], real_packed: Path
) -> None:
    root = find_root(real_sources["folder"])
    lines = (root / "val/val_annotations.txt").read_text().splitlines()
    annotated = sorted(tuple(reversed(line.split("\t")[:2])) for line in lines)
    dataset = open_dataset(real_packed)

    images = dataset.val.read_images(np.arange(dataset.val.num_images))

    assert [dataset.class_names[k] for k in dataset.val.labels] == [name for name, _ in annotated]
    wrong = [
        file
        for (_, file), image in zip(annotated, images, strict=True)
        if not np.array_equal(
            image, np.asarray(Image.open(root / "val/images" / file).convert("RGB"))
        )
    ]
    assert wrong == []


MEASURED_PACK = """
import json, runpy, sys

sys.argv = ["tinyvgg", "pack", *sys.argv[1:]]
try:
    runpy.run_module("tinyvgg.cli", run_name="__main__")
except SystemExit as end:
    status = end.code
with open("/proc/self/status") as file:  # ru_maxrss would count the parent before exec
    peak_kib = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
print(json.dumps({"status": status, "peak_kib": peak_kib, "modules": list(sys.modules)}))
"""


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: /proc/self/status is Linux's")
def test_packing_real_images_takes_under_one_gib_and_imports_no_torch(
    real_sources: dict[str, Path], real_packed: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", MEASURED_PACK, str(real_sources["zip"]), "packed"]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["status"] == 0
    assert measured["peak_kib"] < 2**20
    assert {"torch", "numba", "matplotlib"}.isdisjoint(measured["modules"])
    assert sha256_of(tmp_path / "packed") == sha256_of(real_packed)
    shutil.rmtree(tmp_path / "packed")
