"""Reading files: regular ones of a bounded size; a FIFO or a device never makes anybody wait."""

import errno
import os
import socket
from pathlib import Path

import pytest

from tinyvgg.regular import is_of_the_file, read_regular_file


@pytest.mark.parametrize("num_bytes", [0, 1, 65_535, 65_536, 65_537, 1_000_000])
def test_a_file_is_read_whole(tmp_path: Path, num_bytes: int) -> None:
    data = os.urandom(num_bytes)
    (tmp_path / "file").write_bytes(data)

    assert read_regular_file(tmp_path / "file", num_bytes) == data
    assert read_regular_file(str(tmp_path / "file"), 2**40) == data


def test_a_file_beyond_the_bound_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(2**40)

    with pytest.raises(OSError, match=r"1,099,511,627,776 bytes, expected at most 9") as caught:
        read_regular_file(tmp_path / "file", 9)

    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "file"))


def test_what_is_no_regular_file_is_an_error_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    paths = [*tmp_path.iterdir(), Path("/dev/zero"), tmp_path / "missing"]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))

        for path in [*paths, tmp_path / "socket"]:
            with pytest.raises(OSError) as caught:  # noqa: PT011 - asserted below
                read_regular_file(path, 2**20)
            assert caught.value.filename == str(path)
            assert is_of_the_file(caught.value), path


@pytest.mark.parametrize(
    "code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM]
)
def test_a_fault_of_the_machine_is_not_of_the_file(code: int) -> None:
    assert not is_of_the_file(OSError(code, os.strerror(code)))
