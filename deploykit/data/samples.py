"""Stream a data set as preprocessed batches, in memory that does not grow with its size."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from deploykit.data.ahead import in_order, threads
from deploykit.errors import DataError, OptionError
from deploykit.values import digest, silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    from deploykit.data.preprocess import Floats, Geometry, Preprocess
    from deploykit.data.sources import Dataset, Sample
    from deploykit.values import Progress

    _Result: TypeAlias = "tuple[str, _Prepared | DataError]"

T = TypeVar("T")
_MOST_THREADS = 8
_AHEAD, _MOST_AHEAD = 2, 64
"""Images in preparation or waiting, per thread: large ones and small ones."""
_ROOM = 1 << 26
"""Bytes that more than `_AHEAD` may take in all. They are ready by the time a model is opened."""

MOST, PIXELS = 8, 1 << 20
"""Images in one forward pass, and their pixels together, where nobody says how many."""


@dataclass(frozen=True)
class Batch:
    """Images of a data set of one height and width, ready for the model."""

    names: tuple[str, ...]
    images: Floats
    """float32[batch, 3, H, W]."""
    geometries: tuple[Geometry, ...]
    pixel_sha256s: tuple[str, ...]
    """Of each decoded image: its shape and its pixels, before preprocessing."""
    places: tuple[int, ...]
    """Of each image among those chosen, from 0: batches of several sizes change their order."""


@dataclass(frozen=True)
class _Prepared:
    name: str
    image: Floats
    geometry: Geometry
    pixel_sha256: str
    place: int = 0


def choose(samples: Sequence[T], limit: int | None) -> Sequence[T]:
    """Return at most `limit` samples: every n/limit-th, in order, so that each part is covered.

    Raises: DataError for an empty set; OptionError for a limit below 1.
    """
    if not samples:
        raise DataError("the data set has no images")
    if limit is not None and limit < 1:
        raise OptionError(f"{limit} images asked for", expected="at least 1")
    if limit is None or limit >= len(samples):
        return samples
    return [samples[i * len(samples) // limit] for i in range(limit)]


def batch_size(
    wanted: int | None, given: int | str, size: tuple[int, int], *, pixels: int = PIXELS
) -> int:
    """Return the images per forward pass: `wanted`, or what suits a model where that is None.

    given: the batch of the model's input; a number is kept to. size: the images' H and W: memory
    for activations grows with the pixels, and on a CPU more than `pixels` at once gain no time.
    """
    if wanted is not None:
        _check(wanted)
        return wanted
    return given if isinstance(given, int) else max(1, min(MOST, pixels // (size[0] * size[1])))


def batches(  # noqa: PLR0913 - three nouns and three independent switches
    dataset: Dataset,
    preprocess: Preprocess,
    batch_size: int,
    *,
    limit: int | None = None,
    skipped: list[str] | None = None,
    progress: Progress = silent,
) -> Iterator[Batch]:
    """Return an iterator over the data set's images; the last batch of a size may be smaller.

    Where images come out in several sizes (`Preprocess.canvases`), each size fills a batch of its
    own; else the images are in order. A few threads decode ahead, so at most a batch of each size
    and a few images are in memory.

    Args:
        dataset: Where the images come from.
        preprocess: How an image becomes a model input.
        batch_size: Images per batch.
        limit: Use only this many images, see `choose`.
        skipped: None: an unreadable image is an error. A list: it is left out and its name
            is appended here.
        progress: Told of every image.

    Raises: OptionError at once for a bad limit or batch size; DataError, while iterating, naming
        an unreadable image, or where every image was skipped.
    """
    _check(batch_size)
    chosen = choose(dataset.samples, limit)
    results = progress(_results(chosen, preprocess), "images", len(chosen))
    return _batched(results, batch_size, skipped)


def _check(batch_size: int) -> None:
    if batch_size < 1:
        raise OptionError(f"a batch size of {batch_size}", expected="at least 1")


def fingerprint(names: Sequence[str], pixel_sha256s: Sequence[str]) -> str:
    """Return the sha256 (hex) that binds the images' names, contents and order."""
    return digest(f"{sha} {name}" for name, sha in zip(names, pixel_sha256s, strict=True))


def _batched(
    results: Iterator[_Result], batch_size: int, skipped: list[str] | None
) -> Iterator[Batch]:
    waiting: dict[tuple[int, ...], list[_Prepared]] = {}
    failure, read = None, 0
    for place, (name, result) in enumerate(results):
        if isinstance(result, DataError):
            if skipped is None:
                raise result
            skipped.append(name)
            failure = result
            continue
        read += 1
        alike = waiting.setdefault(result.image.shape, [])
        alike.append(replace(result, place=place))
        if len(alike) == batch_size:
            yield _stacked(waiting.pop(result.image.shape))
    for alike in waiting.values():
        yield _stacked(alike)
    if failure is not None and not read:
        raise DataError(f"none of the images could be read; the last one: {failure.found}")


def _stacked(prepared: Sequence[_Prepared]) -> Batch:
    return Batch(
        names=tuple(item.name for item in prepared),
        images=np.stack([item.image for item in prepared]),
        geometries=tuple(item.geometry for item in prepared),
        pixel_sha256s=tuple(item.pixel_sha256 for item in prepared),
        places=tuple(item.place for item in prepared),
    )


def _results(samples: Sequence[Sample], preprocess: Preprocess) -> Iterator[_Result]:
    """Yield each sample's name with what became of it, in order, decoding a few ahead."""

    def result(sample: Sample) -> _Result:
        return sample.name, _prepare(sample, preprocess)

    each = _ahead(preprocess)
    return in_order(result, samples, name="images", most=_MOST_THREADS, each=each)


def _ahead(preprocess: Preprocess) -> int:
    """Return how many images each thread has in preparation or waiting."""
    size = preprocess.planes * math.prod(preprocess.size) * np.float32().nbytes
    return min(_MOST_AHEAD, max(_AHEAD, _ROOM // (threads(_MOST_THREADS) * size)))


def _prepare(sample: Sample, preprocess: Preprocess) -> _Prepared | DataError:
    try:
        pixels = sample.read()
    except DataError as error:
        return error
    try:
        image, geometry = preprocess(pixels)
    except DataError as error:
        return DataError(f"{sample.name}: {error.found}", expected=error.expected, fix=error.fix)
    if sample.proposals is not None:
        geometry = replace(geometry, regions=sample.proposals(pixels))
    hasher = hashlib.sha256(repr(pixels.shape).encode())
    hasher.update(np.ascontiguousarray(pixels).data)
    return _Prepared(sample.name, image, geometry, hasher.hexdigest())
