"""The configuration that mmdetection and mmsegmentation write into a checkpoint, never run.

It is Python text: assignments of `dict(...)`, lists and plain values. It is parsed, and what is
written in another way is left out.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from deploykit.data.preprocess import Preprocess
from deploykit.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.recipes.identity import Plain

LONGEST = 1 << 18
"""Characters of a configuration that is read; whole ones have a few thousand."""
_DEPTH = 24
"""Values within values."""
_HUGE = 1e6
"""Above any number of a configuration."""
_SHOWN = 100
"""Characters of a value that a message shows."""
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""ImageNet's, 0 to 255, of RGB."""
_TEXTS = ("config", "cfg")
"""What the entry `meta` calls it: before version 3 of mmdetection (1 of mmsegmentation), and
since."""


def read(beside: Mapping[str, Any]) -> Mapping[str, Plain]:
    """Return the settings in what a file holds beside its weights, empty where it has none."""
    meta = beside.get("meta")
    texts = [meta.get(key) for key in _TEXTS] if isinstance(meta, Mapping) else []
    text = next((t for t in texts if isinstance(t, str) and len(t) <= LONGEST), "")
    try:
        lines = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    return {
        line.targets[0].id: _value(line.value, _DEPTH)
        for line in lines
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
    }


def _value(node: ast.expr, depth: int) -> Plain:
    """Return the value of an expression, None where it is not a plain one."""
    found: Plain = None
    if depth == 0:
        return found
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            found = value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            found = -value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            found = tuple(_value(item, depth - 1) for item in items)
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            named = [(k.value, v) for k, v in pairs if isinstance(k, ast.Constant)]
            found = {str(name): _value(value, depth - 1) for name, value in named}
        case ast.Call(func=ast.Name(id="dict"), keywords=keywords):
            found = {k.arg: _value(k.value, depth - 1) for k in keywords if k.arg is not None}
    return found


def prepared(size: tuple[int, int]) -> Preprocess:
    """Return how images are made for an input of `size` (H, W), where nothing else is said."""
    return Preprocess(
        size,
        "corner",
        scale=1.0,
        mean=MEAN,
        std=STD,
        pad_value=None,
        resampler="cv2-linear",
        rounding="half-up",
    )


def at(config: Plain, *path: str) -> Plain:
    """Return what a configuration has at a path of names, None where there is nothing."""
    for key in path:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def taken(config: Plain, paths: Mapping[str, tuple[str, ...]]) -> dict[str, Plain]:
    """Return what a configuration has at these paths, by the names of the paths."""
    found = {name: at(config, *path) for name, path in paths.items()}
    return {name: value for name, value in found.items() if value is not None}


def check(config: Plain, known: Iterable[tuple[tuple[str, ...], tuple[Plain, ...]]]) -> None:
    """Raise CheckpointError where a configuration says something else than is carried.

    known: paths, and the values that are, the first of them the usual one; what is not said is.
    """
    for path, values in known:
        found = at(config, *path)
        if found is not None and found not in values:
            raise CheckpointError(
                f"the configuration in the file has {'.'.join(path)} = {str(found)[:_SHOWN]}",
                expected=str(values[0]),
                fix="write a recipe for it (see exporters/README.md) and name it with --recipe",
            )


def positive(config: Plain, *path: str) -> tuple[float, ...] | None:
    """Return the numbers that a configuration has at a path, None where there is nothing.

    Raises: CheckpointError where it is no row of numbers above 0.
    """
    found = at(config, *path)
    if found is None:
        return None
    row: tuple[Any, ...] = found if isinstance(found, tuple) else ()
    if not row or not all(isinstance(n, (int, float)) and 1 / _HUGE < n < _HUGE for n in row):
        raise CheckpointError(
            f"the configuration in the file has {'.'.join(path)} = {str(found)[:_SHOWN]}",
            expected="a list of numbers above 0",
        )
    return row


def images(config: Mapping[str, Plain]) -> dict[str, Plain]:
    """Return how images are made for evaluation: mean, std, channels, min_size, max_size.

    Raises: CheckpointError where the aspect ratio is not kept.
    """
    steps = list(_steps(config.get("test_pipeline")))
    inside = at(config, "model", "data_preprocessor")
    normal: Plain = inside or next((s for s in steps if s.get("type") == "Normalize"), None)
    normal = normal or config.get("img_norm_cfg")
    found = {name: at(normal, name) for name in ("mean", "std")}
    if isinstance(normal, Mapping):
        turned = normal.get(
            "bgr_to_rgb", normal.get("to_rgb", "to_rgb" not in normal and not inside)
        )
        found["channels"] = "RGB" if turned else "BGR"
    for step in steps:
        size = step.get("img_scale", step.get("scale"))
        if step.get("type") in ("Resize", "MultiScaleFlipAug"):
            check(step, [(("keep_ratio",), (True,))])
            sides = size if isinstance(size, tuple) and len(size) == 2 else ()
            whole = [int(s) for s in sides if isinstance(s, (int, float)) and math.isfinite(s)]
            if len(whole) == 2:
                found |= {"min_size": min(whole), "max_size": max(whole)}
    return {name: value for name, value in found.items() if value is not None}


def _steps(pipeline: Plain, depth: int = 2) -> Iterator[Mapping[str, Plain]]:
    """Yield the steps of a pipeline, those within others behind them."""
    for step in pipeline if isinstance(pipeline, tuple) else ():
        if isinstance(step, Mapping):
            yield step
            if depth:
                yield from _steps(step.get("transforms"), depth - 1)
