"""Hosts: what one core packs, what two do, and how far a model of one core foretells two.

    python -m benchmarks.hosts SOURCE [--scratch FOLDER] [--repeats 5] [--ray PYTHON]

SOURCE is a folder of real images; each window is a whole command over all of them. Every process is
bound to a core, so a core stands for a host: what hosts share besides, storage, is not in it. Parts
run as `tinyvgg pack --part I/N`, all at once, of many small shards, so that all have as many. The
model of N hosts is

    seconds = part_again + (part - part_again) / N + finish

from arms on one core: a part of one, the same part again (its start, its listing: what every host
repeats), and `--finish`; `tools/render_scale.py` applies it to larger sets. With --ray, an
interpreter that has Ray, its tasks run beside threads, the start of the cluster not counted.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Arm, Measurement, make_bar, run_benchmark
from benchmarks.pack import count_images, predict
from tinyvgg.bench.windows import Work
from tinyvgg.packing.config import PackConfig

ONE = "one part, one core"
TWO = "two parts at once, a core each"
AGAIN = "one part again, nothing left to do"
FINISH = "--finish"
SHARD_SIZE = 1000
THREADS = "two threads of one process"
RAY = "two Ray workers"


def start(source: str, out: Path, words: list[str], core: int) -> subprocess.Popen[bytes]:
    """Start a pack command on one core."""
    command = [sys.executable, "-m", "tinyvgg.cli", "pack", source, str(out), "--workers", "1"]
    command += ["--shard-size", str(SHARD_SIZE)]
    return subprocess.Popen(
        ["taskset", "-c", str(core), *command, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def run_parts(source: str, out: Path, cores: list[int]) -> None:
    """Run as many parts as there are cores, all at once."""
    processes = [
        start(source, out, ["--part", f"{index}/{len(cores)}"], core)
        for index, core in enumerate(cores)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError("a part failed")


def parts(source: str, scratch: str, cores: list[int]) -> Work:
    """Parts into an empty folder, and no `--finish`."""
    num_images, out = count_images(source), Path(scratch) / "parts"

    def work() -> int:
        shutil.rmtree(out.with_name("parts.partial"), ignore_errors=True)
        os.sync()  # what an earlier window left to write is not this one's cost
        run_parts(source, out, cores)
        return num_images

    return work


def part_again(source: str, scratch: str, cores: list[int]) -> Work:
    """The same part once more: start, listing and the check of what is there."""
    num_images, out = count_images(source), Path(scratch) / "again"
    run_parts(source, out, cores)

    def work() -> int:
        run_parts(source, out, cores)
        return num_images

    return work


def finish(source: str, scratch: str, cores: list[int]) -> Work:
    """`--finish`, once, of the part that the set-up packed; on the first core."""
    num_images, out = count_images(source), Path(scratch) / "finish"
    shutil.rmtree(out, ignore_errors=True)
    run_parts(source, out, cores)
    os.sync()

    def work() -> int:
        if start(source, out, ["--finish"], cores[0]).wait():
            raise RuntimeError("--finish failed")
        return num_images

    return work


def pack_by(source: str, scratch: str, engine: Any) -> Work:
    """A pack by two workers in this process, which is connected to Ray before."""
    from tinyvgg.packing.pack import pack_images

    num_images, out = count_images(source), Path(scratch) / engine
    config = PackConfig(Path(source), out, workers=2, engine=engine, shard_size=SHARD_SIZE)
    if engine == "ray":
        import ray

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)

    def work() -> int:
        shutil.rmtree(out, ignore_errors=True)
        os.sync()
        pack_images(config, lambda split, num_images: lambda num_done: None)
        return num_images

    work()  # workers start, and import what they need
    return work


def judge(measured: dict[str, Measurement]) -> list[dict[str, Any]]:
    """Return the bars."""
    bars = [
        make_bar(
            measured[TWO],
            predict(measured[ONE], measured[AGAIN], 2),
            "two parts over the model of two",
            0.9,
        )
    ]
    if RAY in measured:
        bars.append(make_bar(measured[RAY], measured[THREADS], "Ray over threads", 0.85))
    return bars


def main() -> None:
    """Measure all arms and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=os.path.abspath)
    parser.add_argument("--scratch", default=None, help="folder to write in; a temporary one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ray", type=os.path.abspath, help="an interpreter that has Ray")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:

        def arm(name: str, function: str, python: str | None = None, **given: Any) -> Arm:
            given |= {"source": options.source, "scratch": scratch}
            return Arm(name, f"benchmarks.hosts:{function}", given, window_sec=0.0, num_windows=1,
                       min_warm_windows=0, python=python)  # fmt: skip

        arms = [
            arm(ONE, "parts", cores=cores[:1]),
            arm(TWO, "parts", cores=cores),
            arm(AGAIN, "part_again", cores=cores[:1]),
            arm(FINISH, "finish", cores=cores[:1]),
        ]
        if options.ray:
            arms += [
                arm(THREADS, "pack_by", options.ray, engine="threads"),
                arm(RAY, "pack_by", options.ray, engine="ray"),
            ]
        claim = "packing real images in parts and by Ray, a core for a host, page cache warm"
        run_benchmark("hosts", claim, arms, judge, options.repeats)


if __name__ == "__main__":
    main()
