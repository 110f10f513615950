import logging
import re
from pathlib import Path

import pytest

from tinyvgg.reporting.run_log import RunLog


def test_lines_are_appended_at_once_each_with_the_time(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    for text in ("first", "sécond\n\x1b[2J"):
        with RunLog(path) as log:
            log.write(text)
            assert text[:3] in path.read_text("utf-8")

    lines = path.read_text("utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in lines)
    assert [line[21:] for line in lines] == ["first", "sécond\\n\\x1b[2J"]


def test_the_error_that_ends_a_run_stands_in_its_log(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wild"), RunLog(tmp_path / "train.log"):
        raise ValueError("wild")

    assert (tmp_path / "train.log").read_text().endswith("ended by ValueError: wild\n")


def test_a_log_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "tinyvgg"), RunLog(tmp_path / "no" / "train.log") as log:
        log.write("a")
        log.write("b")

    assert len(caplog.records) == 1
    assert "train.log: No such file or directory" in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="NOT RUN: no /dev/full here")
def test_a_full_disk_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "tinyvgg"), RunLog(Path("/dev/full")) as log:
        log.write("a")
        log.write("b")

    assert len(caplog.records) == 1
    assert "the run itself continues, without its log" in caplog.text
