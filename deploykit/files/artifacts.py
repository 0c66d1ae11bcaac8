"""Write and read files atomically, and an artifact with its sidecar JSON."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from importlib import metadata
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from deploykit import __version__
from deploykit.errors import InputError, OutputError
from deploykit.files import jsonfile, paths, schema, temporaries
from deploykit.values import SCHEMA_VERSION, Artifact, Json, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    Interface = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]

_CHUNK = 1 << 20
SIDECAR = schema.record(
    {
        "schema_version": schema.VERSION,
        "sha256": schema.text(),
        "inputs": schema.many(schema.text()),
        "outputs": schema.many(schema.text()),
        "parents": schema.mapping(schema.text()),
        "made_by": schema.mapping(schema.anything),
    }
)
_RECORDED = ("torch", "onnx", "onnxruntime", "numpy", "tensorrt-rtx-cu13", "tensorrt")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name `path` only if the block succeeds.

    A link stays, and what it points to is replaced. Raises: OutputError where the folder is absent
    or not writable, something other than a plain file is there, or the disk is full.
    """
    path = paths.target(path)
    try:
        temporary = temporaries.beside(path)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def made(folder: Path) -> Path:
    """Return a folder, which is there from now on. Raises: OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"cannot make the folder {folder}: {why}") from error
    return folder


def unwritable(path: Path, error: OSError) -> OutputError:
    """Return the error for a file that cannot be written."""
    return OutputError(
        f"cannot write {path}: {error.strerror or error}",
        fix="choose a folder that exists, is writable and has free space",
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_writable(path: Path) -> None:
    """Fail now rather than after the slow step. Raises: OutputError."""
    with contextlib.suppress(_Undo), replacing(path):
        raise _Undo


class _Undo(Exception):  # noqa: N818 - a signal, not an error
    """Leaves `replacing` without replacing anything."""


def sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file's content. Raises: InputError."""
    hasher = hashlib.sha256()
    paths.require_file(path, "data")
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    return hasher.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically. Raises: OutputError."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Json) -> None:
    """Write `data` with sorted keys, atomically. Raises: OutputError."""
    write_text(path, json.dumps(data, indent=1, sort_keys=True) + "\n")


def versions() -> dict[str, str]:
    """Return the installed version of every package whose version an artifact records."""
    found = {"deploykit": __version__}
    for name in _RECORDED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def sidecar(path: Path) -> Path:
    """Return where the description of `path` lies: `model.onnx` -> `model.onnx.json`."""
    return path.with_name(path.name + ".json")


def describe(
    path: Path,
    *,
    made_by: Mapping[str, Any],
    parents: Mapping[str, str] = MappingProxyType({}),
    interface: Interface = ((), ()),
    digest: str = "",
) -> Artifact:
    """Write the sidecar of `path`, a file just made, and return its artifact.

    parents: file name -> sha256 of each file that it was made from.
    interface: what it takes and what it gives.
    digest: the sha256 of `path`, where it is known already.
    """
    inputs, outputs = interface
    artifact = Artifact(
        path=path,
        sha256=digest or sha256(path),
        inputs=inputs,
        outputs=outputs,
        parents=dict(parents),
        made_by={**made_by, "versions": versions()},
    )
    write_json(
        sidecar(path),
        {
            "schema_version": SCHEMA_VERSION,
            "sha256": artifact.sha256,
            "inputs": [str(spec) for spec in inputs],
            "outputs": [str(spec) for spec in outputs],
            "parents": dict(artifact.parents),
            "made_by": dict(artifact.made_by),
        },
    )
    return artifact


def said(path: Path) -> Json:
    """Return what the sidecar of `path` says, whether or not it still fits. Raises: InputError."""
    return jsonfile.read(sidecar(path), SIDECAR, "the sidecar of a file")


def read(path: Path, *, digest: str = "") -> Artifact:
    """Return the artifact at `path` from its sidecar.

    digest: the sha256 of `path`, where it is known already.

    Raises: InputError where either file is absent or the file changed since it was described.
    """
    data = said(path)
    found = digest or sha256(path)
    if data["sha256"] != found:
        raise InputError(
            f"{path} is not the file that {sidecar(path).name} describes",
            expected=f"sha256 {data['sha256']}, found {found}",
            fix="make the file again, or delete the sidecar",
        )
    return Artifact(
        path=path,
        sha256=found,
        inputs=tuple(TensorSpec.parse(text) for text in data["inputs"]),
        outputs=tuple(TensorSpec.parse(text) for text in data["outputs"]),
        parents=data["parents"],
        made_by=data["made_by"],
    )
