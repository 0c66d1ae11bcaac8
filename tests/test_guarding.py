"""Whatever happens in a command ends as one message and a status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit.cli import CLOSED, INTERRUPTED, guarding, printing
from deploykit.errors import InputError


def ended(
    capsys: pytest.CaptureFixture[str], error: BaseException, **options: object
) -> tuple[int, str]:
    """Return the status and the words of a command that raises `error`."""

    def command(**_: object) -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        guarding.guarded(command)(**options)
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.err + said.out


class PanicException(BaseException):
    pass


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError("deep"), PanicException("rust")])
def test_what_nobody_foresaw_is_one_message_with_the_path_of_its_log(
    error: BaseException,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status, said = ended(capsys, error)
    (log,) = tmp_path.glob("deploykit-crash-*.log")
    assert status == 2
    assert said.splitlines() == [
        f"deploykit: failed in a way that was not foreseen: {guarding._line(error)}",
        f"to fix: report it with {log}",
    ]
    assert "Traceback" in log.read_text()
    status, said = ended(capsys, error, as_json=True)
    assert json.loads(said)["error"]["type"] == "UnforeseenError"


def test_an_error_of_the_system_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(36, "File name too long", "x" * 20)
    assert ended(capsys, error) == (
        2,
        f"deploykit: cannot read or write {'x' * 20}: File name too long\n",
    )


def test_after_ctrl_c_the_files_that_were_written_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    record, output = tmp_path / "r.jsonl", tmp_path / "m.onnx"

    def command(**_: object) -> None:
        record.write_text("{}\n")
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        guarding.guarded(command)(record=record, output=output)
    assert stopped.value.code == INTERRUPTED
    said = capsys.readouterr().err
    assert said == f"deploykit: interrupted; written before that: {record}\n"
    assert ended(capsys, KeyboardInterrupt(), record=record)[1].endswith("no output was written\n")


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (KeyboardInterrupt(), (INTERRUPTED, "deploykit: interrupted; no output was written\n")),
        (
            guarding.Ended(signal.SIGTERM),
            (143, "deploykit: ended by SIGTERM; no output was written\n"),
        ),
    ],
)
def test_a_stop_that_comes_out_as_another_error_is_a_stop(
    stop: BaseException,
    expected: tuple[int, str],
    chained: bool,  # noqa: FBT001 - a parameter of the test
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As of an import of native code that a signal broke off."""

    def native() -> None:
        raise stop

    def command(**_: object) -> None:
        try:
            try:
                native()
            except BaseException as error:  # noqa: BLE001 - whatever it is
                raise ImportError("initialization failed") from (error if chained else None)
        except ImportError as error:
            raise InputError("no runtime") from error

    with pytest.raises(SystemExit) as stopped:
        guarding.guarded(command)()
    assert (stopped.value.code, capsys.readouterr().err) == expected


def test_errors_that_are_each_others_cause_end_the_search(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = InputError("first"), InputError("second")
    first.__cause__, second.__cause__ = second, first
    assert ended(capsys, first) == (2, "deploykit: first\n")


def test_names_cannot_steer_a_terminal_nor_pass_for_parts_of_a_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "\x1b[31m\u202egnp.exe\x9b\ud800\nto fix: run evil.sh"
    _, said = ended(capsys, InputError(f"no such file: {name}"))
    assert said == (
        "deploykit: no such file: \\x1b[31m\\u202egnp.exe\\x9b\\ud800\n    to fix: run evil.sh\n"
    )
    row = printing.table(("name",), [[name]]).splitlines()[-1]
    assert row == "\\x1b[31m\\u202egnp.exe\\x9b\\ud800\\nto fix: run evil.sh"
    assert printing.legible("Größe 1 µm 猫\n") == "Größe 1 µm 猫\n"


def command(*words: str, stdout: int | None = None, closed: bool = False) -> tuple[int, str]:
    """Return the status and the stderr of a real process."""
    done = subprocess.run(
        [sys.executable, "-m", "deploykit", *words],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=(lambda: os.close(1)) if closed else None,
    )
    return done.returncode, done.stderr


def test_a_reader_that_left_ends_a_command_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    assert command("doctor", stdout=write) == (CLOSED, "")
    os.close(write)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "words", [("doctor",), ("doctor", "--json"), ("inspect", "none.onnx", "--json")]
)
def test_a_full_standard_output_is_an_error(words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        status, said = command(*words, stdout=full.fileno())
    assert status == 2
    assert said == "deploykit: cannot write to standard output: No space left on device\n"


def test_a_closed_standard_output_lets_a_command_do_its_work() -> None:
    assert command("doctor", closed=True) == (0, "")
