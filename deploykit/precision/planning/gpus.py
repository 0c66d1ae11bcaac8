"""What GPUs can do at best, by their data sheets, and how much of it TensorRT was seen to reach.

Peaks are of dense products (some sheets print twice as much, for sparse ones), at boost clock.

Source: NVIDIA's data sheets of each GPU. The shares that are reached were fitted to published times
of YOLOv6 on a T4 (arXiv 2209.02976, tables 1 and 18, TensorRT 7.2 and 8.2); for other GPUs they are
assumed to be the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from deploykit.errors import unknown_name


@dataclass(frozen=True)
class Gpu:
    """The limits of one GPU."""

    name: str
    fp16: float
    """Operations per second of its FP16 tensor cores; a multiply-accumulate is two."""
    int8: float
    """Of its INT8 tensor cores, or of DP4A where it has none."""
    bandwidth: float
    """Bytes per second of its memory."""


_ROWS = (
    ("T4", 65, 130, 320),
    ("V100", 125, 62.7, 900),
    ("A10", 125, 250, 600),
    ("A30", 165, 330, 933),
    ("A100", 312, 624, 1555),
    ("L4", 121, 242, 300),
    ("L40S", 362, 733, 864),
    ("H100", 989, 1979, 3350),
    ("H200", 989, 1979, 4800),
    ("RTX 3090", 142, 284, 936),
    ("RTX 4090", 330, 661, 1008),
)
"""Name, TFLOPS, TOPS, GB/s."""
GPUS = {
    name: Gpu(name, fp16 * 1e12, int8 * 1e12, bandwidth * 1e9)
    for name, fp16, int8, bandwidth in _ROWS
}


def gpu(name: str) -> Gpu:
    """Return the GPU of that name, in any case. Raises: OptionError for an unknown one."""
    found = next((row for key, row in GPUS.items() if key.lower() == name.lower()), None)
    if found is None:
        raise unknown_name("GPU", name, GPUS)
    return found
