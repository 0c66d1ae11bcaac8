"""The zip archive that `torch.save` writes: checked before it is read."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

from deploykit.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30
MAX_UNPACKED = 16 * GIB
"""Bytes that a checkpoint may hold, optimizer state and all."""
_FREE = 256 << 20
"""Bytes up to which nothing is suspicious: they fit into any machine's memory."""
_RATIO = 4
"""Weights hardly compress; whoever zips them gains 10 %, a bomb gains a factor of 1000."""
MAX_PICKLE = 64 << 20
"""Bytes of the pickle proper: it names the tensors, whose numbers lie in files of their own."""
_MODULE = "the checkpoint that training wrote, or torch.save(model.state_dict(), FILE)"


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
            self._check_size()
            self._prefix = self._find()
            self._check_pickle()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def _check_size(self) -> None:
        packed = self._path.stat().st_size
        unpacked = sum(info.file_size for info in self._zip.infolist())
        if unpacked > max(_FREE, _RATIO * packed) or unpacked > MAX_UNPACKED:
            raise CheckpointError(
                f"{self._path} would unpack from {packed / GIB:.3g} to {unpacked / GIB:.3g} GiB",
                expected=f"at most {_RATIO} times its size and {MAX_UNPACKED // GIB} GiB: "
                "torch.save stores weights uncompressed",
                fix="get the checkpoint from its author again; keep only the weights if it is real",
            )

    def _find(self) -> str:
        """Return the folder that holds data.pkl."""
        names = self._zip.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise CheckpointError(f"{self._path} is a TorchScript program", expected=_MODULE)
        found = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(found) != 1:
            raise CheckpointError(
                f"{self._path} is a zip archive without one data.pkl: it holds "
                + (", ".join(names[:3]) or "nothing"),
                expected=_MODULE,
                fix="unpack it, and give the checkpoint inside",
            )
        return found[0].removesuffix("data.pkl")

    def _check_pickle(self) -> None:
        size = self._zip.getinfo(f"{self._prefix}data.pkl").file_size
        if size > MAX_PICKLE:
            raise CheckpointError(
                f"the pickle in {self._path} has {size} bytes",
                expected=f"at most {MAX_PICKLE}: tensors are stored beside it",
                fix="save only the weights: torch.save(model.state_dict(), FILE)",
            )

    def pickle(self) -> bytes:
        """Return the pickle that describes the saved object. Raises: CheckpointError."""
        return self._read("data.pkl")

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
            return self._zip.read(self._prefix + name)
        except KeyError as error:
            raise CheckpointError(
                f"{self._path} lacks {name}: it is damaged", fix="download the checkpoint again"
            ) from error
        except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, ValueError) as error:
            raise _damaged(self._path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is a damaged or cut-off checkpoint: {error}",
        expected="the whole file, as torch.save wrote it",
        fix="copy or download it again, and compare its size",
    )
