"""Equal files: hashes noted while reading, from any thread."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tinyvgg.packing.equal_files import NotingTree
from tinyvgg.packing.folders import list_images


@pytest.fixture
def tree(tmp_path: Path) -> NotingTree:
    """A source whose val files 0, 2, 4 … are equal to a train file."""
    for number in range(40):
        for split in ("train", "val"):
            path = tmp_path / split / "ant" / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"%d" % (-number if split == "val" and number % 2 else number))
    (tmp_path / "val/ant/00.png").write_bytes(b"39")
    source = list_images(tmp_path)
    return NotingTree(source.tree, [image.path for image in source.splits["val"]])


def test_val_files_that_equal_a_train_file_are_listed_in_order(tree: NotingTree) -> None:
    paths = [f"{split}/ant/{number:02d}.png" for number in range(40) for split in ("val", "train")]

    with ThreadPoolExecutor(5) as threads:
        contents = list(threads.map(tree.read_file, paths))

    assert contents[:3] == [b"39", b"0", b"-1"]
    assert tree.list_equal() == [f"val/ant/{number:02d}.png" for number in range(0, 40, 2)]


def test_files_that_were_not_read_are_not_listed(tree: NotingTree) -> None:
    tree.read_file("val/ant/02.png")
    assert tree.list_equal() == []

    tree.read_file("train/ant/02.png")
    assert tree.list_equal() == ["val/ant/02.png"]
