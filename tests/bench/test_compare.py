import json
from pathlib import Path
from typing import Any

import pytest

from tinyvgg.bench.compare import compare_results, render_compared
from tinyvgg.cli import main
from tinyvgg.errors import TinyvggError


def write(path: Path, stages: dict[str, list[float]], **fields: Any) -> Path:
    rates = [{"stage": name, "windows": windows} for name, windows in stages.items()]
    path.write_text(json.dumps({"stages": rates, **fields}))
    return path


@pytest.fixture
def before(tmp_path: Path) -> Path:
    stages = {"step": [100.0, 101.0, 99.0], "pack": [50.0, 70.0, 60.0], "old": [1.0]}
    return write(tmp_path / "before.json", stages, machine={"cpu": "one", "busy_share": 0.1})


def test_ratios_are_the_second_over_the_first_with_a_verdict_each(
    before: Path, tmp_path: Path
) -> None:
    after = write(
        tmp_path / "after.json",
        {"step": [150.0, 149.0, 151.0], "pack": [55.0, 65.0, 60.0], "new": [1.0]},
        machine={"cpu": "two", "busy_share": 0.5},
    )

    found = compare_results(before, after)

    assert found.ratios["step"].median == 1.5
    assert {name: ratio.verdict for name, ratio in found.ratios.items()} == {
        "step": "faster",
        "pack": "no difference",
    }
    assert found.notes == [
        "cpu: one in before.json, two in after.json",
        "old: only in before.json",
        "new: only in after.json",
    ]
    assert render_compared(found)[-1] == "nothing is slower"


def test_the_command_ends_with_1_if_and_only_if_something_is_slower(
    before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slower = write(tmp_path / "slower.json", {"step": [80.0, 81.0, 82.0]})
    little = write(tmp_path / "little.json", {"step": [98.9, 98.8, 98.7]})  # 1.2 % is no difference

    statuses = [
        main(["bench", "--compare", str(before), str(path)]) for path in (before, slower, little)
    ]

    assert statuses == [0, 1, 0]
    assert "\nslower: step\n" in capsys.readouterr().out


def test_compare_prints_one_json_document(
    before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slower = write(tmp_path / "slower.json", {"step": [50.0]})

    assert main(["bench", "--compare", str(before), str(slower), "--json"]) == 1

    document = json.loads(capsys.readouterr().out)
    assert document["is_slower"]
    assert document["ratios"]["step"]["verdict"] == "slower"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"stages": [{"stage": "step", "images_per_sec": 3.0}]}',  # of 0.2: no windows
        '{"stages": [{"stage": "step", "windows": []}]}',
        '{"stages": [{"stage": "step", "windows": [0.0]}]}',
        '{"stages": [{"stage": "step", "windows": [NaN]}]}',
        '{"stages": [{"windows": [1.0]}]}',
        "\x00\xff",
    ],
)
def test_what_is_no_result_is_refused_in_one_line_with_status_1(
    text: str, before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.json"
    path.write_bytes(text.encode("latin-1"))

    assert main(["bench", "--compare", str(before), str(path)]) == 1

    error = capsys.readouterr().err
    assert error.startswith(f"tinyvgg bench: {path}: holds no result of bench (")
    assert error.count("\n") == 1


def test_results_with_nothing_in_common_and_missing_files_are_refused(
    before: Path, tmp_path: Path
) -> None:
    other = write(tmp_path / "other.json", {"load": [1.0]})

    with pytest.raises(TinyvggError, match="nothing of it was measured in"):
        compare_results(before, other)
    assert main(["bench", "--compare", str(before), str(tmp_path / "none.json")]) == 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["packed", "--compare", "a", "b"],
        ["--compare", "a"],
        ["packed", "--repeats", "0"],
        ["packed", "--batch-size", "0"],
        ["packed", "--workers", "-1"],
        ["packed", "--window-sec", "0"],
    ],
)
def test_usage_errors_end_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *words])

    assert ended.value.code == 2
