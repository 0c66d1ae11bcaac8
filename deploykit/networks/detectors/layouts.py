"""The checkpoints of other projects that become torchvision's two-stage detectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from deploykit.networks.detectors import benchmark_layout, detectron2_layout, mmdet_layout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from deploykit.networks.detectors.two_stage import TwoStage
    from deploykit.networks.detectors.two_stage_models import Sizes
    from deploykit.recipes.identity import Choice, Facts, Plain, Settings
    from deploykit.recipes.recipe import StateDict
    from deploykit.tasks.masks import Pasting


class Layout(Protocol):
    """A module that knows one project's checkpoints and conventions."""

    MARK: str
    """The entry of what `adapt` made; variants of the project begin with it."""
    IMAGES: Mapping[str, Any]
    """How images are scaled, in `Preprocess`' words."""
    PASTING: Pasting
    """How masks are brought to the pixels of their boxes."""

    def is_own(self, state: StateDict) -> bool:
        """Return whether a state dict has the project's names."""

    def adapt(self, state: StateDict) -> dict[str, Tensor]:
        """Return a state dict under torchvision's names, with `MARK`."""

    def stored(self, state: StateDict, wanted: Sizes, facts: Facts) -> dict[str, Plain]:
        """Return the settings among the entries of a file. Raises: CheckpointError."""

    def choices(self, variant: str, stored: Mapping[str, Plain]) -> dict[str, Choice]:
        """Return the settings that its own names do not share with torchvision's."""

    def network(self, model: Any, settings: Settings, state: StateDict) -> TwoStage:  # noqa: ANN401 - torchvision ships no types
        """Return the network of torchvision's model, with the project's conventions."""


LAYOUTS: tuple[Layout, ...] = (detectron2_layout, benchmark_layout, mmdet_layout)


def of_names(state: StateDict) -> Layout | None:
    """Return the project whose names a state dict has, None for torchvision's."""
    return next((layout for layout in LAYOUTS if layout.is_own(state)), None)


def of_mark(state: StateDict) -> Layout | None:
    """Return the project that a state dict was adapted from, None for torchvision."""
    return next((layout for layout in LAYOUTS if layout.MARK in state), None)


def of_variant(variant: str) -> Layout | None:
    """Return the project that a variant is of, None for torchvision."""
    return next((layout for layout in LAYOUTS if variant.startswith(f"{layout.MARK}_")), None)
