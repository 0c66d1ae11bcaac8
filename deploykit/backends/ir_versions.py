"""Which version of ONNX's file format the installed ONNX Runtime reads."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from onnx import TensorProto, helper

if TYPE_CHECKING:
    import onnx_ir as ir

_READ_BY_ALL = 10
"""A version that every supported runtime reads: for it none is asked."""
_BEYOND = 1 << 20
"""A version that no runtime reads."""
_SAID = re.compile(r"max supported IR version: (\d+)")


@functools.lru_cache(maxsize=1)
def newest() -> int:
    """Return the newest version that the runtime reads, in its own words; without them any."""
    import onnxruntime as ort  # noqa: PLC0415 - slow, and seldom asked

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, ir_version=_BEYOND)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - the errors of the runtime have no common class
        said = _SAID.search(str(error))
        return int(said[1]) if said else _BEYOND
    return _BEYOND


def lowered(model: ir.Model) -> tuple[str, ...]:
    """Lower the version that a model states to what the runtime reads; return what is said of it.

    What the file holds stays: exporters state the newest version that their library knows, whatever
    they use of it, and what the runtime then does not know it says by name.
    """
    stated = model.ir_version
    if stated <= _READ_BY_ALL or stated <= newest():
        return ()
    import onnxruntime as ort  # noqa: PLC0415 - slow, and asked already

    model.ir_version = newest()
    return (
        f"IR version {stated} taken as {newest()}, the newest of ONNX Runtime {ort.__version__}",
    )
