import json
import logging

import pytest

from tinyvgg.reporting.console import line_printer, prepare_streams, print_json


def test_a_document_is_strict_json_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"loss": float("nan"), "猫": [float("-inf"), (1, 0.5)], "a\udcff": {"b": None}})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out, parse_constant=refuse) == {
        "loss": None,
        "猫": [None, [1, 0.5]],
        "a\udcff": {"b": None},
    }


def test_progress_goes_to_stderr_where_stdout_is_one_document(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for is_json in (True, False):
        line_printer(is_json=is_json)(f"is_json={is_json}\x1b")

    assert capsys.readouterr() == (r"is_json=False\x1b" + "\n", r"is_json=True\x1b" + "\n")


def test_log_lines_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger().handlers[:]

    prepare_streams()
    logging.getLogger("tinyvgg").warning("%s: left out", "a\nb\x1b[2J")
    logging.getLogger().handlers[:] = before

    assert capsys.readouterr().err == r"a\nb\x1b[2J: left out" + "\n"
