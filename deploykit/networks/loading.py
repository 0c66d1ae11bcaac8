"""A checkpoint to the network that was trained, with the contract of its recipe."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from deploykit import tasks
from deploykit.data import fitting
from deploykit.errors import CheckpointError, DeployError, unknown_name
from deploykit.files import extensions
from deploykit.networks import checkpoint, class_names, pickled, reparam, uncarried, unset
from deploykit.recipes import metadata
from deploykit.recipes.candidates import candidates
from deploykit.recipes.identity import Facts, Found
from deploykit.recipes.identity import found as as_found
from deploykit.recipes.metadata import ModelCard
from deploykit.recipes.recipe import RECIPES, checked
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from deploykit.data.preprocess import Preprocess
    from deploykit.recipes.recipe import Recipe, StateDict, Variant

INPUT = "images"
BATCH = "batch"


@dataclass(frozen=True)
class NetworkOptions:
    """What the user may decide; None: found out from the checkpoint or the recipe."""

    recipe: str | None = None
    variant: str | None = None
    input_size: tuple[int, int] | None = None
    canvases: tuple[tuple[int, int], ...] = ()
    """Further sizes beside `input_size`, see `Preprocess.canvases`."""
    images: tuple[tuple[int, int], ...] = ()
    """Height and width of images that the input sizes are chosen for, see `fitting.fitted`."""
    class_names: tuple[str, ...] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    """What the network is set up with, where the file does not say: name -> text."""
    protocol: str | None = None
    """How images are prepared, see `Variant.protocols`."""


@dataclass(frozen=True)
class Network:
    """A trained network with its contract."""

    module: nn.Module
    """As it was trained (branches unfolded), in eval mode."""
    recipe: Recipe
    card: ModelCard
    notes: tuple[str, ...] = ()
    """Which weights of the file were taken, and what was assumed where it does not say."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return what the network takes: the images, then what its recipe adds."""
        preprocess = self.card.preprocess
        images = TensorSpec(INPUT, "float32", (BATCH, 3, *preprocess.size))
        return (images, *self.recipe.extra_inputs(preprocess))

    def at(self, size: tuple[int, int]) -> Network:
        """Return the network for images of this size alone."""
        preprocess = replace(self.card.preprocess, size=size, canvases=())
        return replace(self, card=replace(self.card, preprocess=preprocess))


def load_network(path: Path, options: NetworkOptions) -> Network:
    """Return the network of a checkpoint with its weights loaded.

    Of several sets of weights in the file, the first is taken that a recipe knows and that fits.

    Raises: CheckpointError, OptionError.
    """
    misfits: dict[str, CheckpointError] = {}
    offered: list[checkpoint.Checkpoint] = []
    for loaded in checkpoint.candidates(path):
        offered.append(loaded)
        try:
            known = identify(loaded, options)
            if known is not None:
                network = _network(loaded, options, *known)
                passed = [f"{where} not used: {why.found}" for where, why in misfits.items()]
                return replace(network, notes=(*loaded.notes, *passed, *network.notes))
        except CheckpointError as error:
            misfits.setdefault(f"the weights under {loaded.place!r}", error)
    if misfits:
        raise next(iter(misfits.values()))
    raise _unknown(path.name, offered[0], options)


def _network(
    loaded: checkpoint.Checkpoint, options: NetworkOptions, recipe: Recipe, found: Found
) -> Network:
    """Return the network of a recipe with the weights in it.

    Raises: CheckpointError, OptionError.
    """
    state = adapted(recipe, loaded.state)
    variant = recipe.variant(found.like or found.variant)
    preprocess, sizes = _preprocess(variant, found, options)
    with extensions.blamed(f"recipe {recipe.name}"), unset.Unset():
        module = (
            found.build()
            if found.build
            else recipe.build(found.variant, found.classes, preprocess.size)
        )
    module = reparam.as_stored(module.eval(), state.keys())
    name = f"{recipe.name} {found.variant}"
    try:
        checkpoint.fit(module, dict(state), name=name)
    except CheckpointError as error:
        fix = error.fix or _advice(loaded, options, recipe, found)
        said = error.found + ("" if error.fix else _uncarried(loaded))
        raise CheckpointError(said, expected=error.expected, fix=fix) from error
    pickled.settle(module, loaded.modules, pickled.paths(loaded.state, state))
    names, said = class_names.chosen(recipe, found, options.class_names, loaded.class_names)
    card = ModelCard(
        recipe=metadata.recipe_name(options.recipe, recipe),
        variant=found.variant,
        task=tasks.name(recipe.task),
        preprocess=preprocess,
        class_names=names,
        checkpoint_sha256=loaded.sha256,
        keep_float=variant.keep_float,
        settings=found.settings,
        outputs=recipe.outputs,
    )
    return Network(module.eval(), recipe, card, tuple(filter(None, (said, found.assumed, sizes))))


def identify(loaded: checkpoint.Checkpoint, options: NetworkOptions) -> tuple[Recipe, Found] | None:
    """Return the recipe that a checkpoint belongs to, and what it says of it; None: no recipe.

    Raises: CheckpointError, OptionError.
    """
    facts = Facts(loaded.modules, loaded.sha256, options.variant, options.settings, loaded.facts)
    names = [options.recipe] if options.recipe else candidates(loaded.state)
    for recipe in map(RECIPES.load, names):
        state = adapted(recipe, loaded.state)
        with extensions.blamed(f"recipe {recipe.name}"):
            found = as_found(recipe.identify(state, facts))
        if found is not None:
            return recipe, found if found.build else _as_stated(recipe, found, facts)
    return None


def _tried(options: NetworkOptions) -> list[str]:
    return [options.recipe] if options.recipe else sorted(RECIPES.shipped())


def _unknown(name: str, loaded: checkpoint.Checkpoint, options: NetworkOptions) -> CheckpointError:
    """Return the error for weights that no recipe knows, with what the file says they are."""
    keys = ", ".join(key[:_LONGEST] for key in list(loaded.state)[:3])
    holds = f"its first keys are {keys}"
    if loaded.kind:
        holds = f"it holds a pickled {loaded.kind}, whose first keys are {keys}"
    holds += _uncarried(loaded)
    other = identify(loaded, replace(options, recipe=None)) if options.recipe else None
    if inner := None if other else _inner(loaded, options):
        return CheckpointError(
            f"{name} is not a checkpoint of {' or '.join(_tried(options))}: {holds}",
            expected=f"the weights under {inner!r} alone: the others are no copies of them, and "
            "not named as a loss or a metric",
            fix=f"save them: torch.save(model.{inner}.state_dict(), FILE)",
        )
    return CheckpointError(
        f"{name} is not a checkpoint of {' or '.join(_tried(options))}: {holds}",
        expected=f"a checkpoint of {other[0].name}, as this is one" if other else "",
        fix="leave --recipe out" if other else _OWN_RECIPE,
    )


def _uncarried(loaded: checkpoint.Checkpoint) -> str:
    """Return what is said of parts that no network of ours has; nothing where none is known."""
    found = uncarried.parts(loaded.state)
    return f"; not carried: {', '.join(found)}" if found else ""


def _inner(loaded: checkpoint.Checkpoint, options: NetworkOptions) -> str | None:
    """Return under which first name a network of ours is, beside others; None: under none."""
    firsts = dict.fromkeys(name.partition(".")[0] for name in loaded.state)
    for first in list(firsts)[:_FIRSTS] if len(firsts) > 1 else ():
        prefix = f"{first}."
        state = {k.removeprefix(prefix): v for k, v in loaded.state.items() if k.startswith(prefix)}
        try:
            if state and identify(replace(loaded, state=state), options):
                return first
        except DeployError:
            continue
    return None


_FIRSTS = 16
"""First names that are looked under."""
_OWN_RECIPE = "write a recipe for this network (see exporters/README.md): --recipe ./my_model.py"
_LONGEST = 100  # characters of a name in a message


def _advice(
    loaded: checkpoint.Checkpoint, options: NetworkOptions, recipe: Recipe, found: Found
) -> str:
    """Return what can be done where weights do not fit the network they were taken for."""
    if options.variant is None:
        return f"no variant of {recipe.name} has these weights: {_OWN_RECIPE}"
    try:
        known = identify(loaded, replace(options, variant=None))
    except CheckpointError:
        known = None
    if known is None or known[1].variant == found.variant:
        return f"no variant of {recipe.name} has these weights: {_OWN_RECIPE}"
    return f"leave --variant out: by their shapes they are those of {known[1].variant}"


def _as_stated(recipe: Recipe, found: Found, facts: Facts) -> Found:
    """Return what was found, with the variant that the user stated."""
    if facts.given:
        raise unknown_name(f"setting of {recipe.name}", next(iter(facts.given)), ())
    if facts.variant is None and found.variant not in recipe.variants:
        raise CheckpointError(
            f"the weights are those of {found.variant}, which is no variant of {recipe.name}",
            expected="one of " + ", ".join(sorted(recipe.variants)),
            fix=_OWN_RECIPE,
        )
    variant = facts.variant or found.variant
    recipe.variant(variant)
    return replace(found, variant=variant)


def adapted(recipe: Recipe, state: StateDict) -> StateDict:
    """Return a state dict with the names of the recipe's network."""
    with extensions.blamed(f"recipe {recipe.name}"):
        return recipe.adapt(state)


def _preprocess(variant: Variant, found: Found, options: NetworkOptions) -> tuple[Preprocess, str]:
    """Return how images are prepared, and what was chosen for the images of the options."""
    make = found.preprocess or variant.sized
    made, said = make(options.input_size), ""
    if options.images:
        fitted = fitting.fitted(made, options.images, variant.size_multiple or 1)
        made, said = fitted.preprocess, str(fitted)
    elif options.canvases:
        made = replace(made, canvases=options.canvases)
    if options.protocol is not None:
        made = variant.protocol(options.protocol).prepared(made)
    return checked(made, variant), said
