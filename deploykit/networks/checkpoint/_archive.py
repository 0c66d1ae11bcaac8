"""The zip archive that `torch.save` writes: checked before it is read."""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import IO, TYPE_CHECKING, Any

from deploykit.errors import CheckpointError
from deploykit.networks.checkpoint import _bounds
from deploykit.networks.checkpoint._persistent import stored

if TYPE_CHECKING:
    from pathlib import Path

_GIB = 1 << 30
_MODULE = "the checkpoint that training wrote, or torch.save(model.state_dict(), FILE)"
_EXPORTED = ("/archive_format", "/models/model.json", "serialized_exported_program.json")
"""Ends of names in what torch.export saves."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""LZMA's own header can ask for 4 GiB of memory."""


class Archive:
    """An opened checkpoint archive: `prefix/data.pkl` and `prefix/data/<key>`."""

    def __init__(self, path: Path) -> None:
        """Open and check the archive. Raises: CheckpointError."""
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise _damaged(path, error) from error
        self._path = path
        self._last = ("", b"")
        try:
            self._check()
            self._prefix = self._find()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def _check(self) -> None:
        packed = self._path.stat().st_size
        unpacked = sum(info.file_size for info in self._zip.infolist())
        if unpacked > min(_bounds.FREE + _bounds.RATIO * packed, _bounds.MOST):
            raise CheckpointError(
                f"{self._path} would unpack from {packed / _GIB:.3g} to {unpacked / _GIB:.3g} GiB",
                expected=f"at most {_bounds.RATIO} times its size and "
                f"{_bounds.MOST // _GIB} GiB: torch.save stores weights uncompressed",
                fix="get the checkpoint from its author again; keep only the weights if it is real",
            )
        if any(info.compress_type not in _METHODS for info in self._zip.infolist()):
            raise CheckpointError(
                f"{self._path} is compressed in a way that torch.save never uses",
                expected=_MODULE,
                fix="unpack it, and give the checkpoint inside",
            )

    def _find(self) -> str:
        """Return the folder that holds data.pkl."""
        names = self._zip.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise CheckpointError(
                f"{self._path} is a TorchScript program",
                expected=_MODULE,
                fix="keep its weights alone: torch.save(torch.jit.load(FILE).state_dict(), NEW)",
            )
        if any(name.endswith(_EXPORTED) for name in names):
            raise CheckpointError(
                f"{self._path} is a program of torch.export",
                expected=_MODULE,
                fix="keep its weights alone: torch.save(torch.export.load(FILE).state_dict, NEW)",
            )
        found = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(found) != 1:
            raise CheckpointError(
                f"{self._path} is a zip archive without one data.pkl: it holds "
                + (", ".join(names[:3]) or "nothing"),
                expected=_MODULE,
                fix="unpack it, and give the checkpoint inside",
            )
        return found[0].removesuffix("data.pkl")

    def pickle(self) -> tuple[IO[bytes], int]:
        """Return the pickle that describes the saved object, and its bytes.

        Raises: CheckpointError.
        """
        content = self._read("data.pkl")
        return io.BytesIO(content), len(content)

    def persistent(self, identity: Any) -> Any:  # noqa: ANN401 - whatever the pickle refers to
        """Return the data that the pickle refers to. Raises: FormatError."""
        return stored(self, identity)

    def storage(self, key: str) -> bytes:
        """Return the bytes of the storage called `key`. Raises: CheckpointError."""
        if self._last[0] != key:  # neighbours often share one storage
            self._last = (key, self._read(f"data/{key}"))
        return self._last[1]

    def is_big_endian(self) -> bool:
        """Return whether the storages were written by a big-endian machine."""
        name = f"{self._prefix}byteorder"
        return name in self._zip.namelist() and self._read("byteorder") != b"little"

    def _read(self, name: str) -> bytes:
        try:
            info = self._zip.getinfo(self._prefix + name)
            with self._zip.open(info) as file:
                content = file.read(info.file_size)  # an unbounded read unpacks what is there
                file.read(1)  # so that the end, and with it the checksum, is seen
        except KeyError as error:
            raise CheckpointError(
                f"{self._path} lacks {name}: it is damaged", fix="download the checkpoint again"
            ) from error
        except (*_BROKEN, RuntimeError, EOFError, ValueError) as error:
            raise _damaged(self._path, error) from error
        if len(content) != info.file_size:
            raise _damaged(self._path, EOFError(f"{name} is cut off"))
        return content


_BROKEN = (zipfile.BadZipFile, OSError, zlib.error, NotImplementedError)


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is a damaged or cut-off checkpoint: {error}",
        expected="the whole file, as torch.save wrote it",
        fix="copy or download it again, and compare its size",
    )
