"""Seconds that systems take in ONNX Runtime, measured in turns of single runs.

Everything runs on one thread and is measured in seconds of the processor, so that what else a
machine does changes little. A turn is a run of each file, every second turn in the opposite order;
what is compared is the median over the turns of the ratios within a turn.
"""

from __future__ import annotations

import itertools
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnxruntime as ort
import torch
from systems_graphs import alike
from systems_list import CLASSES_OF_SHAPES

from deploykit.networks import loading
from deploykit.networks.detectors import two_stage_models

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from systems_list import System

    Runs = Mapping[str, tuple[Path, Mapping[str, Any]]]
    """Name -> file, and what it is fed, in the order of its inputs."""

ROUNDS, TURNS, WARM = 4, 10, 3
"""How often the files are opened anew, and the turns of each round: those that are counted, and
those before them."""
SHORTEST = 0.02
"""Seconds that each file runs at least in a turn."""
THREADS = 1
HEADS = {"mask_rcnn": "masks", "faster_rcnn": "boxes"}
"""Recipes whose networks torchvision has -> what they find."""
OWN = ("resnet50_fpn", "light")
"""Their variants that are torchvision's own."""
DYNAMIC = "dynamic"
"""The plain exporter's graph for any batch, as ours is; `plain` is one for the one image."""


@dataclass(frozen=True)
class Paths:
    """The checkpoint of a system and its file, and that of the system in whose turns it runs."""

    weights: Path
    ours: Path
    beside: tuple[Path, Mapping[str, Any]] | None
    """With its own inputs, of the same image."""


def compared(
    system: System, files: Paths, feeds: Mapping[str, Any], known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the seconds per image of ours and of the plain exporter's graphs, in turns.

    known: what this returned before; plain graphs that lie there are taken as they are, and what
    could not be made is not tried again.
    """
    ours = files.ours
    runs = {"ours": (ours, feeds)} | ({"beside": files.beside} if files.beside else {})
    before = (known or {}).get("none")
    why = dict(before) if isinstance(before, dict) else {}
    for kind in ("plain", DYNAMIC):
        path = ours.with_suffix(f".{kind}.onnx")
        if kind in why:
            continue
        try:
            if known is None or not path.exists():
                plainly(system, files.weights, path, feeds, several=kind == DYNAMIC)
        except Exception as error:  # noqa: BLE001 - whatever it cannot follow is a result
            said = str(error).strip().splitlines() or [""]
            why[kind] = f"{type(error).__name__}: {said[0]}"[:200]
            continue
        runs[kind] = path, feeds if system.recipe not in HEADS else {"image": feeds["images"][0]}
    found: dict[str, Any] = {
        "seconds": in_turns(runs),
        "clock": "processor",
        "rounds": ROUNDS,
        "same": [
            kind for kind in ("plain", DYNAMIC) if kind in runs and alike(ours, runs[kind][0])
        ],
    }
    return found | ({"none": why} if why else {})


def in_turns(runs: Runs) -> dict[str, list[float]]:
    """Return the processor's seconds of each file's runs, turn by turn.

    Of equal files the one that a process opens first takes up to 9 % longer, others a little less
    than those before them: a round begins with a session that is not measured, and in every second
    one the files are opened in the opposite order.
    """
    found = {name: [] for name in runs}  # type: dict[str, list[float]]
    for number in range(ROUNDS):
        names = _turned(runs, number)
        before = _ready(*runs[names[0]])
        taken(*before)
        sessions = {name: _ready(*runs[name]) for name in names}
        for turn in range(-WARM, TURNS):
            for name in _turned(sessions, turn):
                spent = taken(*sessions[name])
                if turn >= 0:
                    found[name].append(float(f"{spent:.4g}"))
    return found


def _turned(names: Mapping[str, object], number: int) -> list[str]:
    """Return the names, at an odd number in the opposite order."""
    return list(names)[:: -1 if number % 2 else 1]


def _ready(path: Path, feeds: Mapping[str, Any]) -> tuple[ort.InferenceSession, dict[str, Any]]:
    """Return a session, and what it is fed by the names of its inputs."""
    session = opened(path)
    names = [each.name for each in session.get_inputs()]
    return session, dict(zip(names, feeds.values(), strict=True))


def taken(session: ort.InferenceSession, feeds: Mapping[str, Any]) -> float:
    """Return the mean of the processor's seconds in runs that take `SHORTEST` together."""
    start = time.process_time()
    for count in itertools.count(1):
        session.run(None, feeds)
        spent = time.process_time() - start
        if spent >= SHORTEST:
            return spent / count
    raise AssertionError


def opened(path: Path) -> ort.InferenceSession:
    """Return a session on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def plainly(
    system: System, weights: Path, path: Path, feeds: Mapping[str, Any], *, several: bool
) -> None:
    """Write the plain exporter's graph, of one image or of any number."""
    how = loading.NetworkOptions(
        recipe=system.recipe,
        variant=system.variant,
        input_size=system.size,
        settings=system.settings,
    )
    made = loading.load_network(weights, how).module
    given = [torch.from_numpy(value) for value in feeds.values()]
    more: dict[str, Any] = {"dynamo": True}
    module, arguments = made, tuple(given)
    if system.recipe in HEADS:
        if several or system.variant not in OWN:
            message = "torchvision's own network takes a list of images"
            raise ValueError(message if several else "torchvision has no such network")
        module, more = torchvisions(system, made), {"dynamo": False}
        given = [given[0][0]]
        arguments = (list(given),)  # type: ignore[assignment]  # a list of images
    elif several:
        arguments = tuple(torch.cat([each, each]) for each in given)
        more["dynamic_shapes"] = tuple({0: torch.export.Dim.DYNAMIC} for _ in given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            *(module.eval(), arguments, path), external_data=False, verbose=False, **more
        )


def torchvisions(system: System, made: Any) -> Any:  # noqa: ANN401 - torchvision ships no types
    """Return torchvision's own network with these weights, for images of the input's size."""
    sizes = two_stage_models.Sizes(system.classes if not system.example else CLASSES_OF_SHAPES)
    own = two_stage_models.model(system.variant, sizes, HEADS[system.recipe])  # type: ignore[arg-type]  # one of its heads
    own.load_state_dict(made.state_dict(), strict=False)
    for name, place in SET.items():
        if name in system.settings:
            target = own.get_submodule(place[0])
            value: Any = int(system.settings[name])
            setattr(target, place[1], {"training": value, "testing": value} if place[2] else value)
    own.transform.min_size = (min(system.size),)
    own.transform.max_size = max(system.size)
    own.transform.image_mean, own.transform.image_std = [0.0] * 3, [1.0] * 3  # done already
    return own


SET = {
    "detections": ("roi_heads", "detections_per_img", False),
    "candidates": ("rpn", "_pre_nms_top_n", True),
    "proposals": ("rpn", "_post_nms_top_n", True),
}
"""Setting -> where torchvision has it, and whether it has one for training too."""
