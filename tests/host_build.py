"""Compile the CUDA source of a plugin for the CPU, and call it.

host = host_build.compiled("batched_nms.cu")
host_build.arrange(host, order="reverse", threads=32)
host.deploykit_batched_nms(...)
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Literal, TypeAlias

import pytest

from deploykit.ops.plugin import OPS

Order: TypeAlias = Literal["forward", "reverse", "shuffled"]
ORDERS: tuple[Order, ...] = ("forward", "reverse", "shuffled")
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wextra"]
ARRANGE = """
extern "C" void host_arrange(int order, unsigned threads) {
  host::order = static_cast<host::Order>(order);
  host::threads = threads;
}
"""


@functools.cache
def compiled(source: str) -> ctypes.CDLL:
    """Return the library of plugins/`source`, one per session. Skips where there is no g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    plugins = OPS.folder()
    with tempfile.TemporaryDirectory() as name:
        unit, target = Path(name) / "unit.cpp", Path(name) / "library.so"
        unit.write_text(f'#include "host/cuda_on_host.h"\n#include "{source}"\n{ARRANGE}')
        command = [compiler, *FLAGS, "-Werror", f"-I{plugins}", str(unit), "-o", str(target)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(target))


def arrange(library: ctypes.CDLL, *, order: Order = "forward", threads: int = 32) -> None:
    """Set in which order a block's threads take turns, and how many they are.

    0 threads: as many as a launch asks for, which takes long here.
    """
    library.host_arrange(ORDERS.index(order), threads)
