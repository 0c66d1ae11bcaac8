"""The README's code blocks run, in order, as a reader would type them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(
    r"^```(sh|python)\n(.*?)^```",
    (ROOT / "README.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)


def test_the_make_targets_exist() -> None:
    for _, code in BLOCKS:
        for target in re.findall(r"^make (\w+)$", code, re.MULTILINE):
            command = ["make", "--dry-run", "--always-make", target]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def script() -> str:
    """Return what a reader types: all blocks in order, in one shell, without the make targets."""
    python = "python - <<'END'\n{}END\n"
    code = [code if kind == "sh" else python.format(code) for kind, code in BLOCKS]
    return "".join(block for block in code if not block.startswith("make "))


def test_every_block_runs_as_pasted_one_after_the_other(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "examples").symlink_to(ROOT / "examples")
    (clone / ".venv").symlink_to(sys.prefix)
    done = subprocess.run(
        ["bash", "-e", "-c", script()], cwd=clone, capture_output=True, text=True, check=False
    )
    if "tensorrt_rtx" in done.stderr and "not installed" in done.stderr:
        pytest.skip(done.stderr.splitlines()[0])
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.count("in INT8") >= 3
    left = {path.name for path in (clone / "out" / "readme").iterdir()}
    assert {"pico.int8.engine", "pico.fp16.engine", "masks.int8.engine", "report.html"} <= left
    assert {path.name for path in clone.iterdir()} == {".venv", "examples", "out"}


def test_every_linked_file_exists() -> None:
    for document in (
        *("README.md", "CONTRIBUTING.md", "exporters/README.md", "calib/README.md"),
        *("plugins/README.md", "docs/index.md", "docs/gpu-machine.md"),
    ):
        text = (ROOT / document).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            if not link.startswith("http"):
                assert ((ROOT / document).parent / link).exists(), f"{document}: {link}"
