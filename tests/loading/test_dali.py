"""Backend `dali` against `torch`, its graph for CUDA as far as that can be read, its errors."""

import gc
import multiprocessing
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import distributions
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from torch import Tensor

from tests.loading.contract import (
    CPU,
    DTYPES,
    assert_same,
    every_dtype,
    keep,
    open_raw,
    pixel_ids,
    pixel_pass,
    plan_train,
    read_epochs,
)
from tests.serialized_pipeline import read_pipeline
from tinyvgg.errors import BackendUnavailable
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.loading.batch import Batch
from tinyvgg.loading.loader import Loader
from tinyvgg.loading.pinned import PinnedSource
from tinyvgg.loading.plan import EpochPlanner, LoaderState
from tinyvgg.shards.store import PackedDataset

# it raises an error of ours, which is no ImportError
dali = pytest.importorskip("tinyvgg.loading.dali", exc_type=BackendUnavailable)  # type: ignore[arg-type]
graphs = pytest.importorskip("tinyvgg.loading.dali_graphs", exc_type=BackendUnavailable)  # type: ignore[arg-type]
pytestmark = pytest.mark.dali

HALF_UNITS = {torch.float16: 2**-10, torch.bfloat16: 2**-7}  # spacing of the type at 1 to 2


def feed_of(loader: Loader) -> Any:
    """Return the feed of a loader's pipeline."""
    source: Any = loader.source
    return source.pipeline.feed


def assert_close(images: Tensor, expected: Tensor) -> None:
    """Compare as DESIGN says: float32 within 1e-6, half types within a unit at max(1, |x|)."""
    assert images.dtype == expected.dtype
    assert images.stride() == expected.stride()
    difference = (images.float() - expected.float()).abs()
    if images.dtype == torch.float32:
        assert difference.max() <= 1e-6
    elif images.dtype == torch.uint8:
        assert difference.max() == 0
    else:
        exponent = expected.float().abs().clamp(min=1).log2().floor()
        assert (difference <= HALF_UNITS[images.dtype] * 2**exponent).all()


def assert_equal_batches(batches: list[Batch], expected: list[Batch]) -> None:
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.ids.tolist() == other.ids.tolist()
        assert batch.labels.tolist() == other.labels.tolist()
        assert batch.num_valid == other.num_valid
        assert_close(batch.images, other.images)


# against `torch`


@every_dtype
@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_dali_equals_torch_for_two_epochs(
    packed: PackedDataset, dtype: torch.dtype, augment: bool, drop_last: bool
) -> None:
    config = LoaderConfig(batch_size=5, augment=augment, drop_last=drop_last)

    batches, expected = (
        read_epochs(
            open_loader(packed, "train", replace(config, backend=backend), dtype=dtype), range(2)
        )
        for backend in ("dali", "torch")
    )

    assert_equal_batches(batches, expected)


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_rank_gets_its_part_of_every_batch(packed: PackedDataset, world_size: int) -> None:
    ranks = []
    for rank in range(world_size):
        planner = EpochPlanner(
            packed.train.labels, 6, shuffle=True, augment=True, drop_last=False,
            rank=rank, world_size=world_size,
        )  # fmt: skip
        source = dali.DaliSource(packed.train, pixel_pass(torch.uint8), CPU)
        ranks.append([keep(b) for b in source.batches(planner, LoaderState(4, 1, 0, ""))])
    expected = read_epochs(
        open_raw(packed, "torch", batch_size=6, seed=4, augment=True, drop_last=False), range(1, 2)
    )

    for *parts, whole in zip(*ranks, expected, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.ids for part in parts]), whole.ids)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        assert sum(part.num_valid for part in parts) == whole.num_valid


def test_statistics_of_the_config_normalize(packed: PackedDataset) -> None:
    statistics: dict[str, Any] = {"mean": (0.1, 0.5, 0.9), "std": (0.2, 0.5, 1.0)}
    config = LoaderConfig(batch_size=5, **statistics)

    batches, expected = (
        read_epochs(open_loader(packed, "train", replace(config, backend=backend)), range(1))
        for backend in ("dali", "torch")
    )

    assert_equal_batches(batches, expected)


@pytest.mark.parametrize("crop_pixels", range(9))
def test_every_crop_of_every_size_equals_torch(packed: PackedDataset, crop_pixels: int) -> None:
    config = LoaderConfig(batch_size=11, crop_pixels=crop_pixels, flip=crop_pixels % 2 == 0)

    batches, expected = (
        read_epochs(
            open_loader(packed, "train", replace(config, backend=backend), dtype=torch.uint8),
            range(3),
        )
        for backend in ("dali", "torch")
    )

    assert_same(batches, expected)


@pytest.mark.parametrize("margin", range(9))
def test_a_position_times_its_way_is_nearest_to_the_offset_it_was_made_of(margin: int) -> None:
    offsets = np.arange(-margin, margin + 1, dtype=np.int32)

    positions = dali.crop_positions(offsets, margin)
    starts = positions * np.float32(2 * margin)  # what DALI rounds, in float32

    assert (positions.dtype, starts.dtype) == (np.float32, np.float32)
    assert (np.abs(starts - (offsets + margin)) < 2**-20).all()
    assert ((positions >= 0) & (positions <= 1)).all()


# the endless feed


def test_prefetching_goes_over_the_end_of_an_epoch_into_the_next(packed: PackedDataset) -> None:
    loader = open_raw(packed, "dali")

    read_epochs(loader, range(1))
    feed = feed_of(loader)

    assert feed.next_iteration == len(loader) + dali.PREFETCH
    assert feed.locate(feed.next_iteration - 1)[0] is loader.plan(loader.state)
    list(loader)
    assert feed_of(loader) is feed
    assert feed.next_iteration == 2 * len(loader) + dali.PREFETCH


def test_what_an_iteration_reads_depends_on_its_number_alone(packed: PackedDataset) -> None:
    planner, state = plan_train(packed)
    feed: Any
    if packed.train.is_jpeg:
        feed = dali.FileFeed(packed.train, planner, (64, 64))
    else:
        feed = dali.Feed(packed.train, pixel_pass(torch.uint8), planner, CPU)
    feed.start(state)

    def read(iteration: int) -> list[list[Any]]:
        images, *crops = feed(iteration)
        if packed.train.is_jpeg:
            numbers = [int(simplejpeg.decode_jpeg(file)[0, 0, 0]) for file in images]
            return [numbers, *(crop.tolist() for crop in crops)]
        stored = torch.from_numpy(np.array(images.as_array()))[:, 4:-4, 4:-4]
        return [pixel_ids(stored.permute(0, 3, 1, 2)), *(crop.tolist() for crop in crops)]

    in_order = [read(iteration) for iteration in range(20)]

    for iteration in (19, 0, 7, 13, 6):
        assert read(iteration) == in_order[iteration]
    assert [ids for ids, *_ in in_order[7:14]] == planner(state.next_epoch()).rows.tolist()


def test_a_jump_costs_no_more_batches_than_were_under_way(packed: PackedDataset) -> None:
    loader = open_raw(packed, "dali")
    list(islice(loader.epoch(0), 2))
    before = feed_of(loader).next_iteration

    batches = read_epochs(loader, range(7, 8))

    assert_same(batches, read_epochs(open_raw(packed, "torch"), range(7, 8)))
    feed = feed_of(loader)
    assert feed.first == before
    assert feed.next_iteration == before + len(loader) + dali.PREFETCH


def count_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_threads_go_with_the_loader(packed: PackedDataset) -> None:
    read_epochs(open_raw(packed, "dali"), range(1))  # what DALI starts once for a process
    gc.collect()
    before = count_threads()
    loader = open_raw(packed, "dali")
    next(iter(loader))
    assert count_threads() > before

    del loader
    gc.collect()

    assert count_threads() == before


# errors


def test_an_error_names_the_images_and_their_shards(packed: PackedDataset) -> None:
    loader = open_raw(packed, "dali", drop_last=False)
    ids = read_epochs(open_raw(packed, "torch", drop_last=False), range(1))[4].ids
    batches = loader.epoch(0)
    next(batches)
    next(batches)

    feed = feed_of(loader)
    if packed.train.is_jpeg:
        feed.size = feed.size.astype(np.float64)  # DALI was promised int32
    else:
        feed.slots[:] = [slot.float() for slot in feed.slots]  # DALI was promised uint8
    with pytest.raises(BackendUnavailable) as raised:
        list(batches)

    suffix = ".jpeg.npy" if packed.train.is_jpeg else ".npy"
    shards = sorted({f"train-{id_ // 10:05d}{suffix}" for id_ in ids.tolist()})
    assert str(raised.value).startswith(
        f"backend 'dali' stopped at images {', '.join(map(str, ids.tolist()))} of split 'train' "
        f"in {', '.join(shards)}: "
    )
    assert "\n" not in str(raised.value)


def test_a_forked_process_that_does_not_read_ends(packed: PackedDataset) -> None:
    code = (
        "import os\n"
        "from tinyvgg.loading import LoaderConfig, open_loader\n"
        "from tinyvgg.shards.store import open_dataset\n"
        f"loader = open_loader(open_dataset({str(packed.folder)!r}), 'train',\n"
        "                     LoaderConfig(backend='dali', batch_size=5))\n"
        "batches = iter(loader)\n"
        "next(batches)\n"
        "if child := os.fork():\n"
        "    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "batches.close()\n"
        "del batches, loader\n"
    )

    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)

    assert done.returncode == 0


def read_in_child(batches: Any, texts: "multiprocessing.SimpleQueue[str]") -> None:
    try:
        next(batches)
    except BackendUnavailable as error:
        texts.put(str(error))


def test_a_loader_that_was_read_is_refused_in_a_forked_process(packed: PackedDataset) -> None:
    context = multiprocessing.get_context("fork")
    batches = open_raw(packed, "dali").epoch(0)
    next(batches)

    texts = context.SimpleQueue()
    child = context.Process(target=read_in_child, args=(batches, texts))
    child.start()
    child.join(30)
    child.kill()

    assert child.exitcode == 0
    assert texts.get() == (
        "backend 'dali': its threads did not come along into this forked process; "
        "open the loader after the fork, or use --backend torch"
    )


def test_a_device_without_dali_is_refused(packed: PackedDataset) -> None:
    with pytest.raises(BackendUnavailable, match="runs on CUDA and on the CPU, got meta"):
        dali.DaliSource(packed.train, pixel_pass(torch.uint8), torch.device("meta"))


def test_without_dali_the_error_names_its_packages(packed: PackedDataset) -> None:
    code = (
        "import sys; sys.modules['nvidia.dali'] = None\n"
        "from tinyvgg.cli import main\n"
        f"main(['train', {str(packed.folder)!r}, '--out', 'run', '--backend', 'dali'])\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code.replace('main([', 'sys.exit(main([')[:-1]})"],
        capture_output=True,
        text=True,
        cwd=packed.folder,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.strip() == (
        "tinyvgg train: backend 'dali' needs nvidia-dali, which is not installed; run "
        "pip install nvidia-dali-cuda120 (nvidia-dali-cuda130 for CUDA 13) "
        "or use --backend torch"
    )
    assert not (packed.folder / "run").exists()


def test_one_dali_is_installed_and_its_name_is_known() -> None:
    installed = {
        name for distribution in distributions()
        if (name := distribution.metadata["Name"] or "").startswith("nvidia-dali")
    }  # fmt: skip

    assert len(installed & {"nvidia-dali-cuda120", "nvidia-dali-cuda130"}) == 1


# the graph for CUDA, which cannot run here, and its twin for the CPU, which can


def serialize(device: str, dtype: torch.dtype, *, is_augmented: bool) -> Any:
    pipeline = graphs.define_pipeline(
        lambda iteration: None,
        torch.device(device),
        8,
        pixel_pass(dtype),
        is_augmented=is_augmented,
    )
    return read_pipeline(pipeline.serialize())


OPERATORS: list[tuple[torch.dtype, bool, list[str]]] = [
    (torch.uint8, False, []),
    (torch.uint8, True, ["CropMirrorNormalize"]),
    (torch.float32, False, ["CropMirrorNormalize"]),
    (torch.float32, True, ["CropMirrorNormalize"]),
    (torch.float16, True, ["CropMirrorNormalize"]),
    (torch.bfloat16, True, ["CropMirrorNormalize"]),
]


@pytest.mark.gpu_static
@pytest.mark.parametrize(("dtype", "is_augmented", "names"), OPERATORS, ids=str)
def test_the_cuda_graph_crops_flips_and_normalizes_on_the_device(
    dtype: torch.dtype, is_augmented: bool, names: list[str]
) -> None:
    graph = serialize("cuda", dtype, is_augmented=is_augmented)

    kinds = [operator.name for operator in graph.operators]
    sources = [operator for operator in graph.operators if operator.name == "ExternalSource"]
    assert len(sources) == (4 if is_augmented else 1)
    assert {source.device for source in sources} == {"cpu"}
    pixel_operators = [operator for operator in graph.operators if operator.name in names]
    assert len(kinds) == len(sources) + len(names) + kinds.count("Copy")
    assert [operator.name for operator in pixel_operators] == names
    assert {operator.device for operator in pixel_operators} <= {"gpu"}
    assert [device for _, device in graph.outputs] == ["gpu"]
    for operator in pixel_operators:
        image_device, *argument_devices = [device for _, device in operator.inputs]
        assert image_device == "gpu"
        assert set(argument_devices) <= {"cpu"}  # offsets and flips: a few bytes an image


@pytest.mark.gpu_static
@pytest.mark.parametrize(("dtype", "is_augmented", "names"), OPERATORS, ids=str)
def test_the_cuda_graph_has_the_arguments_of_its_cpu_twin(
    dtype: torch.dtype, is_augmented: bool, names: list[str]
) -> None:
    cuda, cpu = (serialize(device, dtype, is_augmented=is_augmented) for device in ("cuda", "cpu"))

    def pixel_operators(graph: Any) -> list[Any]:
        return [operator for operator in graph.operators if operator.name in names]

    pairs = list(zip(pixel_operators(cuda), pixel_operators(cpu), strict=True))
    assert len(pairs) == len(names)
    for operator, twin in pairs:
        assert operator.name == twin.name
        assert operator.arguments == twin.arguments
        assert (operator.device, twin.device) == ("gpu", "cpu")


@pytest.mark.gpu_static
@pytest.mark.real
@pytest.mark.slow
@every_dtype
def test_the_cpu_twin_equals_torch_on_the_whole_real_validation_set(
    real_dataset: PackedDataset, dtype: torch.dtype
) -> None:
    config = LoaderConfig(batch_size=250, augment=True)

    loaders = [
        open_loader(real_dataset, "val", replace(config, backend=backend), dtype=dtype)
        for backend in ("dali", "torch")
    ]

    num_images = 0
    for batch, other in zip(*(loader.epoch(0) for loader in loaders), strict=True):
        assert_equal_batches([batch], [other])
        num_images += batch.num_valid
    assert num_images == real_dataset.val.num_images


@pytest.mark.real
@pytest.mark.long
@pytest.mark.parametrize(
    ("dtype", "rank", "world_size"),
    [*((dtype, 0, 1) for dtype in DTYPES), *((torch.uint8, rank, 3) for rank in range(3))],
    ids=str,
)
def test_on_real_images_two_epochs_equal_torch_resumed_mid_epoch(
    real_dataset: PackedDataset, dtype: torch.dtype, rank: int, world_size: int
) -> None:
    split = real_dataset.train
    planner = EpochPlanner(
        split.labels, 384, shuffle=True, augment=True, drop_last=True,
        rank=rank, world_size=world_size,
    )  # fmt: skip
    dali_source = dali.DaliSource(split, pixel_pass(dtype), CPU)
    torch_source = PinnedSource(split, pixel_pass(dtype), CPU)
    middle = 384 * (planner.num_steps // 2)
    start = LoaderState(3, 0, 0, "")
    parts = [
        (start, middle // 384),  # left in the middle, and gone on with another pipeline
        (replace(start, images_consumed=middle), None),
        (start.next_epoch(), None),
    ]

    num_steps = 0
    for state, stop in parts:
        if state.images_consumed:
            dali_source = dali.DaliSource(split, pixel_pass(dtype), CPU)
        batches, expected = (
            islice(source.batches(planner, state), stop) for source in (dali_source, torch_source)
        )
        for batch, other in zip(batches, expected, strict=True):
            assert_equal_batches([batch], [other])
            num_steps += 1
    assert num_steps == 2 * planner.num_steps


VIEW_GRAPHS: list[tuple[bool, bool, list[str]]] = [
    (True, False, ["decoders__Image", "Slice", "CropMirrorNormalize"]),
    (True, True, ["decoders__ImageSlice", "Resize", "CropMirrorNormalize"]),
    (False, True, ["Slice", "Resize", "CropMirrorNormalize"]),
]


def serialize_view(device: str, *, is_jpeg: bool, has_boxes: bool) -> list[Any]:
    pipeline = graphs.define_view_pipeline(
        lambda iteration: None,
        torch.device(device),
        8,
        pixel_pass(torch.float32),
        is_jpeg=is_jpeg,
        has_boxes=has_boxes,
    )
    graph = read_pipeline(pipeline.serialize())
    assert [kind for _, kind in graph.outputs] == ["gpu" if device == "cuda" else "cpu"]
    return [one for one in graph.operators if one.name not in ("ExternalSource", "Copy")]


@pytest.mark.gpu_static
@pytest.mark.parametrize(("is_jpeg", "has_boxes", "names"), VIEW_GRAPHS, ids=str)
def test_the_cuda_graph_of_files_and_boxes_decodes_and_scales_on_the_device(
    is_jpeg: bool, has_boxes: bool, names: list[str]
) -> None:
    cuda, cpu = (
        serialize_view(device, is_jpeg=is_jpeg, has_boxes=has_boxes) for device in ("cuda", "cpu")
    )

    assert [operator.name for operator in cuda] == names == [operator.name for operator in cpu]
    devices = [operator.device for operator in cuda]
    assert devices == ["mixed" if is_jpeg else "gpu", "gpu", "gpu"]
    for one, twin in zip(cuda, cpu, strict=True):
        ignored = {"device", "preserve"}
        assert {k: v for k, v in one.arguments.items() if k not in ignored} == {
            k: v for k, v in twin.arguments.items() if k not in ignored
        }
    if is_jpeg:  # a share of a batch in hardware would be rounded otherwise; EXIF is ignored
        assert {"hw_decoder_load", "adjust_orientation"} <= set(cuda[0].arguments)
