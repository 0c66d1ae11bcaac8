"""A graph with fake quant computes what its file with Q/DQ computes in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from test_quantization import (
    ATTENTION,
    ATTENTION_WEIGHTS,
    BRANCHES,
    BRANCHES_WEIGHTS,
    MEETING,
    MEETING_WEIGHTS,
    ZOO,
    ZOO_WEIGHTS,
    table_of,
)

from deploykit.errors import InputError, OptionError
from deploykit.files import onnxfile
from deploykit.precision import placement, quantization
from deploykit.recipes import opened
from deploykit.training import rounding
from deploykit.training.fake_quant import FakeQuantized, Grid
from deploykit.training.graphs import GraphModule
from deploykit.values import Precision, PrecisionPlan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.precision.placement import Placement
    from deploykit.recipes.opened import Opened
    from deploykit.values import CalibrationTable

    Graph = Callable[..., ir.Model]

INT8 = PrecisionPlan(Precision.INT8)
FP32 = Precision.FP32
NETS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "zoo": (ZOO, ZOO_WEIGHTS, (2, 3, 16, 16)),
    "meeting": (MEETING, MEETING_WEIGHTS, (2, 16, 8, 8)),
    "attention": (ATTENTION, ATTENTION_WEIGHTS, (2, 16, 16)),
    "branches": (BRANCHES, BRANCHES_WEIGHTS, (2, 16, 8, 8)),
}


class Subject:
    """A small model with its placement, its table and an input."""

    def __init__(self, graph: Graph, folder: Path, net: str) -> None:
        text, weights, shape = NETS[net]
        path = folder / "m.onnx"
        onnxfile.write_model(graph(text, **weights), path)
        self.x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        self.model: Opened = opened.read(path)
        table = table_of(path, self.x[:1])
        self.table: CalibrationTable = replace(table, model_sha256=self.model.sha256)
        self.placed: Placement = placement.place(self.model.graph, INT8)

    def fake(self, **options: Any) -> FakeQuantized:
        """Return the fake quantised form."""
        return FakeQuantized(self.model.graph, self.placed, self.table, **options)

    def run(self, model: ir.Model) -> list[NDArray[Any]]:
        """Return what ONNX Runtime computes with every Q/DQ as it stands."""
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        data = ir.to_proto(model).SerializeToString()
        found = ort.InferenceSession(data, options).run(None, {"x": self.x})
        return [np.asarray(each) for each in found]

    def exported(self, net: FakeQuantized, float_type: Precision = FP32) -> ir.Model:
        """Return the Q/DQ form of the network's weights and thresholds of this moment."""
        graph = self.model.copy()
        for name, weight in net.weights().items():
            graph.graph.initializers[name].const_value = ir.tensor(weight.numpy(), name=name)
        path = self.model.path.with_name("learned.onnx")
        candidate = opened.made(graph, path)
        table = replace(net.ranged(), model_sha256=candidate.sha256)
        made, _ = quantization.quantize(candidate, table, INT8, float_type=float_type)
        return made


def apart(found: list[NDArray[Any]], expected: list[NDArray[Any]]) -> float:
    """Return the energy of the differences over that of what is expected."""
    pairs = list(zip(found, expected, strict=True))
    error = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in pairs)
    return error / sum(float(np.square(b.astype(np.float64)).sum()) for _, b in pairs)


def outputs(net: torch.nn.Module, x: NDArray[Any]) -> list[NDArray[Any]]:
    return [value.detach().numpy() for value in net(torch.from_numpy(x)).values()]


@pytest.fixture
def subject(graph: Graph, tmp_path: Path) -> Callable[[str], Subject]:
    return lambda net: Subject(graph, tmp_path, net)


@pytest.mark.parametrize("net", NETS)
def test_fake_quant_computes_what_q_dq_computes(
    subject: Callable[[str], Subject], net: str
) -> None:
    one = subject(net)
    fake = one.fake(grid=Grid(FP32)).eval()
    stored = one.run(one.exported(fake))
    noise = apart(one.run(one.model.graph), stored)
    assert noise > 1e-6, "INT8 changes something"
    assert apart(outputs(fake, one.x), stored) < noise / 1000


@pytest.mark.parametrize("scales", ["learned", "moving"])
def test_fake_quant_of_moved_thresholds_and_weights_is_what_the_file_computes(
    subject: Callable[[str], Subject], scales: Any
) -> None:
    one = subject("zoo")
    fake = one.fake(grid=Grid(FP32), scales=scales)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in fake.graph.parameters():
            weight.mul_(1 + 0.1 * torch.rand(weight.shape, generator=rng))
        fake.thresholds.logs += 0.4 * torch.rand(len(fake.thresholds.names), generator=rng) - 0.3
    fake.refresh()
    stored = one.run(one.exported(fake))
    noise = apart(one.run(one.model.graph), stored)
    assert apart(outputs(fake.eval(), one.x), stored) < noise / 1000


def test_steps_in_fp16_are_those_of_the_file(subject: Callable[[str], Subject]) -> None:
    one = subject("zoo")
    fake = one.fake().eval()
    made = one.exported(fake, Precision.FP16)
    scales = [node.inputs[1] for node in made.graph if node.op_type == "QuantizeLinear"]
    stored = {float(placement.weighted.constant(scale).numpy()) for scale in scales}  # type: ignore[union-attr]  # Q has one
    own = {function._step for function in fake.graph._functions if hasattr(function, "_step")}
    assert own == stored


def test_a_network_that_learns_rounds_as_one_that_runs(subject: Callable[[str], Subject]) -> None:
    one = subject("zoo")
    fake = one.fake(scales="learned")
    np.testing.assert_array_equal(outputs(fake.train(), one.x), outputs(fake.eval(), one.x))


def test_one_function_stands_for_each_pair_of_the_file(subject: Callable[[str], Subject]) -> None:
    one = subject("zoo")
    fake = one.fake(grid=Grid(FP32))
    made = one.exported(fake)
    kinds = [node.op_type for node in made.graph]
    assert len(fake.graph._functions) == kinds.count("DequantizeLinear")


def test_the_gradient_of_a_threshold_is_that_of_lsq(subject: Callable[[str], Subject]) -> None:
    one = subject("branches")
    fake = one.fake(scales="learned", grid=Grid(FP32))
    with torch.no_grad():
        fake.thresholds.logs -= 0.5  # some values are clipped
    fake.refresh()
    function: Any = fake.graph._functions[0]
    x = torch.from_numpy(one.x)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    torch.autograd.backward((function(x) * upstream).sum())
    threshold = fake.thresholds.of(function._ranges).item()
    level = x / (threshold / 127)
    inside = (level > -128) & (level < 127)
    slope = torch.where(inside, level.round() - level, level.clamp(-128, 127).round())
    by_step = (slope * upstream).sum() / np.sqrt(127 * x[0].numel())
    place = fake.thresholds.places[function._ranges[0]]
    assert fake.thresholds.logs.grad is not None
    found = fake.thresholds.logs.grad[place].item()
    assert found == pytest.approx(float(by_step) * threshold / 127, rel=1e-3)


def test_weights_beyond_a_limit_are_clipped_here_and_in_the_file(
    subject: Callable[[str], Subject],
) -> None:
    one = subject("zoo")
    fake = one.fake(grid=Grid(FP32), scales="learned")
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        fake.limits.logs -= torch.rand(len(fake.limits.logs), generator=rng)
    fake.refresh()
    whole = {name: weight.detach() for name, weight in fake.graph.named_parameters()}
    clipped = {n for n, weight in fake.weights().items() if not torch.equal(weight, whole[n])}
    assert clipped == {name for name in whole if name in fake.limits}
    stored = one.run(one.exported(fake))
    noise = apart(one.run(one.model.graph), stored)
    assert apart(outputs(fake.eval(), one.x), stored) < noise / 1000


def test_limits_come_down_to_the_largest_weights(subject: Callable[[str], Subject]) -> None:
    fake = subject("branches").fake(grid=Grid(FP32), scales="learned")
    before = fake.limits.logs.detach().clone()
    with torch.no_grad():
        fake.limits.logs += 1
    fake.refresh()
    assert torch.equal(fake.limits.logs, before)


def test_the_gradients_of_weights_and_limits_are_those_of_lsq(
    subject: Callable[[str], Subject],
) -> None:
    fake = subject("branches").fake(scales="learned", grid=Grid(FP32, 4))
    with torch.no_grad():
        fake.limits.logs -= 0.5  # some weights are clipped
    fake.refresh()
    name, function = fake._weights[0]
    weight = fake.graph.constant(name)
    upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    torch.autograd.backward((function.train()(weight) * upstream).sum())
    levels, axis = fake.grid.levels, function._axis
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    limit = fake.limits.of(name).detach().float().requires_grad_()
    own = weight.detach().requires_grad_()
    step = limit.reshape(shape) / levels
    level = own / step
    exact = torch.where(level.abs() <= levels + 0.5, level, levels * level.detach().sign())
    kept = (exact + (exact.round().clamp(-levels, levels) - exact).detach()) * step
    torch.autograd.backward((kept * upstream).sum())
    assert own.grad is not None
    assert limit.grad is not None
    assert weight.grad is not None
    assert fake.limits.logs.grad is not None
    torch.testing.assert_close(weight.grad, own.grad)
    share = np.sqrt(levels * weight.numel() / len(limit))
    wanted = limit.grad.double() * limit.detach().double() / share
    found = fake.limits.logs.grad[: len(limit)]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_fewer_bits_are_coarser_steps(subject: Callable[[str], Subject]) -> None:
    one = subject("zoo")
    float_ = one.run(one.model.graph)
    noise = [
        apart(outputs(one.fake(grid=Grid(FP32, bits)).eval(), one.x), float_) for bits in (8, 6, 4)
    ]
    assert noise[0] < noise[1] / 4 < noise[2] / 16
    with pytest.raises(OptionError, match=r"9 bits[\s\S]*2 to 8"):
        Grid(bits=9)


def test_a_table_without_a_range_is_refused(subject: Callable[[str], Subject]) -> None:
    one = subject("zoo")
    one.table = replace(one.table, ranges={})
    with pytest.raises(InputError, match="no range for"):
        one.fake()


def test_a_relu_in_the_rounding_is_as_one_before_it(
    subject: Callable[[str], Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = subject("zoo")
    found: list[list[torch.Tensor]] = []
    relus = [str(n.outputs[0].name) for n in made.model.graph.graph if n.op_type == "Relu"]
    for together in (True, False):
        if not together:
            monkeypatch.setattr(GraphModule, "bare", lambda *_: False)
        fake = made.fake(scales="learned", grid=Grid(FP32, 4)).train()
        values = list(
            fake.tensors(torch.from_numpy(made.x), names=[*fake.graph.outputs, *relus]).values()
        )
        torch.autograd.backward(torch.stack([v.square().sum() for v in values]).sum())
        weights = [w.grad for w in fake.graph.parameters() if w.grad is not None]
        assert fake.thresholds.logs.grad is not None
        found.append([*values, *weights, fake.thresholds.logs.grad])
        fused = fake.graph.bare(
            relus[0], [(n, i) for r in made.placed.activations for n, i in r.readers]
        )
        assert fused is together
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.detach().abs().max()))


def test_an_unknown_kind_of_scales_is_refused(subject: Callable[[str], Subject]) -> None:
    with pytest.raises(OptionError, match=r"unknown kind of scales 'fix'[\s\S]*did you mean fixed"):
        subject("branches").fake(scales="fix")


def test_a_moving_average_follows_the_largest_value(subject: Callable[[str], Subject]) -> None:
    fake = subject("branches").fake(scales="moving")
    name = fake.thresholds.names[0]
    before = fake.thresholds.values()[name]
    fake.thresholds.move({name: torch.tensor(3 * before)})
    assert fake.thresholds.values()[name] == pytest.approx(1.02 * before)


def test_rounding_has_the_values_and_gradients_of_pytorchs_own_operators() -> None:
    rng = torch.Generator().manual_seed(0)
    x, upstream = (2 * torch.randn(2, 3, 40, 40, generator=rng) for _ in range(2))
    step, reach = 0.0137, (-128, 127)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    learns = torch.tensor(step, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([step], requires_grad=True)
    share = 1 / (127 * x[0].numel()) ** 0.5
    found = rounding.rounded(ours, learns, step, reach)
    told = torch._fake_quantize_learnable_per_tensor_affine(
        theirs, scale, torch.zeros(1), *reach, share
    )
    assert float((found != told).float().mean()) < 1e-4, "a quotient at a half may go either way"
    torch.autograd.backward(found, upstream)
    torch.autograd.backward(told, upstream)
    assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]  # there is one
    assert learns.grad is not None
    assert scale.grad is not None
    assert learns.grad.item() == pytest.approx(scale.grad.item(), rel=1e-3)
    fixed = x.clone().requires_grad_()
    torch.autograd.backward(rounding.rounded(fixed, None, step, reach), upstream)
    assert torch.equal(fixed.grad, theirs.grad)  # type: ignore[arg-type]  # likewise
    laid = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    again = torch.tensor(step, dtype=torch.float64, requires_grad=True)
    other = rounding.rounded(laid, again, step, reach)
    torch.autograd.backward(other, upstream)
    assert torch.equal(other, found), "in whatever order numbers and gradients lie"
    assert torch.equal(laid.grad, theirs.grad)  # type: ignore[arg-type]  # likewise
    assert again.grad is not None
    assert again.grad.item() == pytest.approx(learns.grad.item(), rel=1e-4)
