"""A checkpoint to the network that was trained, with the contract of its recipe."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from deploykit import tasks
from deploykit.errors import CheckpointError, OptionError, unknown_name
from deploykit.networks import checkpoint, pickled, reparam
from deploykit.recipes import metadata
from deploykit.recipes.identity import Facts, Found
from deploykit.recipes.identity import found as as_found
from deploykit.recipes.metadata import ModelCard
from deploykit.recipes.recipe import RECIPES
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from deploykit.recipes.recipe import Recipe

INPUT = "images"
BATCH = "batch"


@dataclass(frozen=True)
class NetworkOptions:
    """What the user may decide; None: found out from the checkpoint or the recipe."""

    recipe: str | None = None
    variant: str | None = None
    input_size: tuple[int, int] | None = None
    class_names: tuple[str, ...] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    """What the network is set up with, where the file does not say: name -> text."""


@dataclass(frozen=True)
class Network:
    """A trained network with its contract."""

    module: nn.Module
    """As it was trained (branches unfolded), in eval mode."""
    recipe: Recipe
    card: ModelCard

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return what the network takes: the images, then what its recipe adds."""
        preprocess = self.card.preprocess
        images = TensorSpec(INPUT, "float32", (BATCH, 3, *preprocess.size))
        return (images, *self.recipe.extra_inputs(preprocess))


def load_network(path: Path, options: NetworkOptions) -> Network:
    """Return the network of a checkpoint with its weights loaded.

    Raises: CheckpointError, OptionError.
    """
    loaded = checkpoint.load(path)
    recipe, found = identify(loaded, options, path.name)
    state = recipe.family.adapt(loaded.state)
    module = found.build() if found.build else recipe.family.build(found.variant, found.classes)
    module = reparam.as_stored(module.eval(), state.keys())
    checkpoint.fit(module, dict(state), name=f"{recipe.name} {found.variant}")
    pickled.settle(module, loaded.modules, pickled.paths(loaded.state, state))
    make = found.preprocess or partial(recipe.preprocess, found.variant)
    preprocess = make(options.input_size)
    if any(side <= 0 or side % recipe.size_multiple for side in preprocess.size):
        raise OptionError(
            f"input size {'x'.join(map(str, preprocess.size))} does not fit {recipe.name}",
            expected=f"two positive multiples of {recipe.size_multiple}, such as 640x640",
        )
    card = ModelCard(
        recipe=metadata.recipe_name(options.recipe, recipe),
        variant=found.variant,
        task=tasks.name(recipe.task),
        preprocess=preprocess,
        class_names=_class_names(recipe, found.classes, options.class_names or loaded.class_names),
        checkpoint_sha256=loaded.sha256,
        keep_float=recipe.keep_float,
    )
    return Network(module.eval(), recipe, card)


def identify(
    loaded: checkpoint.Checkpoint, options: NetworkOptions, name: str
) -> tuple[Recipe, Found]:
    """Return the recipe that a checkpoint belongs to, and what it says of it."""
    names = [options.recipe] if options.recipe else sorted(RECIPES.shipped())
    facts = Facts(loaded.modules, loaded.sha256, options.variant, options.settings)
    for recipe in map(RECIPES.load, names):
        found = as_found(recipe.family.identify(recipe.family.adapt(loaded.state), facts))
        if found is None:
            continue
        if found.build is None:
            return recipe, _as_stated(recipe, found, facts)
        return recipe, found
    state = loaded.state
    keys = ", ".join(list(state)[:3])
    raise CheckpointError(
        f"{name} is not a checkpoint of {' or '.join(names)}: its first keys are {keys}",
        fix="name the model's family with --recipe, by name or as a file of your own",
    )


def _as_stated(recipe: Recipe, found: Found, facts: Facts) -> Found:
    """Return what was found, with the variant that the user stated."""
    if facts.given:
        raise unknown_name(f"setting of {recipe.name}", next(iter(facts.given)), ())
    variant = facts.variant or found.variant
    if variant not in recipe.variants:
        raise unknown_name(f"variant of {recipe.name}", variant, recipe.variants)
    return replace(found, variant=variant)


def _class_names(recipe: Recipe, count: int, given: tuple[str, ...] | None) -> tuple[str, ...]:
    names = given or recipe.class_names(count)
    if len(names) != count:
        raise OptionError(
            f"{len(names)} class names for a model of {count} classes",
            fix="give one name per class, comma-separated, in the order of training",
        )
    return names
