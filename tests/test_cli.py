"""The command line: option values, printing, help, and the installed wheel."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit import cli
from deploykit.cli import options, printing
from deploykit.errors import OptionError
from deploykit.values import Precision

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("text", "size"), [("640", (640, 640)), ("480x640", (480, 640)), (None, None)]
)
def test_an_input_size_is_height_by_width(text: str | None, size: tuple[int, int] | None) -> None:
    assert options.image_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "640x", "-1x3", "1e3"])
def test_a_malformed_input_size_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="HxW"):
        options.image_size(text)


def test_workspace_needs_a_unit() -> None:
    assert options.byte_count("4G") == 4 << 30
    assert options.byte_count("512MiB") == 512 << 20
    assert options.byte_count(None) is None
    with pytest.raises(OptionError, match="4G"):
        options.byte_count("4")


def test_a_profile_needs_three_shapes_of_each_input() -> None:
    shapes = [["x:1x3x8x8"], ["x:2x3x8x8"], ["x:4x3x8x8"]]
    assert options.profiles(*shapes) == {"x": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}
    with pytest.raises(OptionError, match="incomplete shapes for x"):
        options.profiles(shapes[0], shapes[1], [])
    with pytest.raises(OptionError, match="not a shape"):
        options.profiles(["x:1,3"], [], [])


def test_lists_of_numbers_and_names() -> None:
    assert options.integers("--batch-sizes", "1, 32") == (1, 32)
    assert options.names("a, b") == ("a", "b")
    for bad in ("0", "1,,2", "a"):
        with pytest.raises(OptionError):
            options.integers("--batch-sizes", bad)
    with pytest.raises(OptionError, match="an empty name"):
        options.names("a,,b")


def test_the_float_type_is_never_int8() -> None:
    assert options.float_type("fp16") is Precision.FP16
    with pytest.raises(OptionError, match="fp16 or fp32"):
        options.float_type("int8")


def test_calibration_images_come_from_one_place(tmp_path: Path) -> None:
    assert options.calibration(tmp_path, None, needed=True) == f"folder:{tmp_path}"
    assert options.calibration(None, "coco:x", needed=True) == "coco:x"
    assert options.calibration(None, None, needed=False) is None
    with pytest.raises(OptionError, match="together"):
        options.calibration(tmp_path, "coco:x", needed=True)


def test_a_table_stands_numbers_right_and_words_left() -> None:
    text = printing.table(("name", "FPS"), [("a", "9.5"), ("longer", "100.25")])
    assert text.splitlines() == [
        "name    FPS",
        "------  ------",
        "a          9.5",
        "longer  100.25",
    ]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1536, "1.54 kB"), (2_100_000, "2.1 MB"), (3e9, "3 GB")]
)
def test_sizes_are_decimal(count: int, text: str) -> None:
    assert printing.size(count) == text


def test_a_pipe_gets_progress_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    import time

    def slow() -> range:
        time.sleep(0.03)
        return range(1)

    items = (slow() for _ in range(100))
    assert len(list(printing.bar(items, "work", 100))) == 100
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(re.fullmatch(r"work: \d+/100, \d+ s left", line) for line in lines)


def test_every_command_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    names = [command.name for command in cli.app.registered_commands]
    assert names == sorted(names, key=names.index)
    for name in names:
        assert name is not None
        with pytest.raises(SystemExit) as stopped:
            cli.app([name, "--help"])
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        assert "--json" in text
        for line in text.splitlines():
            assert not re.fullmatch(r"  --[a-z-]+( <[a-z]+>)?", line), f"{name}: {line} has no help"


def test_help_needs_no_heavy_module() -> None:
    code = (
        "import sys; from deploykit import cli\n"
        "try: cli.app(['quantize', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'torch', 'onnx', 'onnxruntime', 'rich', 'PIL'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def names(folder: str) -> list[str]:
    """Return what the Python files of a folder are called."""
    return sorted(path.stem for path in (ROOT / folder).glob("*.py"))


def test_the_wheel_works_from_another_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(target)], check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r}); from deploykit import cli\n"
        "from deploykit.data.sources import SOURCES\n"
        "from deploykit.ops.plugin import OPS\n"
        "from deploykit.recipes.recipe import RECIPES\n"
        f"assert cli.__file__.startswith({str(target)!r}), cli.__file__\n"
        "assert sorted(SOURCES.shipped()) == ['coco', 'folder', 'shapes']\n"
        f"assert sorted(RECIPES.shipped()) == {names('exporters')}\n"
        f"assert sorted(OPS.shipped()) == {names('plugins')}\n"
        "kernels = OPS.folder()\n"
        "for name in ('CMakeLists.txt', 'kernel.cuh', 'roi_pool.cu', 'tensorrt/plugin.cpp'):\n"
        "    assert (kernels / name).is_file(), name\n"
        "cli.app(['doctor'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in done.stdout.lower()
