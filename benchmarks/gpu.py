"""GPU: every stage on one CUDA device in ten minutes, what matters most first, in one record.

    python -m benchmarks.gpu PACKED [--seconds 600] [--arms NAME…]      DATA=real images, a path
    python -m benchmarks.gpu --list
    python -m benchmarks.gpu PACKED --device cpu --tiny                 each arm's code, no record

The arms and their order are `gpu_arms/plan.py`'s. They run one after the other in one worker
process, which is replaced if it hangs or dies. A line of JSON is written for each row as it is
measured and for each arm as it ends, and the record after each arm: stopped at any moment, both
hold what was done. MFU counts the operations of the network as written, and those that are done.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from benchmarks.gpu_arms.plan import Arm, Row, Setting, select_arms
from benchmarks.gpu_arms.supervise import Supervisor
from benchmarks.measure import save_record

BARS = {"share_of_step": 0.98, "mfu": 0.4}  # of rows `train`; of the best row `step`


def default_lines() -> Path:
    """Return where JSON lines go if nothing says otherwise."""
    return Path(os.environ.get("RESULTS") or Path(tempfile.gettempdir()) / "tinyvgg-gpu.jsonl")


def parse_options() -> argparse.Namespace:
    """Return the command line's options, checked."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("packed", nargs="?", type=os.path.abspath, help="folder that 'tinyvgg pack' wrote")
    add(
        "--seconds",
        type=float,
        default=600,
        metavar="N",
        help="no arm starts after them, and none gets more than is left of them (%(default)s)",
    )
    add("--arms", nargs="+", default=[], metavar="NAME", help="only these: names or parts of them")
    add("--list", action="store_true", help="print the arms, what matters most first, and stop")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="to measure (%(default)s)")
    add(
        "--tiny",
        action="store_true",
        help="execute each arm's code, small and eager; the figures mean nothing, no record",
    )
    add("--repeats", type=int, default=5, help="windows of each figure (%(default)s)")
    add(
        "--lines",
        type=Path,
        default=default_lines(),
        help="file that lines of JSON are added to; the environment's RESULTS, else %(default)s",
    )
    options = parser.parse_args()
    if not options.list and options.packed is None:
        parser.error("PACKED is missing: a folder that 'tinyvgg pack' wrote")
    if options.packed is not None and not (Path(options.packed) / "manifest.json").exists():
        parser.error(f"{options.packed}: no manifest.json; run 'tinyvgg pack' first")
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    try:
        options.arms = select_arms(options.arms)
    except ValueError as error:
        parser.error(str(error))
    return options


class Report:
    """What is written while arms run: a table on stdout, JSON lines, the record.

    Args:
        options: of the command line.
        lines: opened to append.
        supervisor: knows the machine.
    """

    def __init__(self, options: argparse.Namespace, lines: TextIO) -> None:
        self.options = options
        self.lines = lines
        self.results: list[dict[str, Any]] = []
        self.record: Path | None = None

    def add_row(self, arm: Arm, row: Row) -> None:
        """Write a row as it comes."""
        self._write_line({"what": "row", "arm": arm.name, **row})
        print(f"  {describe_row(row)}", flush=True)

    def add_result(self, result: dict[str, Any], machine: dict[str, Any] | None) -> None:
        """Write an arm that has ended, and the record of all so far."""
        self.results.append(result)
        ended = {key: result[key] for key in ("status", "reason", "seconds", "card")}
        self._write_line({"what": "arm", "arm": result["name"], **ended})
        reason = f": {result['reason']}" if result["reason"] else ""
        print(f"{result['name']}: {result['status']}{reason} ({result['seconds']:.1f} s)",
              flush=True)  # fmt: skip
        if machine is not None and not self.options.tiny:
            claim = (
                f"one {self.options.device} device, {len(self.results)} of "
                f"{len(self.options.arms)} arms ended, batch 512 where not said otherwise"
            )
            bars = make_bars(self.results)
            self.record = save_record("gpu", claim, machine, self.results, bars)

    def _write_line(self, line: dict[str, Any]) -> None:
        stamped = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **line}
        print(json.dumps(stamped), file=self.lines, flush=True)


def describe_row(row: Row) -> str:
    """Return a row on one line: numbers short, lists and nested values left to the record."""
    if "calls_per_step" in row:
        return (
            f"{row['us_per_step']:>10,.1f} us a step {100 * row['share']:>5.1f} % "
            f"{row['calls_per_step']:>6.1f} x  {row['name']}"
        )
    words = [
        f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row.items()
        if key != "name" and value is not None and not isinstance(value, list | dict)
    ]
    if "share_of_step" in row:
        words.append("share_of_step {:.3f} [{:.3f} to {:.3f}]".format(*row["share_of_step"]))
    return f"{row['name']}: {', '.join(words)}"


def make_bars(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a record's bars: each loop over its step, and the best MFU of a step."""
    bars = []
    for result in results:
        for row in result["rows"]:
            if "share_of_step" in row:
                median, low, high = row["share_of_step"]
                bars.append(make_bar(f"{result['name']} over its step", median, low, high,
                                     BARS["share_of_step"]))  # fmt: skip
    shares = [row["mfu"] for result in results for row in result["rows"]
              if row["name"] == "step" and row["mfu"] is not None]  # fmt: skip
    if shares:
        best = max(shares)
        bars.append(make_bar("MFU of the fastest step", best, best, best, BARS["mfu"]))
    return bars


def make_bar(what: str, median: float, low: float, high: float, at_least: float) -> dict[str, Any]:
    """Return one line of a record's bars."""
    return {"what": what, "ratio": median, "low": low, "high": high, "at_least": at_least,
            "is_met": median >= at_least}  # fmt: skip


def stop_like_interrupt(number: int, frame: FrameType | None) -> None:
    """End as after Ctrl-C, so that the worker ends too."""
    raise KeyboardInterrupt


def main() -> int:
    """Measure arms until all are done or the seconds are over; return the exit status."""
    options = parse_options()
    if options.list:
        for arm in options.arms:
            print(f"{arm.name:<32} {arm.what} (at most {arm.limit_sec:g} s)")
        return 0
    data = os.environ.get("DATA")
    setting = Setting(
        options.packed,
        options.device,
        options.tiny,
        str(Path(data).resolve()) if data else None,
        1 if options.tiny else options.repeats,
    )
    signal.signal(signal.SIGTERM, stop_like_interrupt)
    options.lines.parent.mkdir(parents=True, exist_ok=True)
    with options.lines.open("a") as lines:
        report = Report(options, lines)
        supervisor = Supervisor(setting, options.seconds, report.add_row)
        try:
            for result in supervisor.measure(options.arms):
                report.add_result(result, supervisor.machine)
        except KeyboardInterrupt:
            print("stopped; what was measured stays", file=sys.stderr)
    print(f"lines: {options.lines}")
    if report.record is not None:
        print(f"record: {report.record}")
    failed = [result["name"] for result in report.results if result["status"] == "failed"]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed or len(report.results) < len(options.arms) else 0


if __name__ == "__main__":
    raise SystemExit(main())
