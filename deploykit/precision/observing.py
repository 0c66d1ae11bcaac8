"""Run a model over batches of images and remember what values its tensors take.

Images are decoded, run through the model and observed at the same time. Memory holds a batch of
the observed tensors per worker and does not grow with the number of images.
"""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from deploykit.backends import onnxruntime
from deploykit.data import feeding
from deploykit.data.arrays import Fed
from deploykit.errors import InputError, ModelError
from deploykit.precision import blocks, memory
from deploykit.precision.tapping import most_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import onnxruntime as ort
    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats
    from deploykit.data.samples import Batch
    from deploykit.precision.blocks import Tapped
    from deploykit.precision.histograms import Extremes

    Reaches: TypeAlias = dict[str, NDArray[np.float64]]
    """Tensor -> float64[channels], the largest magnitude of each."""
    Seen: TypeAlias = dict[str, Extremes]
    Sessions: TypeAlias = Mapping[tuple[int, int] | None, Tapped]

GROWTH = 1.1
"""Times its largest magnitude so far by which a tensor is said to reach further."""
_FEW = 8
"""Images from which on it says something that the last quarter shows more."""
_HELD = 3
"""Times the size of the observed tensors that a worker holds: the runtime's own come with them."""


class UnfiniteError(Exception):
    """A tensor that is not finite on an image of a batch."""

    def __init__(self, tensor: str, batch: Batch | Fed, error: InputError) -> None:
        """Keep what it was seen in, and what is known of it."""
        super().__init__(str(error))
        self.tensor, self.batch, self.error = tensor, batch, error


@dataclass(frozen=True)
class Observed:
    """What was seen in all batches."""

    seen: Seen
    names: tuple[str, ...]
    """Of the images, in the order of the data set."""
    pixel_sha256s: tuple[str, ...]
    growing: tuple[str, ...]
    """Tensors whose largest magnitude the last quarter of the images raised by GROWTH."""
    reaches: Reaches
    """How far each channel reached on the first images."""


@dataclass
class _Memory:
    """What one worker saw."""

    seen: Seen
    early: dict[str, float] | None = None
    """Largest magnitudes before the last quarter of the images; None: all is from before."""
    reaches: Reaches = field(default_factory=dict)

    def look_at(self, name: str, values: Floats) -> None:
        """Take in how far each channel, axis 1, of a tensor reaches."""
        if values.size and values.ndim > 1:
            self.reach(name, _reach(values))

    def reach(self, name: str, reach: NDArray[np.float64]) -> None:
        """Take in how far each channel reaches; one number where their count changes."""
        known = self.reaches.get(name, reach)
        if known.shape != reach.shape:
            known, reach = known.max(keepdims=True), reach.max(keepdims=True)
        self.reaches[name] = np.maximum(known, reach)

    def before_late(self) -> None:
        """Keep what is known before the first late batch."""
        if self.early is None:
            self.early = self.largest()

    def largest(self) -> dict[str, float]:
        """Return the largest magnitudes, 0 where there were no values."""
        return {name: max(-s.minimum, s.maximum, 0.0) for name, s in self.seen.items()}


def _reach(values: Floats) -> NDArray[np.float64]:
    """Return float64[channels], the largest magnitude of each."""
    rows = values.reshape(*values.shape[:2], -1)
    reach = np.maximum(rows.max(2), -rows.min(2)).max(0)
    found: NDArray[np.float64] = reach.astype(np.float64)
    return found


def observe(
    sessions: Sessions,
    batches: Iterator[Batch | Fed],
    remember: Callable[[], Seen],
    images: int,
    *,
    looked_at: int = 0,
) -> Observed:
    """Return what was seen in all batches, which have so many images.

    looked_at: first images whose channels are looked at one by one. Raises: UnfiniteError.

    Workers run and observe whole batches side by side, each into a memory of its own; merging is
    exact, so the result depends on neither their number nor their order. How many there can be is
    a question of memory: where the model does not say how much a batch takes, the first one does.
    """
    found: dict[int, tuple[str, str]] = {}
    spare: SimpleQueue[_Memory] = SimpleQueue()
    running: deque[Future[int]] = deque()
    workers = 0
    with ThreadPoolExecutor(most_workers(), thread_name_prefix="observer") as pool:
        for number, batch in enumerate(batches):
            read = zip(batch.names, batch.pixel_sha256s, strict=True)
            few = max(0, looked_at - len(found))
            found |= zip(batch.places, read, strict=True)
            tapped, late = _for(batch, sessions), _is_late(len(found), images)
            wanted = workers
            if number == 0:
                declared = _declared(tapped.session, len(batch.names))
                wanted = 1 if declared is None else _affordable(declared)
            elif len(running) == workers:
                size = running.popleft().result()
                if number == 1 and declared is None:
                    wanted = _affordable(size, held=1)
            while workers < wanted:
                spare.put(_Memory(remember()))
                workers += 1
            running.append(pool.submit(_take_in, tapped, batch, spare, late=late, few=few))
        for future in running:
            future.result()
    memories = [spare.get() for _ in range(workers)]
    seen, growing = _merged(memories)
    ordered = [found[place] for place in sorted(found)]
    names, pixel_sha256s = zip(*ordered, strict=True)
    return Observed(seen, names, pixel_sha256s, growing, memories[0].reaches)


def _is_late(seen: int, images: int) -> bool:
    """Return whether an image is in the last quarter; of a few images none is."""
    return images >= _FEW and 4 * seen > 3 * images


def _merged(memories: Sequence[_Memory]) -> tuple[Seen, tuple[str, ...]]:
    """Return what all workers saw, and the tensors that the late batches took further."""
    first, *others = memories
    early = [memory.largest() if memory.early is None else memory.early for memory in memories]
    for other in others:
        for name, seen in other.seen.items():
            first.seen[name].merge(seen)
        for name, reach in other.reaches.items():
            first.reach(name, reach)
    before = {name: max(each[name] for each in early) for name in first.seen}
    grown = (name for name, now in first.largest().items() if now > GROWTH * before[name])
    return first.seen, tuple(sorted(grown))


def _for(batch: Batch | Fed, sessions: Sessions) -> Tapped:
    """Return the session of a batch's size, or the only one, which takes any."""
    size = (0, 0) if isinstance(batch, Fed) else batch.images.shape[2:]
    return sessions.get((size[0], size[1])) or next(iter(sessions.values()))


def _declared(session: ort.InferenceSession, batch: int) -> int | None:
    """Return the bytes of a session's outputs; None where it leaves more than the batch open."""
    opened = next(iter(session.get_inputs()[0].shape), None)
    size = 0
    for output in session.get_outputs():
        sizes = [batch if each == opened else each for each in output.shape]
        if not all(isinstance(each, int) for each in sizes):
            return None
        size += math.prod(sizes) * np.float32().nbytes
    return size


def _affordable(size: int, *, held: int = 0) -> int:
    """Return how many workers there is memory for, when a batch has `size` bytes of tensors.

    held: workers whose memory is in use, and so not among what is available.
    """
    available = memory.available()
    more = most_workers() if available is None else available // max(1, size * _HELD)
    return min(most_workers(), max(1, held + more))


def _feeds(session: ort.InferenceSession, batch: Batch | Fed) -> Mapping[str, Any]:
    if isinstance(batch, Fed):
        return batch.arrays
    specs = onnxruntime.specs(session.get_inputs())
    return feeding.feeds(specs, batch.images, batch.geometries)


def _run(tapped: Tapped, batch: Batch | Fed, seen: Iterable[str]) -> dict[str, Floats]:
    """Return the values of the tensors `seen`, in the runtime's own memory."""
    session = tapped.session
    feeds = cast("dict[str, Floats]", _feeds(session, batch))
    values = {name: array for name, array in feeds.items() if name in seen}
    inner = [name for name in seen if name not in feeds]
    if not inner:
        return values
    bound = session.io_binding()
    for name, array in feeds.items():
        bound.bind_cpu_input(name, np.asarray(array, order="C"))
    for name in inner:
        bound.bind_output(tapped.blocked.get(name, name))
    try:
        session.run_with_iobinding(bound)
    except Exception as error:  # the errors of the runtime have no common class
        raise ModelError(
            f"ONNX Runtime failed on {', '.join(f'{n}{list(a.shape)}' for n, a in feeds.items())}: "
            f"{error}"
        ) from error
    outputs = cast("Iterable[Floats]", map(np.from_dlpack, bound.get_outputs()))
    return values | dict(zip(inner, outputs, strict=True))


def _observe(seen: Extremes, array: Floats, batch: Batch | Fed) -> None:
    """Take in an array. Raises: UnfiniteError."""
    try:
        seen.observe(array)
    except InputError as error:
        raise UnfiniteError(seen.tensor, batch, error) from error


def _take_in(
    tapped: Tapped,
    batch: Batch | Fed,
    spare: SimpleQueue[_Memory],
    *,
    late: bool,
    few: int,
) -> int:
    """Run and observe a batch with a spare memory; return the bytes of what was observed.

    few: images of the batch whose channels are looked at. Each array is freed as soon as it is
    done.
    """
    memory = spare.get()
    if late:
        memory.before_late()
    seen = memory.seen
    try:
        values = _run(tapped, batch, seen)
        size = sum(array.nbytes for array in values.values())
        while values:
            name, array = values.popitem()
            _observe(seen[name], array, batch)
            if few:
                looked_at = array[:few] if len(array) == len(batch.names) else array
                memory.look_at(
                    name, blocks.plain(looked_at) if name in tapped.blocked else looked_at
                )
            del array
        return size
    finally:
        spare.put(memory)
