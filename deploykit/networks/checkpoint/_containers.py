"""A checkpoint file, whatever it is called, to the object that was saved."""

from __future__ import annotations

import contextlib
import mmap
import re
import struct
from typing import TYPE_CHECKING, Any

from deploykit.errors import CheckpointError
from deploykit.files import contents
from deploykit.networks.checkpoint import _hdf5, _pickles, _safetensors, _tars
from deploykit.networks.checkpoint._archive import Archive
from deploykit.networks.checkpoint._records import CodeError, FormatError
from deploykit.networks.checkpoint._streams import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deploykit.errors import InputError

WHAT = "a checkpoint (what torch.save, safetensors or Keras wrote, or a pickle of arrays)"
_PICKLE = b"\x80"
_ONNX = rb"\x08[\x03-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]"
"""How an ONNX file begins: its version, then a text, the graph or the operators."""
_BROKEN = (
    *(IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError),
    *(struct.error, RuntimeError, NotImplementedError),
)
"""What damaged content can cause in the readers, beside their own errors."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Yield the object saved in `path`; its tensors can be read until the block ends.

    What the file is, its first bytes say. Raises: CheckpointError, also for what its content makes
    the block raise.
    """
    first = contents.head(path, CheckpointError, WHAT)
    with _explained(path, first), contextlib.ExitStack() as stack:
        yield _read(path, first, stack)


@contextlib.contextmanager
def _explained(path: Path, first: bytes) -> Iterator[None]:
    """Turn what a file that begins with `first` makes the readers raise into CheckpointError."""
    try:
        yield
    except CheckpointError as error:
        if str(path) in error.found:
            raise
        found = f"{path}: {error.found}"
        raise CheckpointError(found, expected=error.expected, fix=error.fix) from error
    except CodeError as error:
        raise _refused(path, error.name) from error
    except (FormatError, *_BROKEN) as error:
        known = first.startswith((_PICKLE, contents.ZIP, _hdf5.MAGIC)) or _tars.is_tar(first)
        if not known and not _safetensors.is_safetensors(first):
            raise _foreign(path, first) from error
        raise _unreadable(path, str(error)) from error
    except MemoryError as error:
        raise _unreadable(path, "it takes more memory than there is") from error


def _read(path: Path, first: bytes, stack: contextlib.ExitStack) -> Any:  # noqa: ANN401 - any object
    if first.startswith(contents.ZIP):
        archive = stack.enter_context(contextlib.closing(Archive(path)))
        if archive.is_big_endian():
            raise CheckpointError(f"{path} was written by a big-endian machine", expected=WHAT)
        file, size = archive.pickle()
        return _pickles.read(file, size, persistent=archive.persistent)
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    view = memoryview(content)
    if _tars.is_tar(first):
        return _tars.read(view)
    if _safetensors.is_safetensors(first):
        return _safetensors.read(view)
    if first.startswith(_hdf5.MAGIC):
        return _hdf5.read(view)
    if not first.startswith(_PICKLE) and contents.recognise(first)[1]:
        raise _foreign(path, first)
    return Stream(view, content).read()  # type: ignore[arg-type]  # it reads as a file does


def _foreign(path: Path, first: bytes) -> InputError:
    """Return the error for a file that holds no checkpoint; of an ONNX file that it is one."""
    if re.match(_ONNX, first):
        return CheckpointError(
            f"{path} is an ONNX model, as it begins like one",
            expected=WHAT,
            fix="it needs no export: give it to describe, quantize or build",
        )
    return contents.foreign(path, first, CheckpointError, WHAT)


def _refused(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds code: it wants to run {name}. Nothing of it was run",
        expected="weights, and objects that only hold them",
        fix="if you trust its author, load it in their code and keep only the weights: "
        "torch.save(model.state_dict(), FILE)",
    )


def _unreadable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is a damaged or cut-off checkpoint, or one of an unknown format: {reason}",
        expected=WHAT,
        fix="copy or download it again; save only the weights: "
        "torch.save(model.state_dict(), FILE)",
    )
