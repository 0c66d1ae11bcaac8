"""What an op is configured with: checked, completed, written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.errors import ModelError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.ops.plugin import Attribute, Plugin

TAGS = ("plugin_namespace", "plugin_version")
"""What a node has besides its attributes: by them TensorRT finds the plugin."""


def complete(plugin: Plugin, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return every attribute of the op. Raises: OptionError for one unknown or not valid."""
    return checked(plugin, given, OptionError, where=where)


def checked(
    plugin: Plugin,
    given: Mapping[str, Any],
    error: type[ModelError | OptionError],
    *,
    where: str = "",
) -> dict[str, Any]:
    """Return every attribute of the op. Raises: `error` for one that is unknown or not valid."""
    where = where or plugin.name
    known = {a.name: a for a in plugin.attributes}
    for name in given:
        if name not in known:
            raise error(f"{where} has no attribute {name!r}", expected=", ".join(known))
    return {a.name: _value(a, given.get(a.name, a.default), error, where) for a in known.values()}


def _value(
    attribute: Attribute,
    value: Any,  # noqa: ANN401 - the user's
    error: type[ModelError | OptionError],
    where: str,
) -> Any:  # noqa: ANN401 - of the attribute's type
    kind = type(attribute.default)
    numbers = int | float
    if kind is tuple and isinstance(value, list | tuple):
        value = tuple(float(v) for v in value if isinstance(v, numbers))
    elif kind is float and isinstance(value, numbers):
        value = float(value)
    elif kind is int and isinstance(value, bool):
        value = int(value)
    if not isinstance(value, kind) or not attribute.valid(value):
        raise error(f"{where}: {attribute.name} is {value!r}", expected=attribute.expected)
    return value


def plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes with lists for tuples, as ONNX takes them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in attributes.items()}
