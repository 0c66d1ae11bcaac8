"""Extension files: each defines one named value; ours are known by name, a user's own by path."""

from __future__ import annotations

import functools
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from deploykit.errors import DeployError, OptionError, not_installed, unknown_name

V = TypeVar("V")
_PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Kind(Generic[V]):
    """One kind of extension file: what it defines, and where ours lie."""

    name: str
    """Of the value that a file defines at its top level: recipe, plugin or source."""
    directory: str
    """Of the files that deploykit ships, beside the package or, installed, inside it."""
    type: type[V]

    def folder(self) -> Path:
        """Return the folder of the files that deploykit ships."""
        installed = _PACKAGE / f"_{self.directory}"
        return installed if installed.is_dir() else _PACKAGE.parent / self.directory

    def shipped(self) -> dict[str, Path]:
        """Return name -> file of everything of this kind that deploykit ships."""
        files = sorted(self.folder().glob("*.py"))
        return {file.stem: file for file in files if not file.stem.startswith("_")}

    def load(self, name: str) -> V:
        """Return the value called `name`, or the one in the file `name`. Raises: OptionError."""
        path = Path(name) if name.endswith(".py") else self.shipped().get(name)
        if path is None:
            raise unknown_name(self.name, name, self.shipped())
        if not path.is_file():
            raise OptionError(f"no such {self.name} file: {path}")
        value = _module_value(self.name, path.resolve())
        if not isinstance(value, self.type):
            raise OptionError(
                f"{path} defines no {self.name}",
                expected=f"`{self.name} = {self.type.__name__}(...)` at the top level",
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
    except ModuleNotFoundError as error:
        raise not_installed(str(path), error.name) from error
    except Exception as error:
        raise OptionError(f"{path} failed to load: {type(error).__name__}: {error}") from error
    return getattr(module, kind, None)
