"""Inputs of models that take no images: arrays in .npy and .npz files, below one folder.

* `DIR/*.npz`: each holds an array for each input, under its name.
* `DIR/NAME.npy`: one array for each input NAME, its samples one after the other.
* `DIR/NAME/*.npy`: one file for each sample, called alike for every input.
* `DIR/*.npy`: for a model of one input.

The first axis counts samples; an array that lacks it is one. Nothing that a file holds is run.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from deploykit.data import samples
from deploykit.errors import DataError, OptionError
from deploykit.files import npyfile
from deploykit.values import silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.values import Progress, TensorSpec

    Array: TypeAlias = NDArray[np.generic]

PREFIX = "arrays:"
"""How the name of a set of arrays begins."""
_NPY, _NPZ = ".npy", ".npz"


@dataclass(frozen=True)
class Fed:
    """What a model is fed in one run, and which samples it holds; see `samples.Batch`."""

    names: tuple[str, ...]
    arrays: Mapping[str, Array]
    """Input -> its values, of as many samples as the model takes: the last may be repeated."""
    pixel_sha256s: tuple[str, ...]
    places: tuple[int, ...]


class _Part(NamedTuple):
    """One array in a file."""

    path: Path
    member: str | None = None
    """In an archive."""


class _Sample(NamedTuple):
    """One sample: in each of its arrays it is one row, or the whole where `row` is None."""

    name: str
    parts: Mapping[str, _Part]
    row: int | None


@dataclass(frozen=True)
class ArraySet:
    """Samples of arrays for the inputs of one model."""

    name: str
    inputs: tuple[TensorSpec, ...]
    samples: tuple[_Sample, ...]

    def feeds(
        self, *, limit: int | None = None, batch: int | None = None, progress: Progress = silent
    ) -> Iterator[Fed]:
        """Yield what the model is fed, at most `limit` samples, `batch` at once.

        Raises: OptionError; DataError naming the file.
        """
        fixed = self.inputs[0].shape[0] if self.inputs[0].shape else 1
        size = fixed if isinstance(fixed, int) else (batch or samples.MOST)
        if not all(spec.shape for spec in self.inputs) and not isinstance(fixed, int):
            size = 1  # an input without dimensions has one value for a whole batch
        if isinstance(fixed, int) and batch not in (None, fixed):
            raise OptionError(f"a batch size of {batch} for the input {self.inputs[0]}")
        waiting: list[tuple[int, _Sample]] = []
        chosen = list(enumerate(samples.choose(self._samples, limit)))
        for place, each in progress(chosen, "samples", len(chosen)):
            if each.row is None:
                yield self._whole(place, each)
                continue
            waiting.append((place, each))
            if len(waiting) == size:
                yield self._stacked(waiting, size)
                waiting = []
        if waiting:
            yield self._stacked(waiting, size if isinstance(fixed, int) else len(waiting))

    @property
    def _samples(self) -> tuple[_Sample, ...]:
        if not self.samples:
            raise DataError(f"{self.name} holds no samples")
        return self.samples

    def _whole(self, place: int, sample: _Sample) -> Fed:
        arrays = {spec.name: _typed(_load(sample.parts[spec.name]), spec) for spec in self.inputs}
        return Fed((sample.name,), arrays, (_digest(arrays),), (place,))

    def _stacked(self, given: Sequence[tuple[int, _Sample]], size: int) -> Fed:
        rows = [self._row(sample) for _, sample in given]
        filled = [rows[i % len(rows)] for i in range(size)]
        arrays = {
            spec.name: _joined([row[spec.name] for row in filled], spec) for spec in self.inputs
        }
        names, places = [sample.name for _, sample in given], [place for place, _ in given]
        return Fed(tuple(names), arrays, tuple(map(_digest, rows)), tuple(places))

    def _row(self, sample: _Sample) -> dict[str, Array]:
        """Return one sample without the axis that counts them."""
        found = {}
        for spec in self.inputs:
            array = _load(sample.parts[spec.name])
            one = array.ndim < len(spec.shape) or not array.ndim
            row = array if one else array[sample.row]
            found[spec.name] = _typed(np.asarray(row), spec)
        return found

    def fingerprint(self, limit: int | None = None) -> tuple[tuple[str, ...], str]:
        """Return the names of the samples, and the hash of what they hold. Raises: DataError."""
        names: list[str] = []
        shas: list[str] = []
        for fed in self.feeds(limit=limit):
            names += fed.names
            shas += fed.pixel_sha256s
        return tuple(names), samples.fingerprint(names, shas)


def opened(path: Path, inputs: Sequence[TensorSpec]) -> ArraySet:
    """Return the samples in a folder or a file for a model with these inputs. Raises: DataError."""
    if not path.exists():
        raise DataError(f"no such folder: {path}", expected="a folder of .npy or .npz files")
    if not inputs:
        raise DataError("the model has no inputs")
    found = [
        sample for name, parts in _groups(path, inputs) for sample in _split(name, parts, inputs)
    ]
    if not found:
        named = ", ".join(spec.name for spec in inputs)
        raise DataError(
            f"{path} holds no arrays for the inputs {named}",
            expected=f"{named} in each .npz file, or NAME.npy or a folder NAME for each input",
        )
    return ArraySet(f"{PREFIX}{path}", tuple(inputs), tuple(found))


def _groups(path: Path, inputs: Sequence[TensorSpec]) -> Iterator[tuple[str, dict[str, _Part]]]:
    """Yield the arrays that belong together, with the name of their file."""
    names = [spec.name for spec in inputs]
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.name[0] != ".")
    for file in files:
        if file.suffix == _NPZ:
            yield file.name, _members(file, names)
    single = {file.stem: file for file in files if file.suffix == _NPY}
    if set(names) <= set(single):
        yield ", ".join(f"{n}{_NPY}" for n in names), {n: _Part(single[n]) for n in names}
    elif len(names) == 1:
        yield from ((file.name, {names[0]: _Part(file)}) for file in single.values())
    folders = [path / name for name in names]
    if all("/" not in name for name in names) and all(folder.is_dir() for folder in folders):
        shared = [{f.name for f in folder.glob(f"*{_NPY}")} for folder in folders]
        odd = sorted({name for each in shared for name in each ^ shared[0]})
        if odd:
            raise DataError(f"{path} has {odd[0]} for some inputs and not for others")
        for name in sorted(shared[0]):
            yield name, {n: _Part(f / name) for n, f in zip(names, folders, strict=True)}


def _members(file: Path, names: Sequence[str]) -> dict[str, _Part]:
    """Return the arrays of an archive by input. Raises: DataError."""
    held = npyfile.members(file, DataError)
    alone = len(names) == 1 and len(held) == 1
    members = dict(zip(names, held if alone else names, strict=True))
    absent = [name for name, member in members.items() if member not in held]
    if absent:
        raise DataError(
            f"{file} has no array {absent[0]!r}", expected=f"one for each of {', '.join(names)}"
        )
    return {name: _Part(file, member) for name, member in members.items()}


def _split(
    name: str, parts: Mapping[str, _Part], inputs: Sequence[TensorSpec]
) -> Iterator[_Sample]:
    """Yield the samples that arrays hold. Raises: DataError where one does not fit its input."""
    counts = set()
    whole = True
    for spec in inputs:
        array = _load(parts[spec.name])
        _check(array, spec, parts[spec.name].path)
        less = array.ndim < len(spec.shape)
        counts.add(1 if less or not array.ndim else array.shape[0])
        fixed = bool(spec.shape) and isinstance(spec.shape[0], int)
        whole &= not less and (not fixed or spec.shape[0] == array.shape[0])
    if len(counts) > 1:
        if not whole:
            raise DataError(f"{name} holds {' and '.join(map(str, sorted(counts)))} samples")
        yield _Sample(name, parts, None)
        return
    count = counts.pop()
    for row in range(count):
        yield _Sample(f"{name}[{row}]" if count > 1 else name, parts, row)


def _check(array: Array, spec: TensorSpec, path: Path) -> None:
    """Check that an array holds samples for an input. Raises: DataError."""
    sizes, wanted = list(array.shape), list(spec.shape[1:])
    found = sizes if array.ndim < len(spec.shape) else sizes[1:]
    fits = len(found) == len(wanted) and all(
        isinstance(want, str) or has == want for has, want in zip(found, wanted, strict=True)
    )
    if not fits or not np.can_cast(array.dtype, np.dtype(spec.dtype), casting="same_kind"):
        raise DataError(
            f"{path} holds {array.dtype}[{', '.join(map(str, sizes))}]",
            expected=f"{spec}, with any number of samples",
        )


def _joined(rows: Sequence[Array], spec: TensorSpec) -> Array:
    """Return samples as one batch. Raises: DataError where it has one value, and they differ."""
    if spec.shape:
        return np.stack(rows)
    if any(row != rows[0] for row in rows):
        raise DataError(
            f"samples of one batch have different values of {spec.name}",
            expected="one, as it has no dimension for the batch",
            fix="export the model with a batch of 1, or with such a dimension",
        )
    return rows[0]


def _load(part: _Part) -> Array:
    """Return an array; one of its own file is mapped, not read. Raises: DataError."""
    return npyfile.read(part.path, DataError, member=part.member)


def _typed(array: Array, spec: TensorSpec) -> Array:
    return np.ascontiguousarray(array).reshape(array.shape).astype(spec.dtype, copy=False)


def _digest(arrays: Mapping[str, Array]) -> str:
    hasher = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        hasher.update(f"{name} {array.dtype} {array.shape} ".encode())
        hasher.update(np.ascontiguousarray(array).data)
    return hasher.hexdigest()
