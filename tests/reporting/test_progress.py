import os
import pty
import re
import subprocess
import sys
import threading

import pytest

PRINTED = "loss: 2.303 [red]:smile:[/red] " + 120 * "x"  # a line longer than the terminal
PRINT_UNDER_A_BAR = f"""
from tinyvgg.reporting.progress import progress_bars
with progress_bars() as open_bar:
    advance = open_bar("[bold]train", 10)
    for _ in range(10):
        advance(1)
        print({PRINTED!r}, flush=True)
"""


def read_all(end: int) -> bytes:
    """Return what is written into a pipe or a terminal until nobody has it open any more."""
    data = b""
    try:
        while part := os.read(end, 65536):
            data += part
    except OSError:  # how a terminal ends
        pass
    return data


def run_with(stdout: int, stderr: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINT_UNDER_A_BAR],
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, "TERM": "xterm"},
    )
    assert done.returncode == 0


@pytest.mark.parametrize("stdout_is", ["pipe", "another terminal"])
def test_what_is_printed_under_a_bar_goes_to_stdout_though_stderr_is_a_terminal(
    stdout_is: str,
) -> None:
    screen, stderr = pty.openpty()
    reader, stdout = os.pipe() if stdout_is == "pipe" else pty.openpty()
    found: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda end=end: found.update({end: read_all(end)}))
        for end in (screen, reader)
    ]
    for thread in threads:
        thread.start()

    run_with(stdout, stderr)
    for descriptor in (stdout, stderr):
        os.close(descriptor)
    for thread in threads:
        thread.join()

    assert found[reader].decode().split() == 10 * PRINTED.split()
    assert b"loss" not in found[screen]
    assert b"[bold]train" in found[screen]  # a title is text, never markup


def test_on_one_terminal_what_is_printed_stands_in_lines_of_its_own() -> None:
    screen, terminal = pty.openpty()
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(read_all(screen)))
    thread.start()

    run_with(terminal, terminal)
    os.close(terminal)
    thread.join()

    assert found[0].count(b"loss: 2.303 [red]:smile:[/red]") == 10


WARN_UNDER_TWO_BARS = """
import logging
from tinyvgg.reporting.console import prepare_streams
from tinyvgg.reporting.progress import progress_bars
prepare_streams()
with progress_bars() as open_bar:
    logging.getLogger("tinyvgg").info("before")
    for title in ("train", "val"):
        open_bar(title, 10)(10)
    logging.getLogger("tinyvgg").warning("2 images [red]\\x1b[2J")
"""


def read_screen(data: str) -> list[str]:
    """Return the lines that a terminal shows in the end."""
    lines, row, is_new = [""], 0, False
    for part in re.split(r"(\r|\n|\x1b\[[0-9;?]*[A-Za-z])", data):
        if part == "\n":
            row += 1
            lines += [""] * (row - len(lines) + 1)
        elif part == "\x1b[1A":
            row -= 1
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part and part[0] not in "\r\x1b":
            lines[row] = part if is_new else lines[row] + part
        if part:
            is_new = part == "\r" or (is_new and part[0] == "\x1b")
    return lines


def test_on_a_terminal_bars_overwrite_no_log_line() -> None:
    screen, terminal = pty.openpty()
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(read_all(screen)))
    thread.start()

    subprocess.run(
        [sys.executable, "-c", WARN_UNDER_TWO_BARS],
        stderr=terminal,
        env={**os.environ, "TERM": "xterm"},
        check=True,
    )
    os.close(terminal)
    thread.join()

    lines = [line.split()[0] for line in read_screen(found[0].decode()) if line.strip()]
    assert lines == ["before", "2", "train", "val"]
    assert rb"2 images [red]\x1b[2J" in found[0]
