"""What a command seldom needs is imported when it is used, and then works as ever."""

from __future__ import annotations

import subprocess
import sys

import pytest

FIRST = "import sys; from deploykit.files import lateness; lateness.begin(); lateness.begin()\n"
LAST = "sys.exit(str('sympy.core' in sys.modules))"
USES = {
    "import onnx_ir": "False",
    "import onnx_ir as ir; assert str(ir.SymbolicDim('n') + 1) == 'n + 1'": "True",
    "import onnx_ir as ir; assert ir.SymbolicDim('n') == 'n'": "False",
    "import onnx_ir, sympy.core.numbers as n; assert n.Integer(2) + 1 == 3": "True",
    "from sympy import Integer; assert Integer(2) + 1 == 3": "True",
}


@pytest.mark.parametrize(("use", "loaded"), USES.items())
def test_sympy_is_loaded_when_it_is_used(use: str, loaded: str) -> None:
    command = [sys.executable, "-c", f"{FIRST}{use}\n{LAST}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == loaded


def test_the_finder_is_there_once_and_leaves_other_modules_alone() -> None:
    code = (
        f"{FIRST}sys.exit(str((sys.meta_path.count(lateness.Late), lateness.Late.find_spec('os'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "(1, None)"


@pytest.mark.parametrize("verb", ["building", "quantizing", "checking", "benching", "inspecting"])
def test_a_verb_that_folds_nothing_does_not_import_the_folder(verb: str) -> None:
    code = f"import sys, deploykit.pipeline.{verb}; sys.exit('onnxscript' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
