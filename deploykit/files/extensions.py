"""Extension files: each defines one named value; ours are known by name, a user's own by path."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from deploykit.errors import DeployError, OptionError, not_installed, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@contextlib.contextmanager
def blamed(what: str) -> Iterator[None]:
    """Turn an unforeseen error of an extension's own code into one that names its file and line.

    what: whose code it is, such as `recipe my_model`. Raises: OptionError.
    """
    try:
        yield
    except DeployError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename in _files]
        last = (own or frames)[-1]
        raise OptionError(
            f"{what} failed in {last.filename}, line {last.lineno}, in {last.name}: "
            f"{type(error).__name__}: {error}",
            fix="mend that file: the rest of deploykit only called it",
        ) from error


_files: set[str] = set()
"""Extension files that were loaded, as tracebacks name them."""


@functools.cache
def _module_value(kind: str, path: Path) -> object:
    module_name = f"_deploykit_{kind}_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise OptionError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    _files.add(str(path))
    sys.modules[module_name] = module  # dataclasses and pickling look their module up
    try:
        spec.loader.exec_module(module)
    except DeployError:
        raise
    except ModuleNotFoundError as error:
        raise not_installed(str(path), error.name) from error
    except (Exception, SystemExit) as error:
        raise OptionError(f"{path} failed to load: {type(error).__name__}: {error}") from error
    return getattr(module, kind, None)
