"""The files of one command, checked together before the slow step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.files import artifacts, paths
from deploykit.measuring import records

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploykit.files.paths import Named


def check(
    reads: Named,
    *,
    output: Path | None = None,
    record: Path | None = None,
    beside: Mapping[str, Path | None] | None = None,
) -> None:
    """Fail before the slow step where two files would be one, or one could not be written.

    reads: what each path that the user gave is. beside: other files that the command writes; the
    sidecar of `output` is one without being named.

    Raises: InputError, OptionError, OutputError.
    """
    if output is not None:
        paths.target(output)  # a name, before others are made from it
    sidecar = {} if output is None else {"the sidecar of -o": artifacts.sidecar(output)}
    written = {"-o": output, **sidecar, **(beside or {})}
    paths.check(reads=reads, writes={**written, "--record": record})
    for path in written.values():
        if path is not None and (path == output or not path.exists()):
            artifacts.check_writable(path)
    if record is not None:
        records.check_appendable(record)
