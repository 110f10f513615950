import os
import pty
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
