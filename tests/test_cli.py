"""The command line: option values, printing, help, and the installed wheel."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploykit import cli
from deploykit.cli import options, parsing, printing
from deploykit.errors import OptionError
from deploykit.measuring.environment import Row
from deploykit.values import BenchRecord, Precision

if TYPE_CHECKING:
    from _pytest.capture import CaptureResult

    Captured = CaptureResult[str]

ROOT = Path(__file__).parent.parent
DISTRIBUTION = "deploykit-vision"


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("640", ((640, 640),)),
        ("480x640", ((480, 640),)),
        ("480x640,640x480", ((480, 640), (640, 480))),
        (None, ()),
    ],
)
def test_an_input_size_is_height_by_width(
    text: str | None, sizes: tuple[tuple[int, int], ...]
) -> None:
    assert options.image_sizes(text) == sizes


@pytest.mark.parametrize("text", ["", "x", "640x", "-1x3", "1e3", "640x640,"])
def test_a_malformed_input_size_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="HxW"):
        options.image_sizes(text)


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
    assert options.names(["a,b", "c"]) == ("a", "b", "c")
    assert options.names([]) is None
    assert options.names(None) is None
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
    assert options.calibration(tmp_path, None, None, needed=True) == f"folder:{tmp_path}"
    assert options.calibration(None, "coco:x", None, needed=True) == "coco:x"
    assert options.calibration(None, None, None, needed=False) is None
    with pytest.raises(OptionError, match="together"):
        options.calibration(tmp_path, "coco:x", None, needed=True)


def test_a_table_stands_numbers_right_and_words_left() -> None:
    text = printing.table(("name", "FPS"), [("a", "9.5"), ("longer", "100.25")])
    assert text.splitlines() == [
        "name    FPS",
        "------  ------",
        "a          9.5",
        "longer  100.25",
    ]


def test_what_doctor_says_fits_eighty_columns_and_its_commands_can_be_copied() -> None:
    sentence = "something that is said at some length about what is not there, and why so"
    rows = [
        Row("a topic", "absent", f"{sentence}; {sentence}", "`pip install 'one==1.*' two`"),
        Row("b", "ok", "fine"),
        Row("c", "warn", sentence, f"{sentence}: `deploykit build m.onnx -o e`; else: `x y`"),
    ]
    text = printing.findings(rows)
    lines = [line.strip() for line in text.splitlines()]
    assert {"pip install 'one==1.*' two", "deploykit build m.onnx -o e", "x y"} <= set(lines)
    assert max(map(len, text.splitlines())) <= 80
    assert "`" not in text
    assert re.sub(r"\s+", " ", text).count(sentence) == 4


def test_a_warning_of_bench_is_said_once_with_all_that_it_concerns() -> None:
    made = BenchRecord("a.onnx", "0", "onnxruntime", "device", 1, (0.01,) * 9)
    slow = ("the governor is powersave", "other work on the machine")
    records = [
        dataclasses.replace(made, warnings=slow),
        dataclasses.replace(made, batch_size=8, warnings=slow[:1]),
        dataclasses.replace(made, model="b.onnx", warnings=slow[:1]),
    ]
    assert printing.measurements(records).splitlines()[-2:] == [
        "warning: a.onnx, b.onnx: the governor is powersave",
        "warning: a.onnx: other work on the machine",
    ]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1536, "1.54 kB"), (2_100_000, "2.1 MB"), (3e9, "3 GB")]
)
def test_sizes_are_decimal(count: int, text: str) -> None:
    assert printing.size(count) == text


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return what a command prints that must succeed."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> Captured:
    """Return what a command prints that must end with exit status 2."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    return capsys.readouterr()


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_the_help_page_lists_every_command_with_its_first_line(
    capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    text = shown(capsys, flag)
    for name, command in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(parsing.summary(command))}$", text, re.MULTILINE)


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert shown(capsys, flag) == f"deploykit {metadata.version(DISTRIBUTION)}\n"


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_every_option(
    capsys: pytest.CaptureFixture[str], name: str, flag: str
) -> None:
    text = shown(capsys, name, flag)
    assert "--json" in text
    parameters = inspect.signature(cli.COMMANDS[name]).parameters
    groups = parsing.groups(cli.COMMANDS[name]).values()
    shared = sum(len(dataclasses.fields(group)) - 1 for group in groups)
    entries = re.findall(r"^  (-\S.*?|[A-Z]+)(?:\n {10,}| {2,})(\S.*)$", text, re.MULTILINE)
    assert len(entries) == len(parameters) + shared + 1  # and --help
    assert all(len(explained) > 5 for _, explained in entries)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_ends_its_help_with_examples_that_parse(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    examples = parsing.examples(cli.COMMANDS[name])
    assert examples
    assert shown(capsys, name, "--help").endswith(
        "\n".join(f"  {line}" for line in examples) + "\n"
    )
    for line in examples:
        program, command, *words = line.split()
        assert (program, command) == ("deploykit", name)
        assert parsing.parse(name, cli.COMMANDS[name], words)


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help_loads_the_command_line_and_the_standard_library_alone(words: list[str]) -> None:
    code = (
        "import sys; before = set(sys.modules); from deploykit import cli\n"
        f"try: cli.main({words})\n"
        "except SystemExit: pass\n"
        "roots = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "foreign = roots - set(sys.stdlib_module_names) - {'deploykit'}\n"
        "rooms = {n.split('.')[1] for n in sys.modules if n.startswith('deploykit.')}\n"
        "foreign |= rooms - {'cli', 'errors', 'stats', 'values'}\n"
        "sys.exit(str(foreign) if foreign else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no command"),
        (["bilt"], r"unknown command 'bilt'[\s\S]*did you mean build\?"),
        (["build", "m.onnx", "--outputs", "x"], r"unknown option '--outputs'[\s\S]*--output"),
        (["build", "m.onnx"], "required: -o/--output"),
        (["build", "m.onnx", "n.onnx", "-o", "x"], "n.onnx"),
        (["bench", "m.onnx", "--warmup", "long"], "--warmup: invalid float value: 'long'"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_message(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    said = refused(capsys, *words)
    assert said.out == ""
    assert re.match(rf"deploykit: .*{message}", said.err)
    if words:
        error = json.loads(refused(capsys, *words, "--json").out)["error"]
        assert error["type"] == "OptionError"
