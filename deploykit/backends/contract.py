"""What every backend offers, and the values that go in and come out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from deploykit.values import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.recipes.opened import Opened
    from deploykit.values import LayerPrecision, Progress, TensorSpec

Arrays: TypeAlias = "Mapping[str, NDArray[np.generic]]"
"""Name of an input or output -> its values."""
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, typical and largest shape of one input."""


@dataclass(frozen=True)
class Availability:
    """Whether a backend can build and run here, and if not, why and what to install."""

    builds: bool
    runs: bool
    version: str = ""
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True)
class BuildOptions:
    """What a build may be told; a backend refuses what it cannot honour."""

    sms: tuple[str, ...] = ()
    """Target compute capabilities such as `75` and `86`; empty: the machine's own."""
    shapes: Mapping[str, Shapes] = field(default_factory=dict)
    """Input name -> optimization profile, for inputs with dynamic dimensions."""
    workspace: int | None = None
    """Bytes of scratch memory the builder may use; None: the builder's own limit."""
    timing_cache: Path | None = None
    plugins: str = "auto"
    """How our ops come into an engine: `auto` (plugins from Python), `none` (standard ops), or the
    path of a plugin library. Models without such ops ignore the first two."""


@dataclass(frozen=True)
class Built:
    """The outcome of a build: the file is at the path that was asked for."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[LayerPrecision, ...]
    """The real precision per layer, read back from the built file."""
    seconds: float
    log: str
    """The builder's native log."""
    plugins: Mapping[str, Any] | None = None
    """What the engine has in place of our ops; None: the model has none."""


class Session(Protocol):
    """A model loaded and ready to run."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return what `run` takes, in the model's order."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return what `run` gives, in the model's order."""
        ...

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Return output name -> array for one batch given as input name -> array."""
        ...

    def stepper(
        self, feeds: Arrays, *, transfers: bool, cuda_graph: bool
    ) -> Callable[[], float | None]:
        """Return a function that runs the batch once, synchronously.

        It returns the device-clock seconds of that run, None where there is no device clock.
        transfers: copy inputs in and outputs out on every run; otherwise they stay on the device.
        """
        ...


class Backend(Protocol):
    """A module in this folder."""

    def availability(self) -> Availability:
        """Return what works here; never raises."""
        ...

    def build(
        self, model: Opened, output: Path, options: BuildOptions, *, progress: Progress = silent
    ) -> Built:
        """Write the engine for `model` to `output`; progress names the steps.

        Raises: BackendError, ProofError, OptionError.
        """
        ...

    def open_session(self, path: Path, *, threads: int = 0) -> Session:
        """Return a session of a built file; threads 0: the runtime's own choice."""
        ...

    def inspect(self, path: Path) -> tuple[LayerPrecision, ...]:
        """Return the precision of each layer of a built file."""
        ...
