from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import BackendError, OptionError
from deploykit.measuring.benchmarking import BenchOptions, EndToEnd, Instruments, Subject, bench
from deploykit.values import BenchRecord, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

SUBJECT = Subject("model.onnx", "5a" * 32, "fake")
FEEDS = {"images": np.zeros((1, 3, 8, 8), np.float32)}


@dataclass
class Clock:
    """A clock that moves only when a fake session works."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Fake:
    """A session whose every run takes the next of `costs` on the clock."""

    clock: Clock
    costs: Iterator[float]
    device: Iterator[float | None] = field(default_factory=lambda: itertools.repeat(None))
    switches: dict[str, bool] = field(default_factory=dict)
    runs: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def run(self, _feeds: Mapping[str, Any]) -> dict[str, NDArray[np.generic]]:
        self.step()
        return {"y": np.zeros(1, np.float32)}

    def step(self) -> float | None:
        self.runs += 1
        self.clock.now += next(self.costs)
        return next(self.device)

    def stepper(
        self, feeds: Mapping[str, Any], *, transfers: bool, cuda_graph: bool
    ) -> Callable[[], float | None]:
        assert feeds is FEEDS
        self.switches = {"transfers": transfers, "cuda_graph": cuda_graph}
        return self.step


def fake(*costs: float, device: float | None = None) -> Fake:
    return Fake(Clock(), itertools.cycle(costs), itertools.repeat(device))


def measure(session: Fake, work: Any = FEEDS, **options: Any) -> BenchRecord:
    instruments = Instruments(environment=dict, clock=session.clock)
    return bench(session, work, BenchOptions(**options), subject=SUBJECT, instruments=instruments)


@given(st.floats(0.02, 2.0), st.floats(0, 5.0), st.integers(1, 50), st.floats(0, 2.0))
def test_it_stops_as_soon_as_both_the_duration_and_the_iterations_are_reached(
    cost: float, duration: float, least: int, warmup: float
) -> None:
    session = fake(cost)
    record = measure(
        session, duration_seconds=duration, min_iterations=least, warmup_seconds=warmup
    )
    elapsed = list(itertools.accumulate(record.seconds))
    assert elapsed[-1] >= duration
    assert len(record.seconds) >= least
    assert len(record.seconds) == least or (elapsed[-2:-1] or [0.0])[0] < duration
    assert record.protocol["iterations"] == len(record.seconds)
    assert record.protocol["warmup_iterations"] == session.runs - len(record.seconds) >= 3


def test_the_warm_up_is_not_kept() -> None:
    session = Fake(Clock(), itertools.chain([5.0, 4.0, 3.0], itertools.repeat(0.5)))
    record = measure(session, warmup_seconds=10, duration_seconds=2, min_iterations=1)
    assert record.seconds == pytest.approx((0.5,) * 4)


def test_every_raw_sample_is_kept_in_order() -> None:
    record = measure(fake(0.25, 0.5, 0.125), warmup_seconds=0, duration_seconds=0, min_iterations=5)
    assert record.seconds == (0.25, 0.5, 0.125, 0.25, 0.5)


def test_every_switch_is_passed_on_and_recorded() -> None:
    session = fake(0.5)
    options = {
        "batch_size": 1,
        "warmup_seconds": 0.5,
        "duration_seconds": 1.5,
        "min_iterations": 2,
        "transfers": False,
        "cuda_graph": True,
        "threads": 3,
    }
    record = measure(session, **options)
    assert session.switches == {"transfers": False, "cuda_graph": True}
    assert options.items() <= record.protocol.items()
    assert "duration_seconds" in record.protocol["stop_rule"]
    assert (record.model, record.model_sha256, record.backend) == ("model.onnx", "5a" * 32, "fake")
    assert (record.scope, record.batch_size) == ("device", 1)


def test_fps_counts_images_per_second_of_wall_time() -> None:
    work = EndToEnd(lambda: (FEEDS, ()), lambda _outputs, _geometries: None)
    record = measure(fake(0.5, 0.25), work, batch_size=8, duration_seconds=0, min_iterations=4)
    assert record.fps_wall == pytest.approx(8 * 4 / sum(record.seconds))
    assert record.fps_device is None
    assert record.device is None


def test_fps_counts_images_per_second_of_device_time() -> None:
    record = measure(fake(0.5, device=0.125), duration_seconds=1, min_iterations=1)
    assert record.fps_device == 8
    assert record.device is not None
    assert (record.device.p99, record.wall.p50) == (0.125, 0.5)


def test_end_to_end_times_prepare_run_and_decode() -> None:
    session = fake(0.5)
    seen: list[Any] = []

    def prepare() -> tuple[Any, tuple[()]]:
        session.clock.now += 0.25
        return FEEDS, ()

    def decode(outputs: Mapping[str, Any], geometries: Any) -> None:
        session.clock.now += 0.125
        seen.append((sorted(outputs), geometries))

    record = measure(
        session, EndToEnd(prepare, decode), duration_seconds=0, min_iterations=2, warmup_seconds=0
    )
    assert record.scope == "end-to-end"
    assert record.seconds == (0.875, 0.875)
    assert seen[0] == (["y"], ())


@pytest.mark.parametrize("switch", [{"cuda_graph": True}, {"transfers": False}])
def test_end_to_end_refuses_switches_it_cannot_honour(switch: dict[str, bool]) -> None:
    with pytest.raises(OptionError, match=r"(?s)no CUDA graph.*measure the model alone"):
        measure(fake(1.0), EndToEnd(lambda: (FEEDS, ()), lambda _o, _g: None), **switch)


def test_inputs_of_another_batch_size_are_refused_before_anything_runs() -> None:
    session = fake(1.0)
    with pytest.raises(OptionError, match=r"(?s)'images' holds 1 images.*batch of 4"):
        measure(session, batch_size=4)
    assert session.runs == 0


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"duration_seconds": -1.0},
        {"duration_seconds": math.inf},
        {"warmup_seconds": math.nan},
        {"min_iterations": 0},
        {"threads": -1},
    ],
)
def test_an_impossible_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(options))} is"):
        BenchOptions(**options)


def test_a_device_clock_that_misses_iterations_is_an_error() -> None:
    session = Fake(Clock(), itertools.repeat(0.5), itertools.cycle([0.25, None]))
    with pytest.raises(BackendError, match="2 of 4 iterations"):
        measure(session, warmup_seconds=0, duration_seconds=2, min_iterations=1)


def test_the_environment_is_read_before_and_after() -> None:
    session = fake(0.5)
    readings = iter([{"load": 0.1}, {"load": 0.9}])
    times: list[float] = []

    def environment() -> dict[str, float]:
        times.append(session.clock.now)
        return next(readings)

    record = bench(
        session,
        FEEDS,
        BenchOptions(duration_seconds=1, min_iterations=1, warmup_seconds=0),
        subject=SUBJECT,
        instruments=Instruments(environment, clock=session.clock),
    )
    assert record.environment == {"before": {"load": 0.1}, "after": {"load": 0.9}}
    assert times[1] - times[0] == pytest.approx((session.runs) * 0.5)


def test_ctrl_c_passes_through() -> None:
    def interrupt() -> Iterator[float]:
        yield from [0.1] * 5
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(Fake(Clock(), interrupt()), warmup_seconds=0)


@pytest.mark.parametrize(
    ("cost", "duration", "least"), [(0.1, 10.0, 1), (0.1, 0.0, 200), (2.0, 0.5, 50), (7.0, 1.0, 1)]
)
def test_progress_hears_of_every_hundredth_and_never_within_an_iteration(
    cost: float, duration: float, least: int
) -> None:
    session = fake(cost)
    heard: list[tuple[float, int]] = []

    def progress(items: Iterable[Any], label: str, total: int) -> Iterator[Any]:
        assert (label, total) == ("bench model.onnx", 100)
        for item in items:
            heard.append((session.clock.now, session.runs))
            session.clock.now += 7.0  # drawing is slow, and must not count
            yield item

    record = bench(
        session,
        FEEDS,
        BenchOptions(warmup_seconds=2, duration_seconds=duration, min_iterations=least),
        subject=SUBJECT,
        instruments=Instruments(dict, progress=progress, clock=session.clock),
    )
    assert len(heard) == 100
    assert max(record.seconds) == pytest.approx(cost)
    assert session.runs - 1 <= heard[-1][1] <= session.runs
    middle = heard[49][1] / session.runs
    assert 0.4 < middle < 0.6 + 1 / session.runs


def test_an_unsteady_run_is_recorded_with_a_warning() -> None:
    record = measure(fake(0.1, 0.2), duration_seconds=2, min_iterations=10)
    assert any("coefficient of variation" in warning for warning in record.warnings)
    assert measure(fake(0.25), duration_seconds=2, min_iterations=10).warnings == ()


def test_a_record_survives_json() -> None:
    record = measure(fake(0.25, device=0.125), duration_seconds=1, min_iterations=2)
    assert BenchRecord.from_json(record.to_json()) == record
