"""What `benchmarks.peers` proves of an arm before it is timed, and the page it writes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.measure import RECORDS, REPOSITORY
from benchmarks.peers import arms, ours, plain_torch, results
from benchmarks.peers.contract import SCALE, SHIFT, Batches, Contest, OpenEpochs, decode, list_items
from tests.packing.kills import write_jpegs

Samples = list[tuple[np.ndarray, int]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jpegs(tmp_path_factory.mktemp("peers"), train=20, val=0, size=64)


@pytest.fixture
def samples(folders: Path) -> Samples:
    return [(decode(path.read_bytes()), label) for path, label in list_items(folders)]


def epoch_of(samples: Samples, *, flip: bool = False) -> OpenEpochs:
    order = np.random.default_rng(0).permutation(len(samples)).tolist()

    def epoch() -> Batches:
        for first in range(0, len(order), 16):
            chosen = [samples[row] for row in order[first : first + 16]]
            images = np.stack([image for image, _ in chosen])
            labels = torch.tensor([label for _, label in chosen])
            if flip:
                images = images[:, :, ::-1] * SCALE + SHIFT
            shown = torch.from_numpy(np.ascontiguousarray(images))
            yield shown.permute(0, 3, 1, 2) if flip else shown, labels

    return epoch


@pytest.mark.parametrize("flip", [False, True])
def test_an_epoch_of_the_right_images_is_right(folders: Path, samples: Samples, flip: bool) -> None:
    contest: Contest = "flip" if flip else "stored"

    proof = arms.prove(epoch_of(samples, flip=flip), contest, arms.find_truth(str(folders)))

    assert proof["is_right"]
    assert proof["is_exact"]
    assert proof["channels_last"]


def leave_one_out(samples: Samples) -> Samples:
    return samples[1:]


def give_one_twice(samples: Samples) -> Samples:
    return [*samples[1:], samples[1]]


def exchange_labels(samples: Samples) -> Samples:
    return [(image, 1 - label if place < 3 else label) for place, (image, label) in
            enumerate(samples)]  # fmt: skip


def brighten(samples: Samples) -> Samples:
    return [(np.minimum(image, 252) + np.uint8(3), label) for image, label in samples]


@pytest.mark.parametrize("spoil", [leave_one_out, give_one_twice, exchange_labels, brighten])
def test_an_epoch_of_other_images_is_wrong(
    folders: Path, samples: Samples, spoil: Callable[[Samples], Samples]
) -> None:
    proof = arms.prove(epoch_of(spoil(samples)), "stored", arms.find_truth(str(folders)))

    assert not proof["is_right"]


@pytest.mark.parametrize("contest", ["stored", "flip", "crop"])
def test_plain_torch_reads_what_it_writes(folders: Path, tmp_path: Path, contest: Contest) -> None:
    truth = arms.find_truth(str(folders))
    arms.write("plain_torch", str(folders), str(tmp_path / "array"), "raw")
    for is_bare in (True, False):
        epoch = plain_torch.open_epochs(tmp_path / "array", contest, "raw", is_bare)

        assert arms.prove(epoch, contest, truth)["is_right"]


def test_tinyvgg_is_measured_over_what_its_command_packs(folders: Path, tmp_path: Path) -> None:
    arms.write("ours", str(folders), str(tmp_path / "packed"), "raw")
    epoch = ours.open_epochs(tmp_path / "packed", "stored", "raw", "torch")

    assert sum(len(labels) for _, labels in epoch()) == 36  # of 40; a tenth is called val


def test_the_page_is_that_of_the_newest_record() -> None:
    newest = max(RECORDS.glob("*-peers-*.json"), key=lambda path: path.name)
    page = (REPOSITORY / "benchmarks" / "RESULTS.md").read_text()

    assert page == results.render(json.loads(newest.read_text()))
