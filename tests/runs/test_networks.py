"""The network of a checkpoint comes back, or one line says what of it is not what it must be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tinyvgg.errors import CheckpointError
from tinyvgg.inference.trained import check_classes
from tinyvgg.model.vgg import VGG_Net
from tinyvgg.runs.networks import load
from tinyvgg.shards.store import PackedDataset

CPU = torch.device("cpu")


def write_network(path: Path, names: list[str], **changes: Any) -> VGG_Net:
    model = VGG_Net(len(names))
    fields = {"mean": [0.5] * 3, "std": [0.25] * 3, "amp": "off", "arch": "vgg_net", "pixels": 48}
    fields |= {"model": model.state_dict(), "class_folders": names}
    torch.save({"format": 1} | fields | changes, path)
    return model


def test_a_network_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    model = write_network(tmp_path / "best.pt", ["a", "b"])

    trained = load(tmp_path / "best.pt", device=CPU)

    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(trained.model(images)[0], model.eval()(images)[0])
    preprocessing = trained.preprocessing
    assert (preprocessing.mean, preprocessing.std) == ((0.5,) * 3, (0.25,) * 3)


def test_another_number_of_classes_is_refused(tmp_path: Path, packed: PackedDataset) -> None:
    write_network(tmp_path / "best.pt", ["a", "b"])

    with pytest.raises(CheckpointError, match="3 classes, checkpoint was trained on 2"):
        check_classes(load(tmp_path / "best.pt", device=CPU), packed)


def test_other_class_names_are_refused(tmp_path: Path, packed: PackedDataset) -> None:
    write_network(tmp_path / "best.pt", ["class000", "x", "class002"])

    with pytest.raises(CheckpointError, match="class 1 is 'class001' in the manifest, 'x'"):
        check_classes(load(tmp_path / "best.pt", device=CPU), packed)


def test_a_checkpoint_without_a_network_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 1, "step": 1}, tmp_path / "odd.pt")

    with pytest.raises(
        CheckpointError, match=r"odd\.pt: holds no network \(arch: Field required\)"
    ):
        load(tmp_path / "odd.pt", device=CPU)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"amp": "x"}, r"holds no network \(amp: "),
        ({"amp": "auto"}, r"holds no network \(amp: "),
        ({"amp": []}, r"holds no network \(amp: "),
        ({"arch": "vgg12"}, r"holds no network \(arch: "),
        ({"arch": ["vgg11"]}, r"holds no network \(arch: "),
        ({"pixels": "64"}, r"holds no network \(pixels: "),
        ({"pixels": -3}, r"holds no network \(pixels: "),
        ({"pixels": 10**7}, r"\(pixels 10,000,000, vgg_net takes 48 to 95\); use another one"),
        ({"mean": [0.5, float("nan"), 0.5]}, r"holds no network \(mean\.1: "),
        ({"std": [0.5, 0.5]}, r"holds no network \(std: "),
        ({"std": [0.5, 0.0, 0.5]}, r"holds no network \(std\.1: "),
        ({"class_folders": "ab"}, r"holds no network \(class_folders: "),
        ({"class_folders": ["a", 2]}, r"holds no network \(class_folders\.1: "),
        ({"class_folders": ["a"] * 10**6}, r"is \[2.*, needed \[1000000"),
        ({"model": []}, r"holds no network \(model: "),
        ({"arch": "vgg16"}, r"weights are of another network \([0-9]+ names differ, '"),
    ],
)
def test_a_field_that_no_training_wrote_is_named_in_one_line(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    write_network(tmp_path / "best.pt", ["a", "b"], **fields)

    with pytest.raises(CheckpointError, match=rf"best\.pt: .*{message}") as refused:
        load(tmp_path / "best.pt", device=CPU)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight * float("nan"), "is NaN or infinite, so the run had diverged"),
        (lambda weight: weight + float("inf"), "is NaN or infinite"),
        (lambda weight: weight.to(torch.int64), r"is torch\.int64, needed torch\.float32"),
        (lambda weight: weight[:1], r"is \[1\], needed \[2\]"),
        (lambda weight: torch.zeros(1).expand(2**40), r"is \[1099511627776\], needed \[2\]"),
        (lambda weight: 5, r"Input should be an instance of Tensor"),
    ],
)
def test_a_weight_that_is_none_is_named(
    tmp_path: Path, change: Callable[[Tensor], Any], message: str
) -> None:
    weights: dict[str, Any] = VGG_Net(2).state_dict()
    name = list(weights)[-1]
    write_network(tmp_path / "best.pt", ["a", "b"], model={**weights, name: change(weights[name])})

    with pytest.raises(CheckpointError, match=rf"best\.pt: .*{name}.*{message}"):
        load(tmp_path / "best.pt", device=CPU)
