"""A trained checkpoint file -> its state dict, without running anything that is in it."""

from __future__ import annotations

import contextlib
import io
import pickle
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from deploykit.errors import CheckpointError
from deploykit.files import artifacts, contents
from deploykit.networks.checkpoint import _layouts, _pickles, _records
from deploykit.networks.checkpoint._archive import Archive

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, nn

__all__ = ["Checkpoint", "fit", "load"]

_WHAT = "a checkpoint (.pth, .pt or .safetensors)"
_RATIO = 4
_FREE = 256 << 20
"""A state dict may have _RATIO times the bytes of its file, or _FREE bytes: FP16 grows by 2."""
_SHOWN = 5
_COUNTER = "num_batches_tracked"
_FEW = 0.1
"""Share of keys in common below which the checkpoint is of another model altogether."""
_PICKLES = 8  # an old checkpoint is five pickles and the numbers


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a trained network."""

    state: dict[str, Tensor]
    """Name -> values; all real numbers are float32, on the CPU, finite."""
    sha256: str
    notes: tuple[str, ...] = ()
    """What was chosen, removed or ignored on the way."""
    class_names: tuple[str, ...] | None = None


def load(path: Path) -> Checkpoint:
    """Return the weights in a .pth, .pt or .safetensors file.

    A plain state dict, one wrapped by a training script (averaged weights are preferred), or a
    pickled module of any package: of that only the weights are read.

    Raises: CheckpointError where the file is missing, damaged, too large, holds code (with the
    name of what it wanted to run), no weights, or weights that are not finite.
    """
    first = contents.head(path, CheckpointError, _WHAT)
    try:
        if first.startswith(contents.ZIP):
            with contextlib.closing(Archive(path)) as archive:
                return _finish(path, _from_archive(path, archive))
        if first[8:9] == b"{":
            return _finish(path, _from_safetensors(path))
        if first.startswith(b"\x80") or contents.recognise(first) == ("", ""):
            return _finish(path, _from_old_pickle(path, first))
    except CheckpointError as error:
        if str(path) in error.found:
            raise
        found = f"{path}: {error.found}"
        raise CheckpointError(found, expected=error.expected, fix=error.fix) from error
    raise contents.foreign(path, first, CheckpointError, _WHAT)


def _from_archive(path: Path, archive: Archive) -> object:
    saved = _weights_only(path)
    if not isinstance(saved, Exception):
        return saved
    if archive.is_big_endian():
        raise CheckpointError(f"{path} was written by a big-endian machine", expected=_WHAT)
    try:
        return _pickles.read(io.BytesIO(archive.pickle()), archive)
    except _records.CodeError as error:
        raise _refused(path, error.name) from error
    except _records.FormatError as error:
        raise _unreadable(path, str(error)) from error


def _from_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _unreadable(path, str(error)) from error


def _from_old_pickle(path: Path, first: bytes) -> object:
    saved = _weights_only(path)
    if not isinstance(saved, Exception):
        return saved
    try:
        for found in _old_objects(path):
            if isinstance(found, _records.Instance):
                raise CheckpointError(
                    f"{path} is a pickled {found.of} in the format before torch 1.6",
                    expected=_WHAT,
                    fix="save the weights with torch.save(model.state_dict(), FILE)",
                )
    except _records.CodeError as error:
        raise _refused(path, error.name) from error
    except _records.FormatError:
        pass  # the numbers follow, or damage does
    if not first.startswith(b"\x80"):
        raise contents.foreign(path, first, CheckpointError, _WHAT)
    raise _unreadable(path, _first_line(saved))


def _old_objects(path: Path) -> Iterator[object]:
    with path.open("rb") as file:
        for _ in range(_PICKLES):
            yield _pickles.read(file)


def _weights_only(path: Path) -> Any:  # noqa: ANN401 - whatever was saved
    """Return the saved object, or the exception of torch's reader, which runs no code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of the format
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a hostile file can break the reader in any way
        return error


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
        expected=_WHAT,
        fix="copy or download it again; save only the weights: "
        "torch.save(model.state_dict(), FILE)",
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "torch finds no weights in it"  # its message tells how to run the code
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _finish(path: Path, saved: object) -> Checkpoint:
    """Return the checkpoint in a saved object. Raises: CheckpointError."""
    try:
        found, notes = _layouts.find(saved)
        named, more = _layouts.strip(found)
        state = _values(named, budget=max(_FREE, _RATIO * path.stat().st_size))
    except (RecursionError, RuntimeError, NotImplementedError) as error:
        raise _unreadable(path, _first_line(error)) from error
    names = _layouts.class_names(saved)
    return Checkpoint(state, artifacts.sha256(path), (*notes, *more), names)


def _values(leaves: Mapping[str, _layouts.Leaf], budget: int) -> dict[str, Tensor]:
    """Return every tensor in memory of its own, real numbers as float32, all finite.

    budget: bytes that all may take together. Raises: CheckpointError.
    """
    state: dict[str, Tensor] = {}
    for name, leaf in leaves.items():
        tensor = leaf if isinstance(leaf, torch.Tensor) else leaf.read()
        _check_kind(name, tensor)
        budget -= tensor.numel() * max(tensor.element_size(), torch.float32.itemsize)
        if budget < 0:
            raise CheckpointError(
                f"the weights would take more than {_RATIO} times the bytes of the file",
                expected="tensors with memory of their own",
                fix="save the weights with torch.save(model.state_dict(), FILE)",
            )
        kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
        state[name] = tensor.detach().to(kind).contiguous()
    _check_finite(state)
    return state


def _check_kind(name: str, tensor: Tensor) -> None:
    odd = [
        word
        for word, found in (
            ("quantised", tensor.is_quantized),
            ("sparse", tensor.layout != torch.strided),
            ("without values", tensor.is_meta),
            ("complex", tensor.is_complex()),
        )
        if found
    ]
    if odd:
        raise CheckpointError(
            f"weight {name!r} is {' and '.join(odd)}",
            expected="plain tensors of real numbers",
            fix="save the network as it was trained, in half or single precision",
        )


def _check_finite(state: Mapping[str, Tensor]) -> None:
    bad = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{_count(bad, 'weight')} hold NaN or infinity: {_shown(bad)}",
            expected="finite weights",
            fix="use an earlier checkpoint: training diverged, or half precision overflowed",
        )


def fit(module: nn.Module, state: Mapping[str, Tensor], *, name: str) -> None:
    """Load `state` into `module`, which is a `name`; every weight must find its place.

    Only the counters `num_batches_tracked` may be missing or left over. Raises: CheckpointError
    that lists the missing, unexpected and wrongly shaped weights.
    """
    wanted = module.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith(_COUNTER)]
    unexpected = [k for k in state if k not in wanted and not k.endswith(_COUNTER)]
    common = [k for k in wanted if k in state]
    misshapen = [
        f"{k} is {list(state[k].shape)}, not {list(wanted[k].shape)}"
        for k in common
        if state[k].shape != wanted[k].shape
    ]
    problems = (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", misshapen))
    if any(names for _, names in problems):
        lists = [f"{len(names)} {kind} ({_shown(names)})" for kind, names in problems if names]
        share = len(common) / max(len(wanted), 1)
        raise CheckpointError(
            f"the checkpoint does not fit {name}: {', '.join(lists)}",
            expected=f"the {len(wanted)} weights of {name}",
            fix=_advice(share),
        )
    module.load_state_dict({k: state[k] for k in common}, strict=False)


def _advice(share: float) -> str:
    if share < _FEW:
        return (
            f"it looks like another model: {share:.0%} of the names are in common; "
            "choose its recipe with --recipe"
        )
    return f"{share:.0%} of the names are in common: choose the variant it was trained as"


def _shown(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _count(items: list[str], noun: str) -> str:
    return f"{len(items)} {noun}{'s' if len(items) > 1 else ''}"
