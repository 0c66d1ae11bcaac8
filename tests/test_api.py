"""The public names of the package."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import deploykit


def test_the_public_names_are_sorted_and_all_there() -> None:
    assert deploykit.__all__ == sorted(deploykit.__all__)
    for name in deploykit.__all__:
        assert getattr(deploykit, name) is not None
        assert name == "__version__" or getattr(deploykit, name).__doc__


def test_an_author_of_an_extension_finds_the_public_names_with_dir() -> None:
    assert dir(deploykit) == deploykit.__all__
    assert {"Recipe", "Preprocess", "Source", "Plugin", "KeepFloat", "DeployError"} <= {
        *dir(deploykit)
    }


def test_the_typed_program_uses_every_public_name() -> None:
    tree = ast.walk(ast.parse(Path(__file__).with_name("typed_api.py").read_text(encoding="utf-8")))
    attributes = (node for node in tree if isinstance(node, ast.Attribute))
    used = {
        n.attr for n in attributes if isinstance(n.value, ast.Name) and n.value.id == "deploykit"
    }
    assert used == set(deploykit.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        deploykit.quantise  # noqa: B018 - the access is the test


def test_the_version_is_the_packages() -> None:
    assert deploykit.__version__ == metadata.version("deploykit-vision")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("deploykit", "numpy"),
        ("deploykit.cli", "numpy"),
        ("deploykit.pipeline", "torch"),
        ("deploykit.precision.quantization", "torch"),
        ("deploykit.measuring.benchmarking", "torch"),
    ],
)
def test_importing_a_light_module_leaves_heavy_ones_alone(module: str, absent: str) -> None:
    code = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
