"""Pack: class folders or a zip to a folder of uint8 shards, each image decoded once.

From: `folders` (sorted paths and labels) and `tasks` (which images make a shard).
To:   `partial`, which has the shards written; `loading` opens what they become.

Promises: the bytes depend on the images alone, not on threads, processes, machines or kills; OUT
appears by one rename, complete, or not at all. What is finished of a killed pack stays in
OUT.partial for the same command; after a bad image nothing stays.

`pack_images` makes OUT: of all shards, or with `--finish` of those that parts packed; `pack_part`
packs one of N parts into OUT.partial.
"""

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyvgg.errors import DatasetError, bad_files_text
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.csv_list import CsvList
from tinyvgg.packing.equal_files import list_equal_files
from tinyvgg.packing.folders import ImageSource, SourceImage, list_images, show_path
from tinyvgg.packing.holdout import Holdout
from tinyvgg.packing.journal import JOURNAL
from tinyvgg.packing.locking import hold_lock
from tinyvgg.packing.out_folder import (
    check_beside,
    check_out,
    name_partial,
    name_written,
    publish,
    resolve_out,
)
from tinyvgg.packing.partial import PartialPack, StartSplit, num_cores
from tinyvgg.packing.parts import check_parts, hold_part, name_part, refuse_running_parts
from tinyvgg.packing.ray_tasks import check_ray
from tinyvgg.packing.records import make_manifest
from tinyvgg.packing.sizes import find_image_format
from tinyvgg.packing.tasks import ShardTask
from tinyvgg.shards.manifest import (
    SPLITS,
    AnyFormat,
    ImageFormat,
    JpegFormat,
    Manifest,
)
from tinyvgg.shards.store import write_manifest

COMMAND = "tinyvgg pack"
WAIT_SEC = 20  # of a part, for others that begin or for a `--finish`

logger = logging.getLogger("tinyvgg")


@dataclass(frozen=True)
class PackedPart:
    """What `pack_part` did.

    Attributes:
        folder: OUT.partial.
        part: "2/4".
        num_shards: of the part; all are finished, save those with bad files.
        num_images: in them.
        bad_files: paths and reasons, under `--on-bad skip`.
    """

    folder: Path
    part: str
    num_shards: int
    num_images: int
    bad_files: list[tuple[str, str]]


def pack_images(config: PackConfig, start_split: StartSplit) -> Manifest:
    """Pack a source into a new folder and return the manifest.

    Args:
        config: what to pack, where to and how; with `finish`, of shards that parts packed.
        start_split: called with the name of a split and its number of images; returns what is
            then called, from several threads, with numbers of images done.

    Returns:
        The manifest that was written into OUT.

    Raises:
        DatasetError: the source or OUT cannot be used as they are, or parts are missing; after a
            bad image nothing is left behind, but what parts packed.
        OSError: the disk cannot be written; finished shards stay for the same command.
        KeyboardInterrupt: so do they after a signal.
    """
    if config.engine == "ray":
        check_ray()
    out = resolve_out(config.out)
    check_beside(config.out, out)
    with hold_lock(out, COMMAND), contextlib.ExitStack() as stack:
        check_out(config.out, out, overwrite=config.overwrite)
        partial = name_partial(out)
        refuse_running_parts(partial)
        source = _open_source(config, out, stack)
        image = _find_format(config, source)
        if config.finish and not partial.exists():
            raise DatasetError(f"{partial}: no such folder; pack the parts first, with --part I/N")
        with _removing_what_is_of_no_use(partial) as packs:
            partial.mkdir(parents=True, exist_ok=True)
            pack = PartialPack(partial, config, source, image, start_split, "whole")
            packs.append(pack)
            tasks = _pack_all(pack, out)
            manifest = write_manifest(partial, make_manifest(pack, tasks))
            publish(partial, out)
        _warn_of_equal(pack, tasks)
    return manifest


@contextlib.contextmanager
def _removing_what_is_of_no_use(partial: Path) -> Iterator[list[PartialPack]]:
    """Remove OUT.partial on an error, unless shards in it are finished and no image is bad.

    What parts have packed stays in any case.
    """
    packs: list[PartialPack] = []
    try:
        yield packs
    except BaseException as error:
        is_used = any((partial / JOURNAL).glob("*.jsonl"))
        for pack in packs:
            is_bad = isinstance(error, DatasetError) and any(pack.bad_files.values())
            is_used = pack.journal.has_parts or (bool(pack.journal.lines) and not is_bad)
        if not is_used:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def pack_part(config: PackConfig, start_split: StartSplit) -> PackedPart:
    """Pack one of N parts of the shards into OUT.partial; what others packed stays as it is.

    Args:
        config: with `part`.
        start_split: as for `pack_images`, with the images of this part.

    Returns:
        What was done.

    Raises:
        DatasetError: the source or OUT cannot be used as they are, or OUT.partial is of other
            options; or, under `--on-bad fail`, an image of the part is bad.
        OSError: the disk cannot be written; finished shards stay.
    """
    assert config.part_of is not None
    index, num_parts = config.part_of
    out = resolve_out(config.out)
    check_beside(config.out, out)
    partial = name_partial(out)
    with contextlib.ExitStack() as stack:
        source = _open_source(config, out, stack)
        image = _find_format(config, source)
        with hold_lock(out, COMMAND, WAIT_SEC, keep_file=True):
            check_out(config.out, out, overwrite=config.overwrite)
            partial.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold_part(partial, index, num_parts))
            writer = name_part(index, num_parts)
            pack = PartialPack(partial, config, source, image, start_split, writer)
            _refuse_other_options(pack)
            pack.journal.begin(pack.header)
        if config.on_bad == "skip":
            pack.take_known_bad()
        tasks = pack.plan_part(index, num_parts)
        others = pack.find_finished(tasks)
        pack.say_resumed(len(tasks), others)
        with pack.saying_what_stays(len(tasks)):
            found = pack.write(tasks)
    bad_files = [(show_path(p), reason) for split in SPLITS for p, reason in found[split].items()]
    if bad_files and config.on_bad == "fail":
        remedy = (
            "mend or remove them and pack the part again, or pass --on-bad skip to all parts and "
            "to --finish"
        )
        title = f"{source.name}, part {config.part}"
        raise DatasetError(bad_files_text(title, bad_files, remedy))
    num_images = sum(len(task.images) for task in tasks)
    return PackedPart(partial, str(config.part), len(tasks), num_images, bad_files)


def describe_part(part: PackedPart) -> str:
    """Return one line for a packed part: what is there and what comes next."""
    num_bad = len(part.bad_files)
    bad = f"; {num_bad:,} bad files, whose shards --finish packs without them" if num_bad else ""
    return (
        f"{part.folder}: part {part.part} is packed, {part.num_shards:,} shards of "
        f"{part.num_images:,} images{bad}; after all parts: --finish"
    )


def _open_source(config: PackConfig, out: Path, stack: contextlib.ExitStack) -> ImageSource:
    """List the source, open until the stack ends."""
    # Pillow warns of odd EXIF or palettes; only the pixels matter. Here, once, because
    # filters belong to the process and decode threads would restore each other's.
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    holdout = None if config.val_share is None else Holdout(config.val_share, config.seed)
    csv_list = None
    if config.csv is not None:
        columns = config.csv_path_column, config.csv_label_column, config.csv_split_column
        csv_list = CsvList(config.csv, *columns)
    source = list_images(config.source, holdout, csv_list, name_written(out))
    stack.callback(source.tree.close)
    return source


def _find_format(config: PackConfig, source: ImageSource) -> AnyFormat:
    """Return what images become; every part finds the same."""
    if config.encoding == "jpeg":
        return JpegFormat()
    return find_image_format(source, config.resize, config.workers or num_cores())


def _pack_all(pack: PartialPack, out: Path) -> list[ShardTask]:
    """Have all shards finished; return their tasks.

    Under `--on-bad skip` those are of the images that are left.
    """
    config = pack.config
    _prepare(pack)
    is_first = True
    while True:
        _check_left(pack)
        tasks = pack.plan()
        others = pack.find_finished(tasks)
        if is_first:
            if not config.finish:
                pack.say_resumed(len(tasks), others)
            pack.journal.remove_strays(pack.name_files(tasks))
            _check_space(out, pack.list_todo(tasks), pack.image)
            is_first = False
        with pack.saying_what_stays(len(tasks)):
            found = pack.write(tasks)
        for split in SPLITS:
            pack.bad_files[split] |= found[split]
        if not any(found.values()):
            pack.journal.remove_strays(pack.name_files(tasks))
            return tasks
        if config.on_bad == "fail":
            bad_files = [file for split in SPLITS for file in pack.list_bad(split)]
            remedy = "mend or remove them, or leave them out with --on-bad skip"
            raise DatasetError(bad_files_text(pack.source.name, bad_files, remedy))


def _prepare(pack: PartialPack) -> None:
    """Take over what is in OUT.partial, or refuse it, or remove it."""
    if pack.journal.has_parts:
        _refuse_other_options(pack)
    elif other := pack.find_other_option():
        logger.warning(
            "%s: begun with %s %s, now it is %s, so packing starts over", pack.folder, *other
        )
        pack.start_over()
    if pack.config.on_bad == "skip":
        pack.take_known_bad()
    if pack.config.finish:
        check_parts(pack)


def _refuse_other_options(pack: PartialPack) -> None:
    if other := pack.find_other_option():
        name, then, now = other
        raise DatasetError(
            f"{pack.folder}: begun with {name} {then}, now it is {now}; give all parts and "
            f"--finish the same, or remove {pack.folder}"
        )


def _check_left(pack: PartialPack) -> None:
    """Refuse to skip all of a class, or most of a split."""
    for split, left in pack.list_left().items():
        images, reasons = pack.source.splits[split], pack.list_bad(split)
        if not reasons:
            continue
        without = {image.label for image in images} - {image.label for image in left}
        if split == "train" and without:
            folders = pack.source.class_folders
            names = ", ".join(show_path(folders[n]) for n in sorted(without)[:3])
            title = f"{pack.source.name}: every train image of {len(without):,} classes is bad"
            raise DatasetError(
                bad_files_text(f"{title} ({names})", reasons, "mend them, or remove the classes")
            )
        if len(left) < len(reasons):
            title = (
                f"{pack.source.name}: {len(reasons):,} of {len(images):,} {split} images are bad"
            )
            raise DatasetError(
                bad_files_text(title, reasons, "so many are not skipped, mend or remove them")
            )


def _check_space(out: Path, todo: Sequence[ShardTask], image: AnyFormat) -> None:
    if not isinstance(image, ImageFormat):
        return
    needed = sum(len(task.images) for task in todo) * (image.num_bytes + 8)
    parent = next(folder for folder in out.parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise DatasetError(
            f"{parent}: {free:,} bytes free, packing needs {needed:,}; free some or pack elsewhere"
        )


def _warn_of_equal(pack: PartialPack, tasks: Sequence[ShardTask]) -> None:
    """Count the packed val images whose files are those of train images, byte for byte."""
    images: dict[str, list[SourceImage]] = {}
    digests: dict[str, NDArray[np.uint64]] = {}
    for split in SPLITS:
        own = [task for task in tasks if task.split == split]
        images[split] = [image for task in own for image in task.images]
        digests[split] = np.concatenate([pack.written[task.name].digests for task in own])
    paths = list_equal_files(pack.source, images, digests)
    if paths:
        logger.warning(
            "%s: %s of %s val images are in train too, byte for byte (%s), so scores are not of "
            "new images; remove them from one of the two",
            pack.source.name,
            f"{len(paths):,}",
            f"{len(images['val']):,}",
            ", ".join(map(show_path, paths[:3])) + (", …" if len(paths) > 3 else ""),
        )
