"""Units of work done by this process, or by others on this machine and elsewhere through Ray."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import socket
from typing import TYPE_CHECKING, Any

from deploykit.errors import BackendError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deploykit.precision.sensitivity.work import Question, Unit, Worker

_ANSWERS = 5.0
"""Seconds in which a cluster must answer."""
_TRIES = 3
"""Times a unit is done again when the process that did it ends."""


def results(
    worker: Worker, units: Sequence[Unit], *, workers: int = 1, address: str | None = None
) -> Iterator[tuple[Unit, Any]]:
    """Yield each unit with its result, as they are done.

    workers: processes of this machine; address: of a running Ray cluster, or `auto`, whose workers
    must have deploykit and see the same files.

    Raises: OptionError without Ray; BackendError where workers end again and again; what the work
    raises.
    """
    if workers < 1:
        raise OptionError(f"--workers {workers}", expected="at least 1")
    if workers == 1 and address is None:
        for unit in units:
            yield unit, worker.do(unit)
        return
    if importlib.util.find_spec("ray") is None:
        raise OptionError(
            "several workers need Ray", fix="pip install 'deploykit-vision[ray]', or --workers 1"
        )
    yield from _by_ray(worker.question, units, workers, address)


def _by_ray(
    question: Question, units: Sequence[Unit], workers: int, address: str | None
) -> Iterator[tuple[Unit, Any]]:
    import ray  # noqa: PLC0415 - an extra, and slow

    with _cluster(ray, workers, address):
        asked = ray.put(question)
        do = ray.remote(max_retries=_TRIES, num_cpus=1)(_do)
        waiting = {do.remote(asked, unit): unit for unit in units}
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            for each in done:
                try:
                    yield waiting[each], ray.get(each)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:
                    raise BackendError(
                        f"a worker ended {_TRIES + 1} times at one piece of work: "
                        f"{type(error).__name__}",
                        fix="give each worker more memory, or take fewer; what is done is kept",
                    ) from error
                del waiting[each]


@contextlib.contextmanager
def _cluster(ray: Any, workers: int, address: str | None) -> Iterator[None]:  # noqa: ANN401 - the module
    """Join a cluster, or start one of so many workers on this machine; leave it afterwards."""
    own = not ray.is_initialized()
    if own:
        if address is not None:
            _check(address)
        how = {"address": address} if address else {"num_cpus": workers}
        try:
            ray.init(**how, include_dashboard=False, log_to_driver=False, logging_level="error")
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise BackendError(
                f"cannot reach Ray at {address or 'this machine'}: {error}"
            ) from error
    try:
        yield
    finally:
        if own:
            ray.shutdown()


def _check(address: str) -> None:
    """Check that something answers where Ray should: Ray itself tries for minutes, and talks.

    Raises: BackendError.
    """
    match = re.fullmatch(r"(?:ray://)?(.+):(\d{1,5})", address)
    if match is None:
        return  # such as `auto`, which Ray knows at once
    try:
        socket.create_connection((match[1], int(match[2])), timeout=_ANSWERS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise BackendError(
            f"nothing answers at {address}: {error}",
            expected="HOST:PORT of a Ray cluster, or auto",
            fix="start one there: ray start --head --port 6379",
        ) from error


_own: list[Worker] = []
"""The worker of this process, for the question that it was asked last."""


def _do(question: Question, unit: Unit) -> Any:  # noqa: ANN401 - as the unit's kind
    from deploykit.precision.sensitivity.work import Worker  # noqa: PLC0415 - of this module's own

    if not _own or _own[0].question != question:
        _own[:] = [Worker(question)]
    return _own[0].do(unit)
