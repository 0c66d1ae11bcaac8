"""Classification from a folder of images to its scores, with torch's counts beside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import deploykit
from deploykit import EvalOptions, ExportOptions, VerifyOptions
from deploykit.cli import printing
from deploykit.data.preprocess import Geometry
from deploykit.errors import DataError, ModelError, ProofError
from deploykit.measuring.records import AccuracyRecord
from deploykit.recipes.recipe import RECIPES
from deploykit.tasks.classification import Classification, Ranking

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.tasks.task import Scores

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
PLACE = Geometry(40, 60, 1.0, 1.0)
TASK = Classification()


def decoded(logits: Any) -> list[Ranking]:
    values = np.asarray(logits, np.float32)
    return list(TASK.decode({"logits": values}, [PLACE] * len(values)))


def scored(logits: NDArray[np.float32], truth: list[int]) -> Scores:
    metric = TASK.metric(dict(enumerate(NAMES, start=1)), NAMES)
    for i, (result, right) in enumerate(zip(decoded(logits), truth, strict=True)):
        metric.add(f"{i}", result, right + 1, (40, 60))
    return metric.scores()


def test_top_1_and_top_5_are_what_torch_counts() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(500, 7, generator=generator)
    truth = torch.randint(0, 7, (500,), generator=generator)
    found = scored(logits.numpy(), truth.tolist())
    best = logits.topk(5).indices == truth[:, None]
    assert found.metrics == {
        "top1": best[:, 0].double().mean().item(),
        "top5": best.any(1).double().mean().item(),
    }
    for i, name in enumerate(NAMES):
        right = (logits.argmax(1) == i)[truth == i].double().mean().item()
        assert found.per_class[name] == pytest.approx(right, abs=1e-12)
    assert (found.primary, found.notes) == ("top1", ())


def test_scores_become_shares_and_shares_stay_as_they_are() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0]])
    shares = logits.softmax(1)
    for given in (logits, shares, logits[:, :, None, None]):
        (found,) = decoded(given.numpy())
        assert found.classes.tolist() == [1, 3, 2, 0]  # of equal scores the lower index first
        np.testing.assert_allclose(found.scores, shares[0, [1, 3, 2, 0]].numpy(), rtol=1e-6)
        assert found.of == 4


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        (
            {"a": np.zeros((2, 3)), "b": np.zeros((2, 3))},
            ModelError,
            r"a\[2, 3\], b\[2, 3\] are no",
        ),
        ({"map": np.zeros((2, 3, 8, 8))}, ModelError, "no class scores"),
        ({"one": np.zeros((2, 1))}, ModelError, "two classes or more"),
        ({"y": np.full((2, 3), np.nan)}, ProofError, "NaN or infinity"),
    ],
)
def test_outputs_that_are_no_class_scores_are_refused(
    outputs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TASK.decode(outputs, [PLACE] * 2)


def test_truth_that_is_no_category_and_a_wrong_number_of_classes_are_refused() -> None:
    metric = TASK.metric({0: "ant", 1: "bee"}, ("ant", "bee"))
    (result,) = decoded([[0.0, 1.0, 2.0]])
    with pytest.raises(DataError, match="the truth about x is category 7"):
        metric.add("x", result, 7, (4, 4))
    with pytest.raises(DataError, match="the truth about x is a list"):
        metric.add("x", result, [1], (4, 4))
    with pytest.raises(ModelError, match=r"(?s)scores 3 classes.*2, one for each"):
        metric.add("x", result, 1, (4, 4))


def test_two_models_agree_where_only_near_ties_have_another_best_class() -> None:
    expected = np.array([[5.0, 0, 0], [1.0, 1.001, 0], [0, 0, 9.0]], np.float32)
    near, far = expected.copy(), expected.copy()
    near[1, 0] += 0.002
    far[0, 2] = 6
    for ours, passed, others in ((expected, True, 0), (near, True, 1), (far, False, 1)):
        pairing = TASK.agreement()
        pairs = pairing.pairs({"y": ours}, {"y": expected}, 0.0, 1e-3)
        assert list(pairs) == ["y"]
        (finding,) = pairing.findings()
        assert (finding.output, finding.passed) == ("top-1", passed)
        assert (finding.max_abs, finding.mean_abs) == (others, others / 3)


def test_the_best_classes_are_listed_below_the_image() -> None:
    image = np.full((40, 60, 3), 128, np.uint8)
    (result,) = decoded([[0.0, 5, 1, 2, 0, 0, 0]])
    drawn = TASK.draw(image, result, NAMES)
    assert drawn.shape[1] >= 320
    times = drawn.shape[1] // 60
    assert (drawn[: 40 * times] == 128).all(), "the image is enlarged and left as it is"
    below = drawn[40 * times :]
    assert (below != 255).any(axis=(1, 2)).sum() > 5 * 10, "five lines"
    long = [name * 60 for name in NAMES]
    assert TASK.draw(image, result, long).shape == drawn.shape, "long names are cut"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RepVGG with random weights for three classes, as ONNX, at 64x64."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    torch.save(RECIPES.load("repvgg").network("pico", 3).state_dict(), folder / "pico.pth")
    options = ExportOptions(class_names=("ant", "bee", "cat"))
    deploykit.export(folder / "pico.pth", folder / "pico.onnx", options)
    return folder / "pico.onnx"


def put(root: Path, *names: str) -> None:
    rng = np.random.default_rng(len(names))
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (70, 90, 3), np.uint8)).save(root / name)


def test_a_repvgg_is_evaluated_verified_and_timed_on_a_folder_per_class(
    classifier: Path, tmp_path: Path
) -> None:
    put(tmp_path / "set", "ant/1.png", "ant/deep/2.png", "bee/1.png", "cat/3.png")
    source = f"imagefolder:{tmp_path / 'set'}"
    found = deploykit.evaluate(classifier, EvalOptions(source), record=tmp_path / "r.jsonl")
    import onnxruntime

    runner = onnxruntime.InferenceSession(classifier, providers=["CPUExecutionProvider"])
    preprocess = RECIPES.load("repvgg").variant("pico").preprocess
    right = 0
    for path in (tmp_path / "set").rglob("*.png"):
        pixels, _ = preprocess(np.asarray(Image.open(path)))
        (logits,) = runner.run(None, {"images": pixels[None]})
        name = path.relative_to(tmp_path / "set").parts[0]
        right += ("ant", "bee", "cat")[int(logits[0].argmax())] == name
    assert found.metrics == {"top1": right / 4}
    assert (found.task, found.primary, found.images) == ("classification", "top1", 4)
    assert "Top-1" in printing.accuracy(found)
    text, _ = deploykit.report([tmp_path / "r.jsonl"], tmp_path / "r.html")
    assert "Top-1" in text
    same = deploykit.verify(classifier, classifier, VerifyOptions(source=source, count=4))
    assert {a.output: a.passed for a in same} == {"logits": True, "top-1": True}
    plan = deploykit.BenchPlan(
        deploykit.BenchOptions(warmup_seconds=0, duration_seconds=0, min_iterations=2),
        end_to_end=source,
    )
    (timed,) = deploykit.bench([classifier], plan)
    assert timed.scope == "end-to-end"


def test_a_part_of_the_classes_and_other_orders_are_evaluated_and_said(
    classifier: Path, tmp_path: Path
) -> None:
    put(tmp_path / "part", "cat/1.png", "ant/2.png")
    part = deploykit.evaluate(classifier, EvalOptions(f"imagefolder:{tmp_path / 'part'}"))
    (warning,) = part.warnings
    assert "of 2 of the model's 3 classes" in warning
    put(tmp_path / "other", "x/1.png", "y/2.png")
    (tmp_path / "map.txt").write_text("x,2\ny,0\n")
    source = f"imagefolder:{tmp_path / 'other'},classes={tmp_path / 'map.txt'}"
    mapped = deploykit.evaluate(classifier, EvalOptions(source))
    assert list(mapped.per_class) == ["ant", "bee", "cat"]
    assert mapped.per_class["bee"] is None
    (tmp_path / "map.txt").write_text("x,2\ny,9\n")
    with pytest.raises(DataError, match=r"'y' is class 9, and the model has 3"):
        deploykit.evaluate(classifier, EvalOptions(source))


def test_many_classes_are_printed_as_the_lowest_few() -> None:
    names = [f"c{i}" for i in range(200)]
    metric = TASK.metric(dict(enumerate(names)), names)
    for i in range(200):
        metric.add(
            "x", Ranking(np.array([i if i != 7 else 0]), np.ones(1, np.float32), 200), i, (1, 1)
        )
    scores = metric.scores()
    record = AccuracyRecord(
        *("m", "0", scores.metrics, 200, "d", ""), per_class=scores.per_class, primary="top1"
    )
    text = printing.accuracy(record)
    assert "c7" in text
    assert "and 190 more" in text
    assert text.count("\n") < 30


def test_a_model_without_class_names_ranks_numbers() -> None:
    ranking = Ranking(np.array([7, 2]), np.array([0.75, 0.25], np.float32), 10)
    assert ranking.said(()) == "class 7 75.0%"
    found = ranking.to_json((), (4, 4))["classes"]
    assert [row["class"] for row in found] == ["class 7", "class 2"]
