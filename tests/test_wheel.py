"""The wheel in an environment of its own, without PyTorch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
UV = Path(sysconfig.get_path("scripts")) / "uv"
RTX = "tensorrt_rtx"
APART = (".*", "__pycache__", "build", "out", "tests", "benchmarks", "examples", "docs")


def run(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, words)), cwd=cwd, capture_output=True, text=True, check=False
    )


def installed(python: Path, wheel: Path, extra: str) -> bool:
    """Install the wheel as pinned, from what uv keeps if that suffices; return whether it did."""
    words = ("pip", "install", "--quiet", "--python", python, f"{wheel}{extra}")
    pins = ("--constraint", ROOT / "requirements" / "dev.txt")
    return any(run(UV, *words, *pins, *net).returncode == 0 for net in (["--offline"], []))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, and with the RTX extra if it can be had."""
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*APART))
    made = run(sys.executable, "-m", "build", "--wheel", "-n", "--outdir", folder, source)
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("deploykit_vision-*.whl")
    programs = folder / "environment" / "bin"
    assert run(UV, "venv", "--python", sys.executable, programs.parent).returncode == 0
    extras = ("[rtx]", "") if sys.platform == "linux" else ("",)
    if not any(installed(programs / "python", wheel, extra) for extra in extras):
        pytest.skip("the wheel's requirements are neither in uv's cache nor to be had")
    return programs


def names(folder: str) -> list[str]:
    """Return what the Python files of a folder are called."""
    return sorted(path.stem for path in (ROOT / folder).glob("*.py"))


def test_it_carries_every_module_recipe_plugin_and_source(
    environment: Path, tmp_path: Path
) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "deploykit").rglob("*.py")}
    code = f"""
import deploykit, importlib.util, pathlib
from deploykit.data import sources
from deploykit.ops import plugin
from deploykit.recipes import recipe

assert importlib.util.find_spec("torch") is None
assert {str(environment.parent)!r} in deploykit.__file__, deploykit.__file__
site = pathlib.Path(deploykit.__file__).parent
there = {{str(path.relative_to(site.parent)) for path in site.rglob("*.py")}}
siblings = ("deploykit/_exporters", "deploykit/_plugins", "deploykit/_calib")
assert {{path for path in there if not path.startswith(siblings)}} == {modules}
assert sorted(sources.SOURCES.shipped()) == {names("calib")}
assert sorted(recipe.RECIPES.shipped()) == {names("exporters")}
assert sorted(plugin.OPS.shipped()) == {names("plugins")}
kernels = plugin.OPS.folder()
for name in ("CMakeLists.txt", "kernel.cuh", "roi_pool.cu", "tensorrt/plugin.cpp"):
    assert (kernels / name).is_file(), name
"""
    done = run(environment / "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_it_takes_an_onnx_file_to_an_engine(environment: Path, toy: Any, tmp_path: Path) -> None:
    toy().save(tmp_path / "toy.onnx")

    def said(line: str) -> Any:
        done = run(environment / "deploykit", *line.split(), "--json", cwd=tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    rows = {row["topic"]: row for row in said("doctor")["rows"]}
    assert rows["onnxruntime"]["status"] == "ok"
    assert rows["PyTorch"]["status"] == "absent"
    assert said("inspect toy.onnx")["shares"] == {"fp32": 1.0}
    assert said("build toy.onnx --backend onnxruntime -o ort.engine")["precision"] == {"fp32": 1.0}
    (record,) = said("bench ort.engine --duration 0.1 --warmup 0 --iterations 3")["records"]
    assert len(record["seconds"]) >= 3
    if rows[RTX]["status"] == "absent":
        pytest.skip(rows[RTX]["detail"])
    assert said(f"build toy.onnx --backend {RTX} --sm A10 -o rtx.engine")["bytes"] > 0
    assert said("inspect rtx.engine")["layers"]
