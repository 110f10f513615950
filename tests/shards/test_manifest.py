"""The manifest: what is written is read back, and nothing else is read."""

import json
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvgg.errors import ShardError
from tinyvgg.shards.manifest import (
    BLOCK_ROWS,
    ClassRecord,
    HeadChecksums,
    ImageFormat,
    Manifest,
    ShardRecord,
    SkippedFile,
    SourceRecord,
    SplitRecord,
    Splits,
    parse_manifest,
    render_manifest,
    seal_manifest,
    shard_file_names,
)


def make_shard(
    split: str, index: int, num_images: int, digest: str = "0123456789abcdef" * 4
) -> ShardRecord:
    """Return a record with optional fields in every other shard."""
    images, labels = shard_file_names(split, index)
    return ShardRecord(
        images=images,
        labels=labels,
        num_images=num_images,
        image_bytes=128 + num_images * 192,
        label_bytes=128 + num_images * 8,
        images_sha256=digest,
        labels_sha256=digest[::-1],
        block_crc32=[4_294_967_295 - k for k in range(-(-num_images // BLOCK_ROWS))],
        head_crc32=HeadChecksums(images=index, labels=2**32 - 1) if index % 2 else None,
    )


def make_split(split: str, counts: list[int], **fields: Any) -> SplitRecord:
    return SplitRecord(
        num_images=sum(counts),
        mean=fields.get("mean", [0.25, 0.5, 0.125]),
        std=fields.get("std", [0.25, 0.5, 0.75]),
        shards=[make_shard(split, index, count) for index, count in enumerate(counts)],
        skipped=fields.get("skipped", []),
    )


def make_manifest() -> Manifest:
    skipped = [SkippedFile(path="train/a/0.png", reason="0 bytes, expected an image")]
    return Manifest(
        image=ImageFormat(height=8, width=8),
        classes=[
            ClassRecord(folder="ant", words="ant, emmet"),
            ClassRecord(folder="bee", words=""),
        ],
        splits=Splits(
            train=make_split("train", [300, 300, 7], skipped=skipped), val=make_split("val", [3])
        ),
    )


def render(fields: Any) -> bytes:
    return json.dumps(fields).encode()


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1)
texts = st.text(st.characters(exclude_categories=["Cs"]))
units = st.lists(st.floats(0, 1), min_size=3, max_size=3)


@st.composite
def splits(draw: st.DrawFn, name: str) -> SplitRecord:
    full = draw(st.lists(st.just(draw(st.integers(1, 600))), max_size=3))
    counts = [*full, draw(st.integers(1, full[0]))] if full else []
    skipped = draw(st.lists(st.builds(SkippedFile, path=texts, reason=texts), max_size=3))
    return make_split(name, counts, mean=draw(units), std=draw(units), skipped=skipped)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    folders = draw(st.sets(names.filter(lambda name: name not in (".", "..")), min_size=1))
    sides = st.integers(1, 65_535)
    manifest = Manifest(
        image=ImageFormat(height=draw(sides), width=draw(sides)),
        classes=[ClassRecord(folder=folder, words=draw(texts)) for folder in sorted(folders)],
        splits=Splits(train=draw(splits("train")), val=draw(splits("val"))),
    )
    return seal_manifest(manifest) if draw(st.booleans()) else manifest


@settings(deadline=None)
@given(manifests())
def test_what_is_rendered_is_parsed_back(manifest: Manifest) -> None:
    data = render_manifest(manifest)

    parsed = parse_manifest(data, "manifest.json")

    assert parsed == manifest
    assert render_manifest(parsed) == data


@settings(deadline=None)
@given(manifests())
def test_a_manifest_is_ascii_with_sorted_keys_and_one_newline_at_the_end(
    manifest: Manifest,
) -> None:
    data = render_manifest(manifest)

    text = json.dumps(json.loads(data), indent=2, sort_keys=True)
    assert data == text.encode("ascii") + b"\n"


def test_the_order_of_keys_and_the_layout_of_the_text_do_not_matter() -> None:
    fields = json.loads(render_manifest(make_manifest()))
    backwards = dict(reversed(fields.items()))

    assert parse_manifest(render(backwards), "manifest.json") == make_manifest()


def test_shard_names_have_five_digits_at_least() -> None:
    assert shard_file_names("train", 7) == ("train-00007.npy", "train-00007.labels.npy")
    assert shard_file_names("val", 123456) == ("val-123456.npy", "val-123456.labels.npy")


def test_a_split_is_found_by_its_name() -> None:
    manifest = make_manifest()

    assert manifest.split("val") is manifest.splits.val
    with pytest.raises(ValueError, match="split must be one of train, val, got 'test'"):
        manifest.split("test")


@pytest.mark.parametrize("version", [0, 3, 1.0, "1", True, None, [1], {}, 10**30])
def test_another_version_is_refused_with_a_remedy(version: object) -> None:
    fields = json.loads(render_manifest(make_manifest()))
    fields["format"] = version

    remedy = "this tinyvgg reads 1 and 2; upgrade tinyvgg or run 'tinyvgg pack' again"
    with pytest.raises(ShardError, match=f"^m.json: format .*, {remedy}$"):
        parse_manifest(render(fields), "m.json")


@pytest.mark.parametrize("data", [b"[]", b"1", b"null", b'"text"', b"{}"])
def test_json_that_is_no_manifest_has_no_version(data: bytes) -> None:
    with pytest.raises(ShardError, match=r"^m.json: format None, this tinyvgg reads 1"):
        parse_manifest(data, "m.json")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"\x93NUMPY",
        b"{",
        b'{"format": 1',
        b"1" * 5000,
        b"[" * 100_000,
        b'{"format": NaN}',
        b'{"format": Infinity}',
        b'{"format": -Infinity}',
    ],
)
def test_what_is_not_json_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(ShardError, match=r"^m.json: not a manifest \(.*\); pack the images again$"):
        parse_manifest(data, "m.json")


def key_paths(fields: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the path of every value in nested dicts and lists."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(fields, dict):
        items = list(fields.items())
    elif isinstance(fields, list):
        items = list(enumerate(fields))
    paths = [path] if path else []
    for key, value in items:
        paths += key_paths(value, (*path, key))
    return paths


FIELDS = json.loads(render_manifest(make_manifest()))
PATHS = key_paths(FIELDS)


def changed(path: tuple[str | int, ...], change: Callable[[Any, str | int], None]) -> bytes:
    """Return the bytes of the manifest after `change(container, key)` at a path."""
    fields = json.loads(render_manifest(make_manifest()))
    container = fields
    for key in path[:-1]:
        container = container[key]
    change(container, path[-1])
    return render(fields)


def replaced(path: tuple[str | int, ...], value: object) -> bytes:
    return changed(path, lambda container, key: container.__setitem__(key, value))


def value_at(path: tuple[str | int, ...]) -> Any:
    value = FIELDS
    for key in path:
        value = value[key]
    return value


def assert_refused(data: bytes) -> None:
    with pytest.raises(
        ShardError, match=r"^m.json: [^\n]*; (pack the images again|upgrade [^\n]*)$"
    ):
        parse_manifest(data, "m.json")


OPTIONAL = ("head_crc32", "fields_sha256")


@pytest.mark.parametrize(
    "path", [path for path in PATHS if isinstance(path[-1], str) and path[-1] not in OPTIONAL]
)
def test_every_field_but_the_optional_ones_must_be_there(path: tuple[str | int, ...]) -> None:
    assert_refused(changed(path, lambda container, key: container.pop(key)))


@pytest.mark.parametrize("path", PATHS)
def test_every_field_must_have_its_own_type(path: tuple[str | int, ...]) -> None:
    value = value_at(path)
    others: list[object] = [None, True, {}, [value], {"a": value}]
    others += [] if isinstance(value, list) else [[]]
    others += [7] if isinstance(value, str) else ["7", str(value)]
    others += [float(value)] if isinstance(value, int) else []
    others += [1, 0] if isinstance(value, float) else []

    for other in others:
        assert_refused(replaced(path, other))


@pytest.mark.parametrize("path", [p for p in PATHS if isinstance(value_at(p), int | float)])
@pytest.mark.parametrize("value", [-1, -0.5, 10**30, 2**63, 1e300, -(10**30)])
def test_no_number_may_be_negative_or_huge(path: tuple[str | int, ...], value: float) -> None:
    assert_refused(replaced(path, value))


@pytest.mark.parametrize("path", [p for p in PATHS if isinstance(value_at(p), int | float)])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_no_number_may_be_infinite_or_none(path: tuple[str | int, ...], value: str) -> None:
    assert_refused(replaced(path, "HERE").replace(b'"HERE"', value.encode()))


@pytest.mark.parametrize("path", [p for p in PATHS if isinstance(value_at(p), dict)])
def test_no_object_may_have_another_field(path: tuple[str | int, ...]) -> None:
    assert_refused(changed((*path, "extra"), lambda fields, key: fields.__setitem__(key, 1)))


@pytest.mark.parametrize("path", [p for p in PATHS if isinstance(p[-1], str)])
def test_no_key_may_be_given_twice(path: tuple[str | int, ...]) -> None:
    def rename(container: Any, key: str | int) -> None:
        container["TWICE"] = container[key]

    data = changed(path, rename).replace(b'"TWICE"', json.dumps(path[-1]).encode())

    with pytest.raises(ShardError, match=r"not a manifest \(a key is given twice\)"):
        parse_manifest(data, "m.json")


SHARD = ("splits", "train", "shards", 1)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("image", "height"), 0, "image.height: Input should be greater than or equal to 1"),
        (("image", "width"), 65_536, "image.width: Input should be less than or equal to 65535"),
        (("image", "channels"), 4, "image.channels: Input should be 3"),
        (("image", "dtype"), "float32", "image.dtype: Input should be 'uint8'"),
        (("image", "layout"), "NCHW", "image.layout: Input should be 'NHWC'"),
        (("classes",), [], "classes: List should have at least 1 item"),
        (("classes", 0, "folder"), "", "classes.0.folder: "),
        (("classes", 0, "folder"), "../ant", "classes.0.folder: "),
        (("classes", 0, "folder"), "/ant", "classes.0.folder: "),
        (("classes", 0, "folder"), "a\0t", "classes.0.folder: "),
        (("classes", 0, "folder"), ".", "a class folder is '.' or '..'"),
        (("classes", 0, "folder"), "..", "a class folder is '.' or '..'"),
        (("classes", 0, "folder"), "bee", "not sorted, or one is there twice"),
        (("classes", 0, "folder"), "cat", "not sorted, or one is there twice"),
        (("splits", "train", "num_images"), 608, "num_images 608, its shards hold 607"),
        (("splits", "val", "num_images"), 0, "num_images 0, its shards hold 3"),
        (("splits", "train", "mean"), [0.5, 0.5], "mean: List should have at least 3 items"),
        (("splits", "train", "mean"), [0.5] * 4, "mean: List should have at most 3 items"),
        (("splits", "train", "mean", 1), 1.01, "mean.1: Input should be less than or equal to 1"),
        (("splits", "train", "std", 2), -0.01, "std.2: Input should be greater than or equal"),
        ((*SHARD, "num_images"), 0, "num_images: Input should be greater than or equal to 1"),
        ((*SHARD, "images"), "train-00000.npy", "shard 1 is not named train-00001.npy"),
        ((*SHARD, "images"), "../train-00001.npy", "shard 1 is not named train-00001.npy"),
        ((*SHARD, "images"), "/etc/passwd", "shard 1 is not named train-00001.npy"),
        ((*SHARD, "images"), "val-00001.npy", "shard 1 is not named train-00001.npy"),
        ((*SHARD, "labels"), "train-00000.labels.npy", "train shard 1 is not named"),
        ((*SHARD, "labels"), "..", "train shard 1 is not named"),
        ((*SHARD, "images_sha256"), "0" * 63, "images_sha256: String should match pattern"),
        ((*SHARD, "images_sha256"), "A" * 64, "images_sha256: String should match pattern"),
        ((*SHARD, "labels_sha256"), "0" * 64 + "\n", "labels_sha256: String should match"),
        ((*SHARD, "block_crc32"), [1], "train-00001.npy: block_crc32 has the wrong length"),
        ((*SHARD, "block_crc32"), [1, 2, 3], "train-00001.npy: block_crc32 has the wrong length"),
        ((*SHARD, "block_crc32"), [1, 2**32], "block_crc32.1: Input should be less than"),
        ((*SHARD, "image_bytes"), -1, "image_bytes: Input should be greater than or equal to 0"),
    ],
)
def test_a_value_at_odds_with_the_format_is_named(
    path: tuple[str | int, ...], value: object, message: str
) -> None:
    with pytest.raises(
        ShardError, match=f"m.json: .*{re.escape(message)}.*; pack the images again"
    ):
        parse_manifest(replaced(path, value), "m.json")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([300, 299, 8], "shards before the last differ in num_images"),
        ([7, 300, 300], "shards before the last differ in num_images"),
        ([300, 307], "the last shard is larger than the first"),
    ],
)
def test_all_shards_but_the_last_must_have_one_size(counts: list[int], message: str) -> None:
    shards = [make_shard("train", index, count) for index, count in enumerate(counts)]
    data = replaced(("splits", "train", "shards"), [shard.model_dump() for shard in shards])

    with pytest.raises(ShardError, match=f"splits.train: .*{message}"):
        parse_manifest(data, "m.json")


def test_a_manifest_cut_short_anywhere_is_refused() -> None:
    data = render_manifest(make_manifest())

    for num_bytes in range(len(data) - 1):
        with pytest.raises(ShardError, match="not a manifest"):
            parse_manifest(data[:num_bytes], "m.json")


def test_a_damaged_manifest_is_refused_or_another_valid_one() -> None:
    data, draws = render_manifest(make_manifest()), random.Random(0)

    for _ in range(2000):
        damaged = bytearray(data)
        for _ in range(draws.choice([1, 1, 4])):
            damaged[draws.randrange(len(data))] = draws.randrange(256)

        try:
            manifest = parse_manifest(bytes(damaged), "m.json")
        except ShardError:
            continue

        assert parse_manifest(render_manifest(manifest), "m.json") == manifest


@pytest.mark.parametrize(
    "source",
    [
        {"val_share": 0.1, "val_seed": 0},
        {"unpacked": {"": 3, ".txt": 1, "other": 9}},
        {"val_share": 0.25, "val_seed": 7, "unpacked": {".xml": 1}},
    ],
)
def test_what_is_not_plain_about_the_source_is_read_back(source: dict[str, Any]) -> None:
    manifest = make_manifest().model_copy(update={"source": SourceRecord(**source)})

    rendered = render_manifest(manifest)

    assert json.loads(rendered)["source"] == source
    assert parse_manifest(rendered, "manifest.json") == manifest


def test_a_manifest_without_the_optional_fields_is_rendered_without_them() -> None:
    assert "source" not in json.loads(render_manifest(make_manifest()))


@pytest.mark.parametrize(
    "source",
    [
        {},
        None,
        {"val_share": 0.1},
        {"val_seed": 1},
        {"val_share": 1.0, "val_seed": 1},
        {"val_share": 0.5, "val_seed": -1},
        {"unpacked": {}},
        {"unpacked": {".txt": 0}},
        {"unpacked": {".txt": 1}, "val_share": None},
        {"unpacked": {".txt": 1}, "more": 1},
    ],
)
def test_a_record_of_the_source_that_says_nothing_or_nonsense_is_refused(source: Any) -> None:
    fields = json.loads(render_manifest(make_manifest())) | {"source": source}

    with pytest.raises(ShardError, match="pack the images again"):
        parse_manifest(json.dumps(fields).encode(), "manifest.json")
