"""A trained network that gives no numbers, finds nothing or never changes its answer is told."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.errors import CheckpointError
from deploykit.proof import trained_answers
from deploykit.proof.proving import Reference
from deploykit.tasks.outputs import Output

COUNT = (Output("count", "count"),)


def reference(**answers: object) -> Reference:
    arrays = {name: np.asarray(value) for name, value in answers.items()}
    return Reference(({},), (arrays,), (arrays,), (arrays,), exact=False)


@pytest.mark.parametrize(
    ("value", "what"), [(np.nan, "NaN"), (np.inf, "infinities"), (-np.inf, "infinities")]
)
def test_answers_that_are_no_numbers_prove_nothing(value: float, what: str) -> None:
    found = reference(logits=np.array([[1.0, value], [0.0, 1.0]], np.float32))
    with pytest.raises(CheckpointError, match=rf"itself gives {what} in its output 'logits'"):
        trained_answers.check(found, ())


def test_a_network_that_finds_nothing_proves_nothing() -> None:
    with pytest.raises(CheckpointError, match="finds nothing, whatever the score"):
        trained_answers.check(reference(count=[0, 0]), COUNT)
    trained_answers.check(reference(count=[0, 3]), COUNT)
    trained_answers.check(reference(count=[0, 0]), ())


def test_answers_that_are_the_same_for_every_image_are_said() -> None:
    alike = np.ones((2, 3), np.float32)
    assert "same for every image" in trained_answers.notes(reference(a=alike, b=alike))[0]
    assert not trained_answers.notes(reference(a=alike, b=np.eye(2, dtype=np.float32)))
    assert not trained_answers.notes(reference(a=alike[:1]))
    assert not trained_answers.notes(reference())
