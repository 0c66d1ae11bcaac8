"""The README's code blocks run, in order, as a reader would type them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
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


def test_every_block_runs_in_order(tmp_path: Path, photos: Path) -> None:
    for name in ("shapes/yolov6_pico.pth", "shapes_masks/mask_rcnn_light.pth"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    shutil.copytree(photos, tmp_path / "photos")
    said: list[str] = []
    for kind, code in BLOCKS:
        lines = [code] if kind == "python" else [x for x in code.splitlines() if "make " not in x]
        for line in lines:
            module = ["-c", line] if kind == "python" else ["-m", *line.split()]
            done = subprocess.run(
                [sys.executable, *module], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            if "tensorrt_rtx" in done.stderr and "not installed" in done.stderr:
                pytest.skip(done.stderr.splitlines()[0])
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            said.append(done.stdout)
    assert len(said) > 11
    assert any("in INT8" in text for text in said)


def test_every_linked_file_exists() -> None:
    for document in (
        *("README.md", "CONTRIBUTING.md", "exporters/README.md", "calib/README.md"),
        "plugins/README.md",
    ):
        text = (ROOT / document).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            if not link.startswith("http"):
                assert ((ROOT / document).parent / link).exists(), f"{document}: {link}"
