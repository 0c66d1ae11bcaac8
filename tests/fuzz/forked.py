"""Run cases in forks of one warm interpreter, a few at a time, each in a folder of its own."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .case import CANARY, Case, Outcome, Spent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

COMPUTES, STANDS = 20.0, 60.0
"""A command hangs that computes for more seconds, all its processes and threads together, or stands
still for more. Seconds in which it waits for a core are neither: a busy machine judges as a quiet
one does. What a child that has ended waited for counts as standing still: hence so many."""
PEAK = 2 << 30
"""Bytes that a hostile checkpoint below 1 MB may make a command take."""
_ADDRESSES = 24 << 30
"""Bytes of address space of a fork: what protects the machine."""
_STATUSES = (0, 1, 2, 141)
_WATCHED = ("compile", "exec", "ctypes.dlopen", "os.system", "subprocess.Popen", "import")
_LEFT = ("deploykit-graph-", "deploykit-build-")


def warm() -> None:
    """Import what commands need, so that forks need not."""
    import cv2
    import onnx.checker
    import onnx.reference
    import onnx.shape_inference
    import onnxruntime
    import onnxscript.optimizer
    import torch
    from PIL import Image

    import deploykit
    from deploykit import cli, pipeline

    for name in deploykit.__all__:
        getattr(deploykit, name)
    Image.init()
    del cv2, onnx, onnxruntime, onnxscript, torch, cli, pipeline
    gc.collect()
    gc.freeze()


@dataclass
class _Running:
    case: Case
    folder: Path
    started: float
    looked: float = 0.0
    """Seconds after that, when it was looked at last: once in a second is enough."""


def run(cases: Iterable[Case], base: Path, scratch: Path, *, jobs: int = 2) -> Iterator[Outcome]:
    """Yield what became of each case. base: sound files; scratch: where cases get folders."""
    waiting, running = iter(enumerate(cases)), dict[int, _Running]()
    more = True
    while more or running:
        while more and len(running) < jobs:
            number, case = next(waiting, (0, None))
            if case is None:
                more = False
                break
            folder = scratch / str(number)
            folder.mkdir()
            running[_fork(case, folder, base)] = _Running(case, folder, time.perf_counter())
        yield from _ended(running)


def _ended(running: dict[int, _Running]) -> Iterator[Outcome]:
    time.sleep(0.005)
    for pid, one in list(running.items()):
        seconds = time.perf_counter() - one.started
        due = seconds > one.looked + 1
        hangs = due and _hangs(pid, seconds)
        if due:
            one.looked = seconds
        if hangs:
            os.killpg(pid, signal.SIGKILL)
        done, status, used = os.wait4(pid, 0 if hangs else os.WNOHANG)
        if done:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            del running[pid]
            computed = used.ru_utime + used.ru_stime
            spent = Spent(seconds, computed, used.ru_maxrss * 1024)
            yield _judged(one, os.waitstatus_to_exitcode(status), spent, hangs=hangs)


def _hangs(session: int, seconds: float) -> bool:
    """Return whether a command hangs whose processes have this session and began so long ago."""
    computed = waited = 0.0
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError):
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                computed += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
                waited += sum(map(_waited, (process / "task").iterdir()))
    return computed > COMPUTES or seconds - computed - waited > STANDS


def _waited(thread: Path) -> float:
    """Return for how many seconds a thread waited for a core, 0 where Linux does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((thread / "schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _judged(one: _Running, status: int, spent: Spent, *, hangs: bool) -> Outcome:
    case, tmp = one.case, one.folder / "tmp"
    said = (one.folder / "said").read_text(errors="backslashreplace")
    left = [p.name for p in tmp.glob("*") if not p.name.startswith("deploykit-crash")]
    wrongs = {
        "code": (one.folder / CANARY).exists(),
        "hang": hangs or spent.computed > COMPUTES,
        "crash": status < 0 and not hangs,
        "traceback": "Traceback (most recent" in said or "Exception ignored" in said,
        "unforeseen": bool([*tmp.glob("deploykit-crash*")]),
        "status": status >= 0 and status not in _STATUSES,
        "escape": "\x1b" in said or "\u202e" in said,
        "memory": case.small and spent.peak > PEAK,
        "left": bool(left),
    }
    shutil.rmtree(one.folder, ignore_errors=True)
    return Outcome(case, status, spent, said, tuple(k for k, v in wrongs.items() if v))


def _fork(case: Case, folder: Path, base: Path) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        status = _child(case, folder, base)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(status)


def _child(case: Case, folder: Path, base: Path) -> int:
    os.setsid()
    os.chdir(folder)
    (folder / "tmp").mkdir()
    os.environ["TMPDIR"] = str(folder / "tmp")
    tempfile.tempdir = None
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    said = os.open(folder / "said", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    words = case.make(folder, base)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    _redirect(case.stdout)
    sys.addaudithook(_watch(str(folder)))
    from deploykit import cli

    try:
        cli.main(words)
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else 1 if stopped.code else 0
    return 0


def _redirect(stdout: str) -> None:
    if stdout == "closed":
        os.close(1)
        sys.stdout = None  # what the interpreter does then
    elif stdout == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    elif stdout == "broken":
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)


def _watch(folder: str) -> Any:
    """Return the hook that leaves a canary when something in `folder` is about to be run."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in _WATCHED:
            return
        if event == "exec":
            names = [getattr(args[0], "co_filename", "")]
        elif event == "compile":
            names = [str(args[1])]
        elif event in ("os.system", "ctypes.dlopen"):
            names = [str(args[0])]
        elif event == "subprocess.Popen":
            names = [str(args[0]), str(list(args[1] or [])[:1])]
        else:
            names = [str(args[1] or "")]
        if any(name.startswith(folder) or folder + "/evil" in name for name in names):
            Path(folder, CANARY).touch()

    return hook
