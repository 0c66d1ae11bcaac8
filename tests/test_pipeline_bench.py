"""What `bench` feeds, and what its record says about it."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit import BenchOptions, BenchPlan, Dataset, Preprocess, Sample, bench
from deploykit.measuring import records
from deploykit.pipeline import benching
from deploykit.values import BenchRecord

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from numpy.typing import NDArray

QUICK = BenchOptions(warmup_seconds=0, duration_seconds=0.0, min_iterations=60)


class Grey:
    """A data set of even images that counts how often each is read."""

    def __init__(self, count: int) -> None:
        self.reads = [0] * count
        self.data = Dataset("grey", [Sample(f"{i}", partial(self.read, i)) for i in range(count)])

    def read(self, index: int) -> NDArray[np.uint8]:
        self.reads[index] += 1
        return np.full((20, 20, 3), 10 * index, np.uint8)


def batches(count: int, size: int, monkeypatch: pytest.MonkeyPatch, model: Path) -> list[list[int]]:
    """Which images each iteration of an end-to-end measurement takes."""
    taken: list[list[int]] = []
    place = Preprocess.__call__

    def told(self: Preprocess, image: NDArray[np.uint8]) -> object:
        taken.append([int(image[0, 0, 0]) // 10])
        return place(self, image)

    monkeypatch.setattr(Preprocess, "__call__", told)
    grey = Grey(count)
    options = BenchOptions(size, warmup_seconds=0, duration_seconds=0.0, min_iterations=60)
    bench([model], BenchPlan(options, (size,), end_to_end=grey.data))
    assert grey.reads == [1] * count, "images are decoded before the clock starts, once"
    numbers = [number for (number,) in taken]
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def test_batches_are_drawn_anew_so_that_times_do_not_hang_on_each_other(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    found = batches(16, 2, monkeypatch, model)
    assert all(len(set(batch)) == 2 for batch in found), "no image twice in a batch"
    means = np.array([np.mean(batch) for batch in found])
    lag = np.corrcoef(means[:-1], means[1:])[0, 1]
    assert abs(lag) < 2.6 / np.sqrt(len(means)), "as of independent draws, 99 of 100"
    assert len({tuple(batch) for batch in found}) > 20


def test_the_record_says_which_images_were_taken(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    grey = Grey(3)
    (whole,) = bench([model], BenchPlan(QUICK, end_to_end=grey.data), record=file)
    (alone,) = bench([model], BenchPlan(QUICK, inputs=grey.data), record=file)
    (random,) = bench([model], BenchPlan(QUICK), record=file)
    for record in (whole, alone):
        said = record.protocol["inputs"]
        assert (said["dataset"], said["images"]) == ("grey", 3)
        assert len(said["dataset_sha256"]) == 64
    assert (whole.scope, alone.scope) == ("end-to-end", "device")
    assert random.protocol["inputs"] == {"kind": "random numbers", "seed": 0}
    kept = [{**r.to_json(), "time": ""} for r in records.read([file])]
    assert kept == [r.to_json() for r in (whole, alone, random)]


def test_decoded_images_are_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benching, "_MOST_BYTES", 3000)
    grey = Grey(9)  # of 1200 bytes each
    assert len(benching._decoded(grey.data)) == 3
    assert sum(grey.reads) == 3


def test_random_inputs_in_which_a_detector_finds_little_are_told() -> None:
    outputs: dict[str, Any] = {
        "boxes": np.zeros((2, 5, 4)),
        "scores": np.zeros((2, 5)),
        "classes": np.full((2, 5), -1),
        "count": np.array([0, 1]),
    }
    record = BenchRecord("m", "a", "onnxruntime", "device", 2, (0.1,))

    def warnings(found: dict[str, Any]) -> tuple[str, ...]:
        model: Any = SimpleNamespace(session=SimpleNamespace(run=lambda _: found))
        return benching._warned(record, model, {}).warnings

    (warning,) = warnings(outputs)
    assert "finds 0.5 objects per image" in warning
    assert "--inputs" in warning
    assert warnings({"logits": np.zeros((2, 9))}) == ()
