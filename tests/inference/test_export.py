"""Exported files, opened by the programs that they are for, give the network's logits."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.conftest import NOT_RUN
from tests.inference.conftest import draw_images, normalize
from tinyvgg.errors import BackendUnavailable, CheckpointError
from tinyvgg.inference.export import (
    ONNX_PACKAGES,
    WRITERS,
    check_onnx,
    export,
    find_difference,
)
from tinyvgg.inference.metadata import describe_network
from tinyvgg.inference.trained import Preprocessing, TrainedNetwork
from tinyvgg.model.vgg import ARCHS, build_network, initialize_he


def has_onnx() -> bool:
    try:
        check_onnx()
    except BackendUnavailable:
        return False
    return True


needs_onnx = pytest.mark.skipif(not has_onnx(), reason=f"{NOT_RUN}the extra 'onnx' is missing")
SUFFIXES = [".safetensors", ".pt2", pytest.param(".onnx", marks=needs_onnx)]
GRAPHS = SUFFIXES[1:]
Compute = Callable[[NDArray[np.generic]], torch.Tensor]


def open_file(path: Path) -> Compute:
    """Return what a graph computes, opened by the library that it is for and nothing of ours."""
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()

        def compute(images: NDArray[np.generic]) -> torch.Tensor:
            with torch.no_grad():
                logits: torch.Tensor = module(torch.from_numpy(images))
            return logits

        return compute
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images})[0])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", GRAPHS)
@pytest.mark.parametrize("given", ["uint8", "float"])
def test_a_graph_gives_the_logits_of_the_network_at_any_batch(
    trained: TrainedNetwork, tmp_path: Path, suffix: str, given: str
) -> None:
    images = draw_images(7, 32, 32)
    with torch.no_grad():
        expected = trained(normalize(images))
    assert expected.max() >= 5

    exported = export(trained, tmp_path / f"x{suffix}", given=given)  # type: ignore[arg-type]

    compute = open_file(exported.path)
    passed = images.transpose(0, 3, 1, 2)
    passed = passed if given == "uint8" else (passed / 255).astype(np.float32)
    for size in (1, 2, 7):
        logits = compute(np.ascontiguousarray(passed[:size]))
        assert logits.shape == (size, 3)
        assert (logits - expected[:size]).abs().max() < 1e-4
    assert exported.max_difference < 1e-4
    assert exported.num_bytes == exported.path.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]


def test_safetensors_hold_the_weights_bit_by_bit(trained: TrainedNetwork, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    exported = export(trained, tmp_path / "x.safetensors")

    found, expected = load_file(exported.path), trained.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    with safe_open(exported.path, "pt") as file:
        assert file.metadata() == {"format": "pt", **exported.metadata}


def test_the_metadata_are_strings_that_any_program_can_read(trained: TrainedNetwork) -> None:
    metadata = describe_network(trained)

    assert metadata["arch"] == "vgg11"
    assert json.loads(metadata["class_folders"]) == ["class0", "class1", "class2"]
    assert json.loads(metadata["class_words"]) == ["red things", "", "blue, azure"]
    assert json.loads(metadata["mean"]) == [0.48, 0.45, 0.4]
    assert json.loads(metadata["std"]) == [0.28, 0.27, 0.29]
    assert json.loads(metadata["input_size"]) == [32, 32]
    assert json.loads(metadata["center_share"]) == 0.875
    assert metadata["tinyvgg"].count(".") == 2


@pytest.mark.slow
def test_a_pt2_carries_the_metadata(trained: TrainedNetwork, tmp_path: Path) -> None:
    exported = export(trained, tmp_path / "x.pt2")

    extra = {"tinyvgg.json": ""}
    torch.export.load(tmp_path / "x.pt2", extra_files=extra)
    assert json.loads(extra["tinyvgg.json"]) == exported.metadata
    assert exported.metadata["input"] == "images [B, 3, 32, 32], RGB, uint8, 0 to 255"


@pytest.mark.slow
@needs_onnx
def test_an_onnx_is_a_plain_chain_with_the_metadata(
    trained: TrainedNetwork, tmp_path: Path
) -> None:
    import onnx

    exported = export(trained, tmp_path / "x.onnx")

    model = onnx.load(tmp_path / "x.onnx")
    onnx.checker.check_model(model)
    assert {prop.key: prop.value for prop in model.metadata_props} == exported.metadata
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("Conv"), kinds.count("MaxPool")) == (8, 5)
    assert not {"Where", "Slice"} & set(kinds)
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert shape[0].dim_param
    assert [dim.dim_value for dim in shape[1:]] == [3, 32, 32]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["vgg_net", "vgg_net_bn"])
@pytest.mark.parametrize("suffix", GRAPHS)
def test_other_networks_and_sizes_are_exported_too(tmp_path: Path, arch: str, suffix: str) -> None:
    torch.manual_seed(0)
    model = build_network(arch, 4)
    initialize_he(model)
    size = ARCHS["vgg_net"].min_pixels
    preprocessing = Preprocessing((0.5,) * 3, (0.25,) * 3, size, stored_size=(64, 80))
    network = TrainedNetwork(model, list("abcd"), [], preprocessing, arch)

    exported = export(network, tmp_path / f"x{suffix}")

    logits = open_file(exported.path)(np.zeros((3, 3, 48, 60), np.uint8))
    assert logits.shape == (3, 4)
    assert exported.max_difference <= 1e-4 * min(1, exported.max_logit)


class Odd(nn.Module):
    """Gives what no graph can: logits that depend on what the pixels are."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        if images.sum() > 0:
            return images.mean((2, 3))
        return images.amax((2, 3))


def test_a_network_that_cannot_be_exported_is_one_line_and_no_file(tmp_path: Path) -> None:
    network = TrainedNetwork(Odd(), list("abc"), [], Preprocessing((0.5,) * 3, (0.5,) * 3, 32))

    with pytest.raises(CheckpointError, match=r"x\.pt2: the network cannot be exported \(") as told:
        export(network, tmp_path / "x.pt2")

    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".safetensors"])
def test_a_file_that_gives_other_logits_is_removed_and_the_old_one_stays(
    trained: TrainedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    write, read = WRITERS[suffix]

    def write_other(network: TrainedNetwork, *given: object) -> bytes:
        other = copy.deepcopy(network)
        with torch.no_grad():
            other.model.classifier.bias += 0.001  # type: ignore[operator, union-attr]
        return write(other, *given)  # type: ignore[arg-type]

    monkeypatch.setitem(WRITERS, suffix, (write_other, read))
    (tmp_path / f"x{suffix}").write_bytes(b"old")

    with pytest.raises(CheckpointError, match=r"logits differ by 0\.001 from the network's, allow"):
        export(trained, tmp_path / f"x{suffix}", overwrite=True)

    assert (tmp_path / f"x{suffix}").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_is_there_stays_without_overwrite(
    trained: TrainedNetwork, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")

    with pytest.raises(CheckpointError, match="there already; pass another name, or --overwrite"):
        export(trained, path)
    assert path.read_bytes() == b"old"

    export(trained, path, overwrite=True)
    assert path.stat().st_size > 1000


def test_a_folder_is_never_replaced(trained: TrainedNetwork, tmp_path: Path) -> None:
    (tmp_path / "x.pt2").mkdir()

    with pytest.raises(CheckpointError, match=r"x\.pt2: a folder"):
        export(trained, tmp_path / "x.pt2", overwrite=True)


@pytest.mark.parametrize("name", ["x", "x.pt", "x.ONNX", "x.onnx.gz"])
def test_another_suffix_is_refused(trained: TrainedNetwork, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"out must end with one of \.safetensors, \.onnx, \.pt2"):
        export(trained, tmp_path / name)


def test_a_missing_package_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, trained: TrainedNetwork, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(BackendUnavailable, match="onnxruntime, not installed; run pip install 'ti"):
        export(trained, tmp_path / "x.onnx")


def test_the_network_stays_as_it_was(trained: TrainedNetwork, tmp_path: Path) -> None:
    before = {name: weight.clone() for name, weight in trained.state_dict().items()}

    export(trained, tmp_path / "x.safetensors")

    assert not trained.training
    assert all(torch.equal(weight, before[name]) for name, weight in trained.state_dict().items())
    assert trained.model.conv[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr, index]


def test_tensors_of_other_shapes_differ_without_bound() -> None:
    assert find_difference(torch.zeros(2, 3), torch.zeros(2, 1)) == float("inf")
    assert find_difference(torch.ones(2, 3), torch.zeros(2, 3)) == 1


def test_onnx_is_imported_only_to_export_it() -> None:
    program = "import sys, tinyvgg.inference.export; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    modules = set(done.stdout.split())
    assert "tinyvgg.inference.export" in modules
    assert modules & {*ONNX_PACKAGES, "safetensors"} == set()
