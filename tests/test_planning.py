"""Plans against every choice there is, on problems small enough to try them all."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import skewing

import deploykit
from deploykit import PlanOptions, QuantizeOptions, SensitivityOptions, plan, quantize, sensitivity
from deploykit.cli import main
from deploykit.errors import InputError, OptionError, StaleTableError
from deploykit.files import onnxfile
from deploykit.graph import cost
from deploykit.pipeline import planning
from deploykit.precision.planning import choosing, confirming, costs, gpus, profiles
from deploykit.precision.planning.confirming import Drop
from deploykit.precision.planning.costs import Costs, Meeting, Seconds
from deploykit.precision.sensitivity import scores
from deploykit.precision.sensitivity.scores import Sensitivities
from deploykit.recipes import opened
from deploykit.training.course import Course

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

EXAMPLES = Path(__file__).parent.parent / "examples"
CALIBRATION = "shapes:split=train,seed=3,count=8,size=64"
TRUTH = "shapes:split=val,seed=4,count=6,size=64"


def problem(seed: int, count: int = 9) -> tuple[Costs, dict[str, float]]:
    """Return layers in a random graph, some faster in float, and what each loses."""
    random = np.random.default_rng(seed)
    names = [f"l{i}" for i in range(count)]
    layers = {n: Seconds(*(float(v) for v in random.uniform(1, 4, 2))) for n in names}
    meetings = [Meeting(None, (names[0],), 0.5, 0.0)]
    for i, name in enumerate(names[:-1]):
        readers = {names[j] for j in random.integers(i + 1, count, random.integers(1, 4))}
        convert, widen = (float(v) for v in random.uniform(0, 1, 2))
        meetings.append(Meeting(name, tuple(sorted(readers)), convert, widen))
    drops = {n: float(v) for n, v in zip(names, random.uniform(0, 1, count) ** 3, strict=True)}
    return Costs(layers, tuple(meetings)), drops


def time_of(given: Costs, kept: Iterable[str]) -> float:
    """Return the time of a choice, written down from its definition."""
    half = set(kept)
    total = 0.0
    for name, seconds in given.layers.items():
        total += seconds.half if name in half else seconds.int8
    for meeting in given.meetings:
        written_in_half = meeting.writer is None or meeting.writer in half
        if written_in_half and any(r not in half for r in meeting.readers):
            total += meeting.convert
        if not written_in_half and any(r in half for r in meeting.readers):
            total += meeting.widen
    return total


def every(names: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return itertools.chain.from_iterable(
        itertools.combinations(names, k) for k in range(len(names) + 1)
    )


@pytest.mark.parametrize("seed", range(12))
def test_no_choice_is_faster_for_the_drop_that_is_allowed(seed: int) -> None:
    given, drops = problem(seed)
    for allowed in (0.0, 0.3 * sum(drops.values()), sum(drops.values())):
        found = choosing.within(given, drops, allowed)
        fitting = [
            time_of(given, kept)
            for kept in every(list(drops))
            if sum(v for n, v in drops.items() if n not in kept) <= allowed + 1e-9
        ]
        assert found.seconds == pytest.approx(min(fitting), abs=1e-9)
        assert found.seconds == pytest.approx(time_of(given, found.kept))
        assert found.drop <= allowed + 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_a_number_of_layers_is_spent_on_those_that_lose_most(seed: int) -> None:
    given, drops = problem(seed)
    found = choosing.keeping(given, drops, 3)
    worst = sorted(drops, key=lambda name: -drops[name])[:3]
    assert sorted(found.kept) == sorted(worst)


def test_a_choice_that_was_refused_does_not_come_again() -> None:
    given, drops = problem(1)
    ordered: list[tuple[float, tuple[str, ...]]] = []
    for _ in range(4):
        refused = [kept for _, kept in ordered]
        found = choosing.within(given, drops, 0.5, refused=refused)
        ordered.append((found.seconds, found.kept))
    assert len({kept for _, kept in ordered}) == 4
    assert [time for time, _ in ordered] == sorted(time for time, _ in ordered)


def test_each_point_of_the_frontier_is_faster_or_loses_less() -> None:
    given, drops = problem(2)
    points = choosing.frontier(given, drops)
    assert [p.seconds for p in points] == sorted(p.seconds for p in points)
    assert [p.drop for p in points] == sorted((p.drop for p in points), reverse=True)
    assert points[-1].drop == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("shape", ["sum", "saturating", "coupled"])
@pytest.mark.parametrize("seed", range(4))
def test_few_measurements_find_a_plan_that_holds(seed: int, shape: str) -> None:
    """The truth is three times the losses that are given, saturates, or adds up in pairs."""
    given, drops = problem(seed, 14)
    whole = 3 * sum(drops.values())

    def real(kept: Sequence[str]) -> float:
        lost = {name: 3 * value for name, value in drops.items() if name not in set(kept)}
        total = sum(lost.values())
        if shape == "saturating":
            return whole * (1 - math.exp(-2 * total / whole))
        if shape == "coupled":
            pairs = zip(list(drops), list(drops)[1:], strict=False)
            total += sum(0.5 * (lost[a] + lost[b]) for a, b in pairs if a in lost and b in lost)
        return total

    allowed = 0.1 * whole
    found = confirming.confirmed(given, drops, allowed, lambda kept: Drop(real(kept), real(kept)))
    assert len(found.tried) <= confirming.EVALUATIONS
    assert found.best is not None
    assert found.best.drop.real <= allowed
    fitting = (time_of(given, kept) for kept in every(list(drops)) if real(kept) <= allowed)
    assert found.best.choice.seconds <= 1.15 * min(fitting)


def test_nothing_is_searched_where_the_fastest_choice_holds() -> None:
    given, drops = problem(3)
    found = confirming.confirmed(given, drops, 1.0, lambda _: Drop(0.001, 0.002))
    assert len(found.tried) == 1
    assert found.best is not None
    assert found.best.choice.kept == choosing.fastest(given)
    assert found.nearest is found.best


@pytest.mark.parametrize(("confidence", "broken"), [(0.5, range(15, 41)), (0.95, range(5))])
def test_a_plan_holds_on_other_images(confidence: float, broken: range) -> None:
    """Of 40 plans so many lose more in truth than is allowed: 20 parts of the images vary."""
    random, count = np.random.default_rng(0), 0
    given = Costs({f"l{i}": Seconds(1.0, 1.5 + 0.01 * i) for i in range(30)}, ())
    for _ in range(40):
        drops = {name: random.uniform() ** 3 for name in given.layers}
        guessed = {name: value * random.lognormal(0.0, 0.5) for name, value in drops.items()}
        allowed = 0.3 * sum(drops.values())

        def truth(kept: Sequence[str], drops: dict[str, float] = drops) -> float:
            return sum(value for name, value in drops.items() if name not in set(kept))

        def measure(kept: Sequence[str], spread: float = 0.5 * allowed) -> Drop:
            parts = [truth(kept) + spread * each for each in random.standard_normal(20)]
            return confirming.drop(sum(parts) / len(parts), parts, confidence)

        found = confirming.confirmed(given, guessed, allowed, measure)
        assert found.best is not None
        assert found.best.drop.most <= allowed
        count += truth(found.best.choice.kept) > allowed
    assert count in broken


def test_what_is_lost_at_most_is_by_students_t() -> None:
    stats = pytest.importorskip("scipy.stats")
    parts = [0.1, 0.4, 0.2, 0.25]
    bound = stats.ttest_1samp(parts, 0.0).confidence_interval(0.9).high  # 95 % on one side
    assert confirming.drop(np.mean(parts).item(), parts).most == pytest.approx(bound)
    assert confirming.drop(0.2, parts, 0.5).most == pytest.approx(0.2)
    assert confirming.drop(0.2, [0.2]) == (0.2, 0.2)


def test_a_layer_that_int8_makes_slower_stays_in_float() -> None:
    given, drops = problem(4)
    alone = replace(given, meetings=())
    kept = set(choosing.fastest(alone))
    assert kept == {n for n, each in alone.layers.items() if each.int8 > each.half}
    assert set(choosing.within(alone, drops, 1e9).kept) == kept


def test_a_layer_takes_as_long_as_its_arithmetic_or_its_traffic(
    graph: Callable[..., Any],
) -> None:
    made = graph(
        "(float[N,64,56,56] x) => (float[N,128,56,56] y) "
        "{ [conv] c = Conv<pads=[1,1,1,1]>(x, w) [relu] y = Relu(c) }",
        w=(128, 64, 3, 3),
    )
    gpu = gpus.gpu("t4")
    found = costs.roofline(made, ["conv"], gpu, batch=32)
    macs = 32 * 128 * 56 * 56 * 64 * 9
    assert cost.macs(made)["conv"] * 32 == macs
    int8 = 2 * macs / 130e12 / 0.482 + 4.9e-6
    half = 2 * macs / 65e12 * (576 + 324) / 576 / 0.576 + 2.36e-6
    assert found.layers["conv"] == pytest.approx((int8, half), rel=1e-6)
    thin = costs.roofline(made, ["conv"], replace(gpu, bandwidth=1e9), batch=32)
    values = 32 * 56 * 56 * (64 + 128) + 128 * 64 * 9
    assert thin.layers["conv"].int8 == pytest.approx(values / 1e9 / 0.80 + 4.9e-6, rel=1e-6)
    assert thin.layers["conv"].half == pytest.approx(2 * values / 1e9 / 0.733 + 2.36e-6, rel=1e-6)


def test_int8_gains_nothing_on_a_v100(model: Path) -> None:
    subject = opened.read(model)
    layers = [n.name for n in subject.graph.graph if n.op_type == "Conv"]
    found = costs.roofline(subject.graph, [str(n) for n in layers], gpus.gpu("V100"), batch=32)
    assert len(choosing.fastest(found)) > 0.9 * len(layers)


@pytest.fixture(scope="module")
def measured(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the sensitivities of the example network, and its table."""
    folder = tmp_path_factory.mktemp("plan")
    how = QuantizeOptions(source=CALIBRATION, table=folder / "table.json")
    wanted = SensitivityOptions(calibrated=how, metrics=("snr", "output"), images=4)
    sensitivity(model, folder / "layers.json", wanted)
    return folder / "layers.json", folder / "table.json"


def test_a_plan_is_what_quantize_takes(
    model: Path, measured: tuple[Path, Path], tmp_path: Path
) -> None:
    layers, table = measured
    how = QuantizeOptions(source=CALIBRATION, table=table)
    wanted = PlanOptions(layers, how, max_drop=0.5, source=TRUTH, gpu="A10", batch=4096)
    made = plan(model, tmp_path / "plan.json", wanted)
    assert len(made.tried) <= 8
    assert made.drop is not None
    assert made.drop.real <= made.drop.most
    assert made.met == (made.drop.most <= 0.5)
    quantize(model, tmp_path / "int8.onnx", replace(how, plan=tmp_path / "plan.json"))
    quantised = onnxfile.read_model(tmp_path / "int8.onnx")
    told = json.loads(quantised.metadata_props["deploykit.quantization"])
    assert {n for n, p in told["plan"].items() if p == "fp16"} >= set(made.choice.kept)
    assert json.loads((tmp_path / "plan.json").read_text())["made_by"]["gpu"] == "A10"


def test_without_labels_the_float_model_is_the_truth(photos: Path, tmp_path: Path) -> None:
    path, table = tmp_path / "classes.onnx", tmp_path / "table.json"
    deploykit.export(
        EXAMPLES / "shapes_classes" / "repvgg_pico.pth", path, deploykit.ExportOptions()
    )
    how = QuantizeOptions(source=f"folder:{photos}", table=table)
    wanted = SensitivityOptions(calibrated=how, metrics=("snr",), images=4)
    sensitivity(path, tmp_path / "layers.json", wanted)
    asked = PlanOptions(
        tmp_path / "layers.json", how, max_drop=0.5, source=f"folder:{photos}", batch=4096
    )
    made = plan(path, tmp_path / "plan.json", asked)
    assert made.reference == 1.0
    assert made.named == "top1"
    assert any("taken for the truth" in note for note in made.notes)


def test_layers_can_be_counted_in_place_of_a_drop(
    model: Path, measured: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", str(model), "--sensitivities", str(measured[0]), "--keep-float", "3"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "-o", str(tmp_path / "plan.json"), "--metric", "snr"])
    assert ended.value.code == 0
    assert "3 of" in capsys.readouterr().out
    kept = json.loads((tmp_path / "plan.json").read_text())
    ranked = scores.read(measured[0]).ranked("snr")
    assert set(ranked[:3]) <= set(kept["layers"])
    assert all("of what INT8 loses by snr" in kept["reasons"][name] for name in ranked[:3])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_drop": 0.1, "keep_float": 2}, "one of them"),
        ({"max_drop": -1.0, "source": "x"}, "a drop of -1"),
        ({"max_drop": math.nan, "source": "x"}, "a drop of nan"),
        ({"keep_float": -1}, "-1 layers"),
        ({"source": "x", "confidence": 1.0}, "a confidence of 1"),
        ({"source": "x", "confidence": math.nan}, "a confidence of nan"),
        ({}, "measured on images"),
    ],
)
def test_what_cannot_be_planned_is_said_at_once(given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=f"(?s){said}") as raised:
        PlanOptions("layers.json", **given)
    assert said in str(raised.value)


def test_sensitivities_of_another_model_and_unknown_names_are_refused(
    model: Path, measured: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.loads(measured[0].read_text())
    stale = tmp_path / "stale.json"
    stale.write_text(json.dumps({**data, "model_sha256": "0" * 64}))
    with pytest.raises(StaleTableError, match="another model"):
        plan(model, tmp_path / "p.json", PlanOptions(stale, keep_float=1))
    with pytest.raises(OptionError, match="GPU"):
        plan(model, tmp_path / "p.json", PlanOptions(measured[0], keep_float=1, gpu="T44"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(OptionError, match="scipy"):
        choosing.within(*problem(0), 1.0)


def test_the_measure_that_agrees_best_with_the_task_is_planned_by() -> None:
    layers = {
        "a": {"snr": 30.0, "channel": 0.1, "output": 0.3},
        "b": {"snr": 20.0, "channel": 0.3, "output": 0.2},
        "c": {"snr": 10.0, "channel": 0.2, "output": 0.4},
    }
    found = Sensitivities("m", "t", layers)
    assert planning.best(found) == "output"
    known = {name: {**each, "task": each["output"]} for name, each in layers.items()}
    assert planning.best(Sensitivities("m", "t", known)) == "task"
    only = {name: {"snr": each["snr"]} for name, each in layers.items()}
    assert planning.best(Sensitivities("m", "t", only)) == "snr"
    assert found.losses("snr")["c"] == pytest.approx(0.1)


def test_a_table_of_scaled_channels_serves_every_verb(model: Path, tmp_path: Path) -> None:
    """Weights are skewed, so that `quantize` scales channels: the table is of those."""
    proto = onnx.load(model)
    assert skewing.skewed(proto, skewing.one(100.0)) > 3
    onnx.save(proto, tmp_path / "skewed.onnx")
    how = QuantizeOptions(source=CALIBRATION, table=tmp_path / "table.json", repair=("equalise",))
    quantize(tmp_path / "skewed.onnx", tmp_path / "int8.onnx", how)
    assert json.loads((tmp_path / "table.json").read_text())["factors"]
    wanted = SensitivityOptions(calibrated=how, metrics=("snr",), images=4)
    found = sensitivity(tmp_path / "skewed.onnx", tmp_path / "layers.json", wanted).found
    assert min(each["snr"] for each in found.layers.values()) > 15
    asked = PlanOptions(
        tmp_path / "layers.json", how, source=TRUTH, batch=4096, max_drop=1.0, evaluations=1
    )
    assert plan(tmp_path / "skewed.onnx", tmp_path / "plan.json", asked).met
    learnt = deploykit.qat(
        tmp_path / "skewed.onnx",
        tmp_path / "learnt.onnx",
        deploykit.QatOptions(calibrated=how, course=Course(epochs=1)),
    )
    assert any("repaired by equalise" in note for note in learnt.notes)
    table = json.loads((tmp_path / "learnt.calibration.json").read_text())
    assert "factors" not in table
    again = QuantizeOptions(table=tmp_path / "learnt.calibration.json")
    quantize(tmp_path / "learnt.onnx", tmp_path / "learnt.int8.onnx", again)


def profile(path: Path, rows: dict[str, float]) -> Path:
    """Write what `trtexec --exportProfile` writes of an engine with such layers, in ms."""
    listed = [
        {"name": n, "timeMs": ms * 40, "averageMs": ms, "medianMs": ms, "percentage": 1.0}
        for n, ms in rows.items()
    ]
    path.write_text(json.dumps([{"count": 40}, *listed]), encoding="utf-8")
    return path


def test_measured_times_of_layers_replace_the_peaks(
    model: Path, measured: tuple[Path, Path], tmp_path: Path
) -> None:
    names = list(scores.read(measured[0]).layers)
    first, second, *rest = names
    int8 = profile(
        tmp_path / "int8.json",
        {
            f"{first}.weight + {first}_quant + {first} + relu": 2.0,
            f"{second} || {rest[0]}": 3.0,
            "Reformat 1": 9.0,
            **{f"{name} + act": 0.5 for name in rest[1:]},
        },
    )
    half = profile(tmp_path / "half.json", dict.fromkeys(names, 1.0))
    asked = PlanOptions(measured[0], keep_float=0, profiles=(int8, half))
    found = plan(model, tmp_path / "plan.json", asked).costs.layers
    assert found[first] == pytest.approx((0.002, 0.001))
    assert found[second] == found[rest[0]] == pytest.approx((0.0015, 0.001))
    assert found[rest[-1]] == pytest.approx((0.0005, 0.001))
    profile(int8, {"__myl_fused": 1.0})
    with pytest.raises(InputError, match=f"names 0 of {len(names)} layers"):
        plan(model, tmp_path / "plan.json", asked)


def test_the_command_takes_both_profiles_or_none(
    model: Path, measured: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = list(scores.read(measured[0]).layers)
    int8, half = (profile(tmp_path / f"{ms}.json", dict.fromkeys(names, ms)) for ms in (1.0, 2.0))
    words = ["plan", str(model), "--sensitivities", str(measured[0]), "--keep-float", "0"]
    words += ["-o", str(tmp_path / "plan.json"), "--int8-profile", str(int8)]
    for more, status in (["--fp16-profile", str(half)], 0), ([], 2):
        with pytest.raises(SystemExit) as ended:
            main([*words, *more])
        assert ended.value.code == status
    said = capsys.readouterr()
    assert f"{2 * len(names):.3f} all FP16" in said.out
    assert "--int8-profile and --fp16-profile" in said.err


@pytest.mark.parametrize(
    "text", ["{}", "[]", '[{"count": 3}]', "[" * 50, '[{"name": "a", "averageMs": -1}]', "nonsense"]
)
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="profile"):
        profiles.read(path)


def test_layers_that_were_not_measured_are_named(
    model: Path, measured: tuple[Path, Path], tmp_path: Path
) -> None:
    known = json.loads(measured[0].read_text())
    first = next(iter(known["layers"]))
    for kind in ("layers", "macs"):
        known[kind].pop(first, None)
    part = tmp_path / "part.json"
    part.write_text(json.dumps(known))
    made = plan(model, tmp_path / "p.json", PlanOptions(part, keep_float=1))
    (note,) = (note for note in made.notes if "lack 1 of the layers" in note)
    assert first in note
    assert first not in made.choice.kept
    assert not plan(model, tmp_path / "q.json", PlanOptions(measured[0], keep_float=1)).notes
