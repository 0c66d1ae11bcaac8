"""What an exported ONNX file says about itself, so that later stages never guess."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING

from deploykit.data.preprocess import Preprocess
from deploykit.errors import ModelError, unknown_name
from deploykit.files import jsonfile
from deploykit.recipes import identity
from deploykit.recipes.card_schema import CARD
from deploykit.recipes.recipe import RECIPES, KeepFloat
from deploykit.tasks.outputs import Output
from deploykit.values import SCHEMA_VERSION, Json, Precision

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from deploykit.recipes.identity import Settings
    from deploykit.recipes.recipe import Recipe

_KEY = "deploykit"
_OWN = ".py"
"""How the `recipe` of a card ends that names a user's file: the file's name, without folders."""


@dataclass(frozen=True)
class ModelCard:
    """The contract of a model: how to feed it and how to read what it returns."""

    recipe: str
    """As `recipe_name` gives it: nothing that a file says is run, so a user's own is only named.
    Empty: no recipe made the file."""
    variant: str
    task: str
    preprocess: Preprocess
    class_names: tuple[str, ...]
    checkpoint_sha256: str
    keep_float: tuple[KeepFloat, ...] = ()
    settings: Settings = field(default_factory=dict)
    """What the network was set up with, and who said so."""
    outputs: tuple[Output, ...] = ()
    """What the numbers of each output mean; none in files of versions that did not say it."""

    def __repr__(self) -> str:
        """Return what tells one card from another."""
        made_by = f"{self.recipe} {self.variant}".strip() or "no recipe"
        sizes = ", ".join(f"{height}x{width}" for height, width in self.preprocess.sizes)
        return f"<ModelCard {made_by}, {self.task}, {len(self.class_names)} classes, {sizes}>"

    def to_json(self) -> Json:
        """Return the card as plain JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "recipe": self.recipe,
            "variant": self.variant,
            "task": self.task,
            "preprocess": self.preprocess.to_json(),
            "class_names": list(self.class_names),
            "checkpoint_sha256": self.checkpoint_sha256,
            "keep_float": [[k.pattern, k.reason, k.precision.value] for k in self.keep_float],
            "settings": {name: [s.value, s.origin] for name, s in self.settings.items()},
            "outputs": [[output.name, output.kind] for output in self.outputs],
        }

    @classmethod
    def from_json(cls, data: Json) -> ModelCard:
        """Return the card that `to_json` wrote. Raises: ModelError."""
        jsonfile.fitted(data, CARD, "a model's card", "the deploykit metadata", error=ModelError)
        return cls(
            recipe=data["recipe"],
            variant=data["variant"],
            task=data["task"],
            preprocess=Preprocess.from_json(data["preprocess"]),
            class_names=tuple(data["class_names"]),
            checkpoint_sha256=data["checkpoint_sha256"],
            keep_float=tuple(
                KeepFloat(pattern, reason, Precision(precision))
                for pattern, reason, precision in data["keep_float"]
            ),
            settings={
                name: identity.recorded(value, origin)
                for name, (value, origin) in data.get("settings", {}).items()
            },
            outputs=tuple(Output(name, kind) for name, kind in data.get("outputs", ())),
        )


def write(properties: MutableMapping[str, str], card: ModelCard) -> None:
    """Store `card` in a model's `metadata_props`."""
    properties[_KEY] = json.dumps(card.to_json(), sort_keys=True)


def read(properties: Mapping[str, str]) -> ModelCard | None:
    """Return the card in a model's `metadata_props`, None where there is none.

    Raises: ModelError where it is damaged.
    """
    text = properties.get(_KEY)
    if text is None:
        return None
    if len(text) > jsonfile.LARGEST:
        raise ModelError(f"the deploykit metadata has {len(text)} letters")
    return ModelCard.from_json(jsonfile.parse(text, "the deploykit metadata", error=ModelError))


def foreign(card: ModelCard | None) -> bool:
    """Return whether a file with this card is of another exporter than ours."""
    ours = card is not None and (card.recipe in RECIPES.shipped() or card.recipe.endswith(_OWN))
    return not ours


def recipe_name(given: str | None, recipe: Recipe) -> str:
    """Return what a card calls `recipe`, which the user asked for as `given`."""
    return PurePath(given).name if given is not None and given.endswith(_OWN) else recipe.name


def check_recipe(card: ModelCard) -> None:
    """Check that a card names a shipped recipe, or none; a file runs where the user names it.

    Raises: ModelError, OptionError.
    """
    if not card.recipe or card.recipe in RECIPES.shipped():
        return
    if card.recipe.endswith(_OWN):
        name = PurePath(card.recipe).name
        raise ModelError(
            f"the model was exported with a recipe file of its own, {name}, which is code",
            expected="the name of a shipped recipe, or that file named by you",
            fix=f"if you trust it: --recipe path/to/{name}",
        )
    raise unknown_name("recipe in the model's card:", card.recipe, RECIPES.shipped())
