"""False refusals and misses of the proofs: right rewrites and planted faults.

    python benchmarks/proofs.py                       # 200 right ones and 200 faults
    python benchmarks/proofs.py --share 0.1           # a tenth of them
    python benchmarks/proofs.py -o benchmarks/results/proofs.jsonl

Each verb's own proof judges networks and graphs of seeds, see proof_subjects.py, and the folds of
RepVGG-A0 and YOLOv6-pico. A fault that moves no output by a 1000th of the float32 rounding, in a
dead channel for instance, is none: it is planted in the network of another seed, and counted as
one without effect. One row per verb: right ones refused, faults missed, those without effect, the
largest error of a right one over its limit, and the smallest of a fault over the limit that refused
it. Leaves with status 1 where a proof was wrong.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir
import proof_subjects as subjects
import torch
from torch import nn

from deploykit import ops
from deploykit.backends.pytorch import TorchSession
from deploykit.errors import ProofError
from deploykit.files import onnxfile
from deploykit.graph import fusion
from deploykit.graph.editing import Pass
from deploykit.graph.passes import DEFAULT
from deploykit.networks import loading, reparam, tracing
from deploykit.networks.loading import Network
from deploykit.pipeline import fusing
from deploykit.precision import float16, placement, probing, quantization
from deploykit.proof import acceptance, exports, proving, rewrites, rule
from deploykit.recipes import metadata, opened
from deploykit.recipes.recipe import RECIPES
from deploykit.values import CalibrationTable, Precision, Range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from deploykit.recipes.opened import Opened
    from deploykit.values import Agreement

    Fault: TypeAlias = Callable[[Any, np.random.Generator], None]
    Trial: TypeAlias = Callable[[int, Fault | None], None]
    """(seed, fault or None) -> nothing; raises ProofError, or NoFaultError."""

TRIES = 20
NO_FAULT = 1e-3
"""Of the rounding: what moves the outputs by less is no fault."""
FOLDER = Path(tempfile.mkdtemp())
EXAMPLES = Path(__file__).parent.parent / "examples"
CHECKPOINTS = ("shapes_masks/mask_rcnn_light.pth", "shapes/yolov6_pico.pth")


class NoFaultError(Exception):
    """The fault had no effect."""


@dataclass
class Row:
    """What came out for one verb."""

    verb: str
    right: int = 0
    refused: int = 0
    faults: int = 0
    missed: int = 0
    without_effect: int = 0
    """Planted where they move no output: not counted."""
    nearest_right: float = 0.0
    """Largest error of a right one, over its limit."""
    nearest_fault: float | None = None
    """Smallest error of a fault, over its limit; None: graphs were compared, not numbers."""


class Watch:
    """Hears every verdict that a proof comes to."""

    def __init__(self) -> None:
        """Listen to `proving.compare`."""
        self.verdicts: list[Agreement] = []
        judge = self._judge = proving.compare

        def heard(*args: Any, **keywords: Any) -> tuple[Agreement, ...]:  # noqa: ANN401 - passed on
            found = judge(*args, **keywords)
            self.verdicts += [a for a in found if a.allowed]
            return found

        proving.compare = heard

    def end(self) -> None:
        """Listen no more."""
        proving.compare = self._judge

    def worst(self) -> float:
        """Return the largest error over its limit since the last call, 0 where none was heard."""
        ratios = [a.max_abs / a.allowed for a in self.verdicts if a.allowed]
        self.verdicts.clear()
        return max(ratios, default=0.0)


def quiet(fault: Fault | None, module: Any, seed: int) -> Any:  # noqa: ANN401 - network or graph
    """Return a network or a graph with the fault planted in it."""
    if fault is not None:
        with torch.no_grad():
            fault(module, np.random.default_rng(seed))
    return module


def fold(seed: int, fault: Fault | None) -> None:
    """Judge a fold."""

    def deploy(module: nn.Module) -> nn.Module:
        module = copy.deepcopy(module)
        early = fault in subjects.BEFORE
        folded = reparam.fold(quiet(fault if early else None, module, seed))
        planted: nn.Module = quiet(None if early else fault, folded, seed)
        return planted

    prove_fold(subjects.network(seed, deploy), planted=fault is not None)


def prove_fold(trained: Network, *, planted: bool) -> proving.Reference:
    """Prove the fold of a network. Raises: ProofError; NoFaultError."""
    folded = replace(trained, module=reparam.deployed(trained.recipe, trained.module))
    reference = exports.prove_fold(trained, folded)
    if planted:
        double = copy.deepcopy(trained.module).double()
        wrong = TorchSession(
            replace(trained, module=reparam.deployed(trained.recipe, double)), torch.float64
        )
        check_effect(wrong, reference)
    return reference


def check_effect(wrong: proving.Runs, reference: proving.Reference) -> None:
    """Raise NoFaultError where what was accepted differs by less than a fault does."""
    half_ulp = {
        name: 2.0**-24 * np.abs(array.astype(np.float64)).max(initial=0)
        for name, array in reference.truth[-1].items()
    }
    agreements = proving.compare(wrong, reference, rule.DOUBLE)
    if all(
        a.passed
        if a.allowed is None
        else a.max_abs < NO_FAULT * max(a.rounding or 0, half_ulp.get(a.output, 0))
        for a in agreements
    ):
        raise NoFaultError


def families(seed: int, fault: Fault | None) -> None:
    """Judge the fold of a shipped family's network."""
    name, variant = (("repvgg", "a0"), ("yolov6", "pico"))[seed % 2]
    recipe = RECIPES.load(name)
    torch.manual_seed(seed)
    module = recipe.network(variant, subjects.CLASSES, (64, 64))

    def deploy(trained: nn.Module) -> nn.Module:
        return reparam.deployed(recipe, quiet(fault, copy.deepcopy(trained), seed))

    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.normal_(0, (1.6 / layer.weight[0].numel()) ** 0.5)
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.3)
                layer.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]  # it is tracked
                layer.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    card = replace(subjects.card(seed), preprocess=recipe.variant(variant).sized((64, 64)))
    trained = Network(module, replace(recipe, deploy=deploy), card)
    prove_fold(trained, planted=fault is not None)


def export(seed: int, fault: Fault | None) -> None:
    """Judge an ONNX file against the network that it was traced from."""
    trained = subjects.network(seed, kind=subjects.Mixed)
    early = fault in subjects.BEFORE
    other = quiet(fault if early else None, copy.deepcopy(trained.module), seed)
    folded = replace(trained, module=reparam.fold(trained.module))
    reference = exports.prove_fold(trained, folded)
    model = tracing.to_onnx(replace(folded, module=reparam.fold(other)), 19)
    fusion.fuse(model)
    prove_file(quiet(None if early else fault, model, seed), reference, trained, fault)


def prove_file(
    model: ir.Model, reference: proving.Reference, trained: Network, fault: Fault | None
) -> None:
    """Prove an exported graph. Raises: ProofError; NoFaultError."""
    candidate = opened.made(model, FOLDER / "m.onnx")
    exports.prove_export(candidate, reference, trained.recipe.outputs)
    if fault is None:
        return
    double = rewrites.in_double(model, model)
    assert double is not None
    assert reference.traced is not None
    check_effect(double, replace(reference, truth=(*reference.truth[:-1], reference.traced)))


def detectors(seed: int, fault: Fault | None) -> None:
    """Judge the files of the two example detectors; of later seeds with skewed batch norms."""
    trained, reference, model = detector(seed % 2, 0 if fault else seed // 2)
    copied = onnxfile.copied(model)
    for name, value in model.graph.initializers.items():
        copied.graph.initializers[name].meta.update(value.meta)
    wrong = quiet(fault, copied, seed)
    ops.attach(wrong)
    prove_file(wrong, reference, trained, fault)


@functools.cache
def detector(which: int, skew: int) -> tuple[Network, proving.Reference, ir.Model]:
    """Return an example's network, what its file is judged by, and the file as it is."""
    trained = loading.load_network(EXAMPLES / CHECKPOINTS[which], loading.NetworkOptions())
    if skew:
        torch.manual_seed(skew)
        subjects.skewed(trained.module, 0.1)
    folded = replace(trained, module=reparam.deployed(trained.recipe, trained.module))
    model = tracing.to_onnx(folded, 19)
    fusion.fuse(model)
    ops.attach(model)
    metadata.write(model.metadata_props, trained.card)
    return trained, exports.prove_fold(trained, folded), model


def fuse(seed: int, fault: Fault | None) -> None:
    """Judge rewrites, one of which is wrong."""
    subject = opened.made(subjects.graph(seed), FOLDER / "m.onnx")
    done: set[int] = set()

    def apply(model: ir.Model) -> bool:
        if fault is None or id(model) in done:
            return False
        done.add(id(model))
        quiet(fault, model, seed)
        return True

    planted = Pass("planted", apply)
    passes = (planted, *DEFAULT) if fault in subjects.FOLD_FAULTS else (*DEFAULT, planted)
    subject.write()
    fusing.fuse(subject.path, FOLDER / "fused.onnx", passes)
    if fault is not None:
        wrong = ir.from_proto(ir.to_proto(subject.copy()))
        done.clear()
        fusion.fuse(wrong, passes)
        double = rewrites.in_double(wrong)
        assert double is not None
        check_effect(double, rewrites.measure(subject))


def cast(seed: int, fault: Fault | None) -> None:
    """Judge a graph in FP16; every fourth leaves its range."""
    subject = made(subjects.graph(seed, squares=seed % 4 == 0 or fault is overflow))
    inputs, _ = onnxfile.interface(subject.graph)
    seen = probing.probe(subject, [acceptance.feeds(subject, inputs, batch=2)]).magnitudes
    hidden = fault is overflow
    graph, _ = float16.cast(subject, {} if hidden else seen)
    candidate = opened.made(quiet(None if hidden else fault, graph, seed), FOLDER / "h.onnx")
    acceptance.accept(candidate, subject)
    agreements = rewrites.prove_half(candidate, subject)
    assert agreements, "float64 was there"
    if hidden and all(value < float16.rules.MAX_HALF for value in seen.values()):
        raise NoFaultError


def overflow(_: ir.Model, __: np.random.Generator) -> None:
    """A range that nobody measured."""


def quantize(seed: int, fault: Fault | None) -> None:
    """Judge a graph in INT8, with floats of 16 bits for every second."""
    subject = made(subjects.graph(seed))
    plan = placement.default_plan(subject.graph, subject.card)
    inputs, _ = onnxfile.interface(subject.graph)
    seen = probing.probe(subject, [acceptance.feeds(subject, inputs, batch=2)]).magnitudes
    ranges = {name: Range(value or 1.0, -value, value) for name, value in seen.items()}
    table = CalibrationTable(subject.sha256, "minmax", ("a",), "0" * 64, ranges)
    kind = Precision.FP16 if seed % 2 else Precision.FP32
    graph, _ = quantization.quantize(subject, table, plan, float_type=kind, reached=seen)
    candidate = opened.made(quiet(fault, graph, seed), FOLDER / "q.onnx")
    acceptance.accept(candidate, subject)


def made(graph: ir.Model) -> Opened:
    """Return a graph as `fuse` leaves it."""
    fusion.fuse(graph)
    ops.attach(graph)
    return opened.made(graph, FOLDER / "m.onnx")


DETECTOR_FAULTS = (
    *subjects.GRAPH_FAULTS[:4],
    subjects.graph_limit,
    subjects.graph_anchors,
    subjects.graph_activation,
)
CASES: Sequence[tuple[Trial, int, int, tuple[Fault, ...]]] = (
    (fold, 56, 54, (*subjects.BEFORE, *subjects.AFTER)),
    (families, 4, 6, subjects.BEFORE[:4]),
    (export, 36, 40, (*subjects.BEFORE[:5], *subjects.GRAPH_FAULTS[:4], *subjects.EXPORT_FAULTS)),
    (detectors, 4, 14, DETECTOR_FAULTS),
    (fuse, 40, 36, (*subjects.GRAPH_FAULTS, *subjects.FOLD_FAULTS)),
    (cast, 36, 30, (*subjects.GRAPH_FAULTS, overflow)),
    (quantize, 24, 20, subjects.GRAPH_FAULTS[:4]),
)
"""Proof, right ones, faults, kinds of fault."""


def measured(case: tuple[Trial, int, int, tuple[Fault, ...]], share: float, watch: Watch) -> Row:
    """Return what one verb's proof said of right ones and of faults."""
    trial, right, faults, kinds = case
    row = Row(trial.__name__)
    watch.worst()
    for seed in range(max(1, round(right * share))):
        row.right += 1
        try:
            trial(seed, None)
        except ProofError as error:
            row.refused += 1
            print(f"refused: {row.verb} of seed {seed}: {error}")
        row.nearest_right = max(row.nearest_right, watch.worst())
    for kind, seed in planted(max(1, round(faults * share)), kinds):
        found, idle = effective(trial, kind, seed)
        row.without_effect += idle
        row.faults += 1
        row.missed += not found
        if not found:
            print(f"missed: {row.verb} of seed {seed}: {kind.__name__}")
        shown = watch.worst()
        if shown > 1:
            row.nearest_fault = min(shown, row.nearest_fault or shown)
    return row


def planted(count: int, kinds: Sequence[Fault]) -> Iterator[tuple[Fault, int]]:
    """Yield kinds of fault in turn, each in a network of its own."""
    return itertools.islice(zip(itertools.cycle(kinds), itertools.count(), strict=False), count)


def effective(trial: Trial, kind: Fault, seed: int) -> tuple[bool, int]:
    """Return whether a fault was refused, and how often it was none: then another seed's counts."""
    for attempt in range(TRIES):
        try:
            trial(seed + 1000 * attempt, kind)
        except ProofError:
            return True, attempt
        except NoFaultError:
            continue
        return False, attempt
    return False, TRIES


def main() -> int:
    """Print one row per verb and the sums; return 1 where a proof was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the 200 and 200")
    parser.add_argument("-o", "--output", type=Path, help="JSON lines, one per verb")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    watch, started, rows = Watch(), time.perf_counter(), []
    print(
        f"{'':10}{'right refused':>16}{'faults missed':>16}{'no effect':>11}"
        f"{'right/limit':>13}{'fault/limit':>13}"
    )
    for case in CASES:
        row = measured(case, options.share, watch)
        rows.append(row)
        print(
            f"{row.verb:10}{row.refused:>6} of {row.right:<4}{row.missed:>6} of {row.faults:<4}"
            f"{row.without_effect:>11}"
            f"{row.nearest_right:>13.3g}{row.nearest_fault or float('nan'):>13.3g}",
            flush=True,
        )
    wrong = [sum(r.refused for r in rows), sum(r.missed for r in rows)]
    print(f"{wrong[0]} false refusals of {sum(r.right for r in rows)}, ", end="")
    print(f"{wrong[1]} misses of {sum(r.faults for r in rows)}, ", end="")
    print(f"in {time.perf_counter() - started:.0f} s")
    for name in ("SINGLE", "STRICT", "DOUBLE", "NUMBERS", "HALF"):
        print(f"{name}: {getattr(rule, name)}")
    if options.output is not None:
        lines = (json.dumps(asdict(row), sort_keys=True) for row in rows)
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if any(wrong) else 0


if __name__ == "__main__":
    sys.exit(main())
