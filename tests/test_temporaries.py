"""What a process that was killed leaves behind is swept by the next one; nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deploykit.backends import _builder, tensorrt_rtx
from deploykit.files import artifacts, temporaries

HERE = tensorrt_rtx.availability()
needs_builder = pytest.mark.skipif(not HERE.builds, reason=HERE.reason)
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
PATIENCE = 120.0

HOLDS = """
import sys, time
from pathlib import Path
from deploykit.files import artifacts, temporaries
with artifacts.replacing(Path(sys.argv[1])), temporaries.folder() as folder:
    (folder / "inside").write_text("x")
    print(flush=True)
    time.sleep(60)
"""


def holder(path: Path, scratch: Path) -> subprocess.Popen[bytes]:
    """Return a process that holds a temporary file beside `path` and a folder in `scratch`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@needs_proc
def test_what_a_killed_process_left_goes_with_the_next_write_and_a_live_one_s_stays(
    tmp_path: Path,
) -> None:
    scratch, outputs = tmp_path / "tmp", tmp_path / "out"
    scratch.mkdir()
    outputs.mkdir()
    dead, alive = (holder(outputs / name, scratch) for name in ("a.onnx", "b.onnx"))
    try:
        dead.kill()
        dead.wait()
        artifacts.write_text(outputs / "c.txt", "whole")
        assert temporaries.sweep(scratch) == 1
        names = sorted(path.name for path in outputs.iterdir())
        assert [name[:3] for name in names] == [".b.", "c.t"], "of the dead one nothing is left"
        assert len(list(scratch.iterdir())) == 1
    finally:
        alive.kill()
        alive.wait()
        for each in (dead, alive):
            assert each.stdout is not None
            each.stdout.close()


@needs_proc
@pytest.mark.parametrize(
    "name",
    [
        ".m.onnx.deploykit-{pid}-{start}-{place}.x.onnx",
        ".m.onnx.deploykit-999999999-1-00000000.x.onnx",
        "deploykit-notes.txt",
        ".m.onnx.abcd.onnx",
    ],
)
def test_files_of_live_processes_other_machines_and_users_are_left_alone(
    name: str, tmp_path: Path
) -> None:
    pid = os.getpid()
    name = name.format(pid=pid, start=temporaries._start(pid), place=temporaries._place())
    (tmp_path / name).touch()
    assert temporaries.sweep(tmp_path) == 0
    assert (tmp_path / name).exists()


@needs_proc
def test_a_number_that_came_again_is_another_process(tmp_path: Path) -> None:
    stale = tmp_path / f".m.deploykit-{os.getpid()}-1-{temporaries._place()}.x.onnx"
    stale.touch()
    folder = tmp_path / f"deploykit-{os.getpid()}-1-{temporaries._place()}.y"
    folder.mkdir()
    (folder / "inside").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").touch()
    assert temporaries.sweep(tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_long_name_still_has_a_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / f"{'ü' * 120}.onnx"
    artifacts.write_text(path, "whole")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def children(pid: int) -> list[int]:
    """Return the processes whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[1] == str(pid) and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def until(condition: Any) -> bool:
    """Return whether something becomes true in time."""
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


@needs_builder
@needs_proc
@pytest.mark.parametrize(
    ("number", "later"), [(signal.SIGKILL, 0.0), (signal.SIGKILL, 1.5), (signal.SIGTERM, 1.5)]
)
def test_a_build_that_is_killed_takes_its_builder_with_it(
    number: signal.Signals, later: float, toy: Any, tmp_path: Path
) -> None:
    model, engine = toy(classify=False).save(tmp_path / "toy.onnx"), tmp_path / "out" / "toy.engine"
    engine.parent.mkdir()
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "deploykit", "build", model, "--sm", "86", "-o", engine],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PYTHONFAULTHANDLER": "1"},
    )
    if not until(lambda: children(process.pid) or process.poll() is not None):
        process.send_signal(signal.SIGABRT)  # the fault handler tells where it stands
        pytest.fail(process.communicate(timeout=PATIENCE)[1].decode())
    builders = children(process.pid)
    time.sleep(later)  # while it starts, and while it builds
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE)
    assert until(lambda: not any(Path(f"/proc/{pid}/mem").exists() for pid in builders))
    if number is signal.SIGTERM and process.returncode == 128 + number:
        assert b"ended by SIGTERM" in said
        assert (b"no output was written" in said) is not engine.exists()
    elif number is signal.SIGTERM:
        assert process.returncode in (0, -number), "where its work was over, Python itself ends"
        assert engine.exists()
    for place in (engine.parent, tmp_path / "tmp"):
        found = temporaries.sweep(place)
        assert number is signal.SIGKILL or not found, "SIGTERM leaves nothing to sweep"
        assert not [path for path in place.iterdir() if "deploykit-" in path.name]


FOLLOWS = """
import os, sys, time
from deploykit.backends import _builder
_builder.ctypes = None  # as where there is no prctl
reader, writer = os.pipe()
child = os.fork()
if not child:
    os.close(writer)
    _builder.threading.Thread(target=_builder._await_end, args=(reader,)).start()
    time.sleep(60)
print(child, flush=True)
sys.stdin.read()
os._exit(0)
"""


@needs_proc
def test_without_prctl_the_pipe_tells_that_the_parent_has_ended() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FOLLOWS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    process.kill()
    assert until(lambda: temporaries._start(child) is None)
    process.communicate()


def test_a_builder_whose_parent_ended_before_it_could_follow_ends_at_once() -> None:
    code = "from deploykit.backends import _builder; _builder.follow(1, 0); print('goes on')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert _builder.__doc__
