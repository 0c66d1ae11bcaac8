"""The layers of a TensorRT engine, read from the engine inspector's JSON.

Both forms are read: up to TensorRT 10 a tensor has one `Format/Datatype`, and the engine its
`Bindings`; from 11 on a tensor has `Format` and `Datatype`, and the engine its `I/O Tensors`.

Source: TensorRT developer guide, "Engine Inspector"; migration guide 10.x to 11.x,
"IEngineInspector".
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from deploykit.backends._layers import EngineLayer
from deploykit.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_WEIGHTED = re.compile(r"conv(?!ert)|gemm|matmul|matrix.?multiply|fully.?connected", re.IGNORECASE)
_NOT_WEIGHTED = ("Reformat", "kgen", "NoOp", "Constant")
# How the text of a format or a type names the element type.
_DTYPES = (
    (r"\bu?int8\b", "int8"),
    (r"\b(fp16|half)\b", "half"),
    (r"\b(fp32|float)\b", "float"),
    (r"\b(bf16|bfloat16)\b", "bfloat16"),
    (r"\bfp8\b", "fp8"),
    (r"\bint32\b", "int32"),
    (r"\bint64\b", "int64"),
    (r"\bbool\b", "bool"),
)
_ONNX = re.compile(r"\[ONNX Layer: ([^\x1e\x1f]*)\]")
# `a + b` fused in a row, `a || b` side by side, `PWN(a, b)` pointwise, `{ForeignNode[a...b]}`.
_SEPARATORS = re.compile(r" \+ | \|\| |, |PWN\(|\)|\{ForeignNode\[|\]\}|\.\.\.")


def layers(text: str) -> tuple[EngineLayer, ...]:
    """Return the layers in the inspector's JSON, in the order they run.

    An engine built without detailed verbosity gives names alone: its precisions are unknown.

    Raises: BackendError where the text is not the inspector's JSON.
    """
    try:
        found = _parsed(text)["Layers"]
        return tuple(map(_layer, found))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackendError(
            f"the engine inspector's JSON has an unknown form: {type(error).__name__}: {error}",
            expected="an object with `Layers`, as TensorRT 8.6 to 11 write it",
        ) from error


def _parsed(text: str) -> Any:  # noqa: ANN401 - JSON
    """Return the JSON; one whose names hold bare quotation marks and backslashes is read too."""
    try:
        return json.loads(text, strict=False)
    except ValueError:
        return json.loads("".join(_escaped(text)), strict=False)


def _escaped(text: str) -> Iterator[str]:
    """Yield `text` with a backslash before each quotation mark that ends no string."""
    inside = skipped = False
    for place, sign in enumerate(text):
        if skipped or sign not in '"\\':
            skipped = False
            yield sign
        elif sign == "\\":
            skipped = text[place + 1 : place + 2] in _AFTER_BACKSLASH
            yield sign if skipped else 2 * sign
        else:
            bare = inside and _ENDS.match(text, place + 1) is None
            inside = bare or not inside
            yield '\\"' if bare else sign


_AFTER_BACKSLASH = tuple('"\\/bfnrtu')
_ENDS = re.compile(r"\s*(?:[,:}]|\]\s*(?:[,}\]]|\Z)|\Z)")
"""What follows a string in JSON."""


def _layer(found: str | Mapping[str, Any]) -> EngineLayer:
    if isinstance(found, str):
        return EngineLayer("", found, (), (), _nodes(found, ""), weighted=False)
    kind = str(found.get("LayerType", ""))
    inputs = _types(found.get("Inputs", ()))
    weights = found.get("Weights")
    if isinstance(weights, dict) and "Type" in weights:
        inputs = (*inputs[:1], dtype(str(weights["Type"])))
    return EngineLayer(
        kind=kind,
        name=str(found["Name"]),
        inputs=inputs,
        outputs=_types(found.get("Outputs", ())),
        nodes=_nodes(str(found["Name"]), str(found.get("Metadata", ""))),
        weighted=kind not in _NOT_WEIGHTED
        and bool(_WEIGHTED.search(f"{kind} {found.get('ParameterType', '')}")),
    )


def _types(found: Any) -> tuple[str, ...]:  # noqa: ANN401 - JSON
    """Return the element type of each tensor, empty where the engine does not say."""
    texts = []
    for tensor in found:
        split = {key.lower(): value for key, value in tensor.items()}
        texts.append(str(split.get("datatype", split.get("format/datatype", ""))))
    return tuple(map(dtype, texts))


def dtype(text: str) -> str:
    """Return the element type that `text` names, empty where it names none."""
    return next((name for pattern, name in _DTYPES if re.search(pattern, text, re.IGNORECASE)), "")


def _nodes(name: str, metadata: str) -> tuple[str, ...]:
    """Return the ONNX nodes of a layer: its metadata has them, before 8.6 only its name."""
    known = _ONNX.findall(metadata)
    return tuple(dict.fromkeys(known or filter(None, map(str.strip, _SEPARATORS.split(name)))))
