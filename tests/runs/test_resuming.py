import json
from pathlib import Path

import pytest

from tinyvgg.launched import name_job
from tinyvgg.runs.resuming import is_of_this_job, take_open_fields
from tinyvgg.training.config import Recipe


def write_config(run: Path, job: str | None) -> None:
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text(json.dumps({"resolved": {} if job is None else {"job": job}}))


@pytest.mark.parametrize("run_id", ["none", "", "my-job"])
def test_a_run_is_of_the_job_that_began_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_id: str
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
    run = tmp_path / "run"

    assert not is_of_this_job(run)  # there is none
    write_config(run, name_job())
    assert is_of_this_job(run)
    write_config(run, "torchrun --rdzv-id another")
    assert not is_of_this_job(run)


def test_without_torchrun_no_run_is_of_this_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    write_config(tmp_path / "run", None)

    assert name_job() is None
    assert not is_of_this_job(tmp_path / "run")


def test_another_agent_is_another_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    here = name_job()
    monkeypatch.setattr("tinyvgg.launched.os.getppid", lambda: 1)

    assert here != name_job()


def test_what_a_recipe_leaves_open_stays_as_the_run_has_it() -> None:
    stored = Recipe(batch_size=48, learning_rate=0.1, amp="bf16", compile_mode="default")

    taken = take_open_fields(Recipe(), stored)
    given = take_open_fields(Recipe(batch_size=64, learning_rate=0.2, amp="off"), stored)

    assert taken == stored
    assert (given.batch_size, given.learning_rate, given.amp) == (64, 0.2, "off")
