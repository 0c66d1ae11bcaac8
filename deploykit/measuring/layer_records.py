"""Records of what INT8 costs in each layer, of a choice of layers in float, and of a training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from deploykit.values import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.values import Json


class Kept:
    """A record of dataclass fields."""

    kind: ClassVar[str]

    def to_json(self: Any) -> Json:
        """Return the record as plain JSON values."""
        return {"schema_version": SCHEMA_VERSION, "kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class SensitivityRecord(Kept):
    """What INT8 costs in each layer of one model."""

    kind: ClassVar[str] = "sensitivity"
    model: str
    """The file's name, without folders."""
    model_sha256: str
    measure: str
    """That the layers are ranked by, one of each layer's."""
    layers: Mapping[str, Mapping[str, float | None]]
    """Node -> measure -> value; None where it is infinite."""
    losses: Mapping[str, float]
    """Node -> what it loses by `measure`, as a number that adds up."""
    correlations: Mapping[str, float | None] = field(default_factory=dict)
    """Measure -> how its ranks agree with those of the last one."""
    images: int = 0
    dataset: str = ""
    time: str = field(default="", compare=False)
    """When it was kept, UTC in ISO 8601; empty: not kept."""


@dataclass(frozen=True)
class PlanRecord(Kept):
    """Choices of layers in float for one model and GPU: predicted, and measured."""

    kind: ClassVar[str] = "plan"
    model: str
    model_sha256: str
    gpu: str
    batch_size: int
    measure: str
    """Of sensitivity, by which the layers were weighed."""
    primary: str
    """The task's name of the number that drops; empty: nothing was measured."""
    tried: tuple[Mapping[str, Any], ...]
    """Choices that were measured: layers in float, seconds, predicted_drop, real_drop, most_drop:
    what they lose on other images too, but for a chance."""
    frontier: tuple[Mapping[str, Any], ...]
    """Choices of which each is the fastest for its predicted drop."""
    chosen: Mapping[str, Any]
    seconds_int8: float
    """Predicted, with every layer of the plan in INT8."""
    seconds_fp16: float
    time: str = field(default="", compare=False)
    """As of `SensitivityRecord`."""


@dataclass(frozen=True)
class TrainingRecord(Kept):
    """How the loss of one training for INT8 fell."""

    kind: ClassVar[str] = "training"
    model: str
    """The file that came of it, without folders."""
    model_sha256: str
    curve: tuple[Mapping[str, float], ...]
    """For each epoch, the mean of each part of the loss and of the whole, `loss`."""
    steps: int
    """Of the whole training."""
    dataset: str = ""
    time: str = field(default="", compare=False)
    """As of `SensitivityRecord`."""
