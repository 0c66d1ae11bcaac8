"""Graphs that nobody here wrote, through the whole road, beside ONNX Runtime's and ModelOpt's INT8.

    python benchmarks/foreign.py --venv DIR                 # every graph that has no record yet
    python benchmarks/foreign.py --venv DIR --only tv_swin --again
    python benchmarks/foreign.py --table                    # of the records that there are

Each graph of `foreign_graphs.py` goes describe, quantize, build for SM86, verify. The peers
quantise the same file with the same images (symmetric INT8, weights per channel, the range of all
images; with --entropy by that method too, and the better result is taken). Signal to noise, in dB,
is that of the INT8 file against the float one (`foreign_noise.py`), the mean of images that were
not calibrated with. INT8 shares are of multiply-accumulates: as `inspect` says of
the file (`said`), and as the engine's own text has it (`runs`). DIR: a virtual environment with
torch, torchvision, timm, transformers, onnxruntime, nvidia-modelopt[onnx], rapidocr-onnxruntime
and ddddocr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx
from foreign_engine import built, opened, products, share
from foreign_graphs import NAMES, NETWORKS, READERS, TASKLESS, TASKS, sizes
from foreign_job import METHODS
from foreign_noise import MOST, Wanted, ratios, wanted
from foreign_table import FURTHER, Found, records, row, table
from PIL import Image, ImageDraw
from skimage import data

from deploykit.data.preprocess import Preprocess

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "foreign.jsonl"
CALIBRATED, COMPARED = 24, MOST
LIMIT = 600
"""Seconds that one step of one graph may take."""
SLOW = 150
"""Seconds that a peer may take for its entropy method, which is tried in addition."""
WORDS = ("deploykit", "INT8 engine", "proof 2026", "photograph", "Mask R-CNN", "0123456789")
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def photographs(folder: Path) -> None:
    """Write crops of photographs with a line of text, by seed; the last ones are compared on.

    In the folder `lines` beside them is the text alone, on paper, as readers of text get it.
    """
    rng, other = (np.random.default_rng(seed) for seed in (0, 1))
    originals = [Image.fromarray(getattr(data, name)()) for name in PHOTOGRAPHS]
    for index in range(CALIBRATED + COMPARED):
        original = originals[index % len(originals)]
        side = int(min(original.size) * rng.uniform(0.4, 0.9))
        x, y = (int(rng.integers(size - side + 1)) for size in original.size)
        crop = original.crop((x, y, x + side, y + side)).resize((320, 320)).convert("RGB")
        ink = tuple(int(level) for level in rng.integers(0, 256, 3))
        text = WORDS[index % len(WORDS)]
        ImageDraw.Draw(crop).text((10, int(rng.integers(60, 200))), text, ink, font_size=48)
        paper = tuple(int(level) for level in other.integers(180, 256, 3))
        line = Image.new("RGB", (320, 80), paper)
        dark = tuple(level // 4 for level in ink)
        ImageDraw.Draw(line).text((8, int(other.integers(4, 24))), text, dark, font_size=40)
        part = "calibrated" if index < CALIBRATED else "compared"
        for image, kind in ((crop, "photographs"), (line, "lines")):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
            image.save(folder / kind / part / f"{index:03}.png")


def prepared(folder: Path, size: tuple[int, int], channels: int) -> Floats:
    """Return float32[N, channels, *size] of the images in a folder."""
    prepare = Preprocess(size, resize="stretch", mean=MEAN, std=STD)
    arrays = [prepare(np.asarray(Image.open(path)))[0] for path in sorted(folder.glob("*/*.png"))]
    return np.stack(arrays).astype(np.float32)[:, :channels]


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def commit() -> str:
    """Return the commit that is measured, `+` where files differ from it."""
    git = ("git", "-C", HERE, "describe", "--always", "--dirty=+", "--exclude=*")
    return run(*git)[1].strip()


def run(*command: object, timeout: float = LIMIT) -> tuple[int, str]:
    """Return the exit status of a command and what it printed."""
    try:
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return 124, f"more than {timeout:.0f} s"
    return done.returncode, done.stdout if done.returncode == 0 else done.stdout + done.stderr


def deploykit(*arguments: object) -> Found:
    """Return what a command of ours says as JSON, or why it failed."""
    code, text = run(sys.executable, "-m", "deploykit", *arguments, "--json")
    if code == 0:
        return dict(json.loads(text.strip().splitlines()[-1]))
    return {"failed": text.strip()[-600:]}


class Graph:
    """One graph and its files."""

    def __init__(  # noqa: D107 - nothing beside the class
        self, name: str, folder: Path, options: argparse.Namespace
    ) -> None:
        self.name, self.folder = name, folder
        self.python = options.venv.absolute() / "bin" / "python"
        self.methods = METHODS if options.entropy else METHODS[::2]
        self.size = tuple(sizes(name)["size"])
        self.channels = sizes(name)["channels"]
        self.float = folder / f"{name}.onnx"
        shape = "-".join(map(str, self.size))
        kind = "-lines" * (name in READERS) + "-grey" * (self.channels == 1)
        self.arrays = folder / f"images-{shape}{kind}.npy"
        self.photos = folder / ("lines" if name in READERS else "photographs")
        self.calibrated = self.arrays.with_suffix(".calibrated.npy")

    def measure(self) -> Found:
        """Return the record of this graph."""
        start = time.time()
        if not self.arrays.exists():
            images = prepared(self.photos, self.size, self.channels)
            np.save(self.arrays, images)
            np.save(self.calibrated, images[:CALIBRATED])
        if not self.float.exists():
            code, text = run(self.python, HERE / "foreign_graphs.py", self.name, self.float)
            if code:
                return {"name": self.name, "failed": text.strip()[-600:]}
        float_ = wanted(self.float, np.load(self.arrays)[CALIBRATED:])
        found: Found = {"ours": self.ours(float_)}
        for tool in ("ort", "modelopt"):
            tried = [self.peer(m, float_) for m in self.methods if m.startswith(tool)]
            found[tool] = max(tried, key=lambda each: np.mean(each.get("snr", [-999])))
        most = max(found[tool].get("runs", 0.0) for tool in ("ort", "modelopt"))
        reached = found["ours"].get("runs", 1.0)
        for kinds in ("computed", "all"):
            if reached < most - FURTHER:
                more = self.ours(float_, "--int8-layers", kinds)
                found["more"] = {"kinds": kinds, **more}
                reached = more.get("runs", 1.0)
        found |= {"images": len(float_.images), "same": float_.same, "commit": commit()}
        spent = round(time.time() - start, 1)
        return {"name": self.name, "size": self.size, "seconds": spent, **found}

    def ours(self, float_: Wanted, *options: str) -> Found:
        """Return what became of the graph here, step by step."""
        described = self.folder / f"{self.name}.described.onnx"
        quantized = self.folder / f"{self.name}.ours.onnx"
        about = [
            *("--preprocess", "imagenet", "--resize", "stretch"),
            *("--input-size", "x".join(map(str, self.size))),
            *(("--channels", "grey", "--mean", MEAN[0], "--std", STD[0]) * (self.channels == 1)),
        ]
        said: Found = {}
        if self.name in TASKLESS:
            described = self.float
        else:
            task = TASKS.get(self.name, "classification")
            said = deploykit("describe", self.float, *about, "--task", task, "-o", described)
            about = []
        if "failed" in said:
            return {"failed": f"describe: {said['failed']}"}
        start = time.time()
        made = deploykit(
            *("quantize", described, "--calib-dir", self.photos / "calibrated", *about),
            *("--float-type", "fp32", "-o", quantized, *options),
        )
        if "failed" in made:
            return {"failed": f"quantize: {made['failed']}"}
        record = {"quantize_seconds": round(time.time() - start, 1)}
        record |= self.judged(quantized, float_)
        engine = self.folder / f"{self.name}.engine"
        build = deploykit("build", quantized, "--sm", 86, "-o", engine, *self.shapes(quantized))
        if "failed" in build:
            return {**record, "failed": f"build: {build['failed']}"}
        code, text = run(
            *(sys.executable, "-m", "deploykit", "verify", quantized, "--against", described),
            *("--source", f"folder:{self.photos / 'compared'}", "--count", 2, "--json", *about),
        )
        if code not in (0, 1):  # 1: some column is off by more than a float file's would be
            return {**record, "failed": f"verify: {text.strip()[-600:]}"}
        return record

    def shapes(self, model: Path) -> list[str]:
        """Return the options that fix the sizes of a model's inputs."""
        given = opened(str(model)).get_inputs()[0]
        shape = "x".join(map(str, (1, self.channels, *self.size)))
        if all(isinstance(size, int) for size in given.shape):
            return []
        return [f"--{which}-shapes={given.name}:{shape}" for which in ("min", "opt", "max")]

    def peer(self, method: str, float_: Wanted) -> Found:
        """Return what a peer makes of the graph."""
        quantized = self.folder / f"{self.name}.{method}.onnx"
        why = quantized.with_suffix(".failed")
        if not quantized.exists() and not why.exists():
            job = (self.python, HERE / "foreign_job.py", self.float, self.calibrated, method)
            code, said = run(*job, timeout=LIMIT if method in METHODS[::2] else SLOW)
            if code:
                why.write_text(said[-300:], encoding="utf-8")
        if not quantized.exists():
            return {"method": method, "failed": why.read_text(encoding="utf-8")[-300:]}
        return {"method": method, **self.judged(quantized, float_)}

    def judged(self, model: Path, float_: Wanted) -> Found:
        """Return signal to noise and INT8 shares of a quantised file, ours or a peer's."""
        try:
            record: Found = {"snr": ratios(model, float_)}
            given = opened(str(model)).get_inputs()[0].name
            macs = products(model, {given: float_.images[:1]})
        except Exception as error:  # noqa: BLE001 - a file that does not run is a result
            return {"failed": f"does not run: {str(error)[:300]}"}
        sized = fixed(model, (1, self.channels, *self.size))
        record["said"] = inspected(sized)
        engine, why = built(sized)
        if engine is None:
            return {**record, "engine": why}
        return {**record, "runs": share(engine, macs)}


def inspected(model: Path) -> float | str:
    """Return the INT8 share that `inspect` says a file has, or why it says none."""
    code, text = run(sys.executable, "-m", "deploykit", "inspect", model, "--json")
    said = [line for line in text.splitlines() if line.startswith('{"findings"')]
    if code not in (0, 1) or not said:  # 1: it has findings
        return text.strip()[-600:]
    return float(json.loads(said[0])["shares"].get("int8", 0.0))


def fixed(model: Path, shape: tuple[int, ...]) -> Path:
    """Return a copy of a model whose first input has a fixed shape."""
    proto = onnx.load(model)
    weights = {tensor.name for tensor in proto.graph.initializer}
    given = next(value for value in proto.graph.input if value.name not in weights)
    for dim, size in zip(given.type.tensor_type.shape.dim, shape, strict=True):
        dim.Clear()
        dim.dim_value = size
    path = model.with_suffix(".fixed.onnx")
    onnx.save(proto, path)
    return path


def main() -> None:
    """Measure what the command line asks for, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--venv", type=Path, help="where the graphs and the peers come from")
    parser.add_argument("--only", action="append", choices=NAMES, help="graphs; default: all")
    parser.add_argument("--entropy", action="store_true", help="the peers' other method too")
    parser.add_argument("--again", action="store_true", help="ours of what has a record too")
    parser.add_argument("--folder", type=Path, help="keep graphs and images here")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not options.table:
            sweep(options, folder.resolve())
    print("\n".join(table(records(options.output))))


def sweep(options: argparse.Namespace, folder: Path) -> None:
    """Measure graph after graph, a record at a time."""
    if not (folder / "lines").exists():
        photographs(folder)
    for size in {network.size for network in NETWORKS.values()}:
        path = folder / f"images-{size}-{size}.npy"
        if not path.exists():
            images = prepared(folder / "photographs", (size, size), 3)
            np.save(path, images)
            np.save(path.with_suffix(".calibrated.npy"), images[:CALIBRATED])
    known = records(options.output)
    for name in options.only or NAMES:
        if name in known and not options.again:
            continue
        try:
            record = Graph(name, folder, options).measure()
        except Exception as error:  # noqa: BLE001 - the other graphs are measured all the same
            record = {"name": name, "failed": f"{type(error).__name__}: {error}"[:600]}
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, sort_keys=True) + "\n")
        print(row(name, record), flush=True)


if __name__ == "__main__":
    main()
