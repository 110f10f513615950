"""Console: results on stdout, as text that any terminal shows or as one JSON document.

From: the command line.
To:   stdout, whatever it is connected to and whatever its encoding; and stderr for what is not a
      result.

Names from the user are text: no markup, no control character. What an encoding lacks is escaped.
"""

import io
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console, RenderableType

from tinyvgg.errors import naming, printable


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(record.getMessage())


class _Handler(logging.StreamHandler[TextIO]):
    def emit(self, record: logging.LogRecord) -> None:
        """Write to what is stderr now: bars put there what keeps lines above them."""
        self.stream = sys.stderr
        super().emit(record)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise it: rich would end the process with another status than `print_line` does."""
        raise BrokenPipeError


def prepare_streams() -> None:
    """Let both streams take any text, and send log lines to stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = _Handler(sys.stderr)
    handler.setFormatter(_Formatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("tinyvgg").setLevel(logging.INFO)  # of libraries only what is amiss


def print_line(text: str, stream: TextIO | None = None) -> None:
    """Write one line to stdout, or to another stream, at once."""
    _write(printable(text) + "\n", stream or sys.stdout)


def print_lines(lines: Iterable[str]) -> None:
    """Write lines to stdout."""
    _write("".join(printable(line) + "\n" for line in lines), sys.stdout)


def print_tables(tables: Iterable[RenderableType]) -> None:
    """Write rich's tables to stdout; their cells are `Text`, or they would be markup."""
    with naming("stdout"):
        for table in tables:
            _Console().print(table)
        sys.stdout.flush()


def print_json(document: Any) -> None:
    """Write one JSON document, on one line of ASCII; what is no number in JSON becomes null."""
    text = json.dumps(_without_nan(document), sort_keys=True, allow_nan=False)
    _write(text + "\n", sys.stdout)


def print_error(text: str) -> None:
    """Write the text of an error to stderr, if anybody is there to read it."""
    with suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def line_printer(*, is_json: bool) -> Callable[[str], None]:
    """Return what prints a line of progress that counts: to stderr where stdout is JSON."""
    return (lambda text: print_line(text, sys.stderr)) if is_json else print_line


def flush_stdout() -> None:
    """Write what is left, while an error can still be told."""
    with naming("stdout"):
        sys.stdout.flush()


def discard_stdout() -> None:
    """Let what nobody can take go nowhere: the interpreter would complain when it ends."""
    with suppress(OSError, ValueError):  # it has no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _write(text: str, stream: TextIO) -> None:
    with naming("stderr" if stream is sys.stderr else "stdout"):
        stream.write(text)
        stream.flush()


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
