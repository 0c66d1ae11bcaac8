"""Networks whose weights are not drawn at random first: those of a file come in their place."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_NAMED = ("xavier", "kaiming")
_DRAWING = frozenset(
    (
        *(getattr(nn.init, name) for name in ("uniform_", "normal_", "trunc_normal_")),
        *(getattr(nn.init, f"{name}_{kind}_") for name in _NAMED for kind in ("uniform", "normal")),
        *(torch.Tensor.uniform_, torch.Tensor.normal_),
    )
)
"""What fills a tensor with random numbers; some of the first call the last."""


class Unset(TorchFunctionMode):
    """Within it, parameters that are to be filled at random stay as they are."""

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - torch's own
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's own
        """Return what `func` gives, a parameter to be filled itself."""
        del types
        kwargs = kwargs or {}
        if func in _DRAWING:
            tensor = kwargs["tensor"] if "tensor" in kwargs else args[0]
            if isinstance(tensor, nn.Parameter):
                return tensor
        return func(*args, **kwargs)


@contextlib.contextmanager
def on_paper() -> Iterator[None]:
    """Make networks without memory for weights, of which only names and shapes are asked."""
    with torch.device("meta"), Unset():
        yield
