"""Packing what is odd: sizes that differ, faults of the machine, files that are none, signals."""

import errno
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.packing.sources import (
    assert_nothing_left,
    contents,
    known_pixels,
    pack,
    write_image,
    write_source,
)
from tinyvgg.errors import DatasetError
from tinyvgg.packing import encoders
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.trees import MAX_FILE_BYTES
from tinyvgg.shards.store import open_dataset
from tinyvgg.shards.verify import verify_dataset


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source", train=30, val=4)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "outs").mkdir()
    return tmp_path / "outs/packed"


def test_the_size_is_that_of_most_images_and_not_of_the_first(source: Path, out: Path) -> None:
    write_image(source / "train/ant/!first.png", known_pixels("train", "ant", 99, size=32))

    with pytest.raises(DatasetError, match="1 bad files") as caught:
        pack(source, out)
    assert "train/ant/!first.png: 32x32 pixels, expected 8x8; drop it" in str(caught.value)

    manifest = pack(source, out, on_bad="skip")
    assert (manifest.image.height, manifest.splits.train.num_images) == (8, 90)
    assert [file.path for file in manifest.splits.train.skipped] == ["train/ant/!first.png"]


@pytest.mark.parametrize("num_odd", [1, 20, 44])
def test_a_minority_of_any_extent_is_named_and_skipped(
    source: Path, out: Path, num_odd: int
) -> None:
    paths = sorted(source.glob("train/*/*"), key=lambda path: (path.name, path.parent))
    for path in paths[:num_odd]:
        write_image(path, known_pixels("train", "odd", 0, size=9))

    manifest = pack(source, out, on_bad="skip")

    assert (manifest.image.height, manifest.splits.train.num_images) == (8, 90 - num_odd)
    assert len(manifest.splits.train.skipped) == num_odd


@pytest.mark.parametrize("name", ["ant", "bee", "cat"])
def test_a_class_is_not_skipped_as_a_whole(source: Path, out: Path, name: str) -> None:
    for path in (source / "train" / name).iterdir():
        path.write_bytes(b"")

    with pytest.raises(DatasetError, match=rf"every train image of 1 classes is bad \({name}\): "):
        pack(source, out, on_bad="skip")
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("sizes", [(8, 9), (8, 9, 10), tuple(range(8, 20))])
def test_without_a_size_that_most_have_all_sizes_are_counted(
    source: Path, out: Path, sizes: tuple[int, ...]
) -> None:
    for number, path in enumerate(sorted(source.glob("train/*/*"))):
        size = sizes[number % len(sizes)]
        write_image(path, known_pixels("train", "odd", 0, size=size))

    with pytest.raises(DatasetError, match=rf"train images of {len(sizes)} sizes, .*--resize"):
        pack(source, out, on_bad="skip")

    assert pack(source, out, resize=8).splits.train.num_images == 90


def test_a_split_of_which_most_would_be_skipped_is_refused(source: Path, out: Path) -> None:
    for path in sorted(source.glob("val/*/*"))[:7]:
        path.write_bytes(b"no image")

    with pytest.raises(DatasetError, match="7 of 12 val images are bad: 7 bad files"):
        pack(source, out, on_bad="skip")

    assert_nothing_left(out)


@pytest.mark.parametrize("name", ["EMFILE", "ESTALE", "EIO", "ENOMEM"])
@pytest.mark.parametrize("function", ["open", "read"])
def test_a_fault_of_the_machine_drops_no_image(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, name: str, function: str
) -> None:
    genuine, code = getattr(os, function), getattr(errno, name)

    def fail(target: Any, *rest: int) -> Any:
        """Fail as the kernel does, for one file: `open` knows its path, `read` does not."""
        path = target if function == "open" else Path(f"/proc/self/fd/{target}").readlink()
        if str(path).endswith("train/bee/007.png"):
            raise OSError(code, os.strerror(code), *([target] if function == "open" else []))
        return genuine(target, *rest)

    monkeypatch.setattr(os, function, fail)

    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        pack(source, out, on_bad="skip")

    assert str(caught.value.filename).endswith("train/bee/007.png")
    assert_nothing_left(out)


@pytest.mark.parametrize("kind", ["fifo", "socket path", "loop", "dangling"])
def test_what_is_no_file_under_the_name_of_an_image_is_named(
    source: Path, out: Path, kind: str
) -> None:
    path = source / "train/bee/zzz.png"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(source / "nowhere")
    else:
        path.symlink_to("/dev/zero")

    with pytest.raises(DatasetError, match="1 bad files") as caught:
        pack(source, out)

    assert "\n  train/bee/zzz.png: " in str(caught.value)
    assert pack(source, out, on_bad="skip").splits.train.num_images == 90


def test_a_fifo_is_no_source(tmp_path: Path, out: Path) -> None:
    os.mkfifo(tmp_path / "source.zip")

    with pytest.raises(DatasetError, match="a FIFO, a socket or a device, expected a folder or a"):
        pack(tmp_path / "source.zip", out)


def test_a_fifo_is_no_manifest(source: Path, out: Path) -> None:
    pack(source, out)
    (out / "manifest.json").unlink()
    os.mkfifo(out / "manifest.json")

    with pytest.raises(Exception, match=r"manifest\.json: a FIFO, a socket or a device, expected"):
        open_dataset(out)


@pytest.mark.parametrize("buffer_bytes", [1, 5_000, 100_000])
def test_the_bytes_do_not_depend_on_how_many_images_a_buffer_holds(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, buffer_bytes: int
) -> None:
    source = write_source(tmp_path / "source", train=200, val=4)
    pack(source, out, shard_size=290)
    monkeypatch.setattr(encoders, "BUFFER_BYTES", buffer_bytes)

    pack(source, out.with_name("parts"), shard_size=290, workers=3)

    assert contents(out.with_name("parts")) == contents(out)


def test_large_images_take_an_image_a_thread_and_no_block_of_256(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in range(3):
            pixels = np.full((3000, 4000, 3), 80 * number, np.uint8)
            write_image(tmp_path / f"s/{split}/a/{number}.png", pixels, compress_level=1)
    code = (
        "from pathlib import Path\n"
        "from tinyvgg.packing.config import PackConfig; from tinyvgg.packing.pack import *\n"
        "pack_images(PackConfig(Path('s'), Path('p'), workers=2), lambda *_: lambda n: None)\n"
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    # KiB: 4 buffers of 36 MB, 2 decoders of 10 to 15 bytes a pixel; blocks of 256 took 9 GB each
    assert int(done.stdout) < 1_000_000
    assert verify_dataset(tmp_path / "p") == []


def test_a_member_that_is_in_a_zip_twice_is_named(source: Path, out: Path) -> None:
    path = out.with_name("twice.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(source.rglob("*.png")):
            archive.write(file, file.relative_to(source))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.write(source / "train/bee/000.png", "train/ant/000.png")

    with pytest.raises(DatasetError, match=r"train/ant/000\.png is in it twice"):
        pack(path, out)


def test_a_member_that_inflates_to_gigabytes_is_named_before_it_does(
    source: Path, out: Path
) -> None:
    path = out.with_name("bomb.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(source.rglob("*.png")):
            archive.write(file, file.relative_to(source))
        archive.writestr("train/ant/bomb.png", bytes(MAX_FILE_BYTES + 1))

    with pytest.raises(DatasetError, match="1 bad files") as caught:
        pack(path, out)

    assert "bomb.png: 268,435,457 bytes in the zip, expected at most 268,435,456" in str(
        caught.value
    )


@pytest.mark.parametrize("shard_size", [5_000, 20])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_pack_in_one_line_and_leaves_only_what_the_same_command_goes_on_with(
    tmp_path: Path, out: Path, name: str, shard_size: int
) -> None:
    source = write_source(tmp_path / "source", train=700, size=64)
    words = ["pack", str(source), str(out), "--workers", "1", "--shard-size", str(shard_size)]
    process = subprocess.Popen(  # a job in the background ignores SIGINT, one of nohup SIGHUP
        [sys.executable, "-m", "tinyvgg.cli", *words], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(getattr(signal, name), signal.SIG_DFL),
    )  # fmt: skip
    partial = out.with_name("packed.partial")
    awaited = partial if shard_size == 5_000 else partial / "train-00003.npy"
    while not awaited.exists():
        assert process.poll() is None
        time.sleep(0.001)

    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 128 + getattr(signal, name)
    ending = "interrupted" if name == "SIGINT" else f"ended by {name}"
    assert errors.splitlines()[-1] == f"tinyvgg pack: {ending}"
    assert "Traceback" not in errors
    if shard_size == 5_000:
        assert_nothing_left(out)
        return
    assert [path.name for path in out.parent.iterdir()] == ["packed.partial"]
    assert {path.suffix for path in partial.iterdir()} == {"", ".npy"}  # finished, and the journal
    assert "shards are finished and stay; the same command goes on from" in errors
    before = {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in partial.glob("*.npy")
    }
    pack(source, out, shard_size=20)
    after = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.iterdir()}
    assert before.items() <= after.items()
    assert verify_dataset(out) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 3}, "seed needs val_share"),
        ({"csv_path_column": "file"}, "csv_.*_column needs csv"),
        ({"csv_split_column": "fold"}, "csv_.*_column needs csv"),
        ({"resize": 9_460}, "resize must be 1 to 9,459 pixels, got 9460"),
    ],
)
def test_an_option_that_would_mean_nothing_is_refused(
    source: Path, out: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PackConfig(source, out, **options)
