"""What torchvision's detectors are set up with: read from a model, written to one, compared.

A pickled detector and the one that is built have the same modules under the same paths; what their
attributes say is taken over where a family knows it, and otherwise must be alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from deploykit.errors import CheckpointError, OptionError
from deploykit.recipes.identity import Choice, Plain, frozen

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.recipes.identity import Facts, Layer, Settings

Model: TypeAlias = Any
"""A torchvision detector, which ships no types."""
Levels: TypeAlias = tuple[tuple[float, ...], ...]
"""Numbers for each level of a pyramid."""


class Knob(NamedTuple):
    """A setting, and where it is in a model."""

    says: str
    check: Callable[[Plain], Plain]
    place: tuple[str, ...]
    """Path of the module, the attribute, and keys inside that."""


def choices(model: Model, knobs: Mapping[str, Knob]) -> dict[str, Choice]:
    """Return the settings of a family, with those of `model` where nobody says."""
    return {
        name: Choice(knob.check(_value(model, knob.place)), knob.says, knob.check, knob.place)
        for name, knob in knobs.items()
    }


def _value(model: Model, place: tuple[str, ...]) -> Plain:
    value = getattr(_at(model, place[0]), place[1])
    for key in place[2:]:
        value = value[key]
    return frozen(value)


def apply(model: Model, knobs: Mapping[str, Knob], settings: Settings) -> None:
    """Set up `model`; what was assumed is there already."""
    for name, setting in settings.items():
        if name not in knobs or setting.origin == "assumed":
            continue
        path, attribute, *keys = knobs[name].place
        owner = _at(model, path)
        if keys:
            getattr(owner, attribute)[keys[0]] = setting.value
        else:
            setattr(owner, attribute, setting.value)


def _at(model: Model, path: str) -> Any:  # noqa: ANN401 - a module, or an object that one holds
    """Return what is at a path of the model, None where there is nothing."""
    found = model
    for name in path.split(".") if path else ():
        modules = getattr(found, "_modules", {})
        found = modules[name] if name in modules else getattr(found, name, None)
    return found


def anchored(
    generator: AnchorGenerator, sizes: Levels, ratios: Levels, per_cell: int
) -> AnchorGenerator:
    """Return a generator of anchors with these sizes and ratios for each level.

    generator: the one that they replace; one row stands for all its levels. per_cell: anchors in
    each cell, as the weights say. Raises: OptionError where their number does not fit the weights.
    """
    count = len(generator.sizes)
    rows = sizes if len(sizes) > 1 else sizes * count
    shapes = ratios if len(ratios) > 1 else ratios * count
    found = {len(r) * len(s) for r, s in zip(rows, shapes, strict=False)}
    if len(rows) != count or len(shapes) != count or found != {per_cell}:
        raise OptionError(
            f"anchors for {len(rows)} levels with {sorted(found)} in each cell",
            expected=f"{count} levels with {per_cell} in each cell, as the weights say",
            fix="state those it was trained with, for each level sizes times ratios being "
            f"{per_cell}, such as {_example(count, per_cell)}",
        )
    return AnchorGenerator(rows, shapes)


def _example(levels: int, per_cell: int) -> str:
    """Return options that state so many anchors in each cell of so many levels."""
    sides = ",".join(f"[{32 << level}]" for level in range(levels))
    ratios = ",".join(f"{2.0 ** (i - per_cell // 2):g}" for i in range(per_cell))
    return f"--set anchor_sizes=[{sides}] --set anchor_ratios=[[{ratios}]]"


_TRAINING = frozenset(
    (
        *("proposal_matcher", "fg_bg_sampler", "box_similarity", "map_levels", "loss_func"),
        *("fg_iou_thresh", "bg_iou_thresh", "batch_size_per_image", "positive_fraction"),
        *("neg_to_pos_ratio", "iou_thresh", "center_sampling_radius", "training", "scales"),
        *("inplace", "momentum", "p", "mode", "requires_grad", "eps", "_loss_type"),
        *("BETWEEN_THRESHOLDS", "background_weight", "trainable_layers", "_has_warned"),
    )
)
"""Attributes that only training reads, or that a run leaves behind; of norms, the epsilon is
taken over with the weights."""
_LATE = frozenset(("cell_anchors",))
"""Attributes that torchvision before 0.9 sets in the first run: none are pickled before."""
_SILENT = frozenset(("Dropout", "Dropout2d", "Identity", "StochasticDepth"))
"""Modules that do nothing in evaluation."""
_ALIKE = (
    frozenset(("BatchNorm2d", "FrozenBatchNorm2d", "SyncBatchNorm")),
    frozenset(("Sequential", "ConvNormActivation", "Conv2dNormActivation", "ConvBNReLU")),
)


def agree(model: Model, facts: Facts, knobs: Mapping[str, Knob]) -> None:
    """Raise CheckpointError where the pickled detector is another than `model`; it names the part.

    Compared are classes and plain attributes of all that is in both, but for the places of `knobs`.
    """
    known = {knob.place[:2] for knob in knobs.values()}
    for path, layer in facts.layers.items():
        mine = _at(model, path)
        last = path.rpartition(".")[2]
        if not path or mine is None or last in _TRAINING:
            continue
        _same_kind(path, layer, mine)
        if isinstance(mine, nn.Sequential):
            _same_steps(path, mine, facts)
        skipped = {name for owner, name in known if owner == path}
        _same_values(path, layer, mine, skipped)


def _same_values(path: str, layer: Layer, mine: object, skipped: set[str]) -> None:
    for name, stored in layer.values.items():
        late = stored is None and name in _LATE
        if late or name in _TRAINING or name in skipped or not hasattr(mine, name):
            continue
        try:
            own = _plain(getattr(mine, name))
        except ValueError:  # an object, or a function
            continue
        if not _equal(frozen(stored), own):
            raise _refused(f"{path}.{name} = {stored}", str(own))


def _same_steps(path: str, mine: nn.Sequential, facts: Facts) -> None:
    """Raise CheckpointError where one sequence has a step, that does something, and one not."""
    prefix = f"{path}."
    inside = {p.removeprefix(prefix): x for p, x in facts.layers.items() if p.startswith(prefix)}
    theirs = {name: x.kind.rpartition(".")[2] for name, x in inside.items() if "." not in name}
    own = {name: type(step).__name__ for name, step in mine.named_children()}
    for name in sorted(theirs.keys() ^ own.keys()):
        if {theirs.get(name), own.get(name)}.isdisjoint(_SILENT):
            found = f"of class {theirs[name]}" if name in theirs else "missing"
            raise _refused(f"{prefix}{name} {found}", own.get(name, "no such step"))


def _same_kind(path: str, layer: Layer, mine: object) -> None:
    theirs, own = layer.kind.rpartition(".")[2], type(mine).__name__
    if theirs == own or {theirs, own} <= _SILENT:
        return
    if not any({theirs, own} <= group for group in _ALIKE):
        raise _refused(f"{path} of class {layer.kind}", own)


def _refused(found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"the pickled detector has {found}, which is not carried",
        expected=expected,
        fix="write a recipe for it (see exporters/README.md) and name it with --recipe",
    )


def _plain(value: object) -> Plain:
    """Return an attribute as a plain value. Raises: ValueError where it is none."""
    if isinstance(value, torch.Tensor):
        return frozen(value.tolist())
    if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
        return tuple(_plain(v) for v in value)
    return frozen(value)


def _equal(stored: Plain, own: Plain) -> bool:
    """Return whether two plain values are the same, one number for many being alike."""
    if isinstance(stored, tuple) and isinstance(own, tuple):
        pairs = zip(stored, own, strict=False)
        return len(stored) == len(own) and all(_equal(s, o) for s, o in pairs)
    if isinstance(stored, tuple) or isinstance(own, tuple):
        row, one = (stored, own) if isinstance(stored, tuple) else (own, stored)
        return bool(row) and all(_equal(item, one) for item in row)  # type: ignore[union-attr]  # a tuple
    if isinstance(stored, Mapping) and isinstance(own, Mapping):
        return all(_equal(stored[key], own[key]) for key in stored.keys() & own.keys())
    if isinstance(stored, (int, float)) and isinstance(own, (int, float)):
        return abs(stored - own) <= 1e-6 * max(abs(stored), abs(own))
    return stored == own
