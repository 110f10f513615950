from pathlib import Path

import pytest

from tinyvgg.reporting.tensorboard import check_installed, write_events

pytest.importorskip("tensorboard")


def test_events_read_back_as_the_history_and_are_replaced(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = [
        {"epoch": epoch, "step": 10 * (epoch + 1), "train_loss": 2.0 - epoch, "val_top1": 0.25}
        for epoch in range(2)
    ]

    check_installed()
    for length in (1, 2):  # as after each epoch
        write_events(history[:length], tmp_path / "tensorboard")

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "val/top1"}
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(10, 2.0), (20, 1.0)]
