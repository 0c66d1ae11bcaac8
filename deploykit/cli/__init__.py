"""The command line: parse, call one function, print.

Heavy imports happen inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import functools
import sys
from typing import TYPE_CHECKING, Any

import typer

from deploykit.cli import checking, making, printing
from deploykit.errors import DeployError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable

INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell gives it: 128 + SIGINT."""
_NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with every foreseen failure turned into one message and a status."""

    @functools.wraps(command)
    def run(**options: Any) -> None:  # noqa: ANN401 - typer passes what it parsed
        as_json = bool(options.get("as_json"))
        try:
            command(**options)
        except DeployError as error:
            printing.complain(error, as_json=as_json)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            print("deploykit: interrupted; no output was written", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except OSError as error:
            if error.errno not in _NO_WRITING:
                raise
            target = error.filename or "a temporary file"
            printing.complain(
                OutputError(f"cannot write {target}: {error.strerror}"), as_json=as_json
            )
            sys.exit(OutputError.exit_code)

    return run


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help takes a third of the time of the framed one
    pretty_exceptions_enable=False,
    help="From a trained PyTorch checkpoint to a proven TensorRT engine:\n\n"
    "export, quantize, build, then inspect, verify, eval, bench and report.",
)
for _name, _command in {**making.COMMANDS, **checking.COMMANDS}.items():
    app.command(_name)(guarded(_command))


def main() -> None:
    """Run one command and exit: 0 done, 1 a check said no, 2 usage or bad input."""
    app()
