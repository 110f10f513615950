"""Predictions: what `tinyvgg predict` found, as a table, one JSON document, CSV, a picture.

From: `inference`, predictions one by one.
To:   stdout; stderr for images that could not be decoded; a PNG.

Names of files and classes are text: no markup, no control character.
"""

import csv
import io
from collections.abc import Callable
from typing import Any

from rich.table import Table
from rich.text import Text

from tinyvgg.errors import printable
from tinyvgg.inference.config import PredictConfig
from tinyvgg.inference.predict import Prediction
from tinyvgg.reporting.console import (
    line_printer,
    print_error,
    print_json,
    print_lines,
    print_tables,
)
from tinyvgg.reporting.grid import draw_predictions

MAX_DRAWN = 400  # images of a picture
MAX_TABLE = 200  # images of a table: rich takes 4 ms for each, more than a network does
CSV_COLUMNS = ("image", "rank", "label", "class", "words", "probability")


class PredictionPrinter:
    """Collects predictions, and prints them at the end; CSV, and what no table holds, as they come.

    Args:
        config: says in which form.
        num_images: that will come; more than `MAX_TABLE` are a line each.

    Attributes:
        num_drawn: images of which `shown` is needed.
    """

    def __init__(self, config: PredictConfig, num_images: int) -> None:
        self.config = config
        self.render: Callable[[Prediction], list[str]] | None = None
        if config.csv:
            self.render = render_csv
        elif num_images > MAX_TABLE and not config.json:
            self.render = render_line
        self.num_drawn = 0 if config.grid is None else MAX_DRAWN
        self.found: list[Prediction] = []
        self.damaged: list[dict[str, str | None]] = []
        self.num_images = 0
        if config.csv:
            print_lines([",".join(CSV_COLUMNS)])

    def add(self, prediction: Prediction) -> None:
        """Take the prediction of the next image."""
        self.num_images += 1
        if prediction.damage is not None:
            print_error(f"tinyvgg predict: {printable(f'{prediction.name}: {prediction.damage}')}")
            self.damaged.append({"image": prediction.name, "reason": prediction.damage})
        elif self.render is not None:
            print_lines(self.render(prediction))
            if len(self.found) < self.num_drawn:
                self.found.append(prediction)
        else:
            self.found.append(prediction)

    def finish(self) -> int:
        """Print what was found, draw the picture, and return the exit status."""
        config = self.config
        if config.json:
            print_json(
                {
                    "checkpoint": str(config.checkpoint),
                    "predictions": [prediction.describe() for prediction in self.found],
                    "damaged": self.damaged,
                }
            )
        elif self.found and self.render is None:
            print_tables([render_predictions(self.found)])
        if self.damaged or not self.num_images:
            count, total = f"{len(self.damaged):,}", f"{self.num_images:,}"
            found = f"{count} of {total} could not be read; the others are complete"
            found = found if self.damaged else "none was given; name some"
            print_error(f"tinyvgg predict: images: {found}")
        if config.grid is not None:
            drawn = [found for found in self.found if found.shown is not None]
            if drawn:
                draw_predictions(drawn, config.grid)
                show = line_printer(is_json=config.json or config.csv)
                show(f"{config.grid}: {len(drawn):,} images and their answers")
        return 1 if self.damaged or not self.num_images else 0


def render_predictions(predictions: list[Prediction]) -> Table:
    """Return the table that `tinyvgg predict` prints: a line for each guess."""
    table = Table()
    for column in ("image", "class", "words"):
        table.add_column(column, overflow="fold")  # whole, in several lines
    table.add_column("probability", justify="right")
    for prediction in predictions:
        for rank, guess in enumerate(prediction.guesses):
            table.add_row(
                Text(printable(prediction.name) if rank == 0 else ""),
                Text(printable(guess.class_folder)),
                Text(printable(guess.words)),
                f"{guess.probability:.4f}",
                end_section=rank == len(prediction.guesses) - 1,
            )
    return table


def render_line(prediction: Prediction) -> list[str]:
    """Return one line for an image."""
    guesses = (
        f"{guess.probability:.4f} {f'{guess.class_folder} {guess.words}'.rstrip()}"
        for guess in prediction.guesses
    )
    return [printable(f"{prediction.name}: {'; '.join(guesses)}")]


def render_csv(prediction: Prediction) -> list[str]:
    """Return a line of CSV for each guess of an image, without line breaks inside."""
    lines = io.StringIO()
    writer: Any = csv.writer(lines, lineterminator="\n")
    for rank, guess in enumerate(prediction.guesses, 1):
        names = map(printable, (prediction.name, guess.class_folder, guess.words))
        image, folder, words = names
        writer.writerow([image, rank, guess.label, folder, words, f"{guess.probability:.6g}"])
    return lines.getvalue().splitlines()
