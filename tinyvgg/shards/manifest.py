"""The manifest: one JSON object that says what a packed folder holds, checked field by field.

From: `pack`, which writes it last, after every shard is on disk.
To:   `store.open_dataset`, which believes no shard that disagrees with it.

Promises: keys sorted, two-space indent, one newline at the end, no times, no host names and
no absolute paths, so that the same input gives the same bytes. Reading refuses what JSON
parsers let through: a key given twice, NaN, a number in a string, an unknown field.

Optional fields are absent where they say nothing; a manifest without them is as good as ever:
`fields_sha256`, of all other fields as they are rendered, and of each shard `head_crc32`.

Format 1 is of decoded pixels, format 2 of JPEG files; they differ in `image`, in the name of a
shard's images, and in two more files a shard.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from tinyvgg.errors import ShardError

MANIFEST_NAME = "manifest.json"
FORMATS = (1, 2)
BLOCK_ROWS = 256  # rows behind one entry of block_crc32: damage is named to 256 images
HEAD_BYTES = 4096  # of each file behind head_crc32: a page, which opening reads anyway
SPLITS = ("train", "val")

Count = Annotated[int, Field(ge=0, le=2**48)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Crc32 = Annotated[int, Field(ge=0, lt=2**32)]
Unit = Annotated[float, Field(ge=0.0, le=1.0)]
Side = Annotated[int, Field(ge=1, le=65_535)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class ImageFormat(_Record):
    """Shape and type of every image of the data set."""

    height: Side
    width: Side
    channels: Literal[3] = 3
    dtype: Literal["uint8"] = "uint8"
    layout: Literal["NHWC"] = "NHWC"

    @property
    def num_bytes(self) -> int:
        """Bytes of one image."""
        return self.height * self.width * self.channels

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every image."""
        return self.height, self.width

    def __str__(self) -> str:
        return f"{self.width}x{self.height} pixels"


class JpegFormat(_Record):
    """Images are untouched JPEG files; height and width are there if all have one size."""

    encoding: Literal["jpeg"] = "jpeg"
    height: Side | None = None
    width: Side | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of every image; None if they have several sizes."""
        if self.height is None or self.width is None:
            return None
        return self.height, self.width

    def __str__(self) -> str:
        size = "several sizes" if self.size is None else f"{self.width}x{self.height} pixels"
        return f"{size}, JPEG files"

    @model_validator(mode="after")
    def _is_whole(self) -> "JpegFormat":
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width are given together")
        return self


def _find_encoding(image: Any) -> str:
    is_jpeg = "encoding" in image if isinstance(image, dict) else isinstance(image, JpegFormat)
    return "jpeg" if is_jpeg else "raw"


AnyFormat = Annotated[
    Annotated[ImageFormat, Tag("raw")] | Annotated[JpegFormat, Tag("jpeg")],
    Discriminator(_find_encoding),
]


class ClassRecord(_Record):
    """One class: its folder, which is its name, and its words (empty if nobody gave any)."""

    folder: Annotated[str, Field(pattern=r"^[^/\x00]+$")]
    words: str


class HeadChecksums(_Record):
    """CRC-32 of the first 4 KiB of a shard's two files: tells shards apart that begin unlike."""

    images: Crc32
    labels: Crc32


class ShardRecord(_Record):
    """One shard: its files, their sizes in bytes and their checksums.

    A shard of JPEG files has two more, `offsets` and `sizes`, whose bytes follow from `num_images`.
    """

    images: str
    labels: str
    num_images: Annotated[int, Field(ge=1, le=2**40)]
    image_bytes: Count
    label_bytes: Count
    images_sha256: Sha256
    labels_sha256: Sha256
    block_crc32: list[Crc32]
    head_crc32: HeadChecksums | None = None
    offsets_sha256: Sha256 | None = None
    sizes_sha256: Sha256 | None = None

    @property
    def offsets(self) -> str:
        """Name of the file that says where each JPEG file begins, and where the last one ends."""
        return self.labels.replace(".labels.", ".offsets.")

    @property
    def sizes(self) -> str:
        """Name of the file with height and width of each JPEG file."""
        return self.labels.replace(".labels.", ".sizes.")

    @property
    def is_jpeg(self) -> bool:
        """Whether it holds JPEG files."""
        return self.offsets_sha256 is not None

    @property
    def file_names(self) -> list[str]:
        """Names of all its files."""
        more = [self.offsets, self.sizes] if self.is_jpeg else []
        return [self.images, self.labels, *more]


class SkippedFile(_Record):
    """A source file that `pack --on-bad skip` left out, and why."""

    path: str
    reason: str


class RecodedFile(_Record):
    """A source file that `pack --recode` stored as another JPEG, and why."""

    path: str
    reason: str


class SplitRecord(_Record):
    """One split: how many images, their statistics on the 0-to-1 scale, their shards."""

    num_images: Count
    mean: Annotated[list[Unit], Field(min_length=3, max_length=3)]
    std: Annotated[list[Unit], Field(min_length=3, max_length=3)]
    shards: list[ShardRecord]
    skipped: list[SkippedFile]
    recoded: Annotated[list[RecodedFile], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _counts_agree(self) -> "SplitRecord":
        total = sum(shard.num_images for shard in self.shards)
        if total != self.num_images:
            raise ValueError(f"num_images {self.num_images:,}, its shards hold {total:,}")
        if len({shard.num_images for shard in self.shards[:-1]}) > 1:
            raise ValueError("shards before the last differ in num_images")
        if self.shards and self.shards[-1].num_images > self.shards[0].num_images:
            raise ValueError("the last shard is larger than the first")
        return self


class Splits(_Record):
    """The two splits of a data set."""

    train: SplitRecord
    val: SplitRecord


class SourceRecord(_Record):
    """What is not plain about the source; each field is absent where it says nothing.

    Attributes:
        val_share: the share of each class that was held out for val.
        val_seed: which draw of it.
        unpacked: by suffix, how many files were neither images nor anything that is known.
    """

    val_share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    val_seed: Annotated[int, Field(ge=0)] | None = None
    unpacked: Annotated[dict[str, Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _is_needed(self) -> "SourceRecord":
        if (self.val_share is None) != (self.val_seed is None):
            raise ValueError("val_share and val_seed are given together")
        if self.val_share is None and self.unpacked is None:
            raise ValueError("it says nothing")
        return self


class Manifest(_Record):
    """Everything that is known of a packed folder without reading a pixel."""

    format: Literal[1, 2] = 1
    image: AnyFormat
    classes: Annotated[list[ClassRecord], Field(min_length=1)]
    splits: Splits
    source: SourceRecord | None = None
    fields_sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _names_agree(self) -> "Manifest":
        folders = [record.folder for record in self.classes]
        if folders != sorted(set(folders)):
            raise ValueError("class folders are not sorted, or one is there twice")
        if not {".", ".."}.isdisjoint(folders):
            raise ValueError("a class folder is '.' or '..'")
        is_jpeg = self.format == 2
        if is_jpeg != isinstance(self.image, JpegFormat):
            raise ValueError("format 1 is of decoded pixels, format 2 of encoding 'jpeg'")
        for split in SPLITS:
            for index, shard in enumerate(self.split(split).shards):
                if {shard.is_jpeg, shard.sizes_sha256 is not None} != {is_jpeg}:
                    raise ValueError(f"{shard.images}: offsets and sizes go with format 2")
                expected = shard_file_names(split, index, is_jpeg=is_jpeg)
                if (shard.images, shard.labels) != expected:  # also refuses '/', '..'
                    raise ValueError(f"{split} shard {index} is not named {expected[0]}")
                if len(shard.block_crc32) != -(-shard.num_images // BLOCK_ROWS):
                    raise ValueError(f"{shard.images}: block_crc32 has the wrong length")
        return self

    def split(self, name: str) -> SplitRecord:
        """Return the record of split "train" or "val".

        Raises:
            ValueError: there is no such split.
        """
        if name not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {name!r}")
        record: SplitRecord = getattr(self.splits, name)
        return record


SHARD_NAME = re.compile(
    rf"(?:{'|'.join(SPLITS)})-\d{{5,}}(?:\.(?:labels|jpeg|offsets|sizes))?\.npy"
)


def shard_file_names(split: str, index: int, *, is_jpeg: bool = False) -> tuple[str, str]:
    """Name the image file and the label file of a shard."""
    stem = f"{split}-{index:05d}"
    return f"{stem}.jpeg.npy" if is_jpeg else f"{stem}.npy", f"{stem}.labels.npy"


def is_manifest(data: bytes) -> bool:
    """Tell whether bytes are a manifest, of whatever format, damaged or not as to its values."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and {"format", "splits"} <= set(fields)


def render_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of `manifest.json`: sorted keys, ASCII, one newline at the end."""
    fields = manifest.model_dump(exclude_none=True)
    text = json.dumps(fields, indent=2, sort_keys=True, allow_nan=False)
    return (text + "\n").encode()


def seal_manifest(manifest: Manifest) -> Manifest:
    """Return a manifest with `fields_sha256`: the SHA-256 of how it is rendered without it."""
    return manifest.model_copy(update={"fields_sha256": _hash_fields(manifest)})


def _hash_fields(manifest: Manifest) -> str:
    unsealed = manifest.model_copy(update={"fields_sha256": None})
    return hashlib.sha256(render_manifest(unsealed)).hexdigest()


def parse_manifest(data: bytes, name: str) -> Manifest:
    """Read the bytes of a manifest; `name` is its path, for errors.

    Returns:
        The manifest, every field of it checked.

    Raises:
        ShardError: not JSON, another format version, any field that is missing, unknown, of
            another type or at odds with another one, or fields other than were sealed.
    """
    try:
        fields = json.loads(data, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{name}: not a manifest ({error}); pack the images again") from error
    version = fields.get("format") if isinstance(fields, dict) else None
    if version not in FORMATS or type(version) is not int:
        shown = re.sub(r"\s+", " ", repr(version))[:40]
        raise ShardError(
            f"{name}: format {shown}, this tinyvgg reads {' and '.join(map(str, FORMATS))}; "
            "upgrade tinyvgg or run 'tinyvgg pack' again"
        )
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        if path[:1] == ["image"] and path[1:2] in (["raw"], ["jpeg"]):  # not a field
            del path[1]
        where = ".".join(path) or "manifest"
        raise ShardError(f"{name}: {where}: {first['msg']}; pack the images again") from error
    known = manifest.model_dump(exclude_none=True)
    if json.dumps(known, sort_keys=True) != json.dumps(fields, sort_keys=True):
        raise ShardError(f"{name}: a field is missing, or a float is an int; pack the images again")
    if manifest.fields_sha256 not in (None, _hash_fields(manifest)):
        raise ShardError(
            f"{name}: its fields are not those that were packed (fields_sha256); "
            "copy the manifest or pack the images again"
        )
    return manifest


def _no_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key is given twice")
    return fields


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number here")
