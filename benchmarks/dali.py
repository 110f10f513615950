"""DALI: backend `dali` on a CPU device, beside a bare pipeline, JPEG files, and its own source.

    python -m benchmarks.dali PACKED FOLDERS [--repeats 5]

The bare pipeline has the same operator and is fed one batch from memory, again and again: what it
does more than ours is what plan, gather and bookkeeping cost. From JPEG files, DALI reads, decodes,
flips and normalizes. The source is what DALI calls before each batch, in the loop's thread. All
arms run with the memory settings of `tinyvgg train`: without them each of DALI's outputs may be
fresh memory, a millisecond of page faults a batch. The rows for CUDA are in `benchmarks/gpu.py`.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types

from benchmarks.loaders import BATCH_SIZE, endless
from benchmarks.measure import Arm, Measurement, make_bar, run_benchmark
from tinyvgg.bench.windows import Work
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.loading.batch import Normalization, PixelPass
from tinyvgg.loading.dali import Feed
from tinyvgg.loading.dali_graphs import define_pipeline
from tinyvgg.loading.plan import EpochPlanner, LoaderState
from tinyvgg.shards import open_dataset
from tinyvgg.training.process import TRAIN_ENVIRONMENT

CPU = torch.device("cpu")
BARE = "bare DALI pipeline, same operators, fed from memory"
NORMALIZATION = Normalization((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))
PIXEL_PASS = PixelPass((64, 64, 3), NORMALIZATION, torch.float32)


def started_feed(packed: str) -> Feed:
    """Return the source of backend `dali`, at the start of a shuffled, augmented epoch."""
    split = open_dataset(packed).train
    plan = EpochPlanner(split.labels, BATCH_SIZE, shuffle=True, augment=True, drop_last=True)
    feed = Feed(split, PIXEL_PASS, plan, CPU)
    feed.start(LoaderState(0, 0, 0, ""))
    return feed


def source_in_place(packed: str) -> Work:
    """What DALI calls before each batch, while backend `dali` delivers: only its time counts."""
    dataset = open_dataset(packed)
    config = LoaderConfig(backend="dali", batch_size=BATCH_SIZE)
    batches = endless(open_loader(dataset, "train", config, dtype=torch.float32))
    source_sec = 0.0
    call = Feed.__call__

    def timed(feed: Feed, iteration: int) -> Any:
        nonlocal source_sec
        started = time.perf_counter()
        inputs = call(feed, iteration)
        source_sec += time.perf_counter() - started
        return inputs

    Feed.__call__ = timed  # type: ignore[method-assign,assignment]

    def work() -> int:
        nonlocal source_sec
        started, source_sec = time.perf_counter(), 0.0
        for _ in range(20):
            next(batches)
        return round(20 * BATCH_SIZE * (time.perf_counter() - started) / source_sec)

    return work


def bare_pipeline(packed: str) -> Work:
    """The operators of backend `dali`, fed the same batch again and again."""
    images, *others = started_feed(packed)(0)
    given = (np.array(images.as_array()), *others)
    pipeline = define_pipeline(
        lambda iteration: given, CPU, BATCH_SIZE, PIXEL_PASS, is_augmented=True
    )
    return run_pipeline(pipeline)


def jpeg_pipeline(folders: str) -> Work:
    """DALI's own way: read and decode JPEG files, flip and normalize."""
    root = Path(folders) / "train"
    files = sorted(str(path) for path in root.rglob("*.JPEG"))
    names = sorted(folder.name for folder in root.iterdir())
    classes = {name: label for label, name in enumerate(names)}
    labels = [classes[Path(file).relative_to(root).parts[0]] for file in files]
    pipeline = Pipeline(batch_size=BATCH_SIZE, num_threads=torch.get_num_threads(), device_id=None)
    with pipeline:
        data, label = fn.readers.file(files=files, labels=labels, random_shuffle=True)
        images = fn.crop_mirror_normalize(
            fn.decoders.image(data),
            dtype=types.FLOAT,
            output_layout="HWC",
            mean=[255 * mean for mean in NORMALIZATION.mean],
            std=[255 * std for std in NORMALIZATION.std],
            mirror=fn.random.coin_flip(),
        )
        pipeline.set_outputs(images, label)
    return run_pipeline(pipeline)


def run_pipeline(pipeline: Any) -> Work:
    """Take one batch after the other, the next ones prepared meanwhile."""
    pipeline.build()
    pipeline.schedule_run()

    def work() -> int:
        images = pipeline.share_outputs()[0].as_tensor()
        assert tuple(images.shape()) == (BATCH_SIZE, 64, 64, 3)
        pipeline.release_outputs()
        pipeline.schedule_run()
        return BATCH_SIZE

    return work


def main() -> None:
    """Measure all arms and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packed", type=os.path.abspath)
    parser.add_argument("folders", type=os.path.abspath, help="the same images as JPEG files")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    given = {"packed": options.packed}

    def loader(backend: str, dtype: str) -> Arm:
        fields = {**given, "backend": backend, "dtype": dtype}
        fields |= {"augment": True, "batch_size": BATCH_SIZE}
        name = f"backend {backend}, crop + flip + normalize, {dtype}"
        ceiling = BARE if backend == "dali" else None
        return Arm(name, "benchmarks.loaders:tinyvgg_loader", fields, ceiling=ceiling,
                   environment=TRAIN_ENVIRONMENT)  # fmt: skip

    arms = [
        loader("dali", "float32"),
        loader("dali", "float16"),
        loader("dali", "bfloat16"),
        loader("torch", "float32"),
        Arm(BARE, "benchmarks.dali:bare_pipeline", given, environment=TRAIN_ENVIRONMENT),
        Arm("DALI from JPEG files, flip + normalize, float32", "benchmarks.dali:jpeg_pipeline",
            {"folders": options.folders}, environment=TRAIN_ENVIRONMENT),
        Arm("source of backend dali, only its time", "benchmarks.dali:source_in_place", given,
            environment=TRAIN_ENVIRONMENT),
    ]  # fmt: skip

    def judge(measured: dict[str, Measurement]) -> list[dict[str, Any]]:
        ours, _, _, _, bare, files, source = measured.values()
        return [
            make_bar(ours, bare, "dali over the bare pipeline", 0.9),
            make_bar(ours, files, "dali over DALI from JPEG files", 4),
            make_bar(source, ours, "source over dali (10: a tenth of a batch's time)", 10),
        ]

    claim = f"backend dali on a CPU device, batch {BATCH_SIZE}, shuffled, page cache warm"
    run_benchmark("dali", claim, arms, judge, options.repeats)


if __name__ == "__main__":
    main()
