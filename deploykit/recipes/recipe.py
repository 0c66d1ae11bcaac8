"""What the files in exporters/ define: everything about one model family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from deploykit.files import extensions
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from deploykit.data.preprocess import Preprocess
    from deploykit.recipes.identity import Facts, Found
    from deploykit.tasks import AnyTask
    from deploykit.values import TensorSpec

    StateDict: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class KeepFloat:
    """Nodes that INT8 would hurt, and the reason."""

    pattern: str
    """Regular expression, searched in the ONNX node name (the module path, with dots)."""
    reason: str
    precision: Precision = Precision.FP16
    """FP32 where even half precision is too coarse."""


@dataclass(frozen=True)
class Family:
    """The networks of a model family, and how its checkpoints are read."""

    build: Callable[[str, int], nn.Module]
    """(variant, number of classes) -> the network as it was trained, in eval mode."""
    adapt: Callable[[StateDict], StateDict]
    """Checkpoint keys of any known layout -> the keys of `build`'s module; drops known extras."""
    identify: Callable[[StateDict, Facts], Found | tuple[str, int] | None]
    """Adapted state dict, and what else is known -> what was found, or only (variant, number of
    classes); None: not this family."""
    deploy: Callable[[nn.Module], nn.Module]
    """The trained network -> a new one with every branch and batch norm folded."""


@dataclass(frozen=True)
class Recipe:
    """Everything about one model family that no other module may know."""

    name: str
    task: str | AnyTask
    """One of `tasks.SHIPPED` by its name, or a value of your own."""
    variants: tuple[str, ...]
    family: Family
    preprocess: Callable[[str, tuple[int, int] | None], Preprocess]
    """(variant, input size H, W or None for the family's own) -> how its input is made."""
    outputs: tuple[str, ...]
    """Names of the exported outputs, in the order the network returns them."""
    keep_float: tuple[KeepFloat, ...] = ()
    extra_inputs: Callable[[Preprocess], tuple[TensorSpec, ...]] = field(default=lambda _: ())
    """What the network takes beside the images, in the order of its arguments."""
    size_multiple: int = 32
    """Both sides of the input must be a multiple of this: the coarsest stride."""
    class_names: Callable[[int], tuple[str, ...]] = field(
        default=lambda count: tuple(f"class{i}" for i in range(count))
    )


RECIPES = extensions.Kind("recipe", "exporters", Recipe)
