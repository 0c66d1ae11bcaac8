"""Seconds of a step of quantisation-aware training beside the float steps of the same network.

    python benchmarks/qat_step.py                 # the example detector, 16 images of 320x320
    python benchmarks/qat_step.py --batch-size 4 --threads 1 --rounds 9 --record FILE

A step is forward, the energy of what the heads give against numbers that stand still, backward and
Adam. The forms take turns, and the least time of each counts: other work on the machine only adds.
`folded` is the float network as it is exported, in PyTorch's own modules; `unfolded` the RepVGG one
as it was trained, batch norms in training mode; `graph` the float file computed node by node, which
the fake quantised forms are made from. `teacher` and `whole` are learned steps: with the float
self's forward pass and features, and with all that `deploykit qat` does in a step.
Wall times and CPU times, as ratios to `folded`; only times of one run may be compared.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from calibration import processor
from torch import Tensor, nn

from deploykit import pipeline
from deploykit.networks import loading, reparam
from deploykit.precision import placement
from deploykit.recipes import opened
from deploykit.training import fake_quant, graphs, landmarks, retraining
from deploykit.training.batches import Fed
from deploykit.training.course import Course
from deploykit.training.optimizing import Learner
from deploykit.values import CalibrationTable, Range

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.recipes.opened import Opened
    from deploykit.training.fake_quant import FakeQuantized
    from deploykit.training.steps import Scales

    Step = Callable[[], None]

SCHEMA_VERSION = 1
CHECKPOINT = Path(__file__).parents[1] / "examples" / "shapes" / "yolov6_pico.pth"
LIMITS = {"fixed": 1.6, "learned": 2.0, "teacher": 2.3}
"""Form -> what it may take, in folded float steps."""


def step(forward: Callable[[], list[Tensor]], weights: list[nn.Parameter]) -> Step:
    """Return one step of a network whose heads `forward` gives."""
    targets = [torch.zeros_like(each) for each in forward()]
    learner = Learner("adam", [(weights, 1e-9)])

    def run() -> None:
        pairs = zip(forward(), targets, strict=True)
        loss = torch.stack([(found - target).square().sum() for found, target in pairs]).sum()
        learner.rest()
        torch.autograd.backward(loss)
        learner.step()

    return run


def ranges(model: Opened, images: Tensor, names: tuple[str, ...]) -> CalibrationTable:
    """Return the ranges of tensors on these images."""
    with torch.no_grad():
        found = graphs.module(model.graph).tensors(images, names=names)
    each = {
        name: Range(float(value.abs().max()), float(value.min()), float(value.max()))
        for name, value in found.items()
    }
    return CalibrationTable(model.sha256, "minmax", (), "0" * 64, each)


def torch_steps(images: Tensor) -> dict[str, Step]:
    """Return the steps of PyTorch's own modules."""
    found = {}
    for name in ("folded", "unfolded"):
        trained = loading.load_network(CHECKPOINT, loading.NetworkOptions())
        network = trained.module
        if name == "folded":
            network = reparam.deployed(trained.recipe, network)
        network.train()
        weights = [p for p in network.parameters() if p.requires_grad]
        found[name] = step(partial(_heads, network, images), weights)
    return found


def _heads(network: nn.Module, images: Tensor) -> list[Tensor]:
    logits, distances, *_ = network.raw(images)  # type: ignore[operator]  # a detector has it
    return [logits, distances]


def graph_steps(model: Opened, images: Tensor) -> dict[str, Step]:
    """Return the steps of the file as a module, float and fake quantised."""
    graph = model.graph
    heads = landmarks.heads(graph.graph)
    plain = graphs.module(graph)
    found = {"graph": step(partial(_tensors, plain, images, heads), list(plain.parameters()))}
    placed = placement.place(graph, placement.default_plan(graph, model.card))
    table = ranges(model, images, placement.activations(placed))

    def quantized(scales: Scales) -> FakeQuantized:
        return fake_quant.FakeQuantized(graph, placed, table, scales=scales).train()

    for scales in ("fixed", "learned"):
        net = quantized(scales)
        weights = [p for p in net.parameters() if p.requires_grad]
        found[scales] = step(partial(_tensors, net, images, heads), weights)
    found["teacher"] = _distilled(model, quantized("learned"), images, average=False)
    found["whole"] = _distilled(model, quantized("learned"), images, average=True)
    return found


def _tensors(net: nn.Module, images: Tensor, names: tuple[str, ...]) -> list[Tensor]:
    return list(net.tensors(images, names=names).values())  # type: ignore[operator]  # it has it


def _distilled(model: Opened, net: FakeQuantized, images: Tensor, *, average: bool) -> Step:
    """Return a step that learns from the float self; average: with the averaged weights."""
    graph = model.graph.graph
    modules = ("neck.Rep_p3", "neck.Rep_n3", "neck.Rep_n4")
    course = Course(
        learning_rate=1e-9,
        scale_rate=1e-9,
        features=landmarks.features(graph, modules),
        heads=landmarks.heads(graph),
    )
    run = retraining.begin(model.graph, net, course, 1000)
    name = str(graph.inputs[0].name)
    fed = Fed({name: images}, ())
    if average:
        return lambda: _moved(run, fed)

    def without() -> None:
        loss, _ = retraining.loss_of(run, run.student, fed)
        run.learner.rest()
        torch.autograd.backward(loss)
        run.learner.step()

    return without


def _moved(run: retraining.Run, fed: Fed) -> None:
    retraining.step(run, fed)


def measured(steps: dict[str, Step], rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Return form -> wall and CPU seconds of each round, the forms taking turns."""
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in steps}
    for count in range(rounds + 1):
        for name, run in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if count:  # the first round warms up
                found[name][0].append(time.perf_counter() - wall)
                found[name][1].append(time.process_time() - cpu)
    return found


def main() -> int:
    """Print the table; return 1 where a form takes more than it may."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", type=Path, help="JSON-lines file to append to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = (options.side, options.side)
    images = torch.rand(options.batch_size, 3, *size, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        pipeline.export(CHECKPOINT, path, pipeline.ExportOptions(input_size=size))
        model = opened.read(path)
    times = measured({**torch_steps(images), **graph_steps(model, images)}, options.rounds)
    base = [min(each) for each in times["folded"]]
    print("form        wall s   / folded    CPU s   / folded")
    for name, (wall, cpu) in times.items():
        ratios = min(wall) / base[0], min(cpu) / base[1]
        print(f"{name:<10} {min(wall):7.3f} {ratios[0]:10.2f} {min(cpu):8.3f} {ratios[1]:10.2f}")
    if options.record is not None:
        said = {k: v for k, v in vars(options).items() if k != "record"}
        line = {"schema_version": SCHEMA_VERSION, "options": said, "cpu": processor()}
        seconds = {name: {"wall": wall, "cpu": cpu} for name, (wall, cpu) in times.items()}
        with options.record.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "seconds": seconds}, sort_keys=True) + "\n")
    over = [name for name, limit in LIMITS.items() if min(times[name][0]) > limit * base[0]]
    return int(bool(over))


if __name__ == "__main__":
    raise SystemExit(main())
