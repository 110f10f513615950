import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tinyvgg import fit
from tinyvgg.cli import main
from tinyvgg.inference.confusion import find_confused_pairs, order_by_similarity
from tinyvgg.reporting.report.page import render_page, write_report
from tinyvgg.reporting.report.read import read_run
from tinyvgg.runs.scoring import choose_sample
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.config import Recipe

ADDRESS = re.compile(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", re.IGNORECASE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Return Chromium without a window, where Debian's and playwright are installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def run_folder(
    color_dataset: PackedDataset, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> Path:
    network = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 2)
    )
    fit(color_dataset, make_recipe(), out=tmp_path / "run", model=network, device="cpu")
    return tmp_path / "run"


def test_a_page_shows_a_run_and_asks_for_nothing(run_folder: Path) -> None:
    page = write_report([run_folder]).read_text("utf-8")

    run = read_run(run_folder)
    assert run.best is not None
    assert run.missing == []
    assert f"{100 * run.best.val_top1:.2f} %" in page
    assert f"train ({run.history[0].sample_images} fixed images)" in page
    assert not ADDRESS.search(page)
    assert "<canvas" in page
    assert "network of your own, recipe" in page


def test_what_comes_from_files_is_escaped(run_folder: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    run = read_run(run_folder)
    assert run.scored is not None
    scored = run.scored.model_copy(update={"class_words": [evil, "猫 é"]})
    config = {"recipe": {"name": evil}, "versions": {evil: evil}}

    page = render_page([replace(run, scored=scored, config=config, missing=[evil])])

    assert "<script>alert" not in page
    assert "猫 é" in page


def test_a_killed_run_gives_a_page_that_says_what_is_missing(run_folder: Path) -> None:
    (run_folder / "scored.json").unlink()
    (run_folder / "metrics.jsonl").unlink()

    page = write_report([run_folder]).read_text("utf-8")

    assert "metrics.jsonl is missing" in page
    assert "scored.json is missing" in page


def test_a_damaged_file_is_a_sentence_on_the_page(run_folder: Path) -> None:
    (run_folder / "scored.json").write_text(json.dumps({"epoch": -1}))

    assert "scored.json cannot be read" in write_report([run_folder]).read_text("utf-8")


def test_a_folder_that_is_no_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 1
    found = capsys.readouterr().err
    assert found.startswith(f"tinyvgg report: {tmp_path}: holds no run")
    assert found.count("\n") == 1


def test_several_runs_stand_beside_each_other(run_folder: Path, tmp_path: Path) -> None:
    page = write_report([run_folder, run_folder], tmp_path / "new" / "both.html").read_text("utf-8")

    assert "No setting differs." in page
    assert "run: train sample" in page


def test_the_templates_are_package_data() -> None:
    folder = files("tinyvgg.reporting.report") / "templates"
    names = {entry.name for entry in folder.iterdir()}
    config = (Path(__file__).parents[2] / "pyproject.toml").read_text()

    assert names == {"page.html", "page.css", "page.js", "chart.html"}
    assert '"reporting/report/templates/*"' in config


def test_the_sample_is_fixed_and_small() -> None:
    assert np.array_equal(choose_sample(100_000), choose_sample(100_000))
    assert [len(choose_sample(n)) for n in (7, 1_000, 50_000, 10**6)] == [7, 100, 1_000, 2_000]
    assert len(set(choose_sample(50_000).tolist())) == 1_000


def test_pairs_and_order_of_a_known_matrix() -> None:
    confusion = np.diag([5, 5, 5, 5])
    confusion[0, 2] = confusion[2, 0] = 4
    confusion[3, 1] = 3

    order = order_by_similarity(confusion)

    assert [pair[:3] for pair in find_confused_pairs(confusion)] == [
        (0, 2, 4),
        (2, 0, 4),
        (3, 1, 3),
    ]
    assert abs(order.index(0) - order.index(2)) == 1
    assert abs(order.index(1) - order.index(3)) == 1


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_page_without_a_network_or_an_error(
    browser: Any, run_folder: Path, theme: str, width: int
) -> None:
    address = write_report([run_folder]).resolve().as_uri()
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=theme, offline=True
    )
    page, errors, requests = context.new_page(), [], []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))

    page.goto(address)
    page.focus("#matrix")
    page.keyboard.press("ArrowRight")
    said = page.inner_text("#said")
    is_dark = sum(page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)"
    )[:3]) < 384  # fmt: skip
    wide = page.evaluate("document.documentElement.scrollWidth")
    context.close()

    assert errors == []
    assert [url for url in requests if not url.startswith("data:")] == [address]
    assert said
    assert is_dark == (theme == "dark")
    assert wide <= width
