"""Every error that deploykit raises on purpose.

DeployError                 exit 2   base: one message, never a traceback
|- InputError               exit 2   a file or an option the user gave is not usable
|  |- OptionError                    unknown name, impossible combination
|  |- CheckpointError                unreadable, unsafe or mismatching checkpoint
|  |- ModelError                     unreadable ONNX, or one with the wrong interface
|  |- DataError                      images or annotations that cannot be read
|  `- StaleTableError                a calibration table made for another model
|- OutputError              exit 2   the result cannot be written
|- BackendError             exit 2   a backend is absent, or failed
`- ProofError               exit 1   a proof said no: outputs differ, precision not honoured
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class DeployError(Exception):
    """An error whose message states what was found, what was expected and what to do."""

    exit_code = 2

    def __init__(self, found: str, *, expected: str = "", fix: str = "") -> None:
        """Keep the three parts, so that `--json` can print them apart."""
        super().__init__(found)
        self.found, self.expected, self.fix = found, expected, fix

    def __str__(self) -> str:
        """Return the parts that are present, one line each."""
        parts = (("", self.found), ("expected: ", self.expected), ("to fix: ", self.fix))
        return "\n".join(label + text for label, text in parts if text)


class InputError(DeployError):
    """A file or an option the user gave is not usable."""


class OptionError(InputError):
    """An unknown name or an impossible combination of options."""


class CheckpointError(InputError):
    """A checkpoint that is unreadable, unsafe, or does not fit the model."""


class ModelError(InputError):
    """An ONNX file that is unreadable or has the wrong interface."""


class DataError(InputError):
    """Images or annotations that cannot be read."""


class StaleTableError(InputError):
    """A calibration table that was made for another model."""


class OutputError(DeployError):
    """A result that cannot be written."""


class BackendError(DeployError):
    """A backend that is absent, or that failed."""


class ProofError(DeployError):
    """A proof that said no: outputs differ, or a precision was not honoured."""

    exit_code = 1


_PACKAGES = {
    "torch": "torch torchvision",
    "torchvision": "torch torchvision",
    "cv2": "opencv-python-headless",
    "faster_coco_eval": "faster-coco-eval",
    "skimage": "scikit-image",
}
"""Module -> the packages that bring it, where they are called otherwise."""


def not_installed(what: str, module: str | None) -> BackendError:
    """Return the error for `what`, which imports a module that is not there."""
    root = (module or "").partition(".")[0]
    return BackendError(
        f"{what} needs the Python module {root!r}, which is not installed",
        fix=f"`pip install {_PACKAGES.get(root, root)}`",
    )


_LONGEST, _LISTED = 100, 100
"""Letters of a wrong name, and right names, that a message shows."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> OptionError:
    """Return the error for `name`, which is not among `known`, with the nearest known names."""
    names = sorted(known)
    short = name if len(name) <= _LONGEST else name[:_LONGEST] + "..."
    near = difflib.get_close_matches(short, names, n=3, cutoff=0.5)
    listed = ", ".join(names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return OptionError(
        f"unknown {kind} {short!r}",
        expected=f"one of {listed}{more}",
        fix=f"did you mean {' or '.join(near)}?" if near else "",
    )
