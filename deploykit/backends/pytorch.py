"""Networks run by PyTorch on the CPU: the reference of every proof."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from deploykit.data import feeding
from deploykit.errors import OptionError
from deploykit.networks import outputs
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from deploykit.backends.contract import Arrays
    from deploykit.networks.loading import Network


class TorchSession:
    """A network run by PyTorch on the CPU: the reference of every proof."""

    def __init__(self, network: Network, dtype: torch.dtype = torch.float32) -> None:
        """Keep the network and describe its interface; it gets its inputs as `dtype`."""
        self._module, self._recipe, self._dtype = network.module, network.recipe, dtype
        self.inputs = network.inputs
        self.outputs = tuple(TensorSpec(o.name, "float32", ()) for o in network.recipe.outputs)

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Return output name -> array for one batch."""
        feeds = feeding.completed(self.inputs, feeds)
        with torch.inference_mode():
            result = self._module(*(self._tensor(feeds[spec.name]) for spec in self.inputs))
        return {name: value.numpy() for name, value in outputs.named(self._recipe, result)}

    def _tensor(self, array: NDArray[np.generic]) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def stepper(
        self, feeds: Arrays, *, transfers: bool, cuda_graph: bool
    ) -> Callable[[], float | None]:
        """Return a function that runs the batch once; a CPU has no device clock."""
        if cuda_graph:
            raise OptionError("PyTorch on the CPU has no CUDA graphs", fix="use --no-cuda-graph")
        del transfers  # there is no device to copy to

        def step() -> None:
            self.run(feeds)

        return step
