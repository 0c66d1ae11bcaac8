"""What stands between a command and the terminal: every failure is one message and a status."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import __version__
from deploykit.cli import printing
from deploykit.errors import DeployError, InputError, OutputError, not_installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

INTERRUPTED, CLOSED = 130, 141
"""Exit statuses as a shell gives them: 128 + SIGINT, and 128 + SIGPIPE where nobody reads on."""
_BESIDE = (".json", ".log", ".partial")
_SIBLINGS = (".html", ".md")


class Ended(BaseException):
    """Raised by a signal that asks the process to end: what was begun is tidied up first."""

    def __init__(self, number: int) -> None:
        """Keep the signal's number."""
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class UnforeseenError(DeployError):
    """A failure that no check of ours foresaw: a fault of deploykit."""


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with every failure turned into one message and a status."""

    @functools.wraps(command)
    def run(**options: Any) -> None:  # noqa: ANN401 - whatever was parsed
        before = _states(options)
        try:
            command(**options)
        except printing.ReaderGone:
            sys.exit(CLOSED)
        except SystemExit:
            raise
        except BaseException as error:  # noqa: BLE001 - the last net; a panic in Rust is no Exception
            if (stop := _stop(error)) is None:
                sys.exit(_fail(error, as_json=bool(options.get("as_json"))))
            how, status = stop
            _say(f"{how}; {_written(before, _states(options))}")
            sys.exit(status)

    return run


def _stop(error: BaseException) -> tuple[str, int] | None:
    """Return how the command was stopped, and its status; None where `error` is a failure.

    A signal that arrives while native code is imported comes out as the import's own error, with
    what the signal raised somewhere behind it.
    """
    behind, seen = [error], set[int]()
    while behind:
        match each := behind.pop():
            case Ended():
                return f"ended by {each}", each.status
            case KeyboardInterrupt():
                return "interrupted", INTERRUPTED
        seen.add(id(each))
        causes = (each.__cause__, each.__context__)
        behind += [cause for cause in causes if cause is not None and id(cause) not in seen]
    return None


def _fail(error: BaseException, *, as_json: bool) -> int:
    """Print the one message about `error` and return the exit status."""
    known = error if isinstance(error, DeployError) else _named(error)
    try:
        printing.complain(known, as_json=as_json and not isinstance(known, printing.UnsaidError))
    except printing.ReaderGone:
        return CLOSED
    except printing.UnsaidError as unsaid:
        _say(str(unsaid))
    return known.exit_code


def _named(error: BaseException) -> DeployError:
    """Return a foreign error as one of ours: of a file, of a package, or unforeseen."""
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("deploykit"):
        return not_installed("this command", error.name)
    if isinstance(error, OSError) and error.filename is not None:
        return InputError(f"cannot read or write {error.filename}: {error.strerror}")
    if isinstance(error, MemoryError):
        return InputError(
            f"there is not enough memory: {_line(error)}",
            fix="use a smaller batch or input, or a machine with more memory",
        )
    if isinstance(error, OSError) and error.errno in printing.FULL:
        return OutputError(f"cannot write a temporary file: {error.strerror}")
    return UnforeseenError(
        f"failed in a way that was not foreseen: {_line(error)}",
        fix=f"report it with {_log(error)}",
    )


def _line(error: BaseException) -> str:
    """Return the type and the first line of an error."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _log(error: BaseException) -> str:
    """Return the path of a new file that holds the traceback and what was run."""
    import platform  # noqa: PLC0415 - as the others here, seldom needed
    import tempfile  # noqa: PLC0415
    import traceback  # noqa: PLC0415

    text = "\n".join(
        [
            f"deploykit {__version__}, Python {platform.python_version()}, {platform.platform()}",
            f"words: {sys.argv[1:]!r}",
            "".join(traceback.format_exception(error)),
        ]
    )
    try:
        handle, name = tempfile.mkstemp(prefix="deploykit-crash-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as reason:
        return f"its traceback, which could not be kept: {reason.strerror}"
    return name


def _states(options: Mapping[str, Any]) -> dict[Path, tuple[int, int, int] | None]:
    """Return what lies at every path that a command may write; None: nothing."""
    groups = (vars(value) for value in options.values() if dataclasses.is_dataclass(value))
    values = [*options.values(), *(value for group in groups for value in group.values())]
    given = [value for value in values if isinstance(value, Path) and value.name]
    paths = [path.with_name(path.name + end) for path in given for end in ("", *_BESIDE)]
    paths += [path.with_suffix(end) for path in given for end in _SIBLINGS]
    return {path: _state(path) for path in paths}


def _state(path: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError, ValueError):
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None


def _written(
    before: Mapping[Path, tuple[int, int, int] | None],
    after: Mapping[Path, tuple[int, int, int] | None],
) -> str:
    """Return which files changed while a command ran."""
    changed = [str(path) for path, state in after.items() if state != before[path]]
    if not changed:
        return "no output was written"
    return f"written before that: {', '.join(changed)}"


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"deploykit: {printing.legible(text)}", file=sys.stderr)


@contextlib.contextmanager
def tidying() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command as Ctrl-C does, with nothing left behind.

    One that is ignored, as `nohup` makes it, stays so; a second one while the first is served is.
    """
    mine = threading.current_thread() is threading.main_thread()
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    chosen = [number for number in known if mine and signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, _: object) -> None:
        for each in chosen:
            signal.signal(each, signal.SIG_IGN)
        raise Ended(number)

    for number in chosen:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in chosen:
            signal.signal(number, signal.SIG_DFL)


def open_streams() -> None:
    """Make stdin, stdout and stderr usable however the command was started.

    A closed one becomes the null device: else the next file to be opened would get its number, and
    what a library prints would go into that file. Text that a terminal cannot show is escaped.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for good
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError):  # what is in its buffer has nowhere to go
                stream.reconfigure(errors="backslashreplace")
