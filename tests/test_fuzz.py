"""Hostile commands over every verb and kind of file: no code runs, nothing hangs or breaks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = 420
"""Commands in CI; `python -m tests.fuzz --seconds 600` is the longer run by hand."""


@pytest.mark.skipif(sys.platform != "linux", reason="forks and limits memory as Linux does")
def test_hostile_commands_end_as_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--count", str(COUNT)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    with capsys.disabled():
        sys.stderr.write("\n" + "\n".join(done.stdout.splitlines()[-4:]) + "\n")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    counted = re.search(r"(\d+) hostile commands", done.stdout)
    assert counted is not None
    assert int(counted[1]) >= COUNT
