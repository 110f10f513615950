"""Run log: the lines that a run says, in a file of its own, each with the time of day.

From: `run_lines`.
To:   RUN/train.log, to which a resumed run appends. A disk that takes no more is said once; the run
      goes on.
"""

import logging
import time
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from tinyvgg.endings import explain_error
from tinyvgg.errors import naming, printable

logger = logging.getLogger("tinyvgg")


class RunLog:
    """Appends lines to a file, to be opened by `with`; every line is there at once.

    Args:
        path: of the file, in a folder that exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: TextIO | None = None

    def __enter__(self) -> Self:
        """Open the file."""
        try:
            self.file = self.path.open("a", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            self._give_up(error)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file, with the reason in it where an error ended the run."""
        if error is not None:
            self.write(f"ended by {type(error).__name__}: {error}")
        self._close()

    def write(self, text: str) -> None:
        """Append a line."""
        if self.file is None:
            return
        try:
            with naming(self.path):
                self.file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {printable(text)}\n")
                self.file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        logger.warning("%s (the run itself continues, without its log)", explain_error(error)[1])
        self._close()

    def _close(self) -> None:
        file, self.file = self.file, None
        if file is not None:
            try:
                file.close()
            except OSError:  # what was left could not be written: it was said already
                return
