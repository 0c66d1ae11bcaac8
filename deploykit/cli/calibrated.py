"""What a model is calibrated on, and how: a group of options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path  # noqa: TC003 - the parser reads it when it runs
from typing import TYPE_CHECKING, Annotated, Any

from deploykit.cli import options
from deploykit.cli.parsing import Option
from deploykit.errors import OptionError

if TYPE_CHECKING:
    from deploykit.cli.about import About
    from deploykit.cli.kinds import Kinds
    from deploykit.pipeline import QuantizeOptions

_IMAGES = 512
"""To calibrate on, where nobody says how many."""


@dataclass(frozen=True)
class Calibrated:
    """what it is calibrated on, and how"""  # noqa: D415 - the heading of a help page

    calib_dir: Annotated[Path | None, Option(help="Folder of images, nested.")] = None
    calib_source: Annotated[
        str | None, Option(help="SOURCE:LOCATION, such as coco:DIR, in place of --calib-dir.")
    ] = None
    calib_data: Annotated[
        Path | None, Option(help="Folder of .npy or .npz files, for a model without images.")
    ] = None
    calib_method: Annotated[
        str | None, Option(help="mse (default), minmax, percentile or entropy.")
    ] = None
    calib_size: Annotated[
        int | None, Option(help="Images to use, evenly spread.  [default: 512]")
    ] = None
    calib_batch_size: Annotated[
        int | None,
        Option(help="Images per forward pass.  [default: 8, fewer where they are large]"),
    ] = None
    percentile: Annotated[
        float | None, Option(help="Of |x|, for --calib-method percentile.  [default: 99.99]")
    ] = None
    table: Annotated[
        Path | None,
        Option(
            help="Calibration table: read if it exists and is what is asked for, else written. A "
            "calibration cache of TensorRT is read too."
        ),
    ] = None
    repair: Annotated[
        str,
        Option(help="auto (what helps on held-out images), none, or equalise,observer,bias,round."),
    ] = "auto"
    skip_unreadable: Annotated[
        bool, Option(help="Count unreadable images instead of stopping.")
    ] = False

    def fields(self, amax: Path | None = None) -> dict[str, Any]:
        """Return the fields of `QuantizeOptions` about calibration.

        amax: scales from elsewhere, in place of all here. Raises: OptionError.
        """
        untried = replace(self, repair="auto") if self.repair == "none" else self
        if amax is not None and untried != ON_NOTHING:
            raise OptionError("--amax beside options of calibration", fix="give one of them")
        from deploykit.precision.calibration import CalibrationOptions  # noqa: PLC0415 - slow

        method = {
            "observer": self.calib_method,
            "size": self.calib_size,
            "percentile": self.percentile,
        }
        asked = options.given(method)
        known = self.table is not None and self.table.exists()
        return {
            "source": options.calibration(
                self.calib_dir,
                self.calib_source,
                self.calib_data,
                needed=not known and amax is None,
            ),
            "data": self.calib_data,
            "calibration": CalibrationOptions(
                **{"size": _IMAGES, **asked},
                batch_size=self.calib_batch_size,
                skip_unreadable=self.skip_unreadable,
            ),
            "asked": asked,
            "table": self.table,
            "amax": amax,
            "repair": tuple(name.strip() for name in self.repair.split(",")),
        }


ON_NOTHING = Calibrated()


def quantized(
    calibrated: Calibrated | None,
    kinds: Kinds,
    about: About,
    *,
    amax: Path | None = None,
    **more: Any,  # noqa: ANN401 - fields of any type
) -> QuantizeOptions:
    """Return what groups of options say together; None: nothing is calibrated.

    more: Further fields. Raises: OptionError.
    """
    from deploykit import pipeline  # noqa: PLC0415 - `--help` must not pay for it

    return pipeline.QuantizeOptions(
        **({} if calibrated is None else calibrated.fields(amax)),
        **kinds.fields(),
        about=about.description(),
        **more,
    )
