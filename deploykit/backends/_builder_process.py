"""A build in a process of its own: a native abort becomes an error, not the end of the program.

What runs there is `_builder`. It ends with this process, however that ends: Linux sends it a
signal, and everywhere a pipe tells it, of which this process holds the other end.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import errors
from deploykit.errors import BackendError, DeployError
from deploykit.files import temporaries

if TYPE_CHECKING:
    from collections.abc import Mapping

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


def build(request: Request, *, library: Path | None = None) -> tuple[str | None, str]:
    """Return the inspector's JSON (None where there is none) and the native log.

    library: the runtime library that the parser opens under its name without a version.

    Raises: BackendError with the last lines of the log, or what the builder raised.
    """
    with temporaries.folder() as folder:
        if library is not None:
            (folder / library.name.partition(".so")[0]).with_suffix(".so").symlink_to(library)
        done = _ask(json.dumps(asdict(request)), str(folder))
    return _outcome(done, Path(request.model).name)


def _ask(request: str, folder: str) -> subprocess.CompletedProcess[str]:
    """Return what the builder's process answers; Ctrl-C ends it too, and waits for its end."""
    told, held = os.pipe()
    command = [sys.executable, "-m", _PROGRAM, str(os.getpid()), str(told)]
    try:
        process = _started(command, folder, told)
        with process:
            try:
                answer, log = process.communicate(request)
            except BaseException:
                process.kill()
                process.wait()
                raise
    finally:
        os.close(held)
    return subprocess.CompletedProcess(command, process.returncode, answer, log)


def _started(command: list[str], folder: str, told: int) -> subprocess.Popen[str]:
    """Return the running builder, which has the end `told` of the pipe. Raises: BackendError."""
    try:
        return subprocess.Popen(  # noqa: S603 - our own module in our own interpreter
            command,
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


def _outcome(done: subprocess.CompletedProcess[str], model: str) -> tuple[str | None, str]:
    try:
        said: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    except ValueError:
        said = {}
    if "inspection" in said:
        return said["inspection"], done.stderr
    last = _last_lines(done.stderr)
    if "error" in said:
        raise _rebuilt(said["error"], last)
    raise BackendError(
        f"the builder {_ending(done.returncode)} while it built {model}\n{last}".rstrip(),
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
