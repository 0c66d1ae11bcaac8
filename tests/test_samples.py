from __future__ import annotations

import gc
import hashlib
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.data import samples
from deploykit.data.ahead import in_order, threads
from deploykit.data.preprocess import Preprocess
from deploykit.data.sources import Dataset, Sample
from deploykit.errors import DataError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from deploykit.data.preprocess import Pixels
    from deploykit.values import T

SIZE = (8, 8)


def image(value: int) -> Pixels:
    return np.full((6, 4, 3), value, np.uint8)


def constant(value: int) -> Callable[[], Pixels]:
    return lambda: image(value)


def bad(name: str) -> Sample:
    def read() -> Pixels:
        raise DataError(f"{name} is empty")

    return Sample(name, read)


def dataset(count: int) -> Dataset:
    return Dataset("test", [Sample(f"{i}.png", constant(i)) for i in range(count)])


def test_batches_hold_the_preprocessed_images_in_order() -> None:
    preprocess = Preprocess(SIZE)
    found = list(samples.batches(dataset(7), preprocess, 3))
    assert [len(batch.names) for batch in found] == [3, 3, 1]
    assert [name for batch in found for name in batch.names] == [f"{i}.png" for i in range(7)]
    for batch in found:
        assert batch.images.dtype == np.float32
        assert batch.images.shape == (len(batch.names), 3, *SIZE)
        for name, pixels, geometry, sha in zip(
            batch.names, batch.images, batch.geometries, batch.pixel_sha256s, strict=True
        ):
            original = image(int(name.removesuffix(".png")))
            expected, place = preprocess(original)
            np.testing.assert_array_equal(pixels, expected)
            assert geometry == place
            assert sha == hashlib.sha256(b"(6, 4, 3)" + original.tobytes()).hexdigest()


def test_the_order_does_not_depend_on_which_image_is_read_first() -> None:
    def slow(value: int) -> Callable[[], Pixels]:
        def read() -> Pixels:
            time.sleep(0.02 if value % 3 == 0 else 0)
            return image(value)

        return read

    data = Dataset("test", [Sample(str(i), slow(i)) for i in range(12)])
    names = [name for batch in samples.batches(data, Preprocess(SIZE), 5) for name in batch.names]
    assert names == [str(i) for i in range(12)]


@given(count=st.integers(1, 300), limit=st.integers(1, 400))
def test_a_limit_spreads_its_choice_evenly_over_the_set(count: int, limit: int) -> None:
    chosen = [
        int(s.name.removesuffix(".png")) for s in samples.choose(dataset(count).samples, limit)
    ]
    assert len(chosen) == min(count, limit)
    assert chosen == sorted(set(chosen))
    steps = np.diff([*chosen, count])
    assert steps.max() - steps.min() <= 1
    assert chosen[0] == 0


def test_an_unreadable_image_is_an_error_that_names_it() -> None:
    data = Dataset("test", [*dataset(3).samples, bad("broken.jpg")])
    with pytest.raises(DataError, match=r"broken\.jpg is empty"):
        list(samples.batches(data, Preprocess(SIZE), 2))


def test_unreadable_images_are_left_out_and_listed_on_request() -> None:
    data = Dataset("test", [bad("a"), *dataset(3).samples, bad("b")])
    skipped: list[str] = []
    found = list(samples.batches(data, Preprocess(SIZE), 2, skipped=skipped))
    assert [batch.names for batch in found] == [("0.png", "1.png"), ("2.png",)]
    assert skipped == ["a", "b"]


def test_a_set_of_which_nothing_can_be_read_is_an_error() -> None:
    data = Dataset("test", [bad("a"), bad("b")])
    skipped: list[str] = []
    with pytest.raises(DataError, match="none of the images could be read; the last one: b is"):
        list(samples.batches(data, Preprocess(SIZE), 2, skipped=skipped))
    assert skipped == ["a", "b"]


def test_an_image_that_preprocessing_refuses_is_named() -> None:
    data = Dataset("test", [Sample("flat", lambda: np.zeros((0, 4, 3), np.uint8))])
    with pytest.raises(DataError, match=r"flat: an image of shape \(0, 4, 3\)"):
        list(samples.batches(data, Preprocess(SIZE), 1))


def test_bad_numbers_and_empty_sets_fail_before_anything_is_read() -> None:
    data = Dataset("test", [bad("never read")])
    with pytest.raises(OptionError, match="batch size of 0"):
        samples.batches(data, Preprocess(SIZE), 0)
    with pytest.raises(OptionError, match="0 images asked for"):
        samples.batches(data, Preprocess(SIZE), 1, limit=0)
    with pytest.raises(DataError, match="no images"):
        samples.batches(Dataset("test", []), Preprocess(SIZE), 1)


def test_other_exceptions_of_a_source_are_not_swallowed() -> None:
    def read() -> Pixels:
        raise ZeroDivisionError

    data = Dataset("test", [Sample("x", read)])
    with pytest.raises(ZeroDivisionError):
        list(samples.batches(data, Preprocess(SIZE), 1, skipped=[]))


def test_progress_is_told_of_every_image() -> None:
    seen: list[tuple[str, int]] = []

    def progress(items: Iterable[T], label: str, total: int) -> Iterator[T]:
        for item in items:
            seen.append((label, total))
            yield item

    list(samples.batches(dataset(9), Preprocess(SIZE), 4, limit=5, progress=progress))
    assert seen == [("images", 5)] * 5


@pytest.mark.parametrize(("size", "each", "count"), [((1024, 1024), 2, 30), ((8, 8), 64, 200)])
def test_few_images_are_decoded_ahead_and_used_ones_are_dropped(
    size: tuple[int, int], each: int, count: int
) -> None:
    most = started = ended = 0
    lock = threading.RLock()

    def end() -> None:
        nonlocal ended
        with lock:
            ended += 1

    def read() -> Pixels:
        nonlocal most, started
        pixels = np.zeros((64, 64, 3), np.uint8)
        weakref.finalize(pixels, end)
        with lock:
            started += 1
            most = max(most, started - ended)
        return pixels

    data = Dataset("test", [Sample(str(i), read) for i in range(count)])
    stream = samples.batches(data, Preprocess(size), 2)
    next(stream)
    time.sleep(0.1)
    ahead = threads(samples._MOST_THREADS) * each
    assert started <= 2 + ahead
    used = weakref.ref(next(stream).images)
    next(stream)
    gc.collect()
    assert used() is None
    list(stream)
    assert started == count
    assert most <= ahead + 2


def test_a_stream_that_is_dropped_half_way_leaves_no_threads() -> None:
    before = set(threading.enumerate())
    stream = samples.batches(dataset(100), Preprocess(SIZE), 2)
    next(stream)
    started = set(threading.enumerate()) - before
    assert started
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    for thread in started:
        thread.join(10)
    assert not any(thread.is_alive() for thread in started)


def test_a_thread_of_the_stream_may_be_what_lets_go_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    dropped, done = threading.Event(), threading.Event()
    streams: list[Iterator[int]] = []

    def work(number: int) -> int:
        if number:
            dropped.wait(10)
            streams.clear()
            done.set()
        return number

    streams.append(in_order(work, range(100), name="test", most=2, each=2))
    assert next(streams[0]) == 0
    dropped.set()
    assert done.wait(10)
    assert not said


def test_results_come_in_the_order_of_the_items_whoever_ends_first() -> None:
    def late(number: int) -> int:
        time.sleep((5 - number) / 200)
        return number

    assert list(in_order(late, range(6), name="test", most=4)) == list(range(6))


def test_the_fingerprint_changes_with_names_contents_and_order() -> None:
    base = samples.fingerprint(["a", "b"], ["1", "2"])
    assert base == samples.fingerprint(["a", "b"], ["1", "2"])
    assert len(base) == 64
    others = [(["a", "c"], ["1", "2"]), (["a", "b"], ["1", "3"]), (["b", "a"], ["2", "1"])]
    assert len({base, *(samples.fingerprint(*other) for other in others)}) == 4


@pytest.mark.parametrize(
    ("wanted", "given", "size", "expected"),
    [
        (3, "batch", (4000, 4000), 3),
        (None, 16, (4000, 4000), 16),
        (None, "batch", (224, 224), 8),
        (None, "batch", (640, 640), 2),
        (None, "batch", (800, 1344), 1),
    ],
)
def test_large_images_go_through_a_model_a_few_at_a_time(
    wanted: int | None, given: int | str, size: tuple[int, int], expected: int
) -> None:
    assert samples.batch_size(wanted, given, size) == expected
