import pytest

from tinyvgg.errors import DatasetError, bad_files_text, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("n01443537/a b.JPEG", "n01443537/a b.JPEG"),
        ("naïve 猫 \u3000 👩\u200d🔬 क\u200cष", "naïve 猫 \u3000 👩\u200d🔬 क\u200cष"),
        ("a\x1b[2J\x07\r\nb\tc\x7f\x9b", r"a\x1b[2J\x07\r\nb\tc\x7f\x9b"),
        ("gpj.\u202etxe\u2066\u200f", r"gpj.\u202etxe\u2066\u200f"),  # turns the direction
        ("a\u2028b\u2029c\ufeff\u200b\U000e0041", r"a\u2028b\u2029c\ufeff\u200b\U000e0041"),
        ("\udcff.jpg", r"\udcff.jpg"),  # a byte of a file name that is no UTF-8
    ],
)
def test_what_a_terminal_would_obey_is_escaped_and_the_rest_stays(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_an_error_is_one_line_whatever_the_name() -> None:
    assert str(DatasetError("x\ny.jpg: no image")) == r"x\ny.jpg: no image"


def test_an_error_of_many_files_has_a_line_for_each() -> None:
    files = [(f"a\n{number}.jpg\x1b", "no\rimage") for number in range(22)]

    lines = str(DatasetError(bad_files_text("so\nurce", files, "drop them"))).split("\n")

    assert lines[0] == r"so\nurce: 22 bad files; drop them"
    assert lines[1] == r"  a\n0.jpg\x1b: no\rimage"
    assert len(lines) == 22
    assert lines[-1] == "  … and 2 more"
