"""What a pickle calls, and what stands for the result; calls that are not listed make a record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from deploykit.networks.checkpoint import _arrays
from deploykit.networks.checkpoint._arrays import StoredArray
from deploykit.networks.checkpoint._records import (
    CodeError,
    FormatError,
    Name,
    Record,
    describe,
    enter,
)
from deploykit.networks.checkpoint._tensors import (
    DTYPES,
    MAX_DIMENSIONS,
    OddTensor,
    StoredData,
    StoredTensor,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Arguments = tuple[Any, ...]
    Call = Callable[[Arguments], Any]


class Caller:
    """Looks up what stands for the result of each call of a pickle."""

    def __init__(self, calls: Mapping[str, Call], size: int) -> None:
        """Keep the table; size: bytes of the pickle, which has no reason to copy more items."""
        self._calls, self._left = calls, size

    def __call__(self, callee: object, arguments: object) -> object:
        """Return what stands for the result. Raises: CodeError, FormatError."""
        if not isinstance(callee, Name):
            raise CodeError(describe(callee))
        if not isinstance(arguments, tuple):
            raise FormatError(f"{callee} is called with something else than arguments")
        name = str(callee)
        if name in _PAIRS:
            return self._pairs(arguments)
        if name in _FROM_TYPE and len(arguments) > 2:
            return self(arguments[0], arguments[2])
        return self._calls[name](arguments) if name in self._calls else Record(callee, arguments)

    def _pairs(self, arguments: Arguments) -> dict[Any, Any]:
        """Return a dictionary of what is given as one, or as pairs."""
        given = arguments[0] if arguments else ()
        if isinstance(given, dict):
            return given  # itself: copies could fill the memory
        if not isinstance(given, (list, tuple)):
            return {}
        self._left -= len(given)
        if self._left < 0:
            raise FormatError("it makes more objects than it has bytes")
        found: dict[Any, Any] = {}
        for pair in given:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise FormatError("a dictionary is made of something else than pairs")
            enter(found, *pair)
        return found


def instance(callee: object, arguments: object) -> Any:  # noqa: ANN401 - a record or a container
    """Return an object of the class `callee`, made without running its constructor."""
    if not isinstance(callee, Name):
        raise CodeError(describe(callee))
    if str(callee) in _PAIRS:
        return {}
    return Record(callee, arguments if isinstance(arguments, tuple) else ())


def _member(arguments: Arguments) -> Name | Record:
    """Return a class within a class, or the record of a bound method. Raises: CodeError."""
    owner, *rest = arguments or (None,)
    if len(rest) == 1 and isinstance(rest[0], str) and rest[0].isidentifier():
        if isinstance(owner, Name):
            return Name(owner.module, f"{owner.name}.{rest[0]}")
        if isinstance(owner, Record):
            return Record(Name("builtins", "getattr"), arguments)
    raise CodeError("builtins.getattr")


def _tensor(arguments: Arguments) -> StoredTensor | OddTensor | Record:
    if len(arguments) < 4:
        raise FormatError("a tensor is described by too little")
    data, offset, size, stride = arguments[:4]
    shapes = all(isinstance(n, tuple) and len(n) <= MAX_DIMENSIONS for n in (size, stride))
    whole = shapes and all(type(n) is int for n in (offset, *size, *stride))
    if not isinstance(data, StoredData) or not whole:
        raise FormatError("a tensor is described by something else than numbers")
    return StoredTensor(data, offset, size, stride)


def _typed_tensor(arguments: Arguments) -> StoredTensor | OddTensor | Record:
    """Return a tensor whose storage is bytes: the element type comes after it."""
    dtype = arguments[6] if len(arguments) > 6 else None
    found = getattr(torch, dtype.name, None) if isinstance(dtype, Name) else None
    data = arguments[0]
    if not isinstance(found, torch.dtype) or not isinstance(data, StoredData):
        raise FormatError("a tensor without an element type")
    count = data.count * data.dtype.itemsize // found.itemsize
    start = data.start * data.dtype.itemsize // found.itemsize
    odd = "" if found in _PLAIN else f"stored as {found}"
    typed = StoredData(data.source, data.key, found, count, start, odd)
    return _tensor((typed, *arguments[1:4]))


def _number(arguments: Arguments) -> object:
    found = _arrays.scalar(arguments)
    return Record(Name("numpy", "generic"), arguments) if found is None else found


def _first(arguments: Arguments) -> object:
    """Return the first argument itself: a copy for every call could fill the memory."""
    return arguments[0] if arguments else []


def _traced(arguments: Arguments) -> Record:
    """Return a torch.fx module, whose attributes are the first argument beside its source code."""
    state = arguments[0] if arguments else None
    return Record(Name("torch.fx.graph_module", "GraphModule"), (), state)


def _odd(word: str) -> Callable[[Arguments], OddTensor]:
    return lambda _: OddTensor(word)


_PLAIN = frozenset(DTYPES.values())
_PAIRS = frozenset(("collections.OrderedDict", "collections.Counter", "builtins.dict"))
_FROM_TYPE = frozenset(("torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type"))
_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
CALLS: Mapping[str, Call] = {
    "builtins.getattr": _member,
    "collections.defaultdict": lambda _: {},
    "collections.deque": _first,
    "builtins.set": _first,
    "builtins.frozenset": _first,
    "builtins.list": _first,
    "builtins.tuple": _first,
    "torch.Size": _first,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch.autograd.variable.Variable": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._utils._rebuild_device_tensor_from_numpy": _first,
    "torch._utils._rebuild_xla_tensor": _first,
    "torch._utils._rebuild_sparse_tensor": _odd("sparse"),
    "torch._utils._rebuild_sparse_csr_tensor": _odd("sparse"),
    "torch._utils._rebuild_qtensor": _odd("quantised"),
    "torch._utils._rebuild_nested_tensor": _odd("nested"),
    "torch._utils._rebuild_meta_tensor_no_storage": _odd("without values"),
    "torch._utils._rebuild_wrapper_subclass": _odd("wrapped"),
    "torch.fx.graph_module.reduce_graph_module": _traced,
    "copyreg._reconstructor": lambda arguments: instance(arguments[0], ()),
    "copyreg.__newobj__": lambda arguments: instance(arguments[0], arguments[1:]),
    **dict.fromkeys(_SCALAR, _number),
    **dict.fromkeys(_RECONSTRUCT, lambda _: StoredArray()),
    "numpy.core.numeric._frombuffer": _arrays.from_buffer,
    "numpy._core.numeric._frombuffer": _arrays.from_buffer,
}
