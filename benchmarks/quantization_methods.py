"""How each method of `quantization.py` makes a net, without training."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.inliner
from quantization_cells import ROOT, Cell, by_torch, judged, source

import deploykit
from deploykit.data import samples, sources
from deploykit.pipeline.opening import open_model
from deploykit.precision import calibration, placement, quantization, repairs, tables
from deploykit.recipes import opened
from deploykit.training.fake_quant import FakeQuantized, Grid
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PEERS = {"ort": "ort-MinMax", "modelopt": "modelopt-max"}
OBSERVERS = ("minmax", "percentile", "mse", "entropy")
WEIGHED, WATCHED = 32, 500
"""Images that the layers are weighed on for a plan, and that its choices are judged on."""


def floats(given: Cell, _: Path | None) -> tuple[Any, list[str]]:
    """Return the float net."""
    return open_model(given.model, threads=given.threads).session.run, []


def ptq(given: Cell, observer: str, repair: str, **more: Any) -> tuple[Any, list[str]]:  # noqa: ANN401
    """Return the net by an observer, and repaired; what was taken."""
    if given.bits != 8 and repair == "auto":
        return _coarse_best(given)
    if given.bits != 8:
        return coarse(given, observer)
    made = deploykit.quantize(
        given.model, given.made, given.how(observer=observer, repair=(repair,), **more)
    )
    return open_model(given.made, threads=given.threads).session.run, list(made.notes)


def repaired(repair: str, given: Cell, _: Path | None) -> tuple[Any, list[str]]:
    """Return the net with one repair alone, which 8 bits have."""
    return ptq(given, "mse", repair)


def _coarse_best(given: Cell) -> tuple[Any, list[str]]:
    """Return the net with the observer that scores best on images of their own."""
    best, found = best_observer(given)
    said = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
    return coarse(given, best)[0], [f"{best}, of {said}"]


def best_observer(given: Cell) -> tuple[str, dict[str, float]]:
    """Return the observer that scores best on images of their own, and what each scores."""
    kept = given.folder / f"{given.net}.{given.bits}.observers.json"
    if not kept.exists():
        few = Cell(given.folder, given.net, given.method, given.bits, 300)
        scored = {name: judged(coarse(given, name)[0], few, seed=7)["value"] for name in OBSERVERS}
        kept.write_text(json.dumps(scored), encoding="utf-8")
    found: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
    return max(found, key=found.__getitem__), found


def ranges(given: Cell, observer: str) -> Path:
    """Return where the ranges of an observer lie."""
    return given.folder / f"{given.model.stem}.{observer}.table.json"


def coarse(given: Cell, observer: str, *, by_tensor: bool = False) -> tuple[Any, list[str]]:
    """Return a net with the steps of fewer bits, computed by torch.

    by_tensor: One step for all weights of a layer.
    """
    subject = opened.read(given.model)
    assert subject.card is not None
    plan = placement.default_plan(subject.graph, subject.card)
    placed = placement.place(subject.graph, plan)
    path = ranges(given, observer)
    if not path.exists():
        found = calibration.calibrate(
            subject,
            sources.dataset(given.calibration),
            subject.card.preprocess,
            placement.activations(placed),
            options=calibration.CalibrationOptions(observer),
        )
        tables.write(path, found)
    if by_tensor:
        weights = tuple(replace(weight, axis=None) for weight in placed.weights)
        placed = replace(placed, weights=weights)
    grid = Grid(bits=given.bits)
    network = FakeQuantized(subject.graph, placed, tables.read(path), grid=grid).eval()
    return by_torch(network), []


def default_by_torch(given: Cell, _: Path | None) -> tuple[Any, list[str]]:
    """Return what `default` makes as training sees it: its fake quantisation, computed by torch."""
    path = given.folder / f"{given.net}.torch.table.json"
    deploykit.quantize(given.model, given.made, given.how(table=path))
    table = tables.read(path)
    subject = repairs.restored(opened.read(given.model), table)
    assert subject.card is not None
    plan = placement.default_plan(subject.graph, subject.card)
    subject = quantization.corrected(subject, table, plan)
    placed = placement.place(subject.graph, plan)
    return by_torch(FakeQuantized(subject.graph, placed, table, grid=Grid()).eval()), []


def planned(given: Cell, _: Path | None) -> tuple[Any, list[str]]:
    """Return the net with the layers in float that a plan chooses, without repairs."""
    if given.bits != 8:
        return _coarse_plan(given)
    layers, chosen = (given.folder / f"{given.net}.{x}.json" for x in ("layers", "plan"))
    how = given.how(table=given.ranges, repair=("none",))  # what a plan brings alone
    if not layers.exists():
        wanted = deploykit.SensitivityOptions(calibrated=how, metrics=("gradient", "output"))
        deploykit.sensitivity(given.model, layers, wanted)
    asked = deploykit.PlanOptions(
        layers, how, source=source(given.net, "val", WATCHED, 7), batch=32, max_drop=0.005
    )
    made = deploykit.plan(given.model, chosen, asked)
    run = ptq(given, "mse", "none", plan=chosen)[0]
    drop = "unknown" if made.drop is None else f"{made.drop.real:.4f}, at most {made.drop.most:.4f}"
    said = f"{len(made.choice.kept)} of {len(made.costs.layers)} layers in float; "
    return run, [said + f"drop {drop} on the images of the plan"]


def _coarse_plan(given: Cell) -> tuple[Any, list[str]]:
    """Return a net of fewer bits with the layers in float that a plan for them chooses."""
    from deploykit.precision.planning import confirming, costs, gpus  # noqa: PLC0415
    from deploykit.precision.sensitivity.alone import Subject  # noqa: PLC0415
    from deploykit.training import gradients  # noqa: PLC0415

    coarse(given, "mse")  # makes the table
    model = opened.read(given.model)
    assert model.card is not None
    table = tables.read(ranges(given, "mse"))
    plan = placement.default_plan(model.graph, model.card)
    subject = Subject(model, plan, table)
    twins, parts = gradients.twins(subject, given.bits), []
    data = sources.dataset(source(given.net, "train", WEIGHED, 0))
    for i, batch in enumerate(samples.batches(data, model.card.preprocess, 4)):
        parts.append(gradients.scores(twins, {"images": batch.images}, seed=i))
    losses = {name: sum(part[name].outputs for part in parts) for name in twins.layers}
    times = costs.roofline(model.graph, list(losses), gpus.gpu("T4"), batch=32)

    def network(kept: Sequence[str]) -> Any:  # noqa: ANN401 - a runner
        layers = {**plan.layers, **dict.fromkeys(kept, Precision.FP32)}
        placed = placement.place(model.graph, replace(plan, layers=layers))
        grid = Grid(bits=given.bits)
        return by_torch(FakeQuantized(model.graph, placed, table, grid=grid).eval())

    few = Cell(given.folder, given.net, given.method, given.bits, WATCHED)
    whole = judged(floats(given, None)[0], few, seed=7)

    def lost(kept: Sequence[str]) -> confirming.Drop:
        found = judged(network(kept), few, seed=7)
        parts = [one - other for one, other in zip(whole["folds"], found["folds"], strict=True)]
        return confirming.drop(whole["value"] - found["value"], parts)

    found = confirming.confirmed(times, losses, 0.005, lost, scaled=False)
    best = found.nearest
    tried = ", ".join(
        f"{len(t.choice.kept)} {t.choice.drop:.4f} {t.drop.real:.4f} {t.drop.most:.4f}"
        for t in found.tried
    )
    said = [f"{len(best.choice.kept)} of {len(losses)} layers in float; drop {best.drop.real:.4f}"]
    return network(best.choice.kept), [*said, f"in float, predicted, measured, at most: {tried}"]


def peer(given: Cell, venv: Path | None) -> tuple[Any, list[str]]:
    """Return what another tool makes of the net."""
    assert venv is not None  # the cell is left out without
    images = given.folder / f"{given.net}.npy"
    model = open_model(given.model)
    if not images.exists():
        data = sources.dataset(given.calibration)
        batches = samples.batches(data, model.contract().preprocess, 1)
        np.save(images, np.concatenate([batch.images for batch in batches]))
    method = PEERS[given.method]
    job, plain = ROOT / "benchmarks" / "foreign_job.py", given.model.with_suffix(".plain.onnx")
    onnx.save(onnx.inliner.inline_local_functions(onnx.load(given.model)), plain)
    words = (venv / "bin" / "python", job, plain, images, method)
    subprocess.run([*map(str, words)], check=True)
    made = plain.with_suffix(f".{method}.onnx")
    return open_model(made, threads=given.threads, like=model.card).session.run, []
