"""A command's signature is its parser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest

from deploykit.cli import parsing
from deploykit.cli.parsing import Argument, Option
from deploykit.errors import OptionError


def paint(  # noqa: PLR0913 - one of each kind
    wall: Annotated[Path, Argument(help="What is painted.")],
    *,
    output: Annotated[Path, Option("-o", "--output", help="The picture.")],
    colours: Annotated[list[str] | None, Option(help="One, or more of them.")] = None,
    coats: Annotated[int | None, Option(help="Layers.  100 % of it.")] = 2,
    thickness: Annotated[float, Option(help="In millimetres.", takes="MM")] = 0.5,
    dry: Annotated[bool, Option(help="Wait.")] = True,
    as_json: Annotated[bool, Option("--json", help="For machines.")] = False,
) -> None:
    """Put colour on a wall.

    Examples:
        deploykit paint wall -o picture
    """


def strip(walls: Annotated[list[Path], Argument(help="One or more.")]) -> None:
    """Take it off."""


def test_what_is_not_given_has_its_default() -> None:
    assert parsing.parse("paint", paint, ["wall", "-o", "x"]) == {
        "wall": Path("wall"),
        "output": Path("x"),
        "colours": None,
        "coats": 2,
        "thickness": 0.5,
        "dry": True,
        "as_json": False,
    }


def test_values_have_the_type_that_the_signature_says() -> None:
    words = "--coats 3 --thickness 1e-2 --no-dry --json wall --colours=a --output=x --colours b"
    found = parsing.parse("paint", paint, words.split())
    assert found["coats"] == 3
    assert found["thickness"] == 0.01
    assert found["colours"] == ["a", "b"]
    assert found["dry"] is False
    assert found["as_json"] is True
    assert found["output"] == Path("x")


def test_an_argument_that_is_a_list_takes_words_on_both_sides_of_an_option() -> None:
    assert parsing.parse("strip", strip, ["a", "b"]) == {"walls": [Path("a"), Path("b")]}
    with pytest.raises(OptionError, match="required: WALLS"):
        parsing.parse("strip", strip, [])


def test_a_word_after_two_dashes_is_no_option() -> None:
    assert parsing.parse("strip", strip, ["--", "--odd"]) == {"walls": [Path("--odd")]}


def test_an_abbreviation_is_no_option_and_the_nearest_is_named() -> None:
    with pytest.raises(OptionError, match="unknown option '--thick'") as caught:
        parsing.parse("paint", paint, ["wall", "-o", "x", "--thick", "1"])
    assert "--thickness" in caught.value.fix


def test_the_page_names_values_defaults_and_what_must_be_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parsing.parse("paint", paint, ["-h"])
    text = capsys.readouterr().out
    assert "  -o, --output PATH  The picture. [required]\n" in text
    assert "  --coats N          Layers. 100 % of it. [default: 2]\n" in text
    assert "  --thickness MM     In millimetres. [default: 0.5]\n" in text
    assert "  --dry, --no-dry    Wait.\n" in text
    assert "  --json             For machines.\n" in text
    assert text.endswith("examples:\n  deploykit paint wall -o picture\n")
    assert max(map(len, text.splitlines())) <= 80
