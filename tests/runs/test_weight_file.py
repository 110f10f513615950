"""A .safetensors is read as the checkpoint that it came from, or one line says why not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.inference.conftest import draw_images
from tests.runs.test_networks import write_network
from tinyvgg import evaluate, load
from tinyvgg.errors import CheckpointError
from tinyvgg.inference.export import export
from tinyvgg.runs.weight_file import read_weight_file
from tinyvgg.shards.store import PackedDataset

CPU = torch.device("cpu")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """best.pt of three classes, and beside it what was exported of it."""
    names = ["class000", "class001", "class002"]
    fields = {"stored_size": (64, 64), "center_share": 0.5, "class_words": ["a", "é", ""]}
    write_network(tmp_path / "best.pt", names, **fields)
    return export(load(tmp_path / "best.pt", device=CPU), tmp_path / "best.safetensors").path


def test_it_gives_what_the_checkpoint_gives(exported: Path, packed: PackedDataset) -> None:
    expected = load(exported.with_suffix(".pt"), device=CPU)

    found = load(exported, device=CPU)

    assert found.preprocessing == expected.preprocessing
    assert (found.class_folders, found.class_words) == (
        expected.class_folders, expected.class_words
    )  # fmt: skip
    assert (found.arch, found.training) == (expected.arch, False)
    assert evaluate(found, packed).loss == evaluate(expected, packed).loss
    images = draw_images(3, 90, 70)
    assert found.predict(images) == expected.predict(images)
    exported.unlink()  # no longer needed
    assert found.predict(images) == expected.predict(images)


def rewrite(path: Path, change: Callable[[dict[str, str], dict[str, torch.Tensor]], Any]) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(metadata, weights)
    save_file(weights, path, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda metadata, weights: metadata.clear(), "not one that tinyvgg wrote .*no 'arch'"),
        (lambda metadata, weights: metadata.update(mean="["), "metadata 'mean' is no JSON"),
        (lambda metadata, weights: metadata.update(mean="[" * 10**5), "metadata 'mean' is no JSON"),
        (lambda metadata, weights: metadata.update(std="[0, 0, 0]"), r"holds no network \(std"),
        (lambda metadata, weights: metadata.update(arch="x"), r"holds no network \(arch: "),
        (lambda metadata, weights: metadata.update(arch="vgg16"), "weights are of another netw"),
        (lambda metadata, weights: metadata.update(arch=""), "a network of your own"),
        (lambda metadata, weights: metadata.update(amp="auto"), r"holds no network \(amp: "),
        (lambda metadata, weights: metadata.update(pixels="1e9"), r"holds no network \(pixels: "),
        (
            lambda metadata, weights: metadata.update(stored_size="[0, 64]"),
            r"holds no network \(stored_size\.0: ",
        ),
        (
            lambda metadata, weights: weights["fc1.bias"].add_(1),
            "weights are not those of its weights_sha256",
        ),
        (
            lambda metadata, weights: metadata.pop("weights_sha256"),
            "weights are not those of its weights_sha256",
        ),
    ],
)
def test_what_no_export_wrote_is_named_in_one_line(
    exported: Path, change: Callable[..., Any], message: str
) -> None:
    rewrite(exported, change)

    with pytest.raises(CheckpointError, match=rf"best\.safetensors: .*{message}") as told:
        load(exported, device=CPU)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 300


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_that_was_cut_short_is_refused(exported: Path, share: float) -> None:
    data = exported.read_bytes()
    exported.write_bytes(data[: int(share * len(data))])

    with pytest.raises(CheckpointError, match=r"best\.safetensors: damaged or not a \.safetensors"):
        load(exported, device=CPU)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.safetensors: no such file; run 'tinyvgg exp"):
        read_weight_file(tmp_path / "x.safetensors")


def test_weights_of_an_own_network_are_loaded_into_it(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 2))
    fields = {"arch": None, "pixels": 16, "model": model.state_dict()}
    write_network(tmp_path / "best.pt", ["a", "b"], **fields)
    own = load(tmp_path / "best.pt", model=model, device=CPU)
    export(own, tmp_path / "own.safetensors")
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 2))

    found = load(tmp_path / "own.safetensors", model=other, device=CPU)

    assert found.arch is None
    images = draw_images(3, 16, 16)
    assert found.predict(images) == own.predict(images)


def test_metadata_with_odd_names_come_back(tmp_path: Path) -> None:
    words = ['"', "\n", "\udcff", "猫"]
    write_network(tmp_path / "best.pt", ["a", "b", "c", "d"], class_words=words)
    trained = load(tmp_path / "best.pt", device=CPU)

    path = export(trained, tmp_path / "x.safetensors").path

    assert load(path, device=CPU).class_words == words
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["class_words"]) == words
