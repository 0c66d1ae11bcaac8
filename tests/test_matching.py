from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.proof import verification
from deploykit.tasks import agreement, matching
from deploykit.tasks.agreement import PaddedRows
from deploykit.tasks.matching import Selection

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from deploykit.values import Agreement

    Outputs = dict[str, NDArray[Any]]

KEPT = Selection(score=0.05, iou=0.5)
COUNT, MOST = 12, 20


def detections(seed: int = 0, *, images: int = 2, count: int = COUNT, most: int = MOST) -> Outputs:
    """Boxes far from each other, scores far from each other and from the threshold."""
    rng = np.random.default_rng(seed)
    found: Outputs = {
        "boxes": np.zeros((images, most, 4), np.float32),
        "scores": np.zeros((images, most), np.float32),
        "classes": np.full((images, most), -1, np.int32),
        "count": np.full(images, count, np.int32),
        "masks": np.zeros((images, most, 7, 7), np.float32),
    }
    for i in range(images):
        corner = np.stack([np.arange(count) * 100.0, rng.uniform(0, 400, count)], 1)
        sides = rng.uniform(20, 90, (count, 2))
        found["boxes"][i, :count] = np.concatenate([corner, corner + sides], 1)
        found["scores"][i, :count] = np.linspace(0.9, 0.2, count)
        found["classes"][i, :count] = rng.integers(0, 5, count)
        found["masks"][i, :count] = rng.random((count, 7, 7))
    return found


class Fake:
    inputs = outputs = ()

    def __init__(self, *results: Outputs) -> None:
        self._results = iter(results)

    def run(self, _: object) -> Outputs:
        return next(self._results)


def compared(
    candidate: Outputs,
    reference: Outputs,
    selection: Selection = KEPT,
    *,
    rtol: float = 1e-4,
    columns: bool = True,
) -> dict[str, Agreement]:
    agreements = verification.verify(
        Fake(candidate),  # type: ignore[arg-type]  # only `run` is called
        Fake(reference),  # type: ignore[arg-type]
        [{}],
        atol=1e-5,
        rtol=rtol,
        columns=columns,
        pairing=PaddedRows(selection),
    )
    return {agreement.output: agreement for agreement in agreements}


def failed(*args: Any, **keywords: Any) -> set[str]:
    return {name for name, a in compared(*args, **keywords).items() if not a.passed}


def swap(found: Outputs, image: int, first: int, second: int) -> None:
    for name in ("boxes", "scores", "classes", "masks"):
        found[name][image, [first, second]] = found[name][image, [second, first]]


def drop(found: Outputs, image: int, row: int) -> None:
    for name, filler in (("boxes", 0), ("scores", 0), ("classes", -1), ("masks", 0)):
        rows = found[name][image]
        rows[row:-1] = rows[row + 1 :].copy()
        rows[-1] = filler
    found["count"][image] -= 1


def test_equal_results_agree_and_every_output_is_named() -> None:
    found = compared(detections(), detections())
    assert {"boxes", "scores", "masks", "classes", "count", "boxes[..., 3]"} <= set(found)
    assert not any(name.startswith("masks[") for name in found)
    assert all(a.passed and a.max_abs == 0 and not a.note for a in found.values())


def test_rows_that_changed_places_at_a_near_tie_agree() -> None:
    reference, candidate = detections(), detections()
    for found in (reference, candidate):
        found["scores"][0, 4] = found["scores"][0, 3] - 1e-6
    swap(candidate, 0, 3, 4)
    candidate["scores"][0, 3:5] = candidate["scores"][0, [4, 3]]
    assert not failed(candidate, reference)


def shifted(found: Outputs) -> None:
    found["boxes"][1, 2] += 3


def far(found: Outputs) -> None:
    found["boxes"][1, 2] += 60


def relabelled(found: Outputs) -> None:
    found["classes"][0, 5] += 1


def missing(found: Outputs) -> None:
    drop(found, 1, 4)


def invented(found: Outputs) -> None:
    found["count"] += 1
    found["boxes"][:, COUNT] = 5, 500, 50, 550
    found["scores"][:, COUNT], found["classes"][:, COUNT] = 0.15, 0


def unsorted(found: Outputs) -> None:
    swap(found, 0, 2, 7)


def scored(found: Outputs) -> None:
    found["scores"][1, 6] -= 0.01


def masked(found: Outputs) -> None:
    found["masks"][0, 3, 2, 2] = 1 - found["masks"][0, 3, 2, 2]


def exchanged(found: Outputs) -> None:
    found["masks"][0, [3, 4]] = found["masks"][0, [4, 3]]


def unpadded(found: Outputs) -> None:
    found["classes"][0, COUNT + 2] = 0


def overcounted(found: Outputs) -> None:
    found["count"][0] = MOST + 3


def nan(found: Outputs) -> None:
    found["boxes"][0, 1, 2] = np.nan


def empty(found: Outputs) -> None:
    for i in range(2):
        while found["count"][i]:
            drop(found, i, 0)


@pytest.mark.parametrize(
    ("damage", "blamed"),
    [
        (shifted, {"boxes", "boxes[..., 0]", "boxes[..., 1]", "boxes[..., 2]", "boxes[..., 3]"}),
        (far, {"count"}),
        (relabelled, {"classes"}),
        (missing, {"count"}),
        (invented, {"count"}),
        (unsorted, {agreement.ORDER}),
        (scored, {"scores"}),
        (masked, {"masks"}),
        (exchanged, {"masks"}),
        (unpadded, {"classes"}),
        (overcounted, {"count", "classes"}),
        (nan, {"boxes", "boxes[..., 2]", "count"}),
        (empty, {"count"}),
    ],
)
def test_a_wrong_result_is_found_where_it_is_wrong(
    damage: Callable[[Outputs], None], blamed: set[str]
) -> None:
    candidate = detections()
    damage(candidate)
    wrong = failed(candidate, detections())
    assert blamed & wrong
    assert wrong <= blamed | {f"boxes[..., {i}]" for i in range(4)} | {"boxes"}


def test_the_note_names_the_row_that_has_no_partner() -> None:
    candidate = detections()
    missing(candidate)
    note = compared(candidate, detections())["count"].note
    score, kind = detections()["scores"][1, 4], detections()["classes"][1, 4]
    assert f"the reference's {score:.3f} of class {kind} at 400.0" in note
    assert "no partner" in note


def test_a_row_just_above_the_threshold_may_be_missing() -> None:
    reference, candidate = detections(), detections()
    for outputs in (reference, candidate):
        outputs["scores"][0, COUNT - 1] = 0.05 + 1e-5
    drop(candidate, 0, COUNT - 1)
    found = compared(candidate, reference)
    assert all(a.passed for a in found.values())
    assert found["count"].max_abs == 1
    assert failed(candidate, reference, Selection(score=0.02, iou=0.5)) == {"count"}


def test_the_last_rows_of_a_full_result_may_differ() -> None:
    reference, candidate = (detections(most=COUNT) for _ in range(2))
    for found in (reference, candidate):
        found["scores"][0, -2:] = 0.3, 0.3 - 1e-6
    candidate["boxes"][0, -1] = 0, 900, 50, 950
    assert not failed(candidate, reference)
    candidate["boxes"][0, -3] = 0, 800, 50, 850
    assert failed(candidate, reference) == {"count"}


def rivals(margin: float) -> tuple[Outputs, Outputs]:
    """Each side kept another one of two boxes that overlap, of scores `margin` apart."""
    reference, candidate = (detections(images=4) for _ in range(2))
    for found, shift in ((reference, 0.0), (candidate, 20.0)):
        found["boxes"][0, 3] = (300 + shift, 0, 360 + shift, 60)
    reference["scores"][0, 3] = candidate["scores"][0, 3] + margin
    return candidate, reference


def test_the_other_one_of_two_rivals_may_have_won_at_a_near_tie() -> None:
    assert not failed(*rivals(1e-6), Selection(score=0.05, iou=0.45))
    assert failed(*rivals(0.02), Selection(score=0.05, iou=0.45)) == {"count"}
    assert not failed(*rivals(1e-6), Selection())


def test_rivals_are_no_excuse_for_many_rows() -> None:
    candidate, reference = rivals(1e-6)
    for name in reference:
        reference[name], candidate[name] = reference[name][:1], candidate[name][:1]
    assert 2 / (2 * COUNT) > matching.MOST_RIVALS
    found = compared(candidate, reference, Selection(score=0.05, iou=0.45))
    assert not found["count"].passed
    assert "lost to a rival" in found["count"].note


def nearly_suppressed(kind: int) -> tuple[Outputs, Outputs]:
    """The candidate lacks a row whose overlap with a better one, of class `kind`, is 0.5."""
    reference, candidate = (detections(images=4) for _ in range(2))
    for found in (reference, candidate):
        found["boxes"][0, 2:4] = [0, 900, 60, 960], [0, 900, 60, 930]
        found["classes"][0, 2:4] = kind, 1
    drop(candidate, 0, 3)
    return candidate, reference


def test_a_row_that_a_better_one_nearly_suppresses_may_be_missing() -> None:
    assert not failed(*nearly_suppressed(1))
    assert failed(*nearly_suppressed(2)) == {"count"}
    agnostic = Selection(score=0.05, iou=0.5, agnostic=True)
    assert not failed(*nearly_suppressed(2), agnostic)


def test_nothing_found_proves_nothing() -> None:
    nothing = detections(count=0)
    found = compared(nothing, nothing)
    assert not found["count"].passed
    assert "nothing was compared" in found["count"].note


def test_boxes_without_area_have_partners() -> None:
    reference = detections()
    reference["boxes"][0, 4, 2:] = reference["boxes"][0, 4, :2]
    candidate = {name: array.copy() for name, array in reference.items()}
    candidate["boxes"] += np.float32(1e-3) * (candidate["boxes"] != 0)
    assert not failed(candidate, reference)


def test_an_infinite_tolerance_compares_what_can_be_compared() -> None:
    candidate = detections()
    missing(candidate)
    found = compared(candidate, detections(), rtol=math.inf)
    assert all(math.isfinite(a.max_abs) for a in found.values())
    nan(candidate)
    found = compared(candidate, detections(), rtol=math.inf)
    assert math.isinf(found["boxes"].max_abs)


def test_outputs_of_another_form_are_compared_element_by_element() -> None:
    plain = {name: array for name, array in detections().items() if name != "count"}
    assert not matching.applies(plain)
    assert not matching.applies({**detections(), "count": np.zeros((2, 1), np.int32)})
    assert not matching.applies({**detections(), "extra": np.zeros((2, 3))})
    found = compared(plain, plain)
    assert "count" not in found
    assert found["classes"].passed


def test_overlaps_are_torchvisions() -> None:
    torch, ops = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    boxes = detections()["boxes"][0, :COUNT].astype(np.float64)
    moved = boxes + np.random.default_rng(1).uniform(-9, 9, boxes.shape)
    expected = ops.box_iou(torch.from_numpy(boxes), torch.from_numpy(moved)).numpy()
    assert np.allclose(matching.overlaps(boxes, moved), expected)
