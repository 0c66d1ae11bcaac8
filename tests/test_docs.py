"""The pages of docs/ name every command and every public name; `make docs` builds them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import deploykit
from deploykit import cli

if TYPE_CHECKING:
    import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}


def test_every_public_name_has_its_entry_in_the_reference_once() -> None:
    entries = re.findall(r"^::: deploykit\.(\w+)$", "".join(PAGES.values()), re.MULTILINE)
    assert sorted(entries) == sorted(set(deploykit.__all__) - {"__version__"})


def test_the_page_of_commands_gets_the_help_of_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    import help_pages

    text = help_pages.on_page_markdown(PAGES["commands.md"])
    for name in cli.COMMANDS:
        assert f"## {name}\n\n```text\nusage: deploykit {name} " in text
    assert help_pages.on_page_markdown("# Other") == "# Other"


def test_the_commands_that_the_pages_show_can_be_read() -> None:
    lines = re.findall(r"^deploykit (.*)$", "".join(PAGES.values()), re.MULTILINE)
    assert len(lines) > 15
    for line in lines:
        name, *words = line.split()
        assert cli.parsing.parse(name, cli.COMMANDS[name], words) is not None


def test_the_python_that_the_pages_show_runs(int8: Path, tmp_path: Path) -> None:
    """Every ONNX file that a block names is a small one in INT8."""
    blocks = re.findall(r"^```python\n(.*?)^```", "".join(PAGES.values()), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        for name in re.findall(r'"([\w.]+\.onnx)"', block):
            shutil.copy(int8, tmp_path / name)
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
