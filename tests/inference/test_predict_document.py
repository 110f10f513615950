"""PREDICT.md: its examples run as they stand there, on files that `export` wrote."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tinyvgg
from tests.inference.conftest import draw_images
from tests.inference.test_export import has_onnx, needs_onnx
from tinyvgg.inference.export import export
from tinyvgg.inference.trained import TrainedNetwork

DOCUMENT = Path(tinyvgg.__file__).parent / "inference" / "PREDICT.md"
EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL
)
TITLES = ("predict", "onnxruntime", "torch", "safetensors")


@pytest.fixture(scope="module")
def folder(trained: TrainedNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, what is exported of it, and an image of class 2."""
    root = tmp_path_factory.mktemp("document")
    (root / "run").mkdir()
    preprocessing = trained.preprocessing
    fields: dict[str, Any] = {
        "arch": trained.arch,
        "model": trained.model.state_dict(),
        "pixels": 32,
        "amp": "off",
    }
    fields |= {"mean": list(preprocessing.mean), "std": list(preprocessing.std)}
    fields |= {"class_folders": trained.class_folders, "class_words": trained.class_words}
    torch.save({"format": 1, **fields}, root / "run" / "best.pt")
    for suffix in (".safetensors", ".pt2", *([".onnx"] if has_onnx() else [])):
        export(trained, root / f"best{suffix}")
    Image.fromarray(draw_images(3, 60, 48)[2]).save(root / "cat.jpg", quality=95)
    return root


def test_the_document_has_these_examples() -> None:
    assert len(EXAMPLES) == len(TITLES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "found"),
    [
        (0, r"^(0|1)\.\d{3} class2 blue, azure\n"),
        pytest.param(1, r"^class2\n$", marks=needs_onnx),
        (2, r"^class2\n$"),
        (3, r"^vgg11 \['class0', 'class1', 'class2'\] 18\n$"),
    ],
    ids=TITLES,
)
def test_an_example_runs_as_it_stands(folder: Path, number: int, found: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[number]],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr
    assert re.match(found, done.stdout)
    if number:
        assert "tinyvgg" not in EXAMPLES[number].replace('"tinyvgg.json"', "")
