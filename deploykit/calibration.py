"""Run a model over images and find the range of each tensor that will be INT8.

Images are decoded, run through the model and observed at the same time. Memory holds two batches
of the observed tensors and does not grow with the number of images.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import onnx
import onnxruntime as ort

from deploykit import artifacts, observers, samples
from deploykit.errors import InputError, ModelError, OptionError, StaleTableError, unknown_name
from deploykit.values import CalibrationTable, TensorSpec, silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from deploykit.observers import Extremes
    from deploykit.recipe import Dataset, Floats, Preprocess
    from deploykit.samples import Batch
    from deploykit.values import Progress


@dataclass(frozen=True)
class CalibrationOptions:
    """How a model is calibrated."""

    observer: str = "entropy"
    """One of `observers.OBSERVERS`."""
    size: int | None = None
    """Images to use, spread over the data set; None: all."""
    batch_size: int = 1
    """Images per run; more take more memory and are hardly faster on a CPU."""
    percentile: float = observers.PERCENTILE
    """For the percentile observer alone."""
    skip_unreadable: bool = False
    """Leave unreadable images out and list them in the table, instead of failing."""


def calibrate(  # noqa: PLR0913 - model, images, tensors, and two independent options
    model: Path,
    dataset: Dataset,
    preprocess: Preprocess,
    tensors: Sequence[str],
    *,
    options: CalibrationOptions | None = None,
    progress: Progress = silent,
) -> CalibrationTable:
    """Return the range of each of `tensors` over the images of `dataset`.

    The model has one input, float32[N, 3, H, W], which may be among the tensors. Files left out
    because they could not be read are in the table's `skipped`.

    Raises: ModelError for a model with another interface or without one of the tensors; DataError
        for images; OptionError for the options; InputError naming a tensor with NaN or infinity.
    """
    options = options or CalibrationOptions()
    observer = observers.load(options.observer, options.percentile)
    skipped: list[str] = []
    batches = samples.batches(
        dataset,
        preprocess,
        options.batch_size,
        limit=options.size,
        skipped=skipped if options.skip_unreadable else None,
        progress=progress,
    )
    wanted = tuple(dict.fromkeys(tensors))
    sha256 = artifacts.sha256(model)
    session = _open(model, wanted)
    _check_input(session, preprocess, options.batch_size)
    _check_outputs(session, wanted)
    seen = {name: observer.remember(name) for name in wanted}
    names, pixel_sha256s = _observe(session, batches, seen)
    return CalibrationTable(
        model_sha256=sha256,
        observer=_label(options),
        samples=tuple(names),
        samples_sha256=samples.fingerprint(names, pixel_sha256s),
        ranges={name: observers.chosen_range(observer, seen[name]) for name in wanted},
        skipped=tuple(skipped),
    )


def unify(table: CalibrationTable, groups: Iterable[Iterable[str]]) -> CalibrationTable:
    """Return the table with one threshold, the largest, for all tensors of each group.

    No tensor is in two groups. Raises: InputError for a tensor without a range.
    """
    ranges = dict(table.ranges)
    for group in map(tuple, groups):
        absent = [name for name in group if name not in ranges]
        if absent:
            raise InputError(
                f"the calibration table has no range for {', '.join(map(repr, absent))}",
                fix="calibrate the model again",
            )
        threshold = max((ranges[name].threshold for name in group), default=0.0)
        ranges |= {name: replace(ranges[name], threshold=threshold) for name in group}
    return replace(table, ranges=ranges)


def write_table(path: Path, table: CalibrationTable) -> None:
    """Write the table as JSON, atomically. Raises: OutputError."""
    artifacts.write_json(path, table.to_json())


def read_table(path: Path) -> CalibrationTable:
    """Return the table in a JSON file. Raises: InputError."""
    return CalibrationTable.from_json(artifacts.read_json(path))


def check_fresh(table: CalibrationTable, model: Path) -> None:
    """Check that the table was made for this very model file. Raises: StaleTableError."""
    found = artifacts.sha256(model)
    if found != table.model_sha256:
        raise StaleTableError(
            f"the calibration table was made for another model than {model}",
            expected=f"sha256 {table.model_sha256}, found {found}",
            fix="calibrate this model, or name the model that the table was made for",
        )


def _label(options: CalibrationOptions) -> str:
    exact = f" {options.percentile:g}" if options.observer == "percentile" else ""
    return options.observer + exact


def _observe(
    session: ort.InferenceSession, batches: Iterator[Batch], seen: dict[str, Extremes]
) -> tuple[list[str], list[str]]:
    """Fill `seen`; return the names and the hashes of the images.

    While the runtime computes a batch, a thread observes the one before.
    """
    names: list[str] = []
    pixel_sha256s: list[str] = []
    observed: Future[None] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="observer") as thread:
        for batch in batches:
            names += batch.names
            pixel_sha256s += batch.pixel_sha256s
            values = _run(session, batch, seen)
            if observed is not None:
                observed.result()
            observed = thread.submit(_take_in, values, seen)
            del values
        if observed is not None:
            observed.result()
    return names, pixel_sha256s


def _run(session: ort.InferenceSession, batch: Batch, seen: Iterable[str]) -> dict[str, Floats]:
    feed = session.get_inputs()[0].name
    values: dict[str, Floats] = {feed: batch.images}
    inner = [name for name in seen if name != feed]
    if inner:
        try:
            outputs = session.run(inner, {feed: batch.images})
        except Exception as error:  # pybind gives its errors no common class
            raise ModelError(
                f"ONNX Runtime failed on images of shape {batch.images.shape}: {error}"
            ) from error
        values |= zip(inner, cast("list[Floats]", outputs), strict=True)
    return values


def _take_in(values: dict[str, Floats], seen: dict[str, Extremes]) -> None:
    """Observe a batch, and free each array as soon as it is done."""
    while values:
        name, array = values.popitem()
        if name in seen:
            seen[name].observe(array)
        del array


def _open(model: Path, tensors: Sequence[str]) -> ort.InferenceSession:
    """Return a session whose outputs include `tensors`; the file is not changed."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # an error is raised, so it need not be logged too
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(
            _exposed(model, tensors), options, providers=["CPUExecutionProvider"]
        )
    except InputError:
        raise
    except Exception as error:
        raise ModelError(f"ONNX Runtime cannot run {model}: {error}") from error


def _exposed(model: Path, tensors: Sequence[str]) -> bytes:
    """Return the serialized model with `tensors` as outputs."""
    try:
        proto = onnx.load(model)
    except OSError as error:
        raise ModelError(f"cannot read {model}: {error.strerror or error}") from error
    except Exception as error:
        raise ModelError(f"{model} is not an ONNX model: {error}") from error
    graph = proto.graph
    known = {v.name for v in graph.input} | {name for node in graph.node for name in node.output}
    for name in tensors:
        if name not in known:
            raise ModelError(
                f"{model} has no tensor {name!r}", fix=unknown_name("tensor", name, known).fix
            )
    present = {v.name for v in (*graph.input, *graph.output)}
    graph.output.extend(onnx.ValueInfoProto(name=n) for n in tensors if n not in present)
    return cast("bytes", proto.SerializeToString())


def _check_input(session: ort.InferenceSession, preprocess: Preprocess, batch_size: int) -> None:
    inputs = [_spec(node) for node in session.get_inputs()]
    height, width = preprocess.size
    wanted = TensorSpec("images", "float32", ("batch", 3, height, width))
    fits = len(inputs) == 1 and inputs[0].dtype == "float32" and len(inputs[0].shape) == 4
    # A dimension with a name may take any value.
    sizes = zip(inputs[0].shape[1:], wanted.shape[1:], strict=False) if fits else ()
    if not fits or any(isinstance(has, int) and has != want for has, want in sizes):
        raise ModelError(
            f"the model's inputs are {', '.join(map(str, inputs)) or 'none'}",
            expected=f"one input, such as {wanted}, the size of the preprocessing",
            fix="give the preprocessing that the model was made for",
        )
    fixed = inputs[0].shape[0]
    if isinstance(fixed, int) and fixed != batch_size:
        raise OptionError(
            f"a batch size of {batch_size} for a model that takes {inputs[0]}",
            fix=f"use a batch size of {fixed}, or export the model with a dynamic batch",
        )


def _check_outputs(session: ort.InferenceSession, tensors: Sequence[str]) -> None:
    for spec in map(_spec, session.get_outputs()):
        if spec.name in tensors and spec.dtype != "float32":
            raise ModelError(
                f"cannot calibrate the tensor {spec}",
                expected="float32",
                fix="calibrate the float32 model, before any conversion of precision",
            )


def _spec(node: ort.NodeArg) -> TensorSpec:
    """Return the spec of an input or output; `?` where the runtime knows no size."""
    dtype = {"tensor(float)": "float32"}.get(node.type, node.type)
    return TensorSpec(node.name, dtype, tuple("?" if d is None else d for d in node.shape))
