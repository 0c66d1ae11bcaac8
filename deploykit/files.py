"""Load a recipe, plugin or source from a file: ours by name, a user's own by path."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from typing import TypeVar

from deploykit.errors import DeployError, OptionError, unknown_name
from deploykit.plugin import Plugin
from deploykit.recipe import Dataset, Recipe, Source

V = TypeVar("V")
_PACKAGE = Path(__file__).parent
_FOLDERS = {"recipe": "exporters", "plugin": "plugins", "source": "calib"}


def folder(kind: str) -> Path:
    """Return the shipped folder for `kind`: recipe, plugin or source."""
    name = _FOLDERS[kind]
    installed = _PACKAGE / f"_{name}"
    return installed if installed.is_dir() else _PACKAGE.parent / name


def shipped(kind: str) -> dict[str, Path]:
    """Return name -> file of everything of `kind` that deploykit ships."""
    return {f.stem: f for f in sorted(folder(kind).glob("*.py")) if not f.stem.startswith("_")}


def recipe(name: str) -> Recipe:
    """Return the recipe called `name`, or the one in the file `name`. Raises: OptionError."""
    return _load("recipe", name, Recipe)


def plugin(name: str) -> Plugin:
    """Return the plugin called `name`, or the one in the file `name`. Raises: OptionError."""
    return _load("plugin", name, Plugin)


def source(name: str) -> Source:
    """Return the source called `name`, or the one in the file `name`. Raises: OptionError."""
    return _load("source", name, Source)


def dataset(spec: str) -> Dataset:
    """Return the data set that `spec` names: `source:location`, e.g. `coco:/data/val2017`.

    Raises: OptionError, DataError.
    """
    name, colon, location = spec.partition(":")
    if not colon:
        raise OptionError(
            f"not a data source: {spec!r}",
            expected="SOURCE:LOCATION, with SOURCE one of " + ", ".join(shipped("source")),
        )
    return source(name).open(location)


def _load(kind: str, name: str, expected: type[V]) -> V:
    path = Path(name) if name.endswith(".py") else shipped(kind).get(name)
    if path is None:
        raise unknown_name(kind, name, shipped(kind))
    if not path.is_file():
        raise OptionError(f"no such {kind} file: {path}")
    value = _module_value(kind, path.resolve())
    if not isinstance(value, expected):
        raise OptionError(
            f"{path} defines no {kind}",
            expected=f"`{kind} = {expected.__name__}(...)` at the top level",
        )
    return value


@functools.cache
def _module_value(kind: str, path: Path) -> object:
    module_name = f"_deploykit_{kind}_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise OptionError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look their module up
    try:
        spec.loader.exec_module(module)
    except DeployError:
        raise
    except Exception as error:
        raise OptionError(f"{path} failed to load: {type(error).__name__}: {error}") from error
    return getattr(module, kind, None)
