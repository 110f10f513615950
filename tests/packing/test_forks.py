"""Forked processes encode what threads do: the same bytes and errors, and none is left."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.packing.kills import write_jpegs
from tests.packing.sources import assert_nothing_left, contents, pack, write_image, zip_folder
from tinyvgg.errors import DatasetError
from tinyvgg.packing import forks
from tinyvgg.packing.encoders import Block
from tinyvgg.packing.folders import SourceImage

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="processes are forked on Linux only"
)

FORKED_PACK = (
    "import sys; from tinyvgg.packing import forks; forks.IMAGES_EACH = 1; "
    "from tinyvgg.cli import main; sys.exit(main())"
)


@pytest.fixture
def jpegs(tmp_path: Path) -> Path:
    """Plain JPEG files, gray and progressive ones among them."""
    root = write_jpegs(tmp_path / "jpegs", train=150, val=30)
    pixels = np.asarray(Image.open(root / "train/ant/001.jpg"))
    Image.fromarray(pixels[..., 0]).save(root / "train/ant/001.jpg")
    Image.fromarray(pixels).save(root / "train/bee/001.jpg", progressive=True)
    return root


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Fork for any set; of every block that is asked for, whether a process encoded it."""
    monkeypatch.setattr(forks, "IMAGES_EACH", 1)
    forked: list[bool] = []
    ask = forks._Process.encode

    def note(self: forks._Process, rows: Sequence[SourceImage], place: int) -> Block | None:
        block = ask(self, rows, place)
        forked.append(block is not None)
        return block

    monkeypatch.setattr(forks._Process, "encode", note)
    return forked


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
@pytest.mark.parametrize("in_zip", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_processes_and_threads_give_the_same_bytes(
    jpegs: Path, out: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, in_zip: bool,
    workers: int, blocks: list[bool],
) -> None:  # fmt: skip
    source = zip_folder(jpegs, out.with_name("x.zip")) if in_zip else jpegs
    given = {"shard_size": 100, "encoding": encoding}
    with monkeypatch.context() as without:
        without.setattr(forks, "IMAGES_EACH", 10**9)
        pack(source, out.with_name("expected"), **given)
    assert blocks == []

    pack(source, out, workers=workers, **given)

    assert contents(out) == contents(out.with_name("expected"))
    assert blocks
    assert all(blocks)


def test_images_of_other_kinds_are_left_to_the_threads(
    jpegs: Path, out: Path, blocks: list[bool]
) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (32, 32, 3), np.uint8)
    (jpegs / "train/ant/000.jpg").unlink()
    write_image(jpegs / "train/ant/000.png", pixels)

    pack(jpegs, out, shard_size=100)

    assert sorted(blocks) == [False, True, True, True]
    assert np.array_equal(np.load(out / "train-00000.npy")[0], pixels)


def test_a_set_of_other_files_asks_the_processes_a_few_times_only(
    tmp_path: Path, out: Path, blocks: list[bool]
) -> None:
    for number in range(60):
        for split in ("train", "val"):
            for name in ("ant", "bee"):
                image = np.full((8, 8, 3), number, np.uint8)
                write_image(tmp_path / "pngs" / split / name / f"{number}.png", image)

    pack(tmp_path / "pngs", out, shard_size=2, workers=2)

    assert blocks == [False] * 2 * forks.MAX_LEFT


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_a_bad_image_is_named_as_without_processes(
    jpegs: Path, out: Path, encoding: str, blocks: list[bool]
) -> None:
    path = jpegs / "train/bee/007.jpg"
    path.write_bytes(path.read_bytes()[:-200])

    with pytest.raises(DatasetError, match=r"train/bee/007\.jpg: cannot be decoded"):
        pack(jpegs, out, encoding=encoding)

    assert False in blocks
    assert_nothing_left(out)


def test_small_sets_and_scaled_ones_are_packed_by_threads(
    jpegs: Path, out: Path, blocks: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(jpegs, out, resize=16)
    monkeypatch.setattr(forks, "IMAGES_EACH", 361)
    pack(jpegs, out.with_name("other"))

    assert blocks == []


@pytest.mark.parametrize("num_started", [0, 1])
def test_threads_do_what_processes_that_cannot_be_started_would(
    jpegs: Path, out: Path, blocks: list[bool], monkeypatch: pytest.MonkeyPatch, num_started: int
) -> None:
    files = {path.name for path in Path("/proc/self/fd").iterdir()}
    pids: list[int] = []
    fork = os.fork

    def fork_some() -> int:
        if len(pids) == num_started:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        pids.append(fork())
        return pids[-1]

    monkeypatch.setattr(os, "fork", fork_some)
    pack(jpegs, out, workers=3, shard_size=100)

    assert bool(blocks) == bool(num_started)
    assert len(list(out.glob("train-*.npy"))) == 2 * 3
    assert {path.name for path in Path("/proc/self/fd").iterdir()} == files


def test_large_files_and_recoded_ones_are_the_threads(
    jpegs: Path, out: Path, blocks: list[bool]
) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (32, 32, 3), np.uint8)
    write_image(jpegs / "train/ant/zzz.png", pixels)
    large = Image.new("RGB", (1025, 1024), (9, 90, 200))
    large.save(jpegs / "train/bee/zzz.jpg")

    manifest = pack(jpegs, out, encoding="jpeg", recode=95)

    assert blocks.count(False) == 2
    assert manifest.split("train").num_images == 302
    recoded = manifest.split("train").recoded
    assert recoded is not None
    assert [file.path for file in recoded] == ["train/ant/zzz.png"]


def test_bad_files_are_skipped_as_without_processes(
    jpegs: Path, out: Path, blocks: list[bool]
) -> None:
    path = jpegs / "train/bee/007.jpg"
    path.write_bytes(path.read_bytes()[:-200])

    manifest = pack(jpegs, out, on_bad="skip")

    assert manifest.split("train").num_images == 299
    assert False in blocks
    assert True in blocks


def list_children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def is_running(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def start_forked(*words: object) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", FORKED_PACK, "pack", *map(str, words)]
    return subprocess.Popen(  # a job in the background ignores SIGINT
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Enough images to be met while they are packed."""
    root = write_jpegs(tmp_path / "many", train=2, val=2, size=64)
    for name in ("ant", "bee"):
        first = root / "train" / name / "000.jpg"
        for number in range(2, 12_000):
            os.link(first, root / "train" / name / f"{number:05d}.jpg")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_pack(many: Path, out: Path, number: signal.Signals) -> None:
    process = start_forked(many, out, "--workers", 2)
    wait_until(lambda: len(list_children(process.pid)) == 2)
    children = list_children(process.pid)

    os.killpg(process.pid, number) if number != signal.SIGKILL else process.kill()
    _, errors = process.communicate(timeout=60)

    assert process.returncode
    assert b"Traceback" not in errors
    wait_until(lambda: not any(map(is_running, children)))


@pytest.mark.slow
def test_what_a_killed_process_had_to_do_is_done_by_a_thread(many: Path, out: Path) -> None:
    pack(many, out.with_name("expected"), workers=2)
    process = start_forked(many, out, "--workers", 2)
    wait_until(lambda: list_children(process.pid))

    os.kill(list_children(process.pid)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)

    assert process.returncode == 0
    assert b"a decoding process of pack ended with status -9" in errors.replace(b"\n", b" ")
    assert contents(out) == contents(out.with_name("expected"))
