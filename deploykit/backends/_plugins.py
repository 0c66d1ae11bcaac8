"""Our ops in a TensorRT build and at load time: as plugins from Python, from a library, or not.

A graph with plugins is built without the functions that ONNX Runtime needs: a plugin that is
missing must be an error, not a silent fallback. The engine's sidecar says what it needs.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from deploykit import ops
from deploykit.errors import BackendError, DeployError, InputError, OptionError
from deploykit.files import artifacts
from deploykit.ops.plugin import NAMESPACE, OPS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from deploykit.values import Json

AUTO, NONE = "auto", "none"
How = Literal["python", "library", "none"]
"""Plugins made in Python; those of a shared library; standard ops in their place."""
_SOURCES = ("*.cu", "*.cuh")
_LIBRARY_ALONE = b"\n#if defined(DEPLOYKIT_TENSORRT)"
"""What follows in a source describes the op to a plugin library, and is no part of its kernels."""
_MISSING = "the engine was built with plugins"


@dataclass(frozen=True)
class Use:
    """What an engine has in place of our ops, as its sidecar keeps it."""

    how: How
    ops: Mapping[str, int] = field(default_factory=dict)
    """Op type -> how many layers."""
    versions: Mapping[str, str] = field(default_factory=dict)
    library: str = ""
    sha256: str = ""
    """Of the library, or of the kernels' sources."""


def chosen(choice: str, counts: Mapping[str, int]) -> Use:
    """Return what stands in place of the ops counted. Raises: OptionError, InputError.

    choice: `auto`, `none` or the path of a plugin library.
    """
    versions = {name: ops.everything()[name].version for name in counts}
    if choice == NONE:
        return Use("none", dict(counts), versions)
    if choice == AUTO:
        return Use("python", dict(counts), versions, sha256=sources_sha256(counts))
    path = Path(choice)
    if not path.is_file():
        raise OptionError(
            f"no such plugin library: {path}",
            expected=f"{AUTO}, {NONE} or the path of libdeploykit_plugins.so",
            fix="plugins/README.md says how to build it",
        )
    if not counts:
        raise OptionError(
            f"{path} would not be used: the model has none of our ops", fix="leave --plugins out"
        )
    return Use("library", dict(counts), versions, str(path.resolve()), artifacts.sha256(path))


def sources_sha256(names: Iterable[str] = ()) -> str:
    """Return the sha256 of the kernels' sources, which Python plugins are compiled from.

    names: op types; the sources beside the file of one that is not ours count too.
    """
    hasher = hashlib.sha256()
    known = ops.everything()
    own = {name: known[name].file for name in names if name in known} if names else {}
    folders = {file.parent for file in own.values() if file is not None} | {OPS.folder().resolve()}
    for folder in sorted(folders, key=lambda folder: (folder != OPS.folder().resolve(), folder)):
        for path in sorted(path for pattern in _SOURCES for path in folder.glob(pattern)):
            kernels, _, _ = path.read_bytes().partition(_LIBRARY_ALONE)
            hasher.update(path.name.encode() + b"\0" + kernels)
    return hasher.hexdigest()


def files(use: Use | None) -> tuple[str, ...]:
    """Return the files of the user's own ops among those that an engine has."""
    known, ours = ops.everything(), ops.shipped()
    names = sorted(() if use is None else use.ops.keys() - ours.keys())
    return tuple(str(known[name].file) for name in names)


def needed(engine: Path) -> Use | None:
    """Return what an engine needs, as its sidecar says; None: nothing, or it has no sidecar.

    Raises: BackendError where what it says is malformed.
    """
    try:
        said = artifacts.said(engine)["made_by"]["plugins"]
    except (DeployError, KeyError, TypeError):
        return None
    use = _use(said)
    if use is None:
        raise BackendError(
            f"the sidecar of {engine.name} does not say in a known form what plugins it has",
            expected="`how`, `ops`, `versions`, `library` and `sha256`, as `deploykit build` does",
            fix="build the engine again",
        )
    return None if use.how == "none" else use


def _use(said: object) -> Use | None:
    """Return what a sidecar says of plugins, None where it is malformed."""
    if not isinstance(said, dict) or said.keys() - {each.name for each in fields(Use)}:
        return None
    how, counts = said.get("how"), said.get("ops", {})
    texts = [said.get("library", ""), said.get("sha256", "")]
    if how not in get_args(How) or not isinstance(counts, dict):
        return None
    fine = all(isinstance(n, int) and n > 0 for n in counts.values())
    fine = fine and isinstance(said.get("versions", {}), dict)
    return Use(**said) if fine and all(isinstance(text, str) for text in texts) else None


def check(use: Use, engine: Path) -> Use:
    """Return what an engine needs as it is here. Raises: BackendError where it is another.

    A library is the one that the user named (`ops.library`), never one that the sidecar names.
    """
    given = ops.library()
    if use.how == "library":
        return replace(use, library=str(_same(use, engine, given)))
    if given is not None:
        raise BackendError(
            f"{engine.name} was built with plugins from Python, not with {given}",
            fix="leave --plugins out, or build the engine again with the library",
        )
    unknown = sorted(use.ops.keys() - ops.everything().keys())
    if unknown:
        raise BackendError(
            f"{engine.name} needs {', '.join(unknown)}, which is not known",
            expected="one of " + ", ".join(sorted(ops.everything())),
            fix="name the file of an op of your own: --op FILE",
        )
    if use.sha256 not in (sources_sha256(use.ops), sources_sha256()):
        raise BackendError(
            f"{_MISSING} from other kernel sources than those installed here",
            expected=f"sources of sha256 {use.sha256[:12]}",
            fix="install the deploykit that built it, or build the engine again",
        )
    return use


def _same(use: Use, engine: Path, given: Path | None) -> Path:
    """Return the library given, which is the engine's. Raises: BackendError, InputError."""
    name = PurePath(use.library).name
    if given is None:
        raise BackendError(
            f"{engine.name} needs the plugin library {name}",
            expected="the path of it: code is loaded only where you name it",
            fix=f"add --plugins {name}, with its folder",
        )
    if not given.is_file():
        raise InputError(f"no such plugin library: {given}")
    found = artifacts.sha256(given)
    if found != use.sha256:
        raise BackendError(
            f"{given} is not the library the engine was built with",
            expected=f"sha256 {use.sha256[:12]}, found {found[:12]}",
            fix="give that library, or build the engine again",
        )
    return given.resolve()


def register(trt: Any, use: Use, say: Callable[[str], None]) -> None:  # noqa: ANN401 - the module ships no types
    """Make the plugins known to TensorRT in this process. Raises: BackendError."""
    if use.how != "none" and not hasattr(trt, "IPluginV3"):
        raise BackendError(
            f"{trt.__name__} {trt.__version__} has no plugins of our kind",
            expected="TensorRT 10 or newer",
            fix="build with --plugins none",
        )
    if use.how == "python":
        if trt.__name__ in _loaded:
            raise _elsewhere(use.ops)
        from deploykit.backends import _python_plugins  # noqa: PLC0415 - torch-free, but seldom needed

        _python_plugins.register(trt, tuple(use.ops), say)
    elif use.how == "library":
        load(trt, Path(use.library))


def load(trt: Any, library: Path) -> None:  # noqa: ANN401 - the module ships no types
    """Load a plugin library into the registry, once. Raises: BackendError, InputError."""
    if not library.is_file():
        raise InputError(f"no such plugin library: {library}")
    digest, registry = artifacts.sha256(library), trt.get_plugin_registry()
    if _loaded.get(trt.__name__) == digest:
        return
    known = [c.name for c in registry.all_creators if c.plugin_namespace == NAMESPACE]
    if known:
        raise _elsewhere(known)
    try:
        handle = registry.load_library(str(library))
    except Exception as error:
        raise _unloadable(library, str(error)) from error
    if handle is None:
        raise _unloadable(library, "the registry refused it")
    _loaded[trt.__name__] = digest


_loaded: dict[str, str] = {}
"""TensorRT module -> sha256 of our library in its registry, which takes an op only once."""


def _elsewhere(ops: Iterable[str]) -> BackendError:
    return BackendError(
        f"{', '.join(sorted(ops))} came from elsewhere in this process already",
        expected="engines of one process with plugins of one origin",
        fix="open this engine in a process of its own, or build both with the same --plugins",
    )


def _unloadable(library: Path, reason: str) -> BackendError:
    return BackendError(
        f"{library} cannot be loaded as a plugin library: {reason}",
        expected="libdeploykit_plugins.so, built for this TensorRT and this machine",
        fix="build it again: plugins/README.md",
    )


def check_layers(trt: Any, network: Any, use: Use) -> None:  # noqa: ANN401 - native objects
    """Raise BackendError unless the parsed network has a plugin layer for each of our ops."""
    layers = (network.get_layer(i) for i in range(network.num_layers))
    kind = getattr(trt.LayerType, "PLUGIN_V3", None)  # absent before TensorRT 10
    found = sum(layer.type == kind for layer in layers)
    wanted = 0 if use.how == "none" else sum(use.ops.values())
    if found != wanted:
        ops = ", ".join(f"{count} x {name}" for name, count in sorted(use.ops.items()))
        raise BackendError(
            f"the parsed network has {found} plugin layers", expected=f"{wanted}: {ops}"
        )


def to_json(use: Use | None) -> Json | None:
    """Return plain JSON values, None for None."""
    return None if use is None else asdict(use)


def from_json(known: Mapping[str, Any] | None) -> Use | None:
    """Return what `Use.to_json` gave, None for None."""
    return None if known is None else Use(**{**known, "how": cast("How", known["how"])})
