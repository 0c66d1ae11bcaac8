"""What is said of a checkpoint beside its file: taken, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from example_scripts import EXAMPLES

from deploykit.errors import OptionError
from deploykit.pipeline import opening
from deploykit.recipes.describing import Description

CHECKPOINT = EXAMPLES / "shapes_maps" / "fcn_light.pth"


def test_a_checkpoint_takes_the_size_and_the_names_that_are_said() -> None:
    names = tuple("abcdefg")
    about = Description(input_size=(64, 96), class_names=names)
    opened = opening.open_model(CHECKPOINT, about=about)
    assert opened.card is not None
    assert opened.card.preprocess.size == (64, 96)
    assert opened.card.class_names == names
    assert opened.session.inputs[0].shape[2:] == (64, 96)


def test_a_size_of_its_own_goes_before_what_is_said_of_all_files() -> None:
    about = Description(input_size=(64, 96), preprocess="unit")
    card = opening.open_model(CHECKPOINT).card
    opened = opening.open_model(CHECKPOINT, input_size=(32, 64), about=about, like=card)
    assert opened.session.inputs[0].shape[2:] == (32, 64)


@pytest.mark.parametrize(
    ("said", "option"),
    [
        ({"preprocess": "unit"}, "--preprocess"),
        ({"mean": (0.5, 0.5, 0.5)}, "--mean"),
        ({"decode": "yolov8"}, "--decode"),
        ({"inputs": {"factor": 1.0}}, "--inputs"),
    ],
)
def test_what_a_recipe_knows_of_its_checkpoints_is_not_taken_from_the_user(
    said: dict[str, Any], option: str
) -> None:
    with pytest.raises(OptionError, match=f"{option} for the checkpoint fcn_light.pth"):
        opening.open_model(CHECKPOINT, about=Description(**said))
