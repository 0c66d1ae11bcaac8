"""A checkpoint to the network that was trained, with the contract of its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.errors import CheckpointError, OptionError, unknown_name
from deploykit.networks import checkpoint
from deploykit.recipes import metadata
from deploykit.recipes.metadata import ModelCard
from deploykit.recipes.recipe import RECIPES
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
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
    recipe, variant, classes = identify(loaded.state, options, path.name)
    state = recipe.family.adapt(loaded.state)
    module = recipe.family.build(variant, classes)
    checkpoint.fit(module, dict(state), name=f"{recipe.name} {variant}")
    preprocess = recipe.preprocess(variant, options.input_size)
    if any(side <= 0 or side % recipe.size_multiple for side in preprocess.size):
        raise OptionError(
            f"input size {'x'.join(map(str, preprocess.size))} does not fit {recipe.name}",
            expected=f"two positive multiples of {recipe.size_multiple}, such as 640x640",
        )
    card = ModelCard(
        recipe=metadata.recipe_name(options.recipe, recipe),
        variant=variant,
        task=recipe.task,
        preprocess=preprocess,
        class_names=_class_names(recipe, classes, options.class_names or loaded.class_names),
        checkpoint_sha256=loaded.sha256,
        keep_float=recipe.keep_float,
    )
    return Network(module.eval(), recipe, card)


def identify(
    state: Mapping[str, torch.Tensor], options: NetworkOptions, name: str
) -> tuple[Recipe, str, int]:
    """Return the recipe, variant and number of classes that a state dict belongs to."""
    names = [options.recipe] if options.recipe else sorted(RECIPES.shipped())
    for recipe in map(RECIPES.load, names):
        found = recipe.family.identify(recipe.family.adapt(state))
        if found is None:
            continue
        variant = options.variant or found[0]
        if variant not in recipe.variants:
            raise unknown_name(f"variant of {recipe.name}", variant, recipe.variants)
        return recipe, variant, found[1]
    keys = ", ".join(list(state)[:3])
    raise CheckpointError(
        f"{name} is not a checkpoint of {' or '.join(names)}: its first keys are {keys}",
        fix="name the model's family with --recipe, by name or as a file of your own",
    )


def _class_names(recipe: Recipe, count: int, given: tuple[str, ...] | None) -> tuple[str, ...]:
    names = given or recipe.class_names(count)
    if len(names) != count:
        raise OptionError(
            f"{len(names)} class names for a model of {count} classes",
            fix="give one name per class, comma-separated, in the order of training",
        )
    return names
