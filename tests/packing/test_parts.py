"""Parts: packed in any order, twice or killed, in many processes, they give the same bytes."""

import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.packing.kills import identify, list_finished, start, write_jpegs
from tests.packing.sources import (
    CLASSES,
    contents,
    known_pixels,
    pack,
    spoil,
    write_image,
    write_source,
    zip_folder,
)
from tinyvgg.errors import DatasetError
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.locking import hold_lock
from tinyvgg.packing.pack import PackedPart, pack_part
from tinyvgg.shards.verify import verify_dataset


def pack_one(source: Path, out: Path, part: str, **options: Any) -> PackedPart:
    config = PackConfig(source, out, part=part, **options)
    return pack_part(config, lambda split, count: lambda num: None)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_parts_in_any_order_give_the_bytes_of_one_process(
    tmp_path: Path, out: Path, order: tuple[int, ...], encoding: str
) -> None:
    source = write_jpegs(tmp_path / "jpegs", train=20, val=9)
    options: dict[str, Any] = {"shard_size": 3, "encoding": encoding}
    pack(source, out.with_name("expected"), **options)

    parts = [pack_one(source, out, f"{index}/3", **options) for index in order]
    pack(source, out, finish=True, **options)

    assert sorted(part.num_shards for part in parts) == [6, 7, 7]
    assert sum(part.num_images for part in parts) == 58
    assert contents(out) == contents(out.with_name("expected"))
    assert sorted(path.name for path in out.parent.iterdir()) == ["expected", "packed"]


def test_a_part_that_is_packed_twice_redoes_nothing(source: Path, out: Path) -> None:
    pack_one(source, out, "1/2", shard_size=2)
    before = list_finished(out.with_name("packed.partial"))

    pack_one(source, out, "1/2", shard_size=2)
    pack_one(source, out, "0/2", shard_size=2)
    pack(source, out, shard_size=2, finish=True)

    assert len(before) == 5
    assert {name: identify(out / name) for name in before} == before


def test_more_parts_than_shards_are_no_obstacle(source: Path, out: Path) -> None:
    pack(source, out.with_name("expected"))

    shards = [pack_one(source, out, f"{index}/5").num_shards for index in range(5)]
    pack(source, out, finish=True)

    assert shards == [1, 1, 0, 0, 0]
    assert contents(out) == contents(out.with_name("expected"))


def kill_parts(source: Path, out: Path, draws: random.Random, *flags: object) -> int:
    """Start three parts at once, kill each at random, run each again; return the shards kept."""
    partial = out.with_name("packed.partial")
    processes = [start(source, out, "--part", f"{index}/3", *flags) for index in range(3)]
    number = draws.randrange(1, 30)
    while any(process.poll() is None for process in processes):
        journals = partial.glob("journal/*.jsonl")
        if sum(path.read_bytes().count(b'"finished"') for path in journals) >= number:
            break
        time.sleep(0.005)
    for process in processes:
        time.sleep(draws.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    kept = list_finished(partial) if partial.exists() else {}
    for index in draws.sample(range(3), 3):
        process = start(source, out, "--part", f"{index}/3", *flags)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    process = start(source, out, "--finish", *flags)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert {name: identify(out / name) for name in kept} == kept
    assert [path.name for path in out.parent.glob("packed*")] == ["packed"]
    return len(kept)


@pytest.mark.slow
def test_parts_at_once_that_are_killed_end_in_the_same_bytes(tmp_path: Path, out: Path) -> None:
    source = write_jpegs(tmp_path / "jpegs", train=100, val=30)
    pack(source, out.with_name("expected"), shard_size=4)

    assert kill_parts(source, out, random.Random(1), "--shard-size", 4) > 0
    assert contents(out) == contents(out.with_name("expected"))


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_twenty_packs_by_parts_killed_at_random_end_in_the_same_bytes(
    tmp_path: Path, out: Path, encoding: str
) -> None:
    source = write_jpegs(tmp_path / "jpegs", train=150, val=30)
    pack(source, out.with_name("expected"), shard_size=4, encoding=encoding)
    expected, draws, num_kept = contents(out.with_name("expected")), random.Random(0), 0

    for _ in range(20):
        flags = ("--shard-size", 4, "--encoding", encoding)
        num_kept += kill_parts(source, out, draws, *flags) > 0
        assert contents(out) == expected
        shutil.rmtree(out)

    assert num_kept >= 10


def test_the_image_size_is_that_of_the_whole_set_in_every_part(tmp_path: Path, out: Path) -> None:
    source = write_source(tmp_path / "source", train=30, val=4)
    for path in sorted(source.glob("train/ant/*"))[:20]:  # most of the first part
        write_image(path, known_pixels("train", "odd", 0, size=9))

    for index in range(6):
        pack_one(source, out, f"{index}/6", shard_size=17, on_bad="skip")
    manifest = pack(source, out, shard_size=17, on_bad="skip", finish=True)

    assert manifest.image.height == 8
    assert len(manifest.splits.train.skipped) == 20


def test_a_part_that_meets_a_bad_file_names_it_and_leaves_other_parts_alone(
    source: Path, out: Path
) -> None:
    good = (source / "train/bee/003.png").read_bytes()
    spoil(source)
    with pytest.raises(DatasetError, match="source, part 0/2: 3 bad files; mend") as caught:
        pack_one(source, out, "0/2", shard_size=4)
    assert "\n  train/ant/000.png: 0 bytes, expected an image" in str(caught.value)
    assert "train/bee/003.png" in str(caught.value) or "train/cat/004" in str(caught.value)
    before = list_finished(out.with_name("packed.partial"))
    with contextlib.suppress(DatasetError):
        pack_one(source, out, "1/2", shard_size=4)
    assert before.items() <= list_finished(out.with_name("packed.partial")).items()

    with pytest.raises(DatasetError, match="source: 4 bad files; mend or remove"):
        pack(source, out, shard_size=4, finish=True)

    shutil.rmtree(source)
    write_source(source)  # all are mended
    assert (source / "train/bee/003.png").read_bytes() == good
    with pytest.raises(DatasetError, match="shards are damaged, or of files that changed"):
        pack(source, out, shard_size=4, finish=True)
    for index in range(2):
        pack_one(source, out, f"{index}/2", shard_size=4)
    pack(source, out, shard_size=4, finish=True)
    pack(source, out.with_name("expected"), shard_size=4)
    assert contents(out) == contents(out.with_name("expected"))


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
@pytest.mark.parametrize("is_repeated", [False, True])
def test_finish_packs_the_shards_again_that_bad_files_move(
    tmp_path: Path, out: Path, encoding: str, is_repeated: bool
) -> None:
    source = write_jpegs(tmp_path / "jpegs", train=20, val=9)
    for name in ("train/ant/011.jpg", "train/bee/002.jpg", "val/bee/008.jpg"):
        (source / name).write_bytes(b"\xff\xd8 no image")
    options: dict[str, Any] = {"shard_size": 3, "encoding": encoding, "on_bad": "skip"}
    pack(source, out.with_name("expected"), **options)

    found = [pack_one(source, out, f"{index}/3", **options).bad_files for index in range(3)]
    if is_repeated:  # now that all are known, parts pack the shards that move
        for index in range(3):
            pack_one(source, out, f"{index}/3", **options)
    before = list_finished(out.with_name("packed.partial"))
    pack(source, out, finish=True, **options)

    assert sorted(path for part in found for path, _ in part) == [
        "train/ant/011.jpg", "train/bee/002.jpg", "val/bee/008.jpg"
    ]  # fmt: skip
    assert contents(out) == contents(out.with_name("expected"))
    kept = {
        name
        for name, file in before.items()
        if (out / name).exists() and identify(out / name) == file
    }
    num_shards = len(list(out.glob("*.labels.npy")))
    assert len(kept) == num_shards if is_repeated else len(kept) >= 3 + 5


def test_finish_names_the_parts_that_are_missing(source: Path, out: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"packed\.partial: no such folder; pack the parts first"
    ):
        pack(source, out, finish=True)
    pack_one(source, out, "1/4", shard_size=2)
    pack_one(source, out, "2/4", shard_size=2)

    with pytest.raises(DatasetError) as caught:
        pack(source, out, shard_size=2, finish=True)

    assert "5 of 11 shards are not packed yet (train-00000, train-00003, train-0" in str(
        caught.value
    )
    assert str(caught.value).endswith("; run --part 0/4, --part 3/4")
    assert not out.exists()


def test_a_part_of_other_options_is_refused(source: Path, out: Path) -> None:
    pack_one(source, out, "0/2", shard_size=2)
    before = list_finished(out.with_name("packed.partial"))

    words = "begun with --shard-size 2, now it is 3; give all parts and --finish the same, or"
    with pytest.raises(DatasetError, match=words):
        pack_one(source, out, "1/2", shard_size=3)
    with pytest.raises(DatasetError, match=words):
        pack(source, out, shard_size=3, finish=True)

    assert list_finished(out.with_name("packed.partial")) == before


def test_a_whole_pack_takes_over_what_parts_have_finished(source: Path, out: Path) -> None:
    pack(source, out.with_name("expected"), shard_size=2)
    pack_one(source, out, "1/4", shard_size=2)
    before = list_finished(out.with_name("packed.partial"))

    pack(source, out, shard_size=2)

    assert contents(out) == contents(out.with_name("expected"))
    assert {name: identify(out / name) for name in before} == before


@pytest.mark.parametrize("fault", ["bad image", "other options"])
def test_a_whole_pack_that_fails_leaves_what_parts_have_packed(
    source: Path, out: Path, fault: str
) -> None:
    pack_one(source, out, "0/2", shard_size=2)
    before = list_finished(out.with_name("packed.partial"))
    if fault == "bad image":  # of the other part
        (source / "val/bee/001.png").write_bytes(b"no image")

    with pytest.raises(DatasetError, match=r"1 bad files|begun with --shard-size 2, now it is 3"):
        pack(source, out, shard_size=2 if fault == "bad image" else 3)

    assert before.items() <= list_finished(out.with_name("packed.partial")).items()


def test_nobody_makes_out_while_a_part_is_packed(source: Path, out: Path) -> None:
    pack_one(source, out, "0/2", shard_size=2)
    lock = out.with_name("packed.partial") / "journal/part-1-of-2"

    with hold_lock(lock, "tinyvgg pack --part 1/2"):
        for finish in (False, True):
            with pytest.raises(DatasetError, match=rf"--part 1/2' .* \(process {os.getpid()} on"):
                pack(source, out, shard_size=2, finish=finish)
        with pytest.raises(DatasetError, match="another 'tinyvgg pack --part 1/2' is writing it"):
            pack_one(source, out, "1/2", shard_size=2)

    pack_one(source, out, "1/2", shard_size=2)
    pack(source, out, shard_size=2, finish=True)
    assert verify_dataset(out) == []


def test_the_old_out_stays_until_finish(source: Path, out: Path) -> None:
    pack(source, out, shard_size=9)
    before = contents(out)
    with pytest.raises(DatasetError, match="exists already; pass --overwrite"):
        pack_one(source, out, "0/1", shard_size=2)

    pack_one(source, out, "0/1", shard_size=2, overwrite=True)
    assert contents(out) == before
    pack(source, out, shard_size=2, overwrite=True, finish=True)

    assert len(list(out.glob("train-*.labels.npy"))) == 5 * len(CLASSES) // 2 + 1
    assert [path.name for path in out.parent.iterdir()] == ["packed"]


def test_parts_of_a_zip(source: Path, out: Path) -> None:
    archive = zip_folder(source, out.with_name("x.zip"))
    pack(source, out.with_name("expected"), shard_size=2)

    for index in range(2):
        pack_one(archive, out, f"{index}/2", shard_size=2)
        os.utime(archive, (index, index))  # a copy on another machine
    pack(archive, out, shard_size=2, finish=True)

    assert contents(out) == contents(out.with_name("expected"))


@pytest.mark.parametrize("part", ["3/3", "-1/3", "1", "a/b", "0/0", "1/3 ", "٣/٤"])
def test_a_part_that_is_none_is_refused(source: Path, out: Path, part: str) -> None:
    with pytest.raises(ValueError, match="part must be I/N with I from 0 to N - 1, got"):
        PackConfig(source, out, part=part)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "0/2", "finish": True}, "part needs engine 'threads', and no finish"),
        ({"part": "0/2", "engine": "ray"}, "part needs engine 'threads', and no finish"),
        ({"address": "auto"}, "address needs engine 'ray'"),
    ],
)
def test_options_of_places_that_contradict_each_other_are_refused(
    source: Path, out: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PackConfig(source, out, **options)
