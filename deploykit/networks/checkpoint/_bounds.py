"""How much a checkpoint may take of memory and time: every bound of the reader, with its reason.

A file of N bytes takes at most `FREE + RATIO * N` for what is unpacked from it, as much again for
the weights, and `CELL * P` for the objects of its pickles, P bytes long together and of at most
`INSTRUCTIONS` instructions. Nothing is allocated because the file says so: `bytearray(N)` is a
record, an expanded tensor is counted before it is made.
"""

from __future__ import annotations

from deploykit.errors import CheckpointError

FREE = 256 << 20
"""Bytes up to which nothing is suspicious: they fit into any machine's memory."""
RATIO = 4
"""FP16 weights double when they become FP32, and tied weights are stored once and read twice.
Weights hardly compress: whoever zips them gains 10 %, a bomb gains a factor of 1000."""
MOST = 16 << 30
"""Bytes that an archive may unpack to, optimizer state and all."""
CELL = 160
"""Bytes of memory that one byte of a pickle can take: `}` makes a dictionary of 64 and a place of
8 on the stack, the memo adds 90 for each, and growing lists are up to 1/8 larger than they need."""
INSTRUCTIONS = 1 << 22
"""Of one pickle: a tensor takes about 25, so this is 160,000 tensors; they are read in 5 s."""
HEADER = 16 << 20
"""Bytes of a safetensors header, which are about 100 per tensor; parsed, each can take 64."""
TENSORS = 20_000
"""In one network; real ones have some thousands."""
LOOKS = 1_000_000
"""Modules, with their attributes, or dictionaries that are looked at: a network of 5,000 modules
has 200,000. It takes a second."""
CANDIDATES = 32
OFFERED = 60_000
"""Sets of tensors that a file offers as the network, and tensors in them: families look at each."""
DEPTH = 100
"""Modules within modules, or dictionaries; real networks have about ten levels."""
VALUES = 100_000
"""Settings and facts that are made readable; what is beyond them is left out and counted."""
READS = 1000
"""Small tensors that are read as settings: each may be a file of an archive."""
NAME = 500
"""Characters in the name of a class: longer ones are made to fill a screen."""


def swollen(what: str, expected: str) -> CheckpointError:
    """Return the error for a file that would take far more memory than it has bytes."""
    return CheckpointError(
        what,
        expected=expected,
        fix="save the weights with torch.save(model.state_dict(), FILE)",
    )
