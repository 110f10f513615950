"""Packing: the same bytes whatever happens, or one clear error that names every bad file.

Pixels come from PNG files, so that the expected ones are known without a decoder.
"""

import hashlib
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.packing.sources import (
    BAD_FILES,
    CLASSES,
    assert_nothing_left,
    contents,
    known_pixels,
    pack,
    rearrange_as_stanford,
    spoil,
    write_image,
    write_source,
    zip_folder,
)
from tinyvgg.errors import DatasetError
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.encoders import sum_channels
from tinyvgg.packing.pack import pack_images
from tinyvgg.shards.store import open_dataset, read_manifest
from tinyvgg.shards.verify import verify_dataset


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
