"""The command line: all the wiring, and the only module that sees every room.

From: argv. Each command has a config dataclass in its room; its flags are derived from it.
To:   exit status 0 (done), 1 (the data or the machine) or 2 (usage).

stdout carries results, stderr progress; with `--json` stdout is one JSON document and nothing else.
Results are printed before pictures are drawn or side files written. A room is imported when its
command runs, so `--help` takes a few hundredths of a second and `pack` never sees torch.
"""

import difflib
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyvgg import __version__
from tinyvgg.endings import explain_error, raising_signals
from tinyvgg.errors import RankError, TinyvggError, naming
from tinyvgg.flags import parse_config

if TYPE_CHECKING:
    from tinyvgg.bench.config import BenchConfig

CLOSED_PIPE_STATUS = 128 + 13  # what a shell says of a command that SIGPIPE ended


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

    from tinyvgg.packing.pack import describe_part, pack_images, pack_part
    from tinyvgg.reporting.console import print_json, print_line
    from tinyvgg.reporting.progress import progress_bars

    if config.part is not None:
        with progress_bars() as open_bar:
            part = pack_part(config, open_bar)
        if config.json:
            print_json({**asdict(part), "folder": str(part.folder)})
        else:
            print_line(describe_part(part))
        return 0
    with progress_bars() as open_bar:
        manifest = pack_images(config, open_bar)
    if config.json:
        fields = manifest.model_dump(exclude_none=True)
        print_json({"packed": str(config.out), "manifest": fields})
        return 0
    train, val = manifest.splits.train, manifest.splits.val
    num_skipped = len(train.skipped) + len(val.skipped)
    num_recoded = len(train.recoded or []) + len(val.recoded or [])
    print_line(
        f"{config.out}: {train.num_images:,} train and {val.num_images:,} val images of "
        f"{len(manifest.classes):,} classes"
        + (f"; {num_skipped:,} bad files skipped, listed in manifest.json" if num_skipped else "")
        + (f"; {num_recoded:,} files stored as other JPEGs, listed there" if num_recoded else "")
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
    from tinyvgg.launched import adopt_slurm
    from tinyvgg.runs.settings import parse_train_flags

    adopt_slurm()
    flags = parse_train_flags(argv)
    recipe, options, output = flags.build_recipe(), flags.run, flags.output

    from tinyvgg.ranks import agree_on, joined_world
    from tinyvgg.reporting.console import print_json
    from tinyvgg.reporting.run_lines import following
    from tinyvgg.reporting.tracking import open_trackers
    from tinyvgg.runs.fit import open_run, train_run
    from tinyvgg.runs.folder import RunFolder
    from tinyvgg.runs.signals import stop_request
    from tinyvgg.shards.store import open_dataset
    from tinyvgg.training.devices import find_device

    trackers = open_trackers(output)
    dataset = open_dataset(flags.packed)
    if output.summary:
        from tinyvgg.reporting.run_lines import print_summary

        print_summary(recipe, dataset, is_json=output.json)
        return 0
    device = find_device(options.device)
    timeout = options.dist_timeout
    with (
        joined_world(device, timeout) as rank,
        stop_request(timeout) as stop,
        ExitStack() as stack,
    ):
        recipe, options = agree_on((recipe, options))  # under --resume rank 0 alone need see them
        if rank == 0:
            stack.enter_context(RunFolder(flags.out).writing())
        run = open_run(recipe, dataset, device, flags.out, options, is_main=rank == 0)
        with following(run, output, trackers) as callback:
            train_run(run, stop, callback)
        if rank == 0 and run.history:
            from tinyvgg.reporting.run_lines import report_run

            report_run(flags.out, is_json=output.json)
        if rank == 0 and output.json:
            history = [asdict(record) for record in run.history]
            best = None if run.best is None else asdict(run.best)
            print_json(
                {
                    "run": str(flags.out),
                    "step": run.trainer.step,
                    "history": history,
                    "best": best,
                    "is_finished": run.is_finished,
                    "is_target_reached": run.is_target_reached,
                }
            )
        return 0 if stop.agreed is None else 128 + stop.agreed


def run_evaluate(argv: Sequence[str]) -> int:
    """Score a checkpoint: top-1, top-5, loss, every class, confusion matrix."""
    from tinyvgg.inference.config import EvaluateConfig

    config = parse_config(EvaluateConfig, "evaluate", argv)

    from tinyvgg.inference.evaluate import evaluate
    from tinyvgg.inference.trained import check_classes
    from tinyvgg.ranks import joined_world
    from tinyvgg.reporting.console import print_error, print_json
    from tinyvgg.reporting.progress import progress_bars
    from tinyvgg.reporting.scores import draw_confusion, find_fault, print_evaluation
    from tinyvgg.runs.networks import load
    from tinyvgg.shards.store import open_dataset
    from tinyvgg.training.devices import find_device

    device = find_device(config.device)
    trained = load(config.checkpoint, device=device)
    dataset = open_dataset(config.packed)
    check_classes(trained, dataset)
    with joined_world(device, config.dist_timeout) as rank, ExitStack() as stack:
        advance: Callable[[int], None] = lambda num_images: None  # noqa: E731
        if rank == 0:
            open_bar = stack.enter_context(progress_bars())
            advance = open_bar("evaluate", dataset.split(config.split).num_images)
        evaluation = evaluate(
            trained,
            dataset,
            split=config.split,
            backend=config.backend,
            batch_size=config.batch_size,
            amp=config.amp,
            advance=advance,
        )
    fault = find_fault(evaluation, config.min_top1)
    if rank != 0:
        return 0 if fault is None else 1
    if config.json:
        print_json(evaluation.describe(dataset.class_names))
    else:
        print_evaluation(evaluation, dataset.class_names, dataset.class_words)
    out = config.out or config.checkpoint.parent
    names = dataset.class_names, dataset.class_words
    draw_confusion(evaluation, *names, out, is_needed=config.out is not None)
    if fault is not None:
        print_error(f"tinyvgg evaluate: {fault}")
    return 0 if fault is None else 1


def run_predict(argv: Sequence[str]) -> int:
    """Say what images show: classes, words, probabilities."""
    from tinyvgg.inference.config import PredictConfig

    config = parse_config(PredictConfig, "predict", argv)

    from tinyvgg.inference.given_images import find_images
    from tinyvgg.inference.predict import Predictor
    from tinyvgg.reporting.predictions import PredictionPrinter
    from tinyvgg.reporting.progress import progress_bars
    from tinyvgg.runs.networks import load
    from tinyvgg.training.devices import find_device

    trained = load(config.checkpoint, device=find_device(config.device))
    images = list(find_images(config.images, sys.stdin.buffer))
    printer = PredictionPrinter(config, len(images))
    predictor = Predictor(
        trained,
        top_k=config.top_k,
        batch_size=config.batch_size,
        amp=config.amp,
        num_kept=printer.num_drawn,
    )
    with progress_bars() as open_bar:
        advance = open_bar("predict", len(images))
        for prediction in predictor.predict(images, advance):
            printer.add(prediction)
    return printer.finish()


def run_export(argv: Sequence[str]) -> int:
    """Write a network as .safetensors, .onnx or .pt2, read back and compared."""
    from tinyvgg.inference.config import ExportConfig

    config = parse_config(ExportConfig, "export", argv)

    from tinyvgg.inference.export import export
    from tinyvgg.reporting.console import print_json, print_line
    from tinyvgg.runs.networks import load

    trained = load(config.checkpoint, device="cpu")
    exported = export(trained, config.out, given=config.input, overwrite=config.overwrite)
    if config.json:
        print_json({**asdict(exported), "path": str(exported.path)})
        return 0
    print_line(
        f"{exported.path}: {exported.num_bytes:,} bytes; read back, its logits (up to "
        f"{exported.max_logit:.1f}) differ by {exported.max_difference:.1g} at most"
    )
    if "input" in exported.metadata:
        print_line(f"{exported.path}: takes {exported.metadata['input']}; gives logits [B, K]")
    return 0


def run_report(argv: Sequence[str]) -> int:
    """Write one HTML page of a run, or of several beside each other."""
    from tinyvgg.reporting.config import ReportConfig

    config = parse_config(ReportConfig, "report", argv)

    from tinyvgg.reporting.console import print_line
    from tinyvgg.reporting.report.page import write_report

    path = write_report(config.runs, config.out)
    print_line(f"{path}: {path.stat().st_size / 1e6:.2f} MB; open it in a browser")
    return 0


def run_bench(argv: Sequence[str]) -> int:
    """Measure images/sec on this machine: every stage, or loading beside ImageFolder's."""
    from tinyvgg.bench.config import BenchConfig

    config = parse_config(BenchConfig, "bench", argv)
    if config.compare is not None:
        return compare_bench(config.compare, is_json=config.json)
    document = run_against(config) if config.against is not None else run_stages(config)
    if config.out is not None:
        with naming(config.out):
            config.out.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    return 0


def compare_bench(paths: tuple[Path, Path], *, is_json: bool) -> int:
    """Compare two results of bench; 1 if anything is slower."""
    from tinyvgg.bench.compare import compare_results, render_compared
    from tinyvgg.reporting.console import print_json, print_lines

    found = compare_results(*paths)
    if is_json:
        print_json(found.describe())
    else:
        print_lines(render_compared(found))
    return 1 if found.is_slower else 0


def run_against(config: "BenchConfig") -> dict[str, Any]:
    """Measure loading beside ImageFolder and DataLoader; print the page, return the result."""
    from tinyvgg.bench.against import bench_against, render_page
    from tinyvgg.reporting.console import print_json, print_lines
    from tinyvgg.reporting.progress import progress_bars
    from tinyvgg.shards.store import open_dataset
    from tinyvgg.training.devices import find_device

    assert config.packed is not None
    assert config.against is not None
    device = find_device(config.device)
    dataset = open_dataset(config.packed)
    with progress_bars(has_rate=False) as open_bar:
        found = bench_against(
            dataset,
            config.against,
            device,
            batch_size=config.batch_size,
            workers=config.workers,
            repeats=config.repeats,
            window_sec=config.window_sec,
            open_bar=open_bar,
        )
    document = found.describe()
    if config.json:
        print_json(document)
    else:
        print_lines(render_page(found))
    return document


def run_stages(config: "BenchConfig") -> dict[str, Any]:
    """Measure every stage; print a line each, return the result."""
    from tinyvgg.bench.machine import describe_machine
    from tinyvgg.bench.stages import bench_stages, name_bottleneck
    from tinyvgg.reporting.console import print_json, print_line
    from tinyvgg.shards.store import open_dataset
    from tinyvgg.training.devices import find_device

    assert config.packed is not None
    device = find_device(config.device)
    rates = []
    dataset = open_dataset(config.packed)
    machine = describe_machine()
    for rate in bench_stages(
        dataset,
        device,
        config.window_sec,
        repeats=config.repeats,
        batch_size=config.batch_size,
    ):
        rates.append(rate)
        if not config.json:
            print_line(str(rate))
    bottleneck = name_bottleneck(rates)
    document = {
        "schema": 1,
        "device": str(device),
        "machine": machine,
        "stages": [asdict(rate) for rate in rates],
        "bottleneck": bottleneck,
    }
    if config.json:
        print_json(document)
    else:
        print_line(bottleneck)
    return document


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "synth": run_synth,
    "download": run_download,
    "pack": run_pack,
    "verify": run_verify,
    "inspect": run_inspect,
    "train": run_train,
    "evaluate": run_evaluate,
    "predict": run_predict,
    "export": run_export,
    "report": run_report,
    "bench": run_bench,
}


def render_help() -> str:
    """Return what `tinyvgg --help` prints."""
    lines = [f"  {name:<10} {(run.__doc__ or '').strip()}" for name, run in COMMANDS.items()]
    return "\n".join(
        [
            "usage: tinyvgg COMMAND …    ('tinyvgg COMMAND --help' lists its flags)",
            "       tinyvgg --version | --completion bash|zsh|fish",
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
    except (TinyvggError, ValueError, OSError, KeyboardInterrupt, ModuleNotFoundError) as error:
        status, text = explain_error(error)
        print_error(f"tinyvgg {command}: {text}")
        if isinstance(error, OSError) and error.filename == "stdout":
            discard_stdout()
        if argv is None and isinstance(error, RankError):
            # others and torchrun wait for this process, whose interpreter takes 1.5 s to end
            sys.stderr.flush()
            os._exit(status)
        return status


def run_command(command: str, argv: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    if command in ("-h", "--help"):
        print(render_help())
        return 0
    if command == "--completion":
        from tinyvgg.completion import print_completion

        print_completion(argv[0] if argv else "")
        return 0
    if command == "--version":
        print(f"tinyvgg {__version__}")
        return 0
    if command not in COMMANDS:
        names, near = ", ".join(COMMANDS), difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"tinyvgg: command must be one of {names}, got {command!r}{hint}", file=sys.stderr)
        return 2
    return COMMANDS[command](argv)


if __name__ == "__main__":
    raise SystemExit(main())
