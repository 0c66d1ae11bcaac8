"""Words in the names that training scripts give to what they save."""

from __future__ import annotations

import re

_WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
AVERAGES = frozenset(("ema", "swa", "average", "averaged", "shadow", "teacher"))
"""In the name of a copy whose weights are averages over the training."""
BESIDE = AVERAGES | frozenset(
    ("loss", "losses", "criterion", "criteria", "metric", "metrics", "accuracy")
)
"""In the name of what training keeps beside the network."""


def words(name: str) -> frozenset[str]:
    """Return the words of a name: `modelEMA` and `model_ema` have the same."""
    return frozenset(word.lower() for word in _WORDS.findall(name))
