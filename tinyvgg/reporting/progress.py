"""Progress: bars on stderr, with images/sec and time left. stdout stays free for results."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _ImagesPerSec(ProgressColumn):
    """Images a second, over the last half minute."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} images/sec", style="cyan")


@contextmanager
def progress_bars(
    *, has_rate: bool = True
) -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Yield a function that opens a bar: (title, images) -> advance(images).

    Args:
        has_rate: whether images are counted, and not something else that has no images/sec.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        *([_ImagesPerSec()] if has_rate else []),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns,
        console=Console(stderr=True),
        # rich writes to stderr what is printed, so that it scrolls past above the bars, which
        # would overwrite it
        redirect_stdout=_is_one_terminal(),
        redirect_stderr=True,
    ) as progress:

        def open_bar(title: str, num_images: int) -> Callable[[int], None]:
            task = progress.add_task(title, total=num_images)

            def advance(num_done: int) -> None:
                progress.update(task, advance=num_done)

            return advance

        yield open_bar


def _is_one_terminal() -> bool:
    """Return whether stdout and stderr are the same terminal."""
    try:
        numbers = [stream.fileno() for stream in (sys.stdout, sys.stderr)]
    except (OSError, ValueError, AttributeError):  # closed, or not a file at all
        return False
    return all(map(os.isatty, numbers)) and os.path.samestat(*map(os.fstat, numbers))
