"""Locking: one writer of an OUT, on file systems with and without `flock`."""

import errno
import fcntl
import multiprocessing
import os
import platform
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyvgg.errors import DatasetError
from tinyvgg.packing.locking import NO_FLOCK, hold_lock

SECOND_WRITER = (
    rf"packed: another 'tinyvgg pack' is writing it \(process {os.getpid()} on host "
    rf"{re.escape(platform.node())}\); wait for it"
)


@pytest.fixture(params=[None, *sorted(NO_FLOCK)], ids=lambda code: errno.errorcode.get(code, "ok"))
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `flock` answer as the kernel does where a file system lacks it."""
    if request.param is not None:
        monkeypatch.setattr(fcntl, "flock", refuse(request.param))


def refuse(code: int) -> Callable[[object, int], None]:
    def flock(descriptor: object, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    return flock


@pytest.mark.usefixtures("file_system")
def test_one_writer_at_a_time_and_nothing_is_left(tmp_path: Path) -> None:
    out = tmp_path / "packed"

    for _ in range(2):
        with hold_lock(out, "tinyvgg pack"):
            with pytest.raises(DatasetError, match=SECOND_WRITER), hold_lock(out, "tinyvgg pack"):
                raise AssertionError("two hold it")
            with hold_lock(tmp_path / "other", "tinyvgg pack"):
                pass
        assert list(tmp_path.iterdir()) == []


def test_a_lock_is_waited_for_as_long_as_is_said(tmp_path: Path) -> None:
    out, held, done = tmp_path / "packed", threading.Event(), threading.Event()

    def hold() -> None:
        with hold_lock(out, "tinyvgg pack", keep_file=True):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    with pytest.raises(DatasetError, match=SECOND_WRITER), hold_lock(out, "tinyvgg pack", 0.2):
        raise AssertionError("two hold it")
    threading.Timer(0.2, done.set).start()

    with hold_lock(out, "tinyvgg pack", 60):
        assert done.is_set()
    thread.join()


def hold_until_killed(out: Path, code: int) -> None:
    fcntl.flock = refuse(code)
    with hold_lock(out, "tinyvgg pack"):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_the_marker_of_a_killed_process_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    out = tmp_path / "packed"
    process = multiprocessing.get_context("spawn").Process(
        target=hold_until_killed, args=(out, code)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) != []
    monkeypatch.setattr(fcntl, "flock", refuse(code))

    with hold_lock(out, "tinyvgg pack"):
        pass

    assert list(tmp_path.iterdir()) == []


def test_the_marker_of_another_host_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EOPNOTSUPP))
    marker = tmp_path / "packed.marker.lock"
    marker.write_text("1\nanother-host\n")

    with (
        pytest.raises(DatasetError, match=rf"or remove {marker} if no process writes any more$"),
        hold_lock(tmp_path / "packed", "tinyvgg pack"),
    ):
        raise AssertionError("taken over")


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_failing_disk_is_no_missing_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(code))

    with (
        pytest.raises(OSError, match=os.strerror(code)),
        hold_lock(tmp_path / "packed", "tinyvgg pack"),
    ):
        raise AssertionError("held")
