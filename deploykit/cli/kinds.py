"""Which layers are INT8, chosen by the rule that keeps them in float: a group of options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from deploykit.cli import options
from deploykit.cli.parsing import Option


@dataclass(frozen=True)
class Kinds:
    """which layers are INT8, by kind"""  # noqa: D415 - the heading of a help page

    int8_layers: Annotated[
        list[str] | None,
        Option(help="In INT8 all the same: narrow, vector, computed, all ...; by commas."),
    ] = None
    float_layers: Annotated[
        list[str] | None,
        Option(help="In float: grouped (depthwise too), squeeze, narrow ...; by commas."),
    ] = None
    sm: Annotated[
        str | None,
        Option(help="GPU: T4 keeps grouped layers in float.  [default: SM80 and later]"),
    ] = None

    def fields(self) -> dict[str, Any]:
        """Return the fields of `QuantizeOptions` that choose kinds of layers."""
        return {
            "int8_layers": options.names(self.int8_layers) or (),
            "float_layers": options.names(self.float_layers) or (),
            "target_sm": self.sm,
        }


OF_TARGET = Kinds()
