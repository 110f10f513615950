"""Run lines: what a run says while it trains, and its curves.

From: `runs.fit`, through a callback.
To:   stdout (the reference's line every `log_every` steps, one an epoch), a bar on stderr, and the
      pictures in the run folder. An epoch's line comes before the run is saved, its pictures after.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tinyvgg.endings import explain_error
from tinyvgg.errors import TinyvggError
from tinyvgg.model.summary import count_kept_bytes, summarize_network, train_flop
from tinyvgg.reporting.console import line_printer, print_json, print_line, print_tables
from tinyvgg.reporting.plots import plot_curves
from tinyvgg.reporting.progress import progress_bars
from tinyvgg.reporting.report.page import write_report
from tinyvgg.reporting.tables import render_summary
from tinyvgg.reporting.tracing import traced_steps
from tinyvgg.runs.checkpoint import EpochRecord
from tinyvgg.runs.config import Output
from tinyvgg.runs.fit import Callback, Run
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.build import check_sizes, list_sizes
from tinyvgg.training.clock import Pace
from tinyvgg.training.config import Recipe
from tinyvgg.training.trainer import StepReport

SLOW_DATA_SHARE = 0.1  # above this, waiting for data is worth a line of advice

logger = logging.getLogger("tinyvgg")


class RunLines(Callback):
    """Prints and draws a run.

    Args:
        run: followed.
        output: what to show of it.
        advance: called with the images of each step.
        count_step: called after each step.
    """

    def __init__(
        self,
        run: Run,
        output: Output,
        advance: Callable[[int], None],
        count_step: Callable[[], None],
    ) -> None:
        self.run = run
        self.output = output
        self.advance = advance
        self.count_step = count_step
        self.show = line_printer(is_json=output.json)
        self.plot_pace = Pace()  # curves take longer to draw than an epoch of a GPU
        self.is_drawn = True

    def on_step(self, report: StepReport) -> None:
        """Move the bar, print the line of a step that read its loss, draw what is not drawn."""
        self.advance(self.run.trainer.loader.batch_size)
        self.count_step()
        if report.loss is not None and report.top1 is not None:
            self.show(
                f"[{report.epoch + 1}, {report.step:5d}] loss: {report.loss:.3f} "
                f"accuracy: {100 * report.top1:.2f}"
            )
        if not self.is_drawn and self.plot_pace.is_due():
            with self.plot_pace.spending():
                self.draw()

    def on_epoch(self, record: EpochRecord) -> None:
        """Print the line of an epoch."""
        print_epoch(record, self.run.trainer.recipe.epochs, self.show)
        self.is_drawn = False

    def draw(self) -> None:
        """Draw the curves of all epochs so far, and write them for TensorBoard."""
        self.is_drawn = True
        if self.run.folder is None:
            return
        history = [asdict(record) for record in self.run.history]
        try:
            plot_curves(history, self.run.folder.path)
            if self.output.tensorboard:
                from tinyvgg.reporting.tensorboard import write_events

                write_events(history, self.run.folder.path / "tensorboard")
        except OSError as error:
            logger.warning("%s (the run itself is saved and continues)", explain_error(error)[1])


@contextmanager
def following(run: Run, output: Output) -> Iterator[Callback]:
    """Print and draw a run that is trained in a `with` block; only rank 0's."""
    if run.folder is None:
        yield Callback()
        return
    trainer = run.trainer

    def show_lines(text: str) -> None:
        show = line_printer(is_json=output.json)
        for line in text.splitlines():
            show(line)

    with (
        progress_bars() as open_bar,
        traced_steps(output.profile, run.folder.path, show_lines) as count_step,
    ):
        advance = open_bar("train", trainer.num_steps * trainer.loader.batch_size)
        advance(trainer.step * trainer.loader.batch_size)
        lines = RunLines(run, output, advance, count_step)
        yield lines
    if run.history:
        lines.draw()


def report_run(folder: Path, *, is_json: bool) -> None:
    """Write report.html into a run folder, and print its path."""
    try:
        path = write_report([folder])
    except (OSError, TinyvggError) as error:
        logger.warning("%s (the run itself is saved)", explain_error(error)[1])
        return
    line_printer(is_json=is_json)(f"{path}: the report; open it in a browser")


def print_epoch(record: EpochRecord, num_epochs: int, show: Callable[[str], None]) -> None:
    """Print the line of an epoch, and advice where data was slow."""
    pflop = "operations unknown" if record.pflop is None else f"{record.pflop:.3g} PFLOP"
    show(
        f"epoch {record.epoch + 1}/{num_epochs}, {record.pixels} px, {pflop}: "
        f"train loss {record.train_loss:.3f} top-1 {100 * record.train_top1:.2f} %, "
        f"val loss {record.val_loss:.3f} top-1 {100 * record.val_top1:.2f} % "
        f"top-5 {100 * record.val_top5:.2f} %, {record.images_per_sec:,.1f} images/sec, "
        f"{100 * record.data_wait_share:.1f} % waiting for data"
    )
    if record.data_wait_share > SLOW_DATA_SHARE:
        print_line(
            f"{100 * record.data_wait_share:.0f} % of the time went into waiting for data: "
            "put PACKED on a faster disk, or use --backend resident",
            sys.stderr,
        )


def print_summary(recipe: Recipe, dataset: PackedDataset, *, is_json: bool) -> None:
    """Print layers, parameters and operations of a network on images as they are packed."""
    check_sizes(recipe, dataset)
    height, width = list_sizes(recipe, dataset)[0]
    shape = (recipe.arch, len(dataset.class_names), height, width)
    layers, flop = summarize_network(*shape), train_flop(*shape)
    kept_bytes = count_kept_bytes(*shape)
    if is_json:
        summary = {"arch": recipe.arch, "train_flop": flop, "kept_bytes": kept_bytes}
        print_json({**summary, "layers": list(map(asdict, layers))})
        return
    print_tables([render_summary(recipe.arch, layers)])
    num_parameters = sum(layer.num_parameters for layer in layers)
    print_line(
        f"{recipe.arch}: {num_parameters:,} parameters; "
        f"{sum(layer.flop for layer in layers) / 1e9:.3f} GFLOP forward, "
        f"{flop / 1e9:.3f} GFLOP to train on an image of {width}x{height}, "
        f"of which the backward pass keeps {kept_bytes / 2**20:,.1f} MiB (float32; half types half)"
    )
