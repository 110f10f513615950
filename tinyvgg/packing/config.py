"""What `synth`, `download` and `pack` can be told. One field, one flag; no heavy imports."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Optional

import tyro

from tinyvgg.options import JsonOption, Switch

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_BYTES = 248_100_043
MAX_RESIZE = 9_459  # 9,459 x 9,459 pixels are all that `decode` takes: 256 MiB
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


@dataclass(frozen=True)
class SynthConfig:
    """Make a small seeded set of class folders with JPEG images that can be learned."""

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to create; the Stanford layout is written into it."""
    train_per_class: int = 200
    """Training images in each of the 10 classes."""
    val_per_class: int = 50
    """Validation images in each of the 10 classes."""
    seed: int = 0
    """Same seed, same bytes."""

    def __post_init__(self) -> None:
        """Refuse counts that leave a split empty."""
        for name in ("train_per_class", "val_per_class"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")


@dataclass(frozen=True)
class DownloadConfig:
    """Fetch the public TinyImageNet zip; a cut download is resumed where it stopped."""

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The zip file to write; a folder means OUT/tiny-imagenet-200.zip."""
    url: str = TINY_IMAGENET_URL
    """Where to fetch it from; a mirror must serve the same bytes."""


@dataclass(frozen=True)
class PackConfig:
    """Decode every image once, into uint8 numpy shards, or check and store JPEG files."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Folder or .zip: train/ and val/, class folders with --val-share, or anything with --csv."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to create; written as OUT.partial and renamed when it is complete. Killed, the same
    command goes on with the shards that are finished there; those of files that changed since, by
    size or time, are packed again."""
    shard_size: int = 5000
    """Images in a shard."""
    workers: int = 0
    """Decoding threads; 0 means one for each CPU core. The bytes do not depend on it."""
    encoding: Literal["raw", "jpeg"] = "raw"
    """Store decoded pixels of one size (raw), or the JPEG files untouched, of any size (jpeg)."""
    recode: Optional[int] = None  # noqa: UP045 - as `resize`
    """With --encoding jpeg, store what is no JPEG in usual colors as one of this quality."""
    resize: Optional[int] = None  # noqa: UP045 - `int | None` makes tyro load typeguard: 0.06 s
    """Scale the shorter side to this many pixels and cut out the center square."""
    val_share: Optional[float] = None  # noqa: UP045 - as `resize`
    """Hold out this share of each class for val, where SOURCE has train images alone."""
    seed: int = 0
    """Which images --val-share holds out: same seed, same images."""
    csv: Optional[Path] = None  # noqa: UP045 - as `resize`
    """File that lists images and labels, below a header line; on disk or inside SOURCE."""
    csv_path_column: str = "path"
    """Column of --csv with paths that begin inside SOURCE."""
    csv_label_column: str = "label"
    """Column of --csv with the class of each image."""
    csv_split_column: Optional[str] = None  # noqa: UP045 - as `resize`
    """Column of --csv that says train, val or test; 'split', if there is one."""
    on_bad: Literal["fail", "skip"] = "fail"
    """Images that cannot be packed: stop and list them, or leave them out and list them (no more
    than half of a split)."""
    overwrite: Switch = False
    """Replace an existing OUT, at the end and only if everything went well."""
    part: Annotated[Optional[str], tyro.conf.arg(metavar="I/N")] = None  # noqa: UP045 - as `resize`
    """Pack only part I of N into OUT.partial, I from 0 to N - 1: for N processes on any machines
    that see SOURCE and OUT; then --finish, with the same other flags."""
    finish: Switch = False
    """Check that all parts are there, and make OUT of them."""
    engine: Literal["threads", "ray"] = "threads"
    """Pack with threads of this process, or with tasks of a Ray cluster whose nodes all see SOURCE
    and OUT."""
    address: Optional[str] = None  # noqa: UP045 - as `resize`
    """With --engine ray, the cluster; none: one on this machine, for this command."""
    json: JsonOption = False

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be packed."""
        self._check_place()
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {self.shard_size}")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")
        if self.resize is not None and not 1 <= self.resize <= MAX_RESIZE:
            raise ValueError(f"resize must be 1 to {MAX_RESIZE:,} pixels, got {self.resize}")
        if self.val_share is not None and not 0 < self.val_share < 1:
            raise ValueError(f"val_share must be above 0 and below 1, got {self.val_share}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.seed and self.val_share is None:
            raise ValueError("seed needs val_share: it says which images are held out")
        columns = (self.csv_path_column, self.csv_label_column, self.csv_split_column)
        if self.csv is None and columns != ("path", "label", None):
            raise ValueError("csv_*_column needs csv: it names a column of that file")
        self._check_encoding()

    @property
    def part_of(self) -> tuple[int, int] | None:
        """(I, N) of `part`; None for all of them."""
        if self.part is None:
            return None
        index, _, num_parts = self.part.partition("/")
        return int(index), int(num_parts)

    def _check_place(self) -> None:
        if self.part is not None:
            found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", self.part)
            if found is None or int(found[1]) >= int(found[2]):
                raise ValueError(f"part must be I/N with I from 0 to N - 1, got {self.part!r}")
            if self.finish or self.engine == "ray":
                raise ValueError("part needs engine 'threads', and no finish: that comes last")
        if self.address is not None and self.engine != "ray":
            raise ValueError("address needs engine 'ray': it names its cluster")

    def _check_encoding(self) -> None:
        if self.encoding == "raw" and self.recode is not None:
            raise ValueError("recode needs encoding 'jpeg': raw pixels are not encoded")
        if self.encoding == "jpeg" and self.resize is not None:
            raise ValueError("resize needs encoding 'raw': JPEG files are stored untouched")
        if self.recode is not None and not 1 <= self.recode <= 100:
            raise ValueError(f"recode must be a quality of 1 to 100, got {self.recode}")
