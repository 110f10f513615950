"""Run lines: what a run says while it trains, and its curves.

From: `runs.fit`, through a callback.
To:   stdout (the reference's line every `log_every` steps, one an epoch, the result at the end),
      stderr (what is trained, when it will be done, a line where nothing was said for a while, a
      bar), RUN/train.log (all these lines, with the time of day), and the pictures in the run
      folder. An epoch's line comes before the run is saved, its pictures after.
"""

import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from tinyvgg.endings import explain_error
from tinyvgg.errors import TinyvggError
from tinyvgg.model.summary import count_kept_bytes, summarize_network, train_flop
from tinyvgg.reporting.console import line_printer, print_json, print_line, print_tables
from tinyvgg.reporting.plots import plot_curves
from tinyvgg.reporting.progress import progress_bars
from tinyvgg.reporting.report.page import write_report
from tinyvgg.reporting.run_log import RunLog
from tinyvgg.reporting.tables import render_summary
from tinyvgg.reporting.tracing import traced_steps
from tinyvgg.reporting.tracking import Callbacks
from tinyvgg.runs.checkpoint import EpochRecord
from tinyvgg.runs.config import Output
from tinyvgg.runs.fit import Callback, Run
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.build import check_sizes, list_sizes
from tinyvgg.training.clock import Pace
from tinyvgg.training.config import Recipe
from tinyvgg.training.trainer import StepReport

FIRST_SEC = 20.0  # of training, after which there is something to read
QUIET_SEC = 60.0  # without a line, after which there is one
EXPECTED_AFTER_SEC = 60.0  # of training, after which its length can be told
SLOW_DATA_SHARE = 0.1  # above this, waiting for data is worth a line of advice

logger = logging.getLogger("tinyvgg")


class RunLines(Callback):
    """Prints and draws a run.

    Args:
        run: followed.
        output: what to show of it.
        advance: called with the images of each step.
        count_step: called after each step.
        log: takes every line that is shown.
        first_sec: after so many seconds of training the first figures are said, by a step's end.
        quiet_sec: after so many seconds without a line they are said again.
    """

    def __init__(
        self,
        run: Run,
        output: Output,
        advance: Callable[[int], None],
        count_step: Callable[[], None],
        log: RunLog,
        *,
        first_sec: float = FIRST_SEC,
        quiet_sec: float = QUIET_SEC,
    ) -> None:
        self.run = run
        self.output = output
        self.advance = advance
        self.count_step = count_step
        self.log = log
        self.quiet_sec = quiet_sec
        self.num_scored = 0
        self.started = time.monotonic()
        self.said_at = self.started + first_sec - quiet_sec
        self.is_time_said = False
        self.plot_pace = Pace()  # curves take longer to draw than an epoch of a GPU
        self.is_drawn = True

    def show(self, text: str) -> None:
        """Show a line that counts, and keep it in the log."""
        line_printer(is_json=self.output.json)(text)
        self.log.write(text)
        self.said_at = time.monotonic()

    def tell(self, text: str) -> None:
        """Say on stderr how things stand, and keep it in the log."""
        print_line(text, sys.stderr)
        self.log.write(text)
        self.said_at = time.monotonic()

    @property
    def is_quiet(self) -> bool:
        """Whether nothing was said for a while."""
        return time.monotonic() - self.said_at >= self.quiet_sec

    def on_start(self, run: Run) -> None:
        """Count the seconds from here."""
        self.said_at += time.monotonic() - self.started
        self.started = time.monotonic()

    def on_step(self, report: StepReport) -> None:
        """Move the bar, print the line of a step that read its loss, draw what is not drawn."""
        self.advance(self.run.trainer.loader.batch_size)
        self.count_step()
        if report.loss is not None and report.top1 is not None:
            self.show(render_step(report, report.loss, report.top1))
        elif self.is_quiet:
            loss, top1 = self.run.trainer.window.read()
            rate = f"{report.images_per_sec:,.1f} images/sec"
            self.tell(f"{render_step(report, loss, top1)} so far, {rate}")
        if not self.is_time_said and time.monotonic() - self.started >= EXPECTED_AFTER_SEC:
            self.is_time_said = True
            self.tell(render_expected(self.run, report))
        self.num_scored = 0
        if not self.is_drawn and self.plot_pace.is_due():
            with self.plot_pace.spending():
                self.draw()

    def on_scored(self, num_images: int) -> None:
        """Say how far the scoring is, where that takes long."""
        self.num_scored += num_images
        if self.is_quiet:
            num_val = self.run.trainer.dataset.val.num_images
            self.tell(f"scored {self.num_scored:,} of {num_val:,} val images")

    def on_epoch(self, record: EpochRecord) -> None:
        """Print the line of an epoch."""
        print_epoch(record, self.run.trainer.recipe.epochs, self.show)
        self.is_drawn = False

    def draw(self) -> None:
        """Draw the curves of all epochs so far."""
        self.is_drawn = True
        if self.run.folder is None:
            return
        history = [asdict(record) for record in self.run.history]
        try:
            plot_curves(history, self.run.folder.path)
        except OSError as error:
            logger.warning("%s (the run itself is saved and continues)", explain_error(error)[1])


@contextmanager
def following(run: Run, output: Output, trackers: Sequence[Callback] = ()) -> Iterator[Callback]:
    """Print, draw and track a run that is trained in a `with` block; only rank 0's."""
    if run.folder is None:
        yield Callback()
        return
    trainer = run.trainer

    def show_lines(text: str) -> None:
        show = line_printer(is_json=output.json)
        for line in text.splitlines():
            show(line)

    with RunLog(run.folder.log) as log:
        for line in render_opening(run):
            print_line(line, sys.stderr)
            log.write(line)
        with (
            progress_bars() as open_bar,
            traced_steps(output.profile, run.folder.path, show_lines) as count_step,
        ):
            advance = open_bar("train", run.last_step * trainer.loader.batch_size)
            advance(trainer.step * trainer.loader.batch_size)
            lines = RunLines(run, output, advance, count_step, log)
            yield Callbacks(lines, *trackers)
        for line in render_ending(run):
            lines.show(line)
        if run.history:
            lines.draw()


def render_step(report: StepReport, loss: float, top1: float) -> str:
    """Return the reference's line of a step."""
    return f"[{report.epoch + 1}, {report.step:5d}] loss: {loss:.3f} accuracy: {100 * top1:.2f}"


def render_opening(run: Run) -> Iterable[str]:
    """Return what is trained, on what, where and for how long, a line each."""
    trainer, dataset = run.trainer, run.trainer.dataset
    recipe, loader = trainer.recipe, trainer.loader
    num_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    flop = trainer.train_flop(trainer.pixels_of(recipe.epochs - 1))
    cost = "" if flop is None else f", {flop / 1e9:.3g} GFLOP to train on an image"
    arch = "network of your own" if trainer.is_own else recipe.arch
    yield f"network: {arch}, {num_parameters:,} parameters{cost}"
    stored = dataset.manifest.image.size
    size = "several sizes" if stored is None else f"{stored[1]}x{stored[0]}"
    sizes = sorted({trainer.pixels_of(epoch) for epoch in range(recipe.epochs)})
    seen = "" if stored and sizes == [min(stored)] else f", seen at {_join(sizes)} px"
    yield (
        f"images: {dataset.train.num_images:,} train and {dataset.val.num_images:,} val of "
        f"{len(dataset.class_names):,} classes, {size}{seen}, backend {loader.backend}"
    )
    reason = trainer.amp_reason or "as asked for"
    compiled = "compiled" if trainer.compiled else "not compiled"
    ranks = f", {loader.world_size} processes" if loader.world_size > 1 else ""
    device = f"{trainer.device}, {_describe_device(trainer.device)}{ranks}"
    yield f"device: {device}, amp {trainer.amp} ({reason}), {compiled}"
    limit = f", at most {run.last_step:,} (--limit-steps)" if run.options.limit_steps else ""
    done = f"; {trainer.step:,} of them taken" if trainer.step else ""
    yield (
        f"steps: {_count(recipe.epochs, 'epoch')} of {_count(len(loader), 'step')} of "
        f"{_count(loader.batch_size, 'image')}, {trainer.num_steps:,} in all{limit}{done}"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _count(torch.get_num_threads(), "thread")


def _join(sizes: Iterable[int]) -> str:
    return ", ".join(map(str, sizes))


def render_expected(run: Run, report: StepReport) -> str:
    """Say how long this call goes on, if every operation takes what those so far took."""
    sec = estimate_sec(run, report)
    done = time.strftime("%a %H:%M", time.localtime(time.time() + sec))
    return (
        f"expected: about {render_duration(sec)} more, until {done}, "
        f"at {report.images_per_sec:,.1f} images/sec now"
    )


def estimate_sec(run: Run, report: StepReport) -> float:
    """Return the seconds of the steps that are left, and of scoring after each epoch.

    An image costs by its operations: at other sizes in proportion, and scoring a third of training.
    """
    trainer = run.trainer
    steps_per_epoch, num_val = len(trainer.loader), trainer.dataset.val.num_images

    def cost(epoch: int) -> float:
        return float(trainer.train_flop(trainer.pixels_of(epoch)) or 1)

    costs = {epoch: cost(epoch) for epoch in range(report.epoch, trainer.recipe.epochs)}
    todo, step = 0.0, trainer.step
    while step < run.last_step:
        epoch = step // steps_per_epoch
        end = min((epoch + 1) * steps_per_epoch, run.last_step)
        todo += (end - step) * trainer.loader.batch_size * costs[epoch]
        if end == (epoch + 1) * steps_per_epoch:
            todo += num_val * costs[epoch] / 3
        step = end
    return todo / costs[report.epoch] / report.images_per_sec


def render_duration(sec: float) -> str:
    """Return seconds, minutes, or hours and minutes."""
    if sec < 60:
        return f"{sec:.0f} s"
    hours, minutes = divmod(round(sec / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def render_ending(run: Run) -> Iterable[str]:
    """Return what came of the run, where that is, and what to type next, a line each."""
    trainer, best, folder = run.trainer, run.best, run.folder
    if folder is None:
        return
    num_epochs, out = trainer.recipe.epochs, shlex.quote(str(folder.path))
    if run.is_target_reached and best is not None:
        yield (
            f"target reached: val top-1 {100 * best.val_top1:.2f} % in epoch {best.epoch + 1} of "
            f"{num_epochs}, {100 * (run.options.target_top1 or 0):.2f} % asked for"
        )
    elif not run.is_finished:
        yield f"{folder.path}: stopped at step {trainer.step:,}; --resume continues it"
    if best is None:
        return
    yield (
        f"best: val top-1 {100 * best.val_top1:.2f} %, epoch {best.epoch + 1} of {num_epochs}, "
        f"in {folder.best}"
    )
    packed = shlex.quote(str(trainer.dataset.folder))
    if run.is_finished or run.is_target_reached:
        yield f"next: tinyvgg evaluate {out}/best.pt {packed}"
    else:
        yield f"next: tinyvgg train {packed} --out {out} --resume"


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
