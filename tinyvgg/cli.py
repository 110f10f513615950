"""The command line: all the wiring, and the only module that sees every room.

From: argv. Each command has a config dataclass in its room; its flags are derived from it.
To:   exit status 0 (done), 1 (the data or the machine) or 2 (usage).

stdout carries results, stderr progress; with `--json` stdout is one JSON document and nothing else.
Results are printed before pictures are drawn or side files written. A room is imported when its
command runs, so `--help` takes a few hundredths of a second and `pack` never sees torch.
"""

import errno
import json
import logging
import math
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tinyvgg import __version__
from tinyvgg.errors import TinyvggError, naming, printable

if TYPE_CHECKING:
    import torch

    from tinyvgg.inference.config import EvaluateConfig
    from tinyvgg.inference.evaluate import Evaluation
    from tinyvgg.shards.store import PackedDataset
    from tinyvgg.training.config import TrainConfig
    from tinyvgg.training.loop import StepReport
    from tinyvgg.training.run import EpochMetrics, RunFolder
    from tinyvgg.training.signals import StopRequest
    from tinyvgg.training.state import Training

Config = TypeVar("Config")
CLOSED_PIPE_STATUS = 128 + 13  # what a shell says of a command that SIGPIPE ended
SLOW_DATA_SHARE = 0.1  # above this, waiting for data is worth a line of advice

logger = logging.getLogger("tinyvgg")


def run_synth(argv: Sequence[str]) -> int:
    """Make a small seeded image set that can be learned."""
    from tinyvgg.packing.config import SynthConfig

    config = parse_config(SynthConfig, "synth", argv)

    from tinyvgg.packing.synthetic import write_synthetic
    from tinyvgg.reporting.console import print_line

    out = write_synthetic(config)
    print_line(f"{out}: 10 classes; next: tinyvgg pack {out} PACKED")
    return 0


def run_download(argv: Sequence[str]) -> int:
    """Fetch the public TinyImageNet zip, resumable and checked."""
    from tinyvgg.packing.config import DownloadConfig

    config = parse_config(DownloadConfig, "download", argv)

    from tinyvgg.packing.download import download_archive
    from tinyvgg.reporting.console import print_line

    path = download_archive(config)
    print_line(f"{path}: complete and checked; next: tinyvgg pack {path} PACKED")
    return 0


def run_pack(argv: Sequence[str]) -> int:
    """Decode class folders or a zip into uint8 shards."""
    from tinyvgg.packing.config import PackConfig

    config = parse_config(PackConfig, "pack", argv)

    from tinyvgg.packing.pack import pack_images
    from tinyvgg.reporting.console import print_json, print_line
    from tinyvgg.reporting.progress import progress_bars

    with progress_bars() as open_bar:
        manifest = pack_images(config, open_bar)
    if config.json:
        fields = manifest.model_dump(exclude_none=True)
        print_json({"packed": str(config.out), "manifest": fields})
        return 0
    train, val = manifest.splits.train, manifest.splits.val
    num_skipped = len(train.skipped) + len(val.skipped)
    print_line(
        f"{config.out}: {train.num_images:,} train and {val.num_images:,} val images of "
        f"{len(manifest.classes):,} classes"
        + (f"; {num_skipped:,} bad files skipped, listed in manifest.json" if num_skipped else "")
    )
    return 0


def run_verify(argv: Sequence[str]) -> int:
    """Compare every byte of a packed folder with its manifest."""
    from tinyvgg.shards.config import VerifyConfig

    config = parse_config(VerifyConfig, "verify", argv)

    from tinyvgg.reporting.console import print_json, print_lines
    from tinyvgg.reporting.progress import progress_bars
    from tinyvgg.shards.manifest import SPLITS
    from tinyvgg.shards.store import read_manifest
    from tinyvgg.shards.verify import verify_dataset

    manifest, _ = read_manifest(config.packed)
    num_images = sum(manifest.split(name).num_images for name in SPLITS)
    with progress_bars() as open_bar:
        damages = verify_dataset(config.packed, open_bar("verify", num_images))
    if config.json:
        print_json({"packed": str(config.packed), "damages": damages})
    else:
        whole = f"{config.packed}: {num_images:,} images, every byte as packed"
        print_lines(damages or [whole])
    return 1 if damages else 0


def run_inspect(argv: Sequence[str]) -> int:
    """Show classes, counts, sizes and statistics of a packed folder."""
    from tinyvgg.shards.config import InspectConfig

    config = parse_config(InspectConfig, "inspect", argv)

    from tinyvgg.reporting.console import line_printer, print_json, print_tables
    from tinyvgg.reporting.tables import describe_dataset, render_description
    from tinyvgg.shards.store import open_dataset

    dataset = open_dataset(config.packed)
    description = describe_dataset(dataset)
    if config.json:
        print_json(description)
    else:
        print_tables(render_description(description))
    if config.grid is not None:
        from tinyvgg.reporting.grid import draw_grid

        draw_grid(dataset, config.grid)
        show = line_printer(is_json=config.json)
        show(f"{config.grid}: contact sheet of {len(dataset.class_names):,} classes")
    return 0


def run_train(argv: Sequence[str]) -> int:
    """Train a VGG network; score it after every epoch."""
    config = parse_train_config(argv)

    from tinyvgg.ranks import joined_world
    from tinyvgg.shards.store import open_dataset
    from tinyvgg.training.devices import find_device
    from tinyvgg.training.run import RunFolder
    from tinyvgg.training.signals import stop_request
    from tinyvgg.training.state import check_sizes, open_training

    if config.tensorboard:
        from tinyvgg.reporting.tensorboard import check_installed

        check_installed()
    dataset = open_dataset(config.packed)
    if config.summary:
        check_sizes(config, dataset)
        print_summary(config, dataset)
        return 0
    device = find_device(config.device)
    with joined_world(device) as rank, stop_request() as stop, ExitStack() as stack:
        if rank == 0:
            stack.enter_context(RunFolder(config.out).writing())
        training = open_training(config, dataset, device, rank)
        return train_run(training, stop, is_main=rank == 0)


def train_run(training: "Training", stop: "StopRequest", *, is_main: bool) -> int:
    """Train a run to its end, target, limit or signal; say where it stands."""
    from tinyvgg.reporting.console import line_printer, print_json

    train_epochs(training, stop, is_main=is_main)
    is_finished = training.step >= training.num_steps and training.unscored is None
    if is_main and not is_finished:
        show = line_printer(is_json=training.config.json)
        show(f"{training.config.out}: stopped at step {training.step:,}; --resume goes on")
    if is_main and training.config.json:
        history = [asdict(metrics) for metrics in training.history]
        run = str(training.config.out)
        print_json({"run": run, "step": training.step, "history": history})
    return 0 if stop.agreed is None else 128 + stop.agreed


def train_epochs(training: "Training", stop: "StopRequest", *, is_main: bool) -> None:
    """Train, score, record, epoch by epoch: the product in one loop."""
    from tinyvgg.inference.evaluate import evaluate_network
    from tinyvgg.loading.config import LoaderConfig
    from tinyvgg.loading.open import open_loader
    from tinyvgg.reporting.console import line_printer
    from tinyvgg.training.clock import Pace
    from tinyvgg.training.loop import finish_epoch, save_run, train
    from tinyvgg.training.run import RunFolder
    from tinyvgg.training.signals import StopRequested

    config, dataset, device = training.config, training.dataset, training.device
    target = math.inf if config.target_top1 is None else config.target_top1
    if training.unscored is None and training.best_top1 >= target:
        return  # reached before it was resumed
    run = RunFolder(config.out) if is_main else None
    plot_pace = Pace()  # curves take longer to draw than an epoch of a GPU
    val_loader = open_loader(
        dataset,
        "val",
        LoaderConfig(
            backend=config.backend,
            batch_size=score_batch_size(device, training.loader.world_size),
            mean=training.loader.normalization.mean,
            std=training.loader.normalization.std,
        ),
        device=device,
        dtype=training.image_dtype,
    )
    with train_progress(training, is_main=is_main) as observe:
        for metrics in train(training, run, observe, stop):
            try:
                evaluation = evaluate_network(
                    training.scored_model,
                    val_loader,
                    len(dataset.class_names),
                    amp=training.amp,
                    device=device,
                    pixels=metrics.pixels,
                    advance=lambda num_images: stop.check(),
                )
            except StopRequested:  # the epoch is scored by the run that goes on
                if run is not None:
                    save_run(training, run)
                break
            scored = replace(
                metrics,
                val_loss=evaluation.loss,
                val_top1=evaluation.top1,
                val_top5=evaluation.top5,
            )
            if run is not None:
                print_epoch(scored, config.epochs, line_printer(is_json=config.json))
                finish_epoch(training, run, scored)
                if plot_pace.is_due():
                    with plot_pace.spending():
                        draw_history(training, run)
            if evaluation.top1 >= target:
                if run is not None:
                    save_run(training, run)
                break
    if run is not None and training.history:
        draw_history(training, run)


def score_batch_size(device: "torch.device", world_size: int) -> int:
    """Return the images that all ranks score at once: 1,024 fill a GPU, 256 a CPU's cache."""
    return max(1, (256 if device.type == "cpu" else 1024) // world_size) * world_size


def draw_history(training: "Training", run: "RunFolder") -> None:
    """Draw the curves of all epochs so far, and write them for TensorBoard."""
    from tinyvgg.reporting.plots import plot_curves

    history = [asdict(line) for line in training.history]
    try:
        plot_curves(history, run.path)
        if training.config.tensorboard:
            from tinyvgg.reporting.tensorboard import write_events

            write_events(history, run.path / "tensorboard")
    except OSError as error:
        logger.warning("%s (the run itself is saved, and goes on)", explain_error(error)[1])


def run_evaluate(argv: Sequence[str]) -> int:
    """Score a checkpoint: top-1, top-5, loss, every class, confusion matrix."""
    from tinyvgg.inference.config import EvaluateConfig

    config = parse_config(EvaluateConfig, "evaluate", argv)

    from tinyvgg.inference.evaluate import check_classes, evaluate_network, read_network
    from tinyvgg.loading.config import LoaderConfig
    from tinyvgg.loading.open import open_loader
    from tinyvgg.reporting.console import print_error, print_json
    from tinyvgg.reporting.progress import progress_bars
    from tinyvgg.shards.store import open_dataset
    from tinyvgg.training.amp import AMP_DTYPES
    from tinyvgg.training.devices import find_device

    device = find_device(config.device)
    trained = read_network(config.checkpoint, device)
    dataset = open_dataset(config.packed)
    check_classes(trained, dataset)
    amp = trained.amp if config.amp == "auto" else config.amp
    loader = open_loader(
        dataset,
        config.split,
        LoaderConfig(
            backend=config.backend,
            batch_size=config.batch_size,
            shuffle=False,
            augment=False,
            drop_last=False,
            mean=trained.mean,
            std=trained.std,
        ),
        device=device,
        dtype=AMP_DTYPES[amp],
    )
    num_images = dataset.split(config.split).num_images
    with progress_bars() as open_bar:
        evaluation = evaluate_network(
            trained.model,
            loader,
            len(dataset.class_names),
            amp=amp,
            device=device,
            pixels=trained.pixels,
            advance=open_bar("evaluate", num_images),
        )
    if config.json:
        print_json(evaluation.describe(dataset.class_names))
    else:
        print_evaluation(evaluation, dataset.class_names)
    draw_confusion(evaluation, dataset.class_names, config)
    message = None
    if not math.isfinite(evaluation.loss):
        message = f"loss {evaluation.loss}: outputs are no numbers; pass --amp off, or train again"
    elif config.min_top1 is not None and evaluation.top1 < config.min_top1:
        asked = f"--min-top1 asks for {config.min_top1:.4f}"
        message = f"top-1 {evaluation.top1:.4f}, {asked}; train longer"
    if message is not None:
        print_error(f"tinyvgg evaluate: {message}")
    return 0 if message is None else 1


def draw_confusion(
    evaluation: "Evaluation", class_names: Sequence[str], config: "EvaluateConfig"
) -> None:
    """Write the confusion matrix as a table and as a picture; only --out makes that a must."""
    from tinyvgg.reporting.plots import plot_confusion
    from tinyvgg.reporting.tables import write_confusion

    out = config.out or config.checkpoint.parent
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_confusion(evaluation.confusion, class_names, out / "confusion.csv")
        plot_confusion(evaluation.confusion, class_names, out / "confusion.png")
    except OSError as error:
        if config.out is not None:
            raise
        reason = explain_error(error)[1]
        logger.warning("%s, or pass --out (the results are complete)", reason)


def run_bench(argv: Sequence[str]) -> int:
    """Measure images/sec of every stage on this machine."""
    from tinyvgg.bench.config import BenchConfig

    config = parse_config(BenchConfig, "bench", argv)

    from tinyvgg.bench.stages import bench_stages, name_bottleneck
    from tinyvgg.reporting.console import print_json, print_line
    from tinyvgg.shards.store import open_dataset
    from tinyvgg.training.devices import find_device

    device = find_device(config.device)
    rates = []
    for rate in bench_stages(open_dataset(config.packed), device, config.window_sec):
        rates.append(rate)
        if not config.json:
            print_line(
                f"{rate.stage:<24} {rate.images_per_sec:>12,.1f} images/sec   "
                f"[{rate.low:,.1f} to {rate.high:,.1f}]"
            )
    bottleneck = name_bottleneck(rates)
    document = {"device": str(device), "stages": [asdict(rate) for rate in rates]}
    document["bottleneck"] = bottleneck
    if config.json:
        print_json(document)
    else:
        print_line(bottleneck)
    if config.out is not None:
        with naming(config.out):
            config.out.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "synth": run_synth,
    "download": run_download,
    "pack": run_pack,
    "verify": run_verify,
    "inspect": run_inspect,
    "train": run_train,
    "evaluate": run_evaluate,
    "bench": run_bench,
}


def parse_config(
    config_class: type[Config], command: str, argv: Sequence[str], default: Config | None = None
) -> Config:
    """Parse a command's flags into its config; a usage error ends with status 2."""
    import tyro

    try:
        with naming("stdout"):  # it prints the help
            return tyro.cli(  # type: ignore[return-value]
                config_class,
                prog=f"tinyvgg {command}",
                args=list(argv),
                default=default,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except ValueError as error:
        print(f"tinyvgg {command}: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(2) from error


def parse_train_config(argv: Sequence[str]) -> "TrainConfig":
    """Parse the flags of `train` over the defaults of --recipe, or of the run under --resume."""
    import tyro

    from tinyvgg.training.config import RECIPES, TrainConfig

    recipe = find_flag(argv, "--recipe")
    out = find_flag(argv, "--out")
    missing: Any = tyro.MISSING
    default = TrainConfig(missing, missing, **RECIPES.get(recipe or "fast", {}))
    if "--resume" in argv and out is not None:
        from tinyvgg.training.run import read_run_config

        default = replace(read_run_config(Path(out)), packed=missing, out=missing)
    return parse_config(TrainConfig, "train", argv, default)


def find_flag(argv: Sequence[str], flag: str) -> str | None:
    """Return the value of a flag before the flags are parsed, or None."""
    for position, word in enumerate(argv):
        if word == flag and position + 1 < len(argv):
            return argv[position + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


@contextmanager
def train_progress(
    training: "Training", *, is_main: bool
) -> Iterator[Callable[["StepReport"], None]]:
    """Show a bar on stderr and, every `log_every` steps, the reference's line on stdout."""
    from tinyvgg.reporting.console import line_printer
    from tinyvgg.reporting.progress import progress_bars
    from tinyvgg.training.tracing import traced_steps

    if not is_main:
        yield lambda report: None
        return
    config, batch_size = training.config, training.loader.batch_size
    num_done = training.step
    show = line_printer(is_json=config.json)

    def show_lines(text: str) -> None:
        for line in text.splitlines():
            show(line)

    with (
        progress_bars() as open_bar,
        traced_steps(config.profile, config.out, show_lines) as count_step,
    ):
        advance = open_bar("train", training.num_steps * batch_size)
        advance(num_done * batch_size)

        def observe(report: "StepReport") -> None:
            advance(batch_size)
            count_step()
            if report.loss is not None and report.top1 is not None:
                show(
                    f"[{report.epoch + 1}, {report.step:5d}] loss: {report.loss:.3f} "
                    f"accuracy: {100 * report.top1:.2f}"
                )

        yield observe


def print_epoch(metrics: "EpochMetrics", num_epochs: int, show: Callable[[str], None]) -> None:
    """Print the line of an epoch, and advice where data was slow."""
    show(
        f"epoch {metrics.epoch + 1}/{num_epochs}, {metrics.pixels} px, {metrics.pflop:.3g} PFLOP: "
        f"train loss {metrics.train_loss:.3f} top-1 {100 * metrics.train_top1:.2f} %, "
        f"val loss {metrics.val_loss:.3f} top-1 {100 * metrics.val_top1:.2f} % "
        f"top-5 {100 * metrics.val_top5:.2f} %, {metrics.images_per_sec:,.1f} images/sec, "
        f"{100 * metrics.data_wait_share:.1f} % waiting for data"
    )
    if metrics.data_wait_share > SLOW_DATA_SHARE:
        print(
            f"{100 * metrics.data_wait_share:.0f} % of the time went into waiting for data: "
            "put PACKED on a faster disk, or use --backend resident",
            file=sys.stderr,
        )


def print_summary(config: "TrainConfig", dataset: "PackedDataset") -> None:
    """Print layers, parameters and operations of a network on images as they are packed."""
    from tinyvgg.model.summary import summarize_network, train_flop
    from tinyvgg.reporting.console import print_json, print_line, print_tables
    from tinyvgg.reporting.tables import render_summary

    image = dataset.manifest.image
    shape = (config.arch, len(dataset.class_names), image.height, image.width)
    layers, flop = summarize_network(*shape), train_flop(*shape)
    if config.json:
        print_json({"arch": config.arch, "train_flop": flop, "layers": list(map(asdict, layers))})
        return
    print_tables([render_summary(config.arch, layers)])
    num_parameters = sum(layer.num_parameters for layer in layers)
    print_line(
        f"{config.arch}: {num_parameters:,} parameters; "
        f"{sum(layer.flop for layer in layers) / 1e9:.3f} GFLOP forward, "
        f"{flop / 1e9:.3f} GFLOP to train on an image of {image.width}x{image.height}"
    )


def print_evaluation(evaluation: "Evaluation", class_names: Sequence[str]) -> None:
    """Print every class and the averages, in the reference's words."""
    from tinyvgg.reporting.console import print_lines

    print_lines(
        "Accuracy of %5s : %2d %%" % (name, 100 * top1)  # noqa: UP031 - its format
        for name, top1 in zip(class_names, evaluation.class_top1.tolist(), strict=True)
        if top1 == top1  # NaN: no image of that class in the split
    )
    print_lines(
        [
            f"Accuracy average: {100 * evaluation.average_top1:.2f} %",
            f"top-1 {100 * evaluation.top1:.2f} %, top-5 {100 * evaluation.top5:.2f} %, "
            f"loss {evaluation.loss:.4f} on {int(evaluation.confusion.sum()):,} images",
        ]
    )


def render_help() -> str:
    """Return what `tinyvgg --help` prints."""
    lines = [f"  {name:<10} {(run.__doc__ or '').strip()}" for name, run in COMMANDS.items()]
    return "\n".join(
        [
            "usage: tinyvgg COMMAND …    ('tinyvgg COMMAND --help' lists its flags)",
            "",
            "TinyImageNet training at the speed of the accelerator, not of the JPEG decoder.",
            "",
            "commands, in the order data walks through them:",
            *lines,
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 data or machine, 2 usage."""
    command, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if argv is None:
        from tinyvgg.training.process import prepare_process

        prepare_process([command, *rest])
    from tinyvgg.reporting.console import (
        discard_stdout,
        flush_stdout,
        prepare_streams,
        print_error,
    )

    prepare_streams()
    try:
        try:
            with raising_signals():
                return run_command(command, rest)
        finally:
            flush_stdout()
    except BrokenPipeError:  # head, less: who reads has read enough
        discard_stdout()
        return CLOSED_PIPE_STATUS
    except (TinyvggError, ValueError, OSError, KeyboardInterrupt) as error:
        status, text = explain_error(error)
        print_error(f"tinyvgg {command}: {text}")
        if isinstance(error, OSError) and error.filename == "stdout":
            discard_stdout()
        return status


class EndedBySignal(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised as Ctrl-C is, so that a command cleans up on its way out."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def raising_signals() -> Iterator[None]:
    """Raise what would end the process without a word; what is ignored or handled stays so."""

    def handle(number: int, frame: object) -> None:
        for other in numbers:  # cleaning up is not to be cut short
            signal.signal(other, signal.SIG_IGN)
        raise EndedBySignal(number)

    is_main = threading.current_thread() is threading.main_thread()  # others may set no handler
    known = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]  # Windows has one
    numbers = [n for n in known if is_main and n and signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def run_command(command: str, argv: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    if command in ("-h", "--help"):
        print(render_help())
        return 0
    if command == "--version":
        print(f"tinyvgg {__version__}")
        return 0
    if command not in COMMANDS:
        names = ", ".join(COMMANDS)
        print(f"tinyvgg: command must be one of {names}, got {command!r}", file=sys.stderr)
        return 2
    return COMMANDS[command](argv)


def explain_error(error: BaseException) -> tuple[int, str]:
    """Return the exit status and the one line for an error that is not a bug of ours."""
    if isinstance(error, EndedBySignal):
        return 128 + error.number, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, OSError):
        if error.errno is None:
            raise error
        return 1, printable(explain_os_error(error))
    if isinstance(error, TinyvggError):
        return 1, str(error)
    return 2, printable(str(error))


def explain_os_error(error: OSError) -> str:
    """Say which file the machine failed at, with what it needed, and what is free there."""
    path = None if error.filename is None else Path(str(error.filename))
    where = "" if path is None else f"{path}: "
    what = ", ".join([error.strerror or type(error).__name__, *getattr(error, "__notes__", [])])
    if error.errno != errno.ENOSPC or path is None or str(path) == "stdout":
        return f"{where}{what}; check disk and rights"
    folder = next(
        parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists()
    )
    free = shutil.disk_usage(folder).free
    return f"{where}{what}, {free:,} bytes free; make room, or write elsewhere"


if __name__ == "__main__":
    raise SystemExit(main())
