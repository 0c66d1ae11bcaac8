"""What a training that is ended goes on from, in a file."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from deploykit.errors import InputError, OptionError
from deploykit.files import artifacts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploykit.values import Json

_SHARE = 0.05
"""Of the time of a training that its snapshots may take."""


class Resumable(Protocol):
    """A training that can be taken to where another one was."""

    @property
    def step(self) -> int:
        """Steps that are done."""

    @property
    def total(self) -> int:
        """Steps when it is at its end."""

    def state(self) -> Mapping[str, Any]:
        """Return where it is, in numbers, texts and tensors."""

    def restore(self, state: Json) -> None:
        """Take it to where `state` says."""


@dataclass
class Snapshots:
    """The file of one training."""

    path: Path
    made_of: Mapping[str, str]
    """What the training is made of, in words: another one is not gone on with."""
    _next: float = 0.0
    """When the next snapshot is due, on the monotonic clock."""

    def keep(self, run: Resumable) -> None:
        """Write where a training is, atomically, unless that was done not long before."""
        started = time.monotonic()
        if started < self._next or run.step == run.total:
            return
        with artifacts.replacing(self.path) as temporary:
            torch.save({"made_of": dict(self.made_of), "run": run.state()}, temporary)
        ended = time.monotonic()
        self._next = ended + (ended - started) / _SHARE

    def restore(self, run: Resumable) -> bool:
        """Return whether a training was taken to where the file has it.

        Raises: InputError for a file that is damaged or none; OptionError for one of another
        training.
        """
        if not self.path.exists():
            return False
        held = self._read()
        self._check(held.get("made_of"))
        try:
            run.restore(held["run"])
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise self._damaged(error) from error
        return True

    def _read(self) -> Json:
        try:
            held = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise self._damaged(error) from error
        if not isinstance(held, dict):
            raise self._damaged(TypeError(type(held).__name__))
        return held

    def _check(self, made_of: object) -> None:
        known = made_of if isinstance(made_of, dict) else {}
        names = {*known, *self.made_of}
        other = sorted(n for n in names if known.get(n) != self.made_of.get(n))
        if other:
            name = other[0]
            raise OptionError(
                f"{self.path} is the snapshot of another training: {', '.join(other)} "
                f"differ{'s' if len(other) == 1 else ''}",
                expected=f"{name} {str(known.get(name))[:100]}, "
                f"asked for {str(self.made_of.get(name))[:100]}",
                fix="ask for the same, or delete the snapshot to begin anew",
            )

    def _damaged(self, error: Exception) -> InputError:
        first = next(iter(str(error).splitlines()), "").split(". ")[0][:200]
        return InputError(
            f"{self.path} is no snapshot of a training, or it is damaged: {first}",
            fix="delete it to begin anew",
        )
