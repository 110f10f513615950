"""Predictions on stdout: names are text, whatever they hold; the exit status tells of damage."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tinyvgg.inference.config import PredictConfig
from tinyvgg.inference.predict import Guess, Prediction
from tinyvgg.reporting.predictions import MAX_TABLE, PredictionPrinter

ODD = "a[red]\x1b[31m\n\u202e,猫.jpg"
ESCAPED = "a[red]\\x1b[31m\\n\\u202e,猫.jpg"
GUESSES = (Guess(1, "n02", 'cat, "tabby"', 0.75), Guess(0, "n01", "\x07dog", 0.25))


def predict(name: str = ODD, **fields: Any) -> Prediction:
    return Prediction(name, **{"guesses": GUESSES, **fields})


def print_all(predictions: list[Prediction], **options: Any) -> int:
    config = PredictConfig(Path("best.pt"), ("x",), **options)
    printer = PredictionPrinter(config, len(predictions))
    for prediction in predictions:
        printer.add(prediction)
    return printer.finish()


def test_the_table_shows_every_guess_and_no_control_character(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")

    assert print_all([predict()]) == 0

    out = capsys.readouterr().out
    assert ESCAPED in out
    assert 'cat, "tabby"' in out
    assert "\\x07dog" in out
    assert "0.7500" in out
    assert all(character.isprintable() or character == "\n" for character in out)


def test_more_images_than_a_table_holds_are_a_line_each(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert print_all([predict()] * (MAX_TABLE + 1)) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f'{ESCAPED}: 0.7500 n02 cat, "tabby"; 0.2500 n01 \\x07dog'
    ] * (MAX_TABLE + 1)  # fmt: skip


def test_json_is_one_document_with_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    damaged = predict("b.jpg", guesses=(), damage="0 bytes")

    assert print_all([predict(), damaged], json=True) == 1

    streams = capsys.readouterr()
    document = json.loads(streams.out)
    assert document["predictions"] == [predict().describe()]
    assert document["predictions"][0]["image"] == ODD
    assert document["damaged"] == [{"image": "b.jpg", "reason": "0 bytes"}]
    assert "b.jpg: 0 bytes\n" in streams.err


def test_csv_has_a_line_for_each_guess(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_all([predict(), predict("b.jpg")], csv=True) == 0

    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 4
    assert rows[0] == {
        "image": ESCAPED,
        "rank": "1",
        "label": "1",
        "class": "n02",
        "words": 'cat, "tabby"',
        "probability": "0.75",
    }
    assert [(row["image"], row["rank"]) for row in rows[2:]] == [("b.jpg", "1"), ("b.jpg", "2")]


def test_damage_is_named_in_one_line_and_counted_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = print_all([predict(), predict(ODD, guesses=(), damage="x\ny"), predict()])

    assert status == 1
    assert capsys.readouterr().err == (
        f"tinyvgg predict: {ESCAPED}: x\\ny\n"
        "tinyvgg predict: images: 1 of 3 could not be read; the others are complete\n"
    )


def test_no_image_at_all_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_all([]) == 1
    assert capsys.readouterr().err == "tinyvgg predict: images: none was given; name some\n"


@pytest.mark.parametrize("form", [{}, {"csv": True}, {"json": True}])
def test_the_picture_shows_the_pixels_and_is_told_of(
    form: dict[str, bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    damaged = predict("b.jpg", guesses=(), damage="0 bytes")
    path = tmp_path / "grid.png"

    print_all(
        [predict(shown=shown), damaged, predict("c.jpg", shown=shown[::-1])], grid=path, **form
    )

    streams = capsys.readouterr()
    told = streams.err if form else streams.out
    assert told.endswith(f"{path}: 2 images and their answers\n")
    with Image.open(path) as image:
        sheet = np.asarray(image)
    assert sheet.shape == (168, 2 * 136, 3)
    doubled = shown.repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(sheet[4:132, 4:132], doubled)
    assert np.array_equal(sheet[4:132, 140:268], doubled[::-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": ()}, "images must name at least one file or folder, or - for stdin"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"csv": True, "json": True}, "csv and json cannot both be printed"),
    ],
)
def test_what_cannot_be_shown_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PredictConfig(**{"checkpoint": Path("best.pt"), "images": ("x",), **options})
