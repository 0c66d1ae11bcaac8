"""What the files in exporters/ define: everything about one model family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from deploykit.errors import OptionError, unknown_name
from deploykit.files import extensions
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from deploykit.data.preprocess import Preprocess
    from deploykit.recipes.identity import Facts, Found
    from deploykit.tasks import AnyTask
    from deploykit.tasks.outputs import Output
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
class Protocol:
    """A way of preparing images that the scripts of a family have, and that a user can name."""

    says: str
    """What it does, and which script of the family does so."""
    prepared: Callable[[Preprocess], Preprocess] = lambda made: made
    """The input as the variant makes it, of the size asked for -> as this protocol does."""


@dataclass(frozen=True)
class Variant:
    """The contract of one variant of a family: how it is fed, and what it keeps in float."""

    preprocess: Preprocess
    """How its input is made where the user asks for no other size."""
    keep_float: tuple[KeepFloat, ...] = ()
    size_multiple: int | None = 32
    """Both sides of the input must be a multiple of this, the coarsest stride; None: the network
    is made for the size of `preprocess` alone."""
    features: tuple[str, ...] = ()
    """Module paths whose outputs distillation compares: what the neck gives to the head."""
    protocols: Mapping[str, Protocol] = field(default_factory=dict)
    """Ways to prepare images beside `preprocess`, which is taken where none is named."""

    def protocol(self, name: str) -> Protocol:
        """Return the protocol called `name`. Raises: OptionError for an unknown one."""
        if not self.protocols:
            raise OptionError(
                f"--protocol {name[:100]!r}, and the network has only one",
                fix="leave --protocol out",
            )
        if name not in self.protocols:
            raise unknown_name("protocol", name, self.protocols)
        return self.protocols[name]

    def sized(self, size: tuple[int, int] | None) -> Preprocess:
        """Return how an input of `size` (H, W) is made; None: of its own size.

        Raises: OptionError for a size that the network cannot take.
        """
        return checked(self.preprocess.sized(size), self)


def checked(made: Preprocess, variant: Variant) -> Preprocess:
    """Return `made` where a network of `variant` takes its sizes. Raises: OptionError."""
    multiple, own = variant.size_multiple, variant.preprocess.size
    for size in made.sizes:
        if multiple is None and size != own:
            raise OptionError(
                f"input size {size[0]}x{size[1]}",
                expected=f"{own[0]}x{own[1]}: the network is made for that alone",
            )
        if multiple is not None and any(side <= 0 or side % multiple for side in size):
            raise OptionError(
                f"input size {size[0]}x{size[1]} does not fit the network",
                expected=f"two positive multiples of {multiple}, such as {20 * multiple}x"
                f"{20 * multiple}",
            )
    if len(set(made.sizes)) < len(made.sizes):
        raise OptionError("an input size is given twice", expected="sizes that differ")
    if made.canvases and made.resize not in ("letterbox", "corner"):
        raise OptionError(
            f"{len(made.sizes)} input sizes", expected=f"one, as images are made by {made.resize}"
        )
    return made


@dataclass(frozen=True)
class Recipe:
    """Everything about one model family that no other module may know."""

    name: str
    task: str | AnyTask
    """One of `tasks.SHIPPED` by its name, or a value of your own."""
    variants: Mapping[str, Variant]
    build: Callable[[str, int, tuple[int, int]], nn.Module]
    """(variant, number of classes, input size H, W) -> the network as it was trained."""
    identify: Callable[[StateDict, Facts], Found | tuple[str, int] | None]
    """Adapted state dict, and what else is known -> what was found, or only (variant, number of
    classes); None: not this family."""
    outputs: tuple[Output, ...]
    """What is exported, in the order the network returns it; by name where it returns a dict."""
    adapt: Callable[[StateDict], StateDict] = lambda state: state
    """Checkpoint keys of any known layout -> the keys of `build`'s module; drops known extras."""
    deploy: Callable[[nn.Module], nn.Module] | None = None
    """The trained network -> a new one with every branch and batch norm folded; None: by
    `deploykit.fold`."""
    extra_inputs: Callable[[Preprocess], tuple[TensorSpec, ...]] = field(default=lambda _: ())
    """What the network takes beside the images, in the order of its arguments."""
    class_names: Callable[[int], tuple[str, ...]] = field(
        default=lambda count: tuple(f"class{i}" for i in range(count))
    )

    def variant(self, name: str) -> Variant:
        """Return the variant called `name`. Raises: OptionError for an unknown one."""
        if name not in self.variants:
            raise unknown_name(f"variant of {self.name}", name, self.variants)
        return self.variants[name]

    def network(self, variant: str, classes: int, size: tuple[int, int] | None = None) -> nn.Module:
        """Return the network of a variant as it was trained, in eval mode, weights random.

        Raises: OptionError for an unknown variant, or a size (H, W) it cannot take.
        """
        return self.build(variant, classes, self.variant(variant).sized(size).size).eval()


RECIPES = extensions.Kind("recipe", "exporters", Recipe)
