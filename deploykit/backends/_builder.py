"""The builder's program: `python -m deploykit.backends._builder PARENT PIPE MODULE`.

It imports TensorRT's module, reads a request as JSON from stdin, writes the outcome as JSON to
stdout and the native log to stderr. It ends with its parent; so the first thing it does is to
follow that, and everything that takes long to import is imported afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploykit.errors import DeployError

_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process gets when its parent ends."""


def follow(parent: int, pipe: int) -> None:
    """End this process as soon as the process `parent` has ended.

    pipe: its end for reading; the parent holds the other one, and sends nothing.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before this was asked for
        os._exit(1)
    threading.Thread(target=_await_end, args=(pipe,), daemon=True).start()


def _await_end(pipe: int) -> None:
    os.read(pipe, 1)
    os._exit(1)


def main(module: str) -> dict[str, Any]:
    """Return the outcome of the request on stdin, as the parent reads it."""
    from deploykit.files import lateness  # noqa: PLC0415 - what is imported below is slow

    lateness.begin()
    from deploykit import ops  # noqa: PLC0415 - slow: the parent is followed first
    from deploykit.backends import _trt  # noqa: PLC0415 - likewise
    from deploykit.errors import BackendError, DeployError  # noqa: PLC0415 - likewise

    try:
        trt = importlib.import_module(module)
        request = _trt.Request.from_json(json.loads(sys.stdin.read()))
        with ops.known(*request.ops):
            return {"inspection": _trt.build(trt, request, _say)}
    except ImportError as error:
        return _failure(BackendError(f"{module} cannot be imported: {error}"))
    except DeployError as error:
        return _failure(error)


def _failure(error: DeployError) -> dict[str, Any]:
    return {
        "error": {
            "kind": type(error).__name__,
            "found": error.found,
            "expected": error.expected,
            "fix": error.fix,
        }
    }


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()  # an abort would lose what is buffered


def run() -> None:
    """Answer on the stdout we were given, and send everything else that is printed to stderr."""
    parent, pipe = map(int, sys.argv[1:3])
    follow(parent, pipe)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)
        answer.write(json.dumps(main(sys.argv[3])))
    sys.stderr.flush()
    os._exit(0)  # nothing is left to do, and to unload the native libraries takes long


if __name__ == "__main__":
    run()
