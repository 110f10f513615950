"""Real images: seconds from JPEG files to 60 % top-1, by the commands that a user types."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_arms.plan import NotMeasured, Row, Setting
from benchmarks.gpu_arms.supervise import REPOSITORY
from tinyvgg.shards import open_dataset

TARGET_TOP1 = 0.6


def require_data(setting: Setting) -> str:
    """Return the path of real images."""
    if setting.data is None:
        raise NotMeasured("the environment's DATA names no folder or zip of real images")
    return setting.data


def type_command(*words: str) -> float:
    """Run `tinyvgg` and return the seconds it took; its output goes to stderr."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "tinyvgg.cli", *words],
        cwd=REPOSITORY, stdout=sys.stderr, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"tinyvgg {words[0]} ended with status {done.returncode}; see the log")
    return time.perf_counter() - started


def train_to_target(setting: Setting, *, recipe: str) -> Iterator[Row]:
    """Pack DATA, train a recipe until its validation top-1 is 60 %; yield what each took."""
    data = require_data(setting)
    with tempfile.TemporaryDirectory() as folder:
        packed, run = str(Path(folder) / "packed"), Path(folder) / "run"
        pack_sec = type_command("pack", data, packed)
        dataset = open_dataset(packed)
        num_images = dataset.train.num_images
        yield {"name": "pack", "seconds": pack_sec, "num_images": num_images}
        tiny = "--batch-size 8 --epochs 1 --sizes 48 --size-shares 1 --optimizer sgd "
        tiny += "--learning-rate 0.01 --amp off --compile off"  # Muon takes 22 GFLOP a step
        train_sec = type_command(
            "train", packed, "--out", str(run), "--recipe", recipe, "--device", setting.device,
            "--target-top1", str(TARGET_TOP1), *(tiny.split() if setting.is_tiny else []),
        )  # fmt: skip
        lines = (run / "metrics.jsonl").read_text().splitlines()
        history = [json.loads(line) for line in lines]
    best = max(metrics["val_top1"] for metrics in history)
    yield {
        "name": f"train, recipe {recipe}, {len(dataset.class_names)} classes",
        "reached_top1": best,
        "is_reached": best >= TARGET_TOP1,
        "num_classes": len(dataset.class_names),
        "num_images": num_images,
        "epochs": len(history),
        "pflop": history[-1]["pflop"],
        "train_sec": history[-1]["elapsed_sec"],
        "command_sec": train_sec,
        "seconds_from_files": pack_sec + train_sec,
        "val_top1_by_epoch": [metrics["val_top1"] for metrics in history],
    }
