"""Every slow command killed at many moments: what it leaves behind.

    python benchmarks/kills.py                    # SIGKILL and SIGTERM, 20 moments each, per verb
    python benchmarks/kills.py --verbs build --moments 5

The moments are spread evenly over the time that the command takes undisturbed; the table says how
many came before its end (kills). After each: files at their final names that are not whole (torn),
and processes of the command that still run two seconds after it ended (orphans). After all moments
of a verb the command runs once more, undisturbed, and what lies in its folder or among the
temporary files that is no output, and that it does not leave undisturbed, counts (left).

A command that is still there two minutes after its signal counts too (hung).

Exit status: 0 where all four are 0 for every verb, 1 where one is not, 2 where a command fails
that nobody disturbed: then nothing is known.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SIDE = "64"
"""Height and width of the model's input: the time goes into many commands, not into long ones."""
MARK = "DEPLOYKIT_KILLS"
"""Environment variable by which the processes of a command are known."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
GRACE = 2.0
"""Seconds after its end in which the processes of a command must end."""
PATIENCE = 120.0
"""Seconds that a command may take to tidy up."""


@dataclass(frozen=True)
class Verb:
    """A slow command: its words, and the files that it leaves."""

    words: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class Count:
    """What was left behind."""

    kills: int = 0
    torn: int = 0
    orphans: int = 0
    hung: int = 0
    left: int = 0

    @property
    def clean(self) -> bool:
        """Return whether nothing was."""
        return not self.torn + self.orphans + self.hung + self.left


VERBS: Mapping[str, Verb] = {
    "export": Verb(
        ("export", "pico.pth", "--input-size", SIDE, "-o", "out/pico.onnx"),
        ("pico.onnx", "pico.onnx.json"),
    ),
    "quantize": Verb(
        (
            *("quantize", "pico.onnx", "--calib-dir", "photos", "--table", "out/ranges.json"),
            *("-o", "out/pico.int8.onnx"),
        ),
        ("pico.int8.onnx", "pico.int8.onnx.json", "ranges.json"),
    ),
    "build": Verb(
        ("build", "pico.onnx", "--sm", "86", "-o", "out/pico.engine"),
        ("pico.engine", "pico.engine.json", "pico.engine.log"),
    ),
    "eval": Verb(
        (
            "eval",
            "pico.onnx",
            "--source",
            f"shapes:count=12,size={SIDE}",
            "--record",
            "out/r.jsonl",
        ),
        ("r.jsonl",),
    ),
    "bench": Verb(
        ("bench", "pico.onnx", "--duration", "1", "--record", "out/r.jsonl"), ("r.jsonl",)
    ),
}


def main() -> int:
    """Kill the verbs asked for, print the counts, and return 0 where all are 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=list(VERBS))
    parser.add_argument("--moments", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        place = Path(name)
        prepare(place)
        print(f"{'verb':<10} kills  torn  orphans  hung  left", flush=True)
        clean = True
        for verb in given.verbs:
            found = count(place, VERBS[verb], given.moments)
            print(
                f"{verb:<10} {found.kills:5} {found.torn:5} {found.orphans:8} {found.hung:5} "
                f"{found.left:5}",
                flush=True,
            )
            clean = clean and found.clean
    return 0 if clean else 1


def prepare(place: Path) -> None:
    """Make what the commands read: a checkpoint, its export, photographs."""
    import numpy as np  # noqa: PLC0415 - `--help` needs none of these
    import torch  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    from deploykit.recipes.recipe import RECIPES  # noqa: PLC0415

    torch.manual_seed(0)
    network = RECIPES.load("yolov6").network("pico", 6)
    torch.save({"model": network.state_dict()}, place / "pico.pth")
    random, photos = np.random.default_rng(0), place / "photos"
    photos.mkdir()
    for number in range(12):
        pixels = random.integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).resize((320, 320)).save(photos / f"{number}.png")
    (place / "out").mkdir()
    (place / "tmp").mkdir()
    undisturbed(place, ("export", "pico.pth", "--input-size", SIDE, "-o", "pico.onnx"))


def count(place: Path, verb: Verb, moments: int) -> Count:
    """Return what a verb leaves behind, killed at that many moments by each signal."""
    found = Count()
    seconds = undisturbed(place, verb.words)
    usual = {path.name for path in (place / "tmp").iterdir()}  # caches of torch and others
    empty(place / "out")
    for number in SIGNALS:
        for moment in range(moments):
            kill(place, verb, number, seconds * (moment + 0.5) / moments, found)
            found.orphans += orphans()
            found.torn += sum(not whole(path) for path in (place / "out").iterdir())
    undisturbed(place, verb.words)
    lying = {path.name for path in (place / "out").iterdir()} - set(verb.outputs)
    found.left = len(lying) + len({path.name for path in (place / "tmp").iterdir()} - usual)
    empty(place / "out")
    return found


def undisturbed(place: Path, words: tuple[str, ...]) -> float:
    """Return the seconds that a command takes. Ends this program with 2 where it fails."""
    began = time.perf_counter()
    if started(place, words, "").wait():
        print(f"{' '.join(words)} fails undisturbed", file=sys.stderr)
        sys.exit(2)
    return time.perf_counter() - began


def kill(place: Path, verb: Verb, number: signal.Signals, seconds: float, found: Count) -> None:
    """Run a verb and send its process a signal after some seconds; count what that did."""
    process = started(place, verb.words, uuid.uuid4().hex)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        found.kills += 1
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            found.hung += 1
            process.kill()
            process.wait()


def orphans() -> int:
    """Return how many of the commands' processes do not end by themselves in time, and end them."""
    end = time.perf_counter() + GRACE
    while any(running(end=False)) and time.perf_counter() < end:
        time.sleep(0.02)
    return len(list(running(end=True)))


def started(place: Path, words: tuple[str, ...], mark: str) -> subprocess.Popen[bytes]:
    """Return a command that runs in `place`, its temporary files there too."""
    return subprocess.Popen(
        [sys.executable, "-m", "deploykit", *words],
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, MARK: mark or "undisturbed", "TMPDIR": str(place / "tmp")},
    )


def running(*, end: bool) -> Iterator[int]:
    """Yield the numbers of the commands' processes that still run; end: and end them."""
    own = f"{MARK}=".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            ours = own in (entry / "environ").read_bytes()
        except OSError:
            continue
        if ours and state not in "ZX":
            if end:
                os.kill(int(entry.name), signal.SIGKILL)
            yield int(entry.name)


def whole(path: Path) -> bool:
    """Return whether a file at a final name is complete; a temporary one has none yet."""
    if path.name.startswith("."):
        return True
    try:
        return path.suffix not in CHECKS or bool(CHECKS[path.suffix](path))
    except Exception:  # noqa: BLE001 - whatever a torn file makes its reader raise
        return False


def _onnx(path: Path) -> bool:
    import onnx  # noqa: PLC0415 - `--help` needs none

    return len(onnx.load(path).graph.node) > 0


def _engine(path: Path) -> bool:
    from deploykit.backends import _plan_text  # noqa: PLC0415 - an engine is read by it

    return len(_plan_text.kernels(path.read_bytes())) > 0


def _lines(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    return text.endswith("\n") and all(map(json.loads, text.splitlines()))


CHECKS: Mapping[str, Callable[[Path], bool]] = {
    ".onnx": _onnx,
    ".engine": _engine,
    ".json": lambda path: bool(json.loads(path.read_text(encoding="utf-8"))),
    ".jsonl": _lines,
}


def empty(folder: Path) -> None:
    """Remove the files in a folder."""
    for path in folder.iterdir():
        path.unlink()


if __name__ == "__main__":
    sys.exit(main())
