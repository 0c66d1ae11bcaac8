"""Quantisation-aware training on a small graph: what it learns, and that it can be repeated."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from test_quantization import CONV, INT8

from deploykit.data.preprocess import Preprocess
from deploykit.data.sources import Dataset, Sample
from deploykit.errors import BackendError, DataError, InputError, OptionError
from deploykit.precision import placement
from deploykit.training import batches, gains, graphs, landmarks, objectives, retraining
from deploykit.training.course import Course
from deploykit.training.fake_quant import FakeQuantized, Grid
from deploykit.training.objectives import Loss, Sums, Term
from deploykit.training.optimizing import Learner
from deploykit.training.snapshots import Snapshots
from deploykit.values import CalibrationTable, Precision, Range, TensorSpec, silent

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.training.retraining import Run

    Graph = Callable[..., ir.Model]

TEXT = (
    "(float[N,3,16,16] x) => (float[N,4,16,16] y) { "
    f"[body_c0] s = {CONV}(x, w0, b0) [body_r0] r = Relu(s) "
    f"[neck_c1] t = {CONV}(r, w1) [neck_r1] u = Relu(t) "
    f"[head_c2] v = {CONV}(u, w2, b2) [act] y = Sigmoid(v) }}"
)
SHAPES: dict[str, Any] = {
    "w0": (16, 3, 3, 3),
    "b0": (16,),
    "w1": (16, 16, 3, 3),
    "w2": (16, 16, 3, 3),
    "b2": (16,),
}
PREPROCESS = Preprocess((16, 16))
COARSE = Grid(Precision.FP32, 4)


def pixels(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def images(count: int = 16) -> Dataset:
    """Return random images whose truth is their number."""
    samples = [Sample(str(k), lambda k=k: pixels(k), lambda k=k: k) for k in range(count)]  # type: ignore[misc]
    return Dataset("random", samples)


def fed(count: int = 16, size: int = 4, **options: Any) -> batches.Batches:
    inputs = (TensorSpec("x", "float32", ("N", 3, 16, 16)),)
    return batches.Batches(images(count), PREPROCESS, inputs, size, **options)


class Maker:
    """Makes trainings of one small graph."""

    def __init__(self, graph: Graph) -> None:
        self.model = graph(TEXT, **SHAPES)
        self.placed = placement.place(self.model, INT8)
        x = torch.from_numpy(np.stack([pixels(k) for k in range(16)])).permute(0, 3, 1, 2) / 255
        found = graphs.module(self.model).tensors(x, names=placement.activations(self.placed))
        found = {name: value.detach() for name, value in found.items()}
        ranges = {
            n: Range(float(v.abs().max()), float(v.min()), float(v.max())) for n, v in found.items()
        }
        self.table = CalibrationTable("0" * 64, "minmax", ("0",), "0" * 64, ranges)

    def run(
        self,
        course: Course | None = None,
        *,
        scales: Any = "learned",
        loss: Loss | None = None,
    ) -> Run:
        student = FakeQuantized(self.model, self.placed, self.table, grid=COARSE, scales=scales)
        return retraining.begin(self.model, student, course or COURSE, fed().steps, loss=loss)


COURSE = Course(
    epochs=30, learning_rate=1e-3, scale_rate=1e-2, average=0.9, features=("u",), heads=("v",)
)


@pytest.fixture
def maker(graph: Graph) -> Maker:
    return Maker(graph)


def finished(run: Run, data: batches.Batches | None = None, *, until: int | None = None) -> Run:
    for each in retraining.advance(run, data or fed(), silent):
        if until is not None and each.step >= until:
            break
    return run


def noise(net: torch.nn.Module, teacher: torch.nn.Module) -> float:
    """Return the energy of the difference of both outputs on images that were not learnt from."""
    x = torch.from_numpy(np.stack([pixels(k) for k in range(100, 108)])).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        found, told = (each(x)["y"] for each in (net, teacher))
    return float((found - told).square().sum())


@pytest.mark.parametrize("scales", ["fixed", "learned", "moving"])
def test_the_network_comes_nearer_to_its_float_self_on_other_images(
    maker: Maker, scales: Any
) -> None:
    run = maker.run(scales=scales)
    before = noise(copy.deepcopy(run.average).eval(), run.teacher)
    result = finished(run).result()
    assert noise(run.average, run.teacher) < 0.6 * before
    assert result.curve[-1]["loss"] < result.curve[0]["loss"]
    moved = result.table.ranges["r"].threshold != maker.table.ranges["r"].threshold
    assert moved == (scales != "fixed")
    assert result.table.ranges["r"].maximum == maker.table.ranges["r"].maximum


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(maker: Maker) -> None:
    few = replace(COURSE, epochs=3)
    first, second = (finished(maker.run(few)).result() for _ in range(2))
    other = finished(maker.run(few), fed(seed=1)).result()
    for name, weight in first.weights.items():
        assert torch.equal(weight, second.weights[name])
    assert not torch.equal(first.weights["w1"], other.weights["w1"])


@pytest.mark.parametrize("scales", ["learned", "moving"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_training_that_was_ended_goes_on_and_ends_equal(
    maker: Maker, tmp_path: Path, scales: Any, optimizer: Any
) -> None:
    course = replace(COURSE, optimizer=optimizer, epochs=10)
    whole = finished(maker.run(course, scales=scales)).result()
    first = maker.run(course, scales=scales)
    snapshots = Snapshots(tmp_path / "s", {"what": "this"})
    for each in retraining.advance(first, fed(), silent):
        snapshots.keep(each)
        break  # 25 steps are done: in the middle of an epoch
    second = maker.run(course, scales=scales)
    assert Snapshots(tmp_path / "s", {"what": "this"}).restore(second)
    assert second.step == retraining.INTERVAL
    resumed = finished(second).result()
    assert resumed.table == whole.table
    assert resumed.curve == whole.curve
    for name, weight in whole.weights.items():
        assert torch.equal(weight, resumed.weights[name])


def test_a_snapshot_of_another_training_is_refused(maker: Maker, tmp_path: Path) -> None:
    run = maker.run()
    run.step = 25
    Snapshots(tmp_path / "s", {"the model": "a", "the batches": "4"}).keep(run)
    with pytest.raises(
        OptionError,
        match=r"another training: the model differs\nexpected: the model a, asked for b",
    ):
        Snapshots(tmp_path / "s", {"the model": "b", "the batches": "4"}).restore(run)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04" + bytes(100)])
def test_a_damaged_snapshot_is_refused(maker: Maker, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        Snapshots(tmp_path / "s", {}).restore(maker.run())


@pytest.mark.parametrize(
    "changed",
    [{"step": 1}, {"step": "25"}, {"step": 10**9}, {"student": {}}, {"sums": []}, {"learner": 3}],
)
def test_a_snapshot_whose_parts_do_not_fit_is_refused(
    maker: Maker, tmp_path: Path, changed: dict[str, Any]
) -> None:
    run = finished(maker.run(), until=retraining.INTERVAL)
    torch.save({"made_of": {}, "run": {**run.state(), **changed}}, tmp_path / "s")
    with pytest.raises(InputError, match="damaged"):
        Snapshots(tmp_path / "s", {}).restore(maker.run())


def test_a_gpu_that_is_not_there_is_told(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="no GPU is there for --device cuda"):
        maker.run(replace(COURSE, device="cuda"))


def test_no_snapshot_is_no_error(maker: Maker, tmp_path: Path) -> None:
    assert not Snapshots(tmp_path / "s", {}).restore(maker.run())


def test_a_loss_that_is_no_number_ends_the_training(maker: Maker) -> None:
    run = maker.run(replace(COURSE, learning_rate=1e38, optimizer="sgd"))
    with pytest.raises(
        OptionError, match=r"the loss is \S+ at step \d+ of 120[\s\S]*lower learning rate"
    ):
        finished(run)


def target(error: Callable[[dict[str, torch.Tensor], list[Any]], Any], *tensors: str) -> Loss:
    return Loss(tensors or ("y",), error)  # type: ignore[arg-type]


def test_a_loss_of_ones_own_sees_its_tensors_and_the_truth(maker: Maker) -> None:
    seen: list[Any] = []

    def compute(found: dict[str, torch.Tensor], truth: list[Any]) -> Any:
        assert set(found) == {"y", "u"}
        seen.extend(number for number, _ in truth)
        assert truth[0][1].width == 16
        return found["y"].sum(), found["y"].numel()

    run = maker.run(
        replace(COURSE, epochs=1, features=(), heads=()), loss=target(compute, "y", "u")
    )
    result = finished(run, fed(flips=False)).result()
    assert sorted(seen) == list(range(16)), "every image once"
    assert result.curve[0]["loss"] == result.curve[0]["task"]
    assert noise(run.average, run.teacher) > 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (torch.ones(2), "something else"),
        ((torch.ones(2), 1.0), "something else"),
        (3, "something else"),
        ((torch.ones(()), 1.0), "the loss has no gradient"),
        ((torch.ones(()), -1.0), "divided by -1"),
        ((torch.zeros(()), float("nan")), r"the loss is nan at step 1 .* part 'task'[\s\S]*mend"),
    ],
)
def test_a_loss_that_returns_something_else_is_told(maker: Maker, given: Any, says: str) -> None:
    run = maker.run(loss=target(lambda *_: given))
    with pytest.raises(OptionError, match=says):
        finished(run)


def test_images_without_anything_to_learn_are_no_fault_of_a_loss(maker: Maker) -> None:
    run = maker.run(replace(COURSE, epochs=1), loss=target(lambda *_: (torch.zeros(()), 0)))
    assert finished(run).result().curve[0]["task"] == 0


def test_what_a_training_brought_is_measured_on_the_same_images(maker: Maker) -> None:
    data = fed()
    run = maker.run(replace(COURSE, heads=()))
    gauge = gains.Gauge(run, data, silent)
    assert gauge.images == 16, "there are no more"
    assert gauge.before == pytest.approx(_by_hand(run, data), rel=1e-6)
    notes = gauge.notes(finished(run, data))
    assert len(notes) == 1
    assert notes[0].startswith("learnt in 120 steps: the loss on 16 of the images is ")
    before, after = map(float, re.findall(r"[\d.e-]+(?= as calibrated| now)", notes[0]))
    assert before == pytest.approx(gauge.before, rel=1e-3)
    run.average.refresh()
    assert after == pytest.approx(_by_hand(run, data), rel=1e-3)
    assert after < before / 2


def _by_hand(run: Run, data: batches.Batches) -> float:
    """Return the mean over the batches of the loss of what training gives."""
    found = []
    for each in data.epoch(0):
        x = each.inputs["x"]
        ours, theirs = (
            net.tensors({"x": x}, names=["u"])["u"] for net in (run.average, run.teacher)
        )
        error, weight = objectives.channelwise(ours.detach(), theirs)
        found.append(run.course.feature_weight * float(error / weight))
    return sum(found) / len(found)


def test_a_training_that_made_it_worse_says_so(maker: Maker) -> None:
    run = maker.run(replace(COURSE, epochs=1, learning_rate=3.0))
    gauge = gains.Gauge(run, fed(), silent)
    assert "made it worse" in gauge.notes(finished(run))[1]
    with torch.no_grad():
        run.average.graph.parameters().__next__().fill_(float("nan"))
    with pytest.raises(OptionError, match="the loss is nan at the end"):
        gauge.notes(run)


def test_nothing_to_learn_from_is_refused(maker: Maker) -> None:
    with pytest.raises(OptionError, match="nothing to learn from"):
        maker.run(replace(COURSE, features=(), heads=()))
    with pytest.raises(OptionError, match=r"unknown tensor 'uu'[\s\S]*did you mean u"):
        maker.run(replace(COURSE, features=("uu",)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epochs": 0}, "0 epochs"),
        ({"learning_rate": float("nan")}, "learning rates"),
        ({"optimizer": "adm"}, "did you mean adam"),
        ({"average": 1.0}, "a decay of 1.0"),
        ({"temperature": 0.0}, "a temperature of 0.0"),
        ({"feature_weight": float("inf")}, "weights of"),
        ({"device": "gpu"}, r"--device 'gpu'[\s\S]*cpu, cuda or cuda:1"),
    ],
)
def test_a_course_that_leads_nowhere_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        Course(**options)


def test_batches_that_cannot_be_are_refused() -> None:
    with pytest.raises(DataError, match="no images to learn from"):
        fed(0)
    with pytest.raises(OptionError, match=r"a batch of 5 of 4 images"):
        fed(4, 5)
    fixed = (TensorSpec("x", "float32", (2, 3, 16, 16)),)
    with pytest.raises(OptionError, match=r"a batch of 4 images for the input x[\s\S]*expected: 2"):
        batches.Batches(images(), PREPROCESS, fixed, 4)


def test_each_epoch_has_an_order_of_its_own_and_half_of_the_images_mirrored() -> None:
    def seen(number: int, start: int = 0) -> list[NDArray[np.float32]]:
        return [each.inputs["x"].numpy() for each in fed(seed=3).epoch(number, start)]

    first, second = seen(0), seen(1)
    assert not np.array_equal(first, second)
    assert np.array_equal(first[2:], seen(0, 2)), "from a step on"
    plain = [pixels(k).transpose(2, 0, 1) / np.float32(255) for k in range(16)]
    straight = [any(np.allclose(image, one) for one in plain) for image in np.concatenate(first)]
    mirrored = [
        any(np.allclose(image, one[..., ::-1]) for one in plain) for image in np.concatenate(first)
    ]
    assert all(a != b for a, b in zip(straight, mirrored, strict=True))
    assert 2 < sum(mirrored) < 14


def test_half_precision_learns_too(maker: Maker) -> None:
    run = maker.run(replace(COURSE, amp=True))
    before = noise(copy.deepcopy(run.average).eval(), run.teacher)
    finished(run)
    assert noise(run.average, run.teacher) < 0.7 * before
    assert run.average.graph.constant("w1").dtype == torch.float32


def test_channelwise_distillation_is_the_formula() -> None:
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 5, generator=rng) for _ in range(2))
    heat = 4.0
    total = 0.0
    for n in range(2):
        for c in range(3):
            p = np.exp(teacher[n, c].double().numpy() / heat)
            q = np.exp(student[n, c].double().numpy() / heat)
            p, q = p / p.sum(), q / q.sum()
            total += heat**2 / 3 * float((p * np.log(p / q)).sum()) / 2
    sums = objectives.channelwise(student, teacher, heat)
    assert float(sums.error / sums.weight) == pytest.approx(total, rel=1e-5)
    tokens = objectives.channelwise(
        student.flatten(2).transpose(1, 2), teacher.flatten(2).transpose(1, 2), heat
    )
    assert float(tokens.error / tokens.weight) == pytest.approx(total, rel=1e-5)


def test_the_noise_of_a_head_is_relative_to_its_spread() -> None:
    teacher = torch.tensor([[[1.0, 3.0]], [[10.0, 14.0]]])
    sums = objectives.noise(teacher + 0.5, teacher)
    assert float(sums.weight) == 2 + 8
    assert float(sums.error) == 4 * 0.25
    scaled = objectives.noise(7 * teacher + 3.5, 7 * teacher)
    assert float(scaled.error / scaled.weight) == pytest.approx(0.1)


def test_a_loss_is_the_sum_of_its_parts() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    terms = [
        Term("a", 3.0, Sums(x * x, torch.tensor(2.0))),
        Term("a", 1.0, Sums(x, torch.tensor(1.0))),
        Term("b", 5.0, Sums(4 * x, torch.tensor(2.0)), left=0.25),
    ]
    loss, parts = objectives.total(terms)
    torch.autograd.backward(loss)
    assert parts == {"a": 8.0, "b": 20.0, "loss": 28.0}, "as if nothing were taken off the shares"
    assert x.grad is not None
    assert float(x.grad) == 7.0 + 2.5


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_weights_move_as_pytorchs_own_optimizers_move_them(kind: Any) -> None:
    rng = torch.Generator().manual_seed(0)
    ours, theirs = (
        [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4))] for _ in range(2)
    )
    learner = Learner(kind, [(ours[:1], 0.1), (ours[1:], 0.01)])
    groups = [{"params": theirs[:1], "lr": 0.1}, {"params": theirs[1:], "lr": 0.01}]
    other = torch.optim.Adam(groups) if kind == "adam" else torch.optim.SGD(groups, momentum=0.9)
    for _ in range(5):
        for mine, its in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=rng)
            its.grad = mine.grad.clone()
        learner.step()
        other.step()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
    learner.rest()
    assert ours[0].grad is None


HEADS = (
    "(float[N,3,8,8] x) => (float[N,16,1,1] y, float[N,1,8,8] z, float[N,64,16] w, int64[4] v, "
    "float[N,16,8,8] u) { [neck_a] a = Conv<pads=[1,1,1,1]>(x, w0) [neck_b] b = Relu(a) "
    "[neck_c] c = Conv(b, w1) [one] d = Conv(c, w1) [fixed] e = Conv(d, bins) [soft] z = Relu(e) "
    "[two] f = Conv(c, w1) [gap] y = GlobalAveragePool(f) [three] g = Conv(c, w1) "
    "[flat] h = Reshape(g, rows) [turn] i = Transpose<perm=[0,2,1]>(h) [prob] w = Sigmoid(i) "
    "[size] v = Shape(i) [four] j = Conv(c, w1) [gate] k = Sigmoid(j) [silu] l = Mul(j, k) "
    "[soft2] m = Softmax<axis=1>(l) [out] u = Identity(m) }"
)


@pytest.fixture
def headed(graph: Graph) -> ir.Graph:
    """A graph with heads of every kind."""
    model = graph(
        HEADS,
        w0=(16, 3, 3, 3),
        w1=(16, 16, 1, 1),
        bins=np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1),
        rows=np.array([0, 16, 64]),
    )
    for node in model.graph:
        node.name = str(node.name).replace("_", ".")
    return model.graph


def test_heads_are_the_last_layers_that_learn_moved_to_where_they_are_computed_further(
    headed: ir.Graph,
) -> None:
    assert landmarks.heads(headed) == ("d", "f", "i", "j")
    found = landmarks.named(headed, ("d", "i", "l", "y", "j"), logits=("y",))
    kinds = [(head.tensor, head.kind, head.axis) for head in found]
    assert kinds == [
        ("d", "plain", -1),
        ("i", "sigmoid", -1),
        ("l", "softmax", 1),
        ("y", "softmax", 1),
        ("j", "plain", -1),
    ]
    with pytest.raises(OptionError, match="unknown tensor 'zz'"):
        landmarks.named(headed, ("zz",))


def test_features_are_what_leaves_a_module(headed: ir.Graph) -> None:
    assert landmarks.features(headed, ("neck",)) == ("c",)
    with pytest.raises(OptionError, match=r"unknown module 'nek'[\s\S]*did you mean neck"):
        landmarks.features(headed, ("nek",))


def test_chances_are_compared_by_their_divergence_for_each_thing() -> None:
    student, teacher = torch.tensor([[1.0, -3.0]]), torch.tensor([[2.0, -2.0]])
    p, q = (1 / (1 + np.exp(-each.double().numpy())) for each in (teacher, student))
    expected = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum()
    sums = objectives.chances(student, teacher)
    assert float(sums.error) == pytest.approx(expected, rel=1e-5)
    assert float(sums.weight) == pytest.approx(p.sum(), rel=1e-5)


def test_distributions_are_compared_by_their_divergence_along_their_axis() -> None:
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 3, generator=rng) for _ in range(2))
    weight = torch.tensor([1.0, 2.0, 0.0]).reshape(1, 1, 3)
    total = norm = 0.0
    for n in range(2):
        for row in range(3):
            p, q = (np.exp(each[n, :, row].double().numpy()) for each in (teacher, student))
            p, q = p / p.sum(), q / q.sum()
            total += float(weight[0, 0, row]) * float((p * np.log(p / q)).sum())
            norm += float(weight[0, 0, row])
    sums = objectives.distributions(student, teacher, 1, weight)
    assert float(sums.error / sums.weight) == pytest.approx(total / norm, rel=1e-5)
    plain = objectives.distributions(student, teacher, 1)
    assert float(plain.weight) == 6


def test_rows_count_by_the_largest_chance_that_they_hold_something() -> None:
    rng = torch.Generator().manual_seed(0)
    rows, turned = torch.rand(2, 50, 6, generator=rng), torch.rand(2, 6, 50, generator=rng)
    boxes = torch.zeros(2, 50, 4, 17)
    found = objectives.belief(rows, boxes)
    assert found is not None
    assert torch.equal(found, rows.amax(2).reshape(2, 50, 1, 1))
    found = objectives.belief(turned, torch.zeros(2, 4, 17, 50))
    assert found is not None
    assert torch.equal(found, turned.amax(1).reshape(2, 1, 1, 50))
    maps = torch.rand(2, 6, 8, 8, generator=rng)
    found = objectives.belief(maps, torch.zeros(2, 68, 8, 8))
    assert found is not None
    assert torch.equal(found, maps.amax(1, keepdim=True))
    assert objectives.belief(rows, torch.zeros(2, 49, 4)) is None
    assert objectives.belief(torch.rand(2, 6), torch.zeros(2, 6)) is None


TOGETHER = """
import sys
from torch import distributed
distributed.init_process_group("gloo")
sys.path.insert(0, {tests!r})
import conftest, torch
import test_retraining as here
torch.set_num_threads(1)
maker = here.Maker(conftest.graph.__wrapped__())
result = here.together(maker)
if distributed.get_rank() == 0:
    torch.save({{"weights": result.weights, "table": result.table.to_json()}}, {out!r})
distributed.destroy_process_group()
"""


def uneven(found: dict[str, torch.Tensor], truth: list[Any]) -> Any:
    """Return a loss that is divided by what differs from image to image."""
    weights = torch.tensor([1.0 + number for number, _ in truth])
    each = (found["y"] - 0.1).square().mean((1, 2, 3))
    return (each * weights).sum(), weights.sum()


def together(maker: Maker) -> retraining.Trained:
    """Return what a short training gives, in however many processes."""
    course = replace(
        COURSE, epochs=3, optimizer="sgd", learning_rate=1e-2, scale_rate=1e-3, loss_weight=3.0
    )
    run = maker.run(course, loss=Loss(("y",), uneven))  # type: ignore[arg-type]
    return finished(run).result()


def test_two_processes_learn_what_one_does(maker: Maker, tmp_path: Path) -> None:
    out = tmp_path / "two.pth"
    script = tmp_path / "together.py"
    script.write_text(TOGETHER.format(tests=str(Path(__file__).parent), out=str(out)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    both = torch.load(out)
    alone = together(maker)
    start = {n: p.detach() for n, p in graphs.module(maker.model).named_parameters()}
    for name, weight in alone.weights.items():
        step = float((weight - start[name]).norm())
        assert step > 0
        assert float((weight - both["weights"][name]).norm()) < 1e-3 * step, name
    for name, each in alone.table.ranges.items():
        assert both["table"]["ranges"][name]["threshold"] == pytest.approx(each.threshold, rel=1e-5)
