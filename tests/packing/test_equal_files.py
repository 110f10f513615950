"""Equal files: 64 bits agree first, then bytes decide."""

from pathlib import Path

import numpy as np
import pytest

from tinyvgg.packing.equal_files import list_equal_files
from tinyvgg.packing.folders import ImageSource, list_images


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    """A source whose val files 0, 2, 4 … are equal to a train file."""
    for number in range(40):
        for split in ("train", "val"):
            path = tmp_path / split / "ant" / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"%d" % (-number if split == "val" and number % 2 else number))
    (tmp_path / "val/ant/00.png").write_bytes(b"39")
    return list_images(tmp_path)


def digest_files(source: ImageSource) -> dict[str, np.ndarray]:
    return {
        split: np.array([hash(source.tree.read_file(i.path)) for i in images]).view(np.uint64)
        for split, images in source.splits.items()
    }


def test_val_files_that_equal_a_train_file_are_listed_in_order(source: ImageSource) -> None:
    paths = list_equal_files(source, source.splits, digest_files(source))

    assert paths == [f"val/ant/{number:02d}.png" for number in range(0, 40, 2)]


def test_files_with_equal_digests_are_compared(source: ImageSource) -> None:
    digests = {split: np.zeros(40, np.uint64) for split in ("train", "val")}

    paths = list_equal_files(source, source.splits, digests)

    assert paths == [f"val/ant/{number:02d}.png" for number in range(0, 40, 2)]


def test_a_file_that_is_gone_is_equal_to_none(source: ImageSource, tmp_path: Path) -> None:
    digests = digest_files(source)
    (tmp_path / "val/ant/02.png").unlink()
    (tmp_path / "train/ant/04.png").unlink()

    paths = list_equal_files(source, source.splits, digests)

    assert paths == [f"val/ant/{number:02d}.png" for number in (0, *range(6, 40, 2))]
