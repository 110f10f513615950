"""Format 2: packed JPEG files, what opening them checks, and what verifying them names."""

import hashlib
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.packing.odd_jpegs import FOUR_FOUR_ONE, THREE_TO_ONE
from tests.shards.damage import edit_manifest, swap
from tinyvgg.errors import DatasetError, ShardError
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images
from tinyvgg.shards.manifest import Manifest
from tinyvgg.shards.store import open_dataset
from tinyvgg.shards.verify import verify_dataset

COUNTS = {"train": 5, "val": 2}  # of each of two classes


def encode(pixels: np.ndarray, kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(data, kind, **options)
    return data.getvalue()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes of JPEG files of several sizes, one progressive and one gray."""
    generator = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for name in ("a", "b"):
            folder = tmp_path / "source" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = generator.integers(8, 40, 2)
                pixels = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
                options: dict[str, Any] = {"progressive": True} if number == 1 else {}
                mode = "L" if number == 2 else "RGB"
                (folder / f"{number}.jpg").write_bytes(encode(pixels, mode=mode, **options))
    return tmp_path / "source"


def pack(source: Path, out: Path, **options: Any) -> Manifest:
    config = PackConfig(**{"source": source, "out": out, "encoding": "jpeg", **options})
    return pack_images(config, lambda split, num_images: lambda num_done: None)


def files_of(source: Path, split: str) -> list[Path]:
    return sorted((source / split).glob("*/*"))


def test_files_are_stored_untouched_as_plain_npy(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"

    manifest = pack(source, out, shard_size=4)

    assert (manifest.format, manifest.image.model_dump(exclude_none=True)) == (
        2,
        {"encoding": "jpeg"},
    )
    stored = []
    for index in range(3):
        stem = f"{out}/train-{index:05d}"
        data, offsets, sizes = (
            np.load(f"{stem}.{name}.npy", allow_pickle=False)
            for name in ("jpeg", "offsets", "sizes")
        )
        files = [data[a:b].tobytes() for a, b in itertools.pairwise(offsets)]
        for file, size in zip(files, sizes, strict=True):
            assert Image.open(io.BytesIO(file)).size == (size[1], size[0])
        stored += files
    assert stored == [path.read_bytes() for path in files_of(source, "train")]


def test_a_split_gives_the_pixels_and_statistics_of_pillow(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "packed")

    dataset = open_dataset(tmp_path / "packed")

    pixels = []
    for split in ("train", "val"):
        for row, path in enumerate(files_of(source, split)):
            expected = np.asarray(Image.open(path).convert("RGB"))
            image, label = dataset.split(split)[row]
            assert np.array_equal(image, expected)
            assert label == (path.parent.name == "b")
            if split == "train":
                pixels.append(expected.reshape(-1, 3))
    flat = np.concatenate(pixels) / 255
    assert dataset.manifest.splits.train.mean == pytest.approx(flat.mean(axis=0).tolist(), 1e-12)
    assert dataset.manifest.splits.train.std == pytest.approx(flat.std(axis=0).tolist(), 1e-12)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_bytes_depend_on_the_files_alone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(source, tmp_path / "packed", workers=1)
    monkeypatch.setattr("tinyvgg.packing.encoders.JPEG_ROWS", 2)
    monkeypatch.setattr("tinyvgg.packing.encoders.KEPT_BYTES", 4_000)  # most are read again
    monkeypatch.setattr("tinyvgg.packing.encoders.PIXEL_BYTES", 3_000)  # large images stand alone

    pack(source, tmp_path / "again", workers=3)

    assert contents(tmp_path / "again") == contents(tmp_path / "packed")


def test_a_set_of_one_size_says_so(tmp_path: Path) -> None:
    pixels = np.zeros((9, 12, 3), np.uint8)
    for split in ("train", "val"):
        (tmp_path / "s" / split / "a").mkdir(parents=True)
        (tmp_path / "s" / split / "a" / "0.jpg").write_bytes(encode(pixels))

    manifest = pack(tmp_path / "s", tmp_path / "packed")

    assert manifest.image.size == (9, 12)


@pytest.mark.parametrize(
    ("kind", "mode", "reason"),
    [("PNG", "RGBA", "PNG image, RGBA"), ("JPEG", "CMYK", "JPEG image, CMYK")],
)
def test_what_is_no_plain_jpeg_is_named_or_recoded(
    source: Path, tmp_path: Path, kind: str, mode: str, reason: str
) -> None:
    pixels = np.full((16, 16, 3), 200, np.uint8)
    odd = source / "train" / "a" / "3.jpg"
    odd.write_bytes(encode(pixels, kind, mode))

    with pytest.raises(DatasetError, match=rf"train/a/3\.jpg.*: {reason}, expected a JPEG in YCbC"):
        pack(source, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    manifest = pack(source, tmp_path / "packed", recode=95)

    recoded = manifest.splits.train.recoded or []
    assert [(file.path, file.reason) for file in recoded] == [("train/a/3.jpg", reason)]
    image, _ = open_dataset(tmp_path / "packed").train[3]
    expected = Image.open(odd).convert("RGB")
    assert np.abs(image.astype(int) - np.asarray(expected)).max() <= 3
    skipped = pack(source, tmp_path / "without", on_bad="skip").splits.train
    assert [file.path for file in skipped.skipped] == ["train/a/3.jpg"]
    assert skipped.num_images == 9


def test_why_libjpeg_has_no_name_for_a_file_is_said(source: Path, tmp_path: Path) -> None:
    (source / "train" / "a" / "0.jpg").write_bytes(THREE_TO_ONE)
    (source / "train" / "a" / "1.jpg").write_bytes(FOUR_FOUR_ONE)

    with pytest.raises(DatasetError) as raised:
        pack(source, tmp_path / "packed")

    lines = str(raised.value)
    assert (
        "JPEG image, RGB (tjDecompressHeader3(): Could not determine subsampling level of JPEG"
        in lines
    )
    assert "JPEG image, RGB (subsampling 4:4:1)" in lines


def test_too_many_scans_are_refused_before_a_file_is_recoded(source: Path, tmp_path: Path) -> None:
    data = encode(np.full((16, 16, 3), 200, np.uint8), "JPEG", "CMYK", progressive=True)
    scan = data.rindex(b"\xff\xda")
    (source / "train" / "a" / "0.jpg").write_bytes(data[:-2] + data[scan:-2] * 200 + b"\xff\xd9")

    with pytest.raises(DatasetError, match="scans, expected at most 100"):
        pack(source, tmp_path / "packed", recode=95)


def test_a_file_that_lies_or_has_too_many_scans_is_refused(source: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    data = bytearray(encode(pixels))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = (6_000).to_bytes(2, "big") * 2  # claims 36 megapixels
    progressive = encode(pixels, progressive=True)
    scan = progressive.rindex(b"\xff\xda")
    many = progressive[:-2] + progressive[scan:-2] * 200 + b"\xff\xd9"
    (source / "train" / "a" / "0.jpg").write_bytes(data)
    (source / "train" / "a" / "1.jpg").write_bytes(many)

    with pytest.raises(DatasetError) as raised:
        pack(source, tmp_path / "packed")

    lines = str(raised.value)
    assert "train/a/0.jpg: cannot be decoded" in lines
    assert "scans, expected at most 100" in lines


def damage_byte(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["offsets", "sizes", "labels"])
def test_opening_refuses_another_index(source: Path, tmp_path: Path, name: str) -> None:
    pack(source, tmp_path / "packed")
    damage_byte(tmp_path / "packed" / f"train-00000.{name}.npy")

    with pytest.raises(ShardError, match=rf"train-00000\.{name}\.npy: "):
        open_dataset(tmp_path / "packed")
    assert len(verify_dataset(tmp_path / "packed")) >= 1


def test_every_flipped_byte_of_the_files_is_found_and_named(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "packed")
    path = tmp_path / "packed" / "train-00000.jpeg.npy"
    whole = path.read_bytes()
    for position in np.random.default_rng(0).integers(128, len(whole), 10).tolist():
        damage_byte(path, position)
        (line,) = verify_dataset(tmp_path / "packed")
        assert line == f"{path}: images 0 to 9 of the split are damaged; copy or pack them again"
        path.write_bytes(whole)

    assert verify_dataset(tmp_path / "packed") == []


def test_exchanged_shards_are_found_on_opening(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "packed", shard_size=5)
    for name in ("jpeg", "offsets", "sizes"):
        swap(
            tmp_path / "packed" / f"train-00000.{name}.npy",
            tmp_path / "packed" / f"train-00001.{name}.npy",
        )

    with pytest.raises(ShardError, match=r"train-00000\.jpeg\.npy: "):
        open_dataset(tmp_path / "packed")


def test_a_damaged_file_that_opening_does_not_see_is_named_when_it_is_read(
    source: Path, tmp_path: Path
) -> None:
    pack(source, tmp_path / "packed")
    path = tmp_path / "packed" / "train-00000.jpeg.npy"
    offsets = np.load(tmp_path / "packed" / "train-00000.offsets.npy")
    data = bytearray(path.read_bytes())
    last = 128 + int(offsets[9])
    data[last : last + 200] = bytes(200)
    path.write_bytes(data)

    dataset = open_dataset(tmp_path / "packed")

    with pytest.raises(ShardError, match=r"image 9 of the shard cannot be decoded .*; run 'tinyv"):
        _ = dataset.train[9]


EDITS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda f: f.update(format=1), "format 1 is of decoded pixels"),
    (lambda f: f["image"].update(encoding="png"), "image.encoding"),
    (lambda f: f["image"].update(height=9), "height and width are given together"),
    (lambda f: f["splits"]["train"]["shards"][0].pop("sizes_sha256"), "offsets and sizes go with"),
    (lambda f: f["splits"]["val"]["shards"][0].update(images="val-00000.npy"), "is not named"),
    (lambda f: f["splits"]["train"].update(recoded=[]), "recoded"),
]


@pytest.mark.parametrize(("edit", "message"), EDITS)
def test_a_manifest_at_odds_with_itself_is_refused(
    source: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    pack(source, tmp_path / "packed")
    path = tmp_path / "packed" / "manifest.json"
    fields = json.loads(path.read_bytes())
    del fields["fields_sha256"]
    edit(fields)
    path.write_text(json.dumps(fields))

    with pytest.raises(ShardError, match=message):
        open_dataset(tmp_path / "packed")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoding": "raw", "recode": 90}, "recode needs encoding 'jpeg'"),
        ({"resize": 64}, "resize needs encoding 'raw'"),
        ({"recode": 101}, "recode must be a quality of 1 to 100, got 101"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackConfig(**{"source": Path("a"), "out": Path("b"), "encoding": "jpeg", **fields})


@pytest.mark.parametrize("size", [(0, 5), (65_000, 65_000), (-1, -1), (70_000, 1)])
def test_sizes_that_no_file_may_have_are_refused_before_memory_is_taken(
    source: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    pack(source, tmp_path / "packed")
    path = tmp_path / "packed" / "train-00000.sizes.npy"
    sizes = np.load(path)
    sizes[3] = size
    np.save(path, sizes)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    def claim(fields: dict[str, Any]) -> None:
        fields["splits"]["train"]["shards"][0]["sizes_sha256"] = digest

    edit_manifest(tmp_path / "packed", claim)

    with pytest.raises(ShardError, match=r"sizes\.npy: sides of .* expected sides of 1 to 65,535"):
        open_dataset(tmp_path / "packed")
