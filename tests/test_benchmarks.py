"""What the benchmarks compute besides times: bytes, tables, agreement, and what they refuse."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"


@pytest.fixture
def two_stage() -> Any:
    import two_stage

    return two_stage


# --- quantization -------------------------------------------------------------------------------


def test_what_int8_costs_is_told_as_it_is_recorded() -> None:
    import quantization

    rows = quantization._recorded()
    assert quantization.table(rows) in (ROOT / "docs" / "accuracy.md").read_text("utf-8")
    assert quantization.summary(rows) in (ROOT / "README.md").read_text("utf-8")


def test_how_well_measures_rank_layers_is_told_as_it_is_recorded() -> None:
    import proxies

    told = (ROOT / "docs" / "sensitivity.md").read_text("utf-8")
    assert proxies.table(proxies._recorded()) in told


# --- two_stage ----------------------------------------------------------------------------------


def result(two_stage: Any, *, move: float = 0.0, lower: float = 0.0, drop: int = 0) -> Any:
    boxes = np.array([[0, 0, 10, 10], [50, 50, 80, 90], [5, 5, 9, 9]], np.float32) + move
    scores = np.array([0.9, 0.8, 0.051], np.float32) - lower
    masks = np.zeros((3, 4, 4), bool)
    keep = slice(0, 3 - drop)
    return two_stage.Result(boxes[keep], scores[keep], np.arange(3)[keep], masks[keep])


def test_objects_agree_within_half_a_pixel_and_a_thousandth(two_stage: Any) -> None:
    truth = result(two_stage)
    assert two_stage.agreement(result(two_stage, move=0.4, lower=0.0005), truth) == 1
    assert two_stage.agreement(result(two_stage, move=0.6), truth) == 0
    assert two_stage.agreement(result(two_stage, lower=0.01), truth) == 0
    assert two_stage.agreement(result(two_stage, drop=2), truth) == 0.5


def test_an_object_at_the_threshold_may_be_missing(two_stage: Any) -> None:
    assert two_stage.agreement(result(two_stage, drop=1), result(two_stage)) == 1


def test_nothing_agrees_with_nothing_only(two_stage: Any) -> None:
    nothing = result(two_stage, drop=3)
    assert two_stage.agreement(nothing, nothing) == 1
    assert two_stage.agreement(nothing, result(two_stage)) == 0


def test_ours_is_compared_with_the_faster_of_the_others(two_stage: Any) -> None:
    seconds = {two_stage.EAGER: [3.0], two_stage.THEIRS: [2.0, 2.0], two_stage.OURS: [1.0, 2.0]}
    text = two_stage.table(seconds)
    assert "against the faster: 1.33 x; 1.2 x reached" in text
    assert "missed" in two_stage.table({**seconds, two_stage.THEIRS: [1.6]})


@pytest.mark.parametrize("text", ["800", "800x", "801x1344", "0x32", "axb", "800x1344x3"])
def test_a_size_that_is_none_is_refused(two_stage: Any, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected HxW"):
        two_stage.size(text)


def test_ways_take_turns_and_the_first_round_is_not_kept(two_stage: Any) -> None:
    order: list[str] = []
    ways = {name: lambda _, name=name: order.append(name) for name in ("a", "b")}
    seconds = two_stage.rounds(ways, np.zeros((2, 2, 3), np.uint8), 3)
    assert order == ["a", "b"] * 4
    assert [len(values) for values in seconds.values()] == [3, 3]


# --- proofs -------------------------------------------------------------------------------------


def test_no_proof_of_a_small_share_is_wrong() -> None:
    import proofs

    watch = proofs.Watch()
    for case in proofs.CASES:
        if case[0] in {proofs.fold, proofs.fuse, proofs.cast, proofs.quantize}:
            row = proofs.measured(case, 0.17, watch)
            assert (row.refused, row.missed) == (0, 0), row
            assert row.right >= 4
            assert row.faults >= 3
    watch.end()


def test_a_fault_without_effect_is_planted_elsewhere() -> None:
    import proofs

    seeds: list[int] = []

    def trial(seed: int, _: object) -> None:
        seeds.append(seed)
        if len(seeds) < 3:
            raise proofs.NoFaultError

    assert proofs.effective(trial, lambda *_: None, 5) == (False, 2)
    assert seeds == [5, 1005, 2005]


# --- foreign -------------------------------------------------------------------------------------


def classifier(path: Path, weights: Any, *, softmax: bool, noise: float = 0.0) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    if softmax:
        nodes[1].output[0] = "c"
        nodes.append(helper.make_node("Softmax", ["c"], ["y"], axis=-1))
    shifted = np.linspace(-noise, noise, weights.shape[1], dtype=np.float32) + np.float32(noise)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weights.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(shifted, "b")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def test_a_softmax_is_compared_by_the_numbers_before_it_less_their_mean(tmp_path: Path) -> None:
    import foreign_noise

    rng = np.random.default_rng(0)
    weights = rng.normal(0, 3, (8, 10)).astype(np.float32)
    images = rng.normal(0, 1, (400, 8)).astype(np.float32)
    float_ = foreign_noise.wanted(classifier(tmp_path / "a.onnx", weights, softmax=True), images)
    noisy = classifier(tmp_path / "b.onnx", weights, softmax=True, noise=0.1)
    (found,) = foreign_noise.ratios(noisy, float_)
    logits = float_.images.astype(np.float64) @ weights
    signal = np.square(logits - logits.mean(1, keepdims=True)).sum(1)
    noise = np.square(np.linspace(-0.1, 0.1, 10)).sum()
    assert found == pytest.approx(float(10 * np.log10(signal / noise).mean()), abs=0.01)
    assert not float_.same
    assert len(float_.images) == foreign_noise.MOST


def test_classes_that_are_all_alike_say_nothing(tmp_path: Path) -> None:
    import foreign_noise

    images = np.random.default_rng(0).normal(0, 1, (9, 8)).astype(np.float32)
    path = classifier(tmp_path / "a.onnx", np.full((8, 1000), 0.02, np.float32), softmax=True)
    float_ = foreign_noise.wanted(path, images)
    assert float_.same
    assert len(float_.images) == foreign_noise.FEWEST
    assert foreign_noise.ratios(path, float_) == [120.0]


@pytest.mark.parametrize(
    ("ours", "more", "peer", "behind"),
    [
        ((20.0, 1.0), None, (20.4, 1.0), 0.4),
        ((20.0, 0.9), None, (20.4, 1.0), np.inf),
        ((20.0, 0.9), (19.0, 1.0), (18.0, 1.0), -1.0),
        ((20.0, 1.0), None, (23.0, 0.5), 3.0),
    ],
    ids=["as much INT8", "less INT8", "more INT8 where asked", "a peer with less INT8"],
)
def test_ours_stands_beside_a_peer_with_as_much_in_int8(
    ours: Any, more: Any, peer: Any, behind: float
) -> None:
    import foreign_table

    tools = {"ours": ours, "more": more, "ort": peer}
    record = {
        name: {"snr": [each[0]], "runs": each[1]}
        for name, each in tools.items()
        if each is not None
    }
    assert foreign_table.behind_by(record) == pytest.approx(behind)
