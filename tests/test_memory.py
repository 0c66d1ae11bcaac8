"""How much memory there is, read from files as Linux writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploykit.precision import memory

if TYPE_CHECKING:
    from pathlib import Path

MEMINFO = (
    "MemTotal:       24000 kB\nMemFree:    1 kB\nMemAvailable:    9000 kB\nHugePages_Total: 0\n"
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of Linux's."""
    monkeypatch.setattr(memory, "_MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    return tmp_path


def test_a_system_that_does_not_say_gives_nothing(files: Path) -> None:
    assert memory.available() is None
    (files / "meminfo").write_text("MemTotal: 5 kB\n")
    assert memory.available() is None


def test_a_machine_gives_what_is_available(files: Path) -> None:
    (files / "meminfo").write_text(MEMINFO)
    assert memory.available() == 9000 * 1024


@pytest.mark.parametrize(
    ("limit", "current", "cached", "expected"),
    [
        ("8000000", "5000000", "1000000", 4_000_000),
        ("8000000", "9000000", "0", 0),
        ("99000000", "5000000", "0", 9000 * 1024),
        ("max", "5000000", "0", 9000 * 1024),
    ],
)
def test_a_container_gives_what_its_limit_leaves(
    files: Path, limit: str, current: str, cached: str, expected: int
) -> None:
    (files / "meminfo").write_text(MEMINFO)
    (files / "memory.max").write_text(f"{limit}\n")
    (files / "memory.current").write_text(f"{current}\n")
    (files / "memory.stat").write_text(f"anon 77\ninactive_file {cached}\n")
    assert memory.available() == expected
