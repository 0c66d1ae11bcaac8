"""The frozen nouns that flow between the stages."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from deploykit import stats
from deploykit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

SCHEMA_VERSION = 1
INT8_LEVELS = 127
"""Largest magnitude of the symmetric INT8 grid; TensorRT wants zero-point 0."""
LEAST_STEP = 2.0**-100
"""Smaller quantisation steps count as 0: their reciprocals may be infinite."""
DEAD_STEP = 2.0**-24
"""The step of what is always 0: FP16's smallest number above 0."""

Json = dict[str, Any]
T = TypeVar("T")


class Precision(str, Enum):
    """A number format a layer computes in."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"

    def __str__(self) -> str:
        """Return the value, as it is written on the command line."""
        return self.value


class Progress(Protocol):
    """Passes `items` through and shows how many of `total` are done."""

    def __call__(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        """Yield every item unchanged."""
        ...


def silent(items: Iterable[T], label: str, total: int) -> Iterator[T]:  # noqa: ARG001 - the Progress signature
    """Yield every item and show nothing: the default `Progress`."""
    yield from items


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of a model input or output; a named dimension is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        """Return e.g. `images: float32[batch, 3, 640, 640]`."""
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"

    @classmethod
    def parse(cls, text: str) -> TensorSpec:
        """Return the spec that prints as `text`. Raises: InputError."""
        match = re.search(r":\s*(\w+)\[(.*)\]$", text.strip())
        if match is None or not text.strip()[: match.start()].strip():
            raise InputError(f"not a tensor spec: {text!r}", expected="name: dtype[dim, dim]")
        dims = [d.strip() for d in match[2].split(",") if d.strip()]
        shape = tuple(int(d) if re.fullmatch(r"-?\d{1,18}", d) else d for d in dims)
        return cls(text.strip()[: match.start()].strip(), match[1], shape)


@dataclass(frozen=True)
class Artifact:
    """A file this toolkit wrote, with its ancestors."""

    path: Path
    sha256: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    parents: Mapping[str, str] = field(default_factory=dict)
    """File name -> sha256 of each file this one was made from."""
    made_by: Mapping[str, Any] = field(default_factory=dict)
    """The verb, its options and the versions of the packages that took part."""


@dataclass(frozen=True)
class Range:
    """What one tensor's values span, and the magnitude that INT8 should cover."""

    threshold: float
    """Magnitude mapped to 127; values beyond it are clipped. Same unit as the tensor."""
    minimum: float
    maximum: float

    @property
    def scale(self) -> float:
        """Return the quantisation step `threshold / 127`."""
        return self.threshold / INT8_LEVELS


@dataclass(frozen=True)
class CalibrationTable:
    """A range per tensor, bound to the model and the images it was measured on."""

    model_sha256: str
    observer: str
    samples: tuple[str, ...]
    samples_sha256: str
    ranges: Mapping[str, Range]
    skipped: tuple[str, ...] = ()
    """Files that could not be read and that the user allowed to be left out."""
    source: str = ""
    """The data set, as the user named it."""
    size: int | None = None
    """Images asked for; None: all of the data set."""
    factors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Weight -> for each output channel the e of the 2**e that it was divided by before this was
    measured, see `repairs.equalisation`; what is not there was not."""
    shifts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Layer -> for each output channel what is added to its bias where the layer is in INT8, see
    `repairs.correcting`."""
    ways: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Weight -> which of its numbers are rounded up and down, not to the nearest level, see
    `quantization.rounding`."""
    candidates: Mapping[str, Mapping[str, float]] = field(default_factory=dict, compare=False)
    """Tensor -> method -> the threshold that it would choose, see `repairs.choosing`. Known to who
    calibrates; no file keeps it."""
    reaches: Mapping[str, NDArray[np.float64]] = field(default_factory=dict, compare=False)
    """Tensor -> float64[channels], the largest magnitude of each on the first images. Known to who
    calibrates; no file keeps it."""
    growing: tuple[str, ...] = field(default=(), compare=False)
    """Tensors that the last quarter of the images took further than those before by a tenth. Known
    to who calibrates; it depends on the cut into batches, and so no file keeps it."""

    def __repr__(self) -> str:
        """Return what tells one table from another, without the ranges one by one."""
        counts = f"{len(self.ranges)} tensors, {len(self.samples)} images"
        return f"<CalibrationTable {self.observer}, {counts}, model {self.model_sha256[:12]}>"

    def to_json(self) -> Json:
        """Return the table as plain JSON values."""
        values = asdict(replace(self, growing=(), candidates={}, reaches={}))
        del values["growing"], values["candidates"], values["reaches"]
        for name in ("factors", "shifts", "ways"):
            if not values[name]:
                del values[name]  # such a table is one for every version
        return {"schema_version": SCHEMA_VERSION, **values}

    @classmethod
    def from_json(cls, data: Json) -> CalibrationTable:
        """Return the table that `to_json` wrote. Raises: InputError."""
        try:
            ranges = {name: Range(**value) for name, value in data["ranges"].items()}
            return cls(
                model_sha256=data["model_sha256"],
                observer=data["observer"],
                samples=tuple(data["samples"]),
                samples_sha256=data["samples_sha256"],
                ranges=ranges,
                skipped=tuple(data.get("skipped", ())),
                source=data.get("source", ""),
                size=data.get("size"),
                factors={n: tuple(each) for n, each in data.get("factors", {}).items()},
                shifts={n: tuple(each) for n, each in data.get("shifts", {}).items()},
                ways={n: (each[0], each[1]) for n, each in data.get("ways", {}).items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"not a calibration table: {error}",
                expected=f"a JSON file with schema_version {SCHEMA_VERSION} written by quantize",
            ) from error


@dataclass(frozen=True)
class PrecisionPlan:
    """The precision each layer should get, and why the exceptions are exceptions."""

    default: Precision
    layers: Mapping[str, Precision] = field(default_factory=dict)
    """Node name -> precision, only where it differs from `default`."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Node name -> why it differs."""


@dataclass(frozen=True)
class LayerPrecision:
    """The precision a layer really runs in, as read back from a built file."""

    name: str
    """ONNX node name; several joined by ` + ` where the builder fused them."""
    op: str
    precision: str
    """`int8`, `fp16`, `fp32` or `unknown`."""
    macs: int = 0
    note: str = ""
    """What is special about `macs`, such as why nothing is counted; "": nothing."""


@dataclass(frozen=True)
class Agreement:
    """How one output of a candidate compares with the reference."""

    output: str
    max_abs: float
    mean_abs: float
    relative: float
    """`max_abs` over the reference's value range (max - min)."""
    cosine: float
    passed: bool
    note: str = ""
    """What is known beyond the numbers, such as which row has no partner."""
    rounding: float | None = None
    """Largest error that the reference itself has in its number format; None: not measured."""
    allowed: float | None = None
    """Largest error that rounding explains; None: `passed` says more than a limit could."""
    noise: float | None = None
    """Energy of the errors over that of the reference, of all finite values; None: not measured."""


@dataclass(frozen=True)
class BenchRecord:
    """Raw timings of one model on one machine; statistics are derived, never stored."""

    model: str
    model_sha256: str
    backend: str
    scope: str
    """`device` (the model alone) or `end-to-end` (preprocess, model, postprocess)."""
    batch_size: int
    seconds: tuple[float, ...]
    """Wall time of each iteration."""
    device_seconds: tuple[float, ...] = ()
    """Device-event time of each iteration; empty where the backend has no device clock."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    time: str = field(default="", compare=False)
    """When it was kept, UTC in ISO 8601; empty: not kept, or by a version that did not say it."""

    @property
    def wall(self) -> stats.Summary:
        """Return the figures of the wall time."""
        return stats.summarise(self.seconds)

    @property
    def device(self) -> stats.Summary | None:
        """Return the figures of the device time; None where there is no device clock."""
        return stats.summarise(self.device_seconds) if self.device_seconds else None

    @property
    def fps_wall(self) -> float:
        """Return images per second of wall time: batch * iterations / sum(seconds)."""
        return self.batch_size / stats.mean(self.seconds)

    @property
    def fps_device(self) -> float | None:
        """Return images per second of device time; None where there is no device clock."""
        if not self.device_seconds:
            return None
        return self.batch_size / stats.mean(self.device_seconds)

    def to_json(self) -> Json:
        """Return the record as plain JSON values."""
        return {"schema_version": SCHEMA_VERSION, "kind": "bench", **asdict(self)}

    @classmethod
    def from_json(cls, data: Json) -> BenchRecord:
        """Return the record that `to_json` wrote. Raises: InputError."""
        fields = {k: v for k, v in data.items() if k not in ("schema_version", "kind")}
        try:
            for key in ("seconds", "device_seconds", "warnings"):
                fields[key] = tuple(fields.get(key, ()))
            return cls(**fields)
        except TypeError as error:
            raise InputError(f"not a benchmark record: {error}") from error


def digest(names: Iterable[str]) -> str:
    """Return the sha256 (hex) of the JSON list of `names`: order matters."""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()
