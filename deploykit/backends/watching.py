"""Run a graph with loops that may never end."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from deploykit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PATIENCE = 15.0
"""Seconds that one run of a graph with loops may take: nothing in the file says that they end."""


def run(session: ort.InferenceSession, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
    """Return what `session` computes. Raises: ModelError where it takes more than PATIENCE."""
    options = ort.RunOptions()
    options.log_severity_level = 4  # errors are raised
    late = threading.Event()

    def stop() -> None:
        late.set()
        options.terminate = True  # looked at between two nodes, those of a loop too

    timer = threading.Timer(PATIENCE, stop)
    timer.daemon = True
    timer.start()
    try:
        return list(session.run(list(names), dict(feeds), options))
    except Exception as error:
        if late.is_set():
            raise ModelError(
                f"a loop of the model did not end within {PATIENCE:g} s",
                expected="loops of a few thousand rounds",
                fix="use a smaller batch, or export the model without loops",
            ) from error
        raise
    finally:
        timer.cancel()
