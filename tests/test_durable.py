"""Durable writes: whole or not at all, and on file systems that cannot sync a folder."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tinyvgg.durable import NO_FOLDER_SYNC, replace_file

sync = os.fsync


def answer_for_folders(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Have `fsync` of a folder fail as some file systems do; files are synced for real."""

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("code", sorted(NO_FOLDER_SYNC), ids=errno.errorcode.get)
def test_a_file_is_written_where_folders_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    answer_for_folders(monkeypatch, code)
    path = tmp_path / "a"
    path.write_bytes(b"old")

    replace_file(path, b"new", keep_as=tmp_path / "b")

    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "a": b"new",
        "b": b"old",
    }


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_failing_disk_is_an_error_that_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    answer_for_folders(monkeypatch, code)

    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        replace_file(tmp_path / "a", b"new")

    assert caught.value.filename == str(tmp_path)


def test_a_file_that_fails_its_check_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def refuse(partial: Path) -> None:
        raise ValueError(partial.read_bytes())

    with pytest.raises(ValueError, match="new"):
        replace_file(path, b"new", check=refuse)

    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a.bin": b"old"}
