"""Predictions: the network's own probabilities, in order, whatever stands between the images."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.inference.conftest import draw_images, normalize
from tinyvgg.errors import CheckpointError, DatasetError
from tinyvgg.inference.given_images import take_images
from tinyvgg.inference.predict import Prediction, Predictor
from tinyvgg.inference.trained import TrainedNetwork


@pytest.mark.parametrize("batch_size", [1, 5, 12, None])
def test_probabilities_are_the_softmax_of_the_networks_logits(
    trained: TrainedNetwork, batch_size: int | None
) -> None:
    images = draw_images(12, 32, 32)
    with torch.no_grad():
        expected = trained(normalize(images)).softmax(1)

    found = trained.predict(images, batch_size=batch_size)

    assert [prediction.name for prediction in found] == [f"image {i}" for i in range(12)]
    assert [prediction.best.label for prediction in found] == expected.argmax(1).tolist()
    for prediction, row in zip(found, expected, strict=True):
        assert len(prediction.guesses) == 3  # of the five that are asked for
        for guess in prediction.guesses:
            assert guess.probability == pytest.approx(row[guess.label].item(), abs=1e-5)
        assert sum(guess.probability for guess in prediction.guesses) == pytest.approx(1, abs=1e-6)


def test_guesses_are_best_first_with_folder_and_words(trained: TrainedNetwork) -> None:
    (found,) = trained.predict(draw_images(1, 32, 32), top_k=2)

    first, second = found.guesses
    assert first.probability > second.probability
    assert (first.label, first.class_folder, first.words) == (0, "class0", "red things")
    assert first.title == "red things"
    assert json.loads(json.dumps(found.describe())) == {
        "image": "image 0",
        "guesses": [
            {
                "label": 0,
                "class": "class0",
                "words": "red things",
                "probability": first.probability,
            },
            {
                "label": second.label,
                "class": second.class_folder,
                "words": second.words,
                "probability": second.probability,
            },
        ],
    }


def test_a_class_without_words_is_called_by_its_folder(trained: TrainedNetwork) -> None:
    found = trained.predict(draw_images(2, 32, 32)[1])

    assert found[0].best.words == ""
    assert found[0].best.title == "class1"


def test_files_pictures_and_arrays_may_be_mixed(trained: TrainedNetwork, tmp_path: Path) -> None:
    red, green, blue = draw_images(3, 32, 32)
    Image.fromarray(green).save(tmp_path / "green.png")

    found = trained.predict([Image.fromarray(red), tmp_path / "green.png", blue])

    assert [prediction.best.label for prediction in found] == [0, 1, 2]
    assert [prediction.name for prediction in found] == [
        "image 0", str(tmp_path / "green.png"), "image 2"
    ]  # fmt: skip


@pytest.fixture
def with_damage(tmp_path: Path) -> list[Path]:
    """Five files; the second is cut short, the fourth is not there."""
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, pixels in zip(paths, draw_images(5, 32, 32), strict=True):
        Image.fromarray(pixels).save(path)
    paths[1].write_bytes(paths[1].read_bytes()[:500])
    paths[3].unlink()
    return paths


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_damaged_image_keeps_its_place_and_says_why(
    trained: TrainedNetwork, with_damage: list[Path], batch_size: int
) -> None:
    found = trained.predict(with_damage, batch_size=batch_size, keep_damaged=True)

    assert [bool(prediction.guesses) for prediction in found] == [True, False, True, False, True]
    assert [found[i].best.label for i in (0, 2, 4)] == [0, 2, 1]
    assert found[1].damage is not None
    assert found[1].damage.startswith("cannot be decoded (")
    assert found[3].damage == "No such file or directory"
    with pytest.raises(DatasetError, match=r"3\.png: No such file or directory"):
        _ = found[3].best


def test_damaged_images_are_named_in_one_error(
    trained: TrainedNetwork, with_damage: list[Path]
) -> None:
    with pytest.raises(
        DatasetError, match=r"^images: 2 bad files; drop them, or pass keep_"
    ) as told:
        trained.predict(with_damage)

    lines = str(told.value).splitlines()
    assert len(lines) == 3
    assert str(with_damage[3]) in lines[2]


def test_the_mode_of_the_network_is_put_back_and_no_thread_stays(trained: TrainedNetwork) -> None:
    before = threading.active_count()
    trained.train()
    try:
        predictions: Iterator[Prediction] = Predictor(trained, batch_size=2).predict(
            take_images(draw_images(12, 32, 32))
        )
        next(predictions)
        modes = [trained.training]
        predictions.close()  # type: ignore[attr-defined]

        assert [*modes, trained.training] == [False, True]
        assert threading.active_count() == before
    finally:
        trained.eval()


def test_images_are_asked_for_a_few_batches_ahead(trained: TrainedNetwork) -> None:
    taken = 0

    def give() -> Iterator[np.ndarray]:
        nonlocal taken
        for pixels in draw_images(12, 32, 32):
            taken += 1
            yield pixels

    predictions = Predictor(trained, batch_size=2).predict(take_images(give()))
    next(predictions)

    assert taken == 6
    assert len(list(predictions)) == 11


def test_what_was_shown_is_kept_of_as_many_images_as_asked_for(trained: TrainedNetwork) -> None:
    images = draw_images(5, 32, 32)

    found = list(Predictor(trained, batch_size=2, num_kept=3).predict(take_images(images)))

    assert [prediction.shown is not None for prediction in found] == [True] * 3 + [False] * 2
    kept = [prediction.shown for prediction in found if prediction.shown is not None]
    assert np.array_equal(np.stack(kept), images[:3])


def test_outputs_that_are_no_numbers_are_an_error(trained: TrainedNetwork) -> None:
    bias = trained.model.get_parameter("classifier.bias")
    kept = bias.detach().clone()
    with torch.no_grad():
        bias[1] = torch.nan
    try:
        with pytest.raises(CheckpointError, match="NaN or infinite; pass --amp off, or train"):
            trained.predict(draw_images(2, 32, 32))
    finally:
        with torch.no_grad():
            bias.copy_(kept)


@pytest.mark.parametrize("name", ["top_k", "batch_size"])
def test_counts_under_one_are_refused(trained: TrainedNetwork, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Predictor(trained, **{name: 0})  # type: ignore[arg-type]


def test_half_types_answer_as_float32_does(trained: TrainedNetwork) -> None:
    images = draw_images(6, 32, 32)

    found = trained.predict(images, amp="bf16")

    expected = trained.predict(images)
    for half, whole in zip(found, expected, strict=True):
        assert half.best.label == whole.best.label
        assert half.best.probability == pytest.approx(whole.best.probability, abs=0.02)


def test_no_images_give_no_predictions(trained: TrainedNetwork) -> None:
    assert trained.predict([]) == []
