"""OUT: nothing that is not ours is replaced, and nothing half-written is left behind.

Kills are real: a child packs and is ended with SIGKILL, at a random moment or right before the
n-th time it is about to change the file system.
"""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.packing.kills import identify, list_finished
from tests.packing.sources import (
    assert_nothing_left,
    contents,
    pack,
    spoil,
    write_source,
)
from tinyvgg.errors import DatasetError, ShardError
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images
from tinyvgg.shards.store import open_dataset
from tinyvgg.shards.verify import verify_dataset


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
def test_an_interrupt_does_not_hang_and_leaves_finished_shards_alone(
    source: Path, out: Path, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt(num_done: int) -> None:
        raise KeyboardInterrupt

    def start_split(split: str, num_images: int) -> Callable[[int], None]:
        if split == when:
            raise KeyboardInterrupt
        return interrupt if when == "advance" else lambda num_done: None

    with pytest.raises(KeyboardInterrupt):
        pack_images(PackConfig(source, out, shard_size=1), start_split)

    if when == "val" and list(out.parent.iterdir()):
        assert [path.name for path in out.parent.iterdir()] == ["packed.partial"]
        assert " of 21 shards are finished and stay; the same command goes on" in caplog.text
    else:
        assert_nothing_left(out)
    pack(source, out, shard_size=1)
    assert [path.name for path in out.parent.iterdir()] == ["packed"]
    assert verify_dataset(out) == []


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
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{how} {number} {overwrite}\n")
        return int(process.stdout.readline())

    yield pack_until
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
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
    num_kept = set[int]()

    while pack_until("change", num_changes + 1) != 0:
        num_changes += 1
        assert is_absent_or_complete(out)
        if not out.exists():
            partial = out.with_name("packed.partial")
            kept = list_finished(partial) if partial.exists() else {}
            num_kept.add(len(kept))
            assert pack_until() == 0
            assert {name: identify(out / name) for name in kept} == kept
            assert [path.name for path in out.parent.glob("packed*")] == ["packed"]
        assert contents(out) == expected
        shutil.rmtree(out)

    assert num_changes >= 12
    assert num_kept == {0, 1, 2, 3}


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
        for name in ("packed.partial", "packed.partial-journal"):  # or the next one has less to do
            shutil.rmtree(out.with_name(name), ignore_errors=True)

    assert num_changes >= 15
    assert num_absent >= 1
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
        assert first.stdout is not None
        assert first.stdout.readline() == "train\n"

        with pytest.raises(DatasetError, match=rf"\(process {first.pid} on host .*\); wait"):
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


def test_a_full_disk_keeps_finished_shards_for_the_same_command(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_source(tmp_path / "source", train=40)

    with mounted(tmp_path / "disk", "size=1m") as disk:
        (disk / "other").write_bytes(bytes(600_000))
        with pytest.raises(OSError, match="No space left on device"):
            pack(source, disk / "packed", shard_size=1)  # each file takes 4 KiB at least
        assert "shards are finished and stay; the same command goes on" in caplog.messages[-1]
        lines = (disk / "packed.partial/journal/whole.jsonl").read_text().splitlines()
        finished = {line["shard"] for line in map(json.loads, lines) if line["kind"] == "finished"}
        before = {
            path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in disk.glob("packed.partial/*.npy")
            if path.name.partition(".")[0] in finished  # the journal may be what was full
        }
        assert len(before) == 2 * len(finished) > 40

        (disk / "other").unlink()
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        pack(source, disk / "packed", shard_size=1)

        after = {
            path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in disk.glob("packed/*.npy")
        }
        assert before.items() <= after.items()
        assert sorted(path.name for path in disk.iterdir()) == ["packed"]
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
