"""A build in a process of its own: a native abort becomes an error, not the end of the program.

What runs there is `_builder`. It ends with this process, however that ends: Linux sends it a
signal, and everywhere a pipe tells it, of which this process holds the other end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import errors
from deploykit.errors import BackendError, DeployError
from deploykit.files import temporaries

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deploykit.backends._trt import Request

_PROGRAM = "deploykit.backends._builder"
_LAST = 8
"""Lines of the native log that an error repeats."""
# What a native message means -> what to do about it.
_FIXES = (
    ("FP32 GEMM is not supported", "cast the model to FP16 first: deploykit cast"),
    (
        "implement(s|ation)",
        "the target has no kernel for that layer: leave it in float, or write it in other ops",
    ),
    ("out of memory|OutOfMemory", "give a smaller --workspace or a smaller largest batch"),
    ("bad_alloc|Cannot allocate", "free some memory on this machine"),
)


@dataclass
class _Waiting:
    """A builder that has started and waits for its request."""

    module: str
    process: subprocess.Popen[str]


_waiting: list[_Waiting] = []
"""The one that was started ahead, if any."""


@contextlib.contextmanager
def ahead(module: str) -> Iterator[None]:
    """Start a builder that imports `module` while the caller reads the model.

    The next `build` for the module takes it; unused it ends with the block. In a block inside
    another nothing is started. Raises: BackendError.
    """
    if _waiting:
        yield
        return
    with _started(module) as builder:
        _waiting.append(builder)
        try:
            yield
        finally:
            _waiting.clear()


def build(request: Request) -> tuple[str | None, str]:
    """Return the inspector's JSON (None where there is none) and the native log.

    Raises: BackendError with the last lines of the log, or what the builder raised.
    """
    with contextlib.ExitStack() as stack:
        if _waiting and _waiting[0].module == request.module:
            builder = _waiting.pop()
        else:
            builder = stack.enter_context(_started(request.module))
        answer, log = builder.process.communicate(json.dumps(asdict(request)))
        code = builder.process.returncode
    return _outcome(code, answer, log, Path(request.model).name)


def runtime_library(module: str) -> Path | None:
    """Return the runtime library that the parser opens under its name without a version.

    The wheel of TensorRT-RTX ships it under a versioned name only.
    """
    if module != "tensorrt_rtx":
        return None
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    folders = (spec.submodule_search_locations if spec else None) or []
    found = [path for folder in folders for path in Path(folder).glob("libtensorrt_rtx.so.*")]
    return min(found, default=None)


@contextlib.contextmanager
def _started(module: str) -> Iterator[_Waiting]:
    """Yield a running builder; it has ended afterwards, also after Ctrl-C. Raises: BackendError."""
    told, held = os.pipe()
    library = runtime_library(module)
    with temporaries.folder() as folder:
        if library is not None:
            (folder / library.name.partition(".so")[0]).with_suffix(".so").symlink_to(library)
        try:
            with _process(module, str(folder), told) as process:
                try:
                    yield _Waiting(module, process)
                finally:
                    process.kill()
                    process.wait()
        finally:
            os.close(held)


def _process(module: str, folder: str, told: int) -> subprocess.Popen[str]:
    """Return the running builder, which has the end `told` of the pipe. Raises: BackendError."""
    try:
        return subprocess.Popen(  # noqa: S603 - our own module in our own interpreter
            [sys.executable, "-m", _PROGRAM, str(os.getpid()), str(told), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=folder,
            env=_environment(folder, os.environ),
            pass_fds=(told,),
        )
    except OSError as error:
        raise BackendError(f"cannot start the builder: {error.strerror or error}") from error
    finally:
        os.close(told)


def _environment(folder: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the builder's environment: our import path, and `folder` among the libraries'."""
    libraries = inherited.get("LD_LIBRARY_PATH", "")
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [folder, libraries])),
    }


def _outcome(code: int, answer: str, log: str, model: str) -> tuple[str | None, str]:
    try:
        said: dict[str, Any] = json.loads(answer) if code == 0 else {}
    except ValueError:
        said = {}
    if "inspection" in said:
        return said["inspection"], log
    last = _last_lines(log)
    if "error" in said:
        raise _rebuilt(said["error"], last)
    raise BackendError(
        f"the builder {_ending(code)} while it built {model}\n{last}".rstrip(),
        fix=_advice(last) or "the last lines of its log, above, say how far it came",
    )


def _rebuilt(error: Mapping[str, str], last: str) -> DeployError:
    """Return the error that the builder's process raised, with its log where that says more."""
    kind: type[DeployError] = getattr(errors, error["kind"])
    found = error["found"]
    if not error["fix"] and last:
        found = f"{found}\n{last}"
    return kind(found, expected=error["expected"], fix=error["fix"] or _advice(last))


def _advice(text: str) -> str:
    return next((fix for pattern, fix in _FIXES if re.search(pattern, text)), "")


def _last_lines(log: str) -> str:
    """Return the errors at the end of a log, or its last lines where it names none."""
    lines = [line for line in log.splitlines() if line.strip()]
    wrong = [line for line in lines if line.startswith(("[E]", "[I] [E]"))]
    return "\n".join((wrong or lines)[-_LAST:])


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
