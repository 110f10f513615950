from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.rank_processes import run_ranks
from tinyvgg.inference.evaluate import (
    Evaluation,
    Tally,
    evaluate,
    evaluate_network,
    open_scored,
    tally_images,
)
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.model import VGG_Net
from tinyvgg.shards.store import PackedDataset, open_dataset

CPU = torch.device("cpu")


class PixelNetwork(VGG_Net):
    """Logits that are a fixed function of the first pixels, so that any program can redo them."""

    def compute_logits(self, images: Tensor) -> Tensor:
        """Return logits [B, 7]."""
        return images[:, 0, 0, :7].contiguous()


@pytest.fixture
def dataset(pack_arrays: Callable[..., PackedDataset]) -> PackedDataset:
    """53 val images of 7 classes."""
    images = np.random.default_rng(5).integers(0, 256, (53, 48, 48, 3)).astype(np.uint8)
    labels = np.random.default_rng(6).integers(0, 7, 53)
    labels[:7] = np.arange(7)
    return pack_arrays("seven", images, labels, images, labels)


@pytest.mark.parametrize("batch_size", [1, 10, 53, 64])
def test_every_image_counts_once_whatever_the_batch_size(
    dataset: PackedDataset, batch_size: int
) -> None:
    loader = open_loader(dataset, "val", LoaderConfig(batch_size=batch_size))
    images = dataset.val.read_images(np.arange(53)).astype(np.float64)
    mean, std = dataset.manifest.splits.train.mean[0], dataset.manifest.splits.train.std[0]
    logits = (images[:, 0, :7, 0] / 255 - mean) / std
    labels = dataset.val.labels
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ranks = (logits > logits[np.arange(53), labels][:, None]).sum(axis=1)

    found = evaluate_network(PixelNetwork(), loader, 7, amp="off", device=CPU)

    assert found.loss == pytest.approx(-log_softmax[np.arange(53), labels].mean(), rel=1e-5)
    assert found.top1 == (logits.argmax(axis=1) == labels).mean()
    assert found.top5 == pytest.approx((ranks < 5).mean(), abs=1e-12)
    expected = np.zeros((7, 7), np.int64)
    np.add.at(expected, (labels, logits.argmax(axis=1)), 1)
    assert np.array_equal(found.confusion, expected)


@pytest.mark.parametrize("batch_size", [1, 8, 10, 53, 64])
def test_the_loss_is_the_exact_mean_to_the_last_bit_whatever_the_batch_size(
    dataset: PackedDataset, batch_size: int
) -> None:
    loader = open_loader(dataset, "val", LoaderConfig(batch_size=53))
    (batch,) = loader.epoch(0)
    logits = PixelNetwork().compute_logits(batch.images)
    losses = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
    expected = float(sum(map(Fraction, losses.tolist()))) / 53

    loader = open_loader(dataset, "val", LoaderConfig(batch_size=batch_size))
    found = evaluate_network(PixelNetwork(), loader, 7, amp="off", device=CPU)

    assert found.loss == expected


def score(folder: str, batch_size: int) -> list[Any]:
    """Return the figures of the base network, as it is initialized, on the val split."""
    dataset = open_dataset(folder)
    found = evaluate(build_network(dataset), dataset, batch_size=batch_size)
    return [found.loss.hex(), found.top1, found.top5, found.confusion.tolist()]


def build_network(dataset: PackedDataset) -> VGG_Net:
    """Return the base network, whose logits no hand has made simple."""
    torch.manual_seed(0)
    network = VGG_Net(len(dataset.class_names))
    torch.nn.init.normal_(network.classifier.weight)  # logits of some size
    return network


@pytest.mark.slow
def test_any_number_of_ranks_scores_the_same_to_the_last_bit(
    dataset: PackedDataset, tmp_path: Path
) -> None:
    arguments = (str(dataset.folder), 12)  # 53 images: 5 batches, the last one padded

    (alone,) = run_ranks(1, score, *arguments, out=tmp_path / "1")
    for world_size in (2, 3, 4):
        ranks = run_ranks(world_size, score, *arguments, out=tmp_path / str(world_size))
        assert ranks == [alone] * world_size


@pytest.mark.slow
def test_257_ranks_score_the_same_to_the_last_bit(
    dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    # one after the other in this process; the first 27 have images, the others padding alone
    network = build_network(dataset)
    alone = evaluate(network, dataset, batch_size=2)
    tallies = []
    for rank in range(257):
        for module in ("loading.loader", "inference.evaluate"):
            monkeypatch.setattr(f"tinyvgg.{module}.find_rank", lambda rank=rank: (rank, 257))
        with open_scored(
            dataset, "val", CPU, torch.float32, mean=None, std=None, backend="auto", batch_size=2
        ) as loader:
            assert (loader.rank, loader.world_size, loader.batch_size) == (rank, 257, 514)
            tallies.append(tally_images(network, loader, 7, amp="off", device=CPU))

    together = Tally(
        torch.stack([tally.pairs for tally in tallies]).sum(0),
        torch.stack([tally.top5_hits for tally in tallies]).sum(),
        *(
            torch.cat([getattr(tally, name) for tally in tallies])
            for name in ("losses", "ids", "predictions", "confidences")
        ),
    ).read()

    assert together.loss.hex() == alone.loss.hex()
    assert (together.top1, together.top5) == (alone.top1, alone.top5)
    assert np.array_equal(together.confusion, alone.confusion)
    assert alone.images is not None
    assert together.images is not None
    for name in ("rows", "predictions", "confidences", "losses"):
        assert np.array_equal(getattr(together.images, name), getattr(alone.images, name))


def test_the_network_is_scored_in_eval_mode_and_put_back(dataset: PackedDataset) -> None:
    modes: list[bool] = []
    network = PixelNetwork().train()
    compute_logits = network.compute_logits

    def note_mode(images: Tensor) -> Tensor:
        modes.append(network.training)
        return compute_logits(images)

    network.compute_logits = note_mode  # type: ignore[method-assign]
    loader = open_loader(dataset, "val", LoaderConfig(batch_size=32))

    evaluate_network(network, loader, 7, amp="off", device=CPU)

    assert modes == [False, False]
    assert network.training


def test_a_class_without_images_does_not_enter_the_average() -> None:
    confusion = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 2]])
    evaluation = Evaluation(loss=1.0, top1=5 / 6, top5=1.0, confusion=confusion)

    assert evaluation.class_top1.tolist()[::2] == [0.75, 1.0]
    assert evaluation.average_top1 == 0.875
    assert evaluation.describe(["a", "b", "c"])["class_top1"] == {"a": 0.75, "b": None, "c": 1.0}
