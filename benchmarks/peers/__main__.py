"""Peers side by side: sets, a proof of each arm, figures, one record and benchmarks/RESULTS.md.

    python -m benchmarks.peers SOURCE [--work DIR] [--environments DIR] [--minutes 25]

SOURCE is what `benchmarks.jpeg` takes: real images of 64 x 64. What is done lies in DIR: the same
command goes on where it was stopped, until every arm has its repeats or the minutes are over, and
then writes the record; at another commit tinyvgg's own arms are measured again. Arms that are slow
(under 50,000 images/sec) and have no bar run once, the others 3 times.
A set is dropped from the page cache once it is written: the proof or the warm-up reads it again.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.jpeg import prepare
from benchmarks.measure import (
    Arm,
    Measurement,
    describe_machine,
    make_bar,
    measure_once,
    wait_until_idle,
    write_record,
)
from benchmarks.peers.contract import MODULES, Contest, Peer
from benchmarks.peers.results import is_of_us, split_name, write_page
from benchmarks.throttled import drop_pages

CONTESTS: tuple[Contest, ...] = ("stored", "flip", "crop", "photographs", "convert")
CEILINGS: dict[Contest, tuple[str, str]] = {  # target, the set it reads
    "stored": ("benchmarks.loaders:index_select", "raw64"),
    "flip": ("benchmarks.loaders:normalize_pass", "raw64"),
    "crop": ("benchmarks.loaders:normalize_pass", "raw64"),
    "photographs": ("benchmarks.jpeg:decoder_alone", "jpeg224"),
    "convert": ("benchmarks.pack:read_decode_hash", "files64/train"),
}
BARS = {  # tinyvgg over a peer: at least
    ("stored", "plain torch, bare index_select"): 0.95,
    ("stored", "FFCV, raw"): 1.6,
    ("flip", "FFCV, raw"): 4.0,
    ("crop", "FFCV, raw"): 10.0,
    ("convert", "FFCV, raw"): 4.0,
}
REPEATS, SLOW_RATE, LIMIT_SEC = 3, 50_000, 180


def interpreter(environment: str | None, folder: Path) -> str | None:
    """Return the interpreter of a peer; None: that of this process."""
    python = folder / str(environment) / "bin" / "python"
    return str(python) if environment and python.exists() else None


def list_arms(
    work: Path, environments: Path, only: str
) -> tuple[list[tuple[Contest, Arm]], list[dict[str, str]]]:
    """Return the arms of all contests, and what is missing with its reason."""
    arms: list[tuple[Contest, Arm]] = []
    missing: list[dict[str, str]] = []
    for contest, (target, name) in CEILINGS.items():
        key = "source" if contest == "convert" else "packed"
        once: dict[str, Any] = {}
        read: dict[str, Any] = {key: f"{work}/{name}"}
        if contest == "convert":
            once = {"window_sec": 0.0, "num_windows": 1, "min_warm_windows": 1}
            read["val_share"] = 0.1  # as `ours.write`
        arms.append((contest, Arm(f"{contest}: ceiling", target, read, **once)))
    for module in MODULES:
        peer: Peer = importlib.import_module(f"benchmarks.peers.{module}").PEER
        python = interpreter(peer.environment, environments)
        if peer.environment and python is None and peer.environment != "dali":
            failed = environments / f"{peer.environment}.failed"
            why = failed.read_text().strip() if failed.exists() else "run make peers"
            missing.append({"peer": module, "contest": "all", "reason": f"not installed: {why}"})
            continue
        missing += [
            {"peer": module, "contest": contest, "reason": reason}
            for contest, reason in peer.cannot.items()
        ]
        for variant in peer.variants:
            for contest in variant.contests:
                given: dict[str, Any] = {"module": module, "encoding": variant.encoding}
                extra: dict[str, Any] = {"num_windows": 3, "min_warm_windows": 2}
                if contest == "convert":
                    target = "benchmarks.peers.arms:convert"
                    given |= {"source": f"{work}/files64", "out": f"{work}/converted"}
                    extra = {"window_sec": 0.0, "num_windows": 1, "min_warm_windows": 0}
                else:
                    target = "benchmarks.peers.arms:timed"
                    folder = place_of(work, module, contest, variant.encoding)
                    given |= {"contest": contest, "folder": folder, "options": variant.options}
                name = f"{contest}: {variant.name}"
                arm = Arm(name, target, given, python=python, ceiling=f"{contest}: ceiling",
                          **extra)  # fmt: skip
                arms.append((contest, arm))
    chosen = [pair for pair in arms if not only or any(w in pair[1].name for w in only.split("|"))]
    return chosen, missing


def place_of(work: Path, module: str, contest: str, encoding: str | None) -> str:
    """Return the folder that a variant reads."""
    is_large = contest == "photographs"
    if encoding is None:
        return f"{work}/{'photographs' if is_large else 'files64'}"
    if module == "ours":
        return f"{work}/{'jpeg224' if is_large else 'raw64' if encoding == 'raw' else 'jpeg64'}"
    return f"{work}/peers/{module}-{encoding}-{224 if is_large else 64}"


def prepare_set(arm: Arm, work: Path) -> None:
    """Write the set that an arm reads, unless it is there."""
    given = arm.options
    folder = Path(given["folder"])
    if folder.exists():
        return
    source = work / ("photographs" if given["contest"] == "photographs" else "files64")
    making = folder.with_name(folder.name + ".partial")
    run_words(arm, ["write", given["module"], str(source), str(making), given["encoding"]])
    making.rename(folder)
    forget(folder)


def forget(folder: Path) -> None:
    """Drop the files of a set from the page cache: it is read as users do, who wrote it long ago.

    What has just been written may lie in huge pages, or not, by the calls that wrote it; a loader
    is 1.1 times as fast where it does.
    """
    os.sync()
    drop_pages(folder)


def prove_arm(arm: Arm, work: Path) -> dict[str, Any]:
    """Return what one epoch of an arm showed."""
    given = arm.options
    truth = work / f"truth-{'photographs' if given['contest'] == 'photographs' else 'files64'}.json"
    if not truth.exists():
        source = work / truth.stem.removeprefix("truth-")
        run_words(arm, ["truth", str(source), str(truth)])
    options = json.dumps(given["options"])
    words = ["prove", given["module"], given["contest"], given["folder"], given["encoding"] or "",
             options, str(truth)]  # fmt: skip
    found: dict[str, Any] = json.loads(run_words(arm, words).splitlines()[-1])
    return found


def run_words(arm: Arm, words: list[str]) -> str:
    """Run a command of `arms` by the interpreter of an arm; return what it printed."""
    python = arm.python or sys.executable
    done = subprocess.run([python, "-m", "benchmarks.peers.arms", *words], capture_output=True,
                          text=True, errors="replace", timeout=10 * LIMIT_SEC)  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1][:300])
    return done.stdout


def measure_arm(arm: Arm, work: Path, state: dict[str, Any], commit: str) -> None:
    """Prove an arm once, then measure it once more; a failure is kept with its reason."""
    kept = state.setdefault(arm.name, {"windows": [], "cpu": [], "commit": commit})
    try:
        if arm.target.endswith(":timed") and "proof" not in kept:
            prepare_set(arm, work)
            kept["proof"] = prove_arm(arm, work)
            if not kept["proof"]["is_right"]:
                kept["failed"] = f"wrong images: {kept['proof']}"
                return
        rates, cpu_sec = measure_once(arm)
    except (RuntimeError, subprocess.SubprocessError, ValueError, IndexError) as error:
        kept["failed"] = str(error)[-300:]
        return
    kept["windows"].append(rates)
    kept["cpu"].append(cpu_sec)
    print(f"{arm.name}: {statistics.median(rates):,.0f} images/sec", file=sys.stderr, flush=True)


def read_state(path: Path, commit: str) -> dict[str, Any]:
    """Return what was measured before by arm, without tinyvgg's own of other commits."""
    state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return {
        name: kept
        for name, kept in state.items()
        if kept["commit"] == commit or not is_of_us(split_name(name)[1])
    }


def is_due(kept: dict[str, Any], repeat: int, *, is_pivot: bool) -> bool:
    """Return whether an arm runs in this repeat: those that are slow run in the first only."""
    if "failed" in kept or len(kept.get("windows", [])) > repeat:
        return False
    return repeat == 0 or is_pivot or statistics.median(kept["windows"][0]) >= SLOW_RATE


def make_bars(measured: dict[str, Measurement]) -> list[dict[str, Any]]:
    """Return tinyvgg over every peer of a contest, repeats paired as far as both have them."""
    bars = []
    for name, other in measured.items():
        contest, title = split_name(name)
        pivot_name = "tinyvgg, torch, JPEG" if contest == "photographs" else "tinyvgg, torch"
        pivot = measured.get(f"{contest}: {pivot_name}")
        if pivot is None or title in ("ceiling", pivot_name):
            continue
        count = min(len(pivot.windows), len(other.windows))
        ours = Measurement(pivot.arm, pivot.windows[:count])
        theirs = Measurement(other.arm, other.windows[:count])
        is_ours = "tinyvgg" in title
        least = 0.0 if is_ours else BARS.get((contest, title), 1.0)
        bars.append(make_bar(ours, theirs, f"{contest}: tinyvgg over {title}", least))
    return bars


def main() -> None:  # noqa: C901
    """Prepare, prove, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=os.path.abspath)
    parser.add_argument("--work", type=os.path.abspath, default="demo/peers", help="5 GB")
    parser.add_argument("--environments", type=os.path.abspath, default=".venv-peers")
    parser.add_argument("--minutes", type=float, default=25, help="after which no arm starts")
    parser.add_argument("--only", default="", help="arms whose name has one of these: a|b")
    parser.add_argument("--no-record", action="store_true", help="print; write no record, no page")
    options = parser.parse_args()
    started, work = time.monotonic(), Path(options.work)
    (work / "peers").mkdir(parents=True, exist_ok=True)
    prepare(Path(options.source), work)
    for name in ("raw64", "jpeg64", "jpeg224"):
        forget(work / name)
    arms, missing = list_arms(work, Path(options.environments), options.only)
    path = work / "state.json"
    machine = describe_machine()
    state = read_state(path, machine["commit"])
    if not options.no_record:
        wait_until_idle()
    pivots = {"tinyvgg, torch", "tinyvgg, torch, JPEG", "ceiling"}
    for repeat in range(REPEATS):
        for contest, arm in arms:
            title = split_name(arm.name)[1]
            is_pivot = title in pivots or (contest, title) in BARS
            if time.monotonic() - started > 60 * options.minutes:
                break
            if is_due(state.get(arm.name, {}), repeat, is_pivot=is_pivot):
                measure_arm(arm, work, state, machine["commit"])
                path.write_text(json.dumps(state))
    measured = {
        arm.name: Measurement(arm, state[arm.name]["windows"], state[arm.name]["cpu"])
        for _, arm in arms
        if state.get(arm.name, {}).get("windows")
    }
    for contest, arm in arms:
        kept = state.get(arm.name, {})
        if not kept.get("windows"):
            why = kept.get("failed", "not reached in the minutes given")
            title = split_name(arm.name)[1]
            missing.append({"peer": title, "contest": contest, "reason": why})
    for name, measurement in measured.items():
        print(f"{name:<52}{measurement.images_per_sec:>14,.0f} images/sec")
    for lack in missing:
        print(f"{lack['contest']}: {lack['peer']}: {lack['reason']}")
    if options.no_record:
        return
    claim = (
        "loaders and writers side by side, batch 256 (photographs 64), shuffled, on a CPU device, "
        "page cache warm, each arm proven over one epoch first"
    )
    machine["missing"] = missing
    machine["commits"] = sorted({state[name]["commit"] for name in measured})
    machine["proofs"] = {name: state[name].get("proof") for name in measured}
    print(write_record("peers", claim, machine, measured, make_bars(measured)))
    write_page()


if __name__ == "__main__":
    main()
