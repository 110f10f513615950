from pathlib import Path

import pytest

from tests.packing.sources import write_source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "outs"
    folder.mkdir()
    return folder / "packed"
