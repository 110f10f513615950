"""Resuming: a killed pack goes on with its finished shards and ends in the same bytes.

Kills are real: a child packs and is ended with SIGKILL, at a random moment.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.packing.kills import (
    File,
    identify,
    kill_between,
    leave_partial,
    list_finished,
    start,
    write_jpegs,
)
from tests.packing.sources import (
    contents,
    known_pixels,
    pack,
    write_image,
    write_source,
    zip_folder,
)
from tinyvgg.errors import DatasetError
from tinyvgg.shards.verify import verify_dataset

KEPT = "shards are finished and kept"


def kill_and_resume(source: Path, out: Path, expected: dict[str, bytes], *flags: object) -> int:
    """Kill one pack after some shards; check what the same command makes of them; count those."""
    partial = out.with_name(f"{out.name}.partial")
    number = random.Random(str(flags)).randrange(1, 12)
    kill_between(start(source, out, *flags), partial, number)
    finished = list_finished(partial)
    assert finished

    process = start(source, out, *flags)
    _, errors = process.communicate(timeout=120)

    assert process.returncode == 0, errors.decode()
    assert contents(out) == expected
    assert {name: identify(out / name) for name in finished} == finished
    assert KEPT in errors.decode().replace("\n", " ")
    return len(finished)


@pytest.fixture
def jpegs(tmp_path: Path) -> Path:
    return write_jpegs(tmp_path / "jpegs", train=150, val=30)


@pytest.mark.slow
@pytest.mark.parametrize(("encoding", "in_zip"), [("raw", False), ("raw", True), ("jpeg", False)])
def test_a_killed_pack_ends_in_the_same_bytes_and_redoes_no_finished_shard(
    jpegs: Path, out: Path, encoding: str, in_zip: bool
) -> None:
    source = zip_folder(jpegs, out.with_name("x.zip")) if in_zip else jpegs
    pack(source, out.with_name("expected"), shard_size=4, encoding=encoding)
    expected = contents(out.with_name("expected"))

    kill_and_resume(source, out, expected, "--shard-size", 4, "--encoding", encoding)

    assert [path.name for path in out.parent.glob("packed*")] == ["packed"]


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_twenty_packs_killed_at_random_end_in_the_same_bytes(
    jpegs: Path, out: Path, encoding: str
) -> None:
    flags = ("--shard-size", 4, "--encoding", encoding)
    pack(jpegs, out.with_name("expected"), shard_size=4, encoding=encoding)
    expected, draws = contents(out.with_name("expected")), random.Random(0)
    partial, num_kept = out.with_name("packed.partial"), 0

    for _ in range(20):
        kept: dict[str, File] = {}
        for _ in range(3):  # each run is killed, too, and keeps what the one before has finished
            process = start(jpegs, out, *flags)
            while not partial.exists() and process.poll() is None:
                time.sleep(0.001)
            time.sleep(draws.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            if not partial.exists():
                break
            finished = list_finished(partial)
            assert kept.items() <= finished.items()
            kept = finished
        num_kept += bool(kept)
        process = start(jpegs, out, *flags)
        process.communicate(timeout=120)
        assert contents(out) == expected
        assert {name: identify(out / name) for name in kept} == kept
        assert [path.name for path in out.parent.glob("packed*")] == ["packed"]
        shutil.rmtree(out)

    assert num_kept >= 15


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_source(tmp_path / "images", train=60, val=20, size=48)


def test_a_changed_file_is_noticed_and_its_shard_is_packed_again(
    images: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = leave_partial(images, out, 4, **{"shard-size": 3})
    write_image(images / "train/ant/001.png", known_pixels("train", "new", 0, 48))
    pack(images, out.with_name("expected"), shard_size=3)
    caplog.clear()

    pack(images, out, shard_size=3)

    [line] = [line for line in caplog.messages if "changed since" in line]
    kept = len(before) - ("train-00000.npy" in before)
    assert f"packed.partial was begun: {kept} of its shards hold the same files and are k" in line
    assert contents(out) == contents(out.with_name("expected"))


@pytest.mark.parametrize("change", ["first", "last", "removed"])
def test_files_that_come_and_go_are_noticed_and_shards_that_move_are_packed_again(
    images: Path, out: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    leave_partial(images, out, 4, **{"shard-size": 3})
    if change == "removed":
        (images / "train/ant/004.png").unlink()
    else:
        name = "val/cat/999.png" if change == "last" else "train/ant/!.png"
        write_image(images / name, known_pixels("train", "new", 0, 48))
    pack(images, out.with_name("expected"), shard_size=3)
    caplog.clear()

    pack(images, out, shard_size=3)

    assert len([line for line in caplog.messages if "images: changed since" in line]) == 1
    assert contents(out) == contents(out.with_name("expected"))


def test_a_touched_file_counts_as_changed(images: Path, out: Path) -> None:
    before = leave_partial(images, out, 4, **{"shard-size": 3})
    for path in images.glob("train/*/*"):
        os.utime(path, (0, 0))

    pack(images, out, shard_size=3)

    after = {name: identify(out / name) for name in before if name.startswith("train")}
    assert not after.items() & before.items()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shard_size": 4}, "--shard-size 3, now it is 4"),
        ({"shard_size": 3, "resize": 16}, "--resize none, now it is 16"),
        ({"shard_size": 3, "encoding": "jpeg", "recode": 90}, "--encoding raw, now it is jpeg"),
    ],
)
def test_under_other_options_packing_starts_over_and_says_so(
    images: Path,
    out: Path,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, int],
    words: str,
) -> None:
    leave_partial(images, out, 4, **{"shard-size": 3})
    pack(images, out.with_name("expected"), **options)
    caplog.clear()

    pack(images, out, **options)

    assert f"packed.partial: begun with {words}, so packing starts over" in caplog.messages[0]
    assert contents(out) == contents(out.with_name("expected"))


@pytest.mark.parametrize("damage", ["cut", "header", "label", "gone", "torn line", "no journal"])
def test_a_damaged_leftover_is_packed_again(images: Path, out: Path, damage: str) -> None:
    before = leave_partial(images, out, 4, **{"shard-size": 3})
    name = sorted(before)[0]
    path = out.with_name("packed.partial") / name
    labels = path.with_name(name.replace(".npy", ".labels.npy"))
    journal = path.with_name("journal") / "whole.jsonl"
    if damage == "cut":
        os.truncate(path, 5_000)
    elif damage == "header":
        path.write_bytes(b"x" + path.read_bytes()[1:])
    elif damage == "label":
        labels.write_bytes(labels.read_bytes()[:-1] + b"x")
    elif damage == "gone":
        labels.unlink()
    elif damage == "torn line":
        os.truncate(journal, journal.stat().st_size - 7)
    else:
        shutil.rmtree(journal.parent)
    pack(images, out.with_name("expected"), shard_size=3)

    pack(images, out, shard_size=3)

    assert contents(out) == contents(out.with_name("expected"))
    assert verify_dataset(out) == []


def test_files_that_were_replaced_once_are_compared_by_their_digest(
    images: Path, out: Path
) -> None:
    """The journal names two keys of a shard; the file is that of neither."""
    before = leave_partial(images, out, 4, **{"shard-size": 3})
    partial = out.with_name("packed.partial")
    name = sorted(before)[0]
    begun = {"kind": "begun", "shard": name.removesuffix(".npy"), "key": "0" * 64}
    with (partial / "journal/whole.jsonl").open("a") as file:
        file.write(json.dumps(begun) + "\n")
    data = bytearray((partial / name).read_bytes())
    data[-1] ^= 1
    (partial / name).write_bytes(data)

    pack(images, out, shard_size=3)

    assert verify_dataset(out) == []


def test_bad_files_are_known_to_the_next_run_and_skipped(
    images: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (images / "train/ant/000.png").write_bytes(b"no image")
    pack(images, out.with_name("expected"), shard_size=3, on_bad="skip")
    leave_partial(images, out, 20, **{"shard-size": 3, "on-bad": "skip"})

    pack(images, out, shard_size=3, on_bad="skip")

    assert contents(out) == contents(out.with_name("expected"))


def test_after_a_bad_image_nothing_stays_of_a_resumed_pack(images: Path, out: Path) -> None:
    (images / "val/cat/019.png").write_bytes(b"no image")
    leave_partial(images, out, 4, **{"shard-size": 3})

    with pytest.raises(DatasetError, match="1 bad files"):
        pack(images, out, shard_size=3)

    assert list(out.parent.iterdir()) == []


def test_a_mistyped_source_leaves_finished_shards_alone(images: Path, out: Path) -> None:
    before = leave_partial(images, out, 4, **{"shard-size": 3})

    with pytest.raises(DatasetError, match="no such folder"):
        pack(images.with_name("imges"), out, shard_size=3)

    assert list_finished(out.with_name("packed.partial")) == before
