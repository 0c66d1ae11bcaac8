"""The range of shapes an engine accepts for each input that has dynamic dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.errors import OptionError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.backends.contract import Shapes
    from deploykit.values import TensorSpec

DEFAULT_BATCHES = (1, 1, 32)
"""Smallest, typical and largest batch where nothing is said: tuned for one image, the usual
measure of latency, and large enough for the batch of 32 that detectors are also compared at."""
_NAMES = ("min", "opt", "max")


def profiles(
    inputs: Sequence[TensorSpec], given: Mapping[str, Shapes]
) -> tuple[dict[str, Shapes], str]:
    """Return input name -> (min, opt, max) for every dynamic input, and a line saying which.

    An input whose only dynamic dimension is its batch gets DEFAULT_BATCHES where `given` has
    nothing for it.

    Raises: OptionError for a shape that does not fit, or one that only the user can know.
    """
    specs = {spec.name: spec for spec in inputs}
    for name, shapes in given.items():
        if name not in specs:
            raise unknown_name("input", name, specs)
        _check(specs[name], shapes)
    found, lines = {}, []
    for spec in inputs:
        if is_dynamic(spec):
            found[spec.name] = given.get(spec.name) or _default(spec)
            said = "" if spec.name in given else " (default)"
            lines.append(f"profile of {spec}{said}: " + _text(found[spec.name]))
    return found, "\n".join(lines)


def is_dynamic(spec: TensorSpec) -> bool:
    """Return whether any dimension of an input is left open."""
    return not all(isinstance(dim, int) for dim in spec.shape)


def _default(spec: TensorSpec) -> Shapes:
    batch, *rest = spec.shape
    fixed = tuple(dim for dim in rest if isinstance(dim, int))
    if isinstance(batch, int) or len(fixed) != len(rest):
        raise OptionError(
            f"the input {spec} has dynamic dimensions other than its batch",
            expected="the range of its shapes",
            fix=" ".join(f"--{n}-shapes {_example(spec, b)}" for n, b in zip(_NAMES, (1, 1, 8))),  # noqa: B905 - both have three
        )
    low, typical, high = ((size, *fixed) for size in DEFAULT_BATCHES)
    return low, typical, high


def _example(spec: TensorSpec, batch: int) -> str:
    dims = [dim if isinstance(dim, int) else 640 for dim in spec.shape]
    if not isinstance(spec.shape[0], int):
        dims[0] = batch
    return f"{spec.name}:{'x'.join(map(str, dims))}"


def _check(spec: TensorSpec, shapes: Shapes) -> None:
    for which, shape in zip(_NAMES, shapes, strict=True):
        fits = len(shape) == len(spec.shape) and all(
            size == dim for size, dim in zip(shape, spec.shape, strict=True) if isinstance(dim, int)
        )
        if not fits:
            raise OptionError(
                f"--{which}-shapes {spec.name}:{'x'.join(map(str, shape))} does not fit the input",
                expected=str(spec),
            )
    low, typical, high = shapes
    if not all(a <= b <= c for a, b, c in zip(low, typical, high, strict=True)):
        raise OptionError(
            f"the shapes of {spec.name!r} are {_text(shapes)}", expected="min <= opt <= max"
        )


def _text(shapes: Shapes) -> str:
    return ", ".join(
        f"{n} {'x'.join(map(str, shape))}" for n, shape in zip(_NAMES, shapes, strict=True)
    )
