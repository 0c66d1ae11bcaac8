"""The GPUs an engine can be built for: one row per compute capability, with its reasons.

Source: NVIDIA's support matrices and release notes of TensorRT 8.6 to 11 and of TensorRT-RTX,
and engines that TensorRT-RTX 1.7.1 was seen to build for each of its targets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from deploykit.errors import OptionError, unknown_name


@dataclass(frozen=True)
class Target:
    """What one compute capability can do, and which TensorRT reaches it."""

    sm: str
    gpus: str
    tensorrt: str
    """Versions of the full TensorRT that support it; empty: not established."""
    rtx: bool
    int8: str = ""
    """Why INT8 gains nothing here even with the full TensorRT; empty: it has INT8 tensor cores."""
    not_rtx: str = ""
    """Why TensorRT-RTX has no such target."""
    rtx_limits: str = ""
    """What TensorRT-RTX lacks for it; empty: FP32, FP16 and INT8 are all there."""

    @property
    def install(self) -> str:
        """Return the command that installs the TensorRT that fits this GPU."""
        if not self.tensorrt:
            return "`pip install tensorrt-rtx-cu13`"
        package = "'tensorrt-cu12==10.4.*'" if self.sm == "70" else "tensorrt-cu12"
        return f"`pip install {package} cuda-python`"


_VOLTA_INT8 = "Volta has no INT8 tensor cores: INT8 runs below the rate of its FP16 tensor cores"
_SERVER = "TensorRT-RTX targets RTX GPUs; for this one use the full TensorRT"

TARGETS: dict[str, Target] = {
    row.sm: row
    for row in (
        Target(
            "70",
            "V100",
            "8.6 to 10.4, with CUDA 12 or older",
            rtx=False,
            int8=_VOLTA_INT8,
            not_rtx="Volta was dropped after TensorRT 10.4, before TensorRT-RTX began",
        ),
        Target(
            "75",
            "T4, RTX 20",
            "8.6 to 11",
            rtx=True,
            rtx_limits="FP16, and FP32 without matrix products; no INT8 kernels for Turing",
        ),
        Target("80", "A100, A30", "8.6 to 11", rtx=True),
        Target("86", "A10, RTX 30", "8.6 to 11", rtx=True),
        Target("89", "L4, L40S, RTX 40", "8.6 to 11", rtx=True),
        Target("90", "H100, H200", "8.6 to 11", rtx=False, not_rtx=_SERVER),
        Target("100", "B200", "10.8 to 11", rtx=False, not_rtx=_SERVER),
        Target("120", "RTX 50", "10.8 to 11", rtx=True),
        Target("121", "GB10", "", rtx=True),
    )
}


NAMES: dict[str, str] = {
    **dict.fromkeys(("V100", "TITAN V"), "70"),
    **dict.fromkeys(("T4", "RTX 20", "GTX 16"), "75"),
    **dict.fromkeys(("A100", "A30"), "80"),
    **dict.fromkeys(("A2", "A10", "A10G", "A16", "A40", "RTX A6000", "RTX 30"), "86"),
    **dict.fromkeys(("L4", "L40", "L40S", "RTX 40"), "89"),
    **dict.fromkeys(("H100", "H200", "GH200"), "90"),
    **dict.fromkeys(("B200", "GB200"), "100"),
    "RTX 50": "120",
    "GB10": "121",
}
"""Name of a GPU or of a series -> its compute capability."""
_BRAND = re.compile(r"nvidia|tesla|geforce|[\s_.-]")
_SERIES = re.compile(r"([rg]tx\d\d)\d0(ti|super)*(laptop)?")
_COMPACT = {_BRAND.sub("", name.lower()): sm for name, sm in NAMES.items()}


def target(text: str) -> Target:
    """Return the target written as `86`, `sm86`, `8.6` or `A10`. Raises: OptionError."""
    compact = _BRAND.sub("", text.lower())
    series = _SERIES.fullmatch(compact)
    named = _COMPACT.get(series[1] if series else compact, compact)
    sm = named.removeprefix("sm")
    if sm not in TARGETS:
        raise unknown_name("GPU or compute capability", text, (*TARGETS, *NAMES))
    return TARGETS[sm]


def rtx_targets(sms: tuple[str, ...]) -> tuple[Target, ...]:
    """Return the targets of `sms`, each of which TensorRT-RTX can build for.

    Raises: OptionError.
    """
    known = [row.sm for row in TARGETS.values() if row.rtx]
    rows = tuple(dict.fromkeys(target(sm) for sm in sms))
    for row in rows:
        if not row.rtx:
            raise OptionError(
                f"TensorRT-RTX cannot build for SM{row.sm} ({row.gpus}): {row.not_rtx}",
                expected="one of " + ", ".join(known),
                fix=f"on the GPU itself: {row.install}, then --backend tensorrt",
            )
    return rows
