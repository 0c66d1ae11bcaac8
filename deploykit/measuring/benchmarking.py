"""How fast is a model here? Warm-up, a stop rule, raw samples -> BenchRecord."""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

from deploykit.errors import BackendError, OptionError
from deploykit.measuring import conditions
from deploykit.values import BenchRecord, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from deploykit.backends import Arrays, Session
    from deploykit.data.preprocess import Floats, Geometry
    from deploykit.values import Progress

    Step = Callable[[], float | None]

_STOP_RULE = "iterations until they last duration_seconds together and number min_iterations"
_HUNDREDTHS = 100
_MIN_WARMUP = 3
"""Iterations: the first may compile, allocate or capture a graph."""


@dataclass(frozen=True)
class BenchOptions:
    """Every switch of a measurement; all of them are recorded."""

    batch_size: int = 1
    warmup_seconds: float = 1.0
    duration_seconds: float = 5.0
    min_iterations: int = 50
    transfers: bool = True
    """Copy inputs to the device and outputs back in every iteration."""
    cuda_graph: bool = False
    threads: int = 0
    """Of the runtime, recorded as it was asked for; 0: the runtime's own choice."""

    def __post_init__(self) -> None:
        """Check every value. Raises: OptionError."""
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not least <= value < float("inf"):
                raise OptionError(f"{name} is {value}", expected=f"a number, at least {least}")


_LEAST: Mapping[str, float] = {
    "batch_size": 1,
    "warmup_seconds": 0,
    "duration_seconds": 0,
    "min_iterations": 1,
    "threads": 0,
}


@dataclass(frozen=True)
class Subject:
    """What is measured, as the record names it."""

    model: str
    model_sha256: str
    backend: str


@dataclass(frozen=True)
class EndToEnd:
    """The work from a batch of images to results, apart from the model itself."""

    prepare: Callable[[], tuple[Arrays, Sequence[Geometry]]]
    """Preprocesses the next batch."""
    decode: Callable[[Mapping[str, Floats], Sequence[Geometry]], object]


@dataclass(frozen=True)
class Instruments:
    """What a measurement looks at besides the model."""

    environment: Callable[[], Mapping[str, Any]]
    """Returns what the machine is and how it fares; asked before and after."""
    progress: Progress = silent
    """Hears of each hundredth, between two iterations, never within one."""
    clock: Callable[[], float] = field(default=time.perf_counter)
    """Returns seconds, monotonic."""


def bench(  # noqa: PLR0913 - a session, its work, and four nouns about them
    session: Session,
    work: Arrays | EndToEnd,
    options: BenchOptions,
    *,
    subject: Subject,
    instruments: Instruments,
    inputs: Mapping[str, Any] | None = None,
) -> BenchRecord:
    """Return the timings of `session` on `work`: model inputs, or the whole way from images.

    Given inputs (one batch), the scope is `device`: `session.stepper` alone, again and again.
    Given an EndToEnd, it is `end-to-end`: prepare, run and decode in every iteration. Warm-up
    iterations are not kept. Then iterations are timed one by one until together they last
    `duration_seconds` AND number `min_iterations`.

    inputs: What the images are, for the record's protocol.

    Raises: OptionError where the inputs are not `batch_size` images.
    """
    step = _step(session, work, options)
    before = dict(instruments.environment())
    run = _Run(options, instruments.clock)
    for _ in instruments.progress(run.measure(step), f"bench {subject.model}", _HUNDREDTHS):
        pass
    environment = {"before": before, "after": dict(instruments.environment())}
    record = BenchRecord(
        **asdict(subject),
        scope="end-to-end" if isinstance(work, EndToEnd) else "device",
        batch_size=options.batch_size,
        seconds=tuple(run.seconds),
        device_seconds=run.all_device_seconds(),
        protocol={
            **asdict(options),
            **({"inputs": dict(inputs)} if inputs else {}),
            "stop_rule": _STOP_RULE,
            "iterations": len(run.seconds),
            "warmup_iterations": run.warmups,
        },
        environment=environment,
    )
    return conditions.with_warnings(record)


def _step(session: Session, work: Arrays | EndToEnd, options: BenchOptions) -> Step:
    if isinstance(work, EndToEnd):
        return _end_to_end(session, work, options)
    for name, array in work.items():
        if array.ndim and array.shape[0] != options.batch_size:
            raise OptionError(
                f"the input {name!r} holds {array.shape[0]} images",
                expected=f"a batch of {options.batch_size}, as the options say",
                fix=f"--batch-sizes {array.shape[0]}, or none, which takes what the model holds",
            )
    return session.stepper(work, transfers=options.transfers, cuda_graph=options.cuda_graph)


def _end_to_end(session: Session, work: EndToEnd, options: BenchOptions) -> Step:
    if options.cuda_graph or not options.transfers:
        raise OptionError(
            "end-to-end runs copy inputs and outputs, and use no CUDA graph",
            expected="--transfers and --no-cuda-graph",
            fix="leave both as they are, or measure the model alone",
        )

    def step() -> None:
        feeds, geometries = work.prepare()
        outputs = cast("Mapping[str, Floats]", session.run(feeds))
        work.decode(outputs, geometries)

    return step


@dataclass
class _Run:
    """The samples of one measurement so far."""

    options: BenchOptions
    clock: Callable[[], float]
    warmups: int = 0
    warmed: float = 0.0
    """Seconds that the warm-up took."""
    seconds: list[float] = field(default_factory=list)
    device_seconds: list[float | None] = field(default_factory=list)

    def measure(self, step: Step) -> Generator[None, None, None]:
        """Warm up, then time `step` until the stop rule holds; yields _HUNDREDTHS times."""
        told = 0
        for done in itertools.chain(self._warm_up(step), self._timed(step)):
            reached = min(int(done * _HUNDREDTHS), _HUNDREDTHS - 1)
            yield from itertools.repeat(None, reached - told)
            told = max(told, reached)
        yield from itertools.repeat(None, _HUNDREDTHS - told)

    def _warm_up(self, step: Step) -> Generator[float, None, None]:
        """Yield the part of the whole measurement that is done, 0 to 1, as `_timed` does."""
        wanted = self.options.warmup_seconds
        while self.warmed < wanted or self.warmups < _MIN_WARMUP:
            started = self.clock()
            step()
            self.warmed += self.clock() - started
            self.warmups += 1
            mean = self.warmed / self.warmups
            whole = max(self.warmed, wanted, _MIN_WARMUP * mean) + self._rest(mean, 0.0)
            yield self.warmed / whole if whole else 0.0

    def _timed(self, step: Step) -> Generator[float, None, None]:
        elapsed, options = 0.0, self.options
        while elapsed < options.duration_seconds or len(self.seconds) < options.min_iterations:
            started = self.clock()
            device = step()
            taken = self.clock() - started
            self.seconds.append(taken)
            self.device_seconds.append(device)
            elapsed += taken
            spent = self.warmed + elapsed
            rest = self._rest(elapsed / len(self.seconds), elapsed)
            yield spent / (spent + rest) if spent else 0.0

    def _rest(self, mean: float, elapsed: float) -> float:
        """Return the seconds that the stop rule still asks for, at `mean` seconds an iteration."""
        lacking = (self.options.min_iterations - len(self.seconds)) * mean
        return max(self.options.duration_seconds - elapsed, lacking, 0.0)

    def all_device_seconds(self) -> tuple[float, ...]:
        """Return the device times; none where the backend has no device clock."""
        known = tuple(value for value in self.device_seconds if value is not None)
        if known and len(known) < len(self.seconds):
            raise BackendError(
                f"the device clock gave a time for {len(known)} of {len(self.seconds)} iterations"
            )
        return known
