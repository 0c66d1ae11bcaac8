"""Where Q/DQ go: rules for what TensorRT runs in INT8, plans of what shall not."""

from deploykit.precision.placement.placing import (
    Activation,
    Placement,
    Weight,
    activations,
    layers,
    place,
)
from deploykit.precision.placement.plans import Kinds, default_plan, read_plan, write_plan

__all__ = [
    "Activation",
    "Kinds",
    "Placement",
    "Weight",
    "activations",
    "default_plan",
    "layers",
    "place",
    "read_plan",
    "write_plan",
]
